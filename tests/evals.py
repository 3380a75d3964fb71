"""Do the skills do their work with a real model? The eval cases of skills/*/evals, in three ways.

    python tests/evals.py                                         lists them, says what a run takes
    python tests/evals.py --prove                                 proves the graders, offline, free
    python tests/evals.py --run --max-usd 20 --price 3 15 --model MODEL     asks a real model

A case says what a person writes and which graders look at the effects: tool calls, files. The proof
plays each case with two scripted models (plays.yaml beside the cases): all graders have to pass for
one and to fail for the other. A run needs the credentials that `claude` finds; `--tag` and `--case`
choose cases. Exit 0: all well. 1: a case failed. 2: usage, no case, no client.
"""

import argparse
import fnmatch
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "code")]

# The plugin as users get it: the client refuses a folder of over 20,000 entries, such as a checkout
# with environments in it. The cases' project.sh finds the projects inside of it.
PLUGIN = ROOT / ".cache/evals-plugin"
PROJECTS = PLUGIN / ".cache/evals"
PARTS = (".claude-plugin", "bin", "code", "examples", "hooks", "skills")
GRANTED = ("Write", "Edit")
NO_CONTROL = ("--ablation", "none")
KINDS = ("trigger", "near-miss", "order", "pressure")
DESIGN = ("model", "tokens", "taxonomy", "rubric", "personas", "prompts")
# The client's own prompt and tools in one request: 35 kB with 2.1.329, at 3.5 bytes a token.
CLIENT_TOKENS = 10_000
REPLY_TOKENS = 400  # of one turn, a start value
TURNS = "Reached maximum number of turns"


class Stop(Exception):
    """Shown without a traceback; exit 2."""


@dataclass(frozen=True)
class Case:
    """One case as the client reads it, with what the two scripted models do in it."""

    folder: Path
    spec: dict[str, Any]
    plays: dict[str, list[Any]]

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def tags(self) -> list[str]:
        return list(self.spec["tags"])

    @property
    def kind(self) -> str:
        return next((tag for tag in self.tags if tag in KINDS), "")

    @property
    def graders(self) -> list[str]:
        return [grader["name"] for grader in self.spec["graders"]]

    @property
    def prompt(self) -> str:
        return str(self.spec["execution"]["prompt"]).strip()

    @property
    def skill(self) -> Path:
        return self.folder.parent.parent


class Run(NamedTuple):
    """One run of a case: what became of each grader, and why it is not to be believed."""

    case: str
    arm: str
    error: str
    graders: dict[str, bool]
    said: dict[str, str]
    trace: Path = Path()

    @property
    def passed(self) -> bool:
        return not self.error and bool(self.graders) and all(self.graders.values())


def main(words: Sequence[str] | None = None) -> int:
    asked = arguments(words)
    try:
        cases = chosen(load(ROOT), asked.case, asked.tag)
        if asked.prove:
            return report_proof(cases, asked)
        print("\n".join(listing(cases, asked)))
        return report_run(cases, asked) if asked.run else 0
    except Stop as stop:
        print(f"evals: {stop}", file=sys.stderr)
        return 2


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prove", action="store_true", help="prove the graders; free, offline")
    parser.add_argument("--run", action="store_true", help="ask a real model; needs --max-usd")
    parser.add_argument("--max-usd", type=float, help="the client stops there, by its own prices")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"),
                        help="dollars for a million tokens, from the provider's page")  # fmt: skip
    parser.add_argument("--model", help="model of the agent (default: the client's)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each case (default: 3)")
    parser.add_argument("--control", action="store_true", help="each run also without the skills")
    parser.add_argument("--threshold", type=float, default=1.0,
                        help="share of runs that a case has to pass (default: 1.0)")  # fmt: skip
    parser.add_argument("--case", default="*", help="only cases with such a name")
    parser.add_argument("--tag", default="", help=f"only cases with this tag: {', '.join(KINDS)}")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    return parser.parse_args(words)


# ── the cases ─────────────────────────────────────────────────────────────────────────────────────


def load(root: Path) -> list[Case]:
    """Every case below skills/*/evals, with its plays."""
    cases = [case(path) for path in sorted(root.glob("skills/*/evals/*/case.yaml"))]
    if not cases:
        raise Stop(f"no case below {root / 'skills'}")
    return cases


