"""How good is the base model before any training? Whole conversations, judged like the rest.

    python scripts/baseline.py                 # 24 conversations with people of their own
    python scripts/baseline.py --count 40      # 40 in all: a narrower interval
    python scripts/baseline.py --dry-run       # how many calls

The base model (roles.base) gets config/system-prompt.md, as it will after training. Nothing that it
writes is made again or cut: what no user could use (blank, another language, the same again and
again) fails the conversation by rule. Single questions say little: one project saw 80 % of them
pass and 25 % of whole conversations, with one model.

Conversations and verdicts stand in data/baseline/, the result in
design/base-model-eval-results.md and .json. A person reads it and decides: finetune approve baseline
Exit 0: all judged. 1: some are not; run again. 2: something is missing.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import curation
import evidence
import infrastructure
import judging
import personas
import sampling
import settings
import simulation
import stage
from infrastructure import RunReport, canonical_hash, is_done
from judging import Bench, Row, Source
from personas import persona_fields, persona_sheet
from simulation import Made, Rules

ROOT = Path(__file__).resolve().parents[1]
GATE = "prompts"
COUNT, LEAST = 24, 20  # conversations: a start value, and what the gate needs
RESULTS = "design/base-model-eval-results"
# What the conversations and verdicts depend on.
SEEN: tuple[str, ...] = ("config/system-prompt.md", "config/prompts/user_sim.md")
SEEN += ("config/prompts/assessor.md", "rubric.yaml#/", "persona-template.yaml#/")
SEEN += ("input-taxonomy.yaml#/", "project.yaml#/roles/base", "project.yaml#/roles/judges")
SEEN += ("project.yaml#/judging", "project.yaml#/domain", "project.yaml#/language")

Persona = dict[str, Any]


@dataclass(frozen=True)
class Test:
    """All that is fixed for one baseline, and the folder of what it makes."""

    folder: Path
    rules: Rules
    bench: Bench
    inspect: simulation.Inspect
    identities: Mapping[str, str]  # of the judges

    def path(self, item: str) -> Path:
        return self.folder / "transcripts" / f"{item}.json"


def main() -> int:
    options = _options()
    if not options.dry_run:
        infrastructure.require_gate(GATE, ROOT)
    settings.read_env(ROOT)
    project = settings.load_project(ROOT)
    judges = judging.judge_names(project.roles.judges)
    people = draw(project, options)
    inputs = {name: infrastructure.selector_hash(ROOT, name) or "" for name in SEEN}
    test = prepare(project, judges, inputs)
    played = stage.cast(project, "user_sim", "base") | judges
    if options.dry_run:
        return _show(options, planned(people, judges))
    with stage.models(ROOT, project, "baseline", played, options) as models:
        report = asyncio.run(_all(test, people, judges, models, options))
    for persona, error in report.failed:
        print(f"{persona['id']}: {error}", file=sys.stderr)
    if report.stopped:
        print(report.stopped, file=sys.stderr)
    told = results(test, report, project, inputs)
    write(told)
    _show(options, _short(told))
    return report.exit_code or int(bool(told["unscored"]))


def draw(project: Any, options: Any) -> list[Persona]:
    """People of their own, drawn like the evaluation's; the same for the same number."""
    plan = sampling.prepare(settings.load_taxonomy(ROOT), settings.load_persona_template(ROOT))
    path, count = ROOT / "data/personas/baseline.jsonl", max(options.count, 1)
    seed = project.seeds.evaluation
    if options.dry_run:
        return list(personas.draw_personas(plan, seed, range(1, count + 1), "baseline"))
    personas.extend(plan, path, seed, "baseline", count, write=True)
    return list(infrastructure.iter_records(path))[:count]


def prepare(project: Any, judges: Mapping[str, Any], inputs: Mapping[str, str]) -> Test:
    person = personas.draw_persona(
        settings.load_taxonomy(ROOT), settings.load_persona_template(ROOT), 0, 1, "baseline"
    )
    inspect = curation.inspector(settings.load_artefacts(ROOT), project.language)
    fields = tuple(persona_fields(person))
    rules = Rules.of(ROOT, project.seeds.generation, _of_people(inspect), fields)
    rules = dataclasses.replace(rules, system=settings.load_system_prompt(ROOT))
    identities = {name: judging.identity_of(spec, ROOT) for name, spec in judges.items()}
    run = canonical_hash([inputs, judging.identity_of(project.roles.base, ROOT), identities])
    return Test(ROOT / f"data/baseline/{run[:12]}", rules, Bench.of(ROOT), inspect, identities)


