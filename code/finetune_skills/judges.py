"""`finetune judges`: what the labels of people say about each judge, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from finetune_skills.quality import People, Standing
    from judging import Court

WIDTH = 80
BIASED = (
    "Most labels were given beside the judges' answers, and people then tend to agree: "
    "finetune review --blind"
)
MILD = "Judges are mild to their own kind: let another decide."
LINKS = 3  # transcripts named for each kind of mistake


@click.command("judges")
@click.option("--examples", is_flag=True, help="Only calibration examples to add, as YAML.")
@click.option("--json", "json_", is_flag=True, help="One JSON object on stdout.")
def judges(examples: bool, json_: bool) -> None:
    """What people's labels say about each judge, and whether it may filter.

    Exit 0: all judges together may. 1: they may not, or there are too few labels to know.

    Example: finetune judges --examples
    """
    from finetune_skills import quality
    from infrastructure import project_root
    from judging import Court

    root = project_root()
    court = Court.of(root, originals=True)
    said = quality.people(root, court)
    found = quality.standings(root, court, said, needed=True)
    proposed = quality.proposals(court, said, found)
    told = report(said, found, proposed)
    if examples:
        click.echo("\n".join(as_yaml(proposed)) or "no disagreement to learn from")
    else:
        click.echo(json.dumps(told, indent=1) if json_ else "\n".join(table(root, court, told)))
    sys.exit(1 if found[-1].why_not else 0)


def report(said: People, found: list[Standing], proposed: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is shown, as data."""
    about = {"labels": len(said.labels), "blind": said.blind, "stale": said.stale}
    about |= {"unfinished": said.unfinished, "left out as examples": said.example}
    people = about | {"reviewers": list(said.reviewers)}
    return {"people": people, "judges": [asdict(each) for each in found], "examples": proposed}


def table(root: Path, court: Court, told: Mapping[str, Any]) -> Iterator[str]:
    """At most 80 columns."""
    people = told["people"]
    yield f"labels that count: {people['labels']}, {people['blind']} of them blind; by " + (
        ", ".join(people["reviewers"]) or "nobody")  # fmt: skip
    yield f"not counted: {people['stale']} stale, {people['unfinished']} unfinished, " + (
        f"{people['left out as examples']} that became examples")  # fmt: skip
    if people["labels"] and 2 * people["blind"] < people["labels"]:
        yield from wrap(BIASED, WIDTH)
    for each in told["judges"]:
        yield ""
        yield from judge(each, court)
    if told["examples"]:
        names = ", ".join(each["criterion"] for each in told["examples"])
        yield ""
        yield from wrap(f"Judges and people differ on {names}. Calibration examples to add, once "
                        "you have written why: finetune judges --examples", WIDTH)  # fmt: skip


def judge(each: Mapping[str, Any], court: Court) -> Iterator[str]:
    """One judge: the whole, each criterion, the mistakes."""
    overall, corrected = each["overall"], each["corrected"]
    yield f"{each['name']}: {'may filter' if not each['why_not'] else 'may NOT filter'}"
    yield from (f"  {line}" for line in wrap(each["why_not"], WIDTH - 2))
    yield f"  passes what people pass (TPR)   {share(overall['tpr'])}"
    yield f"  fails what people fail (TNR)    {share(overall['tnr'])}"
    yield f"  kappa {number(overall['kappa'])}; flips {flips(each['flips'])}"
    yield f"  pass rate {percent(corrected['raw'])} as judged, {rate(corrected)} corrected"
    if each["needed"]:
        yield f"  for an interval of 25 points: about {each['needed']} labels in all"
    elif corrected["rate"] is not None:
        yield "  for an interval of 25 points: judge more; labels alone won't do"
    if each["kin"]:
        yield from wrap(f"  Of one family with the assistant ({each['kin']}). {MILD}", WIDTH)
    yield from mistakes("passed, people say bad", each["false_passes"], court)
    yield from mistakes("failed, people say good", each["false_fails"], court)
    yield f"  {'criterion':<22}{'TPR':>12}{'TNR':>12}{'kappa':>8}  wrong YES  wrong NO"
    for name, one in each["criteria"].items():
        found = f"{counts(one['tpr']):>12}{counts(one['tnr']):>12}{number(one['kappa']):>8}"
        yield f"  {name:<22}{found}{one['false_passes']:>11}{one['false_fails']:>10}"


def mistakes(what: str, items: list[str], court: Court) -> Iterator[str]:
    """How many, and where to read the first of them."""
    if items:
        yield f"  {what}: {len(items)}"
        yield from (f"    {court.sources[item].file}" for item in items[:LINKS])


def share(of: Mapping[str, Any]) -> str:
    if not of["n"]:
        return "unknown: no such label"
    return f"{of['rate']:.0%}, {of['low']:.0%} to {of['high']:.0%} ({of['k']} of {of['n']})"


def counts(of: Mapping[str, Any]) -> str:
    return f"{of['k']} of {of['n']}" if of["n"] else "-"


def rate(corrected: Mapping[str, Any]) -> str:
    if corrected["rate"] is None:
        return "unknown"
    return f"{corrected['rate']:.0%} ({corrected['low']:.0%} to {corrected['high']:.0%})"


def flips(found: Mapping[str, Any] | None) -> str:
    if not found or found["rate"] is None:
        return "unknown (assess.py --repeat 3)"
    return f"{found['rate']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_yaml(proposed: list[dict[str, Any]]) -> Iterator[str]:
    """To paste below a criterion's `calibration_examples`; the reason is for a person to write."""
    for each in proposed:
        yield f"# criteria.{each['criterion']}.calibration_examples"
        yield f"- type: {each['type']}"
        for name in ("context", "response"):
            yield f"  {name}: {json.dumps(each[name], ensure_ascii=False)}"
        yield "  reasoning:  # why; then check: finetune gate rubric"
        yield f"  source: {each['source']}"