@lru_cache
def plays_of(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def case(path: Path) -> Case:
    """The case of a file; plays by its name, else by the last of its tags that has some."""
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    plays = plays_of(path.parent.parent / "plays.yaml")
    named = [name for name in [*spec["tags"], spec["name"]] if name in plays]
    if not named:
        raise Stop(f"{spec['name']}: no play in {path.parent.parent / 'plays.yaml'}")
    return Case(path.parent, spec, plays[named[-1]])


def chosen(cases: Iterable[Case], pattern: str, tag: str) -> list[Case]:
    found = [each for each in cases if fnmatch.fnmatchcase(each.name, pattern)]
    found = [each for each in found if not tag or tag in each.tags]
    if not found:
        raise Stop(f"no case is called {pattern}" + (f" with the tag {tag}" if tag else ""))
    return found


def make_projects(place: Path = PROJECTS) -> None:
    """What the cases find in their folder: the example, designed up to its baseline, and with five
    conversations that wait for a person. Made by the real stages on simulated models, seconds."""
    stamp = place / "made-from"
    now = fingerprint(ROOT)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == now:
        return
    shutil.rmtree(place, ignore_errors=True)
    designed(place / "design")
    piloted(place / "generate")
    stamp.write_text(now, encoding="utf-8")


def make_plugin(place: Path = PLUGIN) -> Path:
    """A copy of what the plugin consists of; its projects stay."""
    kept = shutil.ignore_patterns("__pycache__", ".*_cache", "data")
    for part in PARTS:
        shutil.rmtree(place / part, ignore_errors=True)
        shutil.copytree(ROOT / part, place / part, symlinks=True, ignore=kept)
    return place


def fingerprint(root: Path) -> str:
    """Of all files that a project is made from."""
    files = sorted(
        path for part in ("code", "examples") for path in (root / part).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )  # fmt: skip
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def designed(root: Path) -> Any:
    from finetune_skills.rehearsal import bench, steps

    done = bench.Rehearsal(root, root.parent / "scratch")
    steps.make_project(done)
    for gate in DESIGN:
        steps.pass_gate(gate, done)
    return done


def piloted(root: Path) -> None:
    from finetune_skills.rehearsal import bench, steps

    done = designed(root)
    steps.draw("training", ("--count", "40"), done)
    steps.baseline(done)
    steps.approve("baseline", done)
    steps.pilot(done)
    bench.script(done.root, "assess.py")


# ── what it would cost ────────────────────────────────────────────────────────────────────────────


class Tokens(NamedTuple):
    """Calls, and tokens in and out, of one run or of many."""

    calls: int
    into: int
    out: int

    def times(self, count: int) -> "Tokens":
        return Tokens(self.calls * count, self.into * count, self.out * count)


def expected(each: Case) -> Tokens:
    """As many calls as the compliant play has turns; no caching."""
    return of_calls(each, len(each.plays["compliant"]) + 1, [each.skill / "SKILL.md"])


def at_most(each: Case) -> Tokens:
    """All turns used, and every file of the skill read at once."""
    return of_calls(each, each.spec["execution"]["max_turns"], sorted(each.skill.glob("*.md")))


def of_calls(each: Case, calls: int, read: Iterable[Path]) -> Tokens:
    once = CLIENT_TOKENS + len(each.prompt) // 4 + sum(path.stat().st_size // 4 for path in read)
    grown = REPLY_TOKENS * calls * (calls - 1) // 2  # each call reads the replies before it
    return Tokens(calls, once * calls + grown, REPLY_TOKENS * calls)


def total(each: Iterable[Tokens]) -> Tokens:
    return Tokens(*(sum(column) for column in zip(*each, strict=True)))


def dollars(tokens: Tokens, price: Sequence[float] | None) -> str:
    """Never a figure without a price."""
    if not price:
        return "unknown dollars (give --price IN OUT)"
    return f"${cost(tokens, price):,.2f}"


def cost(tokens: Tokens, price: Sequence[float]) -> float:
    return (tokens.into * price[0] + tokens.out * price[1]) / 1_000_000


def listing(cases: Sequence[Case], asked: argparse.Namespace) -> Iterator[str]:
    """The cases by kind, and what all their runs take."""
    for kind in KINDS:
        rows = [each for each in cases if each.kind == kind]
        if rows:
            yield f"{kind} ({len(rows)})"
            yield from (f"  {each.name}: {', '.join(each.graders)}" for each in rows)
    count = asked.runs * (1 + asked.control)
    yield f"\n{len(cases)} cases, {count} runs of each; each call counted in full, as if not cached"
    for word, guess in (("expected", expected), ("at most", at_most)):
        sums = total(guess(each) for each in cases).times(count)
        figures = f"{sums.calls:,} calls, {sums.into:,} tokens in, {sums.out:,} out"
        yield f"{word:<9} {figures}, {dollars(sums, asked.price)}"


# ── asking the client ─────────────────────────────────────────────────────────────────────────────


def client() -> str:
    """A client that has `claude plugin eval`: the tests' own, else the one on the PATH."""
    import slow_parts

    for program in (slow_parts.client("claude-new"), slow_parts.client("claude")):
        done = subprocess.run([program, "plugin", "eval", "--help"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if "--max-cost-usd" in done.stdout:
            return program
    raise Stop("no `claude` with `plugin eval` (2.1.329 has it). Run: make slow-parts")


def filters(asked: argparse.Namespace) -> list[str]:
    return ["--case", asked.case, *(["--tag", asked.tag] if asked.tag else [])]


def evaluate(
    cases: Sequence[Case], out: Path, environment: dict[str, str], *words: str
) -> list[Run]:
    """The runs of these cases that the client made; a price or a wrong key may stop it."""
    plugin = make_plugin()
    make_projects()
    result, names = out / "result.json", {each.name for each in cases}
    command = [client(), "plugin", "eval", str(plugin), "--json", str(result), "--output-dir"]
    command += [str(out), "--trust-plugin", "--no-publish", "--scaffold"]
    command += ["--allow-tools", *GRANTED, *([] if "--ablation" in words else NO_CONTROL), *words]
    done = subprocess.run(command, env=environment, cwd=out, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if not result.is_file():
        raise Stop(f"the client gave no result: {(done.stdout + done.stderr)[-1500:]}")
    told = json.loads(result.read_text(encoding="utf-8"))
    return [run for run in read(told) if run.case in names]


def read(told: dict[str, Any]) -> Iterator[Run]:
    """The runs of a result file; an error stays one, whatever the graders say."""
    for found in told["cases"]:
        for arm, rows in found["arms"].items():
            for row in rows:
                graders = {grader["name"]: grader["passed"] for grader in row["graders"]}
                said = {g["name"]: str(g.get("explanation", "")) for g in row["graders"]}
                error, trace = str(row.get("error") or ""), Path(row.get("tracePath") or "")
                yield Run(found["name"], arm, error, graders, said, trace)


# ── the proof ─────────────────────────────────────────────────────────────────────────────────────


def report_proof(cases: Sequence[Case], asked: argparse.Namespace) -> int:
    findings = prove(cases, asked.jobs, *filters(asked))
    graders = sum(len(each.graders) for each in cases)
    said = f"{len(findings)} findings" if findings else "each seen passing and failing"
    print("\n".join([*findings, f"evals: {len(cases)} cases, {graders} graders; {said}"]))
    return 1 if findings else 0


def prove(cases: Sequence[Case], jobs: int = 2, *words: str) -> list[str]:
    """What is wrong with the graders of these cases, by playing them."""
    findings: list[str] = []
    for side in ("compliant", "violating"):
        with tempfile.TemporaryDirectory(prefix="finetune-evals-") as home:
            findings += judged(cases, side, play(cases, side, Path(home), jobs, *words))
    return findings


def play(cases: Sequence[Case], side: str, home: Path, jobs: int = 2, *words: str) -> list[Run]:
    """One run of each case with the scripted model of this side."""
    from client import environment, played
    from fakes.provider import FakeProvider, Reply, Request

    longest = sorted(cases, key=lambda each: -len(each.prompt))

    def respond(request: Request) -> Reply:
        said = json.dumps(request.body.get("messages", "")) if request.body else ""
        turns = (each.plays[side] for each in longest if json.dumps(each.prompt)[1:-1] in said)
        return played(request, next(turns, []))

    with FakeProvider() as fake:
        fake.respond = respond
        own = environment(home, fake.url)
        words = (*words, "--runs", "1", "--concurrency", str(jobs))
        return evaluate(cases, home, own, *words)


def judged(cases: Sequence[Case], side: str, runs: Sequence[Run]) -> Iterator[str]:
    """Every grader has to pass for the compliant model, and to fail for the other, by looking."""
    if not cases:
        yield "no case was played"
    found = {run.case: run for run in runs}
    for each in cases:
        run = found.get(each.name)
        if run is None or run.error or set(run.graders) != set(each.graders):
            yield f"{each.name}, {side}: {run.error or 'not all graders ran' if run else 'not run'}"
            continue
        for grader, passed in run.graders.items():
            said = run.said[grader]
            if passed != (side == "compliant") or "threw" in said:
                yield f"{each.name}, {side}: {grader} {'passes' if passed else 'fails'}: {said}"


# ── a run with a real model ───────────────────────────────────────────────────────────────────────


def report_run(cases: Sequence[Case], asked: argparse.Namespace) -> int:
    if asked.max_usd is None or not 0 < asked.max_usd < math.inf:
        raise Stop("--run needs --max-usd, above 0")
    sums = total(expected(each) for each in cases).times(asked.runs * (1 + asked.control))
    if asked.price and cost(sums, asked.price) > asked.max_usd:
        raise Stop(f"{dollars(sums, asked.price)} are expected, and --max-usd is {asked.max_usd}")
    out = ROOT / ".cache/evals-runs" / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True)
    words = ["--runs", str(asked.runs), "--max-cost-usd", str(asked.max_usd), *filters(asked)]
    words += ["--concurrency", str(asked.jobs), *(["--model", asked.model] if asked.model else [])]
    words += ["--ablation", "with-without"] if asked.control else []
    with tempfile.TemporaryDirectory(prefix="finetune-evals-") as scratch:
        runs = evaluate(cases, out, dict(os.environ, TMPDIR=scratch), *words, "--keep-temp")
        keep_traces(runs, out)
    lines, failed = verdicts(cases, runs, asked.runs, asked.threshold)
    print("\n".join([*lines, f"every run, to be read: {out}"]))
    print(f"evals: {failed} of {len(cases)} cases failed")
    return 1 if failed else 0


def keep_traces(runs: Sequence[Run], out: Path) -> None:
    """What was said and done in each run; only a person who reads it knows why one failed."""
    for number, run in enumerate(runs, 1):
        if run.trace.is_file():
            shutil.copy(run.trace, out / f"{run.case}.{run.arm}.{number}.jsonl")


def verdicts(
    cases: Sequence[Case], runs: Sequence[Run], wanted: int, threshold: float
) -> tuple[list[str], int]:
    """A line per case, and how many failed; an error and a run that is missing are failures."""
    lines, failed = [], 0
    for each in cases:
        mine = [believed(run, each) for run in runs if run.case == each.name]
        held = sum(run.passed for run in mine if run.arm == "with")
        failed += held < threshold * wanted
        control = [run.passed for run in mine if run.arm != "with"]
        beside = f", without the skills {sum(control)} of {len(control)}" if control else ""
        why = {name for run in mine if run.arm == "with" for name in reasons(run)}
        why |= set() if mine else {"not run"}
        lines.append(f"{each.name}: {held} of {wanted}{beside}  {'; '.join(sorted(why))}".rstrip())
    return lines, failed


def believed(run: Run, each: Case) -> Run:
    """Out of turns is no error where only the loading of a skill counts."""
    only_loading = each.kind in ("trigger", "near-miss")
    return run._replace(error="") if only_loading and TURNS in run.error else run


def reasons(run: Run) -> Iterator[str]:
    if run.error:
        yield f"error: {run.error[:120]}"
    yield from (name for name, passed in run.graders.items() if not passed)


if __name__ == "__main__":
    sys.exit(main())
