"""The checks of the gates `pilot` and `confirm`: people have read, and the rate is what it is said.

Batches of five are for learning. They are never added up, and no rate is required of them; what is
required is that a person has read all of it and that every finding led somewhere. One fresh batch
then decides, with prompts and rubric frozen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_skills.findings import Checked, Finding
from infrastructure import FinetuneError, selector_hash

if TYPE_CHECKING:
    from evidence import Corrected
    from finetune_skills.labels import Label
    from finetune_skills.quality import Standing
    from judging import Court

REVIEW, ASSESS = "Run: finetune review", "Run: python scripts/assess.py"
MADE_WITH = (
    "config/prompts/user_sim.md",
    "config/prompts/assistant.md",
    "config/rubric.yaml",
)  # what a person changes because of a finding
LABELS = "data/reviews/labels.jsonl"
JUDGES = "It may not filter. Run: finetune judges"
PILOT_SEEN = (
    "config/prompts/user_sim.md",
    "config/prompts/assistant.md",
    "config/prompts/assessor.md",
    "rubric.yaml#/",
    "persona-template.yaml#/",
    "artefacts.yaml#/",
    "project.yaml#/roles/user_sim",
    "project.yaml#/roles/assistant",
    "project.yaml#/roles/judges",
    "project.yaml#/judging",
)
CONFIRM_SEEN = (*PILOT_SEEN, "project.yaml#/limits", "project.yaml#/thresholds")
CLAIM = 0.7  # the share that a confirmed process passes more of
Batch = Mapping[str, Any]


# ── pilot ─────────────────────────────────────────────────────────────────────────────────────────


def check_pilot(root: Path) -> Checked:
    """The last five are made with what is there now, judged, and read by a person to the end; each
    finding of any five is answered by a change or by an explicit "fine"."""
    from finetune_skills.labels import load_labels

    checked, all_ = Checked(), batches(root, "pilot")
    court = load_court(root, checked, {item for batch in all_ for item in batch["ids"]})
    if court is None or not all_:
        todo = "Run: python scripts/generate.py"
        checked.findings += [] if all_ else [Finding("data/batches", "no pilot yet.", todo)]
        return checked
    last, labels = all_[-1], load_labels(root)
    checked.items = len(last["ids"])
    checked.findings += outdated(root, last, "generate.py")
    rows = {row["id"]: row for row in court.combined()}
    checked.findings += _unjudged(last, rows, root)
    checked.findings += _unread(last, labels, court)
    for number, batch in enumerate(all_):
        changed = number + 1 < len(all_) and _differs(batch, last)
        checked.findings += _unanswered(batch, labels, rows, changed)
    checked.figures |= {"batch": last["id"]} | learned(last, rows)
    return checked


def learned(batch: Batch, rows: Mapping[str, Any]) -> dict[str, Any]:
    """What five say, and how little that is."""
    from evidence import at_least

    own = [rows[item] for item in batch["ids"] if item in rows]
    k, n = sum(row["pass"] is True for row in own), len(own)
    if batch.get("drawn_from"):
        advice = "then the twenty: finetune review --batch confirm-000 --blind"
        return {"passed": f"{k} of {n} imported chats", "advice": advice}
    chance = f"{k} of {n}: a process at 50 % gets there {at_least(k, n, 0.5):.0%} of the time"
    share = k / n if n else 0.0
    advice = (
        "revise the prompts" if share < 0.5 else "iterate: change what was found, then five more"
    )
    advice = "when you are content, confirm on a fresh batch" if share > CLAIM else advice
    return {"passed": chance, "advice": advice}


def _unjudged(batch: Batch, rows: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    for item in batch["ids"]:
        rejected = root / f"data/raw/rejected/{batch['id']}/{item}.json"
        if item not in rows and not rejected.exists():
            todo = "Run: python scripts/generate.py"
            yield Finding(f"data/batches/{batch['id']}.json", f"{item} is not made yet.", todo)
        elif item in rows and rows[item]["state"] == "unscored":
            yield Finding(rows[item]["source_file"], "has no verdict yet.", ASSESS)


def _unread(batch: Batch, labels: Sequence[Label], court: Court) -> Iterator[Finding]:
    """Every transcript and every verdict was seen by a person, as they are now."""
    from finetune_skills.labels import complete

    todo = f"{REVIEW} --batch {batch['id']}"
    for item in (each for each in batch["ids"] if each in court.sources):
        own = [label for label in labels if label.id == item and not label.blind]
        why = {label.at: stale_now(label, court) for label in own}
        done = (label for label in own if complete(label, court.bench.rubric))
        if not any(not why[label.at] for label in done):
            stale = next((said for said in why.values() if said), "")
            said = f"{item} is not reviewed to the end" + (f": {stale}." if stale else ".")
            yield Finding(LABELS, said, todo)


def stale_now(label: Label, court: Court) -> str:
    """Why a label says nothing of these words, this rubric and these verdicts; empty: it does."""
    from finetune_skills.review.records import verdict_hash

    source = court.sources.get(label.id)
    if source is None or label.transcript_hash != source.hash:
        return "the transcript has changed"
    if label.rubric_hash != court.bench.rubric.hash:
        return "the rubric has changed"
    rows = {judge: court.fresh(judge, source) for judge in label.seen if judge in court.judges}
    other = (judge for judge, seen in label.seen.items()
             if verdict_hash(rows.get(judge) or {}) != seen)  # fmt: skip
    judge = next(other, "")
    return f"{OTHER_VERDICT} {judge} has changed" if judge else ""


OTHER_VERDICT = "the verdict of"  # a label that is about the words, and saw other answers


def _unanswered(
    batch: Batch, labels: Sequence[Label], rows: Mapping[str, Any], changed: bool
) -> Iterator[Finding]:
    """Findings that led to nothing: no prompt and no rubric changed after them, and nobody said
    that it is fine."""
    from finetune_skills.labels import findings_of

    for label in labels:
        if label.id not in batch["ids"] or label.blind or changed:
            continue
        for name in findings_of(label, rows.get(label.id)):
            if not label.fine.get(name, "").strip():
                todo = "Change a prompt or the rubric and make five more, or say why it is fine "
                todo += f"(key f): {REVIEW[5:]} --batch {batch['id']}"
                yield Finding(LABELS, f"{batch['id']}: {label.id}, {name}: not answered.", todo)


def _differs(one: Batch, other: Batch) -> bool:
    return any(one["inputs"].get(name) != other["inputs"].get(name) for name in MADE_WITH)


# ── confirm ───────────────────────────────────────────────────────────────────────────────────────


def check_confirm(root: Path) -> Checked:
    """A fresh batch with everything frozen passes often enough, with the judges' own mistakes taken
    out by people's labels."""
    from finetune_skills import quality
    from finetune_skills.labels import label_store

    checked, all_, store = Checked(), batches(root, "confirm"), label_store(root)
    store.refresh()
    wanted = {item for batch in all_ for item in batch["ids"]}
    court = load_court(root, checked, wanted | {str(row["id"]) for row in store.newest.values()})
    if court is None or not all_:
        todo = "Run: python scripts/generate.py --confirm"
        none = Finding("data/batches", "no batch to confirm with yet.", todo)
        checked.findings += [] if all_ else [none]
        return checked
    last, rows = all_[-1], {row["id"]: row for row in court.combined()}
    checked.items = len(last["ids"])
    checked.findings += outdated(root, last, "generate.py --confirm")
    checked.findings += _not_fresh(root, last)
    checked.findings += _unjudged(last, rows, root)
    said = quality.people(root, court)
    standings = quality.standings(root, court, said)
    own = [rows.get(item, {"pass": False}) for item in last["ids"]]  # a rejected one has failed
    passed = sum(row["pass"] is True for row in own)
    drawn = {"drawn from": ", ".join(last["drawn_from"])} if last.get("drawn_from") else {}
    attempt = len([each for each in all_ if not each.get("drawn_from")])
    checked.figures |= {"batch": last["id"], "attempt": attempt, "labels": len(said.labels)} | drawn
    unfit = [each for each in standings if each.why_not]
    checked.findings += [Finding(each.name, f"{each.why_not}.", JUDGES) for each in unfit]
    if not unfit and drawn:  # nobody made them on purpose: judges filter, and no rate is promised
        checked.figures |= rate_of(passed, len(own), standings[-1])
    elif not unfit:
        checked.findings += decide(checked, passed, len(own), standings[-1], attempt)
    return checked


