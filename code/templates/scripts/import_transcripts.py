"""Bring existing conversations in: they are then assessed, curated and learned like generated ones.

    python scripts/import_transcripts.py PATH...           # files and folders, at any depth
    python scripts/import_transcripts.py chats.csv --name beta-test --dry-run

Reads  .json and .jsonl (.ndjson): our transcripts, ShareGPT `conversations: [{from, value}]`, OpenAI
       `messages: [{role, content}]`; one conversation, a list of them, or one on each line.
       .csv (.tsv), one exchange a row: user, assistant, and conversation_id for more than one
       exchange (also: prompt/response, question/answer); or one message a row: conversation_id,
       role, content (also: from/value, speaker/text, sender/message). UTF-8, or UTF-16 with a BOM.
Kept   system messages in provenance, a first word of the assistant in meta.opening. Joined with a
       blank line: turns of one side in a row, parts of one message. Dropped: a last user turn
       without a reply, fields that we have no place for. All of it is counted in the result.
Refused, with file and place: tools and functions, images and other parts that are no text, an
       unknown role, an empty message, no exchange at all, what cannot be read. Nothing is guessed.
Ids    the record's own where it is valid and free, else file, place and hash of the content. The
       same conversation is taken once, also by a later run. Other content under an id that came
       from the same file is refused. Run it again at any time: it goes on where it stopped.

Transcripts stand in data/raw/transcripts/<name>/, and data/batches/<name>.json freezes the batch:
what comes later needs a new name. No gate is needed. Where no pilot was generated, and 25 or more are
there, five are drawn for the gate `pilot` and twenty others for `confirm`, and frozen as well.
Exit 0: all taken. 1: some refused. 2: nothing to read, or a name that is taken. 3: disk.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import figures
import formats
import infrastructure
import stage
from evidence import wilson
from formats import HALF, LINES, TABLES, WHOLE, Item, Refused, Talk, content_hash, shown, talk_of
from infrastructure import FinetuneError, canonical_hash, iter_records
from settings import SettingsError

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("auto", "ours", "sharegpt", "openai", "csv")
VALID_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")
TAKEN = re.compile(r"(pilot|confirm|trial|scale)-", re.IGNORECASE)  # batches of generate.py

DRAWN = {"confirm": 20, "pilot": 5}  # what people read of an import; the one that is there last

Transcript = dict[str, Any]


@dataclass
class Import:
    """What is there already, what this run takes, and what it refuses."""

    name: str
    dry: bool
    contents: dict[str, str] = field(default_factory=dict)  # hash of the words -> id
    ids: dict[str, str] = field(default_factory=dict)  # id -> name of the file it came from
    now: set[str] = field(default_factory=set)  # ids and contents met in this run
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)  # batch for a gate -> its size


def main() -> int:
    options = _options()
    files = dict(sorted(set(_files(options.paths)), reverse=True))  # each once
    if not files:
        kinds = " ".join(WHOLE + LINES + TABLES)
        raise FinetuneError(
            f"{shown(str(options.paths[0]))}: no file to import there. Read: {kinds}"
        )
    with contextlib.nullcontext() if options.dry_run else _alone():
        run = Import(_name(options.name), options.dry_run)
        _look_around(run)
        for path, file in sorted(files.items()):
            _import_file(run, path, file, options.format)
        if not run.dry:
            finish(run.name)
            run.drawn = draw()
            _write_stats()
    _show(run, len(files), options.json)
    return 1 if run.refused else 0


def _import_file(run: Import, path: Path, file: str, wanted: str) -> None:
    """Every conversation of one file; what is wrong with it costs no other file."""
    try:
        for item in formats.read(path, file, wanted):
            run.counts["conversations"] += 1
            try:
                _take(run, item)
            except (Refused, RecursionError) as no:
                said = "nested too deep" if isinstance(no, RecursionError) else no
                run.refused.append(f"{item}: {said}")
    except Refused as no:
        run.refused.append(f"{file}: {no}")


def _take(run: Import, item: Item) -> None:
    if isinstance(item.value, Refused):
        raise item.value
    talk = talk_of(item.value, item.format)
    record = item.value if isinstance(item.value, dict) else {}
    content, own = content_hash(talk.exchanges), infrastructure.id_of(record)
    if content in run.contents:
        twice = content in run.now
        run.counts["twice in these files" if twice else "already here"] += 1
        run.now |= {content} | ({str(own).casefold()} if own == run.contents[content] else set())
        return
    name = _id_for(run, item, own, content, talk.notes)
    if (ROOT / f"data/batches/{run.name}.json").exists():
        said = f"data/batches/{run.name}.json: is frozen, and {item} is not in it"
        raise FinetuneError(f"{said}. Import what is new under another --name.")
    text = json.dumps(_transcript(run, item, talk, name), ensure_ascii=False, indent=1)
    if HALF.search(text):
        raise Refused("holds half a character (a lone surrogate)")
    if not run.dry:
        infrastructure.atomic_write(_folder(run.name) / f"{name}.json", f"{text}\n", 0o644)
    run.contents[content], run.ids[name.casefold()] = name, item.path.name
    run.now |= {content, name.casefold()}
    run.counts["imported"] += 1
    run.notes += talk.notes


def _id_for(run: Import, item: Item, own: str | None, content: str, notes: Counter[str]) -> str:
    """The record's own id where a file can be called so and no other conversation is."""
    if own and VALID_ID.fullmatch(own):
        owner = run.ids.get(own.casefold())
        if owner is None:
            return own
        if owner == item.path.name and own.casefold() not in run.now:
            said = f"id {own} was imported from {shown(owner)} before, with other words"
            raise Refused(f"{said}. Give the new version an id of its own")
    notes["ids made: the own one is taken or not valid" if own else "ids made: none given"] += 1
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", item.path.stem).strip("-")[:80]
    return f"{stem or 'file'}-{item.number}-{content[:8]}"


