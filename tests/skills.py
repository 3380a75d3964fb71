"""What the skills, guides and documents say, checked against what there is.

    python tests/skills.py          exit 0: nothing found. 1: findings

Every command, flag, path, link and key that a document names has to exist; a SKILL.md has the form
of our skills, and its launcher is the one of bin/. A check that looked at nothing is a finding.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
SKILL_KEYS = ["name", "description", "license", "compatibility", "metadata"]
SLOTS = ["Goal", "Read", "Do", "Gate", "If it fails"]
LINES, WORDS, GUIDE_LINES, LISTED_FROM = 250, 1800, 300, 100
SHORTEST, LONGEST = 150, 500  # characters of a description
DOCUMENTS = ("skills/*/*.md", "examples/*.md", "code/*.md", "code/templates/README.md", "README.md",
             "CONTRIBUTING.md")  # fmt: skip
# Names that only look like something of ours.
FOREIGN = {"quickstart.py", "echo.py"}
FLAGS_OF_OTHERS = {"--help", "--vocab-only", "--plugin-dir"}  # of llama.cpp, of Claude Code
# In a project, but made by no template: what the stages write, and what a person brings.
MADE = re.compile(r"(?:data|models|design|\.venv|\.finetune)/")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
STEP = re.compile(r"^### (\d+)\. (.+)$", re.MULTILINE)
SLOT = re.compile(r"^- \*\*([^*]+?)\.\*\*", re.MULTILINE)
FLAG = re.compile(r"--[a-z][a-z-]*")
PYTHON_FILE = re.compile(r"(?<![\w./-])[a-z][a-z_]*\.py\b")
PROJECT_PATH = re.compile(r"(?:config|scripts|design|data|models)/[\w./-]*")
PRICE = re.compile(r"\$ ?\d")
MODEL_ID = re.compile(
    r"\b(?:gpt-[\d.]+|o[134]-|claude-(?:\d|opus|sonnet|haiku)|gemini-\d|mistral-(?:large|small)"
    r"|llama-?[234]|deepseek-)[\w.-]*", re.IGNORECASE
)  # fmt: skip
PATTERN_OF_IDS = ("Meta-Llama-3-8B-Instruct",)  # shows what an id of a tuned variant looks like
VARIABLE = re.compile(r"\$\{|\$[A-Z_]{3,}")


class Command(NamedTuple):
    """A command that a document prints, and where."""

    file: str
    line: int
    words: tuple[str, ...]
    heading: str
    fenced: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{' '.join(self.words)}`"


@dataclass
class World:
    """What exists: verbs and scripts with their flags, gates, keys of the configuration."""

    verbs: Mapping[str, frozenset[str]]
    scripts: Mapping[str, frozenset[str]]
    gates: frozenset[str]
    modules: frozenset[str]
    keys: Mapping[str, Any]
    version: str


@dataclass
class Report:
    """Findings, and how much was looked at."""

    findings: list[str] = field(default_factory=list)
    looked_at: Counter[str] = field(default_factory=Counter)


def main() -> int:
    report = check(ROOT, world_of(ROOT))
    shown = ", ".join(f"{count} {name}" for name, count in report.looked_at.items())
    print("\n".join([*report.findings, f"skills: {len(report.findings)} findings; {shown}"]))
    return 1 if report.findings else 0


def check(root: Path, world: World) -> Report:
    """Every rule over every document; a kind of thing of which there is none is a finding."""
    report = Report()
    skills = sorted(path.parent for path in root.glob("skills/*/SKILL.md"))
    files = sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)})
    for skill in skills:
        report.looked_at["skills"] += 1
        for rule in (frontmatter, form, launcher):
            report.findings += [f"skills/{skill.name}: {said}" for said in rule(root, skill, world)]
    for path in files:
        report.looked_at["documents"] += 1
        report.findings += document(root, path, world, report.looked_at)
    for path in (path for path in files if path.name.endswith("-guide.md")):
        report.looked_at["guides"] += 1
        report.findings += guide(root, path)
    report.findings += unmentioned(root, world) + packaging(root, world)
    wanted = ("skills", "guides", "documents", "links", "commands", "paths", "flags", "keys")
    report.findings += [f"no {name} to check" for name in wanted if not report.looked_at[name]]
    return report


# ── what exists ───────────────────────────────────────────────────────────────────────────────────


@functools.cache
def world_of(root: Path) -> World:
    """Asked of the programs themselves."""
    from finetune_skills.cli import main as command
    from finetune_skills.gates import GATES

    verbs = {
        name: frozenset(word for each in verb.params for word in each.opts + each.secondary_opts)
        for name, verb in command.commands.items()
    }
    scripts = {path.name: flags_of(path) for path in root.glob("code/templates/scripts/*.py")}
    modules = {path.name for path in (*root.glob("code/*.py"), *root.glob("code/templates/*.py"))}
    keys = {}
    for path in sorted((root / "code/templates/config").glob("*.yaml")):
        keys |= yaml.safe_load(re.sub(r"\{\{(\w+)\}\}", "null", path.read_text("utf-8")))
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    return World(verbs, scripts, frozenset(GATES), frozenset(modules), keys, version)


def flags_of(script: Path) -> frozenset[str]:
    """The flags in a script's own --help."""
    command = [sys.executable, script, "--help"]
    environment = {"PYTHONPATH": str(script.parents[2]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return frozenset(FLAG.findall(done.stdout))


# ── a SKILL.md ────────────────────────────────────────────────────────────────────────────────────


def parts(path: Path) -> tuple[str, str]:
    """The text between the first two lines of dashes, and the rest."""
    found = re.match(r"\A---\n(.*?)\n---\n(.*)\Z", path.read_text("utf-8"), re.DOTALL)
    return (found[1], found[2]) if found else ("", path.read_text("utf-8"))


def frontmatter(root: Path, skill: Path, world: World) -> Iterator[str]:
    """The keys of the specification that we use, each as the specification has it."""
    raw, _ = parts(skill / "SKILL.md")
    try:
        told = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        yield f"the frontmatter is no YAML: {str(error).splitlines()[0]}"
        return
    if not isinstance(told, dict):
        yield "has no frontmatter"
        return
    if sorted(told) != sorted(SKILL_KEYS):
        yield f"the frontmatter has {sorted(told)}, and not {sorted(SKILL_KEYS)}"
        return
    if told["name"] != skill.name or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", skill.name):
        yield f"name {told['name']!r} is not the folder's, or no valid name"
    if not SHORTEST <= len(told["description"]) <= LONGEST:
        yield f"the description has {len(told['description'])} characters: {SHORTEST} to {LONGEST}"
    if '\ndescription: "' not in raw:
        yield "the description is not quoted"
    if not isinstance(told["compatibility"], str) or len(told["compatibility"]) > 500:
        yield "compatibility is over 500 characters"
    if told["metadata"] != {"version": world.version}:
        yield f"metadata is {told['metadata']}, and the version is {world.version}"


def form(root: Path, skill: Path, world: World) -> Iterator[str]:
    """Its size, the status command first, and steps with five slots and a gate that exists."""
    path = skill / "SKILL.md"
    text = path.read_text("utf-8")
    lines, words = len(text.splitlines()), len(text.split())
    if lines > LINES or words > WORDS:
        yield f"{lines} lines and {words} words: at most {LINES} and {WORDS}"
    first = next((each for each in commands(root, path) if each.fenced), None)
    if first is None or first.words != ("finetune", "status"):
        yield f"the first command is not `finetune status`, but {first}"
    steps = list(steps_of(path))
    if [number for number, _, _ in steps] != list(range(1, len(steps) + 1)) or not steps:
        yield f"steps are numbered {[number for number, _, _ in steps]}"
    for number, _, body in steps:
        if SLOT.findall(body) != SLOTS:
            yield f"step {number} has the slots {SLOT.findall(body)}"
        gate = re.search(r"^- \*\*Gate\.\*\* `finetune gate ([a-z]+)`", body, re.MULTILINE)
        if not gate or gate[1] not in world.gates:
            yield f"step {number} names no gate that exists"


def steps_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, title and text of each step."""
    text = path.read_text("utf-8")
    found = list(STEP.finditer(text))
    for match in found:
        end = re.search(r"^#{1,3} ", text[match.end() :], re.MULTILINE)
        body = text[match.end() : match.end() + end.start()] if end else text[match.end() :]
        yield int(match[1]), match[2], body


def launcher(root: Path, skill: Path, world: World) -> Iterator[str]:
    path, original = skill / "scripts/finetune.py", root / "bin/finetune"
    if not path.is_file() or path.read_bytes() != original.read_bytes():
        yield "scripts/finetune.py is not bin/finetune"
    elif not path.stat().st_mode & 0o100:
        yield "scripts/finetune.py can't be executed"


# ── a guide ───────────────────────────────────────────────────────────────────────────────────────


def guide(root: Path, path: Path) -> Iterator[str]:
    """It stands alone: short, with contents, and no way to another guide or skill."""
    name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
    lines = len(text.splitlines())
    if lines > GUIDE_LINES:
        yield f"{name}: {lines} lines, at most {GUIDE_LINES}"
    if lines > LISTED_FROM and text[:3000].count("](#") < 5:
        yield f"{name}: no list of contents"
    for other in sorted(root.glob("skills/*/*.md")):
        if other != path and re.search(rf"\b{re.escape(other.stem)}\b", text):
            yield f"{name}: depends on {other.name}"
    if "start value" not in text:
        yield f"{name}: does not say which numbers are start values"


# ── any document ──────────────────────────────────────────────────────────────────────────────────


def document(root: Path, path: Path, world: World, looked: Counter[str]) -> Iterator[str]:
    """Whatever it names exists."""
    name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
    for rule in (links, fences, names, keys):
        for said in rule(root, path, text, world, looked):
            yield f"{name}: {said}"
    for each in commands(root, path):
        looked["commands"] += 1
        yield from (f"{each}: {said}" for said in command_faults(each, world))
    if not name.startswith("skills/"):
        return
    for found in (*PRICE.finditer(text), *VARIABLE.finditer(text)):
        yield f"{name}: holds {found[0]!r}: a price, or a variable that only one client fills in"
    for found in MODEL_ID.finditer(text):
        if not any(found[0] in known for known in PATTERN_OF_IDS):
            yield f"{name}: names the model {found[0]}, which will be gone one day"


def links(root: Path, path: Path, text: str, world: World, looked: Counter[str]) -> Iterator[str]:
    for target in LINK.findall(text):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        looked["links"] += 1
        there = path.parent / file if file else path
        if ".." in Path(file).parts and path.is_relative_to(root / "skills"):
            yield f"the link {target} climbs out of the skill"
        elif not there.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and anchor not in anchors(there):
            yield f"the link {target}: no such heading"


def anchors(path: Path) -> set[str]:
    """Where links into this page can go, as GitHub makes them; a title that comes twice counts."""
    found: Counter[str] = Counter()
    out = set()
    for title in HEADING.findall(FENCE.sub("", path.read_text("utf-8"))):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        out.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return out


def fences(root: Path, path: Path, text: str, world: World, looked: Counter[str]) -> Iterator[str]:
    """Python compiles, YAML and JSON are read."""
    readers: dict[str, Callable[[str], Any]] = {
        "python": lambda code: compile(code, str(path), "exec"),
        "yaml": lambda code: yaml.safe_load(re.sub(r"\{\{\w+\}\}", "null", code)),
        "json": json.loads,
    }
    for _, language, code in FENCE.findall(text):
        looked["fences"] += 1
        try:
            readers.get(language, lambda _: None)(code)
        except (SyntaxError, yaml.YAMLError, ValueError) as error:
            yield f"a {language} block: {str(error).splitlines()[0]}"


def names(root: Path, path: Path, text: str, world: World, looked: Counter[str]) -> Iterator[str]:
    """Scripts, modules, flags and files of a project that stand in code spans."""
    known = set(world.scripts) | set(world.modules) | FOREIGN
    known |= {each.name for each in path.parent.rglob("*.py")}
    every = frozenset().union(*world.verbs.values(), *world.scripts.values())
    for span in SPAN.findall(FENCE.sub("", text)):
        for file in PYTHON_FILE.findall(span):
            looked["scripts"] += 1
            if file not in known:
                yield f"`{span}`: there is no {file}"
        for place in PROJECT_PATH.findall(span) if span == span.split()[0] else ():
            looked["paths"] += 1
            if not MADE.match(place) and not at(root, path, place):
                yield f"`{span}`: no project and no bundle has {place}"
        if span.startswith("--"):
            looked["flags"] += 1
            if span.split()[0].split("=")[0] not in every | FLAGS_OF_OTHERS:
                yield f"`{span}`: no script and no verb has this flag"


def at(root: Path, path: Path, place: str) -> bool:
    """In a project, in the bundle, or beside the document."""
    folders = (root / "code/templates", root / "examples/support-desk", root, path.parent)
    return any((folder / place.rstrip("/.")).exists() for folder in folders)


def keys(root: Path, path: Path, text: str, world: World, looked: Counter[str]) -> Iterator[str]:
    """`limits.max_tokens` and its like stand in a template of config/."""
    for span in SPAN.findall(FENCE.sub("", text)):
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span):
            continue
        first, *rest = span.split(".")
        if not isinstance(world.keys.get(first), dict) or rest[-1] in ("md", "py", "json"):
            continue
        looked["keys"] += 1
        value: Any = world.keys[first]
        for part in rest:
            value = value.get(part, KeyError) if isinstance(value, dict) else None
        if value is KeyError:
            yield f"`{span}`: no file of config/ has this key"


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def commands(root: Path, path: Path) -> Iterator[Command]:
    """What a document prints to be run, in its order: lines of fences, and code spans."""
    name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
    fence, heading = "", ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("```"):
            fence = "" if fence else f"fence of {line.strip()[3:] or 'commands'}"
        elif fence:
            texts = [line.strip()] if fence == "fence of commands" else []
            yield from _commands(name, number, texts, heading, True)
        else:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            yield from _commands(name, number, SPAN.findall(line), heading, False)


def _commands(
    file: str, line: int, texts: list[str], heading: str, fenced: bool
) -> Iterator[Command]:
    for text in texts:
        bare = re.split(r" {2,}| +# ", text)[0]
        for one in re.split(r" && |; |, (?=finetune )", bare):
            one = re.sub(r"^(?:\.venv/bin/)(?=python )", "", one)
            if re.match(r"finetune [a-z-]|python scripts/\w", one):
                yield Command(file, line, tuple(shlex.split(one)), heading, fenced)


def command_faults(each: Command, world: World) -> Iterator[str]:
    """The program, the verb or script, the gate and every flag exist."""
    program, what, *rest = each.words
    if program == "finetune" and what.startswith("-"):
        return
    known = world.verbs if program == "finetune" else world.scripts
    what = what.removeprefix("scripts/")
    if what not in known and what.isupper():
        return
    if what not in known:
        yield f"there is no {what}"
        return
    for word in rest:
        flag = word.split("=")[0]
        if flag.startswith("--") and flag not in known[what] | {"--help"}:
            yield f"{what} has no {flag}"
    gate = rest[0] if what in ("gate", "approve", "waive") and rest else "NAME"
    if not gate.startswith("-") and not gate.isupper() and gate not in world.gates:
        yield f"there is no gate {gate}"


def unmentioned(root: Path, world: World) -> list[str]:
    """Each verb has a place in the skills."""
    paths = sorted(root.glob("skills/*/*.md"))
    said = {each.words[1] for path in paths for each in commands(root, path)}
    said |= {word for path in paths for word in re.findall(r"`finetune ([a-z]+)", path.read_text())}
    return [f"no skill mentions finetune {verb}" for verb in world.verbs if verb not in said]


# ── packaging ─────────────────────────────────────────────────────────────────────────────────────


def packaging(root: Path, world: World) -> list[str]:
    """One version, a link for each skill, and hooks that lead to a file."""
    plugin = json.loads((root / ".claude-plugin/plugin.json").read_text("utf-8"))
    found = [f".claude-plugin/plugin.json: version {plugin.get('version')}, not {world.version}"]
    found = found if plugin.get("version") != world.version else []
    found += icon_faults(root / ".claude-plugin/icon.png")
    skills = {path.parent.name for path in root.glob("skills/*/SKILL.md")}
    for name in sorted(skills):
        link = root / ".claude/skills" / name
        if not link.is_symlink() or link.resolve() != (root / "skills" / name).resolve():
            found.append(f".claude/skills/{name}: is no link to skills/{name}")
    strange = {path.name for path in (root / ".claude/skills").glob("*")} - skills
    found += [f".claude/skills/{name}: leads to no skill" for name in sorted(strange)]
    for file in ("hooks/hooks.json", ".claude/settings.json"):
        found += [f"{file}: {said}" for said in hooks(root, root / file)]
    return found


def icon_faults(path: Path) -> list[str]:
    """A square PNG of the size that the client's catalogue takes."""
    head = path.read_bytes()[:24] if path.is_file() else b""
    wide, high = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
    fine = head.startswith(b"\x89PNG") and wide == high and 512 <= wide <= 2048
    return [] if fine else [".claude-plugin/icon.png: is no square PNG of 512 to 2048 pixels"]


def hooks(root: Path, path: Path) -> Iterator[str]:
    """Both events are there, and each command is a file of ours that can be run."""
    events = json.loads(path.read_text("utf-8"))["hooks"] if path.is_file() else {}
    if set(events) != {"PreToolUse", "SessionStart"}:
        yield f"has hooks for {sorted(events)}"
    for rows in events.values():
        for hook in (hook for row in rows for hook in row["hooks"]):
            file = re.match(r'"\$\{CLAUDE_(?:PLUGIN_ROOT|PROJECT_DIR)\}/([^"]+)"', hook["command"])
            if not file or not os.access(root / file[1], os.X_OK):
                yield f"{hook['command']} can't be run"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "code"))
    sys.exit(main())
