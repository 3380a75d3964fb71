"""Blind comparison of two transcripts: which side is which is drawn by key and never sent out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_skills.bundle import use_bundle

use_bundle()

from finetune_skills import labels  # noqa: E402
from finetune_skills.review.records import Row, Transcript, as_list, read_transcript  # noqa: E402
from finetune_skills.review.text import shown  # noqa: E402
from infrastructure import FinetuneError, iter_records, rng  # noqa: E402

SHAPE = 'a pair is two paths: ["data/a.json", "data/b.json"], or {"pair": [...]}'


@dataclass(frozen=True)
class Pair:
    """Two transcripts to compare; `left` is the one that the page shows on the left."""

    ids: tuple[str, str]
    left: str
    paths: tuple[Path, Path]  # left, right


def load_pairs(root: Path, file: Path, seed: int) -> list[Pair]:
    """The pairs of a JSON or JSONL file, sides drawn; FinetuneError names a mistake."""
    pairs = [made_pair(root, file, n, given, seed) for n, given in enumerate(rows_of(file), 1)]
    if not pairs:
        raise FinetuneError(f"{file}: no pairs in it; {SHAPE}")
    return pairs


def rows_of(file: Path) -> Iterator[Any]:
    """One pair after the other, however the file holds them."""
    if file.suffix == ".jsonl":
        yield from jsonl(file)
        return
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{file}: cannot be read as JSON: {error}") from None
    yield from as_list(data.get("pairs") if isinstance(data, Mapping) else data)


def jsonl(file: Path) -> Iterator[Any]:
    """Objects through our reader; a line may also be a bare list of two paths."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{file}: cannot be read: {error}") from None
    if lines and lines[0].lstrip().startswith("{"):
        yield from iter_records(file)
        return
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise FinetuneError(f"{file}:{number}: not JSON; {SHAPE}") from None


def made_pair(root: Path, file: Path, number: int, given: object, seed: int) -> Pair:
    """Both files inside the project and readable, sides drawn by the pair's key."""
    names = as_list(given.get("pair") if isinstance(given, Mapping) else given)
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise FinetuneError(f"{file}: pair {number}: {SHAPE}")
    paths = [(root / name).resolve() for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.is_relative_to(root.resolve()):
            raise FinetuneError(f"{file}: pair {number}: {name} is outside of this project")
    ids = [read_transcript(path).id for path in paths]
    if ids[0] == ids[1]:  # both arms of one persona: only their places tell them apart
        ids = [path.relative_to(root.resolve()).as_posix() for path in paths]
    swapped = rng(seed, sorted(ids), "side").random() < 0.5
    first = sorted(range(2), key=lambda side: ids[side])
    left, right = first[::-1] if swapped else first
    return Pair((ids[0], ids[1]), ids[left], (paths[left], paths[right]))


def pair_row(pair: Pair, reviewer: str, said: Mapping[str, Any]) -> Row:
    """A checked choice as it is kept; FinetuneError where it is none."""
    choice, notes = said.get("choice"), said.get("notes", "")
    if choice not in (*labels.CHOICES, None):
        raise FinetuneError(f"choice: {choice!r:.40} is not left, right or tie")
    if not isinstance(notes, str) or len(notes) > labels.LONGEST_TEXT:
        raise FinetuneError(f"notes: no text of at most {labels.LONGEST_TEXT:,} signs")
    head: Row = {"pair": list(pair.ids), "left": pair.left, "reviewer": reviewer}
    return head | {"choice": choice, "notes": notes}


def pair_page(pairs: list[Pair], number: int, store: labels.Store, reviewer: str) -> dict[str, Any]:
    """Two conversations side by side, without anything that names their arm."""
    store.refresh()
    pair = pairs[number - 1]
    row = store.newest.get((pair.ids, reviewer)) or {}
    done = [bool((store.newest.get((each.ids, reviewer)) or {}).get("choice")) for each in pairs]
    after = [n for n in [*range(number + 1, len(pairs) + 1), *range(1, number)] if not done[n - 1]]
    state = {"id": str(number), "revision": row.get("revision", 0), "label": choice_of(row)}
    return {
        "number": number,
        "of": len(pairs),
        "done": sum(done),
        "sides": [side_view(read_transcript(path)) for path in pair.paths],
        "previous": f"/ab/{number - 1}" if number > 1 else "",
        "next": f"/ab/{number + 1}" if number < len(pairs) else "",
        "todo": f"/ab/{after[0]}" if after else "",
        "state": json.dumps(state),
    }


def choice_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"choice": row.get("choice"), "notes": row.get("notes", "")}


def side_view(transcript: Transcript) -> list[dict[str, Any]]:
    """Only what was said: no id, no model, no length that a page would not show anyway."""
    return [
        {"n": n, "user": shown(exchange.user), "assistant": shown(exchange.assistant)}
        for n, exchange in enumerate(transcript.exchanges, 1)
    ]
