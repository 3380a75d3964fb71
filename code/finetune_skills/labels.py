"""What people said about transcripts: `data/reviews/labels.jsonl`, written and read.

    saved = save_label(root, row, base_revision)     Conflict when another window was first
    for label in load_labels(root):                  the newest of each transcript, reviewer, mode
        if not label.stale and complete(label, rubric): ...

Every save appends the whole state with the next revision, under a lock, and is on the disk when it
returns. Nothing is ever rewritten, so what a newer revision replaced can still be read.
"""

from __future__ import annotations

import fcntl
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_skills.bundle import use_bundle

use_bundle()

from finetune_skills.review.records import (  # noqa: E402
    COMBINED,
    SAFE_ID,
    SEEN,
    Entry,
    Records,
    as_list,
    as_mapping,
    as_text,
)
from infrastructure import SCHEMA, Appender, FinetuneError, ReadReport, Rubric, read_lines  # noqa: E402

LABELS, PAIRS = "data/reviews/labels.jsonl", "data/reviews/ab.jsonl"
VERDICTS, ANSWERS = ("good", "bad", "unsure"), ("YES", "NO", "NA")
CHOICES = ("left", "right", "tie")
CALLED, MISSES = "verdict", "rubric_misses"  # findings that are no criterion
LONGEST_TEXT, LONGEST_NAME = 20_000, 80  # characters
WHEN = ("at", "revision")  # what differs between two saves of the same thing

Row = dict[str, Any]
Key = tuple[Any, ...]


class Conflict(FinetuneError):
    """Somebody else saved first; `newer` is what they saved, None when the file is gone."""

    def __init__(self, newer: Row | None) -> None:
        super().__init__("another window saved this first: look at both, then save again")
        self.newer = newer


# ── one file, many writers ────────────────────────────────────────────────────────────────────────


