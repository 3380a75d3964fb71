"""Write code/requirements.lock: what the `finetune` command imports, with hashes.

    python tests/lock.py            resolve with pip and rewrite the file (needs the network)

pip resolves the versions within the ranges of pyproject.toml for the Python that runs this (use the
oldest supported one), then names the wheel of each platform and Python below; no sdist is locked,
since installing one would run its build. Mirrors of this machine are not asked.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "code/requirements.lock"
IMPORTED = ("click", "jinja2", "numpy", "pydantic", "pyyaml", "rich", "scipy", "starlette")
IMPORTED += ("tenacity", "uvicorn")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (
    ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    ("musllinux_1_2_x86_64", "musllinux_1_1_x86_64"),
    ("musllinux_1_2_aarch64", "musllinux_1_1_aarch64"),
    ("macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"),
    ("macosx_14_0_x86_64", "macosx_10_15_x86_64", "macosx_10_14_x86_64"),
)
HEAD = """\
# What the finetune command imports, for its private environment. Written by tests/lock.py.
# Wheels only: {pythons}; Linux (glibc, musl) and macOS; x86_64 and arm64.
"""

Wheel = tuple[str, str, str]  # name, version, sha256


def main() -> int:
    pins = sorted({f"{name}=={version}" for name, version, _ in wheels(*ranges())})
    with ThreadPoolExecutor(4) as pool:
        jobs = product(PYTHONS, PLATFORMS)
        found = {
            wheel for each in pool.map(lambda job: wheels_for(pins, *job), jobs) for wheel in each
        }
    LOCK.write_text(HEAD.format(pythons=", ".join(PYTHONS)) + "".join(entries(found)))
    print(f"{LOCK.relative_to(ROOT)}: {len(pins)} packages, {len(found)} wheels", file=sys.stderr)
    return 0


def ranges() -> list[str]:
    """The lines of pyproject.toml for what the command imports."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [line for line in wanted if re.split(r"[<>=~!]", line)[0] in IMPORTED]


def wheels_for(pins: list[str], python: str, platforms: tuple[str, ...]) -> list[Wheel]:
    """The wheel that pip would take of each pin on another platform and Python."""
    target = [part for platform in platforms for part in ("--platform", platform)]
    target += ["--python-version", python, "--target", "unused", "--no-deps"]
    return wheels(*target, *pins)


def wheels(*wanted: str) -> list[Wheel]:
    """What pip would install, from its report."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--only-binary", ":all:", "--report", "-", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, env=only_the_index())
    if done.returncode:
        raise SystemExit(f"{' '.join(wanted)}:\n{done.stderr}")
    rows = json.loads(done.stdout)["install"]
    return [
        (
            re.sub(r"[-_.]+", "-", row["metadata"]["name"]).lower(),
            row["metadata"]["version"],
            row["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for row in rows
    ]


def only_the_index() -> dict[str, str]:
    """The environment without this machine's own package folders."""
    own = {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return kept | {"PIP_CONFIG_FILE": os.devnull}


def entries(found: set[Wheel]) -> Iterator[str]:
    for name, version in sorted({(name, version) for name, version, _ in found}):
        hashes = sorted(h for n, v, h in found if (n, v) == (name, version))
        yield f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{h}" for h in hashes) + "\n"


if __name__ == "__main__":
    sys.exit(main())
