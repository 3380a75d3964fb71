"""The check of the gate `audit`: what passes was looked at as a set, and nothing in it is critical.

The verdict is made again here, from the counts that audit.py wrote and the limits of today.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_skills.findings import Checked, Finding, loaded
from infrastructure import file_hash

AUDIT = "data/audit/audit.json"
MANIFEST = "data/processed/passing_transcripts.json"
PEOPLE = "data/personas/evaluation.jsonl"
AGAIN, JUDGE = "Run: python scripts/audit.py", "Run: python scripts/assess.py"
LIMITS = (
    "phrase_critical",
    "phrase_vary",
    "phrase_watch",
    "long_replies_bad",
    "long_replies_good",
    "reply_ratio_limit",
    "reply_floor",
    "near_duplicate",
)
AUDIT_SEEN = (
    AUDIT,
    MANIFEST,
    "artefacts.yaml#/",
    "project.yaml#/audit",
    "project.yaml#/language",
    *(f"project.yaml#/thresholds/{name}" for name in LIMITS),
)
# Tests that have no count of their own: phrases that are above a limit, and a set to compare with.
MAY_LACK = ("phrase_critical", "phrase_vary", "phrase_watch", "contamination")


def check_audit(root: Path) -> Checked:
    """The audit is of exactly what passes now, by the limits of now, and finds nothing critical."""
    from settings import load_project

    checked = Checked()
    project = loaded(load_project, root, checked)
    found, passing = _read(root, AUDIT, AGAIN, checked), _read(root, MANIFEST, JUDGE, checked)
    if project is None or found is None or passing is None:
        return checked
    try:
        checked.items = len(found["manifest"])
        for wrong in (_of_these(found, passing), _by_these(root, found, project),
                      _verdict(found, checked, project)):  # fmt: skip
            checked.findings += wrong
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        said = f"is no result of audit.py ({type(error).__name__}: {error})."
        checked.findings.append(Finding(AUDIT, said, AGAIN))
    return checked


def _read(root: Path, name: str, todo: str, checked: Checked) -> Any:
    try:
        return json.loads((root / name).read_bytes())
    except OSError:
        checked.findings.append(Finding(name, "is not there.", todo))
    except ValueError as error:
        checked.findings.append(Finding(name, f"is no JSON ({error}).", todo))
    return None


def _of_these(found: Mapping[str, Any], passing: Mapping[str, Any]) -> Iterator[Finding]:
    """Exactly the transcripts that pass, in the words that they have."""
    now = {row["id"]: row["transcript_hash"] for row in passing["transcripts"]}
    if not now:
        yield Finding(MANIFEST, "no transcript passes, so that nothing was audited.", JUDGE)
    elif found["set"] != "passing" or found["manifest"].keys() != now.keys():
        odd = len(found["manifest"].keys() ^ now.keys())
        yield Finding(AUDIT, f"is not of what passes: {odd} transcripts differ.", AGAIN)
    else:
        other = [item for item, hashed in now.items() if found["manifest"][item] != hashed]
        for item in other[:3]:
            yield Finding(AUDIT, f"{item} has other words than when it was audited.", AGAIN)


def _by_these(root: Path, found: Mapping[str, Any], project: Any) -> Iterator[Finding]:
    """By the limits of today, and compared with the evaluation's people as they are."""
    from curation import declared

    tests = declared(project)
    other = [name for name in tests if found["thresholds"].get(name) != tests[name]]
    if other:
        said = f"was made with other limits ({', '.join(other[:3])})."
        yield Finding(AUDIT, said, AGAIN)
    people = file_hash(root / PEOPLE) if (root / PEOPLE).is_file() else None
    if people != found["against"].get(PEOPLE):
        yield Finding(PEOPLE, "has changed since it was compared with the set.", AGAIN)
    made = {row["test"] for row in found["tests"]} | set(found["not measured"])
    lacking = [name for name in tests if name not in made and name not in MAY_LACK]
    if lacking:
        yield Finding(AUDIT, f"lacks the test {', '.join(lacking[:3])}.", AGAIN)


def _verdict(found: Mapping[str, Any], checked: Checked, project: Any) -> Iterator[Finding]:
    """The findings, made again from the counts; a critical one keeps the gate closed."""
    from curation import Figure, declared, finding
    from evidence import wilson

    tests, made = declared(project), list[dict[str, Any]]()
    for row in found["tests"]:
        figure = Figure(**{**row, "k": int(row["k"]), "n": int(row["n"])})
        told = finding(_limited(figure, found, tests), tests, wilson)
        made += [told] if told else []
    key = ("severity", "test", "what", "k", "n", "limit")
    listed = sorted(_told(row, key) for row in found["findings"])
    if listed != sorted(_told(row, key) for row in made):
        yield Finding(AUDIT, "its findings are not those of its counts.", AGAIN)
    bad = [row for row in made if row["severity"] == "critical"]
    for row in bad[:5]:
        said = f"{row['test']}: {row['what']}: {row['share']:.0%} ({row['low']:.0%} to"
        yield Finding(AUDIT, f"{said} {row['high']:.0%}), limit {row['limit']:.0%}.",
                      "Mend it, then run: python scripts/audit.py")  # fmt: skip
    if found["passed"] != (not bad):
        yield Finding(AUDIT, "its verdict is not that of its findings.", AGAIN)
    warnings = [row["test"] for row in made if row["severity"] == "warning"]
    checked.figures |= {"conversations": checked.items, "critical": len(bad)}
    checked.figures |= {"warnings": ", ".join(dict.fromkeys(warnings)) or "none"}
    checked.figures |= {"not measured": ", ".join(found["not measured"]) or "none"}


def _limited(figure: Any, found: Mapping[str, Any], tests: Mapping[str, Any]) -> Any:
    """A limit that a test made for itself, made again; no other test may bring one."""
    from dataclasses import replace

    from curation import THIRDS, late_limit
    from evidence import wilson

    if figure.test != "late_praise":
        return replace(figure, limit=None)
    k, n = found["figures"]["praise"][THIRDS[0]]
    return replace(figure, limit=late_limit(k, n, tests["late_praise"]["limit"], wilson))


def _told(row: Mapping[str, Any], key: tuple[str, ...]) -> str:
    return json.dumps([row[name] for name in key])
