"""What is in the attack set, and how evidence does on it: `python tests/attacks/measure.py`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "code"))

from judging import place_of  # noqa: E402

SIDES = {"user": 0, "document": 0, "assistant": 1}

Row = dict[str, Any]
Pairs = list[list[str]]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text("utf-8").splitlines()]


def talks() -> dict[str, Row]:
    return {each["id"]: each for each in json.loads((HERE / "talks.json").read_text("utf-8"))}


def attacked(row: Row, pairs: Pairs) -> Pairs:
    """The base conversation with the attack's text put where the row says."""
    changed = [list(pair) for pair in pairs]
    for part in [row, *row["also"]]:
        pair, side = changed[part["exchange"] - 1], SIDES[part["place"]]
        old = pair[side] + "\n\n" if part["how"] == "append" else ""
        pair[side] = old + part["text"]
    return changed


def table(name: str) -> str:
    """How many rows a file has, by kind and by language."""
    found = rows(name)
    lines = [f"{name}: {len(found)}"]
    for field in ("kind", "language"):
        count = Counter(row[field] for row in found)
        lines.append(f"  {field}: " + ", ".join(f"{what} {n}" for what, n in count.most_common()))
    return "\n".join(lines)


def found(name: str) -> list[Row]:
    """The rows of a file whose quotes are taken for true."""
    pairs = {item: [tuple(pair) for pair in each["pairs"]] for item, each in talks().items()}
    told = [
        (row, place_of(row["quote"], row["exchange"], pairs[row["talk"]])) for row in rows(name)
    ]
    return [row for row, place in told if place is not None]


if __name__ == "__main__":
    print("\n".join(table(name) for name in ("attacks", "quotes", "made_up")))
    refused = [row["id"] for row in rows("quotes") if row not in found("quotes")]
    accepted = [row["id"] for row in found("made_up")]
    print(f"true quotes refused: {len(refused)} {refused}")
    print(f"made-up quotes accepted: {len(accepted)} {accepted}")
