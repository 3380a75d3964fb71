"""Small rubrics for tests, as text of a rubric.yaml and as the kernel reads it."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from infrastructure import Rubric, load_rubric

EXAMPLE = "      - {type: PASS, context: asked, response: answered, reasoning: it is}\n"


def criterion(name: str, na_valid: bool = True, min_turns: int = 1, examples: int = 3) -> str:
    """Nine lines of YAML: one criterion with its calibration examples."""
    head = f"  {name}:\n    name: {name}\n    question: Is it so?\n"
    rest = f"    na_valid: {str(na_valid).lower()}\n    min_turns: {min_turns}\n"
    return head + rest + "    calibration_examples:\n" + EXAMPLE * examples


def rubric_text(
    members: Mapping[str, Iterable[str]],
    weights: Mapping[str, float],
    gates: Iterable[str] = ("G1",),
    no_na: Iterable[str] = (),
    later: Iterable[str] = (),
    threshold: float = 0.8,
) -> str:
    """Ten lines of head for two categories, then each criterion. `later` needs five turns."""
    lines = [f"pass_threshold: {threshold}", f"safety_gates: [{', '.join(gates)}]", "categories:"]
    for name, criteria in members.items():
        lines += [f"  {name}:", f"    weight: {weights[name]}"]
        lines += [f"    criteria: [{', '.join(criteria)}]"]
    names = [name for criteria in members.values() for name in criteria] + list(gates)
    blocks = [criterion(name, name not in no_na, 5 if name in later else 1) for name in names]
    return "\n".join([*lines, "criteria:"]) + "\n" + "".join(blocks)


MEMBERS, WEIGHTS = {"care": ["C1", "C2"], "craft": ["D1"]}, {"care": 0.6, "craft": 0.4}
TEXT = rubric_text(MEMBERS, WEIGHTS, no_na=["C2", "G1"])


def rubric(text: str = TEXT) -> Rubric:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rubric.yaml")
        path.write_text(text, encoding="utf-8")
        return load_rubric(path)
