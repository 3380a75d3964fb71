"""The check of the gate `slice`: the training set is what today's transcripts and settings give.

It believes no figure of slice.py: words, groups, sides and losses are worked out again from the
transcripts; only tokens are taken from the lines, because counting them again takes minutes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_skills.findings import Checked, Finding, loaded
from infrastructure import FinetuneError, iter_records

if TYPE_CHECKING:
    from settings import ProjectSettings
    from slicing import Conversation, Row

FOLDER, PROJECT = "data/processed", "config/project.yaml"
MANIFEST, DATA = f"{FOLDER}/passing_transcripts.json", f"{FOLDER}/training_data.jsonl"
REPORT, SKIPPED = f"{FOLDER}/slices.json", f"{FOLDER}/skipped.jsonl"
AGAIN, ASSESS = "Run: python scripts/slice.py", "Run: python scripts/assess.py"
SLICE_SEEN = (
    MANIFEST,
    DATA,
    REPORT,
    SKIPPED,
    f"{FOLDER}/train.jsonl",
    f"{FOLDER}/validation.jsonl",
    f"{FOLDER}/README.md",
    "config/system-prompt.md",
    "project.yaml#/slicing",
    "project.yaml#/limits/max_tokens",
    "project.yaml#/thresholds/lost_slices",
    "project.yaml#/thresholds/near_duplicate",
    "project.yaml#/seeds/split",
)
MOST = 20  # findings of one kind


def check_slice(root: Path) -> Checked:
    """The files belong together and to what passes today, each reply carries loss once or is
    listed, nothing is on both sides or among the evaluation's personas, and it is enough."""
    from settings import load_project

    checked = Checked()
    project: ProjectSettings | None = loaded(load_project, root, checked)
    read = _read(root, checked)
    if project is None or read is None:
        return checked
    rows, skipped, report = read
    checked.items = len(rows)
    checked.findings += _faults(rows, project)
    checked.findings += [] if checked.findings else _files(root, rows)
    if not checked.findings:
        checked.findings += _against_transcripts(root, rows, skipped, report, project)
        checked.findings += _changed(root, report, project)
        checked.findings += _enough(rows, skipped, report, project)
        checked.figures |= _figures(root, rows, skipped, report)
    return checked


