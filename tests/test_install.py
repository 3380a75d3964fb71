"""Installing skills for an agent: repeatable, never over a person's own files, and out again."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from finetune_skills.install import (
    NOTE,
    InstallReport,
    install,
    overlapping_skills,
    skill_name,
    uninstall,
)
from infrastructure import DiskStop, FinetuneError
from test_scaffold import FILES, disk_refuses, survives, tree, write

ROOT = Path(__file__).resolve().parent.parent
DESIGN, GUIDE = "finetune-design/SKILL.md", "finetune-design/rubric-guide.md"
KERNEL = "code/infrastructure.py"
BUNDLE = FILES | {
    f"skills/{DESIGN}": '---\nname: finetune-design\ndescription: "x"\n---\nDesign.\n',
    f"skills/{GUIDE}": "A guide.\n",
    "skills/finetune-design/scripts/finetune.py": "#!/usr/bin/env python3\n",
    "examples/therapy-domain.md": "An example.\n",
    "examples/support-desk/config/project.yaml": "domain: desk\n",
    "examples/support-desk/data/raw/t1.json": "made by a run",
    "examples/support-desk/.env": "HF_TOKEN=secret\n",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write(tmp_path / "bundle", BUNDLE)
    (root / "skills/finetune-design/scripts/finetune.py").chmod(0o755)
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A person's project, with something of their own in it."""
    return write(tmp_path / "project", {"mine.txt": "mine"})


def target(place: Path) -> Path:
    return place / ".claude/skills"


# Putting it there


def test_skills_code_and_examples_lie_where_the_agent_and_a_copy_command_find_them(
    place: Path, bundle: Path
) -> None:
    report = install(bundle, place)
    found = tree(place)
    assert {f".claude/skills/{name}" for name in (DESIGN, GUIDE, KERNEL)} <= found.keys()
    assert ".claude/skills/examples/therapy-domain.md" in found
    assert ".claude/skills/code/templates/.env.example" in found
    assert ".claude/skills/code/finetune_skills/install.py" in found
    assert (report.exit_code, report.missing, report.unchanged) == (0, [], [])
    assert len(report.added) == len(found) - 2


def test_caches_secrets_and_what_runs_made_stay_out(place: Path, bundle: Path) -> None:
    report = install(bundle, place)
    assert not [name for name in report.added if name.endswith((".env", ".pyc", "t1.json"))]


def test_the_launcher_stays_a_program(place: Path, bundle: Path) -> None:
    install(bundle, place)
    launcher = target(place) / "finetune-design/scripts/finetune.py"
    assert launcher.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("agent", "folder"), [("claude", ".claude/skills"), ("agents", ".agents/skills")]
)
@pytest.mark.parametrize("scope", ["project", "user"])
def test_each_agent_has_its_folder(
    place: Path, bundle: Path, agent: str, folder: str, scope: str
) -> None:
    report = install(bundle, place, agent, scope)
    assert report.target == place / folder
    assert (place / folder / DESIGN).is_file()


def test_an_unknown_agent_is_named_with_those_there_are(place: Path, bundle: Path) -> None:
    with pytest.raises(FinetuneError, match=r"'cursor'.*claude, agents"):
        install(bundle, place, "cursor")


def test_what_the_bundle_does_not_have_is_said(place: Path, tmp_path: Path) -> None:
    report = install(write(tmp_path / "bare", FILES), place)
    assert report.missing == ["skills", "examples"]
    assert (target(place) / KERNEL).is_file()
    assert report.exit_code == 0


def test_the_repository_itself_can_be_installed_and_removed(place: Path) -> None:
    install(ROOT, place)
    kernel = (target(place) / KERNEL).read_bytes()
    assert kernel == (ROOT / KERNEL).read_bytes()
    assert not [name for name in tree(place) if "/evals/" in name]
    uninstall(place)
    assert list(tree(place)) == ["mine.txt"]


def test_the_bundle_is_not_installed_into_itself(bundle: Path) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(FinetuneError, match="is the bundle itself"):
        install(bundle, bundle)
    assert sorted(bundle.rglob("*")) == before


def test_an_installed_copy_can_be_installed_elsewhere(
    place: Path, bundle: Path, tmp_path: Path
) -> None:
    install(bundle, place)
    again = install(target(place), tmp_path / "other")
    assert again.missing == []
    assert {*again.added} >= {DESIGN, GUIDE, KERNEL}


# Again


def test_a_second_run_changes_nothing(place: Path, bundle: Path) -> None:
    install(bundle, place)
    before = tree(place)
    report = install(bundle, place)
    assert (report.added, report.updated, report.removed, report.kept) == ([], [], [], {})
    assert tree(place) == before


