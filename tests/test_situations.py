"""What goes wrong first: one clear line, exit 2, nothing lost, for each verb of the command."""

import contextlib
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_command import as_json, at_a_terminal, edit, finetune, made, ready, root, state

__all__ = ["made", "ready", "root"]  # fixtures
LEDGER = ".finetune/ledger.jsonl"
WAIVE = ("waive", "model", "--reason", "why", "--by", "Ann")
APPROVE = ("approve", "pilot", "--by", "Ann")
LONG = "x" * 300


def broken(root: Path) -> None:
    edit(root / "config/project.yaml", "roles:", "roles: [")


def missing(root: Path) -> None:
    (root / "config/project.yaml").unlink()


def binary(root: Path) -> None:
    (root / "config/project.yaml").write_bytes(b"name: \xff\xfe\n")


def a_list(root: Path) -> None:
    (root / "config/project.yaml").write_text("- one\n- two\n")


CONFIG = {
    broken: "config/project.yaml:3",
    missing: "config/project.yaml: is missing",
    binary: "config/project.yaml:1: is not UTF-8",
    a_list: "config/project.yaml:1: ",
}


def one_line(said: str, *words: str) -> bool:
    return said.count("\n") == 1 and all(word in said for word in words)


# Config files


def first_two(table: Any) -> list[Any]:
    """The rows of a table; all but two only with the slow tests: each is seconds."""
    slow = [(), (), *[pytest.mark.slow] * len(table)]
    return [pytest.param(*row, marks=mark, id=row[0].__name__)
            for row, mark in zip(table.items(), slow, strict=False)]  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), first_two(CONFIG))
