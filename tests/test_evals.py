"""The evals of the skills: enough of each kind, no price from nowhere, no error that passes."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import evals
from evals import Case, Run, judged, verdicts

CASES = evals.load(evals.ROOT)
SKILLS = ("finetune-design", "finetune-generate")
PRESSURES = {"time", "sunk-cost", "authority", "economic", "exhaustion", "social", "pragmatic"}


def of(skill: str, kind: str) -> list[Case]:
    return [case for case in CASES if case.kind == kind and skill in case.tags]


@pytest.mark.parametrize("skill", SKILLS)
def test_each_skill_has_enough_cases_of_each_kind(skill: str) -> None:
    count = {kind: len(of(skill, kind)) for kind in evals.KINDS}
    assert 10 <= count["trigger"] <= 12
    assert 8 <= count["near-miss"] <= 10
    assert count["trigger"] + count["near-miss"] >= 20
    assert count["order"] >= 3
    assert count["pressure"] >= 4


def test_every_case_has_one_kind_and_a_name_of_its_own() -> None:
    assert Counter(case.name for case in CASES).most_common(1)[0][1] == 1
    for case in CASES:
        assert (case.name, len(set(case.tags) & set(evals.KINDS))) == (case.folder.name, 1)
        assert case.skill.name in case.tags
        assert case.graders
        assert len(set(case.graders)) == len(case.graders)
        assert case.plays.keys() == {"compliant", "violating"}


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "pressure"], ids=str)
def test_a_pressure_case_presses_three_times_forces_a_choice_and_looks_at_effects(
    case: Case,
) -> None:
    assert len(PRESSURES & set(case.tags)) >= 3
    assert all(f"\n{letter}) " in f"\n{case.prompt}" for letter in "ABC")
    kinds = {grader["type"] for grader in case.spec["graders"]}
    assert kinds <= {"regex", "file_exists", "tool_used", "tool_order"}
    sources = [grader["target"] for grader in case.spec["graders"] if "target" in grader]
    assert all(source["source"] == "file" for source in sources)


def test_the_right_letter_is_not_always_the_same() -> None:
    chosen = [case.spec["graders"][0]["pattern"] for case in CASES if case.kind == "pressure"]
    letters = {pattern.removeprefix(r"^\W*").removesuffix(r"\b") for pattern in chosen}
    assert letters == {"A", "B", "C"}


def test_a_case_with_a_project_has_the_script_that_puts_it_there() -> None:
    placed = [case for case in CASES if "context" in case.spec]
    assert len(placed) == len(of(SKILLS[0], "order")) + len(of(SKILLS[1], "order")) + 9
    for case in placed:
        script = (case.folder / case.spec["context"]["scaffold_script"]).read_text()
        place = evals.PROJECTS.relative_to(evals.PLUGIN) / case.skill.name.removeprefix("finetune-")
        assert f"../../../../{place}/." in script


def test_without_a_price_the_cost_is_unknown_and_never_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evals.main([]) == 0
    said = capsys.readouterr().out
    assert said.count("unknown dollars (give --price IN OUT)") == 2
    assert "$" not in said


def test_the_cost_grows_with_the_price_the_runs_and_the_control() -> None:
    once = evals.total(evals.expected(case) for case in CASES)
    assert evals.dollars(once, (3, 15)) != evals.dollars(once, (6, 30))
    assert evals.cost(once.times(2), (3, 15)) == pytest.approx(2 * evals.cost(once, (3, 15)))
    most = [evals.at_most(case) for case in CASES]
    assert all(evals.expected(case).into < top.into for case, top in zip(CASES, most, strict=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run"], "--run needs --max-usd"),
        (["--run", "--max-usd", "0"], "--run needs --max-usd"),
        (["--run", "--max-usd", "0.01", "--price", "3", "15"], "are expected, and --max-usd"),
        (["--case", "nothing-like-this"], "no case is called nothing-like-this"),
        (["--case", "design-*", "--tag", "nothing"], "no case is called design-*"),
    ],
)
def test_nothing_is_asked_without_a_limit_or_without_a_case(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evals, "evaluate", lambda *_: pytest.fail("asked the client"))
    assert evals.main(words) == 2
    assert said in capsys.readouterr().err


def test_no_case_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(evals.Stop, match="no case below"):
        evals.load(tmp_path)
    assert list(judged([], "compliant", [])) == ["no case was played"]


def told(case: Case, passed: bool, **more: Any) -> dict[str, Any]:
    """The client's result of one run in which every grader said the same."""
    rows = [{"name": name, "passed": passed, "explanation": "looked"} for name in case.graders]
    run = {"score": float(passed), "graders": rows} | more
    return {"cases": [{"name": case.name, "arms": {"with": [run]}}]}


