"""Coverage floors for each kind of code: `python tests/coverage_floors.py .coverage.json`.

Exit 0: every group that exists is at its floor. 1: one is below. 2: no line was measured.
A group without code yet is reported as absent; it does not count as passed.
"""

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KERNEL = "code/infrastructure.py"

CORE, PROVIDERS = "modules and command core", "providers"
STAGES, PAGES = "stages", "terminal and pages"
FLOORS = {CORE: 90, PROVIDERS: 80, STAGES: 75, PAGES: 60}
# Parts of finetune_skills that draw on a terminal or in a browser.
PAGE_PARTS = {"pages", "report", "review", "terminal"}


class Count(NamedTuple):
    """Lines that ran, of the lines that could."""

    covered: int
    lines: int

    @property
    def percent(self) -> float:
        return 100 * self.covered / self.lines


def main(report: str) -> int:
    counts = by_group(json.loads(Path(report).read_text(encoding="utf-8")), ROOT)
    if not counts:
        print("coverage: no line was measured")
        return 2
    below = [name for name, count in counts.items() if count.percent < FLOORS[name]]
    for name, floor in FLOORS.items():
        print(row(name, floor, counts.get(name)))
    return 1 if below else 0


def row(name: str, floor: int, count: Count | None) -> str:
    if count is None:
        return f"{name:<26} absent, nothing to measure yet"
    verdict = "ok" if count.percent >= floor else "BELOW ITS FLOOR"
    return f"{name:<26} {count.percent:5.1f} % of {count.lines:5} lines, floor {floor} %  {verdict}"


def by_group(report: dict[str, Any], root: Path) -> dict[str, Count]:
    """Covered and all lines of each group that has any, from coverage's JSON report."""
    totals: defaultdict[str, list[bool]] = defaultdict(list)
    for name, data in report["files"].items():
        special = set(provider_lines((root / name).read_text("utf-8"))) if name == KERNEL else set()
        for key, ran in (("executed_lines", True), ("missing_lines", False)):
            for line in data[key]:
                totals[PROVIDERS if line in special else group_of(name)].append(ran)
    return {name: Count(sum(ran), len(ran)) for name, ran in totals.items()}


def group_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    if parts[:2] == ("code", "templates"):
        return STAGES
    if parts[:2] == ("code", "finetune_skills") and parts[2].removesuffix(".py") in PAGE_PARTS:
        return PAGES
    return CORE


def provider_lines(source: str) -> Iterator[int]:
    """Lines of the classes that derive from LLMBackend, directly or not; the base is core."""
    family = {"LLMBackend"}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and family & set(map(ast.unparse, node.bases)):
            family.add(node.name)
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
