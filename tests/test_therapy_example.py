"""The worked example of a coach: its configuration loads, and the page says what it holds."""

import re
import shutil
from pathlib import Path

import pytest

import settings
from children import CODE
from designs import example
from finetune_skills import checks_design, scaffold
from infrastructure import Rubric, load_rubric
from sampling import EDGE, expected_shares, prepare

EXAMPLES = CODE.parent / "examples"
PAGE, RUBRIC = EXAMPLES / "therapy-domain.md", EXAMPLES / "therapy/config/rubric.yaml"
BLOCK = re.compile(r"^```yaml\n# (config/[\w-]+\.yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("PASS", "BORDERLINE_PASS", "BORDERLINE_FAIL", "FAIL")
COMPUTED = re.compile(r"^\(ratio [^)]*\) ")


def page() -> str:
    return PAGE.read_text("utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table below a heading, by its first cell."""
    _, _, part = page().partition(f"\n## {heading}\n")
    table = [line for line in part.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The support desk with the page's blocks, and the rubric beside the page, in its config."""
    root = example(tmp_path_factory.mktemp("coach") / "project")
    for name, text in BLOCK.findall(page()):
        (root / name).write_text(text, "utf-8")
    shutil.copy(RUBRIC, root / "config/rubric.yaml")
    return root


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return load_rubric(RUBRIC)


def test_the_page_holds_the_taxonomy_and_the_persona_template() -> None:
    assert [name for name, _ in BLOCK.findall(page())] == [
        "config/input-taxonomy.yaml", "config/persona-template.yaml"
    ]  # fmt: skip
    assert page().count("```") == 4  # no block that nothing loads


def test_every_file_of_the_example_loads_without_a_finding(project: Path) -> None:
    for name in ("input-taxonomy", "persona-template", "rubric"):
        assert settings.check_file(project / f"config/{name}.yaml", name) == []


@pytest.mark.parametrize("gate", ["taxonomy", "rubric", "personas"])
def test_the_gates_of_the_design_find_nothing_but_the_lack_of_critics(
    project: Path, gate: str
) -> None:
    checked = getattr(checks_design, f"check_{gate}")(project)
    wrong = [str(each) for each in checked.findings if "critique" not in str(each)]
    assert checked.items > 0
    assert wrong == []


def test_an_edge_case_is_about_as_likely_as_the_page_says(project: Path) -> None:
    drawn = prepare(settings.load_taxonomy(project), settings.load_persona_template(project))
    share = expected_shares(drawn)[EDGE]["edge case"]
    assert share is not None
    assert 0.10 <= share <= 0.25


def test_every_criterion_has_three_calibration_examples_and_both_sides(rubric: Rubric) -> None:
    assert (len(rubric.criteria), len(rubric.safety_gates)) == (18, 2)
    for name, criterion in rubric.criteria.items():
        kinds = [str(each["type"]) for each in criterion.calibration_examples]
        assert len(kinds) >= 3, name
        assert {kind.rpartition("_")[2] for kind in kinds} == {"PASS", "FAIL"}, name
        assert all(each["reasoning"] for each in criterion.calibration_examples), name


def test_the_table_of_criteria_says_what_the_rubric_holds(rubric: Rubric) -> None:
    table, home = rows("The rubric"), {c: n for n, m in rubric.categories.items() for c in m}
    for name, criterion in rubric.criteria.items():
        where = "safety gate"
        if name in home:
            where = f"{home[name]} ({rubric.weights[home[name]]:.2f})"
        told = [where, criterion.question, "yes" if criterion.na_valid else "no"]
        told += [str(criterion.min_turns), str(len(criterion.calibration_examples))]
        assert table[name] == told


def test_the_table_of_texts_shows_the_first_text_of_each_kind(rubric: Rubric) -> None:
    table = rows("Its calibration texts")
    for name, criterion in rubric.criteria.items():
        first: dict[str, str] = {}
        for each in criterion.calibration_examples:
            first.setdefault(str(each["type"]), str(each["response"]).replace("\n\n", " / "))
        message, *texts = table[name]
        assert message in ("-", criterion.calibration_examples[0].get("context"))
        shown = [COMPUTED.sub("", cell) for cell in texts]
        assert shown == [first.get(kind, "-") for kind in KINDS], name
        assert sum(cell != "-" for cell in shown) >= 3, name


def test_the_folder_beside_the_page_is_not_taken_for_a_complete_project() -> None:
    assert "therapy" not in scaffold.examples(CODE.parent)


def test_the_red_team_set_has_sixty_prompts_and_some_that_block_alone() -> None:
    _, _, part = page().partition("\n## The red-team set\n")
    lines = [line for line in part.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    planned = [row for row in cells if row[0].isdigit()]
    assert sum(int(row[0]) for row in planned) >= 60
    assert sum(row[3] == "never" for row in planned) == 5
    assert f"{sum(int(row[0]) for row in planned)} distinct prompts" in part


def test_the_first_lines_say_what_it_is_not() -> None:
    start = " ".join(page()[:900].split())
    for said in ("not therapy", "emergency number", "simulated", "Nobody with clinical training"):
        assert said in start
