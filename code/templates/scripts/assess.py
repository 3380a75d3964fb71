"""Let the judges answer the rubric about every transcript, and combine what they say.

    python scripts/assess.py                       # whatever has no fresh verdict yet
    python scripts/assess.py --batch pilot-002     # only this batch
    python scripts/assess.py --dry-run             # what would be asked, and what it may cost
    python scripts/assess.py --rejudge             # also what a changed rubric has made stale
    python scripts/assess.py --repeat 3            # the same again, to see how often answers flip
    python scripts/assess.py --shard 2/8; python scripts/assess.py     # parts, then combine

Each judge's answers stand in data/assessments/<judge>.jsonl, the verdict of all of them in
combined.jsonl, and what passes in data/processed/passing_transcripts.json. Verdicts follow from the
answers alone. An ERROR is not an answer: it never passes, and the next run asks for it again. What
changed since (a transcript, the rubric's content, the prompt, a judge) is stale and made again.
It can run while generate.py runs: run it again for what has come since.
Exit 0: all scored. 1: some are not; run again, or let a person look. 2: something is missing.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import evidence
import figures
import infrastructure
import judging
import settings
import stage
from estimates import Assumed, Work, cost, quote_of, total
from infrastructure import FinetuneError, RunReport, count_tokens, is_done, rng
from judging import FOLDER, Court, Row, Source

ROOT = Path(__file__).resolve().parents[1]
GATE = "rubric"
TOGETHER = 32  # rows of one write
REPEATED = 20  # transcripts that --repeat asks about, when there are more; a start value


@dataclass(frozen=True)
class Task:
    """One judge and one transcript: what it said before, when only its ERRORs are asked again."""

    source: Source
    judge: str
    before: Row | None = None
    repeat: int = 0


def main() -> int:
    options = _options()
    if not options.dry_run:
        infrastructure.require_gate(GATE, ROOT)
    settings.read_env(ROOT)
    project = settings.load_project(ROOT)
    court = Court.of(ROOT)
    chosen = [each for each in court.sources.values() if options.batch in ("", each.batch)]
    if not chosen:
        what = f"no transcript of the batch {options.batch}" if options.batch else "no transcript"
        raise FinetuneError(f"data/raw/transcripts: {what}. Run: python scripts/generate.py")
    chosen = [each for each in chosen if stage.in_shard(each.id, options.shard)]
    tasks = list(repeats(court, chosen, options.repeat) if options.repeat else todo(court, chosen))
    if options.dry_run:
        return _show(options, planned(court, tasks))
    _consent(court, tasks, options)
    report = _judge(court, tasks, project, options)
    for line in court.damaged:
        print(line, file=sys.stderr)
    told, unscored = _told(report, options)
    _show(options, told)
    return report.exit_code or int(bool(court.damaged or unscored))


def todo(court: Court, chosen: Sequence[Source]) -> Iterator[Task]:
    """What has no fresh verdict; of one with an ERROR, only that."""
    for source in chosen:
        for judge in court.judges if judging.is_assessable(source, court.bench) else ():
            row = court.fresh(judge, source)
            if row is None or not is_done(row):
                yield Task(source, judge, row)


def repeats(court: Court, chosen: Sequence[Source], times: int) -> Iterator[Task]:
    """The same questions again, about a sample that is the same in every run."""
    able = [each for each in chosen if judging.is_assessable(each, court.bench)]
    sample = sorted(able, key=lambda each: rng("repeat", each.id).random())[:REPEATED]
    done = {(judge, row["id"]) for judge in court.judges
            for _, row in judging.repeated(ROOT, court, judge)}  # fmt: skip
    for source in sample:
        for judge in court.judges:
            for number in range(1, times + 1):
                if (judge, f"{source.id}.repeat-{number}") not in done:
                    yield Task(source, judge, None, number)


def _judge(court: Court, tasks: Sequence[Task], project: Any, options: Any) -> RunReport[Task, Row]:
    with stage.models(ROOT, project, "assess", court.judges, options) as models:
        report = asyncio.run(judge_all(court, tasks, models, options))
    for task, error in report.failed:
        print(f"{task.source.id}, judge {task.judge}: {error}", file=sys.stderr)
    if report.stopped:
        print(report.stopped, file=sys.stderr)
    return report


class _Rows:
    """A judge's file, written some rows at a time. The journal is on the disk before an answer is
    seen; what a kill loses here is made from it again, without a call."""

    def __init__(self, path: Path) -> None:
        self.file, self.lines = infrastructure.Appender(path, sync=False), list[bytes]()

    def add(self, row: Row) -> None:
        self.lines.append(infrastructure.encode_line(row))
        if len(self.lines) >= TOGETHER:
            self.flush()

    def flush(self) -> None:
        self.file.append_bytes(b"".join(self.lines))
        self.lines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lines:
            self.flush()
        self.file.close()


async def judge_all(
    court: Court, tasks: Sequence[Task], models: Mapping[str, Any], options: Any
) -> RunReport[Task, Row]:
    folder = ROOT / FOLDER / ("repeats" if options.repeat else "")
    part = "" if options.repeat else stage.suffix(options.shard)
    with contextlib.ExitStack() as stack:
        names = dict.fromkeys(task.judge for task in tasks)
        files = {name: stack.enter_context(_Rows(folder / f"{name}{part}.jsonl")) for name in names}

        async def work(task: Task) -> Row:
            row = await judging.judge(
                task.source, task.judge, models[task.judge], court.bench,
                identity=court.identities[task.judge], before=task.before, repeat=task.repeat,
            )  # fmt: skip
            row["id"] += f".repeat-{task.repeat}" if task.repeat else ""
            files[task.judge].add(row)
            return row

        label, both = f"assess  {', '.join(court.judges)}", list(models.values())
        return await infrastructure.run_all(
            tasks, work, concurrency=options.concurrency, label=label, backends=both
        )


# ── money first ───────────────────────────────────────────────────────────────────────────────────


def planned(court: Court, tasks: Sequence[Task]) -> dict[str, Any]:
    """How many calls, and what they cost at the price of project.yaml."""
    stale = sum(_is_stale(court, task) for task in tasks)
    told = {"transcripts": len({task.source.id for task in tasks}), "verdicts": len(tasks)}
    again = sum(task.before is not None for task in tasks)
    told |= {"of them stale": stale, "of them ERRORs again": again}
    return told | {"cost, about": price(court, tasks)}


def _is_stale(court: Court, task: Task) -> bool:
    old = court.verdicts[task.judge].get(task.source.id)
    return not task.repeat and task.before is None and old is not None


def price(court: Court, tasks: Sequence[Task]) -> str:
    """Dollars at the prices of project.yaml; "unknown" as soon as one is."""
    groups = court.bench.groups().values()
    fixed = sum(count_tokens(court.bench.system(names)) for names in groups)
    talks = {each.id: count_tokens("\n".join(judging.shown(each).values()))
             for each in {task.source.id: task.source for task in tasks}.values()}  # fmt: skip
    said = len(court.bench.rubric.criteria) * Assumed().verdict_tokens
    amounts = []
    for name, spec in court.judges.items():
        own = [task.source.id for task in tasks if task.judge == name]
        sent = sum(fixed + len(groups) * talks[item] for item in own)
        thinks = len(groups) * (spec.reasoning_tokens or 0)
        work = Work(name, spec, len(own) * len(groups), sent, len(own) * (said + thinks), 0.0)
        amounts.append(cost(work, quote_of(spec)))
    value = total(amounts).value
    return f"unknown ({total(amounts).unknown[0]})" if value is None else f"${value:,.2f}"


def _consent(court: Court, tasks: Sequence[Task], options: Any) -> None:
    """Judging again what a change has made stale is paid again: its cost first, then a yes."""
    stale = [task for task in tasks if _is_stale(court, task)]
    paid = [task for task in stale if not quote_of(court.judges[task.judge]).free]
    if paid and not options.rejudge:
        said = f"{len(stale)} verdicts are stale, because their inputs changed"
        todo_ = "Add --rejudge to pay for it, or undo the change."
        raise FinetuneError(f"{said}. To judge them again: {price(court, stale)}. {todo_}")
    if tasks:
        line = ", ".join(f"{name} {value}" for name, value in planned(court, tasks).items())
        print(f"assess  {line}", file=sys.stderr)


# ── what the person sees ──────────────────────────────────────────────────────────────────────────


def _told(report: RunReport[Task, Row], options: Any) -> tuple[dict[str, Any], int]:
    """The verdicts as they stand now; and how many could still become one."""
    done = {"judged now": len(report.done), "failed": len(report.failed)}
    done |= {"left": len(report.pending)}
    if options.shard != stage.WHOLE:
        return done | {"next": "python scripts/assess.py   (combines, when all parts are done)"}, 0
    court = Court.of(ROOT)
    rows = court.combined()
    judging.write_combined(ROOT, rows)
    figures.write_generation_stats(ROOT, evidence.wilson)
    seen = [row for row in rows if options.batch in ("", row["batch"])]
    told = done | outcome(court, seen)
    told |= {"flips": flips(court)} if options.repeat else {}
    unscored = told["states"].get("unscored", 0)
    again = f"python scripts/assess.py {' '.join(sys.argv[1:])}".strip()
    read = f"finetune review --batch {options.batch}" if options.batch else "finetune review"
    return told | {"next": again if unscored else read}, unscored


def outcome(court: Court, rows: Sequence[Row]) -> dict[str, Any]:
    """Pass rate, what fails, and how far the judges agree."""
    states = Counter(row["state"] for row in rows)
    scored = states["passed"] + states["failed"]
    low, high = evidence.wilson(states["passed"], scored)
    told: dict[str, Any] = {"judges": list(court.judges), "states": dict(states)}
    told["pass rate"] = {"passed": states["passed"], "of": scored, "low": low, "high": high}
    used = told["rule"] = judging.rule_used(court.bench, len(court.judges))
    other = "strictest" if used == "majority" else "majority"
    told[f"would pass by {other}"] = judging.would_pass(rows, court.bench, other)
    limit = settings.load_project(ROOT).thresholds.judge_spread
    told["to read, scores differ"] = [r["id"] for r in rows if (r.get("spread") or 0) > limit]
    return told | {"agreement": agreement(rows), "failures": judging.failures(rows)}


def agreement(rows: Sequence[Row]) -> dict[str, Any]:
    """Between judges: alpha for each criterion and for all, kappa for each pair of judges."""
    found, told = judging.answers_by_criterion(rows), dict[str, Any]()
    both: dict[str, dict[str, list[Any]]] = {}
    for name, by_id in found.items():
        told[name] = _agree(by_id, evidence.krippendorff_alpha)
        for item, given in by_id.items():
            both.setdefault(item, {})[name] = list(given.values())
    everything = {item: list(units.values()) for item, units in both.items()}
    told["all criteria"] = _beyond(everything, evidence.krippendorff_alpha)
    judges = dict.fromkeys(judge for by_id in found.values() for given in by_id.values()
                           for judge in given)  # fmt: skip
    for pair in itertools.combinations(judges, 2):
        pairs = {item: [tuple(given.get(judge) for judge in pair) for by_id in found.values()
                        for given in (by_id.get(item, {}),)] for item in everything}  # fmt: skip
        told[f"kappa {pair[0]}, {pair[1]}"] = _beyond(pairs, evidence.cohen_kappa)
    return told


def _agree(by_id: Mapping[str, Mapping[str, Any]], statistic: Any) -> dict[str, Any]:
    """One criterion: the share of transcripts on which all agree, and agreement beyond chance."""
    units = {item: [list(given.values())] for item, given in by_id.items()}
    there = [set(unit) for (unit,) in units.values() if None not in unit and len(unit) > 1]
    same = sum(len(answers) == 1 for answers in there)
    return {"same": same, "of": len(there)} | _beyond(units, statistic)


def _beyond(units: Mapping[str, Any], statistic: Any) -> dict[str, Any]:
    """A statistic with its interval, resampling transcripts; None where it has no value."""
    value = statistic([unit for each in units.values() for unit in each])
    low, high = evidence.bootstrap(units, statistic, 0, 1000) or (None, None)
    return {"value": value, "low": low, "high": high}


def flips(court: Court) -> dict[str, Any]:
    """How often a judge answers the same question differently."""
    runs = {judge: judging.repeated_answers(ROOT, court, judge) for judge in court.judges}
    return {judge: vars(evidence.flip_rate(asked)) for judge, asked in runs.items()}


def _show(options: argparse.Namespace, told: Mapping[str, Any]) -> int:
    print(json.dumps(told, indent=1) if options.json else "\n".join(table(told)))
    return 0


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """At most 80 columns."""
    for name, value in told.items():
        if name in ("failures", "agreement", "flips"):
            yield f"\n{name}"
            lines = _failed if name == "failures" else _figure
            yield from (line[:80] for each in value.items() for line in lines(*each))
        elif isinstance(value, Mapping):
            yield f"{name:<26}{', '.join(f'{k} {_short(v)}' for k, v in value.items())}"
        else:
            yield f"{name:<26}{', '.join(value) or 'none' if isinstance(value, list) else value}"


def _failed(name: str, each: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {name:<24}{each['failed']} transcripts"
    for one in each["quotes"]:
        if "quote" in one:
            yield f"    {one['id']}, exchange {one['exchange']}: {one['quote']!r}"


def _figure(name: str, each: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {name:<24}{', '.join(f'{k} {_short(v)}' for k, v in each.items())}"


def _short(value: object) -> str:
    return (
        f"{value:.2f}" if isinstance(value, float) else "unknown" if value is None else str(value)
    )


def _options() -> argparse.Namespace:
    parser = stage.flags(__doc__, "concurrency", "shard", "max_usd", "dry_run", "json")
    add = parser.add_argument
    add("--batch", default="", metavar="NAME", help="only this batch (default: all)")
    add("--rejudge", action="store_true", help="pay again for verdicts that a change made stale")
    add(
        "--repeat",
        type=stage.whole(1, 20),
        default=0,
        metavar="K",
        help=f"ask K times more about {REPEATED} transcripts, to measure how often answers flip",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
