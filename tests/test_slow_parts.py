"""A part that the slow tests need and can't have is skipped with its reason, never silently."""

from pathlib import Path

import pytest

import slow_parts
from slow_parts import PARTS, Part


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_parts, "REASONS", tmp_path)


def absent() -> bool:
    return False


def plant(monkeypatch: pytest.MonkeyPatch, part: Part) -> None:
    monkeypatch.setitem(PARTS, "planted", part)


def test_the_reason_of_a_failed_installation_is_what_the_test_skips_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, Part(absent, [["sh", "-c", "echo no compiler >&2; exit 3"]], minutes=1))
    assert slow_parts.main(["planted"]) == 0
    assert "NOT AVAILABLE, its tests will skip: no compiler" in capsys.readouterr().out
    with pytest.raises(pytest.skip.Exception, match="planted: no compiler"):
        slow_parts.require("planted")


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Part(absent, [["no-such-program"]], minutes=1))
    assert slow_parts.install("planted") == "no-such-program is not on the PATH"


def test_what_installs_but_does_not_run_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Part(absent, [["true"]], minutes=1))
    assert slow_parts.install("planted") == "installed, but does not run here"


def test_a_part_that_is_there_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Part(lambda: True, [["no-such-program"]], minutes=1))
    assert slow_parts.install("planted") is None
    slow_parts.require("planted")


def test_a_part_nobody_tried_to_install_skips_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, Part(absent, [], minutes=1))
    with pytest.raises(pytest.skip.Exception, match="make test-slow"):
        slow_parts.require("planted")


def test_an_unknown_part_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert slow_parts.main(["lamacpp"]) == 2
    assert "no such part: lamacpp" in capsys.readouterr().out