def _transcript(run: Import, item: Item, talk: Talk, name: str) -> Transcript:
    ours = item.value if talk.format == "ours" and isinstance(item.value, dict) else {}
    was = ours.get("provenance")
    marks = {mark: isinstance(was, dict) and bool(was.get(mark)) for mark in ("simulated", "trial")}
    about: dict[str, Any] = {
        "batch": run.name,
        "file": item.file,
        "sha256": infrastructure.file_hash(item.path),
    }
    about = about | {"position": item.place or "whole file", "format": talk.format} | marks
    about |= {"notes": dict(sorted(talk.notes.items())), "code": _code()}
    about |= ({"system": talk.system} if talk.system else {}) | ({"before": was} if was else {})
    person, target, ended = (ours.get(key) for key in ("persona", "target_exchanges", "ended"))
    whole = isinstance(target, int) and not isinstance(target, bool) and target > 0
    head: Transcript = {"schema": infrastructure.SCHEMA, "id": name}
    head |= {"persona": person if isinstance(person, dict) else None, "exchanges": talk.exchanges}
    head |= {"target_exchanges": target if whole else len(talk.exchanges)}
    head |= {"ended": ended if ended in ("target", "user", "error") else "target"}
    head |= {"source": "imported", "provenance": about}
    kept = {key: ours[key] for key in ours if key not in (*formats.HOLDERS, "transcript_id")}
    return head | {key: value for key, value in kept.items() if key not in head}


def _code() -> str:
    return infrastructure.file_hash(__file__)[:16]


