"""Bring our changes into a project's copied files: a three-way merge per file, never a loss.

For each file there are three texts: the base (what we copied, in `.finetune/base/`), yours, and the
bundle's. `plan_upgrade` says what would happen; `apply_upgrade` does it. Before the first file is
touched, `.finetune/upgrade.json` says what each will become, and it goes when the manifest is
written: so after a crash at any moment the next run knows which files already hold our changes.
"""

import contextlib
import fcntl
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from finetune_skills.merge import marker_lines, merge, plain, same_text
from finetune_skills.scaffold import (
    BASE,
    MANIFEST,
    RECORD,
    as_json,
    bundle_files,
    bundle_version,
    digest,
    load_record,
    mode_of,
    obstacle,
    read,
    read_if_there,
    remove,
    render,
    unfilled,
)
from infrastructure import SCHEMA, DiskStop, FinetuneError, atomic_write

PENDING = f"{RECORD}/upgrade.json"

# What becomes of a file, in words, and whether a person has to do something about it.
KINDS: dict[str, tuple[str, bool]] = {
    "added": ("new, added", False),
    "updated": ("you had not changed it: updated", False),
    "merged": ("your changes and ours are both in it", False),
    "adopted": ("is what the bundle has now", False),
    "unchanged": ("nothing new in the bundle", False),
    "deleted": ("you deleted it: it stays deleted", False),
    "retired": ("no longer part of the bundle: kept", False),
    "occupied": ("new in the bundle, but you have a file of this name: kept as it is", False),
    "blocked": ("left alone", False),
    "clash": ("both changed the same lines: choose between the markers", True),
    "markers": ("still has conflict markers: skipped until you have resolved them", True),
    "beside": ("is not text, and both changed it: yours is kept", True),
    "damaged": ("you changed it, and the text that we copied is gone or changed: skipped", True),
    "moved on": ("was written to during the upgrade: skipped, run upgrade again", True),
}


@dataclass(frozen=True)
class Action:
    """What happens to one file; without `base` it is only reported."""

    path: str
    kind: str
    note: str = ""
    clashes: int = 0
    target: str = ""  # the file that is written: `path`, or one beside it
    before: bytes | None = field(default=None, repr=False)  # what stands at the target now
    data: bytes | None = field(default=None, repr=False)  # what will stand there
    base: bytes | None = field(default=None, repr=False)  # the bundle's text, once it is in
    mode: int = 0o644

    @property
    def needs_person(self) -> bool:
        return KINDS[self.kind][1]

    def __str__(self) -> str:
        return f"{self.path}: {KINDS[self.kind][0]}{self.note and f' ({self.note})'}"

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "kind": self.kind, "says": str(self), "clashes": self.clashes}


def plan_upgrade(root: Path, bundle: Path) -> list[Action]:
    """What an upgrade would do to each file; reads, and writes nothing."""
    project = _load(root)
    sources = bundle_files(bundle, project.example)
    values = project.values
    actions = []
    for path in sorted(sources.keys() | project.hashes.keys()):
        source = sources.get(path)
        if source is None:
            actions += _retired(project, path)
        else:
            action = _plan(project, path, render(path, read(source), values))
            actions.append(replace(action, mode=_mode(root / action.target, source)))
    return actions


def apply_upgrade(root: Path, bundle: Path) -> list[Action]:
    """Upgrade every file that can be; atomic per file, and a rerun goes on after any crash."""
    _load(root)  # no project, no lock
    with alone(root / RECORD):
        _settle(_load(root))
        actions = plan_upgrade(root, bundle)
        writes = [action for action in actions if action.base is not None]
        if writes:
            atomic_write(root / PENDING, as_json(_pending(root, writes)), 0o644)
        done = {action.path: action for action in _write_all(root, writes)}
        project = _load(root)
        _settle(project, bundle_version(bundle, project.example))
        return [done.get(action.path, action) for action in actions]


def exit_code(actions: Sequence[Action]) -> int:
    """1 when a file needs a person, else 0."""
    return int(any(action.needs_person for action in actions))


