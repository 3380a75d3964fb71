"""The base model before training: whole conversations, failures by rule, a person's decision."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from designs import DESIGN, edit, example
from evidence import wilson
from finetune_skills import gates
from finetune_skills.rehearsal import bench
from infrastructure import FinetuneError, iter_records
from settings import load_system_prompt

RESULTS, PROJECT = "design/base-model-eval-results", "config/project.yaml"

CHINESE = "\u5f88\u62b1\u6b49\u3002\u8bf7\u5148\u628a\u63d2\u5934\u62d4\u4e0b\u6765\u3002"
# A base model that spoils one reply to one person, and notes what it is told.
FAULTY = f"""
from pathlib import Path
import simulated

def base(messages, *, schema=None, scope=""):
    Path(__file__).with_name("told").write_text(messages[0]["content"])
    if "base-00003/t04." in scope:
        return {CHINESE!a}
    return simulated.assistant(messages, schema=schema, scope=scope)
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, its design passed, and its base model tried."""
    root = example(tmp_path_factory.mktemp("tried") / "demo")
    for gate in DESIGN:
        assert gates.pass_gate(root, gate, "test").state == "passed"
    bench.script(root, "baseline.py", "--count", "20")
    return root


@pytest.fixture
def place(tried: Path, tmp_path: Path) -> Path:
    shutil.copytree(tried, tmp_path / "demo")
    return tmp_path / "demo"


def results(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / f"{RESULTS}.json").read_bytes())
    return found


def save(place: Path, **changed: Any) -> None:
    (place / f"{RESULTS}.json").write_text(json.dumps(results(place) | changed))


def said(place: Path) -> str:
    return " ".join(map(str, gates.run_check(place, gates.GATES["baseline"]).findings))


def test_whole_conversations_with_people_of_their_own_are_judged(tried: Path) -> None:
    found = results(tried)
    assert (found["conversations"], found["unscored"], found["left"]) == (20, 0, 0)
    assert [found["low"], found["high"]] == list(wilson(found["passed"], 20))
    people = {row["id"] for row in iter_records(tried / "data/personas/baseline.jsonl")}
    assert {row["id"] for row in found["rows"]} == people
    assert not (tried / "data/personas/evaluation.jsonl").exists()
    assert all(row["exchanges"] >= 3 for row in found["rows"])


def test_the_page_says_that_simulated_models_prove_nothing(tried: Path) -> None:
    page = (tried / f"{RESULTS}.md").read_text()
    assert "Simulated models" in page
    assert "finetune approve baseline" in page
    assert all(f"| {name} " in page for name in results(tried)["criteria"])


def test_the_models_replies_are_never_asked_for_again(tried: Path) -> None:
    journal = iter_records(tried / "data/journal/baseline.jsonl")
    scopes = {row["scope"] for row in journal if row["model"] == "python:simulated:base"}
    assert scopes
    assert not [scope for scope in scopes if "repair" in scope or "length" in scope]


def test_the_gate_waits_for_a_person_and_then_opens(place: Path) -> None:
    state = gates.pass_gate(place, "baseline", "test")
    assert (state.state, state.findings) == ("waiting", [])
    assert state.figures["passed"] == f"{results(place)['passed']} of 20"
    assert gates.decide(place, "baseline", "approved", "me").state == "passed"


def test_a_second_run_asks_nothing_and_more_are_added_to_what_is_there(place: Path) -> None:
    before = (place / "data/journal/baseline.jsonl").read_bytes()
    page = (place / f"{RESULTS}.json").read_bytes()
    bench.script(place, "baseline.py", "--count", "20")
    assert (place / "data/journal/baseline.jsonl").read_bytes() == before
    assert (place / f"{RESULTS}.json").read_bytes() == page
    bench.script(place, "baseline.py", "--count", "22")
    assert results(place)["conversations"] == 22


def test_a_reply_in_another_language_fails_the_conversation_whatever_a_judge_says(
    place: Path,
) -> None:
    (place / "faulty.py").write_text(FAULTY)
    edit(place / PROJECT, '"python:simulated:base"', '"python:faulty:base"')
    edit(place / "design/model-choice.md", "python:simulated:base", "python:faulty:base")
    for gate in ("model", "tokens"):
        gates.pass_gate(place, gate, "test")
    bench.script(place, "baseline.py", "--count", "20")
    row = next(row for row in results(place)["rows"] if row["id"] == "base-00003")
    assert (row["state"], row["score"]) == ("failed", 0.0)
    assert row["model_failure"][0].startswith("exchange 4: ")
    assert "base-00003: exchange 4" in (place / f"{RESULTS}.md").read_text()
    assert (place / "told").read_text() == load_system_prompt(place)


EDITS = {
    "config/system-prompt.md": ("Tarn", "Tarn now"),
    "config/project.yaml": ("a water filter for the kitchen", "a water filter"),
}
LATER = {
    "config/rubric.yaml": ("pass_threshold: 0.8", "pass_threshold: 0.85"),
    "config/prompts/assessor.md": ("You judge the assistant", "Please judge the assistant"),
    "config/project.yaml": ("{model: \"python:simulated:judge_mild\", label: mild}",
                            "{model: \"python:simulated:judge_other\", label: mild}"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "change"), EDITS.items(), ids=EDITS.keys())
def test_what_changed_since_makes_the_result_stale(
    place: Path, file: str, change: tuple[str, str]
) -> None:
    gates.pass_gate(place, "baseline", "test")
    gates.decide(place, "baseline", "approved", "me")
    edit(place / file, *change)
    assert gates.states(place)["baseline"].state != "passed"
    assert "has changed since the baseline was made" in said(place)


@pytest.mark.parametrize(("file", "change"), LATER.items(), ids=LATER.keys())
def test_what_pilots_go_on_changing_is_told_and_leaves_the_decision(
    place: Path, file: str, change: tuple[str, str]
) -> None:
    gates.pass_gate(place, "baseline", "test")
    gates.decide(place, "baseline", "approved", "me")
    edit(place / file, *change)
    checked = gates.run_check(place, gates.GATES["baseline"])
    assert checked.findings == []
    assert Path(file).name in checked.figures["changed since"].replace("judging", "project.yaml")


def test_a_comment_in_the_rubric_changes_nothing(place: Path) -> None:
    gates.pass_gate(place, "baseline", "test")
    gates.decide(place, "baseline", "approved", "me")
    edit(place / "config/rubric.yaml", "pass_threshold: 0.8", "pass_threshold: 0.8  # for now")
    assert gates.states(place)["baseline"].state == "passed"


def test_too_few_unscored_and_embellished_results_are_refused(place: Path) -> None:
    whole = results(place)
    save(place, rows=whole["rows"][:19], conversations=19)
    assert "19 conversations were judged, 20 are needed" in said(place)
    save(place, **whole | {"unscored": 2})
    assert "2 conversations have no verdict yet" in said(place)
    save(place, **whole | {"passed": 20})
    assert f"says 20 of 20, its rows {whole['passed']} of 20" in said(place)
    save(place, **whole | {"low": 0.9})
    assert "its interval is not that of its rows" in said(place)


def test_a_changed_or_missing_conversation_is_named(place: Path) -> None:
    row = results(place)["rows"][0]
    path = place / row["source_file"]
    talk = json.loads(path.read_bytes())
    talk["exchanges"][0]["assistant"] = "Something better."
    path.write_text(json.dumps(talk))
    assert "has other words than those that were judged" in said(place)
    path.unlink()
    assert row["id"] in said(place)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"rows": 3}'])
def test_a_result_that_is_none_is_refused_in_words(place: Path, text: str) -> None:
    (place / f"{RESULTS}.json").write_text(text)
    assert "is no result of baseline.py" in said(place)


def test_without_a_result_the_gate_names_the_command(place: Path) -> None:
    (place / f"{RESULTS}.json").unlink()
    assert "Run: python scripts/baseline.py" in said(place)


def test_an_interval_over_two_rows_of_the_table_says_so(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READING], cwd=place, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert json.loads(done.stdout) == [1, 2, 3]


READING = """
import sys; sys.path[:0] = ["scripts", "."]
import json, baseline, settings
limits = settings.load_project(".").thresholds
spans = ((0.1, 0.3), (0.4, 0.6), (0.45, 0.8))
print(json.dumps([len(baseline.reading(*span, limits)) for span in spans]))
"""


def test_generation_needs_the_decision(place: Path) -> None:
    bench.script(place, "personas.py", "--count", "10")
    with pytest.raises((bench.Missed, FinetuneError), match="baseline"):
        bench.script(place, "generate.py")
