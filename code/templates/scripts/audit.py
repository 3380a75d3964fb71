"""Look at the whole set before you train on it: what is said too often, copied, private, unreal.

    python scripts/audit.py                        # what passes
    python scripts/audit.py --all                  # everything that was made
    python scripts/audit.py --against other.jsonl  # and whether it stands in another set too
    python scripts/audit.py --redact               # repaired copies without personal data
    python scripts/audit.py --dry-run              # what would be audited

Which tests there are, and where each turns bad, stands in config/project.yaml under `audit` and
`thresholds`. A share is a finding when its whole interval lies above the limit. It is always
compared with data/personas/evaluation.jsonl, once that is there. The result is data/audit/audit.json
(with --all: all.json), and a table with three places to look at for every finding. No model is
called, and no transcript is ever changed: --redact writes copies to data/repaired.
Exit 0: no critical finding. 1: there is one. 2: something is missing.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 0)]  # this project's code

import argparse
import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import curation
import evidence
import figures
import infrastructure
import judging
import settings
import stage
from curation import Talk
from infrastructure import FinetuneError, file_hash, iter_records

ROOT = Path(__file__).resolve().parents[1]
GATE = "scale"
MANIFEST = "data/processed/passing_transcripts.json"
PEOPLE = "data/personas/evaluation.jsonl"
PROMPTS = (("user_sim",), ("assistant",))  # what each side was told

# What to do about a finding, so that the table ends in work and not in a figure.
REMEDY = {
    "phrase_critical": "forbid the phrase in prompts/assistant.md and generate again, or repair",
    "phrase_vary": "ask for variety in prompts/assistant.md, with examples of other words",
    "phrase_watch": "read the examples; a term of your domain is fine",
    "long_replies": "say in prompts/assistant.md how long a reply may be, and generate again",
    "longish_replies": "look at reply per word of message by style in audit.json",
    "one_form": "decide whether your model shall write so; else say it in prompts/assistant.md",
    "one_opening": "ask for other beginnings in prompts/assistant.md",
    "one_ending": "ask for other endings in prompts/assistant.md",
    "praise": "ask for less praise in prompts/assistant.md",
    "late_praise": "the assistant grows warmer than the person earns; shorten or repair the ends",
    "happy_endings": "give trajectory and endings of persona-template.yaml more that go wrong",
    "outside_limits": "another user_sim model, or word ranges that it can keep",
    "flaws_missed": "read them: code sees only the plain cases; else another user_sim model",
    "alike_personas": "more values in the taxonomy and the template, or fewer conversations",
    "simulator": "change prompts/user_sim.md or its model; reject what the examples show",
    "machine": "change prompts/assistant.md or its model; reject what the examples show",
    "language": "another model, or config/artefacts.yaml if such letters belong to your domain",
    "broken": "higher max_tokens, another model; or a repair",
    "near_duplicates": "more varied personas; keep one of each pair",
    "copied_replies": "another assistant model, or personas that differ more",
    "personal_data": "read them; python scripts/audit.py --redact takes out what has a form",
    "secrets": "python scripts/audit.py --redact, and change every key that is real",
    "contamination": "leave these out, or draw evaluation personas with another seed",
}


def main() -> int:
    options = _options()
    if not options.dry_run:
        infrastructure.require_gate(GATE, ROOT)
    project = settings.load_project(ROOT)
    paths = _everything() if options.all else _passing()
    others = _others(options.against) if options.against else {}
    if options.dry_run:
        return _show(options, {"conversations": len(paths), "tests": len(curation.declared(project)),
                               "compared with": len(others), "calls": 0})  # fmt: skip
    talks = {talk.id: (talk, hashed) for talk, hashed in map(_talk, paths)}
    _same_words(paths, talks, options)
    report = audit(project, talks, others, options)
    name = "all" if options.all else "audit"
    text = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    clean = text.encode("utf-8", "replace")
    infrastructure.atomic_write(ROOT / f"data/audit/{name}.json", clean, 0o644)
    told = report | {"redacted": list(redacted(talks))} if options.redact else report
    _show(options, told)
    return int(not report["passed"])


def audit(
    project: settings.ProjectSettings,
    talks: Mapping[str, tuple[Talk, str]],
    others: Mapping[str, Talk],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All tests on these conversations, as data/audit/audit.json holds them."""
    tests, own = curation.declared(project), [talk for talk, _ in talks.values()]
    found = curation.measure(own, _ruler(project))
    people = list(iter_records(ROOT / PEOPLE))
    if others or people:
        like = project.thresholds.near_duplicate
        made, told = curation.contamination(own, list(others.values()), people, like)
        found.tests.append(made)
        found.figures["compared with"] = told
    else:
        found.silent["contamination"] = f"there is no {PEOPLE} yet, and no --against"
    findings = curation.findings(found, own, tests, evidence.wilson)
    against = {PEOPLE: file_hash(ROOT / PEOPLE)} if (ROOT / PEOPLE).is_file() else {}
    return {
        "schema": infrastructure.SCHEMA,
        "set": "all" if options.all else "passing",
        "count": len(talks),
        "manifest": {item: hashed for item, (_, hashed) in sorted(talks.items())},
        "against": against | ({options.against.name: len(others)} if options.against else {}),
        "thresholds": tests,
        "tests": [_counted(made) for made in found.tests],
        "findings": findings,
        "not measured": found.silent,
        "figures": found.figures,
        "passed": not any(row["severity"] == "critical" for row in findings),
    }


