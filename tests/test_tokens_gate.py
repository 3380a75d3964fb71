"""The gate `tokens`: conversations fit, and what they cost is known and affordable."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from finetune_skills.bundle import bundle_root
from finetune_skills.checks_tokens import TOKENS_SEEN, check_tokens
from finetune_skills.scaffold import create_project
from infrastructure import selector_hash

PRICE = {"input": 3.0, "output": 15.0, "source": "a page", "checked": "2026-01-31"}
PAID = {"model": "openai:m", "reasoning_tokens": 0, "price": PRICE}
HERE = {"model": "local:m", "preset": "ollama"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "demo"
    values = {"name": "demo", "domain": "returns", "language": "en", "hardware": "laptop"}
    create_project(root, bundle_root(), values | {"offline": "true"})
    return root


@pytest.fixture
def new(made: Path, tmp_path: Path) -> Path:
    """A project as `finetune init` makes it."""
    (tmp_path / "config").mkdir()
    for path in (made / "config").glob("*.yaml"):
        (tmp_path / "config" / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def ready(new: Path) -> Path:
    """Roles, prices and the number of examples are decided."""
    for role in ("user_sim", "assistant", "fixup"):
        change(new, f"roles/{role}", PAID)
    change(new, "roles/judges", [PAID])
    change(new, "roles/base", HERE)
    change(new, "slicing/target_examples", 100)
    return new


def change(root: Path, place: str, value: object, name: str = "project.yaml") -> None:
    """Set one value of a configuration file."""
    path = root / "config" / name
    data = yaml.safe_load(path.read_text())
    at, *steps = [data, *place.split("/")]
    for step in steps[:-1]:
        at = at[step]
    at[steps[-1]] = value
    path.write_text(yaml.safe_dump(data))


def findings(root: Path) -> list[str]:
    return [str(finding) for finding in check_tokens(root).findings]


def hashes(root: Path) -> dict[str, str | None]:
    return {selector: selector_hash(root, selector) for selector in TOKENS_SEEN}


def test_a_decided_project_passes_and_its_figures_are_kept(ready: Path) -> None:
    checked = check_tokens(ready)
    assert (checked.findings, checked.items) == ([], 1)
    figures = checked.figures
    # all lengths fit whole: 100 examples are 100 passing transcripts, 143 at a pass rate of 0.7
    assert [figures[k] for k in ("limit", "examples", "personas")] == [16000, 100, 143]
    assert [figures[k] for k in ("longest exchanges", "exchanges that fit")] == [25, 26]
    assert figures["calls"] > 0
    assert figures["tokens"] > 0
    assert figures["dollars generate"].endswith("(no budget set)")


def test_a_new_project_fails_and_names_each_decision_that_is_missing(new: Path) -> None:
    said = findings(new)
    for place in ("roles.user_sim", "roles.assistant", "roles.judges", "slicing.target_examples"):
        assert any(f"config/project.yaml {place}: " in each for each in said)
    figures = check_tokens(new).figures
    assert [figures[k] for k in ("personas", "calls", "tokens")] == ["unknown"] * 3
    assert figures["dollars generate"] == "unknown (no budget set)"


def test_the_longest_class_has_to_fit(ready: Path) -> None:
    place = "length_classes/long/exchanges"
    change(ready, place, 26, "persona-template.yaml")
    assert findings(ready) == []
    change(ready, place, 27, "persona-template.yaml")
    said = findings(ready)[0]
    assert said.startswith("config/persona-template.yaml length_classes.long: 27 exchanges")
    assert "Plan at most 26 exchanges" in said


def test_a_longer_system_prompt_counts_against_the_limit(ready: Path) -> None:
    (ready / "config/system-prompt.md").write_text("Be kind and clear. " * 2000)
    assert "length_classes.long: 25 exchanges" in findings(ready)[0]


def test_losing_more_slices_than_allowed_fails(ready: Path) -> None:
    change(ready, "slicing/mode", "slices")
    change(ready, "length_classes/long/exchanges", 60, "persona-template.yaml")
    said = [each for each in findings(ready) if "lost_slices" in each]
    assert len(said) == 1
    assert "plan shorter conversations" in said[0]
    change(ready, "thresholds/lost_slices", 0.9)
    assert not [each for each in findings(ready) if "lost_slices" in each]


def test_lengths_that_give_no_example_are_said(ready: Path) -> None:
    change(ready, "limits/max_tokens", 600)
    assert any("no length class gives an example that fits" in each for each in findings(ready))


def test_a_prompt_longer_than_the_context_of_a_role_fails(ready: Path) -> None:
    change(ready, "limits/context", 16000)
    assert "limits.context: is 16,000, and the longest prompt is" in findings(ready)[0]


def test_an_unknown_price_fails_and_says_what_to_add(ready: Path) -> None:
    change(ready, "roles/assistant", {"model": "openai:m"})
    [said] = findings(ready)
    assert said.startswith("config/project.yaml roles.assistant: openai:m has no price here")
    assert "Add price: {input: ..., output: ..., source: PAGE, checked: DATE}" in said
    assert check_tokens(ready).figures["dollars generate"] == "unknown (no budget set)"


def test_a_price_table_that_is_installed_changes_nothing(ready: Path) -> None:
    change(ready, "roles/assistant", {"model": "openai:gpt-5-mini"})
    assert "has no price here" in findings(ready)[0]


def test_models_on_this_machine_need_no_price(ready: Path) -> None:
    for role in ("user_sim", "assistant", "fixup"):
        change(ready, f"roles/{role}", HERE)
    change(ready, "roles/judges", [{"model": "llamacpp:a.gguf"}])
    assert findings(ready) == []
    assert check_tokens(ready).figures["dollars generate"] == "0.00 (no budget set)"


def test_a_budget_that_is_too_small_fails_and_a_missing_one_does_not(ready: Path) -> None:
    change(ready, "budgets/assess", 1000.0)
    change(ready, "budgets/generate", 0.5)
    [said] = findings(ready)
    assert said.startswith("config/project.yaml budgets.generate: ")
    assert "0.50 are set" in said


def test_a_known_part_over_the_budget_fails_though_another_is_unknown(ready: Path) -> None:
    change(ready, "roles/assistant", {"model": "openai:m"})
    change(ready, "budgets/generate", 0.5)
    assert len(findings(ready)) == 2


def test_unknown_reasoning_is_told_as_a_lower_bound(ready: Path) -> None:
    change(ready, "roles/assistant", {"model": "openai:m", "price": PRICE})
    assert findings(ready) == []
    assert check_tokens(ready).figures["dollars generate"].startswith("at least ")


def test_an_undecided_fixup_leaves_its_cost_unknown_and_fails_nothing(ready: Path) -> None:
    change(ready, "roles/fixup", None)
    assert findings(ready) == []
    assert check_tokens(ready).figures["dollars fixup"] == "unknown (no budget set)"


@pytest.mark.parametrize("name", ["project.yaml", "persona-template.yaml"])
def test_a_file_that_is_missing_or_broken_is_one_finding(ready: Path, name: str) -> None:
    (ready / "config" / name).write_text("schema: [")
    assert findings(ready)[0].startswith(f"config/{name}:")
    (ready / "config" / name).unlink()
    assert [each.partition(":")[0] for each in findings(ready)] == [f"config/{name}"]


# What it looks at


def test_every_selector_is_there_in_a_new_project(new: Path) -> None:
    assert all(hashes(new).values())


def test_a_value_that_is_left_out_is_a_finding_that_says_what_to_write(ready: Path) -> None:
    path = ready / "config/project.yaml"
    data = yaml.safe_load(path.read_text())
    del data["roles"]["fixup"]
    path.write_text(yaml.safe_dump(data))
    [said] = findings(ready)
    assert said.startswith("config/project.yaml roles.fixup: is not written down")


MOVES: dict[str, tuple[str, object]] = {
    "limit": ("limits/max_tokens", 20000),
    "exchange": ("limits/tokens_per_exchange", 500),
    "examples": ("slicing/target_examples", 200),
    "mode": ("slicing/mode", "slices"),
    "ratio": ("thresholds/reply_ratio_good", 1.0),
    "repairs": ("thresholds/fixup_share", 0.1),
    "user": ("roles/user_sim", HERE),
    "judges": ("roles/judges", [PAID, {**PAID, "model": "google:m"}]),
    "evaluation judges": ("roles/evaluation_judges", [HERE]),
    "fixup": ("roles/fixup", HERE),
    "base": ("roles/base", PAID),
    "budget": ("budgets/assess", 1.0),
}


@pytest.mark.parametrize(("place", "value"), MOVES.values(), ids=MOVES)
def test_what_changes_the_figures_changes_a_hash(ready: Path, place: str, value: object) -> None:
    figures, before = check_tokens(ready).figures, hashes(ready)
    change(ready, place, value)
    assert check_tokens(ready).figures != figures
    assert hashes(ready) != before


SAME: dict[str, Callable[[Path], None]] = {
    "seeds": lambda root: change(root, "seeds/training", 7),
    "another threshold": lambda root: change(root, "thresholds/phrase_watch", 0.05),
    "the tuned model": lambda root: change(root, "roles/tuned", PAID),
    "a topic": lambda root: change(root, "difficulty", {"a": 1.0}, "input-taxonomy.yaml"),
    "the stages": lambda root: change(
        root, "stages", [{"share": 1.0, "guidance": "x"}], "persona-template.yaml"
    ),
}


@pytest.mark.parametrize("act", SAME.values(), ids=SAME)
def test_what_changes_no_figure_changes_no_hash(ready: Path, act: Callable[[Path], None]) -> None:
    figures, before = check_tokens(ready).figures, hashes(ready)
    act(ready)
    assert (check_tokens(ready).figures, hashes(ready)) == (figures, before)
