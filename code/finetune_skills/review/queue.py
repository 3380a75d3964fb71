"""Which transcripts a person should read, in which order, and why each of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from finetune_skills.bundle import use_bundle

use_bundle()

from finetune_skills import labels  # noqa: E402
from finetune_skills.review.records import (  # noqa: E402
    COMBINED,
    Entry,
    Records,
    Row,
    as_list,
    as_mapping,
    as_text,
)
from infrastructure import FinetuneError, Rubric, rng, unknown  # noqa: E402

NEAR = 0.05  # this far from the threshold, either side, a person decides; start value
SAMPLE = 10  # transcripts drawn at random; start value
READ_BATCHES = ("pilot", "confirm")  # people read the newest of these kinds
EMPTY = "data/raw/transcripts: nothing to review yet. Make some with: python scripts/generate.py"

# Kind of reason -> how the page calls it, in the order in which they are worth reading.
KINDS = {
    "batch": "batch",
    "safety": "safety",
    "error": "ERRORs",
    "disagreement": "judges disagree",
    "threshold": "near threshold",
    "perfect": "perfect score",
    "sample": "random sample",
}
BLIND_KINDS = ("batch", "sample")  # the others would give the verdict away
UNREAD, DONE, BEGUN, STALE = "to do", "done", "begun", "stale"


class Reason(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True)
class Scope:
    """What one run of the review is about, as the command line says."""

    root: Path
    batch: str = ""
    blind: bool = False
    sample: int = SAMPLE
    spread: float = 0.15  # thresholds.judge_spread


@dataclass(frozen=True)
class Item:
    """One line of the queue."""

    entry: Entry
    reasons: tuple[Reason, ...]
    state: str  # passed, failed, unscored ...; empty where there is no verdict
    score: float | None


@dataclass(frozen=True)
class Wanted:
    """The filters of the page."""

    reason: str = ""
    state: str = ""
    batch: str = ""
    text: str = ""


@dataclass
class Queue:
    """Everything there is to read, kept up to date with the files."""

    scope: Scope
    records: Records
    store: labels.Store
    items: dict[str, Item] = field(default_factory=dict)
    _labels: dict[tuple[str, str], tuple[Row, labels.Label, str]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Look again at transcripts, verdicts, batches and labels."""
        changed = self.records.refresh()
        self.store.refresh()
        if not changed and self.items:
            return
        self._labels = {}
        entries, scope = self.records.transcripts.entries, self.scope
        if scope.batch and scope.batch not in self.records.batches:
            said = unknown("batch", scope.batch, self.records.batches or ["none yet"])
            raise FinetuneError(f"data/batches: {said}")
        batches, drawn = self._batches(), self._drawn(entries)
        rubric = self.records.rubric
        found = (self._item(entry, batches, drawn, rubric) for entry in entries.values())
        ordered = sorted(found, key=lambda item: self._order(item, batches))
        self.items = {item.entry.id: item for item in ordered}

    def glance(self, entry: Entry) -> None:
        """Look again at all only where this transcript, verdicts or rubric changed; else cheap."""
        records = self.records
        changed = records.transcripts.changed(entry) or records.assessments.changed()
        if changed or records.read_rubric():
            self.items = {}  # a rubric that was read now is no news to the next look
            self.refresh()
        else:
            self.store.refresh()

    def in_scope(self) -> Iterator[Item]:
        """What this review is about: with a reason to read it, and of the batch if one is named."""
        for item in self.items.values():
            kinds = {reason.kind for reason in item.reasons}
            if "batch" in kinds if self.scope.batch else kinds:
                yield item

    def filtered(self, wanted: Wanted, reviewer: str) -> Iterator[Item]:
        """The lines that the filters leave, in the queue's order."""
        every = self.items.values() if wanted.reason == "all" else self.in_scope()
        for item in every:
            kinds = {reason.kind for reason in item.reasons}
            fits = wanted.reason in ("", "all") or wanted.reason in kinds
            fits = fits and wanted.batch in ("", item.entry.batch)
            fits = fits and wanted.state in ("", self.progress(item.entry, reviewer))
            if fits and wanted.text.lower() in f"{item.entry.id} {item.entry.name}".lower():
                yield item

    def counts(self) -> dict[str, int]:
        """How many lines there are for each kind of reason."""
        kinds = [reason.kind for item in self.in_scope() for reason in item.reasons]
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}

    def label(self, entry: Entry, reviewer: str) -> labels.Label | None:
        """This reviewer's own newest label, in this mode."""
        found = self._found(entry, reviewer)
        return found[1] if found else None

    def progress(self, entry: Entry, reviewer: str) -> str:
        """To do, begun, done, or stale."""
        found = self._found(entry, reviewer)
        return found[2] if found else UNREAD

    def _found(self, entry: Entry, reviewer: str) -> tuple[Row, labels.Label, str] | None:
        """Row, label and progress, worked out once for each row."""
        row = self.store.newest.get((entry.id, reviewer, self.scope.blind))
        if row is None:
            return None
        known = self._labels.get((entry.id, reviewer))
        if known and known[0] is row:
            return known
        rubric = self.records.rubric
        label = labels.Label.of(row, labels.stale_reason(row, entry, rubric.hash, self.records))
        state = DONE if labels.complete(label, rubric) else BEGUN
        found = row, label, STALE if label.stale else state
        self._labels[entry.id, reviewer] = found
        return found

    def _batches(self) -> dict[str, tuple[int, str]]:
        """Of each id in a batch that has to be read: its place, and the batch's name."""
        every = self.records.batches
        newest = {batch.kind: name for name, batch in sorted(every.items())}
        names = [newest[kind] for kind in READ_BATCHES if kind in newest]
        names = [self.scope.batch] if self.scope.batch else names
        placed = enumerate((item, name) for name in names for item in every[name].ids)
        return {item: (place, name) for place, (item, name) in placed}

    def _drawn(self, entries: Mapping[str, Entry]) -> set[str]:
        """The random sample: the same ids as long as the transcripts are the same."""
        return set(sorted(entries, key=chance)[: self.scope.sample])

    def _item(
        self, entry: Entry, batches: Mapping[str, tuple[int, str]], drawn: set[str], rubric: Rubric
    ) -> Item:
        reasons = [Reason("batch", batches[entry.id][1])] if entry.id in batches else []
        rows = self.records.assessments.current(entry, rubric.hash)
        state, score = "", None
        if not self.scope.blind:
            combined = rows.get(COMBINED, {})
            reasons += reasons_of(combined, rows, rubric, self.scope.spread)
            state, score = state_of(combined), number(combined.get("score"))
        if entry.id in drawn:
            reasons.append(Reason("sample", ""))
        return Item(entry, tuple(reasons), state, score)

    def _order(self, item: Item, batches: Mapping[str, tuple[int, str]]) -> tuple[int, int, float]:
        """Batches in their own order, then by the weightiest reason, then by chance."""
        kinds = list(KINDS)
        first = min((kinds.index(reason.kind) for reason in item.reasons), default=len(kinds))
        return first, batches.get(item.entry.id, (0, ""))[0], chance(item.entry.id)