@dataclass
class Store:
    """The newest revision of everything in an append-only file that several processes write."""

    path: Path
    key: Callable[[Row], Key]
    newest: dict[Key, Row] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    _file: tuple[int, int] = (0, 0)
    _read: int = 0

    def refresh(self) -> None:
        """Read what was appended since the last time; a replaced file is read from its start."""
        try:
            with open(self.path, "rb") as handle:
                self._follow(os.fstat(handle.fileno()))
                handle.seek(self._read)
                data = handle.read()
        except FileNotFoundError:
            self._forget((0, 0))
            return
        whole = data[: data.rfind(b"\n") + 1]  # a line that is being written is for the next time
        report = ReadReport()
        for _, _, _, row in read_lines(io.BytesIO(whole), report):
            self._take(row)
        self._read += len(whole)
        self.bad += [f"{self.path}: a damaged line was skipped: {why}" for _, why in report.bad]

    def save(self, row: Row, base: int) -> Row:
        """Append `row` as the revision after `base`, or raise Conflict. On disk when it returns."""
        with self._lock():
            self.refresh()
            there = self.newest.get(self.key(row))
            revision = there["revision"] if there else 0
            if there and revision == base + 1 and same(there, row):
                return there  # our own save, whose answer was lost on the way
            if revision != base:
                raise Conflict(there)
            kept = {"schema": SCHEMA, **row, "at": _now(), "revision": base + 1}
            with Appender(self.path) as file:
                file.append(kept)
            self._take(kept)
            return kept

    def _take(self, row: Row) -> None:
        try:
            key, revision = self.key(row), int(row["revision"])
            if key not in self.newest or revision >= self.newest[key]["revision"]:
                self.newest[key] = row | {"revision": revision}
        except (KeyError, TypeError, ValueError):
            self.bad.append(f"{self.path}: a row without its keys was skipped")

    def _follow(self, stat: os.stat_result) -> None:
        if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._read:
            self._forget((stat.st_dev, stat.st_ino))

    def _forget(self, file: tuple[int, int]) -> None:
        self._file, self._read, self.newest, self.bad = file, 0, {}, []

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, over all processes; released when the process ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(f"{self.path}.lock", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal but for when they were saved."""
    return all(one.get(k) == other.get(k) for k in {*one, *other} - {*WHEN, "schema"})


def label_key(row: Row) -> Key:
    return str(row["id"]), str(row["reviewer"]), bool(row["blind"])


def pair_key(row: Row) -> Key:
    return tuple(map(str, row["pair"])), str(row["reviewer"])


def label_store(root: Path) -> Store:
    return Store(root / LABELS, label_key)


def pair_store(root: Path) -> Store:
    return Store(root / PAIRS, pair_key)


def save_label(root: Path, row: Row, base_revision: int) -> Row:
    """Append a checked row as the revision after `base_revision`; Conflict carries a newer one."""
    return label_store(root).save(checked(row), base_revision)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ── what may be in a row ──────────────────────────────────────────────────────────────────────────


def checked(row: Mapping[str, Any]) -> Row:
    """A label with nothing in it that is not known; FinetuneError names the key that is wrong."""
    who, blind, verdict = row.get("reviewer"), row.get("blind"), row.get("verdict")
    criteria = _texts(row, "criteria", ANSWERS)
    for key, right in {
        "id": isinstance(row.get("id"), str) and bool(SAFE_ID.fullmatch(row["id"])),
        "reviewer": isinstance(who, str) and reviewer_name(who) == who != "",
        "blind": isinstance(blind, bool),
        "verdict": verdict is None or verdict in VERDICTS,
        "agreed": set(map(str, as_list(row.get("agreed")))) <= set(criteria),
        "seen": not (blind and row.get("seen")),
        "turns": isinstance(row.get("turns"), int),
    }.items():
        if not right:
            raise FinetuneError(f"label of {row.get('id')}: {key} is {row.get(key)!r:.80}")
    kept = {"id": row["id"], "reviewer": who, "blind": blind, "turns": row["turns"]}
    kept |= {key: _text(row, key) for key in ("transcript_hash", "rubric_hash")}
    kept |= {"seen": _texts(row, "seen"), "verdict": verdict, "criteria": criteria}
    kept |= {"agreed": sorted(set(map(str, as_list(row.get("agreed")))))}
    return kept | {k: _text(row, k) for k in ("notes", MISSES)} | {"fine": _texts(row, "fine")}


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise FinetuneError(f"label of {row.get('id')}: {key} is no text of {LONGEST_TEXT:,} signs")
    return value


def _texts(row: Mapping[str, Any], key: str, allowed: Iterable[str] = ()) -> dict[str, str]:
    value, allowed = row.get(key, {}), tuple(allowed)
    right = isinstance(value, dict) and len(value) <= 1000
    for name, said in value.items() if right else ():
        right = right and isinstance(said, str) and len(name) <= 200 and len(said) <= LONGEST_TEXT
        right = right and (not allowed or said in allowed)
    if not right:
        raise FinetuneError(f"label of {row.get('id')}: {key} has a wrong value")
    return dict(value)


def reviewer_name(text: str) -> str:
    """A name as it is kept: printable, without spaces around it, not too long."""
    return "".join(sign for sign in text if sign.isprintable()).strip()[:LONGEST_NAME].strip()


# ── labels for whoever reads them ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Label:
    """The newest state of one transcript, one reviewer, blind or not."""

    id: str
    reviewer: str
    at: str
    revision: int
    blind: bool
    transcript_hash: str
    rubric_hash: str
    turns: int
    seen: Mapping[str, str] = field(default_factory=dict)
    verdict: str | None = None
    criteria: Mapping[str, str] = field(default_factory=dict)
    agreed: tuple[str, ...] = ()
    notes: str = ""
    rubric_misses: str = ""
    fine: Mapping[str, str] = field(default_factory=dict)
    stale: str = ""  # why it no longer counts; empty while it does

    @classmethod
    def of(cls, row: Mapping[str, Any], stale: str = "") -> Label:
        """A label from its row; what a newer release may have added is left out."""
        turns, verdict = row.get("turns"), row.get("verdict")
        criteria = as_mapping(row.get("criteria")).items()
        return cls(
            id=str(row["id"]),
            reviewer=str(row["reviewer"]),
            at=as_text(row.get("at")),
            revision=int(row["revision"]),
            blind=bool(row["blind"]),
            transcript_hash=as_text(row.get("transcript_hash")),
            rubric_hash=as_text(row.get("rubric_hash")),
            turns=turns if isinstance(turns, int) else 0,
            seen=as_mapping(row.get("seen")),
            verdict=verdict if verdict in VERDICTS else None,
            criteria={name: said for name, said in criteria if said in ANSWERS},
            agreed=tuple(map(str, as_list(row.get("agreed")))),
            notes=as_text(row.get("notes")),
            rubric_misses=as_text(row.get(MISSES)),
            fine=as_mapping(row.get("fine")),
            stale=stale,
        )


def stale_reason(row: Mapping[str, Any], entry: Entry | None, rubric: str, now: Records) -> str:
    """Why a label no longer counts: what was seen is not what is there now. Empty: it counts."""
    if entry is None:
        return "the transcript is gone"
    if row.get("transcript_hash") != entry.hash:
        return "the transcript has changed"
    if row.get("rubric_hash") != rubric:
        return "the rubric has changed"
    if not row.get("blind") and (seen := as_mapping(row.get("seen"))):
        there = now.current(entry)
        for judge, seen_hash in seen.items():
            if judge not in there or there[judge][SEEN] != seen_hash:
                return f"the verdict of {judge} has changed"
    return ""


def load_labels(root: Path) -> list[Label]:
    """The newest label of each transcript, reviewer and mode, sorted; stale ones say why."""
    store, now = label_store(root), Records(root)
    store.refresh()
    if not store.newest:
        return []
    now.refresh()
    entries, rubric = now.transcripts.entries, now.rubric.hash
    return [
        Label.of(row, stale_reason(row, entries.get(str(row["id"])), rubric, now))
        for _, row in sorted(store.newest.items())
    ]


def asked(rubric: Rubric, turns: int) -> list[str]:
    """The criteria that a conversation of this many exchanges is long enough for."""
    return [name for name, c in rubric.criteria.items() if c.min_turns <= turns]


def complete(label: Label, rubric: Rubric) -> bool:
    """A verdict is given and every criterion that could be asked is answered."""
    return label.verdict is not None and set(asked(rubric, label.turns)) <= set(label.criteria)


def findings_of(label: Label, combined: Mapping[str, Any] | None) -> list[str]:
    """What somebody has to act on: `verdict`, criteria answered otherwise, `rubric_misses`."""
    given = as_mapping((combined or {}).get("answers"))
    said = sorted(label.criteria.items())
    differ = [name for name, answer in said if given.get(name) in {*ANSWERS} - {answer}]
    called = [CALLED] if label.verdict in ("bad", "unsure") else []
    return [*called, *differ, *([MISSES] if label.rubric_misses.strip() else [])]


__all__ = ["COMBINED", "Conflict", "Label", "Store", "complete", "findings_of", "load_labels"]
__all__ += ["save_label"]
