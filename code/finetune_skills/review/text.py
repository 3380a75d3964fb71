"""Model text as data: what can't be seen is named, quotes find their place, repairs show as a diff.

Markup is made here and nowhere else, by code: text from files is always escaped first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from markupsafe import Markup, escape

from finetune_skills.review.records import Exchange

# Controls, terminal escapes, marks that change the reading direction or hide, lone surrogates. The
# joiners U+200C and U+200D stay: Persian, Indic scripts and family signs are not written without.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
CONTROL_SIGNS = 0x2400  # U+2400 on: one sign for each control character
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0eff]|\w+|\s+|.", re.DOTALL)
MOST_TOKENS = 1500  # of one message; above it a diff by words takes too long
LONGEST_QUOTE = 4000  # characters


# ── showing ───────────────────────────────────────────────────────────────────────────────────────


def name_of(sign: str) -> str:
    """A sign for something that has none: a control picture, or its number."""
    code = ord(sign)
    if code < 0x20:
        return chr(CONTROL_SIGNS + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def plain(text: object) -> str:
    """Text for a title or an attribute: everything that can't be seen is named."""
    return UNSEEN.sub(lambda found: name_of(found[0]), str(text).replace("\r\n", "\n"))


def shown(text: object) -> Markup:
    """Text for a page: escaped, with a muted mark for everything that can't be seen."""
    parts, end, text = [], 0, str(text).replace("\r\n", "\n")
    for found in UNSEEN.finditer(text):
        parts.append(escape(text[end : found.start()]))
        said = {"code": f"U+{ord(found[0]):04X}", "sign": name_of(found[0])}
        parts.append(Markup('<span class="unseen" title="{code}">{sign}</span>').format(**said))
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


# ── quotes ────────────────────────────────────────────────────────────────────────────────────────


class Place(NamedTuple):
    """Where a quote stands: exchange from 1, side, and from where to where."""

    exchange: int
    side: str
    start: int
    end: int


class Span(NamedTuple):
    """A piece of one message that a quote with this number covers."""

    start: int
    end: int
    number: int


def find_quote(quote: str, said: int, exchanges: Sequence[Exchange]) -> Place | None:
    """The quote's place, first in the exchange that the judge named, then anywhere; or None."""
    quote = quote.strip().strip("\"'\u201c\u201d\u2018\u2019\u2026").strip()
    if not quote or len(quote) > LONGEST_QUOTE:
        return None
    numbers = [n for n in range(1, len(exchanges) + 1) if n != said]
    order = [said, *numbers] if 1 <= said <= len(exchanges) else numbers
    for pattern in (re.escape(quote), loosely(quote)):
        found = next(places(re.compile(pattern), order, exchanges), None)
        if found:
            return found
    return None


def loosely(quote: str) -> str:
    """The same words whatever the spaces between them."""
    return r"\s+".join(map(re.escape, quote.split()))


def places(
    pattern: re.Pattern[str], order: Iterable[int], exchanges: Sequence[Exchange]
) -> Iterator[Place]:
    for number in order:
        exchange = exchanges[number - 1]
        for side, text in (("assistant", exchange.assistant), ("user", exchange.user)):
            if found := pattern.search(text):
                yield Place(number, side, found.start(), found.end())


def marked(text: str, spans: Sequence[Span]) -> Markup:
    """A message with its quotes marked; pieces that several quotes share name all of them."""
    if not spans:
        return shown(text)
    inside = {edge for span in spans for edge in (span.start, span.end)}
    edges = sorted({0, len(text), *inside})
    return Markup("").join(
        piece(text[start:end], [s.number for s in spans if s.start <= start and end <= s.end])
        for start, end in itertools.pairwise(edges)
    )


def piece(text: str, numbers: Sequence[int]) -> Markup:
    if not numbers:
        return shown(text)
    said = " ".join(map(str, numbers))
    return Markup('<mark data-q="{}">{}</mark>').format(said, shown(text))


# ── repairs ───────────────────────────────────────────────────────────────────────────────────────


def diff(old: str, new: str) -> Markup:
    """What was taken away and what was put in, word by word; long messages as a whole."""
    if old == new:
        return shown(new)
    before, after = words_of(old), words_of(new)
    if max(len(before), len(after)) > MOST_TOKENS:
        return changed("del", [old]) + changed("ins", [new])
    parts = []
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(shown("".join(after[k:m])))
        else:
            parts += [changed("del", before[i:j]), changed("ins", after[k:m])]
    return Markup("").join(parts)


def words_of(text: str) -> list[str]:
    return WORDS.findall(text.replace("\r\n", "\n"))


def changed(tag: str, tokens: Sequence[str]) -> Markup:
    if not tokens:
        return Markup("")
    made = shown("".join(tokens))
    return (
        Markup("<del>{}</del>").format(made)
        if tag == "del"
        else Markup("<ins>{}</ins>").format(made)
    )