def _read(root: Path, checked: Checked) -> tuple[list[Row], list[Row], Row] | None:
    """The lines of the set, what is not learned, and the figures that were written with it."""
    from slicing import read_rows

    try:
        rows, skipped = read_rows(root / DATA), read_rows(root / SKIPPED)
        report = json.loads((root / REPORT).read_bytes())
        _ = report["made with"].items(), report["trial"]["included"], report["tokens counted"]
        _ = report["near-duplicates"], [(row["transcript"], row["exchange"]) for row in skipped]
        _ = report["figures"]["computed for each supervised"]
        _ = [(row["example"], row["reason"]) for row in skipped]
    except OSError as error:
        name = Path(str(error.filename)).name
        checked.findings.append(Finding(f"{FOLDER}/{name}", "is not there.", AGAIN))
    except FinetuneError as error:
        checked.findings.append(Finding(FOLDER, str(error)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"was not written by slice.py ({type(error).__name__}: {error})."
        checked.findings.append(Finding(REPORT, said, AGAIN))
    else:
        return rows, skipped, report
    return None


def _faults(rows: Sequence[Row], project: ProjectSettings) -> Iterator[Finding]:
    from slicing import SIDES, faults_of

    wrong = faults_of(rows, project.limits.max_tokens)
    yield from (Finding(DATA, f"{said}.", AGAIN) for said in itertools.islice(wrong, MOST))
    for side in SIDES:
        if not any(row.get("split") == side for row in rows):
            yield Finding(f"{FOLDER}/{side}.jsonl", "holds no example.", AGAIN)


def _files(root: Path, rows: Sequence[Row]) -> Iterator[Finding]:
    """The two sides are what training_data.jsonl says, to the byte."""
    from slicing import files_of

    try:
        files = files_of(rows)
    except (KeyError, TypeError, ValueError, FinetuneError) as error:
        yield Finding(DATA, f"is not as slice.py writes it ({error}).", AGAIN)
        return
    for name, data in files.items():
        path = root / FOLDER / name
        if not path.is_file() or path.read_bytes() != data:
            said = (
                "is not what training_data.jsonl says." if name != Path(DATA).name else "is edited."
            )
            yield Finding(f"{FOLDER}/{name}", said, AGAIN)


def _against_transcripts(
    root: Path, rows: Sequence[Row], skipped: Sequence[Row], report: Row, project: ProjectSettings
) -> Iterator[Finding]:
    """What the transcripts of today's manifest say."""
    from settings import SettingsError, load_system_prompt

    try:
        talks = _talks(root, bool(report["trial"]["included"]))
        system = load_system_prompt(root)
    except (FinetuneError, SettingsError, OSError) as error:
        yield Finding(MANIFEST, f"{error}.", ASSESS)
        return
    except (ValueError, TypeError, KeyError) as error:
        yield Finding(MANIFEST, f"is no manifest ({type(error).__name__}: {error}).", ASSESS)
        return
    wrong = (
        _of_today(rows, skipped, talks),
        _words(rows, talks, system),
        _losses(rows, skipped, talks, project),
        _related(rows, talks),
        _people(root, talks),
    )
    for each in wrong:
        yield from itertools.islice(each, MOST)


def _talks(root: Path, trial: bool) -> dict[str, Conversation]:
    """Each passing transcript with the words that its file has now; an error for other words."""
    from judging import read_source
    from slicing import conversation_of

    talks = {}
    for row in json.loads((root / MANIFEST).read_bytes())["transcripts"]:
        path = root / str(row["source_file"])
        if not path.is_file():
            raise FinetuneError(f"{row['source_file']} is gone")
        source = read_source(path, root)
        if source.hash != row["transcript_hash"]:
            raise FinetuneError(f"{source.file} has other words than those that were judged")
        if trial or not (source.trial or row.get("trial")):
            found = json.loads(path.read_bytes())
            talks[source.id] = conversation_of(found, source.pairs, source.hash)
    return talks


def _of_today(
    rows: Sequence[Row], skipped: Sequence[Row], talks: Mapping[str, Conversation]
) -> Iterator[Finding]:
    """The same transcripts as in the manifest, each as it was judged last."""
    there = {row["transcript"] for row in rows} | {row["transcript"] for row in skipped}
    for name in sorted(there ^ set(talks)):
        said = "is not in the manifest any more." if name in there else "is missing in the set."
        yield Finding(DATA, f"{name} {said}", AGAIN)
    for row in rows:
        talk = talks.get(row["transcript"])
        if talk and row.get("provenance", {}).get("transcript_hash") != talk.hash:
            yield Finding(DATA, f"{row['id']}: was made from other words.", AGAIN)


def _words(
    rows: Sequence[Row], talks: Mapping[str, Conversation], system: str
) -> Iterator[Finding]:
    """Each example says what its transcript says, after today's system prompt."""
    from slicing import messages_of

    for row in rows:
        talk = talks.get(row["transcript"])
        if talk:
            expected = messages_of(talk.pairs[row["dropped"] : row["slice_point"]], system)
            if list(expected) != row["messages"]:
                said = f"{row['id']}: its messages are not the system prompt and the transcript's."
                yield Finding(DATA, said, AGAIN)


def _losses(
    rows: Sequence[Row],
    skipped: Sequence[Row],
    talks: Mapping[str, Conversation],
    project: ProjectSettings,
) -> Iterator[Finding]:
    """Each reply of each transcript carries loss once, or skipped.jsonl lists it."""
    from slicing import taught_exchanges

    taught: defaultdict[str, Counter[int]] = defaultdict(Counter)
    listed: defaultdict[str, set[int]] = defaultdict(set)
    for row in rows:
        learned = taught_exchanges(row["messages"], row["supervised"], row["dropped"])
        taught[row["transcript"]].update(learned)
    for row in skipped:
        listed[row["transcript"]] |= {row["exchange"]} - {None}
    for name, talk in talks.items():
        own, all_ = taught[name], set(range(1, len(talk.pairs) + 1))
        for said, found in (
            ("carries no loss and is not listed", all_ - set(own) - listed[name]),
            ("carries loss and is listed as if not", set(own) & listed[name]),
            ("is not in the transcript", (set(own) | listed[name]) - all_),
            ("carries loss more than once", _more_than_once(own, project)),
        ):
            if found:
                yield Finding(DATA, f"{name}, exchange {min(found)}: {said}.", AGAIN)


def _more_than_once(taught: Counter[int], project: ProjectSettings) -> set[int]:
    """Replies that are learned again, where the settings do not ask for that."""
    if project.slicing.supervise == "all":
        return set()
    return {exchange for exchange, times in taught.items() if times > 1}


def _related(rows: Sequence[Row], talks: Mapping[str, Conversation]) -> Iterator[Finding]:
    """No two related transcripts on two sides, whatever group the lines name."""
    from slicing import groups

    family = groups(talks.values())
    sides: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["transcript"] in family:
            sides[family[row["transcript"]]].setdefault(row["split"], row["transcript"])
    for each in sides.values():
        if len(each) > 1:
            said = f"{' and '.join(sorted(each.values()))} are related, and on two sides."
            yield Finding(DATA, said, AGAIN)


def _people(root: Path, talks: Mapping[str, Conversation]) -> Iterator[Finding]:
    from slicing import EVALUATION, shared_people

    for name, person in shared_people(talks.values(), iter_records(root / EVALUATION)):
        todo = "Remove the transcript, or draw other evaluation personas."
        yield Finding(DATA, f"{name} has the evaluation's persona {person}.", todo)


def _changed(root: Path, report: Row, project: ProjectSettings) -> Iterator[Finding]:
    """Settings that are not those that the set was made with."""
    from slicing import settings_of

    made = report["made with"]
    for name, now in settings_of(project, root).items():
        if made.get(name) != now:
            said = f"is {now} now; the set was made with {made.get(name)}."
            yield Finding(f"{PROJECT} {name}", said, AGAIN)
    if report["near-duplicates"] is None:
        said = "near-duplicates were not looked for, so they may be on both sides."
        yield Finding(REPORT, said, f"Run: finetune upgrade; {AGAIN[5:]}")


def _enough(
    rows: Sequence[Row], skipped: Sequence[Row], report: Row, project: ProjectSettings
) -> Iterator[Finding]:
    from slicing import lost_share

    target, share = project.slicing.target_examples, lost_share(len(rows), skipped)
    if target is None:
        todo = "Write how many examples you want, training and validation together."
        yield Finding(f"{PROJECT} slicing.target_examples", "is not decided.", todo)
    elif len(rows) < target:
        todo = "Generate or import more (finetune estimate says how many conversations), or let "
        todo += f"a person decide that {len(rows)} will do: slicing.target_examples in {PROJECT}."
        yield Finding(DATA, f"holds {len(rows)} examples; the target is {target}.", todo)
    if share > project.thresholds.lost_slices:
        said = f"{share:.0%} of the examples are over limits.max_tokens and left out."
        todo = "Plan shorter conversations: length_classes in config/persona-template.yaml."
        if report["tokens counted"].get("exactness") != "exact":
            todo += " Or set slicing.tokenizer: without it an upper bound decides."
        yield Finding(SKIPPED, said, todo)


def _figures(
    root: Path, rows: Sequence[Row], skipped: Sequence[Row], report: Row
) -> dict[str, Any]:
    """What the ledger keeps."""
    from infrastructure import load_rubric
    from slicing import SIDES, audit_status, judge_status, lost_share

    tokens = [int(row["tokens"]) for row in rows]
    told: dict[str, Any] = {"examples": len(rows)}
    for side in SIDES:
        own = [row for row in rows if row["split"] == side]
        told[side] = f"{len(own)} of {_count(row['transcript'] for row in own)} transcripts"
    told["groups"] = _count(row["group"] for row in rows)
    told["tokens"] = f"{min(tokens)} to {max(tokens)}, mean {sum(tokens) / len(tokens):.0f}"
    told["tokens counted"] = report["tokens counted"].get("exactness", "unknown")
    told["computed for each supervised"] = report["figures"]["computed for each supervised"]
    told["share lost"] = round(lost_share(len(rows), skipped), 4)
    told["replies without loss"] = sum(row["exchange"] is not None for row in skipped)
    told["judges"] = judge_status(root, load_rubric(root / "config/rubric.yaml").hash)
    told["audit"] = audit_status(root)
    marks = {mark: sum(bool(row.get(mark)) for row in rows) for mark in ("trial", "simulated")}
    return told | {mark: count for mark, count in marks.items() if count}


def _count(names: Iterable[str]) -> int:
    return len(set(names))
