"""Skills, code and examples into an agent's skills folder; and out again, only what we put there.

`.finetune-skills.json` in that folder records what is ours, with hashes. It is written before the
first file, so that after a crash the next run knows its own files; a file that a person has changed
is theirs, and stays. Links are never followed, and never replaced.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_skills.bundle import NAME, is_bundle
from finetune_skills.scaffold import (
    as_json,
    bundle_version,
    digest,
    files_below,
    is_inside,
    load_record,
    mode_of,
    obstacle,
    read,
    read_if_there,
    remove,
    timestamp,
)
from infrastructure import SCHEMA, FinetuneError, atomic_write

FOLDERS = {"claude": ".claude/skills", "agents": ".agents/skills"}
SCOPES = ("project", "user")
NOTE = ".finetune-skills.json"
# What a rehearsal or a training run leaves in an example of a checkout.
MADE_BY_RUNS = re.compile(r"[^/]+/(?:data|models)/")
FRONTMATTER_NAME = re.compile(r"\A---\r?\n(?:(?!---).*\n)*?name:[ \t]*(.+?)[ \t]*\r?\n")


@dataclass
class InstallReport:
    """What became of each file of an agent's skills folder, by path relative to it."""

    target: Path
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # not ours to touch, and why
    missing: list[str] = field(default_factory=list)  # parts that this bundle doesn't have
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 when something was left alone that a person should know about, else 0."""
        return int(bool(self.kept or self.warnings))

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "target": str(self.target), "exit_code": self.exit_code}


def install(
    bundle: Path,
    where: Path,
    agent: str = "claude",
    scope: str = "project",
    force: bool = False,
    clock: Callable[[], float] = time.time,
) -> InstallReport:
    """Copy the bundle into the skills folder below `where`: a project, or a person's home for
    scope "user". Repeatable; what is not ours, or was changed, stays unless `force`."""
    target = skills_folder(where, agent, scope)
    if is_bundle(where):
        said = "this folder is the bundle itself, and its skills are there already"
        raise FinetuneError(f"{where}: {said}. Go to a project, or say --user.")
    sources, record = installable(bundle), _record(target)
    report = InstallReport(target, missing=_missing(bundle))
    files = {name: read(source) for name, source in sources.items()}
    foreign = set() if force else _foreign(target, files, record["files"])
    ours = {_top(name) for name in [*files, *record["files"]]} - foreign
    report.warnings += overlapping_skills(target, bundle, ours)
    report.kept |= {f"{top}/": "is not ours, so nothing was put into it" for top in sorted(foreign)}
    mine = {name: data for name, data in files.items() if _top(name) not in foreign}
    writes = _choose(target, mine, record["files"], report, force)
    old = _obsolete(record["files"], files, bool(report.missing))
    if writes or old or not os.path.isfile(target / NOTE):
        record |= {"bundle": bundle_version(bundle), "installed": timestamp(clock)}
    _begin(target, record, writes, mine, report)
    for name, data in writes.items():
        atomic_write(target / name, data, mode_of(sources[name]))
    _take_away(target, record["files"], old, report)
    for entry in record["files"].values():
        entry.pop("was", None)
    _write_record(target, record)
    return report


def uninstall(where: Path, agent: str = "claude", scope: str = "project") -> InstallReport:
    """Remove what `install` put there and nobody has changed, and the empty folders it made."""
    target = skills_folder(where, agent, scope)
    if obstacle(target, NOTE) or not os.path.isfile(target / NOTE):
        raise FinetuneError(f"{target}: no {NOTE} here, so nothing was installed by this command")
    report, record = InstallReport(target), _record(target)
    _take_away(target, record["files"], sorted(record["files"]), report)
    outer = {".", ".."}.intersection(record["folders"])
    _remove_folders(target, set(record["folders"]) - outer)
    if record["files"]:
        _write_record(target, record)
        return report
    remove(target / NOTE)
    _remove_folders(target, outer)
    return report


def skills_folder(where: Path, agent: str, scope: str) -> Path:
    """The folder that this agent reads skills from."""
    if agent not in FOLDERS or scope not in SCOPES:
        have = f"agents: {', '.join(FOLDERS)}; scopes: {', '.join(SCOPES)}"
        raise FinetuneError(f"install: {agent!r} for {scope!r} is not known. Have {have}.")
    if scope == "user":  # people keep their home's settings elsewhere, behind links of their own
        return Path(os.path.realpath(where / FOLDERS[agent]))
    if why := obstacle(where, f"{FOLDERS[agent]}/{NOTE}"):
        raise FinetuneError(f"{where / FOLDERS[agent]}: {why}. Remove it, then run again.")
    return where / FOLDERS[agent]


def installable(bundle: Path) -> dict[str, Path]:
    """Every file of the bundle that is installed, by its path in the skills folder."""
    found: dict[str, Path] = {}
    for folder in _skills(bundle):
        mine = {n: path for n, path in files_below(folder).items() if not n.startswith("evals/")}
        found |= {f"{folder.name}/{name}": path for name, path in mine.items()}
    command = {f"finetune_skills/{name}": path for name, path in _command().items()}
    code = command | files_below(bundle / "code")
    examples = files_below(bundle / "examples")
    found |= {f"code/{name}": path for name, path in code.items()}
    found |= {f"examples/{n}": p for n, p in examples.items() if not MADE_BY_RUNS.match(n)}
    return found


def overlapping_skills(folder: Path, bundle: Path, ours: Collection[str] = ()) -> list[str]:
    """Skills in a folder that an agent would mix up with ours, as one sentence each."""
    names = {each.name for each in _skills(bundle)}
    names |= {skill_name(each / "SKILL.md") for each in _skills(bundle)}
    said = []
    for child in _children(folder):
        name = skill_name(child / "SKILL.md")
        if child.name not in ours and (child.name.startswith("finetune-") or name in names - {""}):
            called = f' (name: "{name}")' if name and name != child.name else ""
            said.append(f"{child}: another skill{called} that an agent may take for ours")
    return said


def skill_name(path: Path) -> str:
    """The `name:` in a skill's frontmatter; empty when there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig") if os.path.isfile(path) else ""
    except (OSError, UnicodeDecodeError):
        return ""
    found = FRONTMATTER_NAME.match(text)
    return found[1].strip("\"'") if found else ""


