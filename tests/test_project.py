"""The project: roots, hashes, whole files, prompts, YAML with its lines, and gates."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infrastructure import (
    DiskStop,
    FinetuneError,
    atomic_write,
    canonical_hash,
    file_hash,
    fill_prompt,
    load_yaml,
    project_root,
    require_gate,
    selector_hash,
)

PROJECT = "# roles\nroles:\n  judges: [google:M, openai:N]\n  base: {model: m, price: 0}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with its configuration, and gates that are closed."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "project.yaml").write_text(PROJECT)
    (tmp_path / ".finetune").mkdir()
    return tmp_path


# Where the project is


@pytest.mark.parametrize("mark", [".finetune/x", "config/project.yaml"])
def test_the_root_is_found_from_any_folder_below(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).parent.mkdir()
    (tmp_path / mark).touch()
    (tmp_path / "data" / "deep").mkdir(parents=True)
    assert project_root(tmp_path / "data" / "deep") == project_root(tmp_path) == tmp_path


def test_a_folder_outside_any_project_is_an_error_that_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"no project here.*finetune init DIR"):
        project_root(tmp_path)


# Hashes


@given(st.dictionaries(st.text(), st.integers() | st.lists(st.text())))
def test_equal_data_has_one_hash_whatever_its_order(data: dict[str, Any]) -> None:
    assert canonical_hash(dict(reversed(data.items()))) == canonical_hash(data)
    assert canonical_hash({**data, "one more": 1}) != canonical_hash(data)


def test_a_files_hash_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    before = file_hash(path)
    assert before == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    path.write_bytes(b"other")
    assert file_hash(path) != before


def test_a_file_that_looks_unchanged_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = file_hash(path)
    path.write_bytes(b"two")
    assert file_hash(path) != before
    os.utime(path, ns=(1, 1))  # as if nobody had written: a second read would tell
    assert file_hash(path) == before


# Whole files


def test_a_whole_file_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, "caf\u00e9")
    assert path.read_bytes() == b"caf\xc3\xa9"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    atomic_write(path, "old")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(DiskStop, match="Nothing was changed"):
        atomic_write(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(DiskStop, match="symbolic link"):
        atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "mine").read_text() == "mine"


# Prompts


def test_a_prompt_is_filled_in_one_pass_so_that_values_are_never_looked_at() -> None:
    filled = fill_prompt("{{a}} and {{ b }}", {"a": "{{b}} {b} %s \\1", "b": 2})
    assert filled == "{{b}} {b} %s \\1 and 2"


def test_braces_that_are_no_placeholder_stay() -> None:
    text = 'Answer with {"answer": "YES"} or {}; {{a}}'
    assert fill_prompt(text, {"a": "x"}) == 'Answer with {"answer": "YES"} or {}; x'


@pytest.mark.parametrize("values", [{}, {"a": 1, "b": 2}, {"b": 1}])
def test_a_missing_or_unused_value_is_named(values: dict[str, int]) -> None:
    with pytest.raises(FinetuneError, match=r"'[ab]'"):
        fill_prompt("{{a}}", values)


# YAML


def test_each_key_and_item_knows_its_line(root: Path) -> None:
    data, lines = load_yaml(root / "config" / "project.yaml")
    assert data["roles"]["judges"] == ["google:M", "openai:N"]
    assert (lines["roles",], lines["roles", "judges"], lines["roles", "judges", 1]) == (2, 3, 3)
    assert lines["roles", "base", "price"] == 4


# Selectors


@pytest.mark.parametrize(
    ("selector", "old", "new", "changes"),
    [
        ("project.yaml#/roles/judges", "openai:N", "openai:X", True),
        ("project.yaml#/roles/judges", "price: 0", "price: 1", False),
        ("project.yaml#/roles/judges", "# roles", "# the roles", False),
        ("project.yaml#/roles/base", "{model: m, price: 0}", "{price: 0, model: m}", False),
        ("project.yaml#/roles/judges/1", "google:M", "google:X", False),
        ("config/project.yaml", "# roles", "# the roles", True),
    ],
)
def test_a_selector_sees_its_value_and_nothing_else(
    root: Path, selector: str, old: str, new: str, changes: bool
) -> None:
    before = selector_hash(root, selector)
    (root / "config" / "project.yaml").write_text(PROJECT.replace(old, new))
    assert before is not None
    assert (selector_hash(root, selector) != before) is changes


@pytest.mark.parametrize(
    "selector", ["none.yaml", "project.yaml#/roles/none", "project.yaml#/roles/judges/9"]
)
def test_a_selector_of_nothing_has_no_hash(root: Path, selector: str) -> None:
    assert selector_hash(root, selector) is None


def test_a_date_in_the_configuration_can_be_looked_at(root: Path) -> None:
    (root / "config" / "project.yaml").write_text("terms: {checked: 2026-01-01}\n")
    before = selector_hash(root, "project.yaml#/terms")
    (root / "config" / "project.yaml").write_text("terms: {checked: 2026-01-02}\n")
    assert before != selector_hash(root, "project.yaml#/terms")


# Gates


def record(root: Path, gate: str, result: str | None, **more: Any) -> None:
    """Add a line to the ledger that looked at the judges."""
    seen = {"project.yaml#/roles/judges": selector_hash(root, "project.yaml#/roles/judges")}
    row = {"schema": 1, "gate": gate, "result": result, "looked_at": seen} | more
    with (root / ".finetune" / "ledger.jsonl").open("a") as ledger:
        print(
            json.dumps({key: value for key, value in row.items() if value is not ...}), file=ledger
        )


def closed(root: Path, gate: str = "model") -> str:
    """What is said about a gate that must not open."""
    with pytest.raises(FinetuneError) as caught:
        require_gate(gate, root)
    return str(caught.value)


def edit(root: Path, old: str, new: str) -> None:
    (root / "config" / "project.yaml").write_text(PROJECT.replace(old, new))


def test_without_a_finetune_folder_gates_are_off_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_gate("model", tmp_path)
    said = capsys.readouterr()
    assert "gates are off" in said.err
    assert said.out == ""


def test_without_a_ledger_a_gate_is_closed_and_names_the_command(root: Path) -> None:
    said = closed(root)
    assert "gate model: not passed" in said
    assert "Run: finetune gate model" in said


def test_a_gate_that_passed_is_open_and_the_others_stay_closed(root: Path) -> None:
    record(root, "model", "passed")
    require_gate("model", root)
    assert "never run" in closed(root, "tokens")


@pytest.mark.parametrize("last", ["failed", "unheard-of", "", None])
def test_the_last_line_counts_and_only_a_known_good_one_opens(root: Path, last: Any) -> None:
    record(root, "model", "passed")
    record(root, "model", last)
    assert "not passed" in closed(root)


def test_a_gate_turns_stale_when_a_value_changes_and_says_which(root: Path) -> None:
    record(root, "model", "passed")
    edit(root, "openai:N", "openai:X")
    assert "changed since: project.yaml#/roles/judges" in closed(root)


@pytest.mark.parametrize(("old", "new"), [("# roles", "# remark"), ("price: 0", "price: 5")])
def test_a_comment_or_another_value_makes_no_gate_stale(
    root: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(root, "model", "passed")
    edit(root, old, new)
    assert new in (root / "config/project.yaml").read_text()
    require_gate("model", root)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("gate", ["baseline", "pilot", "confirm", "evaluation", "ship"])
def test_a_gate_for_people_needs_a_person(root: Path, gate: str) -> None:
    record(root, gate, "passed")
    assert f"finetune approve {gate}" in closed(root, gate)
    record(root, gate, "approved")
    require_gate(gate, root)


@pytest.mark.parametrize("gate", ["model", "ship"])
def test_a_waived_gate_is_open_until_what_it_looked_at_changes(root: Path, gate: str) -> None:
    record(root, gate, "waived")
    require_gate(gate, root)
    edit(root, "openai:N", "openai:X")
    assert "changed since" in closed(root, gate)


NOTHING: dict[str, Callable[[], Any]] = {
    "left out": lambda: ...,
    "empty": dict,
    "no mapping": lambda: "everything",
    "null": lambda: None,
    "a file that is not there": lambda: {"none.yaml": None},
}


@pytest.mark.parametrize("looked_at", NOTHING.values(), ids=NOTHING)
def test_a_ledger_line_that_looked_at_nothing_opens_no_gate(
    root: Path, looked_at: Callable[[], Any]
) -> None:
    record(root, "model", "passed", looked_at=looked_at())
    assert "not passed" in closed(root)


def test_a_ledger_line_without_a_result_opens_no_gate(root: Path) -> None:
    record(root, "model", "passed")
    record(root, "model", ...)  # type: ignore[arg-type]
    assert "not passed" in closed(root)


def test_a_gate_is_stale_when_its_file_can_no_longer_be_read(root: Path) -> None:
    (root / "mask.json").write_text('{"parity": true}')
    record(root, "model", "passed", looked_at={"mask.json#/parity": canonical_hash(True)})
    require_gate("model", root)
    (root / "mask.json").write_text('{"parity": tr')
    assert "mask.json" in closed(root)


def test_a_damaged_ledger_line_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(root, "model", "passed")
    with (root / ".finetune" / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"gate": "model", "result": "fai\n')
    require_gate("model", root)
    assert "ledger.jsonl:2" in capsys.readouterr().err
