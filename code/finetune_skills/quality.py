"""What the labels of people say about each judge: may it filter, and what is the true pass rate?

Only labels that are complete and about the words and the rubric that are there now count, one for
each transcript: a blind one before one that was given beside the judges' answers. A judge that has
changed since does not undo what people said. A transcript whose words became a calibration example
says nothing about the judge any more, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_skills.checks_pilot import OTHER_VERDICT, stale_now
from finetune_skills.labels import Label, complete, load_labels

if TYPE_CHECKING:
    from evidence import Corrected, FlipRate, Quality
    from judging import Court

GOOD = {"good": True, "bad": False}  # a verdict of `unsure` is none
TOGETHER = "all judges together"  # what really filters
Verdicts = Mapping[str, Mapping[str, Any]]  # by transcript


@dataclass(frozen=True)
class People:
    """The labels that count, one for each transcript, and how many others there are."""

    labels: Mapping[str, Label]
    stale: int = 0
    unfinished: int = 0
    example: int = 0  # left out: the transcript is a calibration example
    reviewers: tuple[str, ...] = ()

    @property
    def blind(self) -> int:
        return sum(label.blind for label in self.labels.values())


@dataclass(frozen=True)
class Standing:
    """One judge, or all of them together, measured on what people say."""

    name: str
    overall: Quality
    criteria: Mapping[str, Quality]
    false_passes: Sequence[str]  # transcripts
    false_fails: Sequence[str]
    corrected: Corrected
    flips: FlipRate | None
    needed: int | None  # labels in all for an interval of useful width
    kin: str = ""  # the family that it shares with the model it judges
    why_not: str = ""  # why it may not filter; empty: it may
    differs: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by criterion


def people(root: Path, court: Court) -> People:
    """Every label that counts."""
    examples = {str(each.get("source")) for criterion in court.bench.rubric.criteria.values()
                for each in criterion.calibration_examples}  # fmt: skip
    found: dict[str, Label] = {}
    stale = unfinished = example = 0
    labels = load_labels(root)
    for label in labels:
        old, done = _is_old(label, court), complete(label, court.bench.rubric)
        stale, unfinished = stale + old, unfinished + (not old and not done)
        if old or not done:
            continue
        example += label.id in examples
        known = found.get(label.id)
        if label.id not in examples and (known is None or _counts_more(label, known)):
            found[label.id] = label
    names = tuple(sorted({label.reviewer for label in found.values()}))
    return People(found, stale, unfinished, example, names)


def _is_old(label: Label, court: Court) -> bool:
    why = stale_now(label, court)
    return bool(why) and not why.startswith(OTHER_VERDICT)


def _counts_more(one: Label, other: Label) -> bool:
    """A blind label before one that was given in view of the answers; then the newer one."""
    return (one.blind, one.at) > (other.blind, other.at)


def standings(root: Path, court: Court, said: People, needed: bool = False) -> list[Standing]:
    """Each judge, then all of them together. How many labels are `needed` takes a while."""
    by_judge: dict[str, Verdicts] = {
        name: {item: row for item, row in rows.items() if court.is_fresh(row)}
        for name, rows in court.verdicts.items()
    }
    families = _families(root, court)
    found = [standing(root, court, said, name, rows, families[name], needed)
             for name, rows in by_judge.items()]  # fmt: skip
    both = {row["id"]: row for row in court.combined() if row["state"] in ("passed", "failed")}
    return [*found, standing(root, court, said, TOGETHER, both, "", needed)]


def standing(
    root: Path, court: Court, said: People, name: str, rows: Verdicts, kin: str, needed: bool
) -> Standing:
    """One judge's answers against those of people."""
    from evidence import judge_quality, labels_needed, rogan_gladen

    scored = {item: bool(row["pass"]) for item, row in rows.items() if row["pass"] is not None}
    sure = {item: GOOD[str(label.verdict)] for item, label in said.labels.items()
            if label.verdict in GOOD}  # fmt: skip
    pairs = {item: (good, scored[item]) for item, good in sure.items() if item in scored}
    overall = judge_quality(pairs.values())
    counts = (sum(scored.values()), len(scored), overall.tpr.counts, overall.tnr.counts)
    known = needed and overall.tpr.n > 0 and overall.tnr.n > 0 and len(scored) > 0
    return Standing(
        name,
        overall,
        {each: _criterion(each, said, rows) for each in court.bench.rubric.criteria},
        [item for item, (person, judge) in pairs.items() if judge and not person],
        [item for item, (person, judge) in pairs.items() if person and not judge],
        rogan_gladen(*counts),
        _flips(root, court, name),
        labels_needed(*counts, draws=4000) if known else None,
        kin,
        _why_not(root, overall, rogan_gladen(*counts).refused),
        _differs(said, rows),
    )


