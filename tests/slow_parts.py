"""What the slow tests can use, and why a part is missing.

    python tests/slow_parts.py llamacpp transformers claude claude-new opencode tiktoken

installs parts (the Makefile calls it with .venv-slow's python). A part that can't be had leaves
its reason in .cache/slow-parts, and each test that calls `require(part)` skips with that reason.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
REASONS = CACHE / "slow-parts"
WHEELS = CACHE / "wheels"

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
LLAMA_CPP = "llama-cpp-python==0.3.36"
# A native build can crash on quantised models where the CPU has AMX; measured with 0.3.36.
BUILD = {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=OFF")}


class Part(NamedTuple):
    """How to see that a part is there, how to get it, and how long that may take."""

    present: Callable[[], bool]
    commands: list[list[str]]
    minutes: int


def module(*names: str) -> Callable[[], bool]:
    return lambda: all(find_spec(name) is not None for name in names)


def client(part: str) -> str:
    """The program of a coding agent, "false" where it is not there. The newer claude is a native
    binary, because npm gives an older Node an older client."""
    if part == "claude-new":
        own = CACHE / f"claude-new/node_modules/@anthropic-ai/{NATIVE}/claude"
        return str(own) if own.is_file() else "false"
    path = f"{CACHE / 'npm/node_modules/.bin'}{os.pathsep}{PATH}"
    return shutil.which(part, path=path) or "false"


def client_runs(part: str) -> bool:
    """Present means that it starts: npm can install it without its native binary."""
    command = [client(part), "--version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def vocabulary_at_hand() -> bool:
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR", CACHE / "tiktoken"))
    return folder.is_dir() and any(folder.iterdir())


PATH = os.environ.get("PATH", os.defpath)
WHEEL = ["wheel", "--no-deps", "--find-links", str(WHEELS), "--wheel-dir", str(WHEELS), LLAMA_CPP]
TORCH = ["install", "--quiet", "-c", "constraints-cpu.txt", "torch", "transformers>=5,<6"]
CONVERT = [sys.executable, "tests/tiktoken_vocabulary.py"]
VOCABULARY = [str(CACHE / "npm/node_modules/tiktoken"), str(CACHE / "tiktoken")]
MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NATIVE = f"claude-code-{sys.platform}-{MACHINE}"
CLIENT_NEW = "2.1.329"  # the evals were proven with it; it has `claude plugin eval`
NPM_FLAGS = ["npm", "install", "--no-fund", "--no-audit", "--prefix"]
NPM = [*NPM_FLAGS, str(CACHE / "npm")]
OLD = [*NPM, "@anthropic-ai/claude-code"]
OPENCODE = "opencode-ai@1.18.33"
NEW = [*NPM_FLAGS, str(CACHE / "claude-new"), f"@anthropic-ai/{NATIVE}@{CLIENT_NEW}"]

PARTS = {
    "llamacpp": Part(
        module("llama_cpp", "gguf"),
        [[*PIP, *WHEEL], [*PIP, "install", "--find-links", str(WHEELS), LLAMA_CPP, "gguf"]],
        minutes=20,
    ),
    "transformers": Part(module("torch", "transformers"), [[*PIP, *TORCH]], minutes=12),
    "claude": Part(partial(client_runs, "claude"), [OLD], minutes=5),
    "claude-new": Part(partial(client_runs, "claude-new"), [NEW], minutes=10),
    "opencode": Part(partial(client_runs, "opencode"), [[*NPM, OPENCODE]], minutes=10),
    "tiktoken": Part(vocabulary_at_hand, [[*NPM, "tiktoken"], [*CONVERT, *VOCABULARY]], minutes=5),
}


def require(name: str) -> None:
    """Skips the calling test, with the reason, where the part is not there."""
    if not PARTS[name].present():
        reason = REASONS / name
        recorded = reason.read_text("utf-8") if reason.exists() else "not installed: make test-slow"
        pytest.skip(f"{name}: {recorded}")


def install(name: str) -> str | None:
    """Gets one part; the reason why it can't be had, or None."""
    part = PARTS[name]
    for command in [] if part.present() else part.commands:
        if reason := failure(command, part.minutes):
            return reason
    return None if part.present() else "installed, but does not run here"


def failure(command: list[str], minutes: int) -> str | None:
    environment = {"TIKTOKEN_CACHE_DIR": str(CACHE / "tiktoken")} | BUILD | os.environ
    try:
        subprocess.run(
            command, check=True, cwd=ROOT, env=environment, timeout=60 * minutes,
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return f"{command[0]} is not on the PATH"
    except subprocess.TimeoutExpired:
        return f"stopped after {minutes} minutes: {' '.join(command)}"
    except subprocess.CalledProcessError as broken:
        return last_lines(broken.stderr) or f"exit {broken.returncode}: {' '.join(command)}"
    return None


def last_lines(text: str, count: int = 3, width: int = 300) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-count:])[-width:]


def main(names: list[str]) -> int:
    if unknown := set(names) - set(PARTS):
        print(f"no such part: {', '.join(sorted(unknown))}. Have: {', '.join(PARTS)}")
        return 2
    REASONS.mkdir(parents=True, exist_ok=True)
    for name in names:
        (REASONS / name).unlink(missing_ok=True)
        print(f"{name:<13} ", end="", flush=True)
        if reason := install(name):
            (REASONS / name).write_text(reason, encoding="utf-8")
        print(f"NOT AVAILABLE, its tests will skip: {reason}" if reason else "ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
