"""Three-way merge of text, line by line: no line that a person wrote is ever lost.

A line is its content; how it ends (LF, CRLF, nothing at the end of the file) and a byte order mark
are not edits, and stay as they are in the person's file. What is not UTF-8 text is never merged.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

YOURS, BASE, MIDDLE, NEW = "<<<<<<< yours", "||||||| base", "=======", ">>>>>>> new"
MARKERS = frozenset({YOURS, BASE, NEW})  # MIDDLE alone may be the underline of a heading
BOM = "\ufeff"
MOST_CELLS = 250_000  # of one table: a larger stretch without an anchor counts as all changed
MOST_WORK = 3_000_000  # lines looked at for anchors, all stretches together


class Merged(NamedTuple):
    """The merged file, and how many stretches of it need a person."""

    data: bytes
    clashes: int


class Line(NamedTuple):
    text: str
    end: str


class Text(NamedTuple):
    """A file as lines: `end` is its usual line ending, `closed` whether its last line has one."""

    bom: str
    lines: list[Line]
    end: str
    closed: bool


class Region(NamedTuple):
    """A stretch of all three files; in a stable one they have the same lines."""

    stable: bool
    base: slice
    yours: slice
    new: slice


def merge(base: bytes, yours: bytes, new: bytes) -> Merged | None:
    """What both sides made of `base`; clashes stand between markers. None: not text, not merged."""
    if yours in (base, new) or new == base:
        return Merged(new if yours == base else yours, 0)
    b, y, n = _read(base), _read(yours), _read(new)
    if b is None or y is None or n is None:
        return None
    lines, clashes = _merge_lines(b, y, n)
    closed = n.closed if y.closed == b.closed else y.closed
    return Merged((y.bom + _join(lines, y.end, closed)).encode(), clashes)


def plain(data: bytes) -> bytes:
    """Text as it counts: LF line endings and no byte order mark; other bytes as they are."""
    text = _decode(data)
    return data if text is None else text.removeprefix(BOM).replace("\r\n", "\n").encode()


def same_text(one: bytes, other: bytes) -> bool:
    """Whether two files differ in line endings or a byte order mark at most."""
    return one == other or plain(one) == plain(other)


def marker_lines(data: bytes) -> list[int]:
    """The numbers of the lines that are conflict markers of a merge by us."""
    text = _read(data)
    return [at for at, line in enumerate(text.lines if text else (), 1) if line.text in MARKERS]


# ── text ──────────────────────────────────────────────────────────────────────────────────────────


def _decode(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read(data: bytes) -> Text | None:
    text = _decode(data)
    if text is None:
        return None
    bom = BOM if text.startswith(BOM) else ""
    found = re.findall(r"([^\n]*?)(\r?\n|\Z)", text[len(bom) :])
    lines = [Line(*each) for each in found if any(each)]
    crlf = sum(line.end == "\r\n" for line in lines)
    return Text(bom, lines, "\r\n" if crlf * 2 > len(lines) else "\n", _closed(lines))


def _closed(lines: Sequence[Line]) -> bool:
    return not lines or lines[-1].end != ""


def _join(lines: Sequence[Line], end: str, closed: bool) -> str:
    """One text again; a line that had no ending gets one when it is no longer the last."""
    if not lines:
        return ""
    *rest, last = lines
    closing = (last.end or end) if closed or last.text in ("", NEW) else ""
    return "".join(line.text + (line.end or end) for line in rest) + last.text + closing


# ── three ways ────────────────────────────────────────────────────────────────────────────────────


def _merge_lines(b: Text, y: Text, n: Text) -> tuple[list[Line], int]:
    base, yours, new = ([line.text for line in each.lines] for each in (b, y, n))
    out: list[Line] = []
    clashes = 0
    for region in _regions(base, yours, new):
        was, mine, theirs = base[region.base], yours[region.yours], new[region.new]
        if region.stable or theirs in (was, mine):
            out += y.lines[region.yours]
        elif mine == was:
            out += [Line(text, y.end) for text in theirs]
        else:
            out += [Line(YOURS, y.end), *y.lines[region.yours]]
            out += [Line(text, y.end) for text in (BASE, *was, MIDDLE, *theirs, NEW)]
            clashes += 1
    return out, clashes


def _regions(base: Sequence[str], yours: Sequence[str], new: Sequence[str]) -> Iterator[Region]:
    """The files in stretches, in order: lines that all three share, and what is between them."""
    in_yours, in_new = dict(match_lines(base, yours)), dict(match_lines(base, new))
    shared = [(at, in_yours[at], in_new[at]) for at in in_yours if at in in_new]
    b = y = n = 0
    for i, j, k in [*shared, (len(base), len(yours), len(new))]:
        if (i, j, k) != (b, y, n):
            yield Region(False, slice(b, i), slice(y, j), slice(n, k))
        yield Region(True, slice(i, i + 1), slice(j, j + 1), slice(k, k + 1))
        b, y, n = i + 1, j + 1, k + 1


# ── two ways ──────────────────────────────────────────────────────────────────────────────────────


def match_lines(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Which lines of `a` are which of `b`, in order: the ends first, then the lines that occur once
    in both (patience diff), then the longest common sequence. Time is bounded for any input."""
    pairs: list[tuple[int, int]] = []
    work, todo = 0, [(0, len(a), 0, len(b))]
    while todo:
        ends, (a0, a1, b0, b1) = _trim(a, b, *todo.pop())
        pairs += ends
        work += a1 - a0 + b1 - b0
        if a0 == a1 or b0 == b1 or work > MOST_WORK:
            continue
        if anchors := _anchors(a, b, range(a0, a1), range(b0, b1)):
            pairs += anchors
            starts = [(a0, b0), *((i + 1, j + 1) for i, j in anchors)]
            ends = [*anchors, (a1, b1)]
            todo += [(i, k, j, m) for (i, j), (k, m) in zip(starts, ends, strict=True)]
        elif (a1 - a0) * (b1 - b0) <= MOST_CELLS:
            pairs += [(a0 + i, b0 + j) for i, j in _common(a[a0:a1], b[b0:b1])]
    return sorted(pairs)


