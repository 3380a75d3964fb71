"""The rubric of this project as Python names. It is written once, in config/rubric.yaml.

from criteria import CATEGORIES, SAFETY_GATES, AssessmentOutput
"""

from pathlib import Path
from typing import Any, Literal

from infrastructure import load_rubric
from pydantic import BaseModel, Field, create_model

RUBRIC = load_rubric(Path(__file__).resolve().parent / "config" / "rubric.yaml", draft=True)
CATEGORIES: dict[str, dict[str, Any]] = {
    name: {"weight": RUBRIC.weights[name], "criteria": list(members)}
    for name, members in RUBRIC.categories.items()
}
SAFETY_GATES = list(RUBRIC.safety_gates)
NA_INVALID = sorted(RUBRIC.na_invalid)
PASS_THRESHOLD = RUBRIC.pass_threshold


class Evidence(BaseModel):
    """Where in the transcript an answer rests: the exchange, counted from 1, and its exact words."""

    exchange: int
    quote: str


class Answer(BaseModel):
    """One criterion's answer. Reasoning and evidence come first, so that they are thought first."""

    reasoning: str
    evidence: list[Evidence]
    answer: Literal["YES", "NO", "NA", "ERROR"]


# What a judge fills in: one field per criterion, in the rubric's order.
FIELDS: dict[str, Any] = {
    name: (Answer, Field(description=criterion.question))
    for name, criterion in RUBRIC.criteria.items()
}
AssessmentOutput = create_model("AssessmentOutput", **FIELDS)
