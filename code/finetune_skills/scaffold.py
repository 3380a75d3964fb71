"""What a project gets from the bundle: which files, the first copy, and the record of it.

The record is `.finetune/base/` (the exact text of every copied file) and `.finetune/manifest.json`.
While a project is being made there is `.finetune/started.json`; it names what the run will write,
so that after a crash a second run can tell its own files from the person's.
"""

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_skills.answers import texts
from finetune_skills.bundle import NAME
from finetune_skills.merge import plain
from infrastructure import PLACEHOLDER, SCHEMA, FinetuneError, atomic_write, canonical_hash, unknown

# The only files whose {{name}} are filled; everywhere else they belong to the project's own stages.
FILLED = frozenset({"README.md", "pyproject.toml", "config/project.yaml"})
# In these a value stands between double quotes, so quotes and backslashes in it are escaped.
QUOTED = frozenset({".yaml", ".yml", ".toml"})
# What a project gets whose record is older than a question.
UNDECIDED: dict[str, object] = dict(texts({}))
# Never copied from a bundle: caches, environments, secrets, and the bundle inside the package.
LEFT_OUT = frozenset({"__pycache__", ".DS_Store", ".env", ".venv", ".git", "_bundle"})
LEFT_OUT |= {".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints"}
MADE_BY_RUNS = ("data/", "models/", ".finetune/")  # of an example: never laid into a project

RECORD = ".finetune"
BASE = f"{RECORD}/base"
MANIFEST = f"{RECORD}/manifest.json"
STARTED = f"{RECORD}/started.json"


def bundle_files(bundle: Path, example: str = "") -> dict[str, Path]:
    """Every file that a project gets: its path in the project, and where the bundle has it. The
    files of an example are laid over the templates."""
    modules = {path.name: path for path in sorted((bundle / "code").glob("*.py"))}
    templates = files_below(bundle / "code/templates")
    if example:
        templates |= _example_files(bundle, example)
    if double := sorted(modules.keys() & templates.keys()):
        kind = f"in the example {example}" if example else "a template"
        raise FinetuneError(f"{bundle}: {double[0]} is a module and {kind}; keep one of them")
    return modules | templates


def examples(bundle: Path) -> list[str]:
    """The complete projects among the bundle's examples."""
    folder = bundle / "examples"
    return sorted(path.parent.parent.name for path in folder.glob("*/config/project.yaml"))


def _example_files(bundle: Path, name: str) -> dict[str, Path]:
    if name not in (have := examples(bundle)):
        todo = unknown("example", name[:60], have) if have else "This release has no examples."
        raise FinetuneError(f"example {name[:60]}: {todo}")
    found = files_below(bundle / "examples" / name)
    return {path: source for path, source in found.items() if not path.startswith(MADE_BY_RUNS)}


def create_project(
    root: Path,
    bundle: Path,
    values: Mapping[str, object],
    clock: Callable[[], float] = time.time,
    example: str = "",
) -> list[Path]:
    """Make a project at `root`; nothing that is there is overwritten. Gives the files it wrote.
    After a crash, the same call finishes the work, or says which files are in its way."""
    sources = bundle_files(bundle, example)
    files = {path: render(path, read(source), values) for path, source in sources.items()}
    _refuse_incomplete(bundle, files)
    _refuse_to_overwrite(root, files)
    manifest = {
        "schema": SCHEMA,
        "bundle": bundle_version(bundle, example),
        "example": example,
        "created": timestamp(clock),
        "values": {name: str(value) for name, value in values.items()},
        "files": {path: {"sha256": digest(data)} for path, data in files.items()},
    }
    atomic_write(root / STARTED, as_json(manifest), 0o644)
    for path, data in files.items():
        atomic_write(root / BASE / path, data, 0o644)
        atomic_write(root / path, data, mode_of(sources[path]))
    atomic_write(root / MANIFEST, as_json(manifest), 0o644)
    remove(root / STARTED)
    return [root / path for path in files]


def render(path: str, data: bytes, values: Mapping[str, object]) -> bytes:
    """The bundle's text as this project gets it; a placeholder without a value stays."""
    if path not in FILLED:
        return data
    quoted = PurePosixPath(path).suffix in QUOTED
    known = {**UNDECIDED, **values}
    filled = {name: _one_line(name, value, quoted) for name, value in known.items()}
    return PLACEHOLDER.sub(lambda found: filled.get(found[1], found[0]), data.decode()).encode()


def without_effect(files: Mapping[str, Path], names: Iterable[str]) -> list[str]:
    """The answers that no file has a place for: an example may have decided them itself."""
    texts_ = (read(source).decode() for path, source in files.items() if path in FILLED)
    places = {name for text in texts_ for name in PLACEHOLDER.findall(text)}
    uses = {name.partition("_")[0] for name in places}
    return [name for name in names if name not in uses]


def unfilled(path: str, data: bytes) -> list[str]:
    """The placeholders that are left in a file whose placeholders are filled."""
    return sorted(set(PLACEHOLDER.findall(data.decode()))) if path in FILLED else []


