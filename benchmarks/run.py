"""The benchmarks: `python benchmarks/run.py [--quick] [--only NAME ...] [--json OUT]`.

Every client runs in a fresh process, against a fake server in a process of its own, all on this
machine. Clients that are compared take turns (A B C A B C ...) and the median counts. CPU seconds
cover the job alone; wall time is only ever judged as a multiple of what the latency, the rate limit
and the slots allow.

Exit 0: every target is met. 1: a target is missed. 2: a run failed, or nothing was measured.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "tests" / "fakes" / "provider.py"
JOBS = HERE / "jobs.py"

PACKAGES = ("aiohttp", "openai", "anthropic", "google-genai", "httpx2", "pydantic", "tenacity")
PACKAGES += ("numpy", "datasketch", "scikit-learn")
SDKS = ("openai", "anthropic", "google")
SLOTS = 64
LATENCY = 0.05
FAULTS = {"share_500": 0.05, "share_drop": 0.02, "share_garbage": 0.02, "share_empty": 0.01}
HISTORY_LIMIT = 20_000  # bytes

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table; `least` turns the target into a lower bound."""

    name: str
    measured: float
    target: float | None = None
    least: bool = False
    form: str = "{:.2f}"

    @property
    def met(self) -> bool | None:
        """None without a target; a figure that is not a number meets nothing."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.least else self.measured <= self.target

    def __str__(self) -> str:
        verdict = {None: "no target", True: "ok", False: "MISSED"}[self.met]
        sign = ">=" if self.least else "<="
        target = "-" if self.target is None else f"{sign} {self.form.format(self.target)}"
        return f"{self.name:<62}{self.form.format(self.measured):>12}{target:>12}  {verdict}"


@dataclass
class Bench:
    """Starts the jobs and keeps what they measured."""

    url: str
    quick: bool
    runs: list[Figures] = field(default_factory=list)

    @property
    def times(self) -> int:
        return 1 if self.quick else 3

    def in_turns(self, specs: dict[str, Figures], times: int | None = None) -> dict[str, "Samples"]:
        """Every job so many times, A B C A B C."""
        samples = {name: Samples(spec) for name, spec in specs.items()}
        for _ in range(times or self.times):
            for name, spec in specs.items():
                samples[name].all.append(self.run(name, spec))
        return samples

    def run(self, name: str, spec: Figures) -> Figures:
        given = json.dumps({"url": self.url, **spec})
        child = subprocess.run(
            [sys.executable, str(JOBS), given], capture_output=True, text=True, timeout=600
        )
        if child.returncode:
            raise RunFailed(f"{name}: {child.stderr.strip()[-2000:]}")
        figures: Figures = json.loads(child.stdout)
        self.runs.append({"name": name, "spec": spec, "load_average": os.getloadavg()[0]} | figures)
        print(f"  {name}: {brief(figures)}", file=sys.stderr)
        return figures


class RunFailed(Exception):
    """A job ended with an error instead of figures."""


def brief(figures: Figures) -> str:
    shown = {key: value for key, value in figures.items() if isinstance(value, float | int)}
    return " ".join(f"{key}={value:.5g}" for key, value in shown.items()) + (
        f" failed={figures['failed']}" if figures.get("failed") else ""
    )


@dataclass
class Samples:
    """The repetitions of one job."""

    spec: Figures
    all: list[Figures] = field(default_factory=list)

    def median(self, figure: Callable[[Figures], float]) -> float:
        return statistics.median(map(figure, self.all))

    @property
    def calls(self) -> int:
        each = self.spec.get("judges") or max(1, 2 * int(self.spec.get("exchanges", 0)))
        return int(self.spec["items"]) * int(each)

    @property
    def cpu(self) -> float:
        """CPU seconds per 1,000 calls."""
        return self.median(lambda run: run["cpu_s"]) / self.calls * 1000

    def over(self, limit: float) -> float:
        """Wall time as a multiple of the limit."""
        return self.median(lambda run: run["wall_s"]) / limit

    @property
    def lost(self) -> int:
        """Of all repetitions together: a median would hide a loss."""
        return sum(run["lost"] for run in self.all)

    def share(self, counter: str) -> float:
        return self.median(lambda run: run["stats"][counter]) / self.calls

    def most(self, counter: str) -> float:
        return max(float(run["stats"][counter]) for run in self.all)

    def least(self, counter: str) -> float:
        return min(float(run["stats"][counter]) for run in self.all)


def ratio(one: Samples, other: Samples, figure: str = "cpu_s") -> float:
    """Of neighbours in time, so that a busy moment meets both."""
    pairs = zip(one.all, other.all, strict=True)
    return float(statistics.median(a[figure] / b[figure] for a, b in pairs))


# == what is measured ==============================================================================


def bench_calls(bench: Bench) -> Iterator[Row]:
    """Single calls through `local`, beside a bare aiohttp loop."""
    common = {"job": "calls", "items": 2000, "load": {"latency": LATENCY}}
    runs = bench.in_turns(
        {
            "bare aiohttp": {**common, "client": "bare:aiohttp"},
            "local": {**common, "client": "kernel:local"},
            "local with a journal": {**common, "client": "kernel:local", "journal": True},
        }
    )
    bare, local, journal = runs.values()
    limit = math.ceil(local.calls / SLOTS) * LATENCY
    yield Row("local, single calls: wall / limit", local.over(limit), 1.2)
    yield Row("local, single calls: CPU s per 1,000 calls", local.cpu, 0.3, form="{:.3f}")
    yield Row("local, single calls: CPU / bare aiohttp", ratio(local, bare))
    yield Row("local, single calls: lost", local.lost, 0, form="{:.0f}")
    yield Row("bare aiohttp, single calls: wall / limit", bare.over(limit))
    yield Row("bare aiohttp, single calls: CPU s per 1,000 calls", bare.cpu, form="{:.3f}")
    yield Row("local with a journal: wall / limit", journal.over(limit))
    yield Row("local with a journal: CPU s per 1,000 calls", journal.cpu, form="{:.3f}")
    yield Row("local with a journal: CPU / bare aiohttp", ratio(journal, bare))


def bench_conversations(bench: Bench) -> Iterator[Row]:
    """Two speakers in turns, ten exchanges each, with a history that grows."""
    common: Figures = {"job": "calls", "items": 50, "exchanges": 10}
    common["load"] = {"latency": LATENCY, "size": 950}
    runs = bench.in_turns(
        {
            "bare aiohttp": {**common, "client": "bare:aiohttp"},
            "local": {**common, "client": "kernel:local"},
        }
    )
    bare, local = runs.values()
    limit = 2 * common["exchanges"] * LATENCY
    yield Row("local, conversations: wall / limit", local.over(limit), 1.2)
    yield Row("local, conversations: CPU s per 1,000 calls", local.cpu, form="{:.3f}")
    yield Row("local, conversations: CPU / bare aiohttp", ratio(local, bare))
    yield Row("local, conversations: lost", local.lost, 0, form="{:.0f}")
    yield Row("bare aiohttp, conversations: wall / limit", bare.over(limit))
    yield Row("bare aiohttp, conversations: CPU s per 1,000 calls", bare.cpu, form="{:.3f}")
    history = local.median(lambda run: run["history_bytes"])
    yield Row("longest history sent, bytes", history, HISTORY_LIMIT, form="{:.0f}")


def bench_generate(bench: Bench) -> Iterator[Row]:
    """200 conversations of ten exchanges: two agents in turns through `local`; the same with every
    call journalled; and the stage, which also draws, fills prompts, filters and writes transcripts.
    The 0.4 s were set for the first; the stage is held to them as well and has never met them. On a
    busy machine the ratio says more than the seconds; 2.0 and 3.5 are what was measured, with room.
    """
    spec: Figures = {"items": 200, "exchanges": 10, "at_once": 200}
    spec["load"] = {"latency": LATENCY, "size": 400, "texts": 997}
    agents = spec | {"job": "calls", "client": "kernel:local"}
    runs = bench.in_turns(
        {
            "bare aiohttp": agents | {"client": "bare:aiohttp"},
            "two agents": agents,
            "two agents, journalled": agents | {"journal": True},
            "generate": spec | {"job": "generate"},
        }
    )
    bare = runs.pop("bare aiohttp")
    yield Row("bare aiohttp: CPU s per 1,000 calls", bare.cpu, form="{:.3f}")
    limit = math.ceil(bare.calls / SLOTS) * LATENCY
    times = {"two agents": 1.5, "two agents, journalled": 2.0, "generate": 3.5}
    for name, found in runs.items():
        yield Row(f"{name}: wall / limit", found.over(limit), 1.2)
        yield Row(f"{name}: CPU s per 1,000 calls", found.cpu, 0.4, form="{:.3f}")
        yield Row(f"{name}: CPU / bare aiohttp", ratio(found, bare), times[name])
        yield Row(f"{name}: calls answered", found.least("ok"), 4000, least=True, form="{:.0f}")
        yield Row(f"{name}: lost", found.lost, 0, form="{:.0f}")


JUDGING = 0.2  # seconds: a judge that answers 14 criteria writes about 800 tokens


def bench_assess(bench: Bench) -> Iterator[Row]:
    """1,000 transcripts of ten exchanges, three judges with 21 calls in flight each, and all that
    the stage does to each. At 50 ms its own work is what is measured: that has no target."""
    spec: Figures = {"job": "assess", "items": 1000, "judges": 3}
    limits = {"assess": math.ceil(1000 / (SLOTS // 3)) * JUDGING, "assess, 300 req/s": 3000 / 300}
    limits |= {"assess, faults": limits["assess"], "assess, 50 ms": limits["assess"] / 4}
    quiet = {"latency": 0.5 * JUDGING, "jitter": JUDGING}  # on average; no two replies take as long
    loads = {
        "assess": quiet,
        "assess, 300 req/s": quiet | {"rate": 300, "burst": 50, "retry_after": "1"},
        "assess, faults": quiet | FAULTS,
        "assess, 50 ms": {"latency": LATENCY},
    }
    runs = bench.in_turns({name: spec | {"load": load} for name, load in loads.items()})
    for name, made in runs.items():
        bound = {"assess": 1.2, "assess, 300 req/s": 1.2 + 1 / limits["assess, 300 req/s"]}
        yield Row(f"{name}: wall / limit", made.over(limits[name]), bound.get(name))
        yield Row(f"{name}: CPU s per 1,000 calls", made.cpu, form="{:.3f}")
        yield Row(f"{name}: verdicts that are lost", made.lost, 0, form="{:.0f}")
    yield Row("assess: transcripts", runs["assess"].median(lambda r: r["rows"]), 1000, least=True,
              form="{:.0f}")  # fmt: skip


def bench_sdks(bench: Bench) -> Iterator[Row]:
    """Each SDK through the kernel, beside the bare SDK."""
    common = {"job": "calls", "items": 1000, "load": {"latency": LATENCY}}
    for sdk in SDKS:
        runs = bench.in_turns(
            {
                f"bare {sdk}": {**common, "client": f"bare:{sdk}"},
                f"kernel {sdk}": {**common, "client": f"kernel:{sdk}"},
            }
        )
        bare, kernel = runs.values()
        yield Row(f"{sdk}: CPU / bare SDK", ratio(kernel, bare), 1.15)
        yield Row(f"{sdk}: CPU s per 1,000 calls, bare SDK", bare.cpu, form="{:.3f}")
        yield Row(f"{sdk}: lost", kernel.lost, 0, form="{:.0f}")


def bench_limits(bench: Bench) -> Iterator[Row]:
    """A server that answers 429 with Retry-After 1 above its rate."""
    one = limited(bench, 1000, rate=200, burst=20)
    bound = one.spec["items"] / 200
    yield Row("200 req/s allowed: lost", one.lost, 0, form="{:.0f}")
    # One Retry-After on top: the last caller may have to wait one out.
    yield Row("200 req/s allowed: wall / limit", one.over(bound), 1.2 + 1 / bound)
    yield Row("200 req/s allowed: 429s per call", one.share("limited"), 0.25)
    other = limited(bench, 500, rate=50, burst=5)
    bound = other.spec["items"] / 50
    yield Row("50 req/s allowed: lost", other.lost, 0, form="{:.0f}")
    yield Row("50 req/s allowed: wall / limit", other.over(bound))
    yield Row("50 req/s allowed: 429s per call", other.share("limited"))


def limited(bench: Bench, items: int, rate: float, burst: float) -> Samples:
    load = {"latency": LATENCY, "rate": rate, "burst": burst, "retry_after": "1"}
    spec = {"job": "calls", "client": "kernel:local", "items": items, "load": load}
    name = f"local at {rate} req/s"
    return bench.in_turns({name: spec})[name]


def bench_faults(bench: Bench) -> Iterator[Row]:
    """5 % of 500s, 2 % dropped connections, 2 % bodies that are not JSON, 1 % without text."""
    common = {"job": "calls", "items": 500, "load": {"latency": LATENCY, **FAULTS}}
    kinds = ("local", *SDKS)
    runs = bench.in_turns(
        {f"{kind} with faults": {**common, "client": f"kernel:{kind}"} for kind in kinds}
    )
    for name, samples in runs.items():
        hit = samples.median(lambda run: sum(run["stats"][fate] for fate in FATES))
        yield Row(f"{name}: lost", samples.lost, 0, form="{:.0f}")
        yield Row(f"{name}: faults that the server sent", hit, 1, least=True, form="{:.0f}")
        yield Row(f"{name}: calls answered twice", samples.most("twice"), form="{:.0f}")


FATES = ("error", "dropped", "page", "torn", "empty")


def bench_jitter(bench: Bench) -> Iterator[Row]:
    """Answers after 50 to 950 ms: a barrier between batches would show here."""
    load = {"latency": 0.05, "jitter": 0.9}
    common = {"job": "calls", "items": 1000, "load": load}
    runs = bench.in_turns(
        {
            "bare aiohttp, 50 to 950 ms": {**common, "client": "bare:aiohttp"},
            "local, 50 to 950 ms": {**common, "client": "kernel:local"},
        }
    )
    for name, samples in runs.items():
        work = samples.median(lambda run: run["wall_s"] * SLOTS / run["stats"]["waited_s"])
        yield Row(f"{name}: wall / limit", work, 1.15 if name.startswith("local") else None)


def bench_tokens(bench: Bench) -> Iterator[Row]:
    """Counts of every prefix of a conversation, against counting each from its start."""
    for exchanges, target in ((50, 25.0), (100, 50.0)):
        for tokenizer in ("tiktoken", "tokenizer.json", "chat template"):
            name = f"prefixes, {exchanges} exchanges, {tokenizer}"
            spec = {"job": "prefixes", "exchanges": exchanges, "target": tokenizer}
            samples = bench.in_turns({name: spec})[name]
            # A template has to be rendered for every prefix, whichever way tokens are counted.
            goal = None if tokenizer == "chat template" else target
            gain = samples.median(lambda run: run["ratio"])
            yield Row(f"{name}: times faster", gain, goal, least=True, form="{:.1f}")
            equal = min(run["equal"] for run in samples.all)
            yield Row(f"{name}: equal results", equal, 1, least=True, form="{:.0f}")
    system = samples.all[0]["system_tokens"]
    yield Row("prefixes: tokens of the system prompt", system, form="{:.0f}")


def bench_appends(bench: Bench) -> Iterator[Row]:
    """Ways to append a row, on the disk when the call returns, and reading the file back."""
    common = {"job": "appends", "items": 4000}
    hows = {
        "by hand": "opened and synced per row, by hand",
        "opened": "append_checkpoint, opened and synced per row",
        "kept": "Appender, kept open, synced per row",
        "unsynced": "Appender, kept open, not synced",
        "together": "Journal, 64 calls of a python model at once",
    }
    runs = bench.in_turns({hows[how]: {**common, "how": how} for how in hows})
    for name, samples in runs.items():
        rows = samples.median(lambda run: run["rows_per_cpu_s"])
        yield Row(f"{name}: rows per CPU s", rows, form="{:,.0f}")
    kept = runs[hows["kept"]]
    reload = kept.median(lambda run: run["reload_per_cpu_s"])
    yield Row("reload: rows per CPU s", reload, form="{:,.0f}")
    share = kept.median(lambda run: run["reload_over_json"])
    yield Row("reload: CPU / a bare json.loads loop", share)
    lost = sum(samples.lost for samples in runs.values())
    yield Row("appends: rows lost", lost, 0, form="{:.0f}")
    yield Row("bytes per row", kept.all[0]["row_bytes"], form="{:,.0f}")


def bench_review(bench: Bench) -> Iterator[Row]:
    """CPU of server and client for one view of 1,000 transcripts, every tenth of 100 exchanges."""
    name = "review, 1,000 transcripts"
    samples = bench.in_turns({name: {"job": "review", "items": 1000}})[name]
    for figure, what in {
        "first_s": "first view of the queue",
        "queue_s": "a later view of the queue, slowest of 5",
        "step_s": "step to the next, 12 exchanges, slowest of 8",
        "long_step_s": "step to the next, 100 exchanges, slowest of 8",
    }.items():
        spent = max(run[figure] for run in samples.all)
        yield Row(f"review: {what}: CPU s", spent, 0.1, form="{:.3f}")
    start = samples.median(lambda run: run["start_s"])
    yield Row("review: reading everything at the start: CPU s", start)


def bench_rehearse(bench: Bench) -> Iterator[Row]:
    """The whole rehearsal; its own count of CPU seconds, those of its children included."""
    command = [sys.executable, "-m", "finetune_skills.cli", "rehearse", "--json"]
    spent, missed = [], 0
    for _ in range(bench.times):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        told = json.loads(done.stdout)
        spent.append(float(told["cpu_seconds"]))
        missed += not told["passed"]
    yield Row("rehearse: CPU s", statistics.median(spent), 60.0, form="{:.1f}")
    yield Row("rehearse: runs that missed something", missed, 0, form="{:.0f}")


def bench_audit(bench: Bench) -> Iterator[Row]:
    """Copies and phrases in a set, beside datasketch and CountVectorizer; what was planted."""
    known = {"datasketch": version_of("datasketch"), "sklearn": version_of("scikit-learn")}
    lacking = [name for name, version in known.items() if version == "not installed"]
    if lacking:
        raise RunFailed(f"audit: {', '.join(lacking)} missing. Run: pip install -e '.[bench]'")
    for words in (150, 500):
        spec = {"job": "duplicates", "items": 5000, "words": words}
        ours, other = in_pairs(bench, spec, "datasketch", f"copies, {words} words")
        gain = ratio(ours, other, "rows_per_cpu_s")
        name = f"copies, texts of {words} words"
        yield Row(f"{name}: rows per CPU s / datasketch", gain, 3, least=True)
        yield Row(f"{name}: recall of datasketch", other.median(lambda run: run["recall"]))
    spec = {"job": "phrases", "items": 5000, "words": 60}
    ours, other = in_pairs(bench, spec, "sklearn", "phrases, 5,000")
    gain = ratio(ours, other, "rows_per_cpu_s")
    yield Row("phrases, 5,000: rows per CPU s / CountVectorizer", gain, 5, least=True)
    for count in (10_000, 100_000):
        name = f"copies, {count:,}"
        spec = {"job": "duplicates", "items": count, "words": 150, "how": "ours"}
        one = bench.in_turns({name: spec}, times=1)[name]
        yield Row(f"{name}: recall", one.all[0]["recall"], 0.99, least=True, form="{:.4f}")
        yield Row(f"{name}: false pairs", one.all[0]["false"], 0, form="{:.0f}")
        yield Row(f"{name}: rows per CPU s", one.all[0]["rows_per_cpu_s"], form="{:,.0f}")
    for words, target in ((60, 400), (150, 400)):
        name = f"phrases, 100,000 of {words} words"
        spec = {"job": "phrases", "items": 100_000, "words": words, "how": "ours"}
        one = bench.in_turns({name: spec}, times=1)[name]
        yield Row(f"{name}: MB beside the texts", one.all[0]["mb"], target, form="{:.0f}")
        yield Row(f"{name}: rows per CPU s", one.all[0]["rows_per_cpu_s"], form="{:,.0f}")


def in_pairs(bench: Bench, spec: Figures, other: str, name: str) -> tuple["Samples", "Samples"]:
    """The same job, done by us and by another."""
    hows = {f"{name}, {how}": spec | {"how": how} for how in ("ours", other)}
    one, two = bench.in_turns(hows).values()
    return one, two


def bench_imports(bench: Bench) -> Iterator[Row]:
    """CPU seconds of `import infrastructure` in a fresh process."""
    spec = {"job": "import", "module": "infrastructure"}
    bench.run("import, to compile it", spec)
    cost = bench.in_turns({"import": spec}, times=5)["import"].median(lambda run: run["cpu_s"])
    yield Row("import infrastructure: CPU s", cost, 0.2, form="{:.3f}")


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "calls": bench_calls,
    "conversations": bench_conversations,
    "generate": bench_generate,
    "assess": bench_assess,
    "sdks": bench_sdks,
    "limits": bench_limits,
    "faults": bench_faults,
    "jitter": bench_jitter,
    "tokens": bench_tokens,
    "appends": bench_appends,
    "review": bench_review,
    "rehearse": bench_rehearse,
    "audit": bench_audit,
    "imports": bench_imports,
}


# == one run of all ================================================================================


def main() -> int:
    options = parse()
    about = surroundings()
    rows: list[Row] = []
    try:
        with server() as url:
            bench = Bench(url, options.quick)
            for name in options.only or GROUPS:
                print(f"{name}: {GROUPS[name].__doc__}", file=sys.stderr)
                rows += GROUPS[name](bench)
    except RunFailed as failure:
        print(failure, file=sys.stderr)
        return 2
    about["load_average_after"] = os.getloadavg()[0]
    print(table(rows, about))
    if options.json:
        shown = {"about": about, "rows": [asdict(row) | {"met": row.met} for row in rows]}
        options.json.write_text(json.dumps(shown | {"runs": bench.runs}, indent=1) + "\n")
    return 2 if not rows else int(any(row.met is False for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the kernel against a fake server.")
    parser.add_argument("--quick", action="store_true", help="one repetition instead of three")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write every run to a file")
    return parser.parse_args()


def surroundings() -> Figures:
    """What a reader needs to judge the figures."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load_average_before": os.getloadavg()[0],
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@contextmanager
def server() -> Iterator[str]:
    """The fake server in a process of its own; it ends with us, however we end."""
    command = [sys.executable, str(SERVER), "--port", "0", "--while-stdin-open"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield child.stdout.readline().strip()
        child.stdin.close()


def table(rows: list[Row], about: Figures) -> str:
    versions = [f"{name} {version}" for name, version in about["versions"].items()]
    head = [
        f"{about['at']}  Python {about['python']}  {about['system']}",
        f"load average {about['load_average_before']:.2f} before, "
        f"{about['load_average_after']:.2f} after; {SLOTS} in flight, {1000 * LATENCY:.0f} ms",
        *textwrap.wrap(", ".join(versions), 100),
        "",
        f"{'what':<62}{'measured':>12}{'target':>12}  verdict",
    ]
    missed = sum(row.met is False for row in rows)
    judged = sum(row.met is not None for row in rows)
    return "\n".join([*head, *map(str, rows), "", f"{judged - missed} of {judged} targets met"])


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
