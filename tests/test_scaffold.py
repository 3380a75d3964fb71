"""A new project: which files it gets, what is recorded, and that nothing is ever overwritten."""

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from finetune_skills import bundle as bundles
from finetune_skills.scaffold import (
    BASE,
    FILLED,
    MANIFEST,
    STARTED,
    bundle_files,
    create_project,
    digest,
    render,
)
from infrastructure import PLACEHOLDER, DiskStop, FinetuneError

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "code/BUNDLE": '{"name": "finetune-skills", "schema": 1}',
    "code/README.md": "not for projects",
    "code/infrastructure.py": "KERNEL = 1\n",
    "code/settings.py": "SETTINGS = 1\n",
    "code/finetune_skills/cli.py": "never copied\n",
    "code/templates/.gitignore": "data/\n",
    "code/templates/.env.example": "HF_TOKEN=\n",
    "code/templates/.env": "HF_TOKEN=secret\n",
    "code/templates/README.md": "# {{domain}}\n",
    "code/templates/config/project.yaml": 'domain: "{{domain}}"\nbudget: {{budget}}\n',
    "code/templates/config/prompts/assistant.md": "You are {{domain}}.\n",
    "code/templates/scripts/generate.py": "print('go')\n",
    "code/templates/scripts/__pycache__/generate.cpython-311.pyc": "cache",
}
VALUES = {"domain": "tea", "budget": 5}


class Killed(BaseException):
    """As if by kill -9: no clean-up reaches the disk any more."""


