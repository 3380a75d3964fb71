"""What must not be learned from, and what a set of transcripts holds. Works alone when copied.

    wrong = inspector(load_artefacts(root), "en")
    wrong("assistant", "As an AI, I can't open parcels.", told=[], earlier=[])

Chapters: 1 the artefact filter, run on every message before any judge reads it; 2 figures of a set.
Importing it opens nothing.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from settings import Artefact, Artefacts

# ══ 1 The artefact filter ═════════════════════════════════════════════════════════════════════════

Inspect = Callable[[str, str, Sequence[str], Sequence[str]], list[str]]


def inspector(artefacts: Artefacts, language: str) -> Inspect:
    """A function (side, text, told, earlier) -> what is wrong with a message, in words."""
    patterns = [(each, _compiled(each)) for each in artefacts.patterns]

    def inspect(side: str, text: str, told: Sequence[str], earlier: Sequence[str]) -> list[str]:
        if not text.strip():
            return ["blank: the message has no words"]
        hits = ((each, found.search(text)) for each, found in patterns if side in each.sides)
        return [f"{each.kind}: {each.id}: {hit[0][:60]}" for each, hit in hits if hit]

    return inspect


def _compiled(artefact: Artefact) -> re.Pattern[str]:
    plain = "|".join(map(re.escape, artefact.phrases))
    return re.compile(artefact.pattern or plain, re.IGNORECASE | re.MULTILINE)


# ══ 2 Figures of a set ════════════════════════════════════════════════════════════════════════════


def write_generation_stats(root: Path) -> None:
    """Placeholder until the figures are built in this issue."""