def _of_people(inspect: simulation.Inspect) -> simulation.Inspect:
    """The artefact filter for the person's side; the model under test is left as it is."""

    def look(side: str, text: str, told: Sequence[str], earlier: Sequence[str]) -> list[str]:
        return inspect(side, text, told, earlier) if side == "user" else []

    return look


async def _all(
    test: Test, people: Sequence[Persona], judges: Mapping[str, Any], models: Any, options: Any
) -> RunReport[Persona, Row]:
    async def work(persona: Persona) -> Row:
        source, why, left_out = await converse(test, persona, models)
        rows: dict[str, Row] = {}
        if left_out:
            return {"id": source.id, "state": "left out", "why": why, "answers": {}}
        for name in judges if judging.is_assessable(source, test.bench) else ():
            rows[name] = await verdict(test, source, name, models[name])
        row = judging.combine(source, rows, test.bench)
        return judging.fail(row, why, test.bench) if why else row

    both = list(models.values())
    return await infrastructure.run_all(
        people, work, concurrency=options.concurrency, label="baseline", backends=both
    )


async def converse(test: Test, persona: Persona, models: Any) -> tuple[Source, list[str], bool]:
    """One conversation, kept as it is; why it fails by rule, if it does; and whether it was the
    simulated person who failed, which says nothing about the model."""
    path = test.path(persona["id"])
    if not path.exists():
        fields = persona_fields(persona) | {"persona": persona_sheet(persona)}
        pair = (models["user_sim"], models["base"])
        made = await simulation.simulate_conversation(
            persona, fields, *pair, test.rules, scope="baseline"
        )
        _keep(path, made, models)
    found = json.loads(path.read_bytes())
    source, cut = judging.read_source(path, ROOT), found.get("cut", {})
    why = judging.unusable(source.pairs, test.inspect, test.rules.system or "")
    why += [f"exchange {cut['after'] + 1}: {each}" for each in cut.get("why", ())]
    return source, why, cut.get("side") == "user"


def _keep(path: Path, made: Made, models: Any) -> None:
    names = {role: models[role].name for role in ("user_sim", "base")}
    simulated = any(name.startswith("python:") for name in names.values())
    made.transcript["provenance"] = {"batch": "baseline", "models": names, "simulated": simulated}
    infrastructure.atomic_write(path, simulation.text_of(made.transcript), 0o644)


async def verdict(test: Test, source: Source, name: str, model: Any) -> Row:
    """A judge's verdict from the disk, or asked for now."""

    def is_fresh(row: Row) -> bool:
        same = row.get("id") == source.id
        return same and judging.is_fresh(row, source, test.bench, test.identities[name])

    folder = test.folder / "assessments"
    row = judging.read_verdicts(folder, name, is_fresh).get(source.id)
    if row is not None and is_fresh(row) and is_done(row):
        return row
    before = row if row is not None and is_fresh(row) else None
    identity = test.identities[name]
    row = await judging.judge(
        source, name, model, test.bench, identity=identity, before=before, scope="baseline"
    )
    with infrastructure.Appender(folder / f"{name}.jsonl") as file:
        file.append(row)
    return row


# ── the result ────────────────────────────────────────────────────────────────────────────────────