def test_a_config_file_that_cannot_be_read_stops_each_gate_command_and_status_shows_all(
    ready: Path, spoil: Callable[[Path], None], says: str
) -> None:
    finetune(ready, "gate", "model")
    before = (ready / LEDGER).read_bytes()
    spoil(ready)
    for words in (["gate", "model"], ["gate", "--phase", "design"], ["gate", "--all"]):
        done = finetune(ready, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert one_line(done.stderr, says)
    code, result, shown = at_a_terminal(ready, "model", *WAIVE)
    assert (code, result, says in shown) == (2, "", True)
    assert (ready / LEDGER).read_bytes() == before
    found = as_json(ready, "status")
    assert (len(found["gates"]), found["next"]) == (20, "finetune gate model")
    assert says in found["gates"][0]["findings"][0]
    assert finetune(ready, "status").returncode == 0


def test_a_mistake_inside_a_readable_file_is_a_finding_and_not_a_stop(ready: Path) -> None:
    edit(ready / "config/project.yaml", "min_exchanges: 10", "min_exchanges: many")
    done = finetune(ready, "gate", "model")
    assert (done.returncode, done.stderr) == (1, "")
    assert "limits.min_exchanges" in done.stdout


def test_when_the_file_is_mended_the_earlier_result_counts_again(ready: Path) -> None:
    finetune(ready, "gate", "model")
    text = (ready / "config/project.yaml").read_text()
    broken(ready)
    assert state(ready) == "failed"
    (ready / "config/project.yaml").write_text(text)
    assert state(ready) == "passed"


# No project


@pytest.mark.parametrize("words", [["status"], ["gate", "model"], ["gate", "--all"], ["upgrade"]])
def test_outside_a_project_each_command_is_one_line(tmp_path: Path, words: list[str]) -> None:
    done = finetune(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr, "no project here")


@pytest.mark.parametrize("words", [WAIVE, APPROVE])
def test_outside_a_project_a_persons_act_changes_nothing(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, result, shown = at_a_terminal(tmp_path, words[1], *words)
    assert (code, result, "no project here" in shown) == (2, "", True)
    assert list(tmp_path.iterdir()) == []


# A long name


@pytest.mark.parametrize(
    "words", [["gate", LONG], ["init", LONG], ["init", "a", "--example", LONG]]
)
def test_a_name_of_300_bytes_is_one_clear_line(root: Path, words: list[str]) -> None:
    done = finetune(root, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr)
    assert not (root / "a").exists()


@pytest.mark.parametrize("words", [WAIVE, APPROVE])
def test_a_gate_of_300_bytes_is_refused_before_anything_is_typed(
    root: Path, words: tuple[str, ...]
) -> None:
    code, result, shown = at_a_terminal(root, LONG, words[0], LONG, *words[2:])
    assert (code, result) == (2, "")
    assert "is not a known gate" in shown
    assert not (root / LEDGER).exists()


# The ledger


def torn(data: bytes) -> bytes:
    return data[:-20]


def damaged(data: bytes) -> bytes:
    first, rest = data.split(b"\n", 1)
    return first[:30] + b"#" + first[31:] + b"\n" + rest


def not_text(data: bytes) -> bytes:
    return data + b"\xff\xfe\x00\xc3(\n"


def too_deep(data: bytes) -> bytes:
    return data + b"[" * 100_000 + b"\n"


DAMAGE = {torn: 3, damaged: 1, not_text: 4, too_deep: 4}


@pytest.mark.parametrize(("spoil", "line"), first_two(DAMAGE))
def test_damaged_lines_of_the_ledger_stop_one_command_and_are_set_aside_whole(
    ready: Path, spoil: Callable[[bytes], bytes], line: int
) -> None:
    for _ in range(3):
        finetune(ready, "gate", "model")
    spoilt = spoil((ready / LEDGER).read_bytes())
    (ready / LEDGER).write_bytes(spoilt)
    done = finetune(ready, "status")
    assert (done.returncode, "passed" in done.stdout) == (0, True)
    assert one_line(done.stderr, f"ledger.jsonl:{line}: skipped: damaged")
    done = finetune(ready, "gate", "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr, f"ledger.jsonl:{line}: damaged. Moved to")
    both = (ready / LEDGER).read_bytes() + (ready / ".finetune/ledger.damaged").read_bytes()
    assert sorted(both.splitlines()) == sorted(spoilt.splitlines())
    assert finetune(ready, "gate", "model").returncode == 0
    assert at_a_terminal(ready, "model", *WAIVE)[0] == 0
    assert (state(ready), finetune(ready, "gate", "model").returncode) == ("waived", 0)


def test_a_result_that_was_lost_in_a_crash_does_not_open_its_gate(ready: Path) -> None:
    finetune(ready, "gate", "model")
    (ready / LEDGER).write_bytes(torn((ready / LEDGER).read_bytes()))
    assert state(ready) == "not run"
    assert finetune(ready, "gate", "model").returncode == 2  # it says so, and sets the line aside
    assert finetune(ready, "gate", "model").returncode == 0
    assert state(ready) == "passed"


def test_a_ledger_that_is_a_folder_is_one_line_for_each_command(ready: Path) -> None:
    (ready / LEDGER).mkdir(parents=True)
    for words in (["status"], ["gate", "model"], ["gate", "--all"]):
        done = finetune(ready, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert one_line(done.stderr, "ledger.jsonl: cannot be read: Is a directory")
    code, result, shown = at_a_terminal(ready, "model", *WAIVE)
    assert (code, result, "cannot be read" in shown) == (2, "", True)


# Rights

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def as_a_guest(folder: Path, *words: str, close: str = "", at: str = "") -> tuple[int, str]:
    """The command for somebody who may read the folder and not write it: exit code and terminal.
    `close`: a file that they may not read either; `at`: what they type."""
    for each in [folder, *(up for up in folder.parents if "pytest" in str(up))]:
        each.chmod(0o755)  # pytest's own folders are closed to others
    load_all(folder.parent / "loading")
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            for path in [*folder.rglob("*"), folder]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            (folder / close).chmod(0 if close else 0o555)
            os.chdir(folder)
            if os.geteuid() == 0:
                os.seteuid(65534)  # nothing is closed to root
            os._exit(exit_code_of(list(words)))
        except BaseException as error:  # noqa: BLE001 - nothing of pytest may run in this process
            os.write(2, repr(error).encode())
            os._exit(70)
    os.write(terminal, at.encode() + b"\n")
    shown = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode().replace("\r", "")


def load_all(folder: Path) -> None:
    """Import what the command needs: a guest may not be able to read this Python's library."""
    from click.testing import CliRunner

    from finetune_skills import cli

    with contextlib.chdir(folder.parent):
        CliRunner().invoke(cli.main, ["init", folder.name])
    with contextlib.chdir(folder):
        for words in (["status"], ["gate", "model"], WAIVE):
            CliRunner().invoke(cli.main, list(words))


def exit_code_of(words: list[str]) -> int:
    """The command within this process, on its own terminal."""
    from finetune_skills import cli

    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        cli.main(words)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(ended.code or 0)
    return 0


def test_a_read_only_project_is_one_line_and_loses_nothing(ready: Path) -> None:
    finetune(ready, "gate", "model")
    before = (ready / LEDGER).read_bytes()
    said = "ledger.jsonl: cannot be opened for writing: Permission denied"
    for words in (("gate", "model"), WAIVE):
        code, shown = as_a_guest(ready, *words, at="model")
        assert (code, shown.count(said)) == (2, 1), shown
        assert "Traceback" not in shown
    assert as_a_guest(ready, "status")[0] == 0
    assert (ready / LEDGER).read_bytes() == before


def test_init_in_a_read_only_folder_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    code, shown = as_a_guest(folder, "init", "demo", "--json", *EVERY_ANSWER)
    assert code == 2
    assert one_line(shown.lstrip("\n"), "Permission denied")
    assert list(folder.iterdir()) == []


EVERY_ANSWER = [
    word
    for name in ("name", "domain", "language", "hardware", "budget", "providers")
    for word in (f"--{name}", "none" if name in ("budget", "providers") else "en")
] + ["--offline", "true"]


@pytest.mark.parametrize("words", [("status",), ("gate", "model"), WAIVE])
def test_a_ledger_that_may_not_be_read_is_one_line(ready: Path, words: tuple[str, ...]) -> None:
    finetune(ready, "gate", "model")
    code, shown = as_a_guest(ready, *words, close=LEDGER, at="model")
    assert (code, shown.count("ledger.jsonl: cannot be read: Permission denied")) == (2, 1), shown
