"""A child whose system calls are replaced: it dies at a chosen byte or at a chosen line."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import infrastructure
from faults.forks import KILLED, forked, piped
from infrastructure import (
    ReadReport,
    append_checkpoint,
    atomic_write,
    encode_line,
    iter_records,
    load_checkpoint,
    load_checkpoint_results,
)

TORN = {"id": "torn", "text": "a sentence, caf\u00e9 \u2028 " * 4, "numbers": [1, 2.5, None]}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_byte(count: int) -> None:
    """The next write brings `count` bytes to the disk, and the process is gone."""
    write = os.write

    def dying(fd: int, data: bytes) -> int:
        write(fd, data[:count])
        die()
        return 0

    os.write = dying  # type: ignore[assignment]


def die_at_line(number: int) -> None:
    """Die before the kernel's n-th line from here; exits with 0 when there are fewer."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != infrastructure.__file__:
            return None
        seen += event == "line"
        if seen == number:
            die()
        return trace

    sys.settrace(trace)


def every_byte() -> dict[str, int]:
    """Die after each byte of one append, go on with two more, and do the torn one once more."""
    figures = {"points": 0, "acknowledged": 0, "lost": 0, "duplicated": 0, "most_bad_lines": 0}
    for count in range(len(encode_line(TORN)) + 1):
        path, report = f"{count}.jsonl", ReadReport()
        append_checkpoint(path, {"id": "before"})
        ended = forked(lambda n=count, p=path: (die_after_byte(n), append_checkpoint(p, TORN)))
        assert ended == KILLED
        for name in ("after-1", "after-2"):
            append_checkpoint(path, {"id": name})
        if "torn" not in load_checkpoint_results(path, report):
            append_checkpoint(path, TORN)
        _count(figures, path, {"before", "torn", "after-1", "after-2"}, len(report.bad))
    return figures


def _count(figures: dict[str, int], path: str, wanted: set[str], bad: int) -> None:
    ids = [record["id"] for record in iter_records(path)]
    figures["points"] += 1
    figures["acknowledged"] += len(wanted)
    figures["lost"] += len(wanted - set(ids))
    figures["duplicated"] += len(ids) - len(set(ids))
    figures["most_bad_lines"] = max(figures["most_bad_lines"], bad)


def every_line(what: str) -> dict[str, int]:
    """Die before each line of the kernel that one write of a whole file, or one append, runs."""
    writes, whole = {"atomic_write": (_replace, _is_whole), "append": (_append, _is_sound)}[what]
    figures = {"points": 0, "broken": 0}
    path, ended = Path("file"), KILLED
    while ended == KILLED:
        path.unlink(missing_ok=True)
        writes(path, "old")
        figures["points"] += 1
        at = figures["points"]
        ended = forked(lambda n=at: (die_at_line(n), writes(path, "new")))
        figures["broken"] += not whole(path, ended == 0)
    assert ended == 0
    return figures


def _replace(path: Path, text: str) -> None:
    atomic_write(path, text * 30_000)


def _is_whole(path: Path, finished: bool) -> bool:
    return path.read_text() in ({"new" * 30_000} if finished else {"old" * 30_000, "new" * 30_000})


def _append(path: Path, text: str) -> None:
    append_checkpoint(path, {"id": text})


def _is_sound(path: Path, finished: bool) -> bool:
    append_checkpoint(path, {"id": "later"})
    found = load_checkpoint(path)
    return {"old", "later"} <= found <= {"old", "new", "later"} and ("new" in found or not finished)


def power_loss(times: int) -> dict[str, int]:
    """After each kill, drop all that was not synced; what was acknowledged must still be there."""
    figures = {"kills": times, "acknowledged": 0, "lost": 0, "dropped_bytes": 0}
    for time in range(times):
        path = Path(f"{time}.jsonl")
        said = piped(lambda pipe, p=path: _append_synced(p, pipe), kill_after=0.001 * (time % 5))
        sizes = [int(line[1:]) for line in said if line.startswith("=")]
        names = [line for line in said if not line.startswith("=")]
        synced, size = sizes[-1] if sizes else 0, path.stat().st_size if path.exists() else 0
        if path.exists():
            os.truncate(path, synced)
        figures["acknowledged"] += len(names)
        figures["lost"] += len(set(names) - load_checkpoint(path))
        figures["dropped_bytes"] += size - synced
    return figures


def _append_synced(path: Path, pipe: int) -> None:
    """Append for ever; say the size after each sync, and each id once it is acknowledged."""
    sync = os.fdatasync

    def telling(fd: int) -> None:
        size = os.fstat(fd).st_size
        sync(fd)
        os.write(pipe, f"={size}\n".encode())

    os.fdatasync = telling
    _say_ids(pipe, lambda number: append_checkpoint(path, {"id": f"{number}", "text": "x" * 500}))


def _say_ids(pipe: int, append: Callable[[int], None]) -> None:
    os.write(pipe, b"ready\n")
    for number in range(3000):
        append(number)
        os.write(pipe, b"%d\n" % number)