def results(
    test: Test, report: RunReport[Persona, Row], project: Any, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the gate and a person look at."""
    rows = sorted((row for _, row in report.done), key=lambda row: str(row["id"]))
    states = Counter(str(row["state"]) for row in rows)
    scored = states["passed"] + states["failed"]
    low, high = evidence.wilson(states["passed"], scored)
    told: dict[str, Any] = {"schema": infrastructure.SCHEMA, "model": project.roles.base.model}
    told |= {"simulated": project.roles.base.kind == "python", "inputs": dict(inputs)}
    told |= {"folder": test.folder.relative_to(ROOT).as_posix(), "conversations": scored}
    unscored = len(rows) - scored - states["left out"] + len(report.failed)
    told |= {"passed": states["passed"], "unscored": unscored, "left out": states["left out"]}
    told |= {"left": len(report.pending), "low": low, "high": high}
    nothing = ["nothing has a verdict yet, so it says nothing"]
    told["reads"] = reading(low, high, project.thresholds) if scored else nothing
    told["criteria"] = criteria(test.bench, rows)
    told["rows"] = [_line(row) for row in rows if row["state"] != "left out"]
    return told


def reading(low: float, high: float, thresholds: Any) -> list[str]:
    """Every row of the decision table that the interval touches: one, or the table can't decide."""
    edges = (thresholds.baseline_strong, thresholds.baseline_reconsider)
    table = (
        f"below {edges[0]:.0%}: a strong case for tuning",
        f"{edges[0]:.0%} to {edges[1]:.0%}: a moderate gain is to be expected",
        f"above {edges[1]:.0%}: try a better prompt first",
    )
    return [table[band] for band in evidence.bands(low, high, edges)]


def criteria(bench: Bench, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each criterion how many conversations meet it, with an interval."""
    told = {}
    for name, criterion in bench.rubric.criteria.items():
        given = Counter(row["answers"].get(name) for row in rows)
        n = given["YES"] + given["NO"]
        low, high = evidence.wilson(given["YES"], n)
        told[name] = {"name": criterion.name, "yes": given["YES"], "of": n}
        told[name] |= {"low": low, "high": high, "gate": name in bench.rubric.safety_gates}
    return told


def _line(row: Row) -> dict[str, Any]:
    kept = ("id", "source_file", "transcript_hash", "exchanges", "state", "score")
    told = {name: row[name] for name in kept} | {"failed_checks": list(row["failed_checks"])}
    return told | {"model_failure": row.get("model_failure", [])}


def write(told: Mapping[str, Any]) -> None:
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    infrastructure.atomic_write(ROOT / f"{RESULTS}.json", text, 0o644)
    infrastructure.atomic_write(ROOT / f"{RESULTS}.md", "\n".join(page(told)) + "\n", 0o644)


def page(told: Mapping[str, Any]) -> Iterator[str]:
    """The result for a person."""
    n, k = told["conversations"], told["passed"]
    yield f"# Before training: {told['model']}"
    yield from ("", "Simulated models: these figures say nothing about a real one.") * (
        told["simulated"])  # fmt: skip
    yield f"\n{k} of {n} whole conversations passed: {_percent(k, n)}, 95 % interval "
    yield f"{told['low']:.0%} to {told['high']:.0%} (Wilson; the unit is one conversation)."
    if told["unscored"] or told["left"]:
        yield f"\nNot judged yet: {told['unscored'] + told['left']}. Run baseline.py again."
    yield "\n## What it says\n"
    yield from (f"- {line}" for line in told["reads"])
    if len(told["reads"]) > 1:
        yield "\nThe interval touches more than one row: these conversations can't decide between"
        yield "them. More of them make it narrower: `python scripts/baseline.py --count N`."
    yield "\n## By criterion\n\n| criterion | met | of | interval |\n|---|---|---|---|"
    for name, each in told["criteria"].items():
        gate = " (safety gate)" if each["gate"] else ""
        span = f"{each['low']:.0%} to {each['high']:.0%}"
        yield f"| {name} {each['name']}{gate} | {each['yes']} | {each['of']} | {span} |"
    yield from _failures(told)
    yield "\nA person reads this, and some of the conversations, then decides: "
    yield "`finetune gate baseline`, `finetune approve baseline --by NAME`."


def _failures(told: Mapping[str, Any]) -> Iterator[str]:
    broken = [row for row in told["rows"] if row["model_failure"]]
    if broken:
        yield "\n## Conversations that no user could use\n"
        yield from (f"- {row['id']}: {row['model_failure'][0]}" for row in broken)


def _percent(k: int, n: int) -> str:
    return f"{k / n:.0%}" if n else "unknown"


def _short(told: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("conversations", "passed", "low", "high", "unscored", "left out", "left", "reads")
    done = told["conversations"] >= LEAST and not told["unscored"] and not told["left"]
    again = f"python scripts/baseline.py {' '.join(sys.argv[1:])}".strip()
    following = f"read {RESULTS}.md, then finetune gate baseline" if done else again
    return {name: told[name] for name in kept} | {"next": following}


def planned(people: Sequence[Persona], judges: Mapping[str, Any]) -> dict[str, Any]:
    exchanges = sum(int(person["target_exchanges"]) for person in people)
    plan = {"conversations": len(people), "calls at least": 2 * exchanges}
    return plan | {"verdicts": len(people) * len(judges), "next": "finetune estimate"}


def _show(options: argparse.Namespace, told: Mapping[str, Any]) -> int:
    lines = "\n".join(f"{name:<24}{_plain(value)}" for name, value in told.items())
    print(json.dumps(told, indent=1) if options.json else lines)
    return 0


def _plain(value: Any) -> str:
    """A share in percent, a list without its brackets."""
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{value:.0%}" if isinstance(value, float) else text


def _options() -> argparse.Namespace:
    parser = stage.flags(__doc__, "concurrency", "max_usd", "dry_run", "json")
    parser.add_argument(
        "--count",
        type=stage.whole(1, 1000),
        default=COUNT,
        metavar="N",
        help=f"conversations in all (default: {COUNT}, a start value)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
