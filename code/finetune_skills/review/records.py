"""Transcripts, assessments and batches of a project, as they are on disk. No web framework here.

Everything is read once and again only when a file's size or time has changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_skills.bundle import use_bundle

use_bundle()

from infrastructure import (  # noqa: E402 - the bundle's, never a project's
    FinetuneError,
    ReadReport,
    Rubric,
    canonical_hash,
    id_of,
    load_checkpoint_results,
    load_rubric,
    pair_of,
)
from judging import words_hash  # noqa: E402

RAW, REPAIRED = "data/raw/transcripts", "data/repaired"
ASSESSMENTS, BATCHES, RUBRIC = "data/assessments", "data/batches", "config/rubric.yaml"
COMBINED = "combined"
SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,120}")
SEEN = "verdict_hash"  # added to each row in memory, so that it is computed once
SHARD = re.compile(r"\.\d+-of-\d+$")
LARGEST = 50_000_000  # bytes of one transcript; a larger file is no conversation

Row = dict[str, Any]
Stamp = tuple[int, int, int]


# ── transcripts ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Exchange:
    """One message of the person, the reply, and what was drawn for them."""

    user: str
    assistant: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Transcript:
    """One conversation as its file has it."""

    id: str
    exchanges: tuple[Exchange, ...]
    hash: str
    persona: Mapping[str, Any]
    data: Mapping[str, Any]

    def said(self, key: str) -> Mapping[str, Any]:
        return as_mapping(self.data.get(key))


@dataclass(frozen=True)
class Entry:
    """What the queue knows of a transcript without its text."""

    id: str
    path: Path
    hash: str
    turns: int
    name: str
    style: str
    batch: str
    repaired: bool


def as_mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def as_text(value: object) -> str:
    """Text as it is, nothing for nothing, and anything else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def transcript_hash(exchanges: list[Any]) -> str:
    """The identity of what was said, as the judges know it."""
    return words_hash(map(pair_of, exchanges))


