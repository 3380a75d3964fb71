"""What people did for the example: old chats of the desk, and reviews. Both are simulated.

    python tests/example_people.py     # write them anew, when the example or the simulation changed

The old chats are played by the simulated person and two of the simulated assistants, most of them
bad. The reviews are what `simulated.truth` says of a transcript: a person who overlooks nothing.
They hold for the transcripts that the example's own seeds give.
"""

import asyncio
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples/support-desk"
CODE = HERE.parent / "code"
sys.path[:0] = [str(HERE), str(CODE), str(CODE / "templates/scripts"), str(EXAMPLE)]

import personas  # noqa: E402
import simulated  # noqa: E402

import judging  # noqa: E402
import settings  # noqa: E402
import simulation  # noqa: E402
from designs import designed  # noqa: E402
from finetune_skills import gates  # noqa: E402
from finetune_skills.labels import Label, checked, findings_of  # noqa: E402
from finetune_skills.rehearsal import bench  # noqa: E402
from finetune_skills.review.records import SEEN, Records  # noqa: E402
from infrastructure import get_backend, score_answers  # noqa: E402

OLD, REVIEWS = EXAMPLE / "people/old-chats.jsonl", EXAMPLE / "people/reviews.jsonl"
PLAYED = ("base",) * 10 + ("assistant",) * 4  # most old chats are bad
EXCHANGES, SEED = 6, 99
FINE = "The judge is wrong here, and finetune judges counts it."
NAME = "simulated person"
Row = dict[str, Any]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for path, rows in made(Path(folder) / "desk").items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(rows, "utf-8")
            print(f"{path.name}: {rows.count(chr(10))}")
    return 0


def made(root: Path) -> dict[Path, str]:
    """Both files, from a project that is made here as the rehearsal makes it."""
    designed(root)
    bench.script(root, "personas.py", "--count", str(bench.PERSONAS))
    bench.script(root, "generate.py")
    bench.script(root, "generate.py", "--confirm")
    gates.decide(root, "confirm", "waived", "example people", "to make the example's reviews")
    bench.script(root, "generate.py", "--count", str(bench.SCALE))
    chats = as_lines(old_chats(root))
    (root / "people").mkdir(exist_ok=True)
    (root / "people/old-chats.jsonl").write_text(chats, "utf-8")
    bench.script(root, "import_transcripts.py", "people/old-chats.jsonl", "--name", "old-chats")
    bench.script(root, "assess.py")
    return {OLD: chats, REVIEWS: as_lines(reviews(root))}


def as_lines(rows: Iterator[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def old_chats(root: Path) -> Iterator[Row]:
    """Conversations in the messages format that many tools export."""
    taxonomy, template = settings.load_taxonomy(root), settings.load_persona_template(root)
    for number, role in enumerate(PLAYED, 1):
        person = personas.draw_persona(taxonomy, template, SEED, number, "baseline")
        person |= {"target_exchanges": EXCHANGES}
        talk = asyncio.run(_play(root, person, role))
        messages = [
            {"role": side, "content": pair[side]} for pair in talk for side in ("user", "assistant")
        ]
        yield {"id": f"old-{number:03}", "messages": messages}


async def _play(root: Path, person: Row, role: str) -> list[Row]:
    rules = simulation.Rules.of(root, SEED, lambda *_: [])
    rules = dataclasses.replace(rules, system="Tarn's old desk.")
    user, reply = (get_backend(f"python:simulated:{name}", root=root) for name in ("user", role))
    fields = personas.persona_fields(person) | {"persona": personas.persona_sheet(person)}
    made = await simulation.simulate_conversation(person, fields, user, reply, rules, scope="old")
    return list(made.transcript["exchanges"])


def reviews(root: Path) -> Iterator[Row]:
    """A complete label for every transcript of a project, as the review page would keep it."""
    court, records = judging.Court.of(root), Records(root)
    records.refresh()
    combined = {row["id"]: row for row in court.combined()}
    for item, source in sorted(court.sources.items()):
        now = records.current(records.transcripts.entries[item])
        seen = {judge: now[judge][SEEN] for judge in court.judges}
        yield review(court, source, seen, combined[item])


def review(court: judging.Court, source: judging.Source, seen: Row, combined: Row) -> Row:
    rubric = court.bench.rubric
    asked = court.bench.asked(rubric.criteria, source.turns)
    said = {name: simulated.truth(name, list(source.pairs))[0] for name in asked}
    good = score_answers(rubric, said, turns=source.turns).passed
    row: Row = {"id": source.id, "reviewer": NAME, "blind": False, "turns": source.turns}
    row |= {"transcript_hash": source.hash, "rubric_hash": rubric.hash, "seen": seen}
    row |= {"verdict": "good" if good else "bad", "criteria": said, "notes": ""}
    row["agreed"] = [name for name in said if combined["answers"].get(name) == said[name]]
    found = findings_of(Label.of(row | {"at": "", "revision": 1}), combined)
    return checked(row | {"rubric_misses": "", "fine": dict.fromkeys(found, FINE)})


if __name__ == "__main__":
    sys.exit(main())