def test_what_changed_in_the_bundle_is_updated_and_what_left_it_is_removed(
    place: Path, bundle: Path
) -> None:
    install(bundle, place)
    write(bundle, {"code/infrastructure.py": "KERNEL = 2\n", "skills/finetune-design/new.md": "n"})
    (bundle / "skills" / GUIDE).unlink()
    report = install(bundle, place)
    assert (report.updated, report.removed) == ([KERNEL], [GUIDE])
    assert report.added == ["finetune-design/new.md"]
    assert not (target(place) / GUIDE).exists()


def test_a_bundle_without_skills_takes_none_away(place: Path, bundle: Path) -> None:
    install(bundle, place)
    shutil.rmtree(bundle / "skills")
    assert install(bundle, place).removed == []
    assert (target(place) / DESIGN).is_file()


def test_a_file_that_a_person_changed_is_kept_and_reported_unless_forced(
    place: Path, bundle: Path
) -> None:
    install(bundle, place)
    write(target(place), {GUIDE: "my own guide"})
    write(bundle, {f"skills/{GUIDE}": "A better guide.\n"})
    report = install(bundle, place)
    assert (report.kept, report.exit_code) == ({GUIDE: "was changed by you"}, 1)
    assert (target(place) / GUIDE).read_text() == "my own guide"
    assert install(bundle, place, force=True).updated == [GUIDE]
    assert (target(place) / GUIDE).read_text() == "A better guide.\n"


def test_line_endings_converted_by_git_are_no_changes(place: Path, bundle: Path) -> None:
    install(bundle, place)
    write(target(place), {GUIDE: "A guide.\r\n"})
    assert install(bundle, place).kept == {}
    write(bundle, {f"skills/{GUIDE}": "A better guide.\n"})
    assert install(bundle, place).updated == [GUIDE]


# What is not ours


def test_a_folder_of_somebody_else_is_left_alone_as_a_whole(place: Path, bundle: Path) -> None:
    write(target(place), {DESIGN: "---\nname: finetune-design\n---\nAn older skill.\n"})
    report = install(bundle, place)
    assert list(report.kept) == ["finetune-design/"]
    assert "another skill" in report.warnings[0]
    assert not (target(place) / GUIDE).exists()
    assert (target(place) / KERNEL).is_file()
    assert install(bundle, place, force=True).updated == [DESIGN]


def test_other_files_in_a_shared_folder_are_no_obstacle(place: Path, bundle: Path) -> None:
    write(target(place), {"examples/mine.md": "mine", "my-skill/SKILL.md": "mine"})
    report = install(bundle, place)
    assert (report.kept, report.warnings) == ({}, [])
    uninstall(place)
    assert tree(target(place)) == {"examples/mine.md": b"mine", "my-skill/SKILL.md": b"mine"}


def test_skills_that_could_be_taken_for_ours_are_named(place: Path, bundle: Path) -> None:
    skill = "---\ndescription: x\nname: 'finetune-design'\n---\n"
    write(target(place), {"design/SKILL.md": skill, "finetune-old/notes.md": "", "x/SKILL.md": "y"})
    report = install(bundle, place)
    assert [said.split(":")[0].split("/")[-1] for said in report.warnings] == [
        "design",
        "finetune-old",
    ]
    assert install(bundle, place).warnings == report.warnings
    assert overlapping_skills(place / "nowhere", bundle) == []


@pytest.mark.parametrize("text", ["no frontmatter", "---\nx: y\n---\nname: body\n", "", b"\xff\0"])
def test_a_skill_without_a_name_has_none(tmp_path: Path, text: str | bytes) -> None:
    assert skill_name(write(tmp_path, {"SKILL.md": text}) / "SKILL.md") == ""


def test_links_in_the_target_are_neither_followed_nor_replaced(
    place: Path, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path, {"elsewhere/SKILL.md": "theirs"})
    target(place).mkdir(parents=True)
    (target(place) / "finetune-design").symlink_to(tmp_path / "elsewhere")
    (target(place) / "code").mkdir()
    (target(place) / KERNEL).symlink_to(tmp_path / "nowhere")
    for force in (False, True):
        report = install(bundle, place, force=force)
        assert report.exit_code == 1
    assert KERNEL in report.kept
    assert DESIGN in report.kept
    uninstall(place)
    assert tree(tmp_path / "elsewhere") == {"SKILL.md": b"theirs"}
    assert (target(place) / KERNEL).is_symlink()
    assert (target(place) / "finetune-design").is_symlink()


def test_a_project_whose_skills_folder_is_a_link_is_refused_and_a_home_is_not(
    place: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (place / ".claude").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FinetuneError, match="symbolic link"):
        install(bundle, place)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    report = install(bundle, place, scope="user")
    assert report.target == (tmp_path / "elsewhere/skills").resolve()


