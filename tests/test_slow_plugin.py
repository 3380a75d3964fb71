"""This repository as a plugin of the real Claude Code client: its gates, its first line.

The client runs with its own home, talks to the fake provider on this machine only, and a scripted
model asks for shell commands. What counts is what ran on the disk, and what the model got to read.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import client
import slow_parts
from client import asked, results, started
from fakes.provider import FakeProvider
from finetune_skills import gates, stages
from test_command import at_a_terminal, finetune
from test_hook import program

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
GATE = stages.REQUIRES["train.py"]
Session = Callable[..., list[client.Event]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a stage that leaves a mark when it runs."""
    assert finetune(tmp_path, "init", "demo").returncode == 0
    root = tmp_path / "demo"
    (root / "scripts").mkdir(exist_ok=True)
    (root / "scripts/train.py").write_text("open('TRAINED', 'w').close(); print('trained')\n")
    return root


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def session(tmp_path: Path, fake: FakeProvider) -> Session:
    """One run of the client in a folder: the model asks for each command in turn. Gives what the
    model got back for each, or what the client reported when there was no command."""
    slow_parts.require("claude")
    for name in ("python", "python3"):
        program(tmp_path / f"bin/{name}", f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    def run(folder: Path, *commands: str, plugin: bool = True) -> list[client.Event]:
        words = ["--plugin-dir", str(ROOT)] if plugin else []
        return client.start(folder, tmp_path, fake, client.bash(*commands), *words)

    return run


def open_gate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate of train.py through by a waiver, on a value of the project's config."""
    built = replace(
        gates.GATES[GATE], needs=(), looks_at=("project.yaml#/target",),
        check=lambda _: gates.Checked(items=1),
    )  # fmt: skip
    monkeypatch.setitem(gates.GATES, GATE, built)
    gates.record(root, built, "waived", "Ann", reason="a test")


def test_a_closed_gate_stops_the_models_command_and_the_model_reads_why(
    project: Path, fake: FakeProvider, session: Session
) -> None:
    session(project, "python scripts/train.py")
    [(failed, text)] = results(fake)
    assert not (project / "TRAINED").exists()
    assert failed
    assert "finetune: stopped before it ran." in text
    assert f"Run: finetune gate {GATE}" in text


def test_without_the_plugin_the_same_command_runs(
    project: Path, fake: FakeProvider, session: Session
) -> None:
    """Else the tests above would pass for a client that runs nothing at all."""
    session(project, "python scripts/train.py", plugin=False)
    assert (project / "TRAINED").exists()
    assert results(fake)[0][0] is False


def test_an_open_gate_lets_the_same_command_run_until_it_is_stale(
    project: Path, fake: FakeProvider, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_gate(project, monkeypatch)
    stale = "sed -i.old 's/offline: true/offline: false/' config/project.yaml; rm TRAINED"
    session(project, "python scripts/train.py", "ls TRAINED", stale, "uv run scripts/train.py")
    ran, listed, _, again = results(fake)
    assert (ran[0], "trained" in ran[1]) == (False, True)
    assert "TRAINED" in listed[1]
    assert again[0]
    assert "stale" in again[1]
    assert not (project / "TRAINED").exists()


def test_commands_that_only_mention_a_gated_script_run(
    project: Path, fake: FakeProvider, session: Session
) -> None:
    commands = ("cat scripts/train.py", "echo 'python scripts/train.py' > notes", "touch RAN")
    session(project, *commands)
    assert [failed for failed, _ in results(fake)] == [False, False, False]
    assert "TRAINED" in results(fake)[0][1]
    assert (project / "RAN").exists()


def test_a_waiver_cannot_be_had_by_the_model(
    project: Path, fake: FakeProvider, session: Session
) -> None:
    command = f"{ROOT}/bin/finetune waive model --reason because --by Ann </dev/null"
    session(project, command)
    [(failed, text)] = results(fake)
    assert failed
    assert "a person must do this" in text
    assert not (project / ".finetune/ledger.jsonl").exists()


def test_a_session_starts_with_one_line_inside_a_project_and_with_none_outside(
    project: Path, fake: FakeProvider, session: Session, tmp_path: Path
) -> None:
    line = "finetune: a fine-tuning project; 0 of 20 gates are open; the next is model"
    assert started(session(project)).count("\n") <= 1
    assert json.dumps(asked(fake)[-1].body["messages"]).count(line) == 1
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    assert started(session(outside)) == ""
    assert "finetune: " not in json.dumps(asked(fake)[-1].body["messages"])


def test_a_person_at_a_terminal_opens_what_the_status_line_counts(
    project: Path, fake: FakeProvider, session: Session
) -> None:
    assert at_a_terminal(project, "model", "waive", "model", "--reason", "x", "--by", "A")[0] == 0
    session(project)
    assert "1 of 20 gates are open; the next is tokens" in json.dumps(asked(fake)[-1].body)