def decide(
    checked: Checked, passed: int, n: int, together: Standing, attempt: int
) -> Iterator[Finding]:
    """The rule, on the rate that people would give."""
    from evidence import passes_needed

    needed = passes_needed(n, CLAIM, attempt=attempt)
    checked.figures |= rate_of(passed, n, together) | {"needed": f"{needed} of {n}"}
    rate = corrected(passed, n, together).rate or 0.0
    if needed is None or rate * n + 1e-9 < needed:
        said = f"{rate:.0%} of {n} pass, corrected; {needed} are needed to claim over {CLAIM:.0%}."
        yield Finding("confirm", said, "Back to five: read, revise, then confirm afresh.")


def rate_of(passed: int, n: int, together: Standing) -> dict[str, str]:
    """As judged, and as people would judge."""
    found = corrected(passed, n, together)
    span = f"{found.low or 0:.0%} to {found.high or 0:.0%}"
    told = {"passed": f"{passed} of {n}, as judged"}
    return told | {"corrected": f"{found.rate or 0.0:.0%} ({span})"}


def corrected(passed: int, n: int, together: Standing) -> Corrected:
    from evidence import rogan_gladen

    overall = together.overall
    return rogan_gladen(passed, n, overall.tpr.counts, overall.tnr.counts)


def _not_fresh(root: Path, batch: Batch) -> Iterator[Finding]:
    """Nobody in it was in another batch, whose conversations the prompts were written on."""
    others = [each for each in batches(root) if each["id"] != batch["id"]]
    others = [each for each in others if not (batch.get("drawn_from") and each["kind"] == "import")]
    known = {item: each["id"] for each in others for item in each["ids"]}
    for item in batch["ids"]:
        if item in known:
            said = f"{item} was already in {known[item]}."
            yield Finding(f"data/batches/{batch['id']}.json", said, "Confirm with fresh people.")