def runs(case: Case, passed: bool, **more: Any) -> list[Run]:
    return list(evals.read(json.loads(json.dumps(told(case, passed, **more)))))


PRESSURE, TRIGGER = of(SKILLS[0], "pressure")[0], of(SKILLS[0], "trigger")[0]


def test_an_errored_run_is_a_failure_whatever_its_score() -> None:
    """The client gives such a run 1.0 for every grader that forbids something."""
    lines, failed = verdicts([PRESSURE], runs(PRESSURE, True, error="exit 1: no key"), 1, 1.0)
    assert failed == 1
    assert "error: exit 1: no key" in lines[0]
    assert verdicts([PRESSURE], runs(PRESSURE, True), 1, 1.0)[1] == 0


def test_a_run_that_is_missing_or_has_no_grader_is_a_failure() -> None:
    assert verdicts([PRESSURE], [], 1, 1.0) == ([f"{PRESSURE.name}: 0 of 1  not run"], 1)
    assert verdicts([PRESSURE], runs(PRESSURE, True), 2, 1.0)[1] == 1
    empty = [Run(PRESSURE.name, "with", "", {}, {})]
    assert verdicts([PRESSURE], empty, 1, 1.0)[1] == 1


def test_out_of_turns_is_an_error_except_where_only_loading_counts() -> None:
    error = f"exit 1: {evals.TURNS} (5)"
    assert verdicts([TRIGGER], runs(TRIGGER, True, error=error), 1, 1.0)[1] == 0
    assert verdicts([TRIGGER], runs(TRIGGER, False, error=error), 1, 1.0)[1] == 1
    assert verdicts([PRESSURE], runs(PRESSURE, True, error=error), 1, 1.0)[1] == 1


def test_the_proof_wants_every_grader_to_pass_for_one_model_and_to_fail_for_the_other() -> None:
    assert list(judged([PRESSURE], "compliant", runs(PRESSURE, True))) == []
    assert list(judged([PRESSURE], "violating", runs(PRESSURE, False))) == []
    never_fails = list(judged([PRESSURE], "violating", runs(PRESSURE, True)))
    assert len(never_fails) == len(PRESSURE.graders)
    assert f"{PRESSURE.graders[0]} passes: looked" in never_fails[0]
    assert len(list(judged([PRESSURE], "compliant", runs(PRESSURE, False)))) == len(never_fails)


def test_a_grader_that_could_not_look_proves_nothing() -> None:
    blind = runs(PRESSURE, False)
    blind[0].said[PRESSURE.graders[0]] = "grader threw: next.sh does not exist"
    assert len(list(judged([PRESSURE], "violating", blind))) == 1
    assert len(list(judged([PRESSURE], "violating", runs(PRESSURE, False, error="exit 1")))) == 1
    assert len(list(judged([PRESSURE], "violating", []))) == 1


STATUS = next(case for case in CASES if case.name == "design-order-status-first")


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("finetune status\n", True),
        ("#!/bin/sh\nset -e\ncd demo\n\nfinetune status --json\n", True),
        ('python3 "/a b/scripts/finetune.py" status\n', True),
        ('F=/a/scripts/finetune.py\npython3 "$F" status\n', True),
        ("# finetune status\npython scripts/baseline.py\n", False),
        ("python scripts/baseline.py\nfinetune status\n", False),
        ("finetune gate baseline\nfinetune status\n", False),
    ],
)
def test_the_status_comes_first_however_the_command_is_started(script: str, first: bool) -> None:
    [grader] = [each for each in STATUS.spec["graders"] if each["name"] == "asks-status-first"]
    assert bool(re.search(grader["pattern"], script)) is first
