"""What `finetune doctor` finds: versions of packages, and whether each role's model answers.

The scripts of a project run in its own environment, so that one is looked at where there is one;
its models are asked by its own Python. Needs no click, which is not in there.
"""

from __future__ import annotations

import json
import platform
import re
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
print(doctor.json.dumps(doctor.call_roles(doctor.Path(sys.argv[2]))))
"""


def examine(root: Path | None, live: bool) -> dict[str, Any]:
    """Of the project's own environment where it has one, else of this one. Without `live` nothing
    of the project is run: what is installed there is read from its files."""
    own = root / ".venv" if root else None
    if root and own and (own / "pyvenv.cfg").is_file() and Path(sys.prefix) != own:
        return installed_in(own) | {"roles": asked(root) if live else {}}
    lacking = root and Path(sys.prefix) != own
    whose = "the finetune command" + (
        "; the scripts need a .venv in the project" if lacking else ""
    )
    told: dict[str, Any] = {"python": f"{platform.python_version()} (of {whose})"}
    told["packages"] = {name: version_of(name, None) for name in PACKAGES}
    return told | {"roles": call_roles(root) if live and root else {}}


def installed_in(own: Path) -> dict[str, Any]:
    """Versions in an environment, read from its files."""
    said = (own / "pyvenv.cfg").read_text("utf-8", errors="replace")
    python = re.search(r"^version(?:_info)? *= *([\w.]+)", said, re.MULTILINE)
    version = python[1] if python else "of unknown version"
    places = [str(path) for path in own.glob("lib/python*/site-packages")]
    packages = {name: version_of(name, places) for name in PACKAGES}
    return {"python": f"{version} (of the project's .venv)", "packages": packages}


def version_of(package: str, places: list[str] | None) -> str:
    """What is installed in these folders, or here."""
    from importlib import metadata

    path = sys.path if places is None else places
    found = next(iter(metadata.distributions(name=package, path=path)), None)
    return found.version if found else "not installed"


def asked(root: Path) -> dict[str, str]:
    """What the roles answer in the project's own environment."""
    home = str(Path(__file__).resolve().parents[1])
    command = [str(root / ".venv/bin/python"), "-P", "-c", ITSELF, home, str(root)]
    try:
        done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
        return dict(json.loads(done.stdout.splitlines()[-1]))  # a model may print as well
    except (OSError, ValueError, IndexError):
        return {".venv": "does not work. Make it again: python3 -m venv .venv"}


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
        except Exception as error:  # noqa: BLE001 - a function of the project may raise anything
            said[name] = f"{spec}: raised {type(error).__name__}: {error}"
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
