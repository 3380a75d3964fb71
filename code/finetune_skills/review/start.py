"""From the command line to a running review, with what is missing said in one line."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_skills.bundle import use_bundle

use_bundle()

from infrastructure import FinetuneError  # noqa: E402 - the bundle's, never a project's
from settings import SettingsError, load_project  # noqa: E402

NEEDED = ("jinja2", "starlette", "uvicorn")


@dataclass(frozen=True)
class Given:
    """The flags of `finetune review`."""

    batch: str = ""
    blind: bool = False
    ab: Path | None = None
    by: str = ""
    sample: int | None = None
    port: int = 0
    browser: bool = True


def review(root: Path, given: Given, announce: Callable[[str, int], None]) -> None:
    """Serve the review until somebody ends it, then say what was done."""
    try:
        from finetune_skills.review import server
        from finetune_skills.review.queue import SAMPLE, Scope
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        said = f"review: the package {error.name} is not installed"
        raise FinetuneError(f"{said}. Install: pip install {' '.join(NEEDED)}") from None
    try:
        project = load_project(root)
    except SettingsError as error:
        raise FinetuneError(str(error)) from None
    spread, sample = project.thresholds.judge_spread, given.sample
    scope = Scope(root, given.batch, given.blind, SAMPLE if sample is None else sample, spread)
    language, seed = str(project.language), project.seeds.evaluation
    made = server.prepare(scope, given.by, language, given.ab, seed)

    def tell(url: str, port: int) -> None:
        announce(url, port)
        print("review: open this address; Ctrl-C ends it, labels are saved all along",
              file=sys.stderr)  # fmt: skip
        if given.browser and has_screen():
            webbrowser.open(url)

    server.serve(made, server.listen(given.port, root), tell)
    print(f"\n{made.farewell()}. Go on with: {again(given)}", file=sys.stderr)


def has_screen() -> bool:
    """Whether a window can open; a browser in this very terminal would only be in the way."""
    return sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def again(given: Given) -> str:
    """The command that goes on where this one ends."""
    words = [f"--batch {given.batch}"] if given.batch else []
    words += ["--blind"] if given.blind else []
    words += [f"--ab {given.ab}"] if given.ab else []
    words += [f"--sample {given.sample}"] if given.sample is not None else []
    return " ".join(["finetune review", *words])
