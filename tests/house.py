"""The budgets of the house, checked: `python tests/house.py` (a part of `make lint`).

Exit 0: all kept. 1: findings, one per line with file and line. 2: there was nothing to check.
"""

import ast
import io
import math
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

MEDIAN, P90, LONGEST = 10, 30, 60
# The design allows the kernel 2,000 lines in all; it is over. Until it is cut, its lines of code
# (no blank lines, comments, docstrings) stay under 2,000. Other limits count every line of a file.
MAX_CODE_LINES = {"code/infrastructure.py": 2000}
MAX_LINES = {
    "code/infrastructure.py": 2629,  # over the design's 2,000: what it is, so that it only shrinks
    "code/templates/scripts/*.py": 350,
    "skills/*/SKILL.md": 250,
    "skills/*/*-guide.md": 300,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NO_CODE |= {tokenize.ENDMARKER}
FORBIDDEN = {"code/__init__.py": "it hides the standard library's `code`"}

# Pictures in text: the emoji planes, the older signs that draw as emoji, the emoji selector.
EMOJI = re.compile(
    "[\U0001f000-\U0001faff\ufe0f\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615"
    "\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea"
    "\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757"
    "\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55]"
)
HOME_FOLDER = re.compile(r"/(?:home|Users)/[A-Za-z][\w.-]*/|/root/\w|\b[A-Z]:\\Users\\")


class Function(NamedTuple):
    """One function and its length in lines, from `def` to its last line."""

    where: str
    name: str
    lines: int


def main() -> int:
    files = repository_files(ROOT)
    functions = list(measure(ROOT, files))
    if not files or not functions:
        print(f"house: nothing to check ({len(files)} files, {len(functions)} functions)")
        return 2
    findings = list(check(ROOT, files))
    print("\n".join([*findings, summary(files, functions), f"house: {len(findings)} findings"]))
    return 1 if findings else 0


def check(root: Path, files: Sequence[str]) -> Iterator[str]:
    """Every broken rule, as `file:line: what`."""
    yield from (f"{name}: remove it, {why}" for name, why in FORBIDDEN.items() if name in files)
    yield from size_findings(list(measure(root, files)))
    yield from length_findings(root, files)
    for name in files:
        yield from text_findings(root, name)


def repository_files(root: Path) -> list[str]:
    """What git tracks or would track, without links and deleted files."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    names = sorted(set(filter(None, listed.split("\0"))))
    return [name for name in names if (root / name).is_file() and not (root / name).is_symlink()]


def measure(root: Path, files: Sequence[str]) -> Iterator[Function]:
    """Every function of `code/`, methods and inner functions included."""
    for name in files:
        if name.startswith("code/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    yield Function(f"{name}:{node.lineno}", node.name, lines)


def size_findings(functions: Sequence[Function]) -> Iterator[str]:
    for where, name, lines in functions:
        if lines > LONGEST:
            yield f"{where}: {name} has {lines} lines, at most {LONGEST}"
    median, p90 = spread(functions)
    if median > MEDIAN:
        yield f"code/: the median function has {median:g} lines, at most {MEDIAN}"
    if p90 > P90:
        yield f"code/: one function in ten has {p90} lines or more, at most {P90}"


def spread(functions: Sequence[Function]) -> tuple[float, int]:
    """Median and 90th percentile of the lengths; (0, 0) for none."""
    lengths = sorted(function.lines for function in functions)
    if not lengths:
        return 0, 0
    return statistics.median(lengths), lengths[math.ceil(0.9 * len(lengths)) - 1]


def length_findings(root: Path, files: Sequence[str]) -> Iterator[str]:
    for limits, count, what in (
        (MAX_LINES, line_count, ""),
        (MAX_CODE_LINES, code_lines, " of code"),
    ):
        for pattern, limit in limits.items():
            for name in files:
                if Path(name).match(pattern) and (lines := count(root / name)) > limit:
                    yield f"{name}:{limit + 1}: {lines} lines{what}, at most {limit}"


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def code_lines(path: Path) -> int:
    """Lines that hold code: not blank, not only a comment, not part of a docstring."""
    text = path.read_text(encoding="utf-8")
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            used -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(used)


def text_findings(root: Path, name: str) -> Iterator[str]:
    """Emoji and this machine's paths; binary files have neither."""
    try:
        lines = (root / name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return
    checkout = str(root) if len(root.parts) > 2 else None
    for number, line in enumerate(lines, 1):
        if found := EMOJI.search(line):
            yield f"{name}:{number}: emoji U+{ord(found[0]):04X}; write a word (or an escape)"
        if HOME_FOLDER.search(line) or (checkout and checkout in line):
            yield f"{name}:{number}: a path that exists on one machine only"


def summary(files: Sequence[str], functions: Sequence[Function]) -> str:
    median, p90 = spread(functions)
    longest = max(functions, key=lambda function: function.lines)
    return (
        f"{len(files)} files, {len(functions)} functions: median {median:g} lines, p90 {p90}, "
        f"longest {longest.lines} ({longest.name}, {longest.where})"
    )


if __name__ == "__main__":
    sys.exit(main())
