#!/usr/bin/env python3
"""The small launcher of finetune-skills: finds the bundle and runs its `finetune` command.

The same file is `bin/finetune` of the bundle and `scripts/finetune.py` of each skill. From its own
real place it walks up at most four levels to a bundle; without one it hands over to a `finetune` on
the PATH. It never uses the environment of the project that you stand in: where no interpreter at
hand has the dependencies, it makes a private one, once, from the bundle's locked list.
"""

from __future__ import annotations

import os
import sys

# Only the standard library: a PYTHONPATH or a folder that we stand in never supplies a module.
LIBRARY = os.path.dirname(os.__file__) + os.sep
sys.path[:] = [each for each in sys.path if (each + os.sep).startswith(LIBRARY)]

import hashlib  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402

OLDEST = (3, 11)
NAMES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
LEVELS = 4
SELF = os.path.realpath(__file__)
PARTS = ["click", "jinja2", "numpy", "pydantic", "pyyaml", "rich", "scipy", "starlette"]
WITHOUT_LOCK = dict.fromkeys([*PARTS, "tenacity", "uvicorn"], "")
NOT_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__")
# Options of pip that would install somewhere else.
NOT_PIPS = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_DRY_RUN")
PROBE = """\
import sys
from importlib.metadata import version
wanted = [each.split("=") for each in sys.argv[1:]]
found = {name: version(name).split(".")[0] for name, major in wanted}
new = sys.version_info >= (3, 11)
print("%d.%d" % sys.version_info[:2] if new else "old")
sys.exit(not new or any(major not in ("", found[name]) for name, major in wanted))
"""
RUN = """\
import importlib.util, sys
package = sys.argv[1]
found = importlib.util.spec_from_file_location(
    "finetune_skills", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["finetune_skills"] = module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
sys.argv[:] = ["finetune", *sys.argv[2:]]
from finetune_skills.cli import main
sys.exit(main())
"""


class Stop(Exception):
    """One line for a person: what is missing and what to do."""


def main() -> None:
    arguments = sys.argv[1:]
    try:
        bundle = find_bundle(SELF)
        if bundle is None:
            other = on_path()
            os.execv(other, [other, *arguments])  # noqa: S606
        run(bundle, arguments)
    except Stop as stop:
        print(f"finetune: {stop}", file=sys.stderr)
    except OSError as error:
        print(f"finetune: {error.filename or SELF}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


# ── where the command is ──────────────────────────────────────────────────────────────────────────


def find_bundle(start: str) -> str | None:
    """The nearest folder above, at most four levels up, that has our marker and the command."""
    folder = start
    for _ in range(LEVELS):
        folder = os.path.dirname(folder)
        if is_bundle(folder) and os.path.isfile(os.path.join(package_of(folder), "cli.py")):
            return folder
    return None


def is_bundle(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "code", "BUNDLE"), encoding="utf-8") as handle:
            marker = json.load(handle)
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("name") == "finetune-skills"


def package_of(bundle: str) -> str:
    """The command's package; an installed wheel holds the bundle inside of it."""
    if os.path.basename(bundle) == "_bundle":
        return os.path.dirname(bundle)
    return os.path.join(bundle, "code", "finetune_skills")


def on_path() -> str:
    """A `finetune` on the PATH that leads somewhere: not this file, nor a copy without a bundle."""
    for folder in absolute_path():
        found = os.path.join(folder, "finetune")
        if os.path.isfile(found) and os.access(found, os.X_OK) and leads_on(found):
            return found
    raise Stop(
        f"no finetune-skills bundle above {SELF} and no other finetune on the PATH. Get the whole "
        "repository, and run its bin/finetune install in your project."
    )


def leads_on(found: str) -> bool:
    real = os.path.realpath(found)
    with open(real, "rb") as handle:
        copy = b"The small launcher of finetune-skills" in handle.read(400)
    return real != SELF and (not copy or find_bundle(real) is not None)


def absolute_path() -> list[str]:
    """The folders of the PATH; relative ones would mean the folder that we stand in."""
    return [each for each in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(each)]


# ── which Python runs it ──────────────────────────────────────────────────────────────────────────


def run(bundle: str, arguments: list[str]) -> None:
    """Become the command, in an interpreter that has what it imports."""
    python = ready_python(bundle) or build(bundle)
    options = ["-I", "-X", "pycache_prefix=" + os.path.join(cache(), "pycache")]
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    os.execve(python, [python, *options, "-c", RUN, package_of(bundle), *arguments], kept)  # noqa: S606


def ready_python(bundle: str) -> str | None:
    """An interpreter with the dependencies: the private one, else one at hand. Makes nothing."""
    for python in private_pythons(bundle):
        return python
    wanted = [f"{name}={major}" for name, major in dependencies(bundle).items()]
    plain = (python for python in at_hand() if not has_beside(python, "conda-meta"))
    return next((python for python in plain if probe(python, wanted)), None)


def private_pythons(bundle: str) -> list[str]:
    found = [environment(bundle, f"3.{minor}") for minor in range(30, OLDEST[1] - 1, -1)]
    pythons = [os.path.join(folder, "bin", "python") for folder in found]
    return [python for python in pythons if os.path.isfile(python)]


