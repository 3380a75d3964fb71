"""What people said about transcripts: nothing lost, nothing overwritten, nothing stale counts."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_skills import labels
from finetune_skills.labels import Conflict, Label, complete, findings_of, load_labels, save_label
from finetune_skills.review.records import Records, verdict_hash
from infrastructure import FinetuneError
from reviews import Project, pilot, talk

ROW: dict[str, Any] = {"id": "t1", "reviewer": "Ann", "blind": False, "turns": 4, "verdict": "good"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return pilot(tmp_path / "desk")


def seen(project: Project, item: str = "t1") -> dict[str, Any]:
    """The hashes of what a page of this transcript shows now."""
    records = Records(project.root)
    records.refresh()
    entry = records.transcripts.entries[item]
    rows = records.current(entry)
    judges = {name: verdict_hash(row) for name, row in rows.items() if name != "combined"}
    return {"transcript_hash": entry.hash, "rubric_hash": records.rubric.hash, "seen": judges}


def only(root: Path) -> Label:
    [label] = load_labels(root)
    return label


def test_a_saved_label_comes_back_as_it_was_said(project: Project) -> None:
    said = {"criteria": {"H1": "NO"}, "agreed": [], "notes": "too long \u2014 twice", "fine": {}}
    saved = save_label(project.root, ROW | seen(project) | said, 0)
    found = only(project.root)
    assert (saved["revision"], found.revision, found.stale) == (1, 1, "")
    assert (found.verdict, found.criteria, found.notes) == ("good", {"H1": "NO"}, said["notes"])
    assert found.at.endswith("Z")


def test_every_save_is_a_further_line_and_the_newest_revision_counts(project: Project) -> None:
    for revision, verdict in enumerate(("bad", "unsure", "good")):
        save_label(project.root, ROW | seen(project) | {"verdict": verdict}, revision)
    lines = (project.root / labels.LABELS).read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["bad", "unsure", "good"]
    assert (only(project.root).verdict, only(project.root).revision) == ("good", 3)


def test_whoever_did_not_see_the_newest_revision_is_told_what_it_says(project: Project) -> None:
    save_label(project.root, ROW | seen(project), 0)
    with pytest.raises(Conflict) as told:
        save_label(project.root, ROW | seen(project) | {"verdict": "bad"}, 0)
    assert told.value.newer is not None
    assert told.value.newer["verdict"] == "good"
    assert only(project.root).verdict == "good"


def test_a_save_whose_answer_was_lost_can_be_sent_again(project: Project) -> None:
    row = ROW | seen(project)
    assert save_label(project.root, row, 0)["revision"] == 1
    assert save_label(project.root, row, 0)["revision"] == 1
    assert len((project.root / labels.LABELS).read_text().splitlines()) == 1


def test_reviewers_and_blind_labels_do_not_meet(project: Project) -> None:
    save_label(project.root, ROW | seen(project), 0)
    save_label(project.root, ROW | seen(project) | {"reviewer": "Bo"}, 0)
    save_label(project.root, ROW | seen(project) | {"blind": True, "seen": {}}, 0)
    found = [(label.reviewer, label.blind) for label in load_labels(project.root)]
    assert found == [("Ann", False), ("Ann", True), ("Bo", False)]


def save_many(root: Path, name: str) -> None:
    """Twenty saves on one label; at a conflict it goes on from the newer one."""
    base = 0
    for number in range(20):
        while True:
            try:
                row = ROW | {"notes": f"{name} {number}"}
                base = save_label(root, row, base)["revision"]
                break
            except Conflict as conflict:
                base = conflict.newer["revision"] if conflict.newer else 0


def test_processes_that_save_at_once_lose_nothing(project: Project) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=save_many, args=(project.root, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = [json.loads(line) for line in (project.root / labels.LABELS).read_text().splitlines()]
    assert [row["revision"] for row in rows] == list(range(1, 61))
    wanted = {f"{name} {number}" for name in "abc" for number in range(20)}
    assert {row["notes"] for row in rows} == wanted


def test_a_line_torn_by_a_crash_costs_only_itself(project: Project) -> None:
    save_label(project.root, ROW | seen(project), 0)
    with open(project.root / labels.LABELS, "ab") as file:
        file.write(b'{"id": "t1", "revi')
    save_label(project.root, ROW | seen(project) | {"verdict": "bad"}, 1)
    assert (only(project.root).verdict, only(project.root).revision) == ("bad", 2)


def test_labels_are_not_written_through_a_link(project: Project, tmp_path: Path) -> None:
    (project.root / "data/reviews").mkdir(parents=True)
    (project.root / labels.LABELS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FinetuneError, match="symbolic link"):
        save_label(project.root, ROW, 0)
    assert not (tmp_path / "elsewhere").exists()


def test_only_the_owner_may_read_labels(project: Project) -> None:
    save_label(project.root, ROW | seen(project), 0)
    assert os.stat(project.root / labels.LABELS).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "../t1"), ("reviewer", ""), ("reviewer", " Ann"), ("reviewer", "a\x1b[31m"),
        ("blind", 1), ("verdict", "great"), ("criteria", {"H1": "ERROR"}), ("criteria", ["H1"]),
        ("agreed", ["H1"]), ("notes", 7), ("notes", "x" * 20_001), ("fine", {"H1": None}),
        ("turns", "4"),
    ],
)  # fmt: skip
def test_a_row_with_something_unknown_in_it_is_refused(
    project: Project, key: str, value: object
) -> None:
    with pytest.raises(FinetuneError, match=f"label of .*{key}"):
        save_label(project.root, ROW | {key: value}, 0)
    assert not (project.root / labels.LABELS).exists()


def test_a_blind_label_has_seen_no_verdict(project: Project) -> None:
    with pytest.raises(FinetuneError, match="seen"):
        save_label(project.root, ROW | seen(project) | {"blind": True}, 0)


# stale


def changed_text(project: Project) -> None:
    project.transcript("t1", talk(5, "other"))


def changed_rubric(project: Project) -> None:
    path = project.root / "config/rubric.yaml"
    path.write_text(path.read_text().replace("weight: 0.3\n", "weight: 0.30001\n", 1)
                    .replace("weight: 0.35\n", "weight: 0.34999\n", 1))  # fmt: skip


def changed_verdict(project: Project) -> None:
    project.assess("t1", talk(4, "t1"), {"strict": {"H1": "NO"}}, prompt_hash="q")


def removed(project: Project) -> None:
    (project.root / "data/raw/transcripts/pilot-001/t1.json").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (changed_text, "the transcript has changed"), (changed_rubric, "the rubric has changed"),
        (changed_verdict, "the verdict of strict has changed"), (removed, "the transcript is gone"),
    ],
)  # fmt: skip
def test_a_label_is_stale_when_what_was_seen_has_changed(
    project: Project, change: Any, why: str
) -> None:
    save_label(project.root, ROW | seen(project), 0)
    change(project)
    assert only(project.root).stale == why


def test_a_blind_label_outlives_a_changed_verdict_but_not_a_changed_text(project: Project) -> None:
    save_label(project.root, ROW | seen(project) | {"blind": True, "seen": {}}, 0)
    changed_verdict(project)
    assert only(project.root).stale == ""
    changed_text(project)
    assert only(project.root).stale == "the transcript has changed"


def test_a_repair_makes_labels_of_the_original_stale(project: Project) -> None:
    save_label(project.root, ROW | seen(project), 0)
    project.transcript("t1", talk(3, "t1"), folder="data/repaired")
    assert only(project.root).stale == "the transcript has changed"


# complete, findings


def label(**said: Any) -> Label:
    given = {"revision": 1, "transcript_hash": "", "rubric_hash": ""} | ROW | said
    return Label.of(given)


def test_a_label_is_complete_with_a_verdict_and_every_criterion(project: Project) -> None:
    answers = dict.fromkeys(project.rubric.criteria, "YES")
    full = label(criteria=answers)
    assert complete(full, project.rubric)
    assert not complete(replace(full, verdict=None), project.rubric)
    del answers["N1"]
    assert not complete(label(criteria=answers), project.rubric)


def test_a_conversation_too_short_for_a_criterion_needs_no_answer_to_it(project: Project) -> None:
    answers = dict.fromkeys(project.rubric.criteria, "YES")
    long = [name for name, c in project.rubric.criteria.items() if c.min_turns > 2]
    for name in long:
        del answers[name]
    assert long
    assert complete(label(criteria=answers, turns=2), project.rubric)
    assert not complete(label(criteria=answers, turns=9), project.rubric)


@pytest.mark.parametrize(
    ("said", "findings"),
    [
        ({"verdict": "good", "criteria": {"H1": "YES"}}, []),
        ({"verdict": "bad"}, ["verdict"]),
        ({"verdict": "unsure"}, ["verdict"]),
        ({"criteria": {"H1": "NO", "N1": "YES"}}, ["H1"]),
        ({"criteria": {"F1": "YES"}}, []),  # the judges have no answer to F1
        ({"rubric_misses": "length"}, ["rubric_misses"]),
        ({"rubric_misses": "  "}, []),
    ],
)
def test_findings_are_what_somebody_has_to_act_on(
    said: dict[str, Any], findings: list[str]
) -> None:
    combined = {"answers": {"H1": "YES", "N1": "YES", "F1": "ERROR"}}
    assert findings_of(label(**said), combined) == findings


def test_without_a_verdict_of_judges_nobody_differs_from_them() -> None:
    assert findings_of(label(criteria={"H1": "NO"}), None) == []
