"""Repair what failed softly, cut before what failed badly, reject the rest; then judge it again.

    python scripts/fixup.py                    # every transcript that failed its judges
    python scripts/fixup.py --dry-run          # what would be done, and where
    python scripts/fixup.py --shard 2/8

A failing reply is rewritten only if the person's next message still follows from it; the model may
answer UNFIXABLE. Then, and where a safety gate failed, the conversation is cut before that exchange
if limits.min_exchanges remain, else rejected. Safety failures are never rewritten. There is one
round: what fails its judges again is rejected.

The original stays as it is; the repaired one is data/repaired/<id>.json, with every old and new
reply. What became of each transcript is a line of data/candidates.jsonl.
Exit 0: nothing waits. 1: something does; run again. 2: something is missing.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import curation
import evidence
import figures
import infrastructure
import judging
import settings
import simulation
import stage
from assess import judge_all, todo
from infrastructure import LLMBackend, ModelFailure, count_words, fill_prompt
from judging import Court, Row, Source

ROOT = Path(__file__).resolve().parents[1]
GATE = "audit"
GIVEN_UP = "UNFIXABLE"
TRIES = 2  # of one reply
ROOM = 1.1  # times the words of the old reply that a new one may have; a start value


@dataclass(frozen=True)
class Work:
    """One transcript that failed: where, and by which criteria."""

    source: Source
    row: Row
    unsafe: tuple[int, ...]  # exchanges, from 1
    soft: Mapping[int, tuple[str, ...]]  # exchange: criteria

    def plan(self, least: int) -> str:
        first = min(self.unsafe, default=0)
        if 0 < first <= least:
            return f"reject: cut before exchange {first}, it keeps fewer than {least}"
        if first:
            return f"cut before exchange {first}"
        return f"rewrite {', '.join(f'exchange {number}' for number in sorted(self.soft))}"


@dataclass
class Fixed:
    """What was made of it."""

    pairs: list[judging.Pair]
    fate: str = "repaired"
    why: list[str] = field(default_factory=list)
    changes: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Shop:
    """All that is fixed for a run."""

    court: Court
    sections: Mapping[str, str]
    about: Mapping[str, str]  # domain and language
    inspect: simulation.Inspect
    least: int
    floor: int


def main() -> int:
    options = _options()
    if not options.dry_run:
        infrastructure.require_gate(GATE, ROOT)
    settings.read_env(ROOT)
    project, court = settings.load_project(ROOT), Court.of(ROOT)
    if not options.dry_run:
        catch_up(court, options)
    works = [each for each in failing(court) if stage.in_shard(each.source.id, options.shard)]
    if options.dry_run:
        plans = {each.source.id: each.plan(project.limits.min_exchanges) for each in works}
        return _show(options, {"to repair": len(works)} | plans)
    shop = prepare(project, court)
    played = stage.cast(project, "fixup") | dict(court.judges) if works else dict(court.judges)
    with stage.models(ROOT, project, "fixup", played, options) as models:
        report = asyncio.run(_all(shop, works, models, options))
        _tell(report)
        court = Court.of(ROOT)
        tasks = [task for task in todo(court, list(court.sources.values())) if _is_ours(task)]
        again = asyncio.run(judge_all(court, tasks, models, _judging(options)))
        _tell(again)
    reject_again(options)
    told = settle(options)
    _show(options, told)
    return report.exit_code or again.exit_code or int(told["pending"] > 0)


def failing(court: Court) -> list[Work]:
    """What failed by its judges and was neither repaired nor rejected yet."""
    rows = court.combined()
    known = judging.fates(ROOT, rows)
    waiting = [
        row for row in rows if row["state"] == "failed" and known[row["id"]].state == "pending"
    ]
    works = (_work(court, row) for row in waiting)
    return [each for each in works if not _is_repaired(each.source)]


def _work(court: Court, row: Row) -> Work:
    """Every place that a judge quoted against a criterion that failed."""
    gates, source = court.bench.rubric.safety_gates, court.sources[row["id"]]
    places = {name: [each["exchange"] for each in row["quotes"].get(name, ())]
              for name in row["failed_checks"]}  # fmt: skip
    unsafe = [n for name, found in places.items() if name in gates for n in found or [1]]
    soft: dict[int, tuple[str, ...]] = {}
    for name, found in places.items():
        for number in dict.fromkeys(found):
            soft[number] = (*soft.get(number, ()), name)
    return Work(source, row, tuple(sorted(set(unsafe))), soft)


def prepare(project: Any, court: Court) -> Shop:
    inspect = curation.inspector(settings.load_artefacts(ROOT), project.language)
    about = {"domain": project.domain, "language": project.language}
    limits = (project.limits.min_exchanges, project.thresholds.reply_floor)
    return Shop(court, settings.load_prompt(ROOT, "fixup"), about, inspect, *limits)


async def _all(
    shop: Shop, works: Sequence[Work], models: Mapping[str, LLMBackend], options: Any
) -> Any:
    name = f"data/candidates{stage.suffix(options.shard)}.jsonl"
    with infrastructure.Appender(ROOT / name) as candidates:

        async def work(each: Work) -> Fixed:
            made = cut(each, shop) if each.unsafe else await rewrite(each, shop, models["fixup"])
            candidates.append(keep(each, made))
            return made

        return await infrastructure.run_all(
            works, work, concurrency=options.concurrency, label="fixup",
            backends=list(models.values()),
        )  # fmt: skip


# ── one transcript ────────────────────────────────────────────────────────────────────────────────


def cut(work: Work, shop: Shop, at: int = 0, why: str = "") -> Fixed:
    """What comes before an exchange, if that is enough to learn from."""
    at = at or min(work.unsafe)
    gates = [
        name for name in work.row["failed_checks"] if name in shop.court.bench.rubric.safety_gates
    ]
    why = why or f"safety: {', '.join(gates)} at exchange {at}"
    pairs = list(work.source.pairs[: at - 1])
    if len(pairs) < shop.least:
        return Fixed(list(work.source.pairs), "rejected", [why])
    return Fixed(pairs, "truncated", [why])


async def rewrite(work: Work, shop: Shop, model: LLMBackend) -> Fixed:
    """Each reply that failed, in order; the first that can't be mended ends the conversation."""
    made = Fixed(list(work.source.pairs))
    if not work.soft:
        failed = ", ".join(work.row["failed_checks"])
        return Fixed(made.pairs, "rejected", [f"{failed}: no judge says where"])
    for number in sorted(work.soft):
        new = await mend(work, number, made.pairs, shop, model)
        if new is None:
            why = f"{', '.join(work.soft[number])}: exchange {number} can't be mended"
            short = cut(work, shop, number, why)
            made.pairs = made.pairs[: number - 1] if short.fate == "truncated" else made.pairs
            return Fixed(made.pairs, short.fate, [*made.why, why], made.changes)
        old = made.pairs[number - 1]
        made.pairs[number - 1] = (old[0], new)
        made.why.append(f"{', '.join(work.soft[number])}: exchange {number} rewritten")
        made.changes.append({"exchange": number, "old": old[1], "new": new})
    return made


