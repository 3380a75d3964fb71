"""The rubric of this project as Python names. It is written once, in config/rubric.yaml.

from criteria import CATEGORIES, SAFETY_GATES, AssessmentOutput
"""

from pathlib import Path
from typing import Any

from infrastructure import load_rubric
from judging import answer_model

RUBRIC = load_rubric(Path(__file__).resolve().parent / "config" / "rubric.yaml", draft=True)
CATEGORIES: dict[str, dict[str, Any]] = {
    name: {"weight": RUBRIC.weights[name], "criteria": list(members)}
    for name, members in RUBRIC.categories.items()
}
SAFETY_GATES = list(RUBRIC.safety_gates)
NA_INVALID = sorted(RUBRIC.na_invalid)
PASS_THRESHOLD = RUBRIC.pass_threshold
# What a judge fills in: one field per criterion, in the rubric's order.
AssessmentOutput = answer_model(tuple(RUBRIC.criteria))