# ── planning ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Project:
    """A project's record, with what an interrupted upgrade had finished counted in."""

    root: Path
    manifest: dict[str, Any]
    landed: dict[str, bytes]  # by path: the base, where the file already holds its changes

    @property
    def values(self) -> dict[str, object]:
        """What the placeholders were filled with."""
        found = self.manifest.get("values")
        return found if isinstance(found, dict) else {}

    @property
    def example(self) -> str:
        """The example that the project was made from; empty for none."""
        return str(self.manifest.get("example") or "")

    @property
    def hashes(self) -> dict[str, str]:
        known = {path: entry["sha256"] for path, entry in self.manifest["files"].items()}
        return known | {path: digest(base) for path, base in self.landed.items()}

    def base(self, path: str) -> bytes | None:
        """The text that was copied, with LF; None when it is gone, or is not that text any more."""
        if path in self.landed:
            return self.landed[path]
        data = _base_on_disk(self.root, path)
        good = data is not None and digest(data) == self.hashes[path]
        return plain(data) if data is not None and good else None


def _load(root: Path) -> Project:
    if obstacle(root, MANIFEST) or not os.path.isfile(root / MANIFEST):
        raise FinetuneError(
            f"{root}: no {MANIFEST} here, so there is nothing to upgrade. "
            "Was `finetune init` interrupted? Then run it again."
        )
    return Project(root, load_record(root / MANIFEST), _landed(root))


def _plan(project: Project, path: str, new: bytes) -> Action:
    """The one thing to do about a file that the bundle has."""
    if why := obstacle(project.root, path):
        return Action(path, "blocked", why, target=path)
    yours = read_if_there(project.root / path)
    change = Action(path, "adopted", target=path, before=yours, data=yours, base=new)
    if path not in project.hashes:
        return _plan_new(change, yours, new)
    if yours is None:
        return Action(path, "deleted", target=path)
    base = project.base(path)
    if base is None and digest(yours) == project.hashes[path]:
        base = plain(yours)  # untouched, so it is the text that we copied
    if stuck := _stuck(path, base, yours):
        return stuck
    if base is not None and same_text(base, new):
        return Action(path, "unchanged", target=path)
    if same_text(yours, new):
        return change
    return _plan_merge(project.root, change, base, yours, new)


def _plan_new(change: Action, yours: bytes | None, new: bytes) -> Action:
    note = _to_fill(change.path, new)
    if yours is None:
        return replace(change, kind="added", data=new, note=note)
    if same_text(yours, new):
        return change
    return Action(change.path, "occupied", target=change.path)


def _stuck(path: str, base: bytes | None, yours: bytes) -> Action | None:
    """Leftover markers of an earlier upgrade keep a file from being merged again."""
    left = marker_lines(yours)
    if len(left) <= len(marker_lines(base or b"")):
        return None
    return Action(path, "markers", f"line {', '.join(map(str, left[:6]))}", target=path)


def _plan_merge(root: Path, change: Action, base: bytes | None, yours: bytes, new: bytes) -> Action:
    path = change.path
    if base is None:
        return Action(path, "damaged", f"bring {BASE}/{path} back", target=path)
    merged = merge(base, yours, new)
    if merged is None:
        target = _beside(root, path, new)
        there = read_if_there(root / target)
        what = replace(change, target=target, before=there, data=new)
        return replace(what, kind="beside", note=f"ours is {target}")
    kind = "updated" if same_text(yours, base) else "clash" if merged.clashes else "merged"
    note = _to_fill(path, new) if kind != "clash" else f"{merged.clashes} places"
    return replace(change, kind=kind, data=merged.data, clashes=merged.clashes, note=note)


def _retired(project: Project, path: str) -> list[Action]:
    there = os.path.lexists(project.root / path)
    return [Action(path, "retired", target=path)] if there else []


def _to_fill(path: str, new: bytes) -> str:
    names = ", ".join(unfilled(path, new))
    return f"fill in by hand: {names}" if names else ""


