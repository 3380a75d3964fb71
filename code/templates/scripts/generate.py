"""Simulate conversations between your personas and the assistant.

    python scripts/generate.py                     # a pilot: a frozen batch of five fresh personas
    python scripts/generate.py --new               # the next five, although nothing has changed
    python scripts/generate.py --confirm           # twenty fresh personas, prompts and rubric frozen
    python scripts/generate.py --trial             # thirty, to try the whole pipeline; never shipped
    python scripts/generate.py --count 500         # 500 in all; needs the gate confirm
    python scripts/generate.py --count 500 --shard 2/8 --concurrency 32
    python scripts/generate.py --dry-run           # who would talk, how many calls, what it may cost

Each conversation becomes data/raw/transcripts/<batch>/<id>.json; what became of it stands in
data/candidates.jsonl. Every model call is journalled before it counts: after Ctrl-C or a crash, the
same command goes on inside the conversation, and nothing is paid twice. A batch never changes: when
prompts, rubric, models or settings differ from those of the last batch, a new one begins and says
what has changed.
Exit 0: all done. 1: some conversations failed; run again. 2: something is missing. 3: disk.
"""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[n]) for n in (1, 0)
]  # this project's code only

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import curation
import figures
import infrastructure
import settings
import simulation
import stage
from evidence import wilson
from infrastructure import FinetuneError, LLMBackend, RunReport, canonical_hash, iter_records
from personas import persona_fields, persona_sheet
from simulation import Made, Rules

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"pilot": 5, "confirm": 20, "trial": 30}  # how many personas; start values
GATE = {"pilot": "baseline", "confirm": "pilot", "trial": "baseline", "scale": "confirm"}
LEDGER = ".finetune/ledger.jsonl"
OWN = {"confirm": "pilot", "scale": "confirm"}  # whose gate has to be about what was generated
ALWAYS = "prompts"  # whatever else: what the models are told has passed its check
FROZEN = ("config/prompts/user_sim.md", "config/prompts/assistant.md", "config/rubric.yaml")
DEPENDS: tuple[str, ...] = ("persona-template.yaml#/", "artefacts.yaml#/", "project.yaml#/limits")
DEPENDS += ("project.yaml#/thresholds", "project.yaml#/domain", "project.yaml#/language")

Persona = dict[str, Any]
Batch = dict[str, Any]


def main() -> int:
    options = _options()
    kind = next((name for name in ("confirm", "trial") if getattr(options, name)), "pilot")
    kind = "scale" if options.count else kind
    if not options.dry_run:
        for gate in (ALWAYS, GATE[kind]):
            infrastructure.require_gate(gate, ROOT)
        _own(OWN.get(kind, ""))
    settings.read_env(ROOT)
    project = settings.load_project(ROOT)
    seed = project.seeds.generation if options.seed is None else options.seed
    rules = Rules.of(ROOT, seed, _inspector(ROOT), tuple(_placeholders()))
    inputs = _inputs(project, seed)
    batch = the_batch(kind, inputs, options)
    todo = [person for person in batch["people"] if not _is_made(batch, person["id"])]
    todo = [person for person in todo if stage.in_shard(person["id"], options.shard)]
    if options.dry_run:
        return _show(options, _planned(batch, todo, project))
    return _generate(batch, todo, project, rules, options)


def _own(kind: str) -> None:
    """An error where this gate was passed with another batch than the last one, or with imported
    chats: they say nothing of our prompts."""
    last = [*batches(kind)][-1:] if kind else []
    if last and last[0].get("drawn_from"):
        said = f"gate {kind}: was passed with imported chats, and says nothing of what is generated"
        todo = "generate.py --confirm" if kind == "confirm" else "generate.py"
        raise FinetuneError(f"{said}. Run: python scripts/{todo}")
    rows = [row for row in iter_records(ROOT / LEDGER) if row.get("gate") == kind]
    word = rows[-1] if rows and rows[-1].get("result") == "approved" else {}
    batch = (word.get("figures") or {}).get("batch")
    if last and batch and batch != last[0]["id"]:
        said = f"gate {kind}: a person has approved {batch}, and {last[0]['id']} came after it"
        raise FinetuneError(f"{said}. Run: finetune gate {kind}")


