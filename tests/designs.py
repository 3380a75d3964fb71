"""Designs for tests: a project whose model is chosen, and the example as a whole project."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from children import CODE
from finetune_skills import gates, scaffold

EXAMPLE = CODE.parent / "examples/support-desk"
DESIGN = ("model", "tokens", "taxonomy", "rubric", "personas", "prompts")
UNTRIED = "a test of what comes later"
VALUES: Mapping[str, str] = {"name": "demo", "domain": "d", "language": "en", "hardware": "h"}
BASE = '  base: {model: "local:qwen-mini", preset: ollama}'
TERMS = "terms: {source: page, checked: 2026-01-31, note: allowed}"
CHOSEN = {
    "  base: null ": f"{BASE} ",
    "  user_sim: null ": f'  user_sim: {{model: "local:small", preset: ollama, {TERMS}}} ',
    "  assistant: null ": f'  assistant: {{model: "local:large", preset: ollama, {TERMS}}} ',
}


def edit(path: Path, *changes: str) -> None:
    """Old text and new text, in turn; each old one has to be there."""
    text = path.read_text("utf-8")
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, "utf-8")


def choose_model(root: Path) -> Path:
    """Fill in what the `model` gate looks at."""
    for old, new in CHOSEN.items():
        edit(root / "config/project.yaml", old, new)
    shutil.copy(EXAMPLE / "design/model-choice.md", root / "design/model-choice.md")
    edit(root / "design/model-choice.md", "python:simulated:base", "local:qwen-mini")
    return root


def example(root: Path) -> Path:
    """The support desk as a project, at `root`."""
    values = VALUES | {"offline": "true", "budget": "none", "providers": "none"}
    scaffold.create_project(root, CODE.parent, values, example="support-desk")
    return root


def designed(root: Path) -> Path:
    """The support desk with its design passed; `baseline` and `pilot` are waived."""
    example(root)
    for gate in DESIGN:
        if gates.GATES[gate].check is not None:
            state = gates.pass_gate(root, gate, "test")
            assert (state.state, state.findings) == ("passed", []), gate
    gates.atomic_write(root / "design/base-model-eval-results.json", "{}\n", 0o644)
    for gate in ("baseline", "pilot"):
        assert gates.decide(root, gate, "waived", "test", UNTRIED).state == "waived"
    return root