def _trim(
    a: Sequence[str], b: Sequence[str], a0: int, a1: int, b0: int, b1: int
) -> tuple[list[tuple[int, int]], tuple[int, int, int, int]]:
    """The equal lines at both ends of a stretch, and what is left between them."""
    pairs = []
    while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
        pairs.append((a0, b0))
        a0, b0 = a0 + 1, b0 + 1
    while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
        a1, b1 = a1 - 1, b1 - 1
        pairs.append((a1, b1))
    return pairs, (a0, a1, b0, b1)


def _anchors(a: Sequence[str], b: Sequence[str], in_a: range, in_b: range) -> list[tuple[int, int]]:
    """The longest rising row of lines that occur exactly once in both stretches."""
    count_a, count_b = Counter(a[i] for i in in_a), Counter(b[j] for j in in_b)
    place = {b[j]: j for j in in_b if count_b[b[j]] == 1}
    once = [(i, place[a[i]]) for i in in_a if count_a[a[i]] == 1 and a[i] in place]
    tails: list[int] = []  # the smallest place in b that ends a row of each length
    last: list[int] = []  # which of `once` that is
    before: list[int] = []
    for index, (_, j) in enumerate(once):
        length = bisect_left(tails, j)
        before.append(last[length - 1] if length else -1)
        tails[length : length + 1], last[length : length + 1] = [j], [index]
    row, index = [], last[-1] if last else -1
    while index >= 0:
        row.append(once[index])
        index = before[index]
    return row[::-1]


def _common(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """A longest common sequence, by the full table: for short stretches."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below = table[i], table[i + 1]
        for j in range(len(b) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], row[j + 1])
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif table[i + 1][j] >= table[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
