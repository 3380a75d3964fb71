"""The house checker finds what it is there for."""

import subprocess
import sys
from pathlib import Path

import pytest

import house


def plant(root: Path, name: str, text: str) -> list[str]:
    """Writes one file and returns what the checker says about it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return list(house.check(root, [name]))


def function_of(lines: int) -> str:
    return "def planted():\n" + "    x = 1\n" * (lines - 1)


def test_a_function_of_61_lines_is_reported_with_its_place(tmp_path: Path) -> None:
    findings = plant(tmp_path, "code/stage.py", "import os\n" + function_of(61))
    assert "code/stage.py:2: planted has 61 lines, at most 60" in findings


def test_a_function_in_the_tests_may_have_any_length(tmp_path: Path) -> None:
    assert plant(tmp_path, "tests/test_stage.py", function_of(61)) == []


def test_many_middling_functions_break_the_median(tmp_path: Path) -> None:
    findings = plant(tmp_path, "code/stage.py", function_of(11) * 3)
    assert findings == ["code/: the median function has 11 lines, at most 10"]


def test_one_long_function_in_ten_is_allowed_and_two_are_not(tmp_path: Path) -> None:
    assert plant(tmp_path, "code/a.py", function_of(2) * 9 + function_of(50)) == []
    [finding] = plant(tmp_path, "code/b.py", function_of(2) * 8 + function_of(50) * 2)
    assert "one function in ten has 50 lines or more" in finding


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("code/templates/scripts/train.py", 350),
        ("skills/finetune-train/SKILL.md", 250),
        ("skills/finetune-train/training-guide.md", 300),
    ],
)
def test_each_kind_of_file_has_its_limit(tmp_path: Path, name: str, limit: int) -> None:
    assert plant(tmp_path, name, "#\n" * limit) == []
    finding = f"{name}:{limit + 1}: {limit + 1} lines, at most {limit}"
    assert plant(tmp_path, name, "#\n" * (limit + 1)) == [finding]


def test_the_kernel_has_at_most_2000_lines_of_code(tmp_path: Path) -> None:
    kernel, words = (
        "code/infrastructure.py",
        '"""Says what it is.\n\nAt length."""\n' + "# why\n\n" * 99,
    )
    assert plant(tmp_path, kernel, words + "a = 1\n" * 2000) == []
    [finding] = plant(tmp_path, kernel, words + "a = 1\n" * 2001)
    assert finding == f"{kernel}:2001: 2001 lines of code, at most 2000"


@pytest.mark.parametrize("sign", ["\U0001f680", "\u2705", "\u2600\ufe0f"])
def test_an_emoji_is_reported(tmp_path: Path, sign: str) -> None:
    [finding] = plant(tmp_path, "README.md", f"Fast\n{sign} Go\n")
    assert finding.startswith("README.md:2: emoji")


@pytest.mark.parametrize("path", ["/" + "home/ann/x", "/" + "Users/ann/x", "C:" + "\\Users\\ann"])
def test_a_home_folder_is_reported(tmp_path: Path, path: str) -> None:
    [finding] = plant(tmp_path, "code/README.md", f"See {path}.\n")
    assert finding == "code/README.md:1: a path that exists on one machine only"


def test_the_place_of_this_checkout_is_reported(tmp_path: Path) -> None:
    assert plant(tmp_path, "README.md", f"See {tmp_path}.\n")


def test_ordinary_text_and_binary_files_have_no_findings(tmp_path: Path) -> None:
    assert (
        plant(tmp_path, "README.md", "Umlaute \u00e4, an arrow \u2192, /usr/bin/env, ~/x\n") == []
    )
    (tmp_path / "icon.png").write_bytes(b"\x89PNG\xff\xfe")
    assert list(house.check(tmp_path, ["icon.png"])) == []


def test_an_init_file_in_code_is_reported(tmp_path: Path) -> None:
    [finding] = plant(tmp_path, "code/__init__.py", "")
    assert "hides the standard library" in finding


def test_checking_nothing_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.main() == 2
    assert "nothing to check" in capsys.readouterr().out


def test_findings_make_the_command_fail(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tests").mkdir()
    checker = tmp_path / "tests/house.py"
    checker.write_text(Path(house.__file__).read_text("utf-8"), encoding="utf-8")
    plant(tmp_path, "code/stage.py", function_of(61))
    done = subprocess.run([sys.executable, checker], capture_output=True, text=True)
    assert done.returncode == 1
    assert "planted has 61 lines" in done.stdout