def bundle_version(bundle: Path, example: str = "") -> str:
    """The release, where it is known, and a short hash of what a project gets."""
    try:
        release = importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        release = "0"
    files = {path: digest(read(source)) for path, source in bundle_files(bundle, example).items()}
    return f"{release}+{canonical_hash(files)[:8]}"


def _one_line(name: str, value: object, quoted: bool) -> str:
    text = str(value)
    if not text.isprintable():
        raise FinetuneError(f"{name}: {text!r} has a line break or another control character in it")
    return json.dumps(text, ensure_ascii=False)[1:-1] if quoted else text


def _refuse_incomplete(bundle: Path, files: Mapping[str, bytes]) -> None:
    if not files:
        raise FinetuneError(f"{bundle}: this bundle has no templates. Install {NAME} again.")
    empty = [f"{path}: {name}" for path, data in files.items() for name in unfilled(path, data)]
    if empty:
        raise FinetuneError(f"no value for these placeholders: {', '.join(empty)}")


def _refuse_to_overwrite(root: Path, files: Mapping[str, bytes]) -> None:
    found = list(_in_the_way(root, files))
    if found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise FinetuneError(
            f"{root}: already there: {', '.join(found[:8])}{more}. Nothing was written. "
            "Choose another folder, or move them away."
        )


def _in_the_way(root: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """What a person has where files go; what an interrupted run wrote is in nobody's way."""
    if os.path.exists(root) and not os.path.isdir(root):
        yield "a file of this name"
        return
    started = _started(root)
    if started is None and _is_used(root / RECORD):
        yield RECORD
    for path, data in files.items():
        found = obstacle(root, path)
        there = None if found else read_if_there(root / path)
        ours = () if started is None else (digest(data), started.get(path))
        if found or (there is not None and digest(there) not in ours):
            yield f"{path} ({found})" if found else path


def _started(root: Path) -> dict[str, Any] | None:
    """What an interrupted run was about to write, by path; None when there was none."""
    if obstacle(root, STARTED) or not (root / STARTED).is_file():
        return None
    return {path: entry["sha256"] for path, entry in load_record(root / STARTED)["files"].items()}


def _is_used(folder: Path) -> bool:
    """Whether anything is there; an empty folder, or a torn start of a crashed run, is nothing."""
    if os.path.islink(folder):
        return True
    try:
        return any(not name.endswith(".partial") for name in os.listdir(folder))
    except FileNotFoundError:
        return False
    except OSError:
        return True


# ── shared by init, upgrade and install ───────────────────────────────────────────────────────────


def files_below(folder: Path) -> dict[str, Path]:
    """Every regular file below a folder of the bundle, by relative path; no links, no caches."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        left_out = LEFT_OUT.intersection(inner.parts) or path.suffix == ".pyc"
        if path.is_file() and not path.is_symlink() and not left_out:
            found[inner.as_posix()] = path
    return found


def is_inside(name: str) -> bool:
    """Whether a recorded name stays below the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and "\0" not in name


def obstacle(root: Path, name: str) -> str:
    """Why nothing may be written at `name` below `root`; empty when it may."""
    if not is_inside(name):
        return "is not a place inside this folder"
    *folders, path = [
        root.joinpath(*name.split("/")[:end]) for end in range(1, name.count("/") + 2)
    ]
    for folder in folders:
        if os.path.islink(folder):
            return f"{folder.name} is a symbolic link, which is not followed"
        if os.path.exists(folder) and not os.path.isdir(folder):
            return f"{folder.name} is not a folder"
    if os.path.islink(path):
        return "is a symbolic link, which is not followed"
    return "is not a file" if os.path.exists(path) and not os.path.isfile(path) else ""


def read(path: Path) -> bytes:
    """The bytes of a file; an error says which file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise FinetuneError(f"{path}: cannot be read: {exc.strerror}") from None


def read_if_there(path: Path) -> bytes | None:
    return read(path) if os.path.lexists(path) else None


def remove(path: Path) -> None:
    """Delete a file that may be gone already."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise FinetuneError(f"{path}: cannot be removed: {exc.strerror}. Run again.") from None


def digest(data: bytes) -> str:
    """Hash of a text as it counts: line endings that git converts make no difference."""
    return sha256(plain(data)).hexdigest()


def mode_of(path: Path) -> int:
    """Permissions of a copy: readable by all, and a program where the original is one."""
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def as_json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def timestamp(clock: Callable[[], float]) -> str:
    return datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds")


def load_record(path: Path) -> dict[str, Any]:
    """A record of ours with its `files`: names inside the folder, each with a hash."""
    try:
        data = json.loads(read(path).decode("utf-8-sig"))
        if data["schema"] > SCHEMA:
            raise FinetuneError(f"{path}: was written by a newer {NAME}. Install that one first.")
        good = all(
            isinstance(entry["sha256"], str) and is_inside(name)
            for name, entry in data["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise FinetuneError(f"{path}: is damaged. Bring it back from your version control.")
    return data  # type: ignore[no-any-return]
