"""The gates: one row each, what it looks at, what it checks, and what the ledger says of it.

A check is a cheap, pure function of files. It lives here, outside the project, so that the thing
being checked can't edit its examiner. The ledger alone never makes a gate passed: `state_of` runs
the check again and compares the hashes of what was looked at.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_skills import checks_design as d
from finetune_skills.checks_audit import AUDIT_SEEN, check_audit
from finetune_skills.checks_baseline import BASELINE_SEEN, check_baseline
from finetune_skills.checks_curate import FIXUP_SEEN, SCALE_SEEN, TRIAL, check_fixup, check_scale
from finetune_skills.checks_pilot import CONFIRM_SEEN, PILOT_SEEN, check_confirm, check_pilot
from finetune_skills.checks_slice import SLICE_SEEN, check_slice
from finetune_skills.checks_tokens import TOKENS_SEEN, check_tokens
from finetune_skills.findings import Checked, Finding
from infrastructure import (
    PEOPLE_GATES,
    Appender,
    FinetuneError,
    ReadReport,
    atomic_write,
    iter_records,
    keep_version,
    read_lines,
    require_gate,
    selector_hash,
)

SCHEMA = 1
LEDGER = Path(".finetune/ledger.jsonl")
DAMAGED = Path(".finetune/ledger.damaged")  # lines of it that could not be read


Check = Callable[[Path], Checked]


@dataclass(frozen=True)
class Gate:
    """A row of the table."""

    name: str
    phase: str
    needs: tuple[str, ...] = ()
    looks_at: tuple[str, ...] = ()
    check: Check | None = None  # None: its stage is not built yet, so it never passes
    keeps: tuple[str, ...] = ()  # files whose version is kept whenever the gate is run

    @property
    def person(self) -> bool:
        return self.name in PEOPLE_GATES


GATES = {
    gate.name: gate
    for gate in (
        Gate("model", "design", (), d.MODEL_SEEN, d.check_model),
        Gate("tokens", "design", ("model",), TOKENS_SEEN, check_tokens),
        Gate("taxonomy", "design", ("model",), d.TAXONOMY_SEEN, d.check_taxonomy, (d.TAXONOMY,)),
        Gate("rubric", "design", ("taxonomy",), d.RUBRIC_SEEN, d.check_rubric, (d.RUBRIC,)),
        Gate("personas", "design", ("taxonomy",), d.PERSONAS_SEEN, d.check_personas, (d.PERSONAS,)),
        Gate(
            "prompts", "design", ("rubric", "personas"), d.PROMPTS_SEEN, d.check_prompts, d.PROMPTS
        ),
        Gate("baseline", "design", ("tokens", "prompts"), BASELINE_SEEN, check_baseline),
        Gate("pilot", "generate", ("baseline",), PILOT_SEEN, check_pilot),
        Gate("confirm", "generate", ("pilot",), CONFIRM_SEEN, check_confirm),
        Gate("scale", "generate", ("confirm",), SCALE_SEEN, check_scale),
        Gate("audit", "generate", ("scale",), AUDIT_SEEN, check_audit),
        Gate("fixup", "generate", ("audit",), FIXUP_SEEN, check_fixup),
        Gate("slice", "generate", ("fixup",), SLICE_SEEN, check_slice),
        Gate("dataset", "train", ("slice",)),
        Gate("mask", "train", ("dataset",)),
        Gate("training", "train", ("mask",)),
        Gate("gguf", "train", ("training",)),
        Gate("evaluation", "train", ("gguf",)),
        Gate("sanity", "train", ("evaluation",)),
        Gate("ship", "train", ("sanity",)),
    )
}
PHASES = ("design", "generate", "train")
OPEN = frozenset({"passed", "waived"})
STATES = {
    "passed": "checked, and nothing it looked at has changed",
    "waived": "a person let it through, with a reason",
    "waiting": "the check passed; a person has to approve it",
    "stale": "something it looked at has changed since",
    "failed": "the check finds something, or it never passed",
    "blocked": "a gate that it needs is not passed",
    "not run": "its check would pass; it has not been run",
    "not built": "its stage is not built yet, so it can't pass",
}


@dataclass
class State:
    """Where one gate stands now, recomputed from the files."""

    gate: str
    phase: str
    state: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # of a waiver

    def to_dict(self) -> dict[str, Any]:
        shown = vars(self) | {"findings": [str(finding) for finding in self.findings]}
        return {key: value for key, value in shown.items() if value not in ({}, [], "")}


def gate_named(name: str) -> Gate:
    if name not in GATES:
        from infrastructure import unknown

        raise FinetuneError(unknown("gate", name, GATES))
    return GATES[name]


def ledger_rows(root: Path) -> list[dict[str, Any]]:
    """Every readable line of the ledger; `ledger_damage` says which are not."""
    return list(iter_records(root / LEDGER))


def ledger_damage(root: Path) -> str:
    """One line about the lines that can't be read; empty when there are none. They stay in the
    file and count for nothing, and the next result starts on a line of its own."""
    report = ReadReport()
    for _ in iter_records(root / LEDGER, report):
        pass
    if not report.bad:
        return ""
    lines = ", ".join(str(number) for number, _ in report.bad[:9])
    more = f" and {len(report.bad) - 9} more" if len(report.bad) > 9 else ""
    said = "skipped: damaged, kept as it is; every other result counts"
    return f"{LEDGER}:{lines}{more}: {said}. A gate that lost its result: run it again."


def set_damage_aside(root: Path) -> None:
    """An error when lines of the ledger can't be read. They are moved beside it first, so that the
    next run starts from a whole file; a writer who waits meanwhile is told that the file moved."""
    damage, path = ledger_damage(root), root / LEDGER
    if not damage:
        return
    with path.open("rb") as handle, Appender(root / DAMAGED) as aside:
        fcntl.flock(handle, fcntl.LOCK_EX)
        data, good = handle.read(), b""
        handle.seek(0)
        for _, start, length, _ in read_lines(handle, ReadReport()):
            good += data[start : start + length].rstrip(b"\n") + b"\n"
        kept = set(good.splitlines())
        lines = (line for line in data.split(b"\n") if line.strip() and line not in kept)
        aside.append_bytes(b"".join(line + b"\n" for line in lines))
        atomic_write(path, good)
    moved = f"{damage.partition(': ')[0]}: damaged. Moved to {DAMAGED}; every other result counts."
    raise FinetuneError(f"{moved} Run the command again.")


def refuse_unreadable(root: Path, names: Iterable[str]) -> None:
    """An error for a file of these gates that is missing or can't be read at all: then there is
    nothing to judge, and nothing is recorded."""
    from settings import FRONT_BLOCKS, SCHEMAS, check_file

    seen = {each.partition("#")[0] for name in names for each in GATES[name].looks_at}
    for file in sorted(seen):
        shown = f"config/{file}" if file in SCHEMAS else file
        if Path(file).name in SCHEMAS | FRONT_BLOCKS:
            found = check_file(root / shown, shown)
            if len(found) == 1 and not found[0].where:
                raise FinetuneError(str(found[0]))
        elif file.startswith("config/prompts/") and not (root / file).is_file():
            raise FinetuneError(f"{file}: is missing. Create it; finetune upgrade knows its start.")


def states(root: Path, name: str = "") -> dict[str, State]:
    """Every gate in order, or one with all that it needs, recomputed; a gate is open only when all
    that it needs is."""
    rows, found = ledger_rows(root), dict[str, State]()
    wanted = upstream(name) if name else set(GATES)
    for gate in (gate for gate in GATES.values() if gate.name in wanted):
        own = [row for row in rows if row.get("gate") == gate.name]
        blocked = [name for name in gate.needs if found[name].state not in OPEN]
        found[gate.name] = _state(root, gate, own, blocked)
    return found


def _state(root: Path, gate: Gate, rows: Sequence[Mapping[str, Any]], blocked: list[str]) -> State:
    state = State(gate.name, gate.phase, "not built")
    if gate.check is None:
        return state
    checked = run_check(root, gate)
    state.findings, state.figures = checked.findings, checked.figures
    last = rows[-1] if rows else {}
    fresh = _still_open(gate.name, root)
    same = last.get("figures", {}).get("batch") == checked.figures.get("batch")
    if last.get("result") == "waived" and fresh:
        state.state, state.reason = "waived", str(last.get("reason", ""))
    elif blocked:
        state.state = "blocked"
        state.findings = [Finding(gate.name, f"needs {name}.") for name in blocked]
    elif checked.findings:
        state.state = "failed"
    elif fresh and (same or last.get("result") != "approved"):
        state.state = "passed"
    elif fresh:
        state.state = "waiting"  # what a person has approved was another batch
    else:
        state.state = _not_open(root, gate, last)
    return state


def _not_open(root: Path, gate: Gate, last: Mapping[str, Any]) -> str:
    """Why a gate whose check passes is not open: never run, changed since, or nobody approved."""
    if last.get("result") not in ("passed", "approved", "waived"):
        return "not run"
    return "waiting" if last.get("looked_at") == looked_at(root, gate) else "stale"


def _still_open(name: str, root: Path) -> bool:
    """What the scripts themselves ask: does the ledger open this gate, with all hashes equal?"""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # `ledger_damage` says it, once
            require_gate(name, root)
    except FinetuneError:
        return False
    return True


def closed_gates(root: Path, wanted: Collection[str] = tuple(GATES)) -> dict[str, str]:
    """Why each of these gates, or one that it needs, keeps its stage from running; empty: it is
    open. From ledger and hashes, without any check. A waiver stands for all that comes before."""
    last = {row.get("gate"): row.get("result") for row in ledger_rows(root)}
    found: dict[str, str] = {}
    for gate in GATES.values():
        if gate.name not in wanted:
            continue
        try:
            require_gate(gate.name, root)
        except FinetuneError as error:
            found[gate.name] = str(error)
            continue
        needs = () if last.get(gate.name) == "waived" else gate.needs
        need = next((need for need in needs if found[need]), None)
        found[gate.name] = f"gate {gate.name}: needs {need}. {found[need]}" if need else ""
    return found


def upstream(name: str) -> set[str]:
    """A gate and all that it needs, near and far."""
    return {name}.union(*(upstream(need) for need in gate_named(name).needs))


def run_check(root: Path, gate: Gate) -> Checked:
    """The check's findings; one that looked at nothing, or at a missing thing, has one more."""
    if gate.check is None:
        return Checked([Finding(gate.name, "its stage is not built yet, so it can't pass.")])
    checked = gate.check(root)
    if not checked.findings and not checked.items:
        checked.findings.append(Finding(gate.name, "there was nothing to check."))
    if not checked.findings:
        missing = [name for name, seen in looked_at(root, gate).items() if seen is None]
        checked.findings += [Finding(name, "is not there.") for name in missing]
    return checked