# ── what there is ─────────────────────────────────────────────────────────────────────────────────


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if os.path.isdir(folder) else []
    except OSError as exc:
        raise FinetuneError(f"{folder}: cannot be listed: {exc.strerror}") from None


def _skills(bundle: Path) -> list[Path]:
    """The skill folders; in an installed copy they lie beside `code`."""
    found = [*bundle.glob("skills/*/SKILL.md"), *bundle.glob("finetune-*/SKILL.md")]
    return sorted(path.parent for path in found)


def _command() -> dict[str, Path]:
    """The `finetune` command itself: it may lie outside the bundle, in an installed package."""
    return files_below(Path(__file__).resolve().parent)


def _missing(bundle: Path) -> list[str]:
    """The parts that there is nothing of."""
    examples = files_below(bundle / "examples")
    there = {"skills": _skills(bundle), "code": (bundle / "code").is_dir(), "examples": examples}
    return [part for part, found in there.items() if not found]


def _top(name: str) -> str:
    return name.split("/", 1)[0]


def _record(target: Path) -> dict[str, Any]:
    """What we put there so far; nothing, when nothing was."""
    if not os.path.lexists(target / NOTE):
        return {"schema": SCHEMA, "name": NAME, "files": {}, "folders": []}
    record = load_record(target / NOTE)
    lists = [record.get("folders"), *(each.get("was", []) for each in record["files"].values())]
    if not all(isinstance(each, list) and set(map(type, each)) <= {str} for each in lists):
        raise FinetuneError(f"{target / NOTE}: is damaged. Bring it back from version control.")
    return record


def _foreign(target: Path, files: Mapping[str, bytes], known: Collection[str]) -> set[str]:
    """Our folder names that somebody else uses: nothing in them is ours, and a file differs."""
    strange = {_top(name) for name in files} - {_top(name) for name in known}
    return {
        _top(n) for n, data in files.items() if _top(n) in strange and _differs(target, n, data)
    }


def _differs(target: Path, name: str, data: bytes) -> bool:
    if obstacle(target, name):
        return True
    there = read_if_there(target / name)
    return there is not None and digest(there) != digest(data)


