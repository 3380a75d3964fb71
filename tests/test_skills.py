"""Skills and documents name only what exists; the checker that says so is checked as well."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from skills import ROOT, World, check, world_of

LESSONS = ("DS", "MS", "TG", "RG", "PG", "GS", "GG", "AG")
HOW_MANY = (12, 11, 9, 12, 9, 9, 15, 23)
PARTS = ("skills", "bin", "hooks", ".claude", ".claude-plugin")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")
DESIGN = "skills/finetune-design/SKILL.md"
RUBRIC = "skills/finetune-design/rubric-guide.md"


@pytest.fixture(scope="module")
def world() -> World:
    return world_of(ROOT)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the checker reads; what no test changes is a link."""
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, symlinks=True)
    for part in ("code", "examples"):
        (tmp_path / part).symlink_to(ROOT / part)
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def test_nothing_is_found_and_enough_was_looked_at(world: World) -> None:
    report = check(ROOT, world)
    assert report.findings == []
    assert report.looked_at["skills"] >= 2
    assert report.looked_at["guides"] >= 6
    assert min(report.looked_at["commands"], report.looked_at["links"]) > 50


def test_the_skills_are_valid_by_the_open_specification() -> None:
    """By its own validator, which is stricter than any client."""
    found = sorted(ROOT.glob("skills/*/SKILL.md"))
    assert len(found) >= 2
    for path in found:
        command = [Path(sys.executable).with_name("agentskills"), "validate", path.parent]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# ── each rule finds what it is for ────────────────────────────────────────────────────────────────