async def mend(
    work: Work, number: int, pairs: Sequence[judging.Pair], shop: Shop, model: LLMBackend
) -> str | None:
    """A better reply at one place; None when there is none that the next message still follows."""
    user, reply = pairs[number - 1]
    known = {"user": user, "reply": reply, "failures": _failures(work, number, shop)}
    known["before"] = "\n".join(f"{side}: {text}" for pair in pairs[: number - 1]
                                for side, text in zip(("person", "assistant"), pair, strict=True))  # fmt: skip
    known["next_user"] = pairs[number][0] if number < len(pairs) else "(nothing more)"
    asked = [{"role": "system", "content": fill_prompt(shop.sections["System"], shop.about)}]
    asked.append({"role": "user", "content": fill_prompt(shop.sections["Repair"], known)})
    for attempt in range(1, TRIES + 1):
        scope = f"fixup/{work.source.id}/t{number:02}.repair-{attempt}"
        try:
            new = (await model.chat(asked, scope=scope)).content.strip()
        except ModelFailure as failure:
            if failure.kind not in simulation.SPOILT:
                raise
            continue
        if new.strip(" .\"'").upper() == GIVEN_UP:
            return None
        if new != reply and not _wrong(new, reply, number, pairs, shop):
            return new
    return None


def _wrong(new: str, old: str, number: int, pairs: Sequence[judging.Pair], shop: Shop) -> list[str]:
    """What code sees in a new reply: traces of the machinery, or more words than before."""
    earlier = [reply for _, reply in pairs[: number - 1]]
    found = shop.inspect("assistant", new, list(shop.sections.values()), earlier)
    most = max(shop.floor, int(ROOM * count_words(old)))
    return found + (["longer than the old reply"] if count_words(new) > most else [])


def _failures(work: Work, number: int, shop: Shop) -> str:
    """Each criterion that failed here, with the judge's reason and the words it quoted."""
    lines = []
    for name in work.soft[number]:
        quotes = (q["quote"] for q in work.row["quotes"].get(name, ()) if q["exchange"] == number)
        question = shop.court.bench.rubric.criteria[name].question
        lines.append(f"- {question} No: {work.row['reasonings'].get(name, '')}")
        lines += [f'  "{quote}"' for quote in quotes]
    return "\n".join(lines)


