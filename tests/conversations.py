"""Seeded texts that look like conversations of one subject, and edits of them, to find again."""

import random
from collections.abc import Iterator
from itertools import accumulate

SYLLABLES = ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "vo", "zu", "be", "da", "gi", "hu")
VOCABULARY = tuple(f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES)
COMMON = tuple(accumulate(1 / (rank + 2.7) for rank in range(len(VOCABULARY))))
STOCK = 40  # sentences that everybody uses
OPENINGS = 8


def conversations(count: int, words: int = 120, seed: int = 0) -> Iterator[str]:
    """Texts about one of forty topics: shared words, shared sentences, and one of few openings."""
    rng = random.Random(seed)
    topics = [rng.sample(VOCABULARY[200:], 120) for _ in range(40)]
    stock = [" ".join(said(rng, 9)) for _ in range(STOCK)]
    for _ in range(count):
        topic, parts = rng.choice(topics), [rng.choice(stock[:OPENINGS])]
        while sum(part.count(" ") + 1 for part in parts) < words * rng.uniform(0.8, 1.2):
            own = [*said(rng, rng.randint(5, 12)), *rng.choices(topic, k=4)]
            parts.append(rng.choice(stock) if rng.random() < 0.2 else " ".join(own))
        yield ". ".join(parts)


def said(rng: random.Random, count: int) -> list[str]:
    return rng.choices(VOCABULARY, cum_weights=COMMON, k=count)


def edited(text: str, rng: random.Random, share: float = 0.05) -> str:
    """A text in which this share of the words was replaced, left out or added."""
    words = text.split()
    for _ in range(max(1, round(share * len(words)))):
        at, how = rng.randrange(len(words)), rng.randrange(3)
        words[at : at + (how != 2)] = [] if how == 1 else [rng.choice(VOCABULARY)]
    return " ".join(words)


def planted(
    count: int, words: int = 120, seed: int = 0
) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """So many texts, one in twenty of them an edited copy; and the pairs to be found."""
    rng = random.Random(seed + 1)
    copies = count // 20
    texts = {f"t{n:06}": text for n, text in enumerate(conversations(count - copies, words, seed))}
    chosen = rng.sample(sorted(texts), copies)
    texts |= {f"{item}-copy": edited(texts[item], rng) for item in chosen}
    return texts, {(item, f"{item}-copy") for item in chosen}