def _generate(
    batch: Batch, todo: Sequence[Persona], project: Any, rules: Rules, options: Any
) -> int:
    cast = stage.cast(project, "user_sim", "assistant")
    with stage.models(ROOT, project, "generate", cast, options) as models:
        _freeze(batch)
        why = ", ".join(batch.get("changed", ()))
        why = why and f" (changed since the batch before: {why})"
        print(f"generate  {batch['id']}: {len(todo)} of {len(batch['people'])} to make{why}",
              file=sys.stderr)  # fmt: skip
        report = asyncio.run(_all(batch, todo, rules, models, options))
    for persona, error in report.failed:
        print(f"{persona['id']}: {error}", file=sys.stderr)
    if report.stopped:
        print(report.stopped, file=sys.stderr)
    figures.write_generation_stats(ROOT, wilson)
    _show(options, _told(batch, report, options))
    return report.exit_code


async def _all(
    batch: Batch,
    todo: Sequence[Persona],
    rules: Rules,
    models: Mapping[str, LLMBackend],
    options: Any,
) -> RunReport[Persona, Made]:
    about = _provenance(batch, models)
    name = f"data/candidates{stage.suffix(options.shard)}.jsonl"
    with infrastructure.Appender(ROOT / name) as candidates:
        _catch_up(batch, candidates, options.shard)

        async def work(persona: Persona) -> Made:
            fields = persona_fields(persona) | {"persona": persona_sheet(persona)}
            pair = (models["user_sim"], models["assistant"])
            made = await simulation.simulate_conversation(persona, fields, *pair, rules)
            made.transcript["provenance"] = about
            text = simulation.text_of(made.transcript)
            infrastructure.atomic_write(_path(batch, persona["id"], made.fate), text, 0o644)
            candidates.append(_event(batch, made.transcript, made.fate, made.why))
            return made

        label = f"generate  {batch['id']}"
        both = list(models.values())
        return await infrastructure.run_all(
            todo, work, concurrency=options.concurrency, label=label, backends=both
        )


# ── batches ───────────────────────────────────────────────────────────────────────────────────────


def the_batch(kind: str, inputs: Mapping[str, str], options: Any) -> Batch:
    """The batch to work on: the last of its kind while nothing has changed, else a new one."""
    known = list(batches(kind))
    alike = [each for each in known if each["inputs"] == dict(inputs)]
    begun = [each for each in alike if not all(_is_made(each, item) for item in each["ids"])]
    wanted = KINDS.get(kind, 0)
    if kind == "scale":
        wanted = options.count - sum(len(each["ids"]) for each in alike)
    elif alike and alike[-1] is known[-1] and not options.new:
        begun = begun or alike[-1:]
    if begun or (alike and wanted <= 0):
        batch: Batch = (begun or alike)[0 if begun else -1]
        return batch | {"people": _people(batch)}
    last = max((int(each["id"].rpartition("-")[2]) for each in known), default=0)
    before = known[-1]["inputs"] if known else inputs
    changed = [name for name in inputs if before.get(name) != inputs[name]]
    return _next(kind, last + 1, inputs, wanted) | {"changed": changed}


def batches(kind: str = "") -> Iterator[Batch]:
    """The frozen batches, in order."""
    for path in sorted((ROOT / "data/batches").glob("*.json")):
        batch = json.loads(path.read_bytes())
        if not kind or batch["kind"] == kind:
            yield batch


