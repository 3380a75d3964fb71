"""Make training examples of what passes: split by lineage first, then cut, then read it all back.

    python scripts/slice.py                        # data/processed/, as config/project.yaml says
    python scripts/slice.py --dry-run              # the same figures, nothing is written
    python scripts/slice.py --mode slices          # or whole, or auto: whole where it fits
    python scripts/slice.py --group-by document    # a document's transcripts stay together
    python scripts/slice.py --trial                # also what was made by generate.py --trial

Related transcripts stay on one side: same person, same scenario, same words, repaired from another,
overlapping parts of a document, near-duplicates. Each reply carries loss once, or skipped.jsonl says
why it does not. An example over limits.max_tokens is left out, or cut in front. To get fewer and
more varied slices, raise slicing.min_gap in config/project.yaml; to get more that overlap, lower
slicing.max_gap. The same transcripts and settings give the same bytes, on any machine.

Writes train.jsonl, validation.jsonl, training_data.jsonl (both, with `split`), skipped.jsonl,
slices.json (figures) and README.md (the dataset card) into data/processed/.
Exit 0: done. 2: something is missing, or does not fit. 3: disk.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import curation
import infrastructure
import judging
import settings
import slicing
import stage
from infrastructure import FinetuneError, iter_records
from slicing import BOTH, CARD, FOLDER, MANIFEST, REPORT, SKIPPED, Conversation, Gauge, Near, Row

ROOT = Path(__file__).resolve().parents[1]
GATE = "fixup"
ASSESS, AGAIN = "Run: python scripts/assess.py", "Run: python scripts/slice.py"
PLACES = ("data/raw/transcripts/", "data/repaired/")  # whatever else there is, never enters
LOSS = {
    "once": "Each reply carries loss once, whatever number of examples holds it.",
    "all": "Every reply of an example carries loss, early ones in several examples.",
    "last": "Only the last reply of an example carries loss.",
}
FindNear = Callable[[Mapping[str, str], float], Sequence[Near]]


@dataclass(frozen=True)
class Set:
    """What was made, before it is written."""

    rows: list[Row]
    skipped: list[Row]
    report: Row


def main() -> int:
    options = _options()
    if not options.dry_run:
        infrastructure.require_gate(GATE, ROOT)
    project = settings.load_project(ROOT)
    talks, left = passing(options.trial)
    _refuse_evaluation(talks)
    made = make(talks, project, options)
    made.report["trial"] = {"included": options.trial, "left out": left}
    _say_what_is_wrong(made.rows, project)
    if not options.dry_run:
        write(made, project)
    _show(options, made.report)
    return 0


# ── what comes in ─────────────────────────────────────────────────────────────────────────────────


def passing(trial: bool) -> tuple[list[Conversation], int]:
    """What the manifest names, each with the words that were judged; and how many trial transcripts
    were left out."""
    rows = sorted(_manifest(), key=lambda row: str(row["id"]))
    for one, other in itertools.pairwise(rows):
        if one["id"] == other["id"]:
            raise FinetuneError(f"{MANIFEST}: {one['id']} stands twice. {ASSESS}")
    talks = [_conversation(row) for row in rows]
    kept = [talk for talk in talks if trial or not talk.trial]
    if not kept:
        marked = f"all {len(talks)} that do are trial, for --trial" if talks else "none does"
        said = f"{MANIFEST}: no transcript passes to learn from: {marked}"
        todo = "python scripts/generate.py makes more, python scripts/assess.py judges them"
        raise FinetuneError(f"{said}. {todo}.")
    return kept, len(talks) - len(kept)


def _manifest() -> list[Row]:
    try:
        found = json.loads((ROOT / MANIFEST).read_bytes())
        rows = [{**row} for row in found["transcripts"]]
        _ = [(row["id"] + row["source_file"] + row["transcript_hash"]) for row in rows]
    except FileNotFoundError:
        raise FinetuneError(f"{MANIFEST}: is not there. {ASSESS}") from None
    except (ValueError, TypeError, KeyError) as error:
        said = f"{MANIFEST}: is no manifest ({type(error).__name__}: {error})"
        raise FinetuneError(f"{said}. {ASSESS}") from None
    return rows


def _conversation(row: Row) -> Conversation:
    """A transcript of the manifest, if it still says what was judged."""
    name, path = row["source_file"], ROOT / row["source_file"]
    if not name.startswith(PLACES) or ".." in Path(name).parts:
        raise FinetuneError(f"{MANIFEST}: {name}: not below {' or '.join(PLACES)}. {ASSESS}")
    if not path.is_file():
        raise FinetuneError(f"{name}: is gone, and the manifest names it. {ASSESS}")
    source = judging.read_source(path, ROOT)
    if (source.id, source.hash) != (row["id"], row["transcript_hash"]):
        raise FinetuneError(f"{name}: has other words than those that were judged. {ASSESS}")
    found = json.loads(path.read_bytes())
    marked = {"trial": True} if row.get("trial") else {}
    found["provenance"] = {**(found.get("provenance") or {}), **marked}
    return slicing.conversation_of(found, source.pairs, source.hash)


def _refuse_evaluation(talks: Sequence[Conversation]) -> None:
    people = iter_records(ROOT / slicing.EVALUATION)
    shared = next(slicing.shared_people(talks, people), None)
    if shared:
        said = (
            f"{shared[0]} was talked with by the evaluation's persona {shared[1]}, or by its twin"
        )
        todo = "Remove the transcript, or draw other evaluation personas with another seed"
        raise FinetuneError(f"{slicing.EVALUATION}: {said}. {todo}.")


def near_duplicates(talks: Sequence[Conversation], threshold: float) -> Sequence[Near] | None:
    """Pairs that are nearly the same; None where nothing here can find them."""
    find: FindNear | None = getattr(curation, "near_duplicates", None)
    texts = {talk.id: "\n".join(text for pair in talk.pairs for text in pair) for talk in talks}
    return None if find is None else find(texts, threshold)


# ── making ────────────────────────────────────────────────────────────────────────────────────────


def make(talks: Sequence[Conversation], project: Any, options: Any) -> Set:
    """Groups, then sides, then examples."""
    cut = project.slicing.model_copy(update={"mode": options.mode} if options.mode else {})
    seed = project.seeds.split if options.seed is None else options.seed
    near = near_duplicates(talks, project.thresholds.near_duplicate)
    family = slicing.groups(talks, near or (), options.group_by == "document")
    strata = {talk.id: talk.stratum for talk in talks}
    sides = slicing.split(family, strata, cut.train_share, seed)
    gauge = Gauge(ROOT / cut.tokenizer if cut.tokenizer else None)
    rules = slicing.Rules(cut, project.limits.max_tokens, gauge.render())
    system, about = settings.load_system_prompt(ROOT), _provenance()
    made: list[slicing.Example] = []
    skipped: list[slicing.Skipped] = []
    rows: list[Row] = []
    for talk in talks:
        own, left = slicing.examples(talk, system, rules, gauge)
        made.extend(own)
        skipped.extend(left)
        rows += [slicing.row_of(each, talk, family[talk.id], about) | {"split": sides[talk.id]}
                 for each in own]  # fmt: skip
    figures = slicing.figures_of(made, skipped, sides, family, gauge)
    report = {"schema": infrastructure.SCHEMA, "made with": made_with(project, options)}
    report |= {"figures": figures, "strata": _strata(strata, sides)}
    report["near-duplicates"] = None if near is None else len(near)
    report["tokens counted"] = counted(gauge, rules)
    report["judges"] = slicing.judge_status(ROOT, about["rubric_hash"])
    report["audit"] = slicing.audit_status(ROOT)
    report["simulated"] = sum(row["simulated"] for row in rows)
    return Set(rows, [each.row() for each in skipped], report)


def _provenance() -> Row:
    """What every example carries besides the hash of its transcript's words."""
    files = (slicing.__file__, __file__)
    code = infrastructure.canonical_hash([infrastructure.file_hash(path) for path in files])
    rubric = infrastructure.load_rubric(ROOT / "config/rubric.yaml").hash
    prompt = infrastructure.file_hash(ROOT / "config/system-prompt.md")
    return {"rubric_hash": rubric, "prompt_hash": prompt, "code": code[:16]}