# ── what is there, and the batch ──────────────────────────────────────────────────────────────────


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every file to read, with its name as shown: from the folder that was named."""
    for given in paths:
        top = given.resolve()
        if top.is_file():
            yield top, shown(top.name)
        elif not top.is_dir():
            raise FinetuneError(f"{shown(str(given))}: there is no such file or folder")
        for path in sorted(top.rglob("*")) if top.is_dir() else ():
            inner = path.relative_to(top.parent)
            hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
            if path.suffix.lower() in WHOLE + LINES + TABLES and path.is_file() and not hidden:
                yield path, shown(str(inner))


def _look_around(run: Import) -> None:
    """The conversations that the project has, by id and by words."""
    for path in sorted((ROOT / "data/raw").rglob("*.json")):
        run.ids[path.stem.casefold()] = ""
        try:
            found = json.loads(path.read_bytes())
            exchanges = found.get("exchanges", found.get("conversations"))
            content, about = content_hash(exchanges), found.get("provenance")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            print(f"{shown(str(path))}: skipped: {type(error).__name__}", file=sys.stderr)
            continue
        run.contents[content] = path.stem
        run.ids[path.stem.casefold()] = Path(str((about or {}).get("file", ""))).name


def finish(name: str) -> None:
    """A line in candidates for each transcript of the batch, then the frozen batch itself."""
    frozen = ROOT / f"data/batches/{name}.json"
    found = [json.loads(path.read_bytes()) for path in sorted(_folder(name).glob("*.json"))
             if not frozen.exists()]  # fmt: skip
    mine = [each for each in found if each["provenance"]["batch"] == name]
    if not mine:
        return
    hashes = {each["id"]: canonical_hash(each) for each in mine}
    files = sorted((ROOT / "data").glob("candidates*.jsonl"))
    told = {
        row.get("id") for path in files for row in iter_records(path) if row.get("batch") == name
    }
    head = {"schema": infrastructure.SCHEMA}
    event = {"event": "imported", "fate": "accepted", "batch": name}
    rows = [
        head | {"id": i} | event | {"transcript_hash": hashes[i]} for i in hashes if i not in told
    ]
    with infrastructure.Appender(ROOT / "data/candidates.jsonl") as candidates:
        if rows:
            candidates.append_bytes(b"".join(map(infrastructure.encode_line, rows)))
    trial = any(each["provenance"]["trial"] for each in mine)
    batch = head | {"id": name, "kind": "import", "trial": trial, "ids": list(hashes), "inputs": {}}
    batch |= {"transcripts": hashes}
    infrastructure.atomic_write(frozen, json.dumps(batch, indent=1) + "\n", 0o644)


def draw() -> dict[str, int]:
    """Where nothing was generated: what a person learns from and what they decide on, drawn by key
    from all that was imported, and frozen. Gives the new batches with their sizes."""
    folder = ROOT / "data/batches"
    found = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    mine = {item: each for each in found if each["kind"] == "import" for item in each["ids"]}
    ids = sorted(mine, key=lambda item: (infrastructure.rng("imports", item).random(), item))
    if any(each["kind"] == "pilot" for each in found) or len(ids) < sum(DRAWN.values()):
        return {}
    for kind, count in DRAWN.items():
        own, ids = ids[:count], ids[count:]
        batch = {"schema": infrastructure.SCHEMA, "id": f"{kind}-000", "kind": kind}
        batch |= {"drawn_from": sorted({mine[item]["id"] for item in own}), "inputs": {}}
        batch |= {"trial": any(mine[item]["trial"] for item in own), "ids": sorted(own)}
        path = folder / f"{batch['id']}.json"
        infrastructure.atomic_write(path, json.dumps(batch, indent=1) + "\n", 0o644)
    return {f"{kind}-000": count for kind, count in DRAWN.items()}


def _folder(name: str) -> Path:
    return ROOT / "data/raw/transcripts" / name


def _name(given: str | None) -> str:
    """The batch to fill: the one that was named, else the first import that is not frozen."""
    numbers = (f"import-{n:03}" for n in itertools.count(1))
    name = given or next(n for n in numbers if not (ROOT / f"data/batches/{n}.json").exists())
    if not VALID_ID.fullmatch(name) or TAKEN.match(name):
        said = f"--name {shown(name)[:40]}: letters, digits and . _ - only, and no name of a batch"
        raise FinetuneError(f"{said} that generate.py makes (pilot-, confirm-, trial-, scale-).")
    return name


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One import at a time: a second one waits, then finds what the first has taken."""
    (ROOT / "data").mkdir(exist_ok=True)
    with open(os.open(ROOT / "data/.import.lock", os.O_RDWR | os.O_CREAT, 0o600), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ── what the person sees ──────────────────────────────────────────────────────────────────────────


def _write_stats() -> None:
    """The figures of the project; a config that is not ready costs them, and not the import."""
    try:
        figures.write_generation_stats(ROOT, wilson)
    except (FinetuneError, SettingsError) as error:
        print(f"design/generation_stats.md: not written:\n{error}", file=sys.stderr)


def _show(run: Import, files: int, as_json: bool) -> None:
    batch = run.name if run.counts["imported"] else "nothing new"
    told: dict[str, Any] = {"batch": batch, "dry run": run.dry, "files": files}
    names = ("conversations", "imported", "already here", "twice in these files")
    told |= {name: run.counts[name] for name in names} | {"refused": len(run.refused)}
    rules = dict(sorted(run.notes.items()))
    if as_json:
        told |= {"rules": rules, "refusals": run.refused, "drawn": run.drawn}
        print(json.dumps(told, indent=1))
        return
    print("\n".join(f"{name:<40}{value}" for name, value in told.items()))
    print("".join(f"  {name:<38}{value}\n" for name, value in rules.items()), end="")
    print("".join(f"refused: {line}\n" for line in run.refused), end="")
    for name, count in sorted(run.drawn.items(), reverse=True):
        print(f"{f'drawn for the gate {name[:-4]}':<40}{name}, {count} of them")
    batch = "pilot-000" if run.drawn else run.name
    if run.counts["imported"] and not run.dry:
        print(f"{'next':<40}python scripts/assess.py, then finetune review --batch {batch}")


def _options() -> argparse.Namespace:
    parser = stage.flags(__doc__, "dry_run", "json")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="(default: by its shape)")
    parser.add_argument("--name", metavar="NAME", help="of the batch (default: import-001, ...)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
