"""The rehearsal: every step runs for real, every planted fault is caught, and a miss is said."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from children import CODE, child
from finetune_skills import rehearse as r
from finetune_skills.rehearsal import bench, faults, steps

pytestmark = pytest.mark.slow  # a whole rehearsal: about a minute

FAULTS = {fault.name: fault for fault in faults.FAULTS}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal") / "project"


@pytest.fixture(scope="module")
def told(kept: Path) -> dict[str, Any]:
    """What a whole rehearsal reports; it runs once for this file."""
    done = child("-m", "finetune_skills.cli", "rehearse", "--json", "--keep", kept)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout) | {"exit": done.returncode}
    return found


@pytest.fixture
def done(told: dict[str, Any], kept: Path, tmp_path: Path) -> bench.Rehearsal:
    """The rehearsed project, with a folder for more copies of it."""
    return bench.Rehearsal(kept, tmp_path)


def test_every_step_runs_and_passes(told: dict[str, Any]) -> None:
    assert [row["name"] for row in told["steps"]] == [step.name for step in steps.STEPS]
    assert [row["said"] for row in told["steps"] if not row["passed"]] == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_planted_fault_is_caught_by_its_check(name: str, told: dict[str, Any]) -> None:
    row = next(row for row in told["faults"] if row["name"] == name)
    assert row["passed"], row["said"]


def test_it_exits_0_only_when_all_is_caught(told: dict[str, Any]) -> None:
    rows = told["steps"] + told["faults"]
    assert told["exit"] == (0 if all(row["passed"] for row in rows) else 1)


def test_the_kept_project_holds_what_was_made_and_nothing_that_was_planted(
    told: dict[str, Any], kept: Path
) -> None:
    old = len((kept / bench.OLD_CHATS).read_text().splitlines())
    assert len(bench.talks(kept)) == bench.PILOT + bench.CONFIRM + bench.SCALE + old
    assert not (kept / "faulty.py").exists()
    assert "faulty" not in (kept / "config/project.yaml").read_text()


# the checks can miss


def test_a_footer_that_nobody_looks_for_is_a_miss(done: bench.Rehearsal) -> None:
    place = done.copy("blind")
    known = (place / "config/artefacts.yaml").read_text("utf-8")
    head, rest = known.split("\npatterns:\n")
    after = rest[rest.index("\noverused_phrases:") :] if "\noverused_phrases:" in rest else ""
    (place / "config/artefacts.yaml").write_text(f"{head}\npatterns: []\n{after}", "utf-8")
    with pytest.raises(bench.Missed, match="leaked into train-"):
        faults.footers(done, place)


def test_a_gate_that_finds_something_else_is_a_miss(done: bench.Rehearsal) -> None:
    same = ("formal: 0.2}", "formal: 0.2 }", "1.05")
    with pytest.raises(bench.Missed, match="is passed and says nothing of"):
        faults.refused("personas", bench.TEMPLATE, *same, done, done.copy("same"))


def test_a_fault_that_can_no_longer_be_planted_is_a_miss(done: bench.Rehearsal) -> None:
    with pytest.raises(bench.Missed, match="nothing could be planted"):
        faults.refused("personas", bench.TEMPLATE, "no such text", "", "", done, done.copy("gone"))


def test_bytes_that_differ_after_a_kill_are_a_miss(done: bench.Rehearsal) -> None:
    place = done.copy("other")
    shutil.copytree(done.root / "data", place / "data", dirs_exist_ok=True)
    next(place.glob("data/raw/transcripts/*/*.json")).unlink()
    with pytest.raises(bench.Missed, match="not those of the undisturbed run"):
        faults._as_undisturbed(done.root, place, 0)


def test_calls_that_are_paid_again_without_need_are_a_miss(done: bench.Rehearsal) -> None:
    place = done.copy("paid twice")
    shutil.copytree(done.root / "data", place / "data", dirs_exist_ok=True)
    (place / bench.LOG).write_text('{"scope": "a", "what": "call"}\n' * 3)
    with pytest.raises(bench.Missed, match="2 calls paid again, and only 1 were in flight"):
        faults._as_undisturbed(done.root, place, 1)


@pytest.mark.parametrize("error", bench.UNREADABLE)
def test_what_a_script_should_have_left_and_has_not_is_a_miss_and_no_traceback(
    error: type[Exception],
) -> None:
    def work() -> str:
        raise error("data/audit/audit.json")

    row = r.timed(steps.STEPS[0], work)
    assert not row.passed
    assert row.said.startswith("what it should have left is not there, or can't be read")


def test_a_script_that_says_nothing_is_a_miss(done: bench.Rehearsal) -> None:
    place = done.copy("silent")
    (place / "scripts/audit.py").write_text("")
    with pytest.raises(bench.Missed, match=r"audit\.py --json says '', which is no JSON"):
        bench.reported(place, "audit.py")


def test_a_limited_call_waits_as_long_as_the_model_says() -> None:
    assert f"\nWAIT = {bench.WAIT}  # seconds" in bench.FAULTY.read_text("utf-8")


# what the person sees


def fails(*_: object) -> str:
    raise bench.Missed("it did not work, " * 12)


def rehearsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *bad: str) -> bench.Rehearsal:
    """A rehearsal of one step and two faults that do nothing; those named fail."""
    one = bench.Step("a step", "model", fails if "step" in bad else lambda _: "done")
    good = bench.Planted("good", "w", "somebody", lambda *_: "seen")
    other = replace(good, name="other", proof=fails if "fault" in bad else good.proof)
    monkeypatch.setattr(r, "STEPS", (one, one))
    monkeypatch.setattr(r, "FAULTS", (good, other))
    (tmp_path / "project").mkdir()
    return r.run(tmp_path / "project", tmp_path / "copies")


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        ((), "rehearsal passed: 2 of 2 steps, 2 of 2 faults caught, 1.5 CPU seconds"),
        (("fault",), "rehearsal FAILED: 2 of 2 steps, 1 of 2 faults caught, 1.5 CPU seconds"),
        (("step",), "rehearsal FAILED: 0 of 2 steps, 0 of 2 faults caught, 1.5 CPU seconds"),
    ],
)
def test_the_last_line_is_the_verdict_and_all_fits_80_columns(
    bad: tuple[str, ...], verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = rehearsed(monkeypatch, tmp_path, *bad)
    lines = list(r.table(done, {"cpu_seconds": 1.5}))
    assert r.passed(done) is (not bad)
    assert lines[-1] == verdict
    assert max(map(len, lines)) <= 80
    assert "planted faults and who caught them" in lines


def test_the_names_of_all_rows_are_different_and_fit_the_table() -> None:
    every = [*steps.STEPS, *faults.FAULTS]
    assert len({row.name for row in every}) == len(every)
    assert [row.name for row in faults.FAULTS if len(row.name) > 23] == []
    assert [row.name for row in steps.STEPS if len(row.name) > 27] == []
    rows = [bench.Done(row, 1.0, True, "x" * 99) for row in every]
    done = bench.Rehearsal(Path(), Path(), rows[: len(steps.STEPS)], rows[len(steps.STEPS) :])
    assert max(map(len, r.table(done, {"cpu_seconds": 15.0}))) <= 80


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = child("-m", "finetune_skills.cli", "rehearse", "--keep", tmp_path)
    assert done.returncode == 1
    assert "is there already. Choose a new folder" in done.stdout.replace("\n      ", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_rehearsal_says_that_it_is_not_built(tmp_path: Path) -> None:
    done = child("-m", "finetune_skills.cli", "rehearse", "--full")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not built yet" in done.stderr


def test_the_models_that_misbehave_are_shipped(tmp_path: Path) -> None:
    assert bench.FAULTY.is_file()
    assert bench.FAULTY.is_relative_to(CODE / "finetune_skills")
    assert sys.modules.get("faulty") is None