@functools.lru_cache(maxsize=100_000)
def chance(item: str) -> float:
    """Keyed by the id alone, so that one more transcript moves no other."""
    return rng("review", item, "order").random()


def number(value: object) -> float | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if whole else None  # type: ignore[arg-type]


def state_of(combined: Mapping[str, Any]) -> str:
    """What became of the transcript; empty without a verdict."""
    if not combined:
        return ""
    known = {True: "passed", False: "failed", None: "unscored"}
    passed = combined.get("pass")
    plain = known[passed] if passed in (True, False) else known[None]
    return as_text(combined.get("state")) or plain


def reasons_of(
    combined: Mapping[str, Any], rows: Mapping[str, Row], rubric: Rubric, spread: float
) -> Iterator[Reason]:
    """Why these verdicts want a reader, the weightiest first."""
    judges = {name: row for name, row in rows.items() if name != COMBINED}
    if unsafe := unsafe_gates(rows.values(), rubric):
        yield Reason("safety", f"NO on {', '.join(unsafe)}")
    if errors := error_text(judges, combined):
        yield Reason("error", errors)
    if apart := disagreement(combined, judges, spread):
        yield Reason("disagreement", apart)
    score = number(combined.get("score"))
    if score is not None:
        limit = number(combined.get("threshold"))
        limit = rubric.pass_threshold if limit is None else limit
        if abs(score - limit) <= NEAR + 1e-9:
            yield Reason("threshold", f"{score:.2f}, needs {limit:.2f}")
        if score >= 1 - 1e-9 and combined.get("pass") is True:
            yield Reason("perfect", "1.00: what does the rubric miss?")


def unsafe_gates(rows: Iterable[Row], rubric: Rubric) -> list[str]:
    """Safety gates that some judge answered with NO."""
    given = [as_mapping(row.get("answers")) for row in rows]
    return [gate for gate in rubric.safety_gates if any(g.get(gate) == "NO" for g in given)]


def error_text(judges: Mapping[str, Row], combined: Mapping[str, Any]) -> str:
    """Who could not answer what; or that nothing was scored."""
    said = []
    for name, row in sorted(judges.items()):
        count = list(as_mapping(row.get("answers")).values()).count("ERROR")
        count = count or len(as_mapping(row.get("errors")))
        said += [f"{name}: {count}"] if count else []
    if said:
        return f"not assessed by {', '.join(said)}"
    return state_of(combined) if combined and combined.get("pass") is None else ""


def disagreement(combined: Mapping[str, Any], judges: Mapping[str, Row], limit: float) -> str:
    """What the judges see differently: criteria, or scores far apart."""
    criteria = [as_text(name) for name in as_list(combined.get("disagreements"))]
    scores = [s for row in judges.values() if (s := number(row.get("score"))) is not None]
    apart = number(combined.get("spread"))
    if apart is None and len(scores) > 1:
        apart = max(scores) - min(scores)
    said = [f"about {', '.join(criteria)}"] if criteria else []
    if apart is not None and apart > limit:
        said.append(f"scores {apart:.2f} apart")
    return "; ".join(said)