def _counted(made: curation.Figure) -> dict[str, Any]:
    """What the verdict is made from, so that the gate can make it again."""
    told = {"test": made.test, "what": made.what, "k": made.k, "n": made.n, "of": made.of}
    return told | ({} if made.limit is None else {"limit": made.limit})


def _ruler(project: settings.ProjectSettings) -> curation.Ruler:
    """What this project measures with."""
    patterns = settings.load_persona_template(ROOT).flaw_patterns
    flaws = patterns.primary.patterns | patterns.secondary.patterns
    user, assistant = (
        [text for name in names for text in settings.load_prompt(ROOT, name).values()]
        for names in PROMPTS
    )
    told = (user, [*assistant, settings.load_system_prompt(ROOT)])
    shown = partial(_shown, flaws)
    artefacts = settings.load_artefacts(ROOT)
    return curation.Ruler(project, artefacts, evidence.wilson, told, shown)


def _shown(flaws: Mapping[str, Any], exchanges: Any) -> Iterator[tuple[int, str, bool]]:
    return figures.flaws_shown(exchanges, flaws)


# ── what is audited ───────────────────────────────────────────────────────────────────────────────


def _passing() -> list[Path]:
    """The transcripts of the manifest."""
    try:
        rows = json.loads((ROOT / MANIFEST).read_bytes())["transcripts"]
        paths = [ROOT / row["source_file"] for row in rows]
    except OSError:
        rows, paths = [], []
    except (ValueError, TypeError, KeyError) as error:
        said = f"{MANIFEST}: is no list of transcripts ({type(error).__name__})"
        raise FinetuneError(f"{said}. Run: python scripts/assess.py") from None
    if not paths:
        said = f"{MANIFEST}: no transcript passes, so there is nothing to audit"
        raise FinetuneError(f"{said}. Run: python scripts/assess.py, or audit.py --all")
    return paths


def _everything() -> list[Path]:
    paths = list(judging.find_sources(ROOT))
    if not paths:
        said = "data/raw/transcripts: no transcript, so there is nothing to audit"
        raise FinetuneError(f"{said}. Run: python scripts/generate.py")
    return paths


def _talk(path: Path) -> tuple[Talk, str]:
    """A transcript and the hash of its words."""
    source = judging.read_source(path, ROOT)
    found = json.loads(path.read_bytes())
    rows = found.get("exchanges", found.get("conversations"))
    metas = [dict(row.get("meta") or {}) for row in rows]
    person = dict(found.get("persona") or {})
    return Talk(source.id, source.file, source.pairs, metas, person), source.hash


def _same_words(paths: Sequence[Path], talks: Mapping[str, Any], options: Any) -> None:
    """An error unless what passed is what stands there now, each once."""
    if len(talks) != len(paths):
        said = f"{len(paths) - len(talks)} transcripts have the id of another"
        raise FinetuneError(f"data/raw/transcripts: {said}. Give each an id of its own.")
    rows = [] if options.all else json.loads((ROOT / MANIFEST).read_bytes())["transcripts"]
    for row in rows:
        if talks.get(row["id"], (None, ""))[1] != row.get("transcript_hash"):
            said = "has other words than those that were judged"
            raise FinetuneError(f"{row['source_file']}: {said}. Run: python scripts/assess.py")