def _beside(root: Path, path: str, new: bytes) -> str:
    """A free name next to a file that can't be merged; the one where ours already is, if any."""
    for number in range(1, 1000):
        name = f"{path}.new{number if number > 1 else ''}"
        there = None if obstacle(root, name) else read_if_there(root / name)
        if there == new or not os.path.lexists(root / name):
            return name
    raise FinetuneError(
        f"{root / path}: too many .new files beside it. Remove those you don't need."
    )


def _mode(target: Path, source: Path) -> int:
    """A file keeps its permissions; a new one gets those of the bundle."""
    is_file = os.path.isfile(target) and not os.path.islink(target)
    return target.stat().st_mode & 0o777 if is_file else mode_of(source)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for one upgrade at a time; leaves no file behind, and a crash frees it."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError as exc:
        raise FinetuneError(f"{folder}: {exc.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            _lock(fd, folder)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = "another upgrade is at work here. Wait until it is done, then run again."
        raise FinetuneError(f"{folder}: {said}") from None


def _write_all(root: Path, writes: Sequence[Action]) -> Iterator[Action]:
    for number, action in enumerate(writes):
        try:
            yield _write(root, action)
        except DiskStop as exc:
            done = f"{number} of {len(writes)} files were upgraded before it"
            raise DiskStop(f"{exc} ({done}; the next upgrade goes on from there.)") from None


def _write(root: Path, action: Action) -> Action:
    """Write one file and then its base, unless somebody has written to the file since the plan."""
    target = root / action.target
    why = obstacle(root, action.target)
    if why or read_if_there(target) != action.before:
        return Action(action.path, "moved on", why, target=action.target)
    if action.data is not None and action.data != action.before:
        atomic_write(target, action.data, action.mode)
    if action.base is not None:
        _write_base(root, action.path, action.base)
    return action


def _write_base(root: Path, path: str, base: bytes) -> None:
    if why := obstacle(root, f"{BASE}/{path}"):
        raise DiskStop(f"{root / BASE / path}: {why}. Remove what is there, then run again.")
    atomic_write(root / BASE / path, base, 0o644)


def _pending(root: Path, writes: Sequence[Action]) -> dict[str, Any]:
    """What each file will become, and the base that goes with it (or lay there before)."""
    files = {
        action.path: {
            "target": action.target,
            "sha256": sha256(action.data or b"").hexdigest(),
            "base": b64encode(action.base or b"").decode(),
            "had": _base_on_disk(root, action.path) == action.base,
        }
        for action in writes
    }
    return {"schema": SCHEMA, "files": files}


def _landed(root: Path) -> dict[str, bytes]:
    """The new bases of the files that an interrupted upgrade had already written."""
    if obstacle(root, PENDING) or not os.path.isfile(root / PENDING):
        return {}
    files = load_record(root / PENDING)["files"]
    try:
        bases = {path: b64decode(entry["base"]) for path, entry in files.items()}
        landed = [path for path in files if _has_landed(root, path, files[path], bases[path])]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FinetuneError(f"{root / PENDING}: is damaged. Remove it, then run again.") from None
    return {path: bases[path] for path in landed}


def _has_landed(root: Path, path: str, entry: Mapping[str, Any], base: bytes) -> bool:
    """The file is written before its base, so either of them proves it."""
    if not entry["had"] and _base_on_disk(root, path) == base:
        return True
    there = None if obstacle(root, entry["target"]) else read_if_there(root / entry["target"])
    return there is not None and sha256(there).hexdigest() == entry["sha256"]


def _base_on_disk(root: Path, path: str) -> bytes | None:
    name = f"{BASE}/{path}"
    return None if obstacle(root, name) else read_if_there(root / name)


def _settle(project: Project, version: str | None = None) -> None:
    """Record the files that hold their changes, then forget what was pending."""
    root, before = project.root, as_json(project.manifest)
    for path, base in project.landed.items():
        if _base_on_disk(root, path) != base:
            _write_base(root, path, base)
        entry = project.manifest["files"].setdefault(path, {})
        entry["sha256"] = digest(base)
    project.manifest["bundle"] = version or project.manifest.get("bundle")
    if as_json(project.manifest) != before:
        atomic_write(root / MANIFEST, as_json(project.manifest), 0o644)
    if os.path.lexists(root / PENDING):
        remove(root / PENDING)