# ── what to do ────────────────────────────────────────────────────────────────────────────────────


def _choose(
    target: Path,
    files: Mapping[str, bytes],
    known: Mapping[str, Any],
    report: InstallReport,
    force: bool,
) -> dict[str, bytes]:
    """The files to write; the report learns what happens to all of them."""
    writes = {}
    for name, data in files.items():
        blocked = obstacle(target, name)
        there = None if blocked else read_if_there(target / name)
        if blocked:
            report.kept[name] = blocked
        elif there is None:
            report.added.append(name)
        elif digest(there) == digest(data):
            report.unchanged.append(name)
        elif force or _is_ours(there, known.get(name)):
            report.updated.append(name)
        else:
            report.kept[name] = "was changed by you" if name in known else "is not ours"
        if name in report.added[-1:] + report.updated[-1:]:
            writes[name] = data
    return writes


def _is_ours(there: bytes, entry: Mapping[str, Any] | None) -> bool:
    """Whether a file is as we left it, or as an interrupted run may have left it."""
    return entry is not None and digest(there) in {entry["sha256"], *entry.get("was", ())}


def _obsolete(known: Collection[str], files: Collection[str], incomplete: bool) -> list[str]:
    """What the bundle no longer has; a bundle without one of its parts takes nothing away there."""
    tops = {_top(name) for name in files}
    gone = sorted(name for name in known if name not in files)
    return [name for name in gone if not incomplete or _top(name) in tops]


def _begin(
    target: Path,
    record: dict[str, Any],
    writes: Mapping[str, bytes],
    files: Mapping[str, bytes],
    report: InstallReport,
) -> None:
    """Write down what will be ours before the first file is touched."""
    known = record["files"]
    for name in report.unchanged:  # was there before us: kept current, and never removed
        known.setdefault(name, {"sha256": digest(files[name]), "found": True})
    for name, data in writes.items():
        old = known.get(name)
        was = {"was": [old["sha256"], *old.get("was", ())]} if old else {}
        known[name] = {"sha256": digest(data), **was}
    record["folders"] = sorted({*record["folders"], *_new_folders(target, writes)})
    _write_record(target, record)


def _new_folders(target: Path, names: Collection[str]) -> Iterator[str]:
    """The folders that writing these files makes, relative to the target."""
    if not os.path.isdir(target):
        yield "."
    if not os.path.isdir(target.parent):
        yield ".."
    for folder in {str(above) for name in names for above in Path(name).parents}:
        if not os.path.isdir(target / folder):
            yield folder


def _write_record(target: Path, record: Mapping[str, Any]) -> None:
    text = as_json(record)
    if read_if_there(target / NOTE) != text.encode():
        atomic_write(target / NOTE, text, 0o644)


def _take_away(
    target: Path, known: dict[str, Any], names: Collection[str], report: InstallReport
) -> None:
    """Remove our files that are as we left them; what is kept stays in the record, when ours."""
    for name in names:
        blocked = obstacle(target, name)
        there = None if blocked else read_if_there(target / name)
        if blocked:
            report.kept[name] = blocked
        elif there is not None and known[name].get("found"):
            report.kept[name] = "was there before the first install"
        elif there is not None and not _is_ours(there, known[name]):
            report.kept[name] = "was changed by you"
            continue
        elif there is not None:
            remove(target / name)
            report.removed.append(name)
        del known[name]
        _remove_compiled(target / name)


def _remove_compiled(path: Path) -> None:
    """What Python kept beside a module of ours that is gone."""
    cache = path.parent / "__pycache__"
    if path.suffix == ".py" and not path.exists() and not cache.is_symlink() and cache.is_dir():
        for compiled in cache.glob(f"{path.stem}.*.pyc"):
            remove(compiled)
        _remove_folders(cache, ["."])


def _remove_folders(target: Path, names: Collection[str]) -> None:
    """Remove folders that are empty, the deepest first."""
    for name in sorted(names, key=lambda each: (each == "..", each == ".", -each.count("/"))):
        folder = target.parent if name == ".." else target / name
        if name in (".", "..") or (is_inside(name) and not obstacle(target, f"{name}/x")):
            try:
                folder.rmdir()
            except OSError:
                continue  # not empty: somebody uses it