@contextlib.contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Die before (even steps) or after (odd steps) one of the calls that change a folder."""
    done = 0

    def wrap(call: Callable[..., None]) -> Callable[..., None]:
        def changed(*args: Any, **kwargs: Any) -> None:
            nonlocal done
            if step < done:
                raise Killed
            done += 2
            if step == done - 2:
                raise Killed
            call(*args, **kwargs)
            if step == done - 1:
                raise Killed

        return changed

    calls = {name: wrap(getattr(os, name)) for name in ("replace", "unlink", "rmdir")}
    with mock.patch.multiple(os, **calls):
        yield


def survives(step: int, work: Callable[[], object]) -> bool:
    """Whether the work got through without reaching that step."""
    try:
        with dying_at(step):
            work()
    except Killed:
        return False
    return True


@contextlib.contextmanager
def disk_refuses(name: str, number: int) -> Iterator[None]:
    """No file can be replaced whose path ends like that."""
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if str(target).endswith(name):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    with mock.patch.object(os, "replace", refuse):
        yield


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder; what a killed writer had only begun does not count."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.suffix != ".partial"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", FILES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "project"


def refused(root: Path, bundle: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        create_project(root, bundle, VALUES)
    return str(caught.value)


# What a project gets


def test_a_project_gets_modules_and_templates_with_dot_files_and_without_caches_and_secrets(
    bundle: Path,
) -> None:
    assert list(bundle_files(bundle)) == [
        "infrastructure.py", "settings.py", ".env.example", ".gitignore", "README.md",
        "config/project.yaml", "config/prompts/assistant.md", "scripts/generate.py",
    ]  # fmt: skip


def test_a_module_that_is_also_a_template_is_an_error_of_the_bundle(bundle: Path) -> None:
    write(bundle, {"code/templates/settings.py": ""})
    with pytest.raises(FinetuneError, match=r"settings\.py is a module and a template"):
        bundle_files(bundle)


def test_every_file_is_written_and_recorded_with_its_exact_text(root: Path, bundle: Path) -> None:
    written = create_project(root, bundle, VALUES)
    found = tree(root)
    assert {path.relative_to(root).as_posix() for path in written} == set(bundle_files(bundle))
    assert all(found[f"{BASE}/{name}"] == found[name] for name in bundle_files(bundle))
    manifest = json.loads(found[MANIFEST])
    assert manifest["files"]["settings.py"]["sha256"] == digest(b"SETTINGS = 1\n")
    assert STARTED not in found


def test_only_the_named_files_are_filled_and_the_rest_keeps_its_placeholders(
    root: Path, bundle: Path
) -> None:
    create_project(root, bundle, VALUES)
    assert (root / "README.md").read_text() == "# tea\n"
    assert (root / "config/project.yaml").read_text() == 'domain: "tea"\nbudget: 5\n'
    assert (root / "config/prompts/assistant.md").read_text() == "You are {{domain}}.\n"


def test_a_value_is_filled_once_and_stays_one_value_in_yaml() -> None:
    filled = render("config/project.yaml", b'a: "{{a}}"\n', {"a": '{{b}} "x" \\', "b": 1})
    assert filled == b'a: "{{b}} \\"x\\" \\\\"\n'


def test_a_missing_value_and_a_value_of_two_lines_are_refused(root: Path, bundle: Path) -> None:
    with pytest.raises(FinetuneError, match=r"config/project\.yaml: budget"):
        create_project(root, bundle, {"domain": "tea"})
    with pytest.raises(FinetuneError, match="control character"):
        create_project(root, bundle, {"domain": "tea\nroles: x", "budget": 5})
    assert not root.exists()


def test_programs_stay_programs(root: Path, bundle: Path) -> None:
    (bundle / "code/templates/scripts/generate.py").chmod(0o755)
    create_project(root, bundle, VALUES)
    assert stat.S_IMODE((root / "scripts/generate.py").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "README.md").stat().st_mode) == 0o644


def test_the_repository_itself_is_a_bundle_that_makes_projects(root: Path) -> None:
    files = bundle_files(ROOT)
    names = [PLACEHOLDER.findall(files[path].read_text()) for path in FILLED & files.keys()]
    create_project(root, ROOT, {name: "value" for each in names for name in each})
    assert (root / "infrastructure.py").read_bytes() == (
        ROOT / "code/infrastructure.py"
    ).read_bytes()


# Nothing is overwritten


def test_files_in_the_way_are_all_named_and_nothing_is_written(root: Path, bundle: Path) -> None:
    write(root, {"settings.py": "mine", "scripts/generate.py": "mine", "notes.md": "mine"})
    before = tree(root)
    said = refused(root, bundle)
    assert "settings.py" in said
    assert "scripts/generate.py" in said
    assert "notes.md" not in said
    assert tree(root) == before


def test_other_files_are_in_nobodys_way(root: Path, bundle: Path) -> None:
    write(root, {"notes.md": "mine", "scripts/mine.py": "mine"})
    (root / ".finetune").mkdir()
    create_project(root, bundle, VALUES)
    assert (root / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("name", [".finetune/ledger.jsonl", "config", "scripts"])
def test_a_used_record_and_a_file_in_place_of_a_folder_are_in_the_way(
    root: Path, bundle: Path, name: str
) -> None:
    write(root, {name: "mine"})
    assert name.split("/")[0] in refused(root, bundle)
    assert list(tree(root)) == [name]


def test_links_are_in_the_way_and_never_written_through(
    root: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    (root / "scripts").symlink_to(tmp_path / "elsewhere")
    (root / "README.md").symlink_to(tmp_path / "nowhere")
    said = refused(root, bundle)
    assert "scripts/generate.py" in said
    assert "README.md (is a symbolic link" in said
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_second_init_is_refused(root: Path, bundle: Path) -> None:
    create_project(root, bundle, VALUES)
    assert ".finetune" in refused(root, bundle)


def test_a_file_in_place_of_the_project_is_refused(root: Path, bundle: Path) -> None:
    root.write_text("mine")
    assert "a file of this name" in refused(root, bundle)


# Crashes and disks


def test_after_a_death_at_any_step_the_same_command_finishes(tmp_path: Path, bundle: Path) -> None:
    def clock() -> float:
        return 0.0

    create_project(tmp_path / "whole", bundle, VALUES, clock)
    whole, step = tree(tmp_path / "whole"), 0
    while True:
        root = tmp_path / f"p{step}"
        through = survives(step, lambda root=root: create_project(root, bundle, VALUES, clock))
        if through:
            break
        with contextlib.suppress(FinetuneError):  # it had finished, in all but the last step
            create_project(root, bundle, VALUES, clock)
        assert tree(root) == whole
        step += 1
    assert step > 2 * len(bundle_files(bundle))


def test_after_a_crash_a_file_that_a_person_has_changed_is_not_overwritten(
    root: Path, bundle: Path
) -> None:
    assert not survives(9, lambda: create_project(root, bundle, VALUES))
    (root / "infrastructure.py").write_text("mine")
    assert "infrastructure.py" in refused(root, bundle)
    assert (root / "infrastructure.py").read_text() == "mine"


def test_a_full_disk_is_one_line_and_the_rerun_finishes(root: Path, bundle: Path) -> None:
    with disk_refuses("/generate.py", 28), pytest.raises(DiskStop, match="No space left"):
        create_project(root, bundle, VALUES)
    create_project(root, bundle, VALUES)
    assert MANIFEST in tree(root)


# The bundle's modules come first


def test_use_bundle_puts_the_bundles_modules_first_and_only_once() -> None:
    with mock.patch("sys.path", ["", "/project", str(ROOT / "code")]) as path:
        assert bundles.use_bundle() == bundles.use_bundle() == ROOT / "code"
        assert path == [str(ROOT / "code"), "", "/project"]
