"""`finetune judges` and the gates `pilot` and `confirm`: what people's labels decide."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from designs import designed, edit
from finetune_skills import checks_pilot, gates, quality
from finetune_skills.labels import Label, label_store, load_labels, save_label
from finetune_skills.rehearsal import bench, faults, steps
from judging import Court

LABELS, PROJECT = "data/reviews/labels.jsonl", "config/project.yaml"


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example up to a confirmed process: pilot, old chats, confirm, all judged and reviewed."""
    root = designed(tmp_path_factory.mktemp("reviewed") / "demo")
    done = bench.Rehearsal(root, root.parent / "scratch")
    bench.script(root, "personas.py", "--count", str(bench.PERSONAS))
    read = (steps.judged, steps.reviewed)
    for step in (steps.pilot, steps.imported, *read, steps.confirm, *read):
        step(done)
    return root


@pytest.fixture
def place(reviewed: Path, tmp_path: Path) -> Path:
    shutil.copytree(reviewed, tmp_path / "demo")
    return tmp_path / "demo"


def judges(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "finetune_skills.cli", "judges", *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def relabel(place: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Save every label again, changed."""
    store = label_store(place)
    store.refresh()
    for row in list(store.newest.values()):
        kept = {k: v for k, v in row.items() if k not in ("schema", "at", "revision", "crc")}
        new = change(kept)
        if new != kept:
            save_label(place, new, row["revision"])


def keep_labels(place: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    rows = [json.loads(line) for line in (place / "people/reviews.jsonl").read_text().splitlines()]
    (place / LABELS).unlink()
    for row in filter(wanted, rows):
        save_label(place, row, 0)


def found(place: Path, gate: str) -> str:
    return " ".join(map(str, gates.run_check(place, gates.GATES[gate]).findings))


def standings(place: Path) -> dict[str, quality.Standing]:
    court = Court.of(place)
    told = quality.standings(place, court, quality.people(place, court))
    return {each.name: each for each in told}


# ── the figures ───────────────────────────────────────────────────────────────────────────────────


def test_each_figure_is_the_count_of_labels_and_verdicts(place: Path) -> None:
    court = Court.of(place)
    labels = {label.id: label.verdict == "good" for label in load_labels(place)}
    for name, rows in court.verdicts.items():
        judge = standings(place)[name].overall
        good = [rows[item]["pass"] for item, is_good in labels.items() if is_good]
        bad = [rows[item]["pass"] for item, is_good in labels.items() if not is_good]
        assert (judge.tpr.k, judge.tpr.n) == (sum(good), len(good))
        assert (judge.tnr.k, judge.tnr.n) == (len(bad) - sum(bad), len(bad))


def test_the_report_names_judges_rates_mistakes_and_examples(place: Path) -> None:
    done = judges(place)
    assert done.returncode == 0, done.stderr
    wanted = ("strict: may filter", "all judges together: may filter", "corrected", "--blind")
    for said in (*wanted, "flips unknown (assess.py --repeat 3)", "data/raw/transcripts/"):
        assert said in done.stdout, said
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = json.loads(judges(place, "--json").stdout)
    assert told["people"]["labels"] == 39
    assert {each["name"] for each in told["judges"]} == {"strict", "mild", quality.TOGETHER}


def test_repeats_give_the_flip_rate(place: Path) -> None:
    bench.script(place, "assess.py", "--repeat", "2")
    flips = standings(place)["mild"].flips
    assert flips is not None
    assert flips.rate is not None
    assert 0 <= flips.low <= flips.rate <= flips.high < 0.2


def test_without_labels_it_says_not_enough_and_how_many(place: Path) -> None:
    (place / LABELS).unlink()
    done = judges(place)
    assert done.returncode == 1
    assert "may NOT filter" in done.stdout
    assert "not enough labels: 0 good and 0 bad, 5 of each are needed" in done.stdout
    assert "unknown: no such label" in done.stdout


def test_only_good_labels_are_not_enough_either(place: Path) -> None:
    keep_labels(place, lambda row: row["verdict"] == "good")
    assert "31 good and 0 bad" in standings(place)["strict"].why_not


@pytest.mark.parametrize(("verdict", "bar"), [("bad", "TPR"), ("good", "TNR")])
def test_a_judge_below_a_bar_may_not_filter(place: Path, verdict: str, bar: str) -> None:
    """People who see it the other way round on most transcripts."""
    items = [label.id for label in load_labels(place) if label.verdict != verdict][:30]

    def other(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"verdict": verdict} if row["id"] in items[: len(items) * 2 // 3] else {})

    relabel(place, other)
    why = standings(place)["strict"].why_not
    assert re.search("the bar is|not enough labels|a correction needs more", why), bar


def test_unsure_and_unfinished_labels_do_not_count(place: Path) -> None:
    before = standings(place)["strict"].overall
    relabel(place, lambda row: row | ({"verdict": "unsure"} if row["id"] == "old-001" else {}))
    relabel(
        place, lambda row: row | ({"criteria": {}, "agreed": []} if row["id"] == "old-002" else {})
    )
    after = standings(place)["strict"].overall
    assert before.tnr.n - after.tnr.n == 2
    assert quality.people(place, Court.of(place)).unfinished == 1


def test_a_blind_label_counts_before_one_beside_the_verdicts(place: Path) -> None:
    row = next(row for row in label_store_rows(place) if row["id"] == "train-00002")
    blind = row | {"blind": True, "seen": {}, "verdict": "bad", "agreed": [], "fine": {}}
    save_label(place, {k: v for k, v in blind.items() if k not in KEPT}, 0)
    said = quality.people(place, Court.of(place))
    assert (said.labels["train-00002"].verdict, said.blind) == ("bad", 1)


KEPT = ("schema", "at", "revision", "crc")


def label_store_rows(place: Path) -> list[dict[str, Any]]:
    store = label_store(place)
    store.refresh()
    return list(store.newest.values())


def test_a_transcript_that_became_an_example_measures_nothing_any_more(place: Path) -> None:
    text = (place / "config/rubric.yaml").read_text()
    old = "        reasoning: Taste and the second cartridge are both answered.\n"
    assert old in text
    (place / "config/rubric.yaml").write_text(
        text.replace(old, f"{old}        source: old-001\n", 1)
    )
    court = Court.of(place)
    now = court.bench.rubric.hash
    relabel(place, lambda row: row | {"rubric_hash": now})
    said = quality.people(place, court)
    assert (said.example, "old-001" in said.labels) == (1, False)


def test_proposed_examples_are_places_where_judge_and_person_differ(place: Path) -> None:
    done = judges(place, "--examples")
    assert "# criteria.U1.calibration_examples" in done.stdout
    assert "source: old-" in done.stdout
    import yaml

    court, examples = Court.of(place), yaml.safe_load(done.stdout)
    assert all(each["reasoning"] is None for each in examples)  # a person writes why
    for each in examples:
        assert (each["context"], each["response"]) in court.sources[each["source"]].pairs


@pytest.mark.parametrize(("one", "other", "same"), [
    ("openai:gpt-5", "openai:o4", True), ("claude:opus", "anthropic:sonnet", True),
    ("local:Qwen/Qwen3-8B", "llamacpp:models/qwen2.gguf", True), ("google:g", "openai:o", False),
    ("local:meta/Llama-3", "local:mistral-7b", False)])  # fmt: skip
def test_families_are_told_by_provider_or_by_the_models_name(
    one: str, other: str, same: bool
) -> None:
    assert (quality.family_of(one) == quality.family_of(other)) is same


def test_a_judge_of_the_assistants_family_is_warned_of(place: Path) -> None:
    for old in ('"python:simulated:assistant"', '"python:simulated:judge_strict"'):
        edit(place / PROJECT, old, '"openai:gpt-x"')
    done = judges(place)
    assert "Of one family with the assistant (openai)" in done.stdout
    assert done.stdout.count("Of one family") == 1


# ── pilot ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_pilot_that_is_read_to_the_end_has_no_finding_left(place: Path) -> None:
    state = gates.pass_gate(place, "pilot", "test")
    assert state.findings == []
    assert gates.GATES["pilot"].person
    passed = state.figures["passed"]
    assert re.fullmatch(r"\d of 5: a process at 50 % gets there \d+% of the time", passed)


@pytest.mark.parametrize(("k", "chance", "advice"), [(4, "19%", "confirm"), (3, "50%", "iterate"),
                                                     (2, "81%", "revise")])  # fmt: skip
def test_fives_are_said_to_show_little(k: int, chance: str, advice: str) -> None:
    rows = {str(n): {"pass": n < k} for n in range(5)}
    told = checks_pilot.learned({"ids": list(rows)}, rows)
    assert told["passed"] == f"{k} of 5: a process at 50 % gets there {chance} of the time"
    assert advice in told["advice"]


def test_of_imported_chats_no_rate_and_no_fresh_batch_is_asked() -> None:
    told = checks_pilot.learned({"ids": ["a"], "drawn_from": ["x"]}, {"a": {"pass": False}})
    assert told["passed"] == "0 of 1 imported chats"
    assert "--batch confirm-000" in told["advice"]


def test_an_approval_is_of_one_batch_and_of_no_later_one(place: Path) -> None:
    gates.pass_gate(place, "pilot", "test")
    assert gates.decide(place, "pilot", "approved", "Ann").state == "passed"
    path = place / "data/batches/pilot-001.json"
    later = json.loads(path.read_bytes()) | {"id": "pilot-002"}
    (path.with_name("pilot-002.json")).write_text(json.dumps(later))
    assert gates.states(place, "pilot")["pilot"].state == "waiting"
    with pytest.raises(bench.Missed, match="approved pilot-001, and pilot-002 came after it"):
        bench.script(place, "generate.py", "--confirm")
    assert gates.decide(place, "pilot", "approved", "Ann").state == "passed"


def test_what_was_said_of_imported_chats_opens_nothing_that_is_generated(place: Path) -> None:
    gates.decide(place, "confirm", "waived", "test", "to see what the script asks")
    for path in (place / "data/batches").glob("*.json"):
        path.unlink()
    drawn = {"id": "confirm-000", "kind": "confirm", "ids": [], "inputs": {}, "drawn_from": ["x"]}
    (place / "data/batches/confirm-000.json").write_text(json.dumps(drawn))
    with pytest.raises(bench.Missed, match="says nothing of what is generated"):
        bench.script(place, "generate.py", "--count", "30")


def test_one_transcript_that_nobody_read_keeps_it_closed(place: Path) -> None:
    keep_labels(place, lambda row: row["id"] != "train-00004")
    assert "train-00004 is not reviewed to the end" in found(place, "pilot")
    assert "finetune review --batch pilot-001" in found(place, "pilot")


def test_a_blind_label_is_no_review_of_the_verdicts(place: Path) -> None:
    row = next(row for row in label_store_rows(place) if row["id"] == "train-00004")
    keep_labels(place, lambda row: row["id"] != "train-00004")
    blind = {k: v for k, v in row.items() if k not in KEPT} | {
        "blind": True,
        "seen": {},
        "fine": {},
    }
    save_label(place, blind, 0)
    assert "train-00004 is not reviewed" in found(place, "pilot")


def test_a_changed_verdict_has_to_be_read_again(place: Path) -> None:
    edit(place / PROJECT, '"python:simulated:judge_mild"', '"python:simulated:judge_other"')
    bench.script(place, "assess.py")
    assert "not reviewed to the end: the verdict of mild has changed" in found(place, "pilot")


def test_a_finding_without_an_answer_keeps_it_closed_and_fine_opens_it(place: Path) -> None:
    relabel(place, lambda row: row | {"fine": {}})
    assert "pilot-001: train-00003, S1: not answered" in found(place, "pilot")
    relabel(place, lambda row: row | {"fine": {"S1": "x", "F1": "x", "H1": "x"}})
    assert found(place, "pilot") == ""


def test_what_the_rubric_misses_is_a_finding_too(place: Path) -> None:
    missing = {"rubric_misses": "Nobody asks for the order number."}
    relabel(place, lambda row: row | (missing if row["id"] == "train-00002" else {}))
    assert "train-00002, rubric_misses: not answered" in found(place, "pilot")


def test_findings_of_an_earlier_five_are_answered_by_a_changed_prompt(place: Path) -> None:
    relabel(place, lambda row: row | {"fine": {}})
    batch = json.loads((place / "data/batches/pilot-001.json").read_bytes())
    earlier = batch | {"id": "pilot-000", "ids": ["train-00001", "train-00003"]}
    earlier["inputs"] = batch["inputs"] | {"config/prompts/assistant.md": "0" * 16}
    (place / "data/batches/pilot-000.json").write_text(json.dumps(earlier))
    assert "pilot-000" not in found(place, "pilot")
    earlier["inputs"] = batch["inputs"]
    (place / "data/batches/pilot-000.json").write_text(json.dumps(earlier))
    assert "pilot-000: train-00003, S1: not answered" in found(place, "pilot")


def test_a_changed_prompt_asks_for_five_more(place: Path) -> None:
    edit(place / "config/prompts/assistant.md", "As long as", "About as long as")
    said = found(place, "pilot")
    assert "config/prompts/assistant.md: has changed since pilot-001 was made" in said
    assert "python scripts/generate.py" in said


def test_a_comment_in_the_rubric_does_not(place: Path) -> None:
    edit(place / "config/rubric.yaml", "pass_threshold: 0.8", "pass_threshold: 0.8  # for now")
    assert found(place, "pilot") == ""


def test_without_a_pilot_or_verdicts_it_names_the_command(place: Path) -> None:
    shutil.rmtree(place / "data/assessments")
    assert "has no verdict yet. Run: python scripts/assess.py" in found(place, "pilot")
    shutil.rmtree(place / "data/batches")
    assert "no pilot yet. Run: python scripts/generate.py" in found(place, "pilot")


# ── confirm ───────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_batch_that_passes_often_enough_waits_for_the_persons_word(place: Path) -> None:
    state = gates.pass_gate(place, "confirm", "test")
    assert (state.state, state.findings) == ("waiting", [])
    assert state.figures["needed"] == "17 of 20"
    assert re.match(r"\d+% \(\d+% to \d+%\)", state.figures["corrected"])


def test_a_rate_below_the_rule_sends_back_to_five(place: Path) -> None:
    """Five of the batch turn bad, for judges and people alike."""
    ids = json.loads((place / "data/batches/confirm-001.json").read_bytes())["ids"]
    for item in ids[:8]:
        path = place / f"data/raw/transcripts/confirm-001/{item}.json"
        talk = json.loads(path.read_bytes())
        for each in talk["exchanges"]:
            each["assistant"] = faults.STOCK
        path.write_text(json.dumps(talk))
    bench.script(place, "assess.py")
    said = found(place, "confirm")
    assert "17 are needed to claim over 70%" in said
    assert "Back to five" in said


def test_a_rejected_conversation_counts_as_failed(place: Path) -> None:
    item = json.loads((place / "data/batches/confirm-001.json").read_bytes())["ids"][1]
    path = place / f"data/raw/transcripts/confirm-001/{item}.json"
    away = place / f"data/raw/rejected/confirm-001/{item}.json"
    away.parent.mkdir(parents=True, exist_ok=True)
    before = gates.run_check(place, gates.GATES["confirm"]).figures["passed"]
    path.rename(away)
    bench.script(place, "assess.py")
    after = gates.run_check(place, gates.GATES["confirm"]).figures["passed"]
    assert (before, after) == ("17 of 20, as judged", "16 of 20, as judged")


def test_people_who_were_seen_before_are_not_fresh(place: Path) -> None:
    path = place / "data/batches/confirm-001.json"
    batch = json.loads(path.read_bytes())
    path.write_text(json.dumps(batch | {"ids": ["train-00001", *batch["ids"][1:]]}))
    assert "train-00001 was already in pilot-001" in found(place, "confirm")


def test_a_second_attempt_needs_more(place: Path) -> None:
    batch = json.loads((place / "data/batches/confirm-001.json").read_bytes())
    earlier = batch | {"id": "confirm-000", "ids": []}
    (place / "data/batches/confirm-000.json").write_text(json.dumps(earlier))
    state = gates.pass_gate(place, "confirm", "test")
    assert (state.figures["attempt"], state.figures["needed"]) == (2, "18 of 20")


def test_frozen_means_that_a_changed_rubric_needs_a_new_batch(place: Path) -> None:
    edit(place / "config/rubric.yaml", "pass_threshold: 0.8", "pass_threshold: 0.75")
    assert "config/rubric.yaml: has changed since confirm-001 was made" in found(place, "confirm")


def test_too_few_labels_confirm_nothing(place: Path) -> None:
    keep_labels(place, lambda row: row["id"].startswith("train"))
    said = found(place, "confirm")
    assert "strict: not enough labels" in said
    assert "It may not filter. Run: finetune judges" in said


def test_only_a_person_can_open_it(place: Path) -> None:
    gates.pass_gate(place, "confirm", "test")
    with pytest.raises(bench.Missed, match="gate confirm"):
        bench.script(place, "generate.py", "--count", "40")


def test_the_worked_example_comes_out(reviewed: Path) -> None:
    """Se 78 of 80, Sp 30 of 40, 320 of 400 passed: 75.9 %, 67.1 to 84.1 %."""
    said, rows = dict[str, Label](), dict[str, dict[str, Any]]()

    def add(count: int, person: str | None, passed: bool) -> None:
        for _ in range(count):
            item = f"t{len(rows)}"
            rows[item] = {"pass": passed, "answers": {}}
            if person:
                about = {"id": item, "reviewer": "p", "at": "", "revision": 1, "blind": True}
                said[item] = Label.of(about | {"verdict": person})

    good, bad, unseen = (78, 2), (10, 30), (232, 48)  # passed, failed
    for person, counts in (("good", good), ("bad", bad), (None, unseen)):
        add(counts[0], person, passed=True)
        add(counts[1], person, passed=False)
    court = Court.of(reviewed, items=())
    judge = quality.standing(reviewed, court, quality.People(said), "one", rows, "", needed=True)
    assert (judge.overall.tpr.counts, judge.overall.tnr.counts) == ((78, 80), (30, 40))
    assert judge.corrected.rate == pytest.approx(0.7586207)
    assert judge.corrected.low == pytest.approx(0.671, abs=0.006)
    assert judge.corrected.high == pytest.approx(0.841, abs=0.006)
    assert judge.why_not == ""
    assert (len(judge.false_passes), len(judge.false_fails)) == (10, 2)