def _others(path: Path) -> dict[str, Talk]:
    """The conversations of another set: transcripts or training examples, a folder or a file."""
    files = sorted([*path.rglob("*.json"), *path.rglob("*.jsonl")]) if path.is_dir() else [path]
    found: dict[str, Talk] = {}
    for file in files:
        try:
            rows = [json.loads(file.read_bytes())] if file.suffix == ".json" else iter_records(file)
            for row in rows:
                talk = _read(row, file, len(found))
                found |= {f"{file.name} {talk.id}": talk} if talk else {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            said = f"{file}: no conversations ({type(error).__name__}: {error})"
            raise FinetuneError(f"{said}. Give transcripts or training examples.") from None
    if not found:
        raise FinetuneError(f"{path}: no conversation in it. Give transcripts or examples.")
    return found


def _read(row: Mapping[str, Any], file: Path, number: int) -> Talk | None:
    """A transcript, or a training example by its messages."""
    item = str(row.get("transcript_id") or row.get("id") or f"row {number + 1}")
    if "messages" in row:
        said: dict[str, list[str]] = {"user": [], "assistant": []}
        for message in row["messages"]:
            said.setdefault(message["role"], []).append(message["content"])
        pairs = list(zip(said["user"], said["assistant"], strict=False))
    else:
        rows = row.get("exchanges", row.get("conversations")) or ()
        pairs = [(each["user"], each["assistant"]) for each in rows]
    person = dict(row.get("persona") or {})
    return Talk(item, file.name, pairs, (), person) if pairs else None


# ── redaction ─────────────────────────────────────────────────────────────────────────────────────


def redacted(talks: Mapping[str, tuple[Talk, str]]) -> Iterator[str]:
    """Write copies of the transcripts that hold personal data, without it; gives their files."""
    for talk, hashed in talks.values():
        path = ROOT / talk.file
        found = json.loads(path.read_bytes())
        before = json.dumps(found)
        for row in found.get("exchanges", found.get("conversations")):
            row |= {side: curation.redact(row[side]) for side in ("user", "assistant")}
        if json.dumps(found) == before:
            continue
        found.setdefault("repaired_from", {"source_file": talk.file, "transcript_hash": hashed})
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        copy = ROOT / "data/repaired" / path.name
        infrastructure.atomic_write(copy, text.encode("utf-8", "replace"), 0o644)
        yield copy.relative_to(ROOT).as_posix()


# ── what the person sees ──────────────────────────────────────────────────────────────────────────


def _show(options: argparse.Namespace, told: Mapping[str, Any]) -> int:
    if options.json:
        print(json.dumps(told, indent=1, sort_keys=True))
    elif "findings" not in told:
        print("\n".join(f"{name:<24}{value}" for name, value in told.items()))
    else:
        print("\n".join(table(told)))
    return 0


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """The findings for a person, the worst first, in 80 columns."""
    replies = told["figures"]["replies"]
    yield f"audit  {told['set']}: {told['count']:,} conversations, {replies:,} replies"
    rows: list[Mapping[str, Any]] = told["findings"]
    for test, same in itertools.groupby(rows, key=lambda row: str(row["test"])):
        for row in same:
            yield from _finding(row)
        yield from _wrapped("  do: ", REMEDY[test])
    bad = {row["test"] for row in told["findings"]}
    fine = [name for name in told["thresholds"] if name not in bad | set(told["not measured"])]
    ratio = told["figures"]["reply per word of message"].get("all")
    listed = told["figures"]["phrases"]["listed"].items()
    if any(k for _, k in listed):
        said = ", ".join(f'"{words}" in {k:,}' for words, k in listed if k)
        yield from ("", *_wrapped("your own list of phrases: ", f"{said} of {replies:,} replies"))
    if ratio:
        yield f"\nreply per word of message: mean {ratio['mean']:.2f}, median {ratio['median']:.2f}"
    yield from ("", *_wrapped("no finding: ", ", ".join(fine) or "in none"))
    for name, why in told["not measured"].items():
        yield from _wrapped("not measured: ", f"{name}, {why}")
    for path in told.get("redacted", ()):
        yield f"redacted: {path}"
    yield f"next: {_next(told)}"


def _finding(row: Mapping[str, Any]) -> Iterator[str]:
    """A finding with its places; what is only information has one line."""
    share = f"{row['share']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
    if row["severity"] == "info":
        yield from _wrapped("INFO      ", f"{row['test']}: {share}, {row['what']}")
        return
    yield ""
    yield f"{row['severity'].upper():<9} {row['test']}: {share}, limit {row['limit']:.0%}"
    yield from _wrapped("  ", f"{row['what']}: {row['k']:,} of {row['n']:,} {row['of']}")
    for each in row["examples"]:
        at = f", exchange {each['exchange']}" if each["exchange"] else ""
        yield f"    {each['file']}{at}"
        yield from textwrap.wrap(each["text"], 72, initial_indent=" " * 6,
                                 subsequent_indent=" " * 6, break_on_hyphens=False)[:2]  # fmt: skip


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, 80, subsequent_indent="    ", break_on_hyphens=False)


def _next(told: Mapping[str, Any]) -> str:
    if told.get("redacted"):
        return "python scripts/assess.py, because the words have changed; then audit.py"
    if not told["passed"]:
        return "mend what is CRITICAL, then run this again"
    return "finetune gate audit" if told["set"] == "passing" else "python scripts/audit.py"


def _options() -> argparse.Namespace:
    parser = stage.flags(__doc__, "dry_run", "json")
    add = parser.add_argument
    add("--all", action="store_true", help="everything that was made (default: what passes)")
    add("--against", type=Path, metavar="PATH", help="another set: a folder, a .json or .jsonl")
    add("--redact", action="store_true", help="write copies without personal data")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(stage.shown(main))
