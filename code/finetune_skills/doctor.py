"""What `finetune doctor` finds: versions of packages, and whether each role's model answers.

The scripts of a project run in its own environment, so that one is looked at where there is one:
by its Python, in a process of its own. Needs no click, which is not in there.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES: tuple[str, ...] = (
    "pydantic",
    "tenacity",
    "openai",
    "anthropic",
    "google-genai",
    "aiohttp",
)
PACKAGES += ("llama-cpp-python", "genai-prices", "tiktoken", "tokenizers", "torch")
# Run by the project's Python: this package is found last there, and packages beside it not at all.
ITSELF = """import sys
sys.path.append(sys.argv[1])
from finetune_skills import doctor
sys.path.remove(sys.argv[1])
doctor.answer(sys.argv[2], sys.argv[3:])
"""


def examine(root: Path | None, live: bool) -> dict[str, Any]:
    """By the project's own Python where it has one, else by this one."""
    own = root / ".venv/bin/python" if root else None
    if root is None or own is None:
        return found(root, live, "of the finetune command")
    if not own.exists() or Path(sys.prefix) == root / ".venv":
        return found(root, live, "of the finetune command; the scripts need a .venv in the project")
    home = str(Path(__file__).resolve().parents[1])
    command = [str(own), "-P", "-c", ITSELF, home, str(root), *(["--live"] if live else [])]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return found(root, False, "of the finetune command; the project's .venv does not work")


def answer(root: str, flags: list[str]) -> None:
    print(json.dumps(found(Path(root), "--live" in flags, "of the project's .venv")))


def found(root: Path | None, live: bool, whose: str) -> dict[str, Any]:
    told: dict[str, Any] = {"python": f"{platform.python_version()} ({whose})"}
    told["packages"] = {name: version_of(name) for name in PACKAGES}
    told["roles"] = call_roles(root) if live and root else {}
    return told


def version_of(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def call_roles(root: Path) -> dict[str, str]:
    """What each decided role answers to one tiny question."""
    import asyncio

    from finetune_skills.bundle import use_bundle

    use_bundle()
    from infrastructure import FinetuneError, get_backend
    from settings import SettingsError, backend_arguments, load_project

    try:
        roles = load_project(root).roles
    except SettingsError as error:
        return {"config": str(error)}
    said = {}
    for name, role in decided(roles):
        spec, options = backend_arguments(role)
        options = options | ({"root": root} if spec.startswith("python:") else {})
        try:
            reply = asyncio.run(get_backend(spec, **options).complete("Say: ready", max_tokens=200))
            said[name] = f"answers ({spec}, {reply.usage.output_tokens} tokens)"
        except FinetuneError as error:
            said[name] = str(error)
    return said


def decided(roles: Any) -> list[tuple[str, Any]]:
    """Every role that has a model; lists are counted from 0."""
    rows: list[tuple[str, Any]] = []
    for name in type(roles).model_fields:
        value = getattr(roles, name)
        several = value if isinstance(value, list) else [value]
        names = [f"{name}[{n}]" for n in range(len(several))] if several is value else [name]
        rows += [pair for pair in zip(names, several, strict=True) if pair[1] is not None]
    return rows
