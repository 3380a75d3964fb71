"""The checks of the gates `scale` and `fixup`: what was made in numbers is what was confirmed, and
every transcript has led somewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_skills.checks_pilot import Batch, batches, load_court, outdated, stale_now
from finetune_skills.findings import Checked, Finding
from infrastructure import FinetuneError

if TYPE_CHECKING:
    from judging import Court

ASSISTANT = "config/prompts/assistant.md"
TRIAL = "a trial only: nothing of it ships"
ASSESS, FIXUP = "Run: python scripts/assess.py", "Run: python scripts/fixup.py"
SCALE_SEEN = (
    "config/prompts/user_sim.md",
    "config/prompts/assistant.md",
    "config/prompts/assessor.md",
    "rubric.yaml#/",
    "project.yaml#/roles/user_sim",
    "project.yaml#/roles/assistant",
    "project.yaml#/roles/judges",
    "project.yaml#/judging",
    "project.yaml#/thresholds/spot_checks",
)
FIXUP_SEEN = (
    "config/prompts/assessor.md",
    "config/prompts/fixup.md",
    "rubric.yaml#/",
    "project.yaml#/roles/judges",
    "project.yaml#/judging",
    "project.yaml#/limits/min_exchanges",
    "project.yaml#/thresholds/fixup_share",
    "data/processed/passing_transcripts.json",
)
Rows = Mapping[str, Mapping[str, Any]]


# ── scale ─────────────────────────────────────────────────────────────────────────────────────────


def check_scale(root: Path) -> Checked:
    """Everything that was asked for is made and judged, it passes as often as what was confirmed,
    and a person has read a sample of it. Before anything is made at scale, that is a trial, or what
    was imported."""
    checked = Checked()
    all_ = batches(root, "scale") or batches(root, "trial") or _imports(root)
    court = load_court(root, checked, None)
    if court is None or not all_:
        todo = "Run: python scripts/generate.py --count N"
        none = Finding("data/batches", "nothing was generated at scale yet.", todo)
        checked.findings += [] if all_ else [none]
        return checked
    rows = {row["id"]: row for row in court.combined()}
    ids = [item for batch in all_ for item in batch["ids"]]
    checked.items = len(ids)
    checked.figures |= _kind(all_[-1])
    checked.findings += outdated(root, all_[-1], "generate.py --count N")
    checked.findings += list(_open(root, ids, rows))[:20]
    if all_[-1]["kind"] != "import":
        checked.findings += _drift(root, checked, ids, rows)
    checked.findings += _spot_checks(root, checked, set(ids), court)
    return checked


def _imports(root: Path) -> list[Batch]:
    """What was imported, where nothing at all was generated."""
    found = batches(root, "import")
    made = (each for each in batches(root) if each not in found)
    return [] if any(not each.get("drawn_from") for each in made) else found


def _kind(batch: Batch) -> dict[str, str]:
    """What the figures are of, where it is not what they usually are."""
    said = {"trial": TRIAL, "import": "imported: no rate is promised"}
    return {"made": said[batch["kind"]]} if batch["kind"] in said else {}


def _open(root: Path, ids: list[str], rows: Rows) -> Iterator[Finding]:
    """Each is a transcript with a verdict, or was rejected before any judge saw it."""
    gone = {path.stem for path in (root / "data/raw/rejected").glob("*/*.json")}
    for item in ids:
        if item not in rows and item not in gone:
            yield Finding("data/raw", f"{item} is not made yet.", "Run generate.py again.")
        elif item in rows and rows[item]["state"] == "unscored":
            yield Finding(rows[item]["source_file"], "has no verdict yet.", ASSESS)


def _drift(root: Path, checked: Checked, ids: list[str], rows: Rows) -> Iterator[Finding]:
    """The rate as it was made, before any repair, against the interval of what was confirmed."""
    from evidence import wilson

    k, n = _as_made(ids, rows)
    confirmed = batches(root, "confirm")
    if not n or not confirmed:
        return
    passed, of = _as_made(list(confirmed[-1]["ids"]), rows)
    low, high = wilson(passed, of)
    checked.figures |= {"passed": f"{k} of {n} ({k / n:.0%})"}
    checked.figures |= {"confirmed": f"{passed} of {of} ({low:.0%} to {high:.0%})"}
    if not low - 1e-9 <= k / n <= high + 1e-9:
        said = (
            f"{k / n:.0%} of {n} pass; confirmed were {passed} of {of} ({low:.0%} to {high:.0%})."
        )
        yield Finding("scale", said, "Something has drifted: read the failures, then confirm anew.")


def _as_made(ids: list[str], rows: Rows) -> tuple[int, int]:
    """How many passed of all that were asked for; one that was rejected unseen has failed."""
    return sum(rows.get(item, {}).get("pass") is True for item in ids), len(ids)


def _spot_checks(root: Path, checked: Checked, ids: set[str], court: Court) -> Iterator[Finding]:
    """A label counts for the words that were read, also when they were repaired afterwards."""
    from finetune_skills.labels import complete, load_labels
    from settings import load_project

    labels = [label for label in load_labels(root) if label.id in ids]
    done = (label for label in labels if complete(label, court.bench.rubric))
    read = {label.id for label in done if not stale_now(label, court)}
    needed = min(load_project(root).thresholds.spot_checks, len(ids))
    checked.figures["read by a person"] = f"{len(read)} of {needed}"
    if len(read) < needed:
        said = f"{len(read)} transcripts made at scale were read by a person, {needed} are needed."
        yield Finding("data/reviews/labels.jsonl", said, "Run: finetune review")


# ── fixup ─────────────────────────────────────────────────────────────────────────────────────────


def check_fixup(root: Path) -> Checked:
    """Every transcript is accepted, repaired, truncated or rejected; nothing waits; not so many had
    to be repaired that the prompt is to blame; what passes is in the manifest."""
    from judging import fates, needed_repair, tally
    from settings import load_project

    checked = Checked()
    court = load_court(root, checked, None, originals=False)
    if court is None:
        return checked
    rows = court.combined()
    found = fates(root, rows)
    checked.items, counts = len(found), tally(found)
    checked.figures |= counts
    waiting = sorted(item for item, fate in found.items() if fate.state == "pending")
    if waiting:
        said = f"{len(waiting)} transcripts wait: {', '.join(waiting[:3])}."
        checked.findings.append(Finding("data/candidates.jsonl", said, f"{FIXUP} (or assess.py)"))
    needed, of = needed_repair(root, rows)
    checked.figures["needed repair"] = f"{needed} of {of} generated"
    limit = load_project(root).thresholds.fixup_share
    if of and needed / of > limit:
        said = f"{needed} of {of} generated transcripts failed; {limit:.0%} may be repaired."
        checked.findings.append(Finding(ASSISTANT, said, _blame(root, rows)))
    checked.findings += _orphans(root)
    checked.findings += _manifest(root, {row["id"] for row in rows if row["pass"]})
    return checked


def _blame(root: Path, rows: list[dict[str, Any]]) -> str:
    """Where to look: what failed most before the repairs."""
    from collections import Counter

    from judging import events

    why = (str(line).partition(":")[0] for event in events(root) if event["event"] == "fixup"
           for line in event.get("why", ()))  # fmt: skip
    names = Counter(name.strip() for line in why for name in line.split(","))
    names.update(name for row in rows if row["state"] == "failed" for name in row["failed_checks"])
    most = ", ".join(name for name, _ in names.most_common(3))
    return f"The prompt is wrong, not the replies: change it. What fails most: {most}."


def _orphans(root: Path) -> Iterator[Finding]:
    """A repaired transcript whose original has changed or gone since."""
    from judging import read_source

    for path in sorted((root / "data/repaired").rglob("*.json")):
        shown = path.relative_to(root).as_posix()
        try:
            about = json.loads(path.read_bytes())["repaired_from"]
            now = read_source(root / about["source_file"], root).hash
        except (FinetuneError, OSError, ValueError, KeyError, TypeError):
            yield Finding(shown, "its original can't be read.", "Remove it; run fixup.py.")
            continue
        if now != about.get("transcript_hash"):
            todo = "Remove it, then run assess.py and fixup.py."
            yield Finding(shown, "its original has changed since it was repaired.", todo)


def _manifest(root: Path, passing: set[str]) -> Iterator[Finding]:
    name = "data/processed/passing_transcripts.json"
    try:
        listed = {str(each["id"]) for each in json.loads((root / name).read_bytes())["transcripts"]}
    except (OSError, ValueError, KeyError, TypeError):
        yield Finding(name, "is not there or can't be read.", ASSESS)
        return
    if listed != passing:
        differ = ", ".join(sorted(listed ^ passing)[:3])
        yield Finding(name, f"is not what passes now: {differ}.", ASSESS)
    if not passing:
        yield Finding(name, "nothing passes.", "Read the failures: finetune review")
