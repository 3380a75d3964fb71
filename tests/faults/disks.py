"""Disks that are full: a tmpfs where one may be mounted, and the size limit of a process."""

import resource
import subprocess
from pathlib import Path
from typing import Any

from faults.forks import forked
from faults.kills import CONVERSATIONS, EXCHANGES, answered, calls, new_place, whole_run
from infrastructure import Appender, DiskStop, encode_line, load_checkpoint


def small_disk(kilobytes: int) -> dict[str, Any]:
    """A run on a disk that fills up, and again once there is room."""
    place, disk = new_place("place"), Path("disk").resolve()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        return {"skipped": f"no tmpfs can be mounted here: {tried.stderr.strip()}"}
    try:
        return _fill_and_free(place, disk, kilobytes)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill_and_free(place: Path, disk: Path, kilobytes: int) -> dict[str, Any]:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(2_097_152 - 1024 * kilobytes))
    figures: dict[str, Any] = {"exit_full": forked(lambda: whole_run(place, disk))}
    journal = (disk / "journal.jsonl").read_bytes()
    figures["whole_lines"] = journal.endswith(b"\n") and not (place / "final.jsonl").exists()
    figures["sent_when_full"] = len(calls(place))
    figures["without_answer"] = len(calls(place)) - answered(disk)
    ballast.unlink()
    figures["exit_freed"] = forked(lambda: whole_run(place, disk))
    figures["repaid"] = len(calls(place)) - CONVERSATIONS * EXCHANGES
    return figures | {"done": len(load_checkpoint(disk / "talks.jsonl"))}


def size_limit() -> dict[str, Any]:
    """A real short write: the system lets a process write only so far into a file."""
    path, line = Path("file.jsonl"), encode_line({"id": "one"})
    with Appender(path) as file:
        file.append({"id": "one"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 5, resource.RLIM_INFINITY))
        stopped = _stops(file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        clean = path.read_bytes() == line
        file.append({"id": "two"})
    return {"stopped": stopped, "clean": clean, "done": sorted(load_checkpoint(path))}


def _stops(file: Appender) -> bool:
    try:
        file.append({"id": "two"})
    except DiskStop:
        return True
    return False