def edit(old: str, new: str, file: str = DESIGN) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text("utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new, 1), "utf-8")

    return change


def add(text: str, file: str = DESIGN) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a", encoding="utf-8") as handle:
            handle.write(f"\n{text}\n")

    return change


def drop(pattern: str, file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text("utf-8")
        (root / file).write_text(re.sub(pattern, "", text), "utf-8")

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return change


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a removed hook": (remove("hooks/hooks.json"), "hooks/hooks.json: has hooks for []"),
    "a removed hook of the opened repository": (remove(".claude/settings.json"),
        ".claude/settings.json: has hooks for []"),
    "a hook that leads nowhere": (edit("hooks/gate-hook", "hooks/gate", "hooks/hooks.json"),
        "can't be run"),
    "a longer description": (edit("Not for retrieval", "And so on. " * 20 + "Not for retrieval"),
        "the description has"),
    "an unquoted description": (edit('description: "Yields', "description: Yields"), "frontmatter"),
    "a key of one client": (edit("license: MIT", "license: MIT\nallowed-tools: Bash"),
        "the frontmatter has"),
    "another name": (edit("name: finetune-design", "name: design"), "name 'design'"),
    "another version": (edit('version: "0.1.0"', 'version: "0.0.9"'), "the version is"),
    "a version of the plugin": (edit('"version": "0.1.0"', '"version": "9"',
        ".claude-plugin/plugin.json"), "plugin.json: version 9"),
    "a renamed guide": (remove(RUBRIC), "the link rubric-guide.md leads nowhere"),
    "a broken anchor": (add("[x](rubric-guide.md#no-such-place)"), "no such heading"),
    "a link out of the skill": (add("[x](../../README.md)"), "climbs out"),
    "a path that no project has": (add("`config/rubrics.yaml`"), "has config/rubrics.yaml"),
    "a script that does not exist": (add("`python scripts/sampler.py`"), "there is no sampler.py"),
    "a module that does not exist": (add("`magic.py`"), "there is no magic.py"),
    "a flag of no script": (add("```\npython scripts/assess.py --fast\n```"), "has no --fast"),
    "a flag alone": (add("`--fast`"), "no script and no verb has this flag"),
    "a flag of another verb": (add("`finetune status --live`"), "status has no --live"),
    "a verb that does not exist": (add("`finetune evaluate`"), "there is no evaluate"),
    "a gate that does not exist": (add("`finetune gate personality`"), "no gate personality"),
    "a key that does not exist": (add("`limits.max_words`"), "has this key"),
    "a price": (add("About $ 5 an hour.", RUBRIC), "a price, or a variable"),
    "a variable of one client": (add("`${CLAUDE_SKILL_DIR}/x.py`"), "a variable that"),
    "a model's id": (add("Use gpt-4o-mini.", RUBRIC), "names the model gpt-4o-mini"),
    "a guide that needs another": (add("See persona-guide.", RUBRIC), "depends on persona"),
    "a long guide": (add("line\n" * 200, RUBRIC), "lines, at most 300"),
    "a guide without contents": (drop(r"\(#[^)]+\)", RUBRIC), "no list of contents"),
    "too many words": (add("word " * 900), "at most 250 and 1800"),
    "a missing slot": (edit("- **Read.** [rubric-", "- [rubric-"), "has the slots"),
    "a step without its gate": (edit("`finetune gate rubric`", "look at it"), "names no gate"),
    "a missing step": (edit("### 4. Rubric", "### Rubric"), "steps are numbered"),
    "another first command": (edit("finetune status\n```", "finetune doctor\n```"), "the first"),
    "an edited launcher": (add("# ours", "skills/finetune-design/scripts/finetune.py"),
        "is not bin/finetune"),
    "a missing launcher": (remove("skills/finetune-generate/scripts"), "is not bin/finetune"),
    "a missing icon": (remove(".claude-plugin/icon.png"), "is no square PNG"),
    "a missing link": (remove(".claude/skills/finetune-design"), "is no link to"),
    "Python that does not compile": (add("```python\ndef x(:\n```", RUBRIC), "a python block"),
    "YAML that is none": (add("```yaml\na: [\n```", RUBRIC), "a yaml block"),
    "no skills at all": (remove("skills"), "no skills to check"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, repository: Path, world: World) -> None:
    change, said = MISTAKES[mistake]
    change(repository)
    assert any(said in each for each in check(repository, world).findings)


@pytest.mark.parametrize("verb", ["status", "gate", "judges", "install"])
def test_a_renamed_verb_is_found(verb: str, repository: Path, world: World) -> None:
    verbs = {name if name != verb else f"{verb}-now": flags for name, flags in world.verbs.items()}
    found = check(repository, replace(world, verbs=verbs)).findings
    assert any(f"there is no {verb}" in each for each in found)
    assert f"no skill mentions finetune {verb}-now" in found


def test_a_copy_without_mistakes_has_none(repository: Path, world: World) -> None:
    assert check(repository, world).findings == []


# ── the lessons ───────────────────────────────────────────────────────────────────────────────────


def lessons() -> dict[str, dict[str, Any]]:
    """What the guides have to teach: one entry a lesson, from all files of the list."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "tests/lessons").glob("*.yaml")):
        read = yaml.safe_load(path.read_text("utf-8"))
        assert not found.keys() & read.keys(), path.name
        found |= read
    return found


def section(target: str) -> str:
    """The text below a heading, down to the next one of its level or above."""
    file, _, anchor = target.partition("#")
    text = (ROOT / file).read_text("utf-8")
    lines, taken, level = text.splitlines(), [], 0
    for line in lines:
        depth = len(line) - len(line.lstrip("#")) if re.match(r"#{1,6} ", line) else 0
        if level and depth and depth <= level:
            break
        slug = re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        level = depth if depth and slug == anchor and not level else level
        taken += [line] if level else []
    return "\n".join(taken)


def test_the_list_of_lessons_is_whole() -> None:
    wanted = {f"{part}{n}" for part, count in zip(LESSONS, HOW_MANY, strict=True)
              for n in range(1, count + 1)}  # fmt: skip
    assert set(lessons()) == wanted
    assert all(set(each) <= {"says", "taught", "words", "never"} for each in lessons().values())


@pytest.mark.parametrize("name", sorted(lessons()))
def test_each_lesson_is_taught_where_the_list_says(name: str) -> None:
    lesson = lessons()[name]
    assert lesson["taught"]
    assert lesson["words"]
    said = re.sub(r"\s+", " ", " ".join(map(section, lesson["taught"]))).lower()
    assert said, lesson["taught"]
    assert [word for word in lesson["words"] if str(word).lower() not in said] == []


def test_no_wrong_form_of_a_lesson_has_come_back() -> None:
    wrong = {name: each["never"] for name, each in lessons().items() if "never" in each}
    pages = [*ROOT.glob("skills/**/*.md"), *ROOT.glob("examples/*.md")]
    texts = {path.name: re.sub(r"\s+", " ", path.read_text("utf-8")) for path in pages}
    assert len(wrong) > 10
    found = Counter((name, page) for name, pattern in wrong.items() for page, text in texts.items()
                    if re.search(pattern, text))  # fmt: skip
    assert found == {}


def test_a_section_ends_at_the_next_heading_of_its_level() -> None:
    whole = section(f"{DESIGN}#4-rubric")
    assert whole.startswith("### 4. Rubric\n")
    assert "### 5." not in whole
