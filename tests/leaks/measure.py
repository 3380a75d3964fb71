"""How well the artefact filter does on the leak set: `python tests/leaks/measure.py`.

Caught means that anything is found in a leak; a false alarm is anything found in a look-alike.
Single failures are listed for the first half only: nobody tunes on the second.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CODE = HERE.parent.parent / "code"
sys.path.insert(0, str(CODE))

from curation import inspector  # noqa: E402
from settings import load_artefacts  # noqa: E402

Row = dict[str, Any]


def rows(half: str) -> list[Row]:
    return [json.loads(line) for line in (HERE / f"{half}.jsonl").read_text("utf-8").splitlines()]


def filter_of_the_starter() -> Callable[[Row], list[str]]:
    """What the starter's filter finds in a row."""
    artefacts = load_artefacts(CODE / "templates")

    def found(row: Row) -> list[str]:
        look = inspector(artefacts, row["language"])
        return look(row["side"], row["text"], row.get("told", []), row.get("earlier", []))

    return found


def measure(half: str) -> tuple[float, float, list[tuple[Row, list[str]]]]:
    """Recall, share of false alarms, and every row with what was found in it."""
    found = filter_of_the_starter()
    looked = [(row, found(row)) for row in rows(half)]
    shares = {}
    for label in ("leak", "fine"):
        hits = [bool(what) for row, what in looked if row["label"] == label]
        shares[label] = sum(hits) / len(hits)
    return shares["leak"], shares["fine"], looked


def table(half: str) -> str:
    """Recall and false alarms of a half, in all and by kind."""
    recall, alarms, looked = measure(half)
    all_of: Counter[tuple[str, str]] = Counter()
    hit: Counter[tuple[str, str]] = Counter()
    named = 0
    for row, what in looked:
        key = (row["label"], row["kind"])
        all_of[key] += 1
        hit[key] += bool(what)
        named += row["label"] == "leak" and any(w.startswith(row["kind"] + ":") for w in what)
    lines = [f"{half}: recall {recall:.3f}, false alarms {alarms:.3f}, right kind named {named}"]
    for kind in sorted({row["kind"] for row, _ in looked}):
        figures = [f"{hit[label, kind]:>3}/{all_of[label, kind]:<3}" for label in ("leak", "fine")]
        lines.append(f"  {kind:<18} caught {figures[0]} false alarms {figures[1]}")
    return "\n".join(lines)


def failures(half: str) -> str:
    wrong = [(r, what) for r, what in measure(half)[2] if bool(what) != (r["label"] == "leak")]
    return "\n".join(f"  {row['id']}: {row['text'][:90]!r} {what}" for row, what in wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=("first", "second"), help="only this one; default both")
    only = parser.parse_args().half
    for half in [only] if only else ["first", "second"]:
        print(table(half))
        if half == "first":
            print(failures(half))


if __name__ == "__main__":
    main()
