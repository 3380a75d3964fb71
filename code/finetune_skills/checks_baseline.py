"""The check of the gate `baseline`: the base model was really tried, and what it gives is known.

A person approves it: whether to go on is a decision and not a figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_skills.findings import Checked, Finding
from infrastructure import FinetuneError, canonical_hash, selector_hash

RESULTS = "design/base-model-eval-results.json"
AGAIN = "Run: python scripts/baseline.py"
LEAST = 20  # whole conversations
# With another model, prompt or subject it is another question. The pilots that follow change the
# rubric, the prompts and the people again and again: a decision stands, and says what has changed.
BASELINE_SEEN = (
    RESULTS,
    "config/system-prompt.md",
    "project.yaml#/roles/base",
    "project.yaml#/domain",
    "project.yaml#/language",
)


def check_baseline(root: Path) -> Checked:
    """Enough whole conversations with this base model, all judged, made from what is there now; the
    figures are those of the verdicts."""
    checked = Checked()
    found = _results(root, checked)
    if found is None:
        return checked
    checked.items = len(found["rows"])
    checked.figures |= {"passed": f"{found['passed']} of {found['conversations']}"}
    checked.figures |= {"interval": f"{found['low']:.0%} to {found['high']:.0%}"}
    checked.figures |= {"reads": "; ".join(found["reads"])}
    checked.figures |= {"simulated": True} if found["simulated"] else {}
    since = [name for name, seen in found["inputs"].items()
             if name not in BASELINE_SEEN and seen != selector_hash(root, name)]  # fmt: skip
    checked.figures |= {"changed since": ", ".join(since)} if since else {}
    for wrong in (_too_few(found), _stale(root, found), _untrue(root, found)):
        checked.findings += wrong
    return checked


def _results(root: Path, checked: Checked) -> Any:
    try:
        found = json.loads((root / RESULTS).read_bytes())
        _ = [row["state"] for row in found["rows"]], found["inputs"].items(), found["reads"]
        _ = found["passed"] + found["conversations"] + found["unscored"] + found["left"]
        _ = found["low"] + found["high"], found["simulated"], found["model"]
    except OSError:
        checked.findings.append(Finding(RESULTS, "is not there.", AGAIN))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"is no result of baseline.py ({type(error).__name__}: {error})."
        checked.findings.append(Finding(RESULTS, said, AGAIN))
    else:
        return found
    return None


def _too_few(found: Mapping[str, Any]) -> Iterator[Finding]:
    if found["conversations"] < LEAST:
        said = f"{found['conversations']} conversations were judged, {LEAST} are needed."
        yield Finding(RESULTS, said, AGAIN)
    if found["unscored"] or found["left"]:
        said = f"{found['unscored'] + found['left']} conversations have no verdict yet."
        yield Finding(RESULTS, said, AGAIN)


def _stale(root: Path, found: Mapping[str, Any]) -> Iterator[Finding]:
    """What the conversations and verdicts were made from, against what is there now."""
    for name in BASELINE_SEEN[1:]:
        if found["inputs"].get(name) != selector_hash(root, name):
            yield Finding(name, "has changed since the baseline was made.", AGAIN)


def _untrue(root: Path, found: Mapping[str, Any]) -> Iterator[Finding]:
    """Each conversation is there, with the words that were judged; the figures are their sum."""
    from evidence import wilson
    from judging import read_source

    for row in found["rows"]:
        try:
            source = read_source(root / str(row.get("source_file")), root)
        except (FinetuneError, OSError) as error:
            yield Finding(RESULTS, f"{row.get('id')}: {error}.", AGAIN)
            continue
        if source.hash != row.get("transcript_hash"):
            yield Finding(source.file, "has other words than those that were judged.", AGAIN)
    passed = sum(row["state"] == "passed" for row in found["rows"])
    scored = passed + sum(row["state"] == "failed" for row in found["rows"])
    if (passed, scored) != (found["passed"], found["conversations"]):
        said = f"says {found['passed']} of {found['conversations']}, its rows {passed} of {scored}."
        yield Finding(RESULTS, said, AGAIN)
    elif canonical_hash(wilson(passed, scored)) != canonical_hash((found["low"], found["high"])):
        yield Finding(RESULTS, "its interval is not that of its rows.", AGAIN)
