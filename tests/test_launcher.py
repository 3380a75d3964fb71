"""The launcher: finds the bundle from wherever it lies, and never uses what lies around it."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = ROOT / "bin/finetune"
LOCK = ROOT / "code/requirements.lock"
SAYS = """
import json, os, sys
def main():
    if sys.argv[1:2] == ["exit"]:
        return int(sys.argv[2])
    told = {"argv": sys.argv, "from": __file__, "path": sys.path, "cwd": os.getcwd()}
    print(json.dumps(told | {"prefix": sys.prefix, "env": dict(os.environ)}))
"""
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def bundle_at(root: Path, lock: str = "# nothing\n") -> Path:
    """A bundle whose command tells how it was started; it needs no packages."""
    package = root / "code/finetune_skills"
    package.mkdir(parents=True)
    (root / "code/BUNDLE").write_text('{"name": "finetune-skills", "schema": 1}')
    (root / "code/requirements.lock").write_text(lock)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(SAYS)
    return root


def launcher_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(LAUNCHER, path)
    return path


def run(launcher: Path, *arguments: str, cwd: Path, **environment: str) -> Done:
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, str(launcher), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=plain | environment,
        check=False,
    )


def told(done: Done) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# Where the bundle is


def plugin(root: Path) -> Path:
    return launcher_at(bundle_at(root / "plugin") / "bin/finetune")


def plugin_skill(root: Path) -> Path:
    return launcher_at(bundle_at(root / "plugin") / "skills/finetune-design/scripts/finetune.py")


def opened_repository(root: Path) -> Path:
    launcher_at(bundle_at(root / "repo") / "skills/finetune-design/scripts/finetune.py")
    (root / "repo/.claude/skills").mkdir(parents=True)
    link = root / "repo/.claude/skills/finetune-design"
    link.symlink_to("../../skills/finetune-design")
    return link / "scripts/finetune.py"


def installed_skill(root: Path) -> Path:
    skills = bundle_at(root / "project/.claude/skills")
    return launcher_at(skills / "finetune-design/scripts/finetune.py")


def link_on_the_path(root: Path) -> Path:
    (root / "own-bin").mkdir()
    (root / "own-bin/finetune").symlink_to(plugin(root))
    return root / "own-bin/finetune"


def wheel(root: Path) -> Path:
    package = root / "site-packages/finetune_skills"
    bundle = bundle_at(package / "_bundle")
    for name in ("__init__.py", "cli.py"):
        (bundle / "code/finetune_skills" / name).rename(package / name)
    return launcher_at(bundle / "bin/finetune")


PLACES = [plugin, plugin_skill, opened_repository, installed_skill, link_on_the_path, wheel]


@pytest.mark.parametrize("place", PLACES)
def test_the_launcher_finds_its_bundle_and_passes_the_arguments_on(
    place: Callable[[Path], Path], tmp_path: Path, home: Path
) -> None:
    odd = ["gate", "two words", "", "--json", "'$HOME'"]
    said = told(run(place(tmp_path), *odd, cwd=home))
    assert said["argv"] == ["finetune", *odd]
    assert str(said["from"]).startswith(str(tmp_path))
    assert said["cwd"] == str(home)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_exit_code_is_the_commands_own(code: int, tmp_path: Path, home: Path) -> None:
    assert run(plugin(tmp_path), "exit", str(code), cwd=home).returncode == code


def test_it_is_executable_by_its_first_line(tmp_path: Path, home: Path) -> None:
    launcher = plugin(tmp_path)
    done = subprocess.run([launcher, "exit", "3"], cwd=home, check=False)
    assert done.returncode == 3


def test_another_folders_marker_is_no_bundle(tmp_path: Path, home: Path) -> None:
    launcher = plugin(tmp_path)
    (tmp_path / "plugin/code/BUNDLE").write_text('{"name": "another"}')
    assert run(launcher, cwd=home).returncode == 2


def test_it_looks_at_most_four_levels_up(tmp_path: Path, home: Path) -> None:
    far = launcher_at(bundle_at(tmp_path / "b") / "1/2/3/4/finetune.py")
    near = launcher_at(tmp_path / "b/1/2/3/finetune.py")
    assert [run(each, "exit", "0", cwd=home).returncode for each in (near, far)] == [0, 2]


# Without a bundle


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def lone(root: Path) -> Path:
    return launcher_at(root / "alone/skills/finetune-design/scripts/finetune.py")


def test_without_a_bundle_it_uses_a_finetune_on_the_path(tmp_path: Path, home: Path) -> None:
    program(tmp_path / "bin/finetune", '#!/bin/sh\necho "other: $*"; exit 7\n')
    done = run(lone(tmp_path), "status", "a b", cwd=home, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert (done.stdout, done.returncode) == ("other: status a b\n", 7)


def test_a_copy_of_itself_on_the_path_is_passed_over(tmp_path: Path, home: Path) -> None:
    for name in ("one", "two"):
        launcher_at(tmp_path / name / "finetune")
    program(tmp_path / "three/finetune", "#!/bin/sh\nexit 7\n")
    path = os.pathsep.join(str(tmp_path / name) for name in ("one", "two", "three"))
    assert run(tmp_path / "one/finetune", cwd=home, PATH=path).returncode == 7


def test_a_finetune_in_the_current_folder_is_never_started(tmp_path: Path, home: Path) -> None:
    program(home / "finetune", f"#!/bin/sh\ntouch {tmp_path}/started\n")
    assert run(lone(tmp_path), cwd=home, PATH=".::/usr/bin:/bin").returncode == 2
    assert not (tmp_path / "started").exists()


def test_nothing_found_is_one_line_with_what_to_do(tmp_path: Path, home: Path) -> None:
    done = run(lone(tmp_path), "status", cwd=home)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no finetune-skills bundle above" in done.stderr
    assert "bin/finetune install" in done.stderr


# Nothing around it is imported


def hostile(folder: Path) -> Path:
    """A folder full of modules that leave a mark when anything imports them."""
    mark = f"open({str(folder / 'IMPORTED')!r}, 'w').close()\n"
    for name in ("click", "infrastructure", "json", "hashlib", "re", "subprocess", "tempfile"):
        (folder / f"{name}.py").write_text(mark)
    for name in ("code", "finetune_skills", "rich", "venv", "pip"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(mark)
        (folder / name / "__main__.py").write_text(mark)
    return folder


def test_a_hostile_current_folder_is_never_imported(tmp_path: Path, home: Path) -> None:
    launcher, folder = plugin(tmp_path), hostile(home)
    said = told(run(launcher, cwd=folder, PYTHONPATH=f".:{folder}"))
    assert not (folder / "IMPORTED").exists()
    assert not {"", ".", str(folder)} & set(said["path"])  # type: ignore[call-overload]
    assert "PYTHONPATH" not in said["env"]  # type: ignore[operator]


def test_the_real_command_starts_in_a_hostile_folder(home: Path) -> None:
    launcher, folder = ROOT / "bin/finetune", hostile(home)
    fake_environment(folder / "cache", LOCK.read_bytes())
    done = run(launcher, "--help", cwd=folder, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert "Usage: finetune " in done.stdout
    assert not (folder / "IMPORTED").exists()


def test_the_projects_own_environment_is_not_used(tmp_path: Path, home: Path) -> None:
    launcher = plugin(tmp_path)
    program(home / ".venv/bin/python3", f"#!/bin/sh\ntouch {home}/ENTERED; exec python3 $@\n")
    (home / ".venv/pyvenv.cfg").touch()
    path = f"{home}/.venv/bin:/usr/bin:/bin"
    said = told(run(launcher, cwd=home, PATH=path, VIRTUAL_ENV=str(home / ".venv")))
    assert not (home / "ENTERED").exists()
    assert said["prefix"] == sys.base_prefix  # although this test's own Python is an environment's


# The private environment


def fake_environment(cache: Path, lock: bytes) -> Path:
    """A ready private environment: a script that runs this Python."""
    name = f"{hashlib.sha256(lock).hexdigest()[:16]}-py3.11"
    return program(
        cache / "finetune-skills" / name / "bin/python",
        f'#!/bin/sh\nFROM_PRIVATE=1 exec {sys.executable} "$@"\n',
    )


UNMET = "no-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n"


def test_a_ready_private_environment_is_used(tmp_path: Path, home: Path) -> None:
    launcher = launcher_at(bundle_at(tmp_path / "plugin", UNMET) / "bin/finetune")
    fake_environment(home / "cache", UNMET.encode())
    assert told(run(launcher, cwd=home))["env"]["FROM_PRIVATE"] == "1"  # type: ignore[index]


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_an_environment_that_cannot_be_made_is_one_line_and_leaves_nothing(
    tmp_path: Path, home: Path
) -> None:
    launcher = launcher_at(bundle_at(tmp_path / "plugin", UNMET) / "bin/finetune")
    done = run(launcher, cwd=home, PIP_NO_INDEX="1")
    assert done.returncode == 2
    assert "no private environment" in done.stderr.splitlines()[-1]
    assert "pip install -r" in done.stderr.splitlines()[-1]
    assert not list((home / "cache/finetune-skills").iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, home: Path) -> None:
    launcher = launcher_at(bundle_at(tmp_path / "plugin", UNMET) / "bin/finetune")
    (home / "file").touch()
    done = run(launcher, cwd=home, XDG_CACHE_HOME=str(home / "file"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("Not a directory")


@pytest.mark.slow
def test_concurrent_first_runs_make_one_whole_environment(tmp_path: Path, home: Path) -> None:
    launcher = launcher_at(bundle_at(tmp_path / "plugin", LOCK.read_text()) / "bin/finetune")
    command = [sys.executable, str(launcher), "exit", "0"]
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HTTP", "http", "SSL"))}
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    runs = [subprocess.Popen(command, cwd=home, env=kept | plain) for _ in range(3)]
    assert [each.wait() for each in runs] == [0, 0, 0]
    made = [each.name for each in (home / "finetune-skills").iterdir() if each.name != "pycache"]
    assert len(made) == 1
    assert "-py3." in made[0]
    assert not made[0].startswith(".")


@pytest.mark.slow
def test_a_broken_private_environment_is_made_again(tmp_path: Path, home: Path) -> None:
    launcher = launcher_at(bundle_at(tmp_path / "plugin", LOCK.read_text()) / "bin/finetune")
    python = fake_environment(home / "cache", LOCK.read_bytes())
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "HTTP", "http", "SSL"))}
    assert run(launcher, "exit", "0", cwd=home, **kept).returncode == 0
    assert len(list((home / "cache/finetune-skills").glob("*-py3*"))) <= 2


# The file and its lock


def test_it_can_be_read_by_an_older_python_which_then_says_what_it_needs() -> None:
    tree = ast.parse(LAUNCHER.read_text(), feature_version=(3, 8))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= sys.stdlib_module_names
    assert "needs Python" in LAUNCHER.read_text()


def test_every_skills_launcher_is_the_same_file() -> None:
    copies = [*ROOT.glob("skills/*/scripts/finetune.py")]
    if not copies:
        pytest.skip("no skill has been written yet")
    assert {each.read_bytes() for each in copies} <= {LAUNCHER.read_bytes()}
    assert all(os.access(each, os.X_OK) for each in [LAUNCHER, *copies])


def test_the_lock_has_every_package_that_the_command_imports_with_hashes() -> None:
    text = LOCK.read_text()
    entries = re.findall(
        r"^([a-z0-9-]+)==\S+((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M
    )
    names = {name for name, _ in entries}
    assert {"click", "pydantic", "pydantic-core", "pyyaml", "rich", "tenacity"} <= names
    assert len(entries) == len(re.findall("^[a-z]", text, re.M))


def test_the_lock_keeps_to_the_ranges_of_the_package() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    caps = dict(re.findall(r"^(\w+)>=[\d.]+,<(\d+)$", "\n".join(wanted), re.M))
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\d+)", LOCK.read_text(), re.M))
    shared = set(caps) & set(locked)
    assert len(shared) == 10
    assert all(int(locked[name]) < int(caps[name]) for name in shared)