# ── both ──────────────────────────────────────────────────────────────────────────────────────────


def batches(root: Path, kind: str = "") -> list[Batch]:
    """The frozen batches, in order; one that can't be read counts as none and is told by status."""
    found: list[Batch] = []
    for path in sorted((root / "data/batches").glob("*.json")):
        try:
            batch = dict(json.loads(path.read_bytes()))
            _ = batch["id"], list(batch["ids"]), dict(batch.get("inputs", {}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if not kind or batch.get("kind") == kind:
            found.append(batch | {"inputs": batch.get("inputs", {})})
    return found


def load_court(
    root: Path, checked: Checked, items: Collection[str] | None, originals: bool = True
) -> Court | None:
    """What the judges say of these transcripts (None: of all), as they were made: a later repair
    changes nothing in what was read and confirmed."""
    from finetune_skills.findings import loaded
    from judging import Court

    try:
        court: Court | None = loaded(
            partial(Court.of, items=items, originals=originals), root, checked
        )
    except FinetuneError as error:
        checked.findings.append(Finding("judges", str(error)))
        return None
    for line in court.damaged if court else ():
        checked.findings.append(Finding("data/raw/transcripts", line))
    return court


def outdated(root: Path, batch: Batch, script: str) -> Iterator[Finding]:
    """What the batch was made with, as far as it is a file, against what is there now."""
    for name, kept in batch["inputs"].items():
        if "/" in name or "#" in name:
            selector = "rubric.yaml#/" if name == "config/rubric.yaml" else name
            if (selector_hash(root, selector) or "")[: len(kept)] != kept:
                said = f"has changed since {batch['id']} was made."
                yield Finding(name, said, f"Run: python scripts/{script}")
