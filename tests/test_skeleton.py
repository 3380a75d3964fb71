"""The repository keeps its own promises: one test command, a wheel with the bundle, a Makefile."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from finetune_skills import bundle

ROOT = Path(__file__).resolve().parent.parent
# A make inside `make test` must not inherit its flags.
QUIET = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, **options)  # type: ignore[call-overload]


# One test command


def readme_test_command() -> str:
    """The last line of the first code block under "Get it"."""
    _, after = text("README.md").split("## Get it", 1)
    return after.split("```")[1].strip().splitlines()[-1]


def test_ci_runs_lint_then_the_test_command_of_the_readme_then_the_slow_tier() -> None:
    stages = re.findall(r"^stage (\w+) \d+ (.+)$", text(".ci/run"), re.MULTILINE)
    commands = ["make lint", readme_test_command(), "make test-slow"]
    assert stages == list(zip(["lint", "test", "slow"], commands, strict=True))


def test_ci_takes_at_most_an_hour() -> None:
    minutes = re.findall(r"^stage \w+ (\d+)", text(".ci/run"), re.MULTILINE)
    assert 0 < sum(map(int, minutes)) <= 60


@pytest.mark.parametrize(("status", "ran"), [(0, ["lint", "test", "test-slow"]), (3, ["lint"])])
def test_ci_stops_at_the_first_failure_with_its_exit_code(
    tmp_path: Path, status: int, ran: list[str]
) -> None:
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "ran $1"; exit {status}\n')
    make.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(ROOT / ".ci/run", env=os.environ | {"PATH": path})
    _, closing = done.stdout.split("== closing lines: lint")
    assert done.returncode == status
    assert re.findall(r"^ran (.+)$", closing, re.MULTILINE) == ran


# The Makefile


def make_environment(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    target = f"{path / 'venv'}/.installed"
    return run("make", "-C", ROOT, target, f"VENV={path / 'venv'}", env=QUIET | variables)


def test_make_says_what_is_missing_when_no_python_is_new_enough(tmp_path: Path) -> None:
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    for tool in ("make", "sh"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = make_environment(tmp_path, PATH=str(tmp_path), PYTHON="")
    assert done.returncode != 0
    assert 'Python 3.11 or newer is needed, and "none found" is not that.' in done.stderr


def test_make_refuses_a_python_that_does_not_run(tmp_path: Path) -> None:
    done = make_environment(tmp_path, PYTHON="/nowhere/python3")
    assert done.returncode != 0
    assert '"/nowhere/python3" is not that' in done.stderr
    assert not (tmp_path / "venv").exists()


# The wheel


def build(source: Path, folder: Path) -> Path:
    options = ["--wheel", "--no-isolation", "--outdir", folder]
    done = run(sys.executable, "-m", "build", *options, source)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_one_package_and_nothing_beside_it(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"finetune_skills"}


def test_the_wheel_carries_the_bundle_without_caches_and_without_itself(wheel: Path) -> None:
    prefix = "finetune_skills/_bundle/"
    inside = {name.removeprefix(prefix) for name in names_in(wheel) if name.startswith(prefix)}
    assert {bundle.MARKER, "code/infrastructure.py", "code/SETUP-REFERENCE.md"} <= inside
    assert "skills/finetune-design/scripts/finetune.py" in inside
    assert not [name for name in inside if "/evals/" in name]
    assert not [name for name in inside if "__pycache__" in name or "finetune_skills" in name]


def test_the_wheel_carries_the_pages_of_the_review(wheel: Path) -> None:
    pages = {
        str(path.relative_to(ROOT / "code"))
        for folder in ("templates", "static")
        for path in (ROOT / "code/finetune_skills/review" / folder).iterdir()
    }
    assert len(pages) > 8
    assert pages <= set(names_in(wheel))


def test_templates_travel_with_their_dotfiles_and_without_secrets_and_caches(
    tmp_path: Path,
) -> None:
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "code/finetune_skills", tmp_path / "code/finetune_skills")
    templates = tmp_path / "code/templates"
    for name in (".env.example", ".env", "data/x.jsonl", "scripts/__pycache__/generate.pyc"):
        (templates / name).parent.mkdir(parents=True, exist_ok=True)
        (templates / name).touch()
    prefix = "finetune_skills/_bundle/code/templates/"
    inside = [name for name in names_in(build(tmp_path, tmp_path)) if name.startswith(prefix)]
    assert sorted(inside) == [f"{prefix}.env.example", f"{prefix}data/x.jsonl"]


def test_an_installed_package_finds_its_own_bundle(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    ask = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import finetune_skills.bundle as b;"
    done = run(sys.executable, "-I", "-c", f"{ask} print(b.bundle_root())", cwd=tmp_path)
    assert done.stdout.strip() == str(tmp_path / "finetune_skills/_bundle")


@pytest.mark.slow
def test_the_wheel_installs_with_every_provider_at_once(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path, check=True)
    pip = [tmp_path / "bin/python", "-m", "pip"]
    run(*pip, "install", f"{wheel}[openai,anthropic,google,local,prices]", check=True)
    assert run(*pip, "check").stdout.strip() == "No broken requirements found."


# The bundle


def test_in_a_checkout_the_bundle_is_the_repository() -> None:
    assert bundle.bundle_root() == ROOT


@pytest.mark.parametrize("marker", ['{"name": "another"}', "not json", "[]"])
def test_a_folder_with_a_strange_marker_is_no_bundle(tmp_path: Path, marker: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / bundle.MARKER).write_text(marker)
    assert not bundle.is_bundle(tmp_path)


def test_a_package_without_its_bundle_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "__file__", str(tmp_path / "a/b/bundle.py"))
    with pytest.raises(FileNotFoundError, match="Install finetune-skills again"):
        bundle.bundle_root()


def test_the_marker_has_a_schema_number() -> None:
    assert json.loads(text(bundle.MARKER)) == {"name": "finetune-skills", "schema": 1}


# Small promises


def test_the_license_is_mit() -> None:
    assert text("LICENSE").startswith("MIT License\n")
    assert tomllib.loads(text("pyproject.toml"))["project"]["license"] == "MIT"


def test_torch_stays_below_the_version_that_brings_cuda_packages() -> None:
    [pin] = text("constraints-cpu.txt").split()
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    assert pin == "torch==2.13.0"
    assert "torch>=2.6,<2.14" in extras["train"]


def test_the_fast_suite_needs_no_torch() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    assert not [line for line in extras["dev"] if re.match(r"torch|transformers|llama", line)]


def test_every_file_that_the_documents_link_to_exists() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "code/README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", text(name)):
            assert (ROOT / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)", text("README.md") + text("CONTRIBUTING.md"))
    assert named
    assert set(named) <= targets
