"""SIGKILL at seeded moments: of a worker that appends checkpoints, and of whole runs."""

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pydantic  # noqa: F401  the children need it, and must not spend their life on importing
import tenacity  # noqa: F401

from faults.forks import KILLED, forked, piped
from infrastructure import (
    Journal,
    ReadReport,
    append_checkpoint,
    atomic_write,
    get_backend,
    iter_records,
    load_checkpoint,
    load_checkpoint_results,
    run_all,
)

CONVERSATIONS, EXCHANGES, CONCURRENCY = 20, 5, 8
KILLS_PER_FILE = 25

# Says at the moment of each call that it was made, and answers by what it was asked.
MODEL = """\
import asyncio, hashlib, os, pathlib

async def reply(messages, *, schema=None, scope=""):
    count = os.open(pathlib.Path(__file__).with_name("calls"), os.O_WRONLY | os.O_APPEND)
    os.write(count, scope.encode() + b"\\n")
    os.close(count)
    said = hashlib.sha256(str(messages).encode()).hexdigest()
    await asyncio.sleep(int(said[:2], 16) / 100_000)
    return f"answer {said}"
"""


def appends(kills: int, seed: int) -> dict[str, int]:
    """Kill a worker that appends rows of 0.2 to 20 kB and acknowledges each over a pipe."""
    chance = random.Random(seed)
    figures = {"kills": kills, "acknowledged": 0, "lost": 0, "duplicated": 0, "torn": 0}
    for start in range(0, kills, KILLS_PER_FILE):
        path, said = Path(f"{start}.jsonl"), set[str]()
        for _ in range(min(KILLS_PER_FILE, kills - start)):
            delay = chance.uniform(0.0005, 0.0085)
            said |= set(piped(lambda pipe, p=path: _append_rows(p, pipe), delay))
        report = ReadReport()
        ids = [record["id"] for record in iter_records(path, report)]
        figures["acknowledged"] += len(said)
        figures["lost"] += len(said - set(ids))
        figures["duplicated"] += len(ids) - len(set(ids))
        figures["torn"] += len(report.bad)
    return figures


def _append_rows(path: Path, pipe: int) -> None:
    done = load_checkpoint(path)
    os.write(pipe, b"ready\n")
    for number in range(100_000):
        if f"row-{number}" not in done:
            text = "x" * random.Random(number).randint(200, 20_000)
            append_checkpoint(path, {"id": f"row-{number}", "text": text})
            os.write(pipe, b"row-%d\n" % number)


def runs(kills: int, seed: int) -> dict[str, Any]:
    """Kill runs of twenty conversations, and resume each until it is through."""
    chance = random.Random(seed)
    figures = Counter(dict.fromkeys(("kills", "runs", "lost", "duplicated", "repaid"), 0))
    figures |= Counter(dict.fromkeys(("in_flight", "most_in_flight", "different"), 0))
    wanted = _never_killed()
    while figures["kills"] < kills:
        place = new_place(f"run-{figures['runs']}")
        _until_done(place, chance, kills, figures)
        sent, rows = calls(place), [row["id"] for row in iter_records(place / "talks.jsonl")]
        figures["runs"] += 1
        figures["lost"] += CONVERSATIONS - len(set(rows))
        figures["duplicated"] += len(rows) - len(set(rows))
        figures["repaid"] += len(sent) - len(set(sent))
        figures["different"] += (place / "final.jsonl").read_bytes() != wanted
    return dict(figures) | {"concurrency": CONCURRENCY}


def _until_done(place: Path, chance: random.Random, kills: int, figures: Counter[str]) -> None:
    """Kill and resume; counts what was in flight at each kill: sent, and no answer kept."""
    ended = KILLED
    while ended != 0:
        before = len(calls(place)) - answered(place)
        more = figures["kills"] < kills
        ended = forked(lambda: whole_run(place), chance.uniform(0.001, 0.03) if more else None)
        assert ended in (0, KILLED)
        if ended == KILLED:
            in_flight = len(calls(place)) - answered(place) - before
            figures["kills"] += 1
            figures["in_flight"] += in_flight
            figures["most_in_flight"] = max(figures["most_in_flight"], in_flight)


def _never_killed() -> bytes:
    place = new_place("never-killed")
    assert forked(lambda: whole_run(place)) == 0
    assert len(calls(place)) == CONVERSATIONS * EXCHANGES
    return (place / "final.jsonl").read_bytes()


def new_place(name: str) -> Path:
    place = Path(name).resolve()
    place.mkdir()
    (place / "model.py").write_text(MODEL)
    (place / "calls").touch()
    return place


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def answered(place: Path) -> int:
    """Whole result lines in the journal, read without the kernel."""
    path = place / "journal.jsonl"
    return sum(map(is_result, path.read_bytes().splitlines())) if path.exists() else 0


def is_result(line: bytes) -> bool:
    try:
        return "record" in json.loads(line)
    except ValueError:
        return False  # torn


def whole_run(place: Path, disk: Path | None = None) -> None:
    """All conversations that are not done yet, then the final file; exits with the run's code."""
    disk = disk or place
    with Journal(disk / "journal.jsonl") as journal:
        code = asyncio.run(_talk_all(place, disk, journal))
    if code:
        raise SystemExit(code)
    rows = load_checkpoint_results(disk / "talks.jsonl")
    final = "".join(f"{json.dumps(rows[name])}\n" for name in sorted(rows))
    atomic_write(place / "final.jsonl", final)


async def _talk_all(place: Path, disk: Path, journal: Journal) -> int:
    model = get_backend("python:model:reply", root=place, journal=journal)

    async def talk(name: str) -> None:
        messages: list[dict[str, str]] = []
        for turn in range(EXCHANGES):
            heard = messages[-1]["content"] if messages else "nothing yet"
            messages.append({"role": "user", "content": f"{name} heard {heard}"})
            answer = await model.chat(messages, scope=f"run/{name}/t{turn:02}.assistant")
            messages.append({"role": "assistant", "content": answer.content})
        append_checkpoint(disk / "talks.jsonl", {"id": name, "messages": messages})

    done = load_checkpoint(disk / "talks.jsonl")
    names = [f"talk-{n:02}" for n in range(CONVERSATIONS) if f"talk-{n:02}" not in done]
    report = await run_all(names, talk, concurrency=CONCURRENCY, progress=False)
    return report.exit_code