def read_transcript(path: Path) -> Transcript:
    """A transcript file of ours or an older one; FinetuneError says what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST:,} bytes")
        data = json.loads(path.read_bytes())
        exchanges = data.get("exchanges", data.get("conversations"))
        pairs = [pair_of(exchange) for exchange in exchanges]
        hashed, item = transcript_hash(exchanges), id_of(data) or path.stem
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FinetuneError(f"{path}: not a transcript: {error}") from None
    if not SAFE_ID.fullmatch(item):
        said = f"{path}: the id {item[:40]!r} is not letters, digits and . _ - (at most 120)"
        raise FinetuneError(f"{said}. Import it again with scripts/import_transcripts.py.")
    metas = (as_mapping(e.get("meta")) if isinstance(e, dict) else {} for e in exchanges)
    made = (Exchange(as_text(u), as_text(a), m) for (u, a), m in zip(pairs, metas, strict=True))
    return Transcript(item, tuple(made), hashed, as_mapping(data.get("persona")), data)


def entry_of(path: Path, repaired: bool) -> Entry:
    transcript = read_transcript(path)
    persona, batch = transcript.persona, transcript.said("provenance").get("batch")
    name, style = as_text(persona.get("name")), as_text(persona.get("communication_style"))
    kept = (len(transcript.exchanges), name, style, as_text(batch), repaired)
    return Entry(transcript.id, path, transcript.hash, *kept)


def stamp_of(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def files_under(folder: Path, ending: str) -> Iterator[tuple[Path, Stamp]]:
    """Files of this ending at any depth, sorted, each with its stamp; links are not followed."""
    try:
        found = sorted(os.scandir(folder), key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in found:
        if item.is_dir(follow_symlinks=False):
            yield from files_under(Path(item.path), ending)
        elif item.name.endswith(ending) and item.is_file(follow_symlinks=False):
            yield Path(item.path), stamp_of(item.stat(follow_symlinks=False))


@dataclass
class Transcripts:
    """Every transcript of a project by id: the repaired one where there is one."""

    root: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    originals: dict[str, Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _known: dict[Path, tuple[Stamp, Entry | str]] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Look at every file's stamp, read what is new or changed; whether there was any."""
        known, self._known, self.problems = self._known, {}, []
        raw = self._by_id(RAW, known)
        repaired = self._by_id(REPAIRED, known)
        self.entries = raw | repaired
        self.originals = {name: entry for name, entry in raw.items() if name in repaired}
        return known != self._known

    def changed(self, entry: Entry) -> bool:
        """Whether the file of this entry is no longer as it was read."""
        try:
            return stamp_of(entry.path.lstat()) != self._known[entry.path][0]
        except OSError:
            return True

    def _by_id(self, folder: str, known: dict[Path, tuple[Stamp, Entry | str]]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for path, stamp in files_under(self.root / folder, ".json"):
            old = known.get(path)
            made = old[1] if old and old[0] == stamp else read_entry(path, folder == REPAIRED)
            self._known[path] = stamp, made
            if isinstance(made, str):
                self.problems.append(made.replace(f"{self.root}/", "", 1))
            elif made.id in found:
                shown, first = (p.relative_to(self.root) for p in (path, found[made.id].path))
                self.problems.append(f"{shown}: the id {made.id} is also that of {first}; left out")
            else:
                found[made.id] = made
        return found


def read_entry(path: Path, repaired: bool) -> Entry | str:
    """The entry of a file, or what is wrong with the file."""
    try:
        return entry_of(path, repaired)
    except FinetuneError as error:
        return str(error)


# ── assessments ───────────────────────────────────────────────────────────────────────────────────


def verdict_hash(row: Mapping[str, Any]) -> str:
    """What a judge said, for a label that was made while looking at it."""
    return canonical_hash([row.get("answers") or {}, row.get("quotes") or {}])


@dataclass(frozen=True)
class JudgeFile:
    """One file of verdicts: whose it is, and the row of each transcript."""

    stamp: Stamp
    name: str
    rows: dict[str, Row]
    problems: list[str]


def read_judge(path: Path, stamp: Stamp) -> JudgeFile:
    report = ReadReport()
    rows = load_checkpoint_results(path, report)
    hashed = {item: row | {SEEN: verdict_hash(row)} for item, row in rows.items()}
    bad = [f"{ASSESSMENTS}/{path.name}:{number}: skipped: {why}" for number, why in report.bad]
    return JudgeFile(stamp, SHARD.sub("", path.stem), hashed, bad)


@dataclass
class Assessments:
    """All judges' rows and the combined ones, by transcript; rows of other inputs stay apart."""

    root: Path
    _files: dict[Path, JudgeFile] = field(default_factory=dict)

    def refresh(self) -> bool:
        """Read the files that came or changed; whether there were any, or one went."""
        if not self.changed():
            return False
        known, there = self._files, files_under(self.root / ASSESSMENTS, ".jsonl")
        self._files = {
            path: known[path] if path in known and known[path].stamp == stamp
            else read_judge(path, stamp)
            for path, stamp in there
        }  # fmt: skip
        return True

    @property
    def problems(self) -> list[str]:
        return [problem for file in self._files.values() for problem in file.problems]

    def of(self, item: str) -> Iterator[tuple[str, Row]]:
        """Each judge's rows about one transcript, `combined` among them."""
        for file in self._files.values():
            if row := file.rows.get(item):
                judge = "" if file.name == COMBINED else row.get("judge")
                yield judge if isinstance(judge, str) and judge else file.name, row

    def current(self, entry: Entry, rubric: str) -> dict[str, Row]:
        """The rows that are about this very text and this very rubric; done ones first."""
        found: dict[str, Row] = {}
        for judge, row in self.of(entry.id):
            fits = row.get("transcript_hash") == entry.hash and row.get("rubric_hash") == rubric
            if fits and (judge not in found or found[judge].get("pass") is None):
                found[judge] = row
        return found

    def changed(self) -> bool:
        """Whether a file came, went or grew since the last look."""
        there = dict(files_under(self.root / ASSESSMENTS, ".jsonl"))
        return there != {path: file.stamp for path, file in self._files.items()}


# ── batches, rubric, all together ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Batch:
    id: str
    kind: str
    ids: tuple[str, ...]


def read_batches(root: Path) -> dict[str, Batch]:
    """The frozen batches, by id; what can't be read is left out."""
    found = {}
    for path, _ in files_under(root / BATCHES, ".json"):
        try:
            data = as_mapping(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
        ids = tuple(item for item in as_list(data.get("ids")) if isinstance(item, str))
        name = as_text(data.get("id")) or path.stem
        found[name] = Batch(name, as_text(data.get("kind")), ids)
    return found


@dataclass
class Records:
    """One project's transcripts, verdicts, batches and rubric, kept up to date by stamps."""

    root: Path
    transcripts: Transcripts = field(init=False)
    assessments: Assessments = field(init=False)
    batches: dict[str, Batch] = field(default_factory=dict)
    _rubric: tuple[Stamp, Rubric] | None = None

    def __post_init__(self) -> None:
        self.transcripts, self.assessments = Transcripts(self.root), Assessments(self.root)

    def refresh(self) -> bool:
        """Look at everything again; whether anything has changed."""
        batches = read_batches(self.root)
        changed = [self.transcripts.refresh(), self.assessments.refresh(), self.read_rubric()]
        changed.append(batches != self.batches)
        self.batches = batches
        return any(changed)

    @property
    def rubric(self) -> Rubric:
        """The rubric as it was when somebody last looked."""
        if self._rubric is None:
            self.read_rubric()
        assert self._rubric is not None  # noqa: S101 - it was just read
        return self._rubric[1]

    def read_rubric(self) -> bool:
        """Read the rubric if its file has changed; FinetuneError names every mistake in it."""
        path = self.root / RUBRIC
        stamp = stamp_of(path.stat()) if path.exists() else (0, 0, 0)
        if self._rubric is not None and self._rubric[0] == stamp:
            return False
        self._rubric = stamp, load_rubric(path, draft=True)
        return True

    @property
    def problems(self) -> list[str]:
        return self.transcripts.problems + self.assessments.problems

    def current(self, entry: Entry) -> dict[str, Row]:
        return self.assessments.current(entry, self.rubric.hash)
