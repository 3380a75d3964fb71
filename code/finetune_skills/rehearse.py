"""`finetune rehearse`: the example project through every stage that is built, and what guards it.

The stages run as a person runs them: the project's own scripts, in processes of their own, and the
real gates. Then each fault of a table is planted in a copy of the project, by an edit or by a model
that misbehaves (rehearsal/faulty.py), and what the pipeline left on the disk says who caught it. A
new stage is one row of STEPS, a new fault one row of FAULTS.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any

import click

from finetune_skills.rehearsal.bench import LEFT, UNREADABLE, Done, Missed, Planted, Rehearsal, Step
from finetune_skills.rehearsal.faults import FAULTS
from finetune_skills.rehearsal.steps import STEPS
from infrastructure import FinetuneError


def rehearse(keep: Path | None) -> tuple[Rehearsal, dict[str, Any]]:
    """A rehearsal in a temporary folder, and its report; the project stays where `keep` says."""
    with tempfile.TemporaryDirectory(prefix="finetune-rehearsal-") as scratch:
        done = run(keep or Path(scratch) / "project", Path(scratch) / "copies")
    return done, report(done) | ({"project": str(keep)} if keep else {})


def run(root: Path, scratch: Path) -> Rehearsal:
    """All steps in order until one fails, then all faults, each in a copy of its own."""
    done = Rehearsal(root.absolute(), scratch.absolute())
    for step in STEPS:
        done.steps.append(timed(step, partial(step.work, done)))
        if not done.steps[-1].passed:
            return done
    for fault in FAULTS:
        done.faults.append(timed(fault, partial(_planted, fault, done)))
    return done


def _planted(fault: Planted, done: Rehearsal) -> str:
    return fault.proof(done, done.copy(fault.name))


def passed(done: Rehearsal) -> bool:
    """Every row of both tables was run, and each passed."""
    whole = len(done.steps) == len(STEPS) and len(done.faults) == len(FAULTS)
    return whole and all(each.passed for each in done.steps + done.faults)


def timed(row: Step | Planted, work: Callable[[], str]) -> Done:
    """Do the work of a row and tell stderr about it."""
    click.echo(f"rehearse  {row.name} ...", err=True)
    started, passed = time.monotonic(), True
    try:
        said = work()
    except (Missed, FinetuneError) as error:
        said, passed = str(error), False
    except UNREADABLE as error:
        said, passed = f"{LEFT} ({type(error).__name__}: {error})", False
    seconds = round(time.monotonic() - started, 2)
    word = "ok" if passed else "FAILED" if isinstance(row, Step) else "MISSED"
    click.echo(f"rehearse  {row.name}: {word} in {seconds:.1f} s: {said}", err=True)
    return Done(row, seconds, passed, said)


# ── what the person sees ──────────────────────────────────────────────────────────────────────────


def report(done: Rehearsal) -> dict[str, Any]:
    """Both tables and the verdict, as data."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = sum(part.ru_utime + part.ru_stime for part in both)
    told: dict[str, Any] = {"passed": passed(done), "cpu_seconds": round(used, 1)}
    told["steps"] = [each.to_dict() for each in done.steps]
    return told | {"faults": [each.to_dict() for each in done.faults]}


def table(done: Rehearsal, told: dict[str, Any]) -> Iterator[str]:
    """At most 80 columns: the steps, the faults, and a verdict of one line."""
    yield f"{'step':<28}{'gate':<12}{'seconds':>8}  result"
    for each in done.steps:
        gate = getattr(each.row, "gate", "") or "-"
        word = each.said if each.passed else "FAILED"
        yield f"{each.row.name:<28}{gate:<12}{each.seconds:>8.1f}  {word[:30]}"
        yield from _why(each)
    yield from (f"{step.name:<28}{step.gate or '-':<12}{'-':>8}  not run"
                for step in STEPS[len(done.steps) :])  # fmt: skip
    yield ""
    yield "planted faults and who caught them"
    for each in done.faults:
        catcher = getattr(each.row, "catcher", "")
        yield f"  {each.row.name:<24}{catcher if each.passed else 'MISSED by ' + catcher}"
        yield from _why(each)
    if not done.faults:
        yield "  none was planted, because a step failed"
    yield ""
    yield verdict(done, told["cpu_seconds"])


def _why(each: Done) -> Iterator[str]:
    if not each.passed:
        yield from (f"      {line}" for line in wrap(each.said, 74))


def verdict(done: Rehearsal, used: float) -> str:
    steps, faults = (sum(each.passed for each in rows) for rows in (done.steps, done.faults))
    word = "passed" if passed(done) else "FAILED"
    said = f"{steps} of {len(STEPS)} steps, {faults} of {len(FAULTS)} faults caught"
    return f"rehearsal {word}: {said}, {used:.1f} CPU seconds"
