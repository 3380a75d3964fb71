"""Both skills, walked by a script that does exactly what they print, on simulated models.

The scripted agent reads each SKILL.md from top to bottom and runs every command of its fences and
of its Do and Gate slots, in that order. Where the text asks for work (write the rubric), it puts
the file of the example in place; where it sends to a person, a scripted one reads on the real page
and types at a real terminal. Nothing else is run.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import example_people
import skills
from finetune_skills import gates
from reviews import Server, begin
from skills import Command
from test_command import at_a_terminal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDERS = {"NAME": "Ann", "N": "20", "PATH": "people/old-chats.jsonl"}
# What is written in a step, as files of the example.
WORK = {
    "1. Base model": ("simulated.py", "design/model-choice.md", "config/project.yaml"),
    "3. Taxonomy": ("config/input-taxonomy.yaml", "design/critique.md"),
    "4. Rubric": ("config/rubric.yaml",),
    "5. Personas": ("config/persona-template.yaml",),
    "6. Prompts": ("config/prompts/assistant.md", "config/system-prompt.md"),
}


@dataclass
class Walker:
    """The scripted agent, its project, and what it has run."""

    root: Path
    example: Path
    ran: list[str] = field(default_factory=list)

    def walk(self, skill: str, *titles: str, trial: bool = False) -> None:
        """The sections of a SKILL.md with these titles, or all of them, in their order; slice.py
        takes the trial in when that is what the text says."""
        for title, commands in sections(skill).items():
            if titles and title not in titles:
                continue
            self.prepare(title, commands)
            for command in commands:
                sliced = trial and "scripts/slice.py" in command.words
                self.run(skill, command.words + (("--trial",) if sliced else ()))

    def prepare(self, title: str, commands: list[Command]) -> None:
        """The work of a step; before it, its gate is closed."""
        if title in WORK:
            gate = [each.words[2] for each in commands if each.words[1] == "gate"][-1]
            assert gates.run_check(self.root, gates.GATES[gate]).findings, gate
        for file in WORK.get(title, ()):
            shutil.copy(self.example / file, self.root / file)

    def run(self, skill: str, words: tuple[str, ...]) -> None:
        words = tuple(PLACEHOLDERS.get(word, word) for word in words)
        self.ran.append(" ".join(words))
        if words[:2] == ("finetune", "approve"):
            code, said, shown = at_a_terminal(self.root, words[2], *words[1:])
            assert code == 0, said + shown
        elif words[:2] == ("finetune", "review"):
            self.read(words[2:])
        else:
            done = subprocess.run(
                self.program(skill, words), cwd=self.root, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=300, check=False,
            )  # fmt: skip
            waits = words[:2] == ("finetune", "gate") and gates.GATES[words[2]].person
            said = f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            assert done.returncode == int(waits), said
            assert not waits or ": waiting " in done.stdout, said

    def program(self, skill: str, words: tuple[str, ...]) -> list[str]:
        """`finetune` by the launcher of the skill, `python` from the project's own environment."""
        if words[0] == "finetune":
            return [sys.executable, str(ROOT / f"skills/{skill}/scripts/finetune.py"), *words[1:]]
        return [str(self.root / ".venv/bin/python"), *words[1:]]

    def read(self, flags: tuple[str, ...]) -> None:
        """A person who overlooks nothing, on the page that the command opens."""
        server = begin(self.root, *flags, "--by", "Ann").enter()
        try:
            for row in list(self.labels(flags)):
                told = {key: row[key] for key in LABEL if key in row}
                answer = server.save(row["id"], **told)
                assert answer.status == 200, answer.text
        finally:
            ended(server)

    def labels(self, flags: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """For each transcript of the batch that was named, else of the newest one made at scale."""
        name = flags[flags.index("--batch") + 1] if "--batch" in flags else "scale-001"
        ids = json.loads((self.root / f"data/batches/{name}.json").read_bytes())["ids"]
        yield from (row for row in example_people.reviews(self.root) if row["id"] in ids)


LABEL = ("verdict", "criteria", "notes", "agreed", "rubric_misses", "fine", "turns")
LABEL += ("transcript_hash", "rubric_hash", "seen")


def ended(server: Server) -> None:
    code, said = server.end()
    assert code == 0, said


def sections(skill: str) -> dict[str, list[Command]]:
    """The commands to run, by heading: those in fences, and of a step those of Do and Gate."""
    path = ROOT / f"skills/{skill}/SKILL.md"
    lines = path.read_text("utf-8").splitlines()
    found: dict[str, list[Command]] = {}
    for each in skills.commands(ROOT, path):
        if each.heading in ("How to work", "Thoughts that mean stop", "Done when", "Critics"):
            continue
        if each.fenced or slot_of(lines, each.line) in ("Do", "Gate"):
            found.setdefault(each.heading, []).append(each)
    found.pop("Where things stand", None)  # run by `begun`
    return found


def slot_of(lines: list[str], number: int) -> str:
    """The slot that a line belongs to; empty outside of the list of slots."""
    for line in reversed(lines[:number]):
        if match := skills.SLOT.match(line):
            return match[1]
        if line and not line.startswith((" ", "- ")):
            return ""
    return ""


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    """A project, begun as the text says, with packages of its own."""
    home = tmp_path_factory.mktemp("walk")
    found = Walker(home / "desk", home / "example")
    launcher = ROOT / "skills/finetune-design/scripts/finetune.py"
    for folder, flags in (("example", ["--example", "support-desk"]), ("desk", ["--domain", "d"])):
        command = [sys.executable, str(launcher), "init", folder, *flags]
        subprocess.run(command, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    printed = (ROOT / "skills/finetune-design/SKILL.md").read_text("utf-8")
    for command in re.findall(r"^(?:python3 -m venv|\.venv/bin/pip) .*$", printed, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command], cwd=found.root, capture_output=True, text=True
        )
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"no packages to be had: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
    (found.root / "people").mkdir()
    shutil.copy(found.example / "people/old-chats.jsonl", found.root / "people")
    return found


def state(root: Path, gate: str) -> str:
    return gates.states(root, gate)[gate].state


def test_the_commands_of_the_design_skill_lead_to_a_passed_baseline(walker: Walker) -> None:
    walker.walk("finetune-design")
    assert [name for name, each in gates.states(walker.root, "baseline").items()
            if each.state != "passed"] == []  # fmt: skip
    assert walker.ran[-1] == "finetune approve baseline --by Ann"


def test_the_commands_of_the_generate_skill_lead_to_a_passed_slice(walker: Walker) -> None:
    steps = [title for title in sections("finetune-generate") if re.match(r"\d", title)]
    assert [title[0] for title in steps] == list("1234567")
    walker.walk("finetune-generate", "Existing transcripts", *steps[:3])
    assert gates.states(walker.root, "scale")["scale"].figures["made"].startswith("a trial only")
    walker.walk("finetune-generate", *steps[4:], trial=True)
    assert state(walker.root, "slice") == "passed"
    walker.walk("finetune-generate", *steps[3:])
    assert state(walker.root, "slice") == "passed"
    assert (walker.root / "data/processed/train.jsonl").stat().st_size > 0


def test_every_file_that_the_skills_name_is_there_afterwards(walker: Walker) -> None:
    named = set()
    for path in ROOT.glob("skills/*/SKILL.md"):
        for span in skills.SPAN.findall(path.read_text("utf-8")):
            named |= set(re.findall(r"^(?:config|design|data)/[\w./-]+$", span))
    missing = [name for name in sorted(named) if not (walker.root / name).exists()]
    assert len(named) > 15
    assert missing == []


# ── every other document ──────────────────────────────────────────────────────────────────────────

HELP = (
    "rehearse",
    "review",
    "approve",
    "waive",
    "install",
    "init",
)  # tried elsewhere: here, --help
VALUES = PLACEHOLDERS | {"DIR": "new", "DATE": "2026-11-01", "KIND=USD_PER_HOUR": "L4=1"}
VALUES |= {"NAME": "model", "PATH...": PLACEHOLDERS["PATH"]}
# Lines of fences that are no command of ours: of the shell, run as they are, or run elsewhere.
ELSEWHERE = re.compile(r"git clone |make |cd |python3 -m venv |\.venv/bin/pip ")
MARK = "not run here: "


def printed() -> list[tuple[str, ...]]:
    """Each command of ours that any document prints, once."""
    files = sorted({path for pattern in skills.DOCUMENTS for path in ROOT.glob(pattern)})
    found = {each.words for path in files for each in skills.commands(ROOT, path)}
    return sorted(words for words in found if len(words) > 1)


def harmless(words: tuple[str, ...], world: skills.World) -> list[str]:
    """The same command with values in place of names, and nothing written where it can be said."""
    program, what, *rest = (VALUES.get(word, word) for word in words)
    if what == "scripts/import_transcripts.py" and not rest:  # named in a sentence
        return [what, "--help"]
    if program == "finetune":
        said = [what, "--help"] if what in HELP else [what, *rest]
        return said + (["--dry-run"] if what == "upgrade" and "--dry-run" not in rest else [])
    dry = "--dry-run" in world.scripts[what.removeprefix("scripts/")] and "--dry-run" not in rest
    return [what, *rest, *(["--dry-run"] if dry else [])]


def test_every_command_of_every_document_runs_in_a_finished_project(
    walker: Walker, tmp_path: Path
) -> None:
    root, world = tmp_path / "desk", skills.world_of(ROOT)
    shutil.copytree(walker.root, root, symlinks=True)
    furnished(root, walker.program("finetune-design", ("python",)))
    commands, wrong = printed(), []
    for words in commands:
        line = harmless(words, world)
        start = walker.program("finetune-design", (words[0],))
        done = subprocess.run(
            [*start, *line], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=120, check=False,
        )  # fmt: skip
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            wrong.append(f"{' '.join(words)}: {done.returncode} {done.stderr.strip()[-300:]}")
    assert len(commands) > 60
    assert wrong == []


def furnished(root: Path, python: list[str]) -> None:
    """What the documents take as given: more people, files of chats, an imported batch."""
    for file in ("chats.jsonl", "planted/chats.jsonl"):
        rows = map(json.loads, (root / PLACEHOLDERS["PATH"]).read_text("utf-8").splitlines())
        more = [row | {"id": f"{file[0]}-{row['id']}"} for row in rows]
        for row in more:
            row["messages"][0]["content"] += f" ({file})"
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text("".join(f"{json.dumps(row)}\n" for row in more), "utf-8")
    for words in (["personas.py", "--count", "500"],
                  ["import_transcripts.py", "planted", "--name", "planted"]):  # fmt: skip
        command = [*python, f"scripts/{words[0]}", *words[1:]]
        subprocess.run(command, cwd=root, check=True, capture_output=True)


def test_every_other_line_of_a_fence_runs_or_says_why_it_was_not_run(
    walker: Walker, tmp_path: Path
) -> None:
    root = tmp_path / "desk"
    shutil.copytree(walker.root, root, symlinks=True)
    lines = list(other_lines())
    assert len(lines) > 5
    for where, line, before in lines:
        if ELSEWHERE.match(line) or MARK in before:
            continue
        done = subprocess.run(["bash", "-c", line], cwd=root, capture_output=True, text=True)
        assert done.returncode in (0, 1), f"{where}: {done.stderr}"
        assert done.stderr == "", where


def other_lines() -> Iterator[tuple[str, str, str]]:
    """File, line and the text around it, for each line of a fence that is no command of ours."""
    for path in sorted({path for pattern in skills.DOCUMENTS for path in ROOT.glob(pattern)}):
        text = path.read_text("utf-8")
        ours = {each.line for each in skills.commands(ROOT, path) if each.fenced}
        for match in skills.FENCE.finditer(text):
            first = text[: match.start(3)].count("\n") + 1
            before = text[max(0, match.start() - 300) : match.end() + 300]
            for number, line in enumerate(match[3].splitlines(), first):
                if not match[2] and line.strip() and number not in ours:
                    yield path.name, line.strip(), before