def made_with(project: Any, options: Any) -> Row:
    """The settings that the set depends on, to see later whether they have changed."""
    given = {name: getattr(options, name) for name in ("mode", "group_by", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    return slicing.settings_of(project, ROOT) | {"command line": given}


def _strata(strata: Mapping[str, str], sides: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Transcripts of each source and topic on each side."""
    told = {name: dict.fromkeys(slicing.SIDES, 0) for name in sorted(set(strata.values()))}
    for item, name in strata.items():
        told[name][sides[item]] += 1
    return told


def counted(gauge: Gauge, rules: slicing.Rules) -> Row:
    """How tokens were counted, and what was taken to be true about the chat template."""
    sample = gauge.text("Hello there.")
    known = "unknown: taken to keep earlier turns as they were" if rules.render is None else "known"
    told = {"method": sample.method, "exactness": sample.exactness, "chat template": known}
    if sample.exactness != "exact":
        told["limit"] = "upper bounds decide; slicing.tokenizer counts exactly"
    return told


def _say_what_is_wrong(rows: Sequence[Row], project: Any) -> None:
    wrong = list(slicing.faults_of(rows, project.limits.max_tokens))
    empty = [side for side in slicing.SIDES if not any(row["split"] == side for row in rows)]
    if empty:
        said = f"no example for {empty[0]}: its transcripts are all over limits.max_tokens"
        wrong.append(f"{said} ({project.limits.max_tokens:,}), too short to cut, or blank.")
    if wrong:
        raise FinetuneError("\n".join(wrong[:20]))


# ── what goes out ─────────────────────────────────────────────────────────────────────────────────


def write(made: Set, project: Any) -> None:
    """All files, each whole; then they are read again and have to say the same."""
    files = slicing.files_of(made.rows)
    files[SKIPPED] = b"".join(map(slicing.line_of, made.skipped))
    made.report["files"] = {name: hashlib.sha256(data).hexdigest()
                            for name, data in files.items()}  # fmt: skip
    files[CARD] = "\n".join(card(made.report)).encode() + b"\n"
    files[REPORT] = (json.dumps(made.report, indent=1, ensure_ascii=False) + "\n").encode()
    for name, data in files.items():
        infrastructure.atomic_write(ROOT / FOLDER / name, data, 0o644)
    rows = slicing.read_rows(ROOT / FOLDER / BOTH)
    _say_what_is_wrong(rows, project)
    told = slicing.files_of(rows)
    bad = [name for name in told if (ROOT / FOLDER / name).read_bytes() != told[name]]
    if bad or len(rows) != len(made.rows):
        raise FinetuneError(f"{FOLDER}/{bad[0] if bad else BOTH}: reads back otherwise. {AGAIN}")


def card(report: Mapping[str, Any]) -> Iterator[str]:
    """The dataset card, for people who have not seen this project."""
    about, found = settings.load_dataset(ROOT).card, report["figures"]
    yield from (f"# {about.title}", "", about.summary, "")
    yield from _marks(report)
    yield from ("## What is in it", "")
    yield f"{found['examples']} training examples from {found['transcripts']} conversations."
    yield "Each line holds `messages` (system prompt, then user and assistant in turn) and"
    yield "`supervised`: the indexes of the assistant messages that carry loss."
    yield f"{LOSS[report['made with']['slicing.supervise']]} `skipped.jsonl` lists all others."
    yield from ("", "| file | examples | conversations |", "|---|---|---|")
    for side in slicing.SIDES:
        yield f"| `{side}.jsonl` | {found[side]['examples']} | {found[side]['transcripts']} |"
    yield from ("", "## How it was made", "")
    yield "Conversations that passed their judges were split first, by groups of related ones (same"
    yield "person, same scenario, overlapping documents, near-duplicates), then cut into examples."
    pairs = report["near-duplicates"]
    yield f"Near-duplicates: {'not looked for' if pairs is None else f'{pairs} pairs, kept together'}."
    yield f"Judges: {report['judges']}. Audit: {report['audit']}."
    yield from ("", "## Figures", "", "| what | value |", "|---|---|")
    yield from (f"| {name} | {_short(value)} |" for name, value in _lines(report))
    yield from ("", "## Terms", "", f"- Licence: {about.licence or 'not decided yet'}")
    yield f"- Meant for: {about.intended_use or 'not said yet'}"
    yield f"- Not for: {about.not_for or 'not said yet'}"
    yield from terms()


def _marks(report: Mapping[str, Any]) -> Iterator[str]:
    if report["trial"]["included"]:
        yield from (
            "**Trial.** It holds conversations made to try the pipeline. Never ship it.",
            "",
        )
    if report["simulated"]:
        said = (
            f"**Simulated.** {report['simulated']} examples were written by scripted models, which"
        )
        yield from (f"{said} stand in for real ones.", "")


def terms() -> Iterator[str]:
    """What the providers of the writing models allow, as a person has noted it."""
    roles = settings.load_project(ROOT).roles
    for name in ("user_sim", "assistant", "fixup"):
        spec = getattr(roles, name)
        if spec is not None:
            note = (
                f"{spec.terms.note} ({spec.terms.source}, {spec.terms.checked})"
                if spec.terms
                else ""
            )
            yield f"- Terms of {spec.model} ({name}): {note or 'nobody has noted them yet'}"


def _lines(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures, one for each line."""
    yield from report["figures"].items()
    if report["near-duplicates"] is not None:
        yield "near-duplicates", report["near-duplicates"]
    yield from report["tokens counted"].items()
    yield from ((name, report[name]) for name in ("judges", "audit", "simulated"))


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def advice(report: Mapping[str, Any]) -> str:
    """What to do next."""
    lost, project = report["figures"]["share lost"], settings.load_project(ROOT)
    if lost > project.thresholds.lost_slices:
        said = f"{lost:.0%} of the examples do not fit: plan shorter conversations"
        return f"{said} (length_classes in config/persona-template.yaml)"
    return "finetune gate slice"


def _show(options: argparse.Namespace, report: Mapping[str, Any]) -> None:
    told = {**report, "dry run": options.dry_run, "next": advice(report)}
    if options.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    left = report["trial"]["left out"]
    rest = {"trial left out": left} if left else {}
    rest |= {"trial": "marked on every example and on the card"} if options.trial else {}
    for name, value in (*_lines(report), *rest.items(), ("next", told["next"])):
        print(f"{name:<30}{_short(value)}")


def _options() -> argparse.Namespace:
    parser = stage.flags(__doc__, "seed", "dry_run", "json")
    add = parser.add_argument
    modes, ways = ("auto", "slices", "whole"), ("lineage", "document")
    add("--mode", choices=modes, help="(default: slicing.mode of config/project.yaml)")
    add("--group-by", choices=ways, default="lineage", help="(default: overlapping parts only)")
    add("--trial", action="store_true", help="take trial transcripts as well, and mark the set")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