def keep(work: Work, made: Fixed) -> Row:
    """Write what was made beside its original; gives the line of candidates."""
    new = work.source.hash if made.fate == "rejected" else judging.words_hash(made.pairs)
    if made.fate != "rejected":
        text = simulation.text_of(repaired(work, made))
        infrastructure.atomic_write(ROOT / f"data/repaired/{work.source.id}.json", text, 0o644)
    return _event(work.source, made.fate, made.why, work.source.hash, new)


def _event(source: Source, fate: str, why: Sequence[str], parent: str, new: str) -> Row:
    event = {"schema": infrastructure.SCHEMA, "id": source.id, "event": "fixup"}
    event |= {"fate": fate, "why": list(why), "batch": source.batch}
    return event | {"parent_hash": parent, "transcript_hash": new}


def catch_up(court: Court, options: Any) -> None:
    """The lines of candidates that a crash has cost, after the file and before its line."""
    told = {(event["id"], event.get("transcript_hash")) for event in judging.events(ROOT)}
    rows = []
    for source in (each for each in court.sources.values() if _is_repaired(each)):
        about = json.loads((ROOT / source.file).read_bytes()).get("repaired_from") or {}
        made = (
            about.get("how") in ("repaired", "truncated") and (source.id, source.hash) not in told
        )
        if made and stage.in_shard(source.id, options.shard):
            why, parent = about["why"], about["transcript_hash"]
            rows.append(_event(source, about["how"], why, parent, source.hash))
    name = f"data/candidates{stage.suffix(options.shard)}.jsonl"
    with infrastructure.Appender(ROOT / name) as candidates:
        candidates.append_bytes(b"".join(map(infrastructure.encode_line, rows)))


def repaired(work: Work, made: Fixed) -> Row:
    """The original with other replies, or fewer; where it comes from and what is new stand in it."""
    found = dict(json.loads((ROOT / work.source.file).read_bytes()))
    rows = found.pop("conversations", None) or found["exchanges"]
    pairs = zip(rows, made.pairs, strict=False)
    found["exchanges"] = [row | {"user": user, "assistant": reply} for row, (user, reply) in pairs]
    about: Row = {"source_file": work.source.file, "transcript_hash": work.source.hash}
    about |= {"how": made.fate, "why": made.why, "changes": made.changes}
    return found | {"id": work.source.id, "repaired_from": about}


# ── after it was judged again ─────────────────────────────────────────────────────────────────────


def _is_ours(task: Any) -> bool:
    return _is_repaired(task.source)


def _is_repaired(source: Source) -> bool:
    return source.file.startswith("data/repaired/")


def reject_again(options: Any) -> None:
    """One round: what was repaired and fails again is rejected."""
    court = Court.of(ROOT)
    rows = court.combined()
    known = judging.fates(ROOT, rows)
    name = f"data/candidates{stage.suffix(options.shard)}.jsonl"
    with infrastructure.Appender(ROOT / name) as candidates:
        for row in rows:
            source, waits = court.sources[row["id"]], known[row["id"]].state == "pending"
            ours = _is_repaired(source) and stage.in_shard(source.id, options.shard)
            if ours and waits and row["state"] in ("failed", "not assessable"):
                why = [f"failed again: {', '.join(row['failed_checks']) or row['state']}"]
                again = Fixed(list(source.pairs), "rejected", why)
                candidates.append(keep(Work(source, row, (), {}), again))


def settle(options: Any) -> Row:
    """Every transcript's fate, and the manifest as it is now."""
    rows = Court.of(ROOT).combined()
    if options.shard == stage.WHOLE:
        judging.write_combined(ROOT, rows)
        figures.write_generation_stats(ROOT, evidence.wilson)
    found = judging.fates(ROOT, rows)
    told: Row = {"transcripts": len(found)} | judging.tally(found)
    needed, of = judging.needed_repair(ROOT, rows)
    told["generated ones that needed it"] = f"{needed} of {of}"
    return told | {"next": "finetune gate fixup"}


def _tell(report: Any) -> None:
    for item, error in report.failed:
        print(f"{item.source.id}: {error}", file=sys.stderr)
    if report.stopped:
        print(report.stopped, file=sys.stderr)


def _judging(options: Any) -> argparse.Namespace:
    """The options of assess.py for judging again."""
    return argparse.Namespace(**{**vars(options), "repeat": 0})


def _show(options: argparse.Namespace, told: Mapping[str, Any]) -> int:
    lines = "\n".join(f"{name:<32}{value}" for name, value in told.items())
    print(json.dumps(told, indent=1) if options.json else lines)
    return 0


def _options() -> argparse.Namespace:
    return stage.flags(__doc__, "concurrency", "shard", "max_usd", "dry_run", "json").parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