def _next(kind: str, number: int, inputs: Mapping[str, str], count: int) -> Batch:
    used = {item for batch in batches() for item in batch["ids"]}
    fresh = {person["id"]: person for person in _drawn() if person["id"] not in used}
    people = list(fresh.values())[:count]
    if len(people) < count or not people:
        need = len(used) + max(count, 1)
        said = f"data/personas/training.jsonl: {len(people)} fresh personas, {count} are needed"
        raise FinetuneError(f"{said}. Run: python scripts/personas.py --count {need}")
    head = {"schema": infrastructure.SCHEMA, "id": f"{kind}-{number:03}", "kind": kind}
    ids = [person["id"] for person in people]
    trial = kind == "trial"  # marks everything that is made of it, and `ship` refuses it
    return head | {"trial": trial, "ids": ids, "inputs": dict(inputs), "people": people}


def _freeze(batch: Batch) -> None:
    """Write down who belongs to the batch and what it is made with; keep the prompts' text."""
    for name in FROZEN:
        infrastructure.keep_version(ROOT, name)
    path = ROOT / f"data/batches/{batch['id']}.json"
    if not path.exists():
        frozen = {key: value for key, value in batch.items() if key != "people"}
        frozen["personas"] = {person["id"]: canonical_hash(person) for person in batch["people"]}
        infrastructure.atomic_write(path, json.dumps(frozen, indent=1) + "\n", 0o644)


def _drawn() -> Iterator[Persona]:
    yield from iter_records(ROOT / "data/personas/training.jsonl")


def _people(batch: Batch) -> list[Persona]:
    """The batch's personas, each still as it was when the batch was frozen."""
    known = {person["id"]: person for person in _drawn()}
    for item in batch["ids"]:
        if item not in known or canonical_hash(known[item]) != batch["personas"][item]:
            what = "has changed" if item in known else "is gone"
            said = f"data/personas/training.jsonl: {item} {what}, and {batch['id']} needs it"
            raise FinetuneError(f"{said}. Draw the personas again; equal seeds give equal people.")
    return [known[item] for item in batch["ids"]]


def _inputs(project: Any, seed: int) -> dict[str, str]:
    """Hashes of everything that a transcript depends on, besides its persona."""
    found = {name: infrastructure.selector_hash(ROOT, name) or "" for name in DEPENDS}
    found |= {name: infrastructure.file_hash(ROOT / name) for name in FROZEN[:2]}
    found[FROZEN[2]] = infrastructure.selector_hash(ROOT, "rubric.yaml#/") or ""
    for role in ("user_sim", "assistant"):
        spec, own = settings.backend_arguments(stage.decided(project, role))
        own = {name: own[name] for name in ("parameters", "max_tokens") if name in own}
        found[role] = canonical_hash([spec, own, _source(spec)])
    files = (simulation.__file__, curation.__file__, __file__)
    code = [Path(file).read_text("utf-8") for file in files]
    # No transcript depends on how a set is audited: the filter is the first chapter of curation.
    found["code"] = canonical_hash([text.partition("\n# ══ 2 ")[0] for text in code])
    return {name: value[:16] for name, value in found.items()} | {"seed": str(seed)}


def _source(spec: str) -> str:
    """The text behind a `python:` model, so that an edited one begins a new batch."""
    kind, _, place = spec.partition(":")
    path = ROOT / f"{place.partition(':')[0].replace('.', '/')}.py"
    return infrastructure.file_hash(path) if kind == "python" and path.is_file() else ""


# ── one transcript on disk ────────────────────────────────────────────────────────────────────────


def _path(batch: Batch, item: str, fate: str = "accepted") -> Path:
    folder = "rejected" if fate == "rejected" else "transcripts"
    return ROOT / "data/raw" / folder / str(batch["id"]) / f"{item}.json"


def _is_made(batch: Batch, item: str) -> bool:
    return any(_path(batch, item, fate).exists() for fate in ("accepted", "rejected"))


def _provenance(batch: Batch, models: Mapping[str, LLMBackend]) -> dict[str, Any]:
    names = {role: model.name for role, model in models.items()}
    simulated = any(name.startswith("python:") for name in names.values())
    marks = {"simulated": simulated, "trial": batch["trial"]}
    return {"batch": batch["id"], "models": names, **marks, "inputs": batch["inputs"]}


