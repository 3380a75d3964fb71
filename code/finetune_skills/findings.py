"""What a gate's check gives back, and how it names a place in a project's files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_skills.bundle import use_bundle

use_bundle()

from infrastructure import FinetuneError, load_yaml  # noqa: E402 - the bundle's, never a project's


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a gate closed: where, what, what to do."""

    where: str
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.todo}" if self.todo else "")


@dataclass
class Checked:
    """What a check found. A check that looked at nothing has not passed."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    items: int = 0


def told(found: Any) -> Finding:
    """A finding of the settings, as a finding of a gate."""
    line = f":{found.line}" if found.line else ""
    return Finding(f"{found.file}{line} {found.where}".strip(), found.message)


@dataclass
class Places:
    """The lines of one YAML file or front block, to say where a mistake is."""

    shown: str
    lines: dict[tuple[Any, ...], int]

    def __call__(self, *place: str | int) -> str:
        """`config/project.yaml:12 roles.base`: the nearest thing that is written down."""
        near = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in self.lines), ())
        parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
        line = f":{self.lines[near]}" if near else ""
        return f"{self.shown}{line} {''.join(parts).removeprefix('.')}".strip()


def places(root: Path, name: str) -> Places:
    """The places of a file; without lines where it can't be read, which other findings say."""
    try:
        return Places(name, load_yaml(root / name)[1])
    except FinetuneError:
        return Places(name, {})


def loaded(load: Any, root: Path, checked: Checked) -> Any:
    """What a loader of the settings gives; None when its mistakes were added to the findings."""
    from settings import SettingsError

    try:
        return load(root)
    except SettingsError as error:
        checked.findings += map(told, error.findings)
        return None


def zero_weights(at: Places, given: Iterable[tuple[tuple[str | int, ...], float]]) -> list[Finding]:
    """Everything that is declared and can never be drawn."""
    said = "has weight 0 and is never drawn."
    todo = "Give it a weight or remove it."
    return [Finding(at(*place), said, todo) for place, weight in given if weight == 0]
