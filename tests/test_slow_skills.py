"""The skills in the real Claude Code client: what the model is offered, what it loads, what runs.

Each assertion is a function, tried on this repository in two ways of using it, as a plugin and
opened, and then on copies with a fault: it has to fail there. And every grader of the evals is
seen passing and failing.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import client
import evals
import slow_parts
from client import asked, bash, results, texts
from fakes.provider import FakeProvider, Request
from skills import parts
from test_command import finetune
from test_hook import program
from test_slow_plugin import open_gate

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
SKILLS = ("finetune-design", "finetune-generate")
CLIENTS = ("claude", "claude-new")
WAYS = ("plugin", "opened")
NAMED = re.compile(r"\]\(([\w./-]+)\)|`(?:python3 )?(scripts/finetune\.py)`")
PARTS = (".claude", ".claude-plugin", "bin", "code", "examples", "hooks", "skills")


@dataclass(frozen=True)
class Place:
    """A copy of the repository, one way of using it, and the client that does."""

    root: Path
    way: str
    part: str
    home: Path
    fake: FakeProvider

    @property
    def prefix(self) -> str:
        return "finetune-skills:" if self.way == "plugin" else ""

    @property
    def project(self) -> Path:
        """Inside the opened repository, or beside the plugin."""
        return (self.root if self.way == "opened" else self.home) / "demo"

    def base(self, skill: str) -> Path:
        return self.root / (".claude/skills" if self.way == "opened" else "skills") / skill

    def session(self, turns: list[client.Turn]) -> None:
        """Opened means the repository itself; a plugin is used from the project."""
        words = ["--plugin-dir", str(self.root)] if self.way == "plugin" else []
        folder = self.root if self.way == "opened" else self.project
        client.start(folder, self.home, self.fake, turns, *words, part=self.part)


def copied(to: Path) -> Path:
    """The repository as somebody has it, links included, with the files that git would know."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", *PARTS]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    assert len(names) > 100
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def place(tmp_path: Path, fake: FakeProvider) -> Callable[[str, str], Place]:
    """A copy with a project, whose stage leaves a mark when it runs."""

    def make(way: str, part: str) -> Place:
        slow_parts.require(part)
        for name in ("python", "python3"):
            program(tmp_path / f"home/bin/{name}", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        made = Place(copied(tmp_path / "copy"), way, part, tmp_path / "home", fake)
        assert finetune(made.project.parent, "init", "demo").returncode == 0
        text = "open('TRAINED', 'w').close(); print('trained')\n"
        (made.project / "scripts/train.py").write_text(text)
        return made

    return make


# ── what has to hold ──────────────────────────────────────────────────────────────────────────────


def assert_offered(place: Place) -> None:
    """Each skill in one line of the list, once, with its whole description."""
    lines = [line for text in texts(asked(place.fake)[-1]) for line in text.splitlines()]
    for skill in SKILLS:
        told = yaml.safe_load(parts(place.root / f"skills/{skill}/SKILL.md")[0])["description"]
        offered = [line for line in lines if re.match(rf"- (?:[\w-]+:)?{skill}:", line)]
        assert offered == [f"- {place.prefix}{skill}: {told}"]


def loaded(request: Request) -> list[str]:
    return [text for text in texts(request) if text.startswith("Base directory for this skill:")]


def assert_loaded(place: Place) -> None:
    """The base directory as announced, then the text without its front matter, all filled in."""
    for skill, text in zip(SKILLS, loaded(asked(place.fake)[-1]), strict=True):
        first, _, body = text.partition("\n")
        assert first == f"Base directory for this skill: {place.base(skill)}"
        assert body.strip() == parts(place.root / f"skills/{skill}/SKILL.md")[1].strip()
        assert "${" not in text


def assert_paths(place: Place) -> None:
    """Every path that a loaded text names below the skill's folder is there."""
    for skill, text in zip(SKILLS, loaded(asked(place.fake)[-1]), strict=True):
        names = {link or script for link, script in NAMED.findall(text)}
        assert len(names) >= 3
        assert [name for name in sorted(names) if not (place.base(skill) / name).is_file()] == []


def assert_launched(place: Place) -> None:
    """The launchers, started by the announced folders, said where the project stands."""
    said = results(place.fake)[-len(SKILLS) :]
    for failed, text in said:
        assert not failed
        assert "Next: finetune gate model" in text


def load_and_launch(place: Place) -> None:
    turns: list[client.Turn] = [{"Skill": {"skill": place.prefix + skill}} for skill in SKILLS]
    launch = 'cd "{}" && python3 "{}/scripts/finetune.py" status'
    place.session(turns + bash(*(launch.format(place.project, place.base(s)) for s in SKILLS)))


def assert_gated(place: Place) -> None:
    """Closed: stopped before it ran. Open: ran. Stale: stopped again."""
    closed, _, ran, _, stale = results(place.fake)
    assert closed[0]
    assert "finetune: stopped before it ran." in closed[1]
    assert (ran[0], "trained" in ran[1]) == (False, True)
    assert stale[0]
    assert "stale" in stale[1]
    assert not (place.project / "TRAINED").exists()


def run_gated(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the stage, open its gate, try it, change what the gate looked at, try it."""
    open_gate(place.project, monkeypatch)
    (place.project / ".finetune/ledger.jsonl").rename(place.home / "ledger")
    into = f"cd {place.project} && "
    change = "sed -i.old 's/offline: true/offline: false/' config/project.yaml && rm TRAINED"
    opened = f"cp {place.home}/ledger .finetune/ledger.jsonl"
    stage = "python scripts/train.py"
    place.session(bash(*(into + each for each in (stage, opened, stage, change, stage))))


# ── on this repository ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", CLIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_each_skill_is_offered_whole_once_loads_and_starts_its_launcher(
    way: str, part: str, place: Callable[[str, str], Place]
) -> None:
    here = place(way, part)
    load_and_launch(here)
    assert_offered(here)
    assert_loaded(here)
    assert_paths(here)
    assert_launched(here)


@pytest.mark.parametrize("part", CLIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_hook_stops_a_closed_gate_and_a_stale_one(
    way: str, part: str, place: Callable[[str, str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place(way, part)
    run_gated(here, monkeypatch)
    assert_gated(here)


@pytest.mark.parametrize("part", CLIENTS)
def test_the_client_finds_nothing_wrong_with_the_plugin(
    part: str, place: Callable[[str, str], Place]
) -> None:
    here = place("plugin", part)
    assert validated(here).returncode == 0
    manifest = here.root / ".claude-plugin/plugin.json"
    manifest.write_text(manifest.read_text().replace('"name"', '"nom"', 1))
    assert validated(here).returncode != 0


def validated(place: Place) -> subprocess.CompletedProcess[str]:
    words = ["plugin", "validate", "--strict", str(place.root / ".claude-plugin/plugin.json")]
    command = [slow_parts.client(place.part), *words]
    return client.run(command, place.root, place.home, place.fake.url)


# ── on copies with a fault, each assertion fails ──────────────────────────────────────────────────


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_description_an_open_variable_a_missing_guide_and_launcher_are_noticed(
    way: str, place: Callable[[str, str], Place]
) -> None:
    here = place(way, "claude")
    skill = here.root / "skills/finetune-design"
    edit(skill / "SKILL.md", 'description: "', 'description: "' + "Very long. " * 150)
    edit(skill / "SKILL.md", "`python3 scripts", "`python3 ${CLAUDE_PLUGIN_DATA_DIR}/scripts")
    (skill / "taxonomy-guide.md").unlink()
    (skill / "scripts/finetune.py").rename(skill / "scripts/launch.py")
    load_and_launch(here)
    for holds in (assert_offered, assert_loaded, assert_paths, assert_launched):
        with pytest.raises(AssertionError):
            holds(here)


def test_a_missing_link_is_noticed(place: Callable[[str, str], Place]) -> None:
    here = place("opened", "claude")
    (here.root / ".claude/skills/finetune-generate").unlink()
    here.session([])
    with pytest.raises(AssertionError):
        assert_offered(here)


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_hook_is_noticed(
    way: str, place: Callable[[str, str], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place(way, "claude")
    settings = here.root / ("hooks/hooks.json" if way == "plugin" else ".claude/settings.json")
    kept = {name: of for name, of in json.loads(settings.read_text())["hooks"].items()
            if name != "PreToolUse"}  # fmt: skip
    settings.write_text(json.dumps({"hooks": kept}))
    run_gated(here, monkeypatch)
    with pytest.raises(AssertionError):
        assert_gated(here)


# ── another client ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("agent", ["agents", "claude"])
def test_opencode_finds_both_skills_where_our_command_put_them(
    agent: str, tmp_path: Path, fake: FakeProvider
) -> None:
    slow_parts.require("opencode")
    folder = tmp_path / "work"
    subprocess.run(["git", "init", "--quiet", folder], check=True)  # else it searches from /
    assert finetune(folder, "install", "--project", "--agent", agent).returncode == 0
    command = [slow_parts.client("opencode"), "debug", "skill"]
    told = client.run(command, folder, tmp_path / "home", fake.url)
    found = {each["name"]: each for each in json.loads(told.stdout) if each["name"] in SKILLS}
    assert sorted(found) == sorted(SKILLS)
    for skill, each in found.items():
        own = ROOT / f"skills/{skill}/SKILL.md"
        assert each["location"] == str(folder / f".{agent}/skills/{skill}/SKILL.md")
        assert each["description"] == yaml.safe_load(parts(own)[0])["description"]
        assert each["content"].strip() == parts(own)[1].strip()


# ── the evals ─────────────────────────────────────────────────────────────────────────────────────


def test_every_grader_of_the_evals_is_seen_passing_and_failing() -> None:
    slow_parts.require("claude-new")
    cases = evals.load(ROOT)
    assert len(cases) > 50
    assert evals.prove(cases) == []