def _event(
    batch: Batch, transcript: Mapping[str, Any], fate: str, why: Sequence[str]
) -> dict[str, Any]:
    head = {"schema": infrastructure.SCHEMA, "id": transcript["id"], "event": "generated"}
    head |= {"fate": fate, "batch": batch["id"], "transcript_hash": canonical_hash(transcript)}
    return head | ({"why": list(why)} if why else {})


def _catch_up(batch: Batch, candidates: infrastructure.Appender, shard: stage.Shard) -> None:
    """A crash between a transcript of this part and its line in candidates: write it now."""
    rows = (row for path in sorted((ROOT / "data").glob("candidates*.jsonl"))
            for row in iter_records(path))  # fmt: skip
    told = {row["id"] for row in rows if row.get("batch") == batch["id"]}
    for item in batch["ids"]:
        for fate in ("accepted", "rejected"):
            path = _path(batch, item, fate)
            if stage.in_shard(item, shard) and item not in told and path.exists():
                found = json.loads(path.read_bytes())
                why = found.get("cut", {}).get("why", [])
                real = fate if fate == "rejected" or not why else "truncated"
                candidates.append(_event(batch, found, real, why))


# ── what the person sees ──────────────────────────────────────────────────────────────────────────


def _inspector(root: Path) -> simulation.Inspect:
    """The artefact filter with this project's patterns, before any judge sees a word."""
    artefacts = settings.load_artefacts(root)
    language = settings.load_project(root).language
    return curation.inspector(artefacts, language)


def _placeholders() -> Iterator[str]:
    person = next(_drawn(), None)
    yield from persona_fields(person) if person else ()


def _planned(batch: Batch, todo: Sequence[Persona], project: Any) -> dict[str, Any]:
    exchanges = sum(int(person["target_exchanges"]) for person in todo)
    tokens = exchanges * project.limits.tokens_per_exchange
    plan = {"batch": batch["id"], "conversations": len(todo), "exchanges": exchanges}
    plan |= {"calls at least": 2 * exchanges, "tokens written, about": tokens}
    plan |= {"changed": ", ".join(batch["changed"])} if batch.get("changed") else {}
    return plan | {"next": "finetune estimate   (dollars, with their source)"}


def _told(batch: Batch, report: RunReport[Persona, Made], options: Any) -> dict[str, Any]:
    fates = Counter(made.fate for _, made in report.done)
    exchanges = [e for _, made in report.done for e in made.transcript["exchanges"]]
    wrong = sum(bool(exchange["meta"]["violations"]) for exchange in exchanges)
    told: dict[str, Any] = {"batch": batch["id"], "made now": len(report.done)}
    told |= {fate: fates[fate] for fate in ("accepted", "truncated", "rejected")}
    told |= {"failed": len(report.failed), "left": len(report.pending)}
    told |= {"exchanges": len(exchanges), "with a length violation": wrong}
    again = f"python scripts/generate.py {' '.join(sys.argv[1:])}".strip()
    alike = (each for each in batches("scale") if each["inputs"] == batch["inputs"])
    done = not (report.failed or report.pending)
    done = done and (options.count or 0) <= sum(len(each["ids"]) for each in alike)
    return told | {"next": "design/generation_stats.md, then read them" if done else again}


def _show(options: argparse.Namespace, told: Mapping[str, Any]) -> int:
    lines = "\n".join(f"{name:<24}{value}" for name, value in told.items())
    print(json.dumps(told, indent=1) if options.json else lines)
    return 0


def _options() -> argparse.Namespace:
    common = ("concurrency", "shard", "max_usd", "seed", "dry_run", "json")
    parser = stage.flags(__doc__, *common)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--pilot", action="store_true", help="five fresh personas (the default)")
    modes.add_argument("--confirm", action="store_true", help="twenty fresh ones, to decide on")
    modes.add_argument("--trial", action="store_true", help="thirty, marked as trial everywhere")
    modes.add_argument("--count", type=stage.whole(1), metavar="N", help="N in all, to scale")
    parser.add_argument("--new", action="store_true", help="a new pilot with unchanged settings")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