# Taking it away


def test_uninstall_leaves_the_folder_as_it_was(place: Path, bundle: Path) -> None:
    before = tree(place)
    install(bundle, place)
    write(target(place), {"code/__pycache__/infrastructure.cpython-311.pyc": "compiled"})
    uninstall(place)
    assert tree(place) == before
    assert not (place / ".claude").exists()


def test_uninstall_keeps_what_was_changed_and_can_be_finished_later(
    place: Path, bundle: Path
) -> None:
    install(bundle, place)
    write(target(place), {GUIDE: "my own guide", "finetune-design/notes.md": "mine"})
    report = uninstall(place)
    assert (report.kept, report.exit_code) == ({GUIDE: "was changed by you"}, 1)
    assert set(tree(target(place))) == {GUIDE, "finetune-design/notes.md", NOTE}
    (target(place) / GUIDE).unlink()
    uninstall(place)
    assert set(tree(target(place))) == {"finetune-design/notes.md"}


def test_uninstall_keeps_an_equal_file_that_was_there_before(place: Path, bundle: Path) -> None:
    write(target(place), {"examples/therapy-domain.md": "An example.\n"})
    assert install(bundle, place).unchanged == ["examples/therapy-domain.md"]
    assert list(uninstall(place).kept) == ["examples/therapy-domain.md"]
    assert list(tree(target(place))) == ["examples/therapy-domain.md"]


def test_uninstall_where_nothing_was_installed_says_so(place: Path) -> None:
    with pytest.raises(FinetuneError, match="nothing was installed"):
        uninstall(place)


@pytest.mark.parametrize("name", ["../../mine.txt", "/etc/hostname", "code/../../../mine.txt"])
def test_a_crafted_record_cannot_reach_outside(place: Path, bundle: Path, name: str) -> None:
    install(bundle, place)
    record = json.loads((target(place) / NOTE).read_text())
    record["files"][name] = {"sha256": record["files"][KERNEL]["sha256"]}
    write(target(place), {NOTE: json.dumps(record)})
    with pytest.raises(FinetuneError, match="damaged"):
        uninstall(place)
    assert (place / "mine.txt").read_text() == "mine"


def test_crafted_folders_are_not_removed(place: Path, bundle: Path) -> None:
    install(bundle, place)
    (place / "empty").mkdir()
    record = json.loads((target(place) / NOTE).read_text())
    record["folders"] += ["../../empty", "x/../../../empty", "/empty"]
    write(target(place), {NOTE: json.dumps(record)})
    uninstall(place)
    assert (place / "empty").is_dir()


# Deaths and disks


def small(tmp_path: Path) -> Path:
    """A bundle of few files, so that every step can be tried."""
    names = ("code/BUNDLE", "code/infrastructure.py", f"skills/{DESIGN}", f"skills/{GUIDE}")
    return write(tmp_path / "small", {name: BUNDLE[name] for name in names})


def put(bundle: Path, place: Path) -> InstallReport:
    return install(bundle, place, clock=lambda: 0.0)


def test_after_a_death_at_any_step_the_rerun_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_skills.install._command", dict)
    bundle, old = small(tmp_path), tmp_path / "old"
    put(bundle, old)
    write(target(old), {GUIDE: "my own guide"})
    write(bundle, {"code/infrastructure.py": "KERNEL = 2\n", "code/formats.py": "F = 1\n"})
    (bundle / "skills" / DESIGN).rename(bundle / "skills/finetune-design/SKILL.md.txt")
    whole = shutil.copytree(old, tmp_path / "whole")
    put(bundle, whole)
    step, finished = 0, False
    while not finished:
        place = shutil.copytree(old, tmp_path / f"died-{step}")
        finished = survives(step, lambda place=place: put(bundle, place))
        put(bundle, place)
        assert tree(place) == tree(whole), step
        step += 1
    assert step > 8


def test_after_a_death_at_any_step_uninstall_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_skills.install._command", dict)
    put(small(tmp_path), tmp_path / "old")
    step, finished = 0, False
    while not finished:
        place = shutil.copytree(tmp_path / "old", tmp_path / f"died-{step}")
        finished = survives(step, lambda place=place: uninstall(place))
        with contextlib.suppress(FinetuneError):  # when its record was the last to go
            uninstall(place)
        assert tree(place) == {}
        step += 1
    assert step > 8


def test_a_full_disk_is_one_line_and_the_rerun_finishes(place: Path, bundle: Path) -> None:
    with disk_refuses("/rubric-guide.md", 28), pytest.raises(DiskStop, match="No space left"):
        install(bundle, place)
    assert install(bundle, place).kept == {}
    assert (target(place) / GUIDE).is_file()