def _criterion(name: str, said: People, rows: Verdicts) -> Quality:
    """YES and NO only: whether a criterion applies at all is seen in kappa."""
    from dataclasses import replace

    from evidence import cohen_kappa, judge_quality

    given = [(label.criteria.get(name), rows[item]["answers"].get(name))
             for item, label in said.labels.items() if item in rows]  # fmt: skip
    sure = [(one == "YES", two == "YES") for one, two in given
            if one in ("YES", "NO") and two in ("YES", "NO")]  # fmt: skip
    return replace(judge_quality(sure), kappa=cohen_kappa(given))


def _differs(said: People, rows: Verdicts) -> dict[str, list[str]]:
    """The transcripts on which a judge and a person answer a criterion differently."""
    found: dict[str, list[str]] = {}
    for item, label in said.labels.items():
        for name, answer in label.criteria.items() if item in rows else ():
            if rows[item]["answers"].get(name) in {"YES", "NO", "NA"} - {answer}:
                found.setdefault(name, []).append(item)
    return found


def _why_not(root: Path, overall: Quality, refused: str) -> str:
    """Why a judge may not filter: too few labels, below a bar, or no better than chance."""
    from settings import load_project

    bar = load_project(root).thresholds
    tpr, tnr = overall.tpr, overall.tnr
    if min(tpr.n, tnr.n) < bar.judge_labels:
        have = f"{tpr.n} good and {tnr.n} bad"
        return f"not enough labels: {have}, {bar.judge_labels} of each are needed"
    if (tpr.rate or 0) < bar.judge_tpr:
        return f"passes {tpr.rate:.0%} of what people call good; the bar is {bar.judge_tpr:.0%}"
    if (tnr.rate or 0) < bar.judge_tnr:
        return f"fails {tnr.rate:.0%} of what people call bad; the bar is {bar.judge_tnr:.0%}"
    return refused


def _flips(root: Path, court: Court, name: str) -> FlipRate | None:
    """How often it answers the same question differently; None when it was not asked again."""
    from evidence import flip_rate
    from judging import repeated_answers

    runs = repeated_answers(root, court, name) if name in court.judges else {}
    return flip_rate(runs) if runs else None


# ── families ──────────────────────────────────────────────────────────────────────────────────────

FAMILIES = {"openai": "openai", "anthropic": "anthropic", "claude": "anthropic", "google": "google"}


def family_of(model: str) -> str:
    """Who made a model, as far as its name tells: the provider, or the first word of an open one.
    Empty for code of one's own."""
    kind, _, name = model.partition(":")
    if kind in FAMILIES or kind == "python":
        return FAMILIES.get(kind, "")
    word = re.match(r"[A-Za-z]+", name.rpartition("/")[2])
    return word[0].lower() if word else ""


def _families(root: Path, court: Court) -> dict[str, str]:
    """For each judge the family that it shares with the assistant, or nothing."""
    from settings import load_project

    assistant = load_project(root).roles.assistant
    own = family_of(assistant.model) if assistant else ""
    kin = {name: family_of(spec.model) for name, spec in court.judges.items()}
    return {name: family if family == own else "" for name, family in kin.items()}


# ── calibration examples ──────────────────────────────────────────────────────────────────────────


def proposals(court: Court, said: People, found: Iterable[Standing]) -> list[dict[str, Any]]:
    """For each criterion the disagreement that the most judges share, as an example to add. A
    person writes why, and decides; nothing is added by itself."""
    votes: dict[tuple[str, str], int] = {}
    for each in found:
        for name, items in each.differs.items() if each.name != TOGETHER else ():
            for item in items:
                votes[name, item] = votes.get((name, item), 0) + 1
    best: dict[str, tuple[int, str]] = {}
    for (name, item), count in sorted(votes.items()):
        if said.labels[item].criteria[name] != "NA" and count > best.get(name, (0, ""))[0]:
            best[name] = (count, item)
    return [_proposal(court, said.labels[item], name) for name, (_, item) in sorted(best.items())]


def _proposal(court: Court, label: Label, name: str) -> dict[str, Any]:
    """The place that a judge quoted, else the first exchange; the person's answer is right."""
    source = court.sources[label.id]
    rows = [court.fresh(judge, source) for judge in court.judges]
    quoted = [each["exchange"] for row in rows if row for each in row["quotes"].get(name, ())]
    context, response = source.pairs[min(quoted or [1]) - 1]
    kind = {"YES": "BORDERLINE_PASS", "NO": "BORDERLINE_FAIL"}[label.criteria[name]]
    return {"criterion": name, "type": kind, "context": context, "response": response,
            "reasoning": "", "source": label.id}  # fmt: skip