def looked_at(root: Path, gate: Gate) -> dict[str, str | None]:
    return {selector: selector_hash(root, selector) for selector in gate.looks_at}


def pass_gate(root: Path, name: str, by: str = "") -> State:
    """Run one gate's check and write the result into the ledger; gives where it stands then."""
    gate = gate_named(name)
    refuse_unreadable(root, [name])
    set_damage_aside(root)
    before = states(root, name)
    closed = [need for need in gate.needs if before[need].state not in OPEN]
    versions = {
        name: keep_version(root, name)[:12] for name in gate.keeps if (root / name).exists()
    }
    checked = run_check(root, gate)
    checked.figures |= {"versions": versions} if versions else {}
    checked.findings += [Finding(name, f"needs {n}.", f"Run: finetune gate {n}") for n in closed]
    result = "failed" if checked.findings else "passed"
    record(root, gate, result, by, figures=checked.figures)
    after = states(root, name)[name]
    after.findings, after.figures = checked.findings or after.findings, checked.figures
    return after


def decide(root: Path, name: str, result: str, by: str, reason: str = "") -> State:
    """A person's act: approve what the check passed, or waive a gate with a reason."""
    gate = gate_named(name)
    refuse_unreadable(root, [name])
    set_damage_aside(root)
    now = states(root, name)[name]
    if gate.check is None:
        raise FinetuneError(f"gate {name}: its stage is not built yet; there is nothing to decide")
    if result == "approved" and not gate.person:
        raise FinetuneError(f"gate {name}: needs no person; run: finetune gate {name}")
    if result == "approved" and now.state not in ("waiting", "passed"):
        raise FinetuneError(f"gate {name}: is {now.state}; first run: finetune gate {name}")
    if not any(looked_at(root, gate).values()):
        raise FinetuneError(f"gate {name}: nothing that it looks at is there yet")
    record(root, gate, result, by, reason=reason, figures=now.figures)
    return states(root, name)[name]


def record(root: Path, gate: Gate, result: str, by: str, **more: Any) -> None:
    """Append one line to the ledger; on the disk when it returns."""
    seen = {name: hashed for name, hashed in looked_at(root, gate).items() if hashed is not None}
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"schema": SCHEMA, "at": at, "gate": gate.name, "result": result}
    line |= {"claimed_by": by or os.environ.get("USER", "")} | more | {"looked_at": seen}
    with Appender(root / LEDGER) as ledger:
        ledger.append(line)


def next_command(found: Mapping[str, State]) -> str:
    """What to run next, from the first gate that is not open."""
    first = next((state for state in found.values() if state.state not in OPEN), None)
    if first is None:
        return ""
    if first.state == "not built" and str(found["scale"].figures.get("made", "")) == TRIAL:
        return "python scripts/generate.py --count N   (so far there is only a trial)"
    if first.state == "waiting":
        return f"finetune approve {first.gate} --by NAME   (a person, at a terminal)"
    return "" if first.state == "not built" else f"finetune gate {first.gate}"
