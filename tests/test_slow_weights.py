"""Weights of 28 GB: hashed once, honestly, and not read again by any later process."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from children import CODE

pytestmark = pytest.mark.slow
SIZE = 28_000_000_000
# What the process read, by the kernel's own count where there is one (Linux), and the hash.
ASK = """
import json
from pathlib import Path
from infrastructure import selector_hash
def read():
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0
before = read()
found = selector_hash(Path("."), "models/gguf/model.gguf")
print(json.dumps([found, read() - before]))
"""


def test_28_gigabytes_of_unchanged_weights_are_read_once_and_never_again(tmp_path: Path) -> None:
    weights = tmp_path / "models/gguf/model.gguf"
    for folder in (weights.parent, tmp_path / ".finetune"):
        folder.mkdir(parents=True)
    weights.touch()
    os.truncate(weights, SIZE)  # sparse: it takes no room, and its bytes are still hashed
    first, second = asked(tmp_path), asked(tmp_path)
    print(f"CPU seconds {first[2]:.2f}, then {second[2]:.2f}; bytes {first[1]}, then {second[1]}")
    assert first[0] == second[0]
    assert second[1] < 1_000_000
    assert second[2] < 1.0
    assert first[1] == 0 or first[1] >= SIZE  # 0: this system does not count


def asked(root: Path) -> tuple[str, int, float]:
    """One process of its own: the hash, the bytes that it read, its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=root, env=os.environ | {"PYTHONPATH": str(CODE)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found, read = json.loads(done.stdout)
    return found, read, sum(after[:2]) - sum(before[:2])
