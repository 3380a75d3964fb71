"""Python code in a fresh process that has the kernel on its path."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
CODE = TESTS.parent / "code"


def child(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with these arguments; what it printed, and how it ended."""
    path = os.pathsep.join([str(CODE), str(TESTS)])
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
