"""The fault bench: processes that are killed and disks that refuse, and what is left after them.

A scenario runs in a process of its own with one thread, because only such a one may fork freely:

    PYTHONPATH=code:tests python -m faults appends '{"kills": 1000, "seed": 1}'
"""

import json
from typing import Any

from children import child


def bench(scenario: str, **options: Any) -> dict[str, Any]:
    """The figures of a scenario; the fast tests run the same ones, with fewer kills."""
    done = child("-m", "faults", scenario, json.dumps(options))
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