def at_hand() -> list[str]:
    """Interpreters of this machine, the one that runs this first; never an environment's."""
    own = getattr(sys, "_base_executable", "") or sys.executable
    found = [own] if own and os.path.isabs(own) else []
    found += [os.path.join(folder, name) for name in NAMES for folder in absolute_path()]
    real = (each for each in found if os.access(each, os.X_OK))
    return list(dict.fromkeys(each for each in real if not has_beside(each, "pyvenv.cfg")))


def has_beside(python: str, name: str) -> bool:
    """Whether the interpreter's environment has this: a venv its pyvenv.cfg, conda a conda-meta."""
    return os.path.exists(os.path.join(os.path.dirname(os.path.dirname(python)), name))


def probe(python: str, wanted: list[str]) -> str:
    """The version ("3.12") of an interpreter that has all that is wanted, else an empty text."""
    import subprocess

    command = [python, "-I", "-c", PROBE, *wanted]
    try:
        done = subprocess.run(command, stdout=-1, stderr=-3, stdin=-3, timeout=60)  # pipe, null
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def dependencies(bundle: str) -> dict[str, str]:
    """Each locked package and its major version."""
    try:
        with open(lock_of(bundle), encoding="utf-8") as handle:
            return dict(re.findall(r"^([a-z0-9-]+)==(\d+)", handle.read(), re.MULTILINE))
    except FileNotFoundError:
        return WITHOUT_LOCK


def lock_of(bundle: str) -> str:
    return os.path.join(bundle, "code", "requirements.lock")


# ── the private environment ───────────────────────────────────────────────────────────────────────


def cache() -> str:
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "finetune-skills")


def environment(bundle: str, version: str) -> str:
    """Where the private environment is: another lock or another Python is another folder."""
    try:
        with open(lock_of(bundle), "rb") as handle:
            name = hashlib.sha256(handle.read()).hexdigest()[:16]
    except FileNotFoundError:
        name = "none"
    return os.path.join(cache(), f"{name}-py{version}")


def build(bundle: str) -> str:
    """Make the private environment aside, then move it into place; the first of several wins."""
    import shutil
    import tempfile

    python, version = newest_python()
    target = environment(bundle, version)
    if not os.path.isfile(lock_of(bundle)):
        raise Stop(f"{lock_of(bundle)} is missing. Get the whole bundle again.")
    print(f"finetune: making a private environment in {target} (once)", file=sys.stderr)
    os.makedirs(cache(), mode=0o700, exist_ok=True)
    aside = tempfile.mkdtemp(prefix=".new-", dir=cache())
    try:
        fill(os.path.join(aside, "env"), python, lock_of(bundle))
        settle(os.path.join(aside, "env"), target, os.path.join(aside, "old"))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return os.path.join(target, "bin", "python")


def newest_python() -> tuple[str, str]:
    """An interpreter to build with, by its real path, and its version."""
    for python in at_hand():
        version = probe(python, [])
        if version:
            return os.path.realpath(python), version
    needed, this = (".".join(map(str, each)) for each in (OLDEST, sys.version_info[:2]))
    raise Stop(
        f"needs Python {needed} or newer; this is Python {this} and the PATH has no newer one. "
        "Install one from your system's packages or python.org."
    )


def fill(folder: str, python: str, lock: str) -> None:
    """A new environment with exactly the locked wheels; every hash is checked."""
    advice = "On Debian and Ubuntu: apt install python3-venv"
    step([python, "-I", "-m", "venv", folder], folder, advice)
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"]
    options += ["--disable-pip-version-check", "--no-warn-script-location"]
    pip = [os.path.join(folder, "bin", "python"), "-I", "-m", "pip", "install", *options]
    advice = f"Run this again with the network, or install by hand: pip install -r {lock}"
    step([*pip, "-r", lock], folder, advice)


def step(command: list[str], folder: str, advice: str) -> None:
    import subprocess

    kept = {k: v for k, v in os.environ.items() if k not in NOT_OURS + NOT_PIPS}
    where = os.path.dirname(folder)
    done = subprocess.run(command, stdin=-3, stdout=-1, stderr=-2, cwd=where, env=kept)
    if done.returncode:
        said = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        why = next((line for line in reversed(said) if "ERROR" in line or "rror:" in line), "")
        why = (why or " ".join(said[-1:]) or f"exit {done.returncode}").strip()[:300]
        raise Stop(f"no private environment: {why.rstrip('.')}. {advice}")


def settle(new: str, target: str, old: str) -> None:
    """Put the new environment in place, unless another process did; a broken one moves away."""
    for _ in range(3):
        if os.path.isfile(os.path.join(target, "bin", "python")):
            return
        try:
            os.replace(new, target)
            return
        except OSError:  # a folder is there: without a Python it is broken
            if not os.path.isfile(os.path.join(target, "bin", "python")):
                os.replace(target, old)
    raise Stop(f"{target}: could not be put in place. Remove that folder and run this again.")


if __name__ == "__main__":
    main()
