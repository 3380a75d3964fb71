"""The coverage floors: every line has one group, and an absent group does not count as passed."""

import json
from pathlib import Path

import pytest

import coverage_floors

KERNEL = """\
class LLMBackend:
    pass
class Vendor(LLMBackend):
    x = 1
class Preset(Vendor):
    x = 2
def slice_it():
    pass
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / coverage_floors.KERNEL).write_text(KERNEL, encoding="utf-8")
    monkeypatch.setattr(coverage_floors, "ROOT", tmp_path)
    return tmp_path


def floors(root: Path, executed: list[int], missing: list[int]) -> int:
    data = {"executed_lines": executed, "missing_lines": missing}
    report = root / "report.json"
    report.write_text(json.dumps({"files": {coverage_floors.KERNEL: data}}), encoding="utf-8")
    return coverage_floors.main(str(report))


def test_providers_are_the_classes_that_derive_from_the_backend() -> None:
    assert list(coverage_floors.provider_lines(KERNEL)) == [3, 4, 5, 6]


def test_a_provider_below_its_floor_fails_even_when_the_core_is_complete(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert floors(root, executed=[1, 2, 3, 7, 8], missing=[4, 5, 6]) == 1
    assert "providers                   25.0 %" in capsys.readouterr().out


def test_groups_without_code_are_called_absent(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert floors(root, executed=[1, 2, 3, 4, 5, 6, 7, 8], missing=[]) == 0
    assert "stages                     absent" in capsys.readouterr().out


def test_a_report_without_lines_fails(root: Path) -> None:
    assert floors(root, executed=[], missing=[]) == 2


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("code/evidence.py", coverage_floors.CORE),
        ("code/finetune_skills/bundle.py", coverage_floors.CORE),
        ("code/finetune_skills/report.py", coverage_floors.PAGES),
        ("code/finetune_skills/pages/review.py", coverage_floors.PAGES),
        ("code/templates/scripts/generate.py", coverage_floors.STAGES),
    ],
)
def test_each_kind_of_file_has_its_group(name: str, group: str) -> None:
    assert coverage_floors.group_of(name) == group
