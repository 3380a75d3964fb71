"""Reading a rubric: each mistake is named with its file and line, and all of them at once."""

import re
import time
from pathlib import Path

import pytest

from infrastructure import FinetuneError, load_rubric
from rubrics import EXAMPLE, TEXT, criterion, rubric, rubric_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rubric.yaml"


def mistakes(path: Path, text: str | bytes, draft: bool = False) -> list[str]:
    """What is said about a rubric with this text, without the folder."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(FinetuneError) as caught:
        load_rubric(path, draft=draft)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def test_a_sound_rubric_is_read_whole() -> None:
    read = rubric()
    assert (read.categories["care"], read.weights["care"]) == (("C1", "C2"), 0.6)
    assert (read.safety_gates, read.pass_threshold) == (("G1",), 0.8)
    assert read.na_invalid == {"C2", "G1"}
    assert (read.criteria["C1"].min_turns, len(read.criteria["C1"].calibration_examples)) == (1, 3)


def test_its_hash_follows_its_content_and_not_its_comments() -> None:
    assert rubric(f"# a remark\n{TEXT}").hash == rubric().hash
    assert rubric(TEXT.replace("Is it so?", "Is it?", 1)).hash != rubric().hash


# old text, new text, where the mistake is, what is said about it
MISTAKES = [
    ("weight: 0.4", "weight: 0.3", "rubric.yaml:3 ", "sum to 0.9, not to 1"),
    ("weight: 0.4", "weight: 0.400002", "rubric.yaml:3 ", "not to 1"),
    ("weight: 0.4", "weight: 1.4", "rubric.yaml:8 ", "1.4"),
    ("weight: 0.4", "weight: heavy", "rubric.yaml:8 ", "heavy"),
    ("criteria: [D1]", "criteria: [D9]", "rubric.yaml:9 ", '"D9" is not a known criterion'),
    ("criteria: [D1]", "criteria: [D1, C1]", "rubric.yaml:9 ", '"C1" already has a place'),
    ("criteria: [D1]", "criteria: [D1, D1]", "rubric.yaml:9 ", '"D1" already has a place'),
    ("criteria: [D1]", "criteria: [D1, G1]", "rubric.yaml:2 ", "carries weight"),
    ("criteria: [D1]", "criteria: []", "rubric.yaml:9 ", "at least one criterion"),
    ("[C1, C2]", "[C1]", "rubric.yaml:20 ", "in no category and is no safety gate"),
    ("safety_gates: [G1]", "safety_gates: []", "rubric.yaml:2 ", "no safety gate"),
    ("safety_gates: [G1]", "safety_gates: [G1, G2]", "rubric.yaml:2 ", '"G2" is not a known'),
    ("safety_gates: [G1]", "safety_gates: [G1, G1]", "rubric.yaml:2 ", "listed twice"),
    ("pass_threshold: 0.8", "pass_threshold: 1.01", "rubric.yaml:1 ", "from 0 to 1"),
    ("pass_threshold: 0.8", "pass_threshold: -0.1", "rubric.yaml:1 ", "from 0 to 1"),
    ("pass_threshold: 0.8", "pass_threshold: .nan", "rubric.yaml:1 ", "from 0 to 1"),
    ("pass_threshold: 0.8", "pass_treshold: 0.8", "rubric.yaml:1 ", "pass_threshold"),
    ("na_valid: true", "na_valid: maybe", "rubric.yaml:14 ", "maybe"),
    ("na_valid: true", "na_vald: true", "rubric.yaml:14 ", "na_valid"),
    ("min_turns: 1", "min_turns: 0", "rubric.yaml:15 ", "whole number"),
    ("question: Is it so?", "question: ''", "rubric.yaml:13 ", "question"),
    ("type: PASS", "type: GOOD", "rubric.yaml:17 ", "BORDERLINE_FAIL"),
]


@pytest.mark.parametrize(("old", "new", "where", "said"), MISTAKES)
def test_a_mistake_is_named_with_its_line(
    path: Path, old: str, new: str, where: str, said: str
) -> None:
    assert old in TEXT
    found = mistakes(path, TEXT.replace(old, new, 1))
    assert any(line.startswith(where) and said in line for line in found), found


def test_weights_may_miss_one_by_a_millionth_and_no_more() -> None:
    assert rubric(TEXT.replace("weight: 0.4", "weight: 0.4000009")).weights["craft"] == 0.4000009
    with pytest.raises(FinetuneError, match="not to 1"):
        rubric(TEXT.replace("weight: 0.4", "weight: 0.4000011"))


@pytest.mark.parametrize("key", ["safety_gates", "categories", "criteria"])
def test_a_missing_part_is_named(path: Path, key: str) -> None:
    found = mistakes(path, re.sub(rf"(?m)^{key}:", f"x_{key}:", TEXT))
    assert any(f" {key}: " in line for line in found)


def test_all_mistakes_are_shown_at_once(path: Path) -> None:
    text = TEXT.replace("weight: 0.4", "weight: 0.3").replace("safety_gates: [G1]", "")
    found = mistakes(path, text.replace("min_turns: 1", "min_turns: x", 1))
    assert len(found) >= 3
    assert all(line.startswith("rubric.yaml:") for line in found)


@pytest.mark.parametrize("count", [0, 2, 9])
def test_a_criterion_needs_three_to_eight_examples_and_a_draft_only_warns(
    path: Path, count: int
) -> None:
    text = TEXT.replace(EXAMPLE * 3, EXAMPLE * count, 1)
    [found] = mistakes(path, text)
    assert found.startswith("rubric.yaml:16 ")
    assert f"{count} examples" in found
    draft = load_rubric(path, draft=True)
    assert [found] == [warning.replace(f"{path.parent}/", "") for warning in draft.warnings]


@pytest.mark.parametrize("count", [3, 8])
def test_three_and_eight_examples_are_enough(path: Path, count: int) -> None:
    path.write_text(TEXT.replace(EXAMPLE * 3, EXAMPLE * count, 1))
    assert load_rubric(path).warnings == ()


def test_a_draft_forgives_nothing_else(path: Path) -> None:
    assert mistakes(path, TEXT.replace("weight: 0.4", "weight: 0.3"), draft=True)
    assert mistakes(path, TEXT.replace("type: PASS", "type: GOOD", 1), draft=True)


# YAML that is no rubric

BROKEN = {
    "a key that stands twice": (TEXT + "pass_threshold: 0.1\n", ":47 "),
    "a criterion that stands twice": (TEXT + criterion("C1"), ":47 "),
    "an alias": (TEXT.replace("criteria: [D1]", "criteria: &a [D1]\nx: *a"), ":10"),
    "a python tag": (TEXT.replace("Is it so?", "!!python/name:os.system", 1), ":13"),
    "bad indentation": (TEXT.replace("  craft:", " craft:"), ":7"),
    "a tab": (TEXT.replace("    weight", "\tweight", 1), ":5"),
    "not UTF-8": (TEXT.encode().replace(b"Is it so?", b"Is it s\xf6?", 1), " is not UTF-8"),
    "deep nesting": ("a: " + "[" * 1000, ""),
    "nothing": ("", "categories"),
    "a list": ("- a\n- b\n", "categories"),
    "two documents": (TEXT + "---\n" + TEXT, ":47"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_text_that_is_no_rubric_is_refused_with_file_and_line(
    path: Path, text: str | bytes, said: str
) -> None:
    found = " ".join(mistakes(path, text))
    assert "rubric.yaml" in found
    assert said in found


UNUSUAL = {
    "a forgotten quote around a placeholder": "question: {{name}}",
    "a list as a key": "? [a]\n    : 1",
}


@pytest.mark.parametrize("text", UNUSUAL.values(), ids=UNUSUAL)
def test_odd_yaml_is_refused_with_its_line_and_not_by_a_traceback(path: Path, text: str) -> None:
    found = mistakes(path, TEXT.replace("question: Is it so?", text, 1))
    assert found[0].startswith("rubric.yaml:13")


def test_a_date_in_an_example_is_text_like_any_other() -> None:
    assert rubric(TEXT.replace("context: asked", "context: 2024-05-01", 1)).hash != rubric().hash


def test_criteria_may_be_named_by_numbers() -> None:
    text = rubric_text({"care": ["1", "2"], "craft": ["x"]}, {"care": 0.5, "craft": 0.5})
    assert rubric(text).categories == {"care": ("1", "2"), "craft": ("x",)}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30))


def test_a_bomb_of_aliases_is_refused_at_once(path: Path) -> None:
    started = time.process_time()
    assert "alias" in mistakes(path, BOMB)[0]
    assert time.process_time() - started < 1


def test_brackets_without_end_are_refused_at_once(path: Path) -> None:
    started = time.process_time()
    assert "nested too deep" in mistakes(path, "[" * 10_000)[0]
    assert time.process_time() - started < 1


def test_a_file_above_five_megabytes_is_refused_unread(path: Path) -> None:
    started = time.process_time()
    assert "5000000 bytes" in mistakes(path, "#" * 5_000_001)[0]
    assert time.process_time() - started < 1


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"rubric\.yaml: No such file"):
        load_rubric(path)
