"""What every stage script shares: its flags, shards, and models with their journal and budget.

    options = stage.flags(__doc__, "concurrency", "shard", "max_usd", "dry_run").parse_args()
    cast = stage.cast(project, "user_sim", "assistant")
    with stage.models(root, project, "generate", cast, options) as models:
        ...
    sys.exit(stage.shown(main))

Works alone when copied, beside `infrastructure` and `settings`. Importing it opens nothing.
"""

import argparse
import gc
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infrastructure import Budget, FinetuneError, Journal, LLMBackend, get_backend
from settings import ModelSpec, ProjectSettings, SettingsError, backend_arguments

Shard = tuple[int, int]  # this part and the number of parts, from 1
WHOLE: Shard = (1, 1)


def flags(doc: str | None, *names: str) -> argparse.ArgumentParser:
    """A parser whose common flags are called and explained alike in every stage."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", **FLAGS[name])
    return parser


def whole(least: int, most: int = 10_000_000) -> Callable[[str], int]:
    """A number of a flag, within its bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not from {least:,} to {most:,}")
        return int(text)

    return parse


def dollars(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not an amount of dollars")
    return value


def parse_shard(text: str) -> Shard:
    """`2/8` as (2, 8)."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 10_000):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a part such as 2/8")
    return int(part), int(parts)


FLAGS: dict[str, dict[str, Any]] = {
    "concurrency": {
        "type": whole(1, 4096), "default": 8, "metavar": "N",
        "help": "items at once (default: 8, a start value)",
    },
    "shard": {
        "type": parse_shard, "default": WHOLE, "metavar": "I/N",
        "help": "only this part of the items, with a journal of its own (default: all)",
    },
    "max_usd": {
        "type": dollars, "metavar": "X",
        "help": "dollars at most (default: budgets of config/project.yaml)",
    },
    "seed": {
        "type": whole(0, 2**53), "metavar": "N",
        "help": "where chance starts (default: seeds of config/project.yaml)",
    },
    "dry_run": {
        "action": "store_true", "help": "say what would happen, call no model, write nothing",
    },
    "json": {"action": "store_true", "help": "the result as JSON (default: a table)"},
}  # fmt: skip


def in_shard(item: str, shard: Shard) -> bool:
    """Whether an id belongs to this part: decided by the id alone, so the same everywhere."""
    part, parts = shard
    return int(hashlib.sha256(item.encode()).hexdigest()[:12], 16) % parts == part - 1


def suffix(shard: Shard) -> str:
    """What a part's own files carry in their names."""
    return "" if shard == WHOLE else f".{shard[0]}-of-{shard[1]}"


def decided(project: ProjectSettings, name: str) -> ModelSpec:
    """The model of a role; a role without one is a mistake that says what to do."""
    spec: ModelSpec | None = getattr(project.roles, name)
    if spec is None:
        said = f"config/project.yaml roles.{name}: no model is chosen"
        raise FinetuneError(f'{said}. Write `model: "kind:MODEL"` there.')
    return spec


def cast(project: ProjectSettings, *names: str) -> dict[str, ModelSpec]:
    """The models of these roles, each of them decided."""
    return {name: decided(project, name) for name in names}


@contextmanager
def models(
    root: Path, project: ProjectSettings, stage: str, played: Mapping[str, ModelSpec], options: Any
) -> Iterator[dict[str, LLMBackend]]:
    """Models by name, with one journal and one budget between them."""
    shard: Shard = getattr(options, "shard", WHOLE)
    specs = {name: backend_arguments(spec) for name, spec in played.items()}
    journal = Journal(root / f"data/journal/{stage}{suffix(shard)}.jsonl")
    try:
        budget = Budget(spent=journal.spent)
        shared: dict[str, Any] = {"journal": journal, "budget": budget, "root": root}
        made = {name: get_backend(spec, **own, **shared) for name, (spec, own) in specs.items()}
        free = all(backend.free for backend in made.values())
        budget.max_usd = None if free else cap(project, stage, options, shard)
        with fewer_collections():
            yield made
    finally:
        journal.close()


COLLECT_FROM = 20_000  # new objects; Python's own 700 fit a program that makes few


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Look for cycles of objects less often while models are asked: there are hardly any, and a
    part of the CPU went into it (5 to 9 %). What waits longer is a few megabytes."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_FROM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def cap(project: ProjectSettings, stage: str, options: Any, shard: Shard = WHOLE) -> float:
    """Dollars that this process may spend. Nothing that costs money starts without a limit."""
    limit = getattr(options, "max_usd", None)
    limit = getattr(project.budgets, stage) if limit is None else limit
    if limit is None:
        said = f"config/project.yaml budgets.{stage}: how much may this cost?"
        raise FinetuneError(f"{said} Write dollars there, or pass --max-usd X.")
    return float(limit) / shard[1]


def shown(main: Callable[[], int]) -> int:
    """Run a stage; what went wrong is one text without a traceback, with its exit code."""
    try:
        return main()
    except (FinetuneError, SettingsError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # before or after the run, which drains
        print("stopped; run again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # a reader such as `head` has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:
        print(f"{error.filename or 'disk'}: {error.strerror or error}", file=sys.stderr)
        return 2
