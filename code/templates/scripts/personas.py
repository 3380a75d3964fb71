"""Who the simulated users are: personas, each drawn by key from your taxonomy and your template.

    python scripts/personas.py --count 200                 # data/personas/training.jsonl
    python scripts/personas.py --count 24 --evaluation     # data/personas/evaluation.jsonl
    python scripts/personas.py --count 500 --dry-run       # only the table; needs no gate

Persona k depends on the seed, the set, k and your configuration alone: it is the same on every
machine and in any order. A larger count appends; what is there is never changed. The table shows
what was drawn beside what to expect. To change how personas are drawn, edit `_persona` here, and
`expected_shares` in sampling.py, which works out exactly what to expect.
Exit 0: done. 2: something is missing or does not fit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this project's modules, no other's

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import infrastructure
import sampling
import settings
import stage
from evidence import clopper_pearson
from infrastructure import Appender, FinetuneError, ReadReport, encode_line, iter_records, rng
from sampling import Persona, Plan, Pot, Shares, Tally, between, prepare, some, weights_of
from settings import PersonaFile, Taxonomy

ROOT = Path(__file__).resolve().parents[1]
# The sets and how their ids begin; baseline.py draws its own.
PREFIX = {"training": "train", "evaluation": "eval", "baseline": "base"}
COUNTS = {"training": 200, "evaluation": 24}  # start values
MOST = 100_000  # personas of one set
BATCH = 500  # rows of one write
LEVEL = 0.999  # of the intervals: of a thousand right figures, one lies outside
DRAWN_FROM = {  # what a row says that it was drawn from
    "taxonomy_hash": "config/input-taxonomy.yaml",
    "template_hash": "config/persona-template.yaml",
    "seed": "seed",
    "set": "set",
}

Chance = Callable[[str], random.Random]


# ── one persona ───────────────────────────────────────────────────────────────────────────────────


def draw_persona(
    taxonomy: Taxonomy, template: PersonaFile, seed: int, number: int, purpose: str = "training"
) -> Persona:
    """Persona `number` of the set `purpose`; nothing else has an influence on it."""
    return _persona(prepare(taxonomy, template), seed, number, purpose)


def draw_personas(
    plan: Plan, seed: int, numbers: Iterable[int], purpose: str = "training"
) -> Iterator[Persona]:
    """The personas of these numbers, in this order; `plan` is what `prepare` made."""
    return (_persona(plan, seed, number, purpose) for number in numbers)


def _persona(plan: Plan, seed: int, number: int, purpose: str) -> Persona:
    """Each purpose has its own key, so that one more draw for one of them changes no other."""
    template, person = plan.template, plan.template.persona_template
    style, traits, topics = person.communication_style, person.personality_traits, person.topics

    def chance(what: str) -> random.Random:
        return rng(seed, purpose, number, what)

    def one(what: str, weights: Mapping[Any, float]) -> Any:
        return Pot(weights).draw(chance(what))

    tied = dict(zip(plan.tied, plan.joint.draw(chance("tied dimensions")), strict=True))
    free = {name: one(f"dimension {name}", weights) for name, weights in plan.free.items()}
    own, more = tied | free, template.attributes
    age = one("age", person.age_range)
    writes = one("style", style.weights_by_age.get(age, style.weights))
    course = one("trajectory", weights_of(template.trajectory))
    length = one("length", weights_of(template.length_classes))
    many = between(topics.count, chance("number of topics"))
    brings = some(plan.topics_for(tied), many, chance("topics"), topics.repeat)
    many = between(traits.count, chance("number of traits"))
    return {
        "schema": infrastructure.SCHEMA,
        "id": persona_id(number, purpose),
        "name": one("name", Counter(person.names)),
        "age_range": age,
        "personality_traits": some(Counter(traits.options), many, chance("traits")),
        "communication_style": writes,
        "style_reads": style.options[writes],
        "words": list(style.words[writes]),
        "topic_seeds": [_topic(plan, tied, at, name, one) for at, name in enumerate(brings)],
        "dimensions": {name: own[name] for name in sorted(own)},
        "attributes": {name: one(f"attribute {name}", more[name]) for name in sorted(more)},
        "flaws": _flaws(template, chance),
        "trajectory": course,
        "trajectory_shows": template.trajectory[course].shows,
        "length_class": length,
        "target_exchanges": template.length_classes[length].exchanges,
        "seed": _seed(number, purpose, chance("seed")),
        "provenance": {"set": purpose, "seed": seed, **plan.hashes},
    }


def _topic(
    plan: Plan, who: Mapping[str, str], at: int, name: str, one: Callable[..., Any]
) -> dict[str, str]:
    topic = plan.topics[name]
    return {
        "category": name,
        "subtopic": one(f"subtopic {at}", topic.subtopics),
        "complexity": one(f"difficulty {at}", plan.difficulties(who, name)),
        "description": topic.description,
    }


def _flaws(template: PersonaFile, chance: Callable[[str], random.Random]) -> list[dict[str, str]]:
    """The bad habits of a person; which of them show is drawn again for each message."""
    patterns, found = template.flaw_patterns, []
    if chance("no flaws").random() < patterns.none_share:
        return []
    for family, pot in (("primary", patterns.primary), ("secondary", patterns.secondary)):
        many = between(pot.count, chance(f"number of {family} flaws"))
        names = some(sampling.flaws_of(pot), many, chance(f"{family} flaws"))
        found += [{"name": name, "family": family} for name in names]
    return found


def persona_id(number: int, purpose: str) -> str:
    if purpose not in PREFIX or not 1 <= number <= MOST:
        have = f"Sets: {', '.join(PREFIX)}. Numbers: 1 to {MOST:,}."
        raise FinetuneError(f"persona {number} of the set {purpose!r}: there is none. {have}")
    return f"{PREFIX[purpose]}-{number:05}"


def _seed(number: int, purpose: str, chance: random.Random) -> int:
    """Even for training, odd for evaluation, with the number in it: no two personas share one."""
    base = int(chance.random() * 2**31) * (MOST + 1) + number
    return 2 * base + (purpose == "evaluation")


# ── what the simulator is told ────────────────────────────────────────────────────────────────────


def persona_sheet(persona: Persona) -> str:
    """All that was drawn, for {{persona}} in a prompt; no flaws, they are sent for each message."""
    lines = (f"{label.replace('_', ' ')}: {text}" for label, text in _told(persona))
    return "\n".join(lines).replace(": \n", ":\n")


def persona_fields(persona: Persona) -> dict[str, str]:
    """The same, value by value, for a prompt that has a placeholder for each of them."""
    return {sampling.placeholder(label): text for label, text in _told(persona)}


def _told(persona: Persona) -> Iterator[tuple[str, str]]:
    style, (least, most) = persona["communication_style"], persona["words"]
    yield "name", persona["name"]
    yield "age_range", persona["age_range"]
    yield "personality_traits", ", ".join(persona["personality_traits"]) or "nothing special"
    reads = f"{style}: {persona['style_reads']}; {least} to {most} words in a message"
    yield "communication_style", reads
    seeds = enumerate(persona["topic_seeds"], 1)
    line = "\n  {}. {category}: {subtopic}; {complexity} ({description})"
    yield "topics", "".join(line.format(n, **seed) for n, seed in seeds).replace(" ()", "")
    yield "trajectory", f"{persona['trajectory']}: {persona['trajectory_shows']}"
    yield from (persona["dimensions"] | persona["attributes"]).items()


# ── what was drawn, beside what to expect ─────────────────────────────────────────────────────────


def expected_shares(taxonomy: Taxonomy, template: PersonaFile) -> dict[str, Shares]:
    """What share each value has in the long run, worked out exactly."""
    return sampling.expected_shares(prepare(taxonomy, template))


def compare(tally: Tally) -> dict[str, dict[str, Any]]:
    """Expected and realised share of each value, with an exact interval around the latter."""
    expected = sampling.expected_shares(tally.plan).items()
    there = {marginal: shares for marginal, shares in expected if tally.sizes[marginal]}
    return {m: {v: _row(tally, m, v, p) for v, p in shares.items()} for m, shares in there.items()}


def _row(tally: Tally, marginal: str, value: str, expected: float) -> dict[str, Any]:
    k, n = tally.counts[marginal, value], tally.sizes[marginal]
    low, high = clopper_pearson(k, n, LEVEL)
    outside = not low - 1e-9 <= expected <= high + 1e-9
    row = {"expected": expected, "drawn": k / n, "count": k, "of": n}
    return row | {"low": low, "high": high, "outside": outside}


# ── the file, and the command ─────────────────────────────────────────────────────────────────────


def extend(
    plan: Plan, path: Path, seed: int, purpose: str, count: int, write: bool
) -> tuple[Tally, int]:
    """Append what the file lacks of the first `count`; what it then holds, and how much is new."""
    tally = Tally(plan)
    with _alone(path.parent) if write else contextlib.nullcontext():
        for row in _rows(plan, path, seed, purpose):
            tally.add(row)
        missing = [n for n in range(1, count + 1) if persona_id(n, purpose) not in tally.ids]
        for start in range(0, len(missing), BATCH):
            rows = list(draw_personas(plan, seed, missing[start : start + BATCH], purpose))
            if write:
                with Appender(path) as file:
                    file.append_bytes(b"".join(map(_line, rows)))
            if len(missing) > BATCH:
                print(f"personas  {start + len(rows):,} of {len(missing):,}", file=sys.stderr)
            for row in rows:
                tally.add(row)
    return tally, len(missing)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: a second one waits, then finds the personas of the first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise FinetuneError(f"{folder}: cannot be written to: {error.strerror}.") from None
    with open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(persona: Persona) -> bytes:
    code = [infrastructure.file_hash(path)[:12] for path in (__file__, sampling.__file__)]
    return encode_line(persona | {"provenance": persona["provenance"] | {"code": ".".join(code)}})


def _rows(plan: Plan, path: Path, seed: int, purpose: str) -> Iterator[Persona]:
    """The file's personas, each once. One that would not be drawn like this now is an error."""
    report, seen, drawn_now = ReadReport(), set(), {"provenance": None}
    for row in iter_records(path, report):
        found = re.fullmatch(r"(?:train|eval|base)-(\d{5,6})", str(row.get("id")))
        if found is None or row["id"] in seen:
            continue  # a persona that you wrote yourself, or a second copy
        fresh, made = _persona(plan, seed, int(found[1]), purpose), row.get("provenance")
        made = made if isinstance(made, dict) else {}
        other = [w for key, w in DRAWN_FROM.items() if made.get(key) != fresh["provenance"][key]]
        if other or row | drawn_now != fresh | drawn_now:
            what = " and another ".join(other) or "version of the scripts, or by hand"
            said = f"{path}: {row['id']} was made differently: from another {what}. Nothing was"
            todo = "Undo that change; or move the file away, take a new seed (config/project.yaml"
            raise FinetuneError(f"{said} changed. {todo} seeds), and run again.")
        seen.add(row["id"])
        yield row
    report.tell()
    if len(report.bad) > 1 and not seen:
        raise FinetuneError(f"{path}: no row of it can be read. Move it away, then run again.")


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for a terminal of 80 columns."""
    yield f"{'':33}expected     drawn       of   {LEVEL:.1%} interval"
    for marginal, rows in report["marginals"].items():
        yield marginal[:80]
        for value, row in rows.items():
            line = f"  {value[:29]:31}{row['expected']:8.1%}{row['drawn']:10.1%}{row['of']:9,}"
            yield f"{line}   {row['low']:6.1%} -{row['high']:7.1%}{' !' * row['outside']}"
    chance = report["compared"] * (1 - LEVEL)
    yield f"! outside: {report['outside']} of {report['compared']} compared; by chance {chance:.1f}"
    yield from (f"not compared, too many states: {name}" for name in report["not_compared"])
    edge = report["edge_cases"]
    if edge["expected"] is not None:
        fits = edge["lowest"] <= edge["expected"] <= edge["highest"]
        band = f"{edge['lowest']:.0%} to {edge['highest']:.0%}"
        said = "inside" if fits else "OUTSIDE: change weights of topics, or the band"
        yield f"edge cases: {edge['expected']:.1%} to expect; band {band}: {said}"
    new = f"{report['added']:,} new, seed {report['seed']}{', not written' * report['dry_run']}"
    yield f"{report['personas']:,} personas in {report['file']} ({new})"


def _report(tally: Tally, about: dict[str, Any]) -> dict[str, Any]:
    marginals = compare(tally)
    rows = [row for each in marginals.values() for row in each.values()]
    edge = marginals.get(sampling.EDGE, {}).get("edge case", {}).get("expected")
    return about | {
        "personas": len(tally.ids),
        "compared": len(rows),
        "outside": sum(row["outside"] for row in rows),
        "not_compared": sorted(set(tally.sizes) - set(marginals)),
        "edge_cases": tally.plan.taxonomy.edge_cases.model_dump() | {"expected": edge},
        "marginals": marginals,
    }


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not from {least:,} to {most:,}")
        return int(text)

    return parse


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    text, raw = str(__doc__), argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=raw, allow_abbrev=False)
    counts = f"default: {COUNTS['training']}, with --evaluation {COUNTS['evaluation']}"
    add = parser.add_argument
    add("--count", type=_number(1, MOST), metavar="N", help=f"personas in the file ({counts})")
    add("--evaluation", action="store_true", help="the evaluation set (default: training)")
    seeds = "default: seeds.personas or seeds.evaluation of config/project.yaml"
    add("--seed", type=_number(0, 2**53), metavar="N", help=seeds)
    add("--dry-run", action="store_true", help="draw and compare, write nothing (default: write)")
    add("--json", action="store_true", help="the result as JSON (default: a table)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = _options(words)
    report = _run(options, "evaluation" if options.evaluation else "training")
    print(json.dumps(report, indent=1) if options.json else "\n".join(table(report)))
    return 0


def _run(options: argparse.Namespace, purpose: str) -> dict[str, Any]:
    if not options.dry_run:
        infrastructure.require_gate("taxonomy", ROOT)
    plan = prepare(settings.load_taxonomy(ROOT), settings.load_persona_template(ROOT))
    seeds = settings.load_project(ROOT).seeds
    seed = seeds.evaluation if options.evaluation else seeds.personas
    seed = seed if options.seed is None else options.seed
    path, count = f"data/personas/{purpose}.jsonl", options.count or COUNTS[purpose]
    tally, new = extend(plan, ROOT / path, seed, purpose, count, write=not options.dry_run)
    about = {"schema": infrastructure.SCHEMA, "set": purpose, "file": path, "seed": seed}
    return _report(tally, about | {"added": new, "dry_run": options.dry_run})


if __name__ == "__main__":
    sys.exit(stage.shown(main))
