"""Runs: every item is accounted for, whatever happens to it, to the others, or to the run."""

import asyncio
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import CODE
from infrastructure import RunReport, StopRun, progress_line, run_all


def run(items: Any, work: Any, **how: Any) -> RunReport[Any, Any]:
    return asyncio.run(run_all(items, work, **{"progress": False, **how}))


# Every item is accounted for


async def act(outcome: str) -> str:
    """Do what the item says."""
    await asyncio.sleep(0)
    if outcome == "fail":
        raise ValueError(outcome)
    if outcome == "stop":
        raise StopRun("the account is empty")
    if outcome == "cancel":
        raise asyncio.CancelledError
    return outcome


OUTCOMES = st.lists(st.sampled_from(["done", "done", "fail", "cancel", "stop"]), max_size=40)


@given(items=OUTCOMES, concurrency=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_done_failed_and_pending_are_all_that_were_given(
    items: list[str], concurrency: int
) -> None:
    numbered = list(enumerate(items))
    report = run(numbered, lambda item: act(item[1]), concurrency=concurrency)
    done, failed = [item for item, _ in report.done], [item for item, _ in report.failed]
    assert sorted(done + failed + report.pending) == numbered
    assert (report.total, bool(report.stopped)) == (len(items), "stop" in items)


@given(items=st.lists(st.sampled_from(["done", "fail", "cancel"]), max_size=40))
@settings(max_examples=80, deadline=None)
def test_a_bad_item_never_costs_another(items: list[str]) -> None:
    report = run(items, act, concurrency=4)
    assert len(report.done) == items.count("done")
    assert (report.pending, len(report.failed)) == ([], len(items) - items.count("done"))
    assert report.exit_code == (1 if report.failed else 0)


def test_a_failed_item_keeps_its_error_and_a_done_one_its_result() -> None:
    report = run(["done", "fail"], act)
    assert report.done == [("done", "done")]
    assert [(item, repr(error)) for item, error in report.failed] == [
        ("fail", "ValueError('fail')")
    ]
    assert report.summary() == "1 done, 1 failed, 0 pending"


def test_items_may_be_anything_and_stand_twice() -> None:
    items: list[Any] = [None, {}, [], "a", "a", 0, ()]

    async def work(item: Any) -> Any:
        return item

    assert len(run(iter(items), work).done) == 7
    assert run([], work).exit_code == 0


# Work-conserving


def test_a_slow_item_does_not_hold_the_others() -> None:
    others = asyncio.Event()
    finished: list[int] = []

    async def work(item: int) -> None:
        if item == 0:
            await others.wait()
        finished.append(item)
        if len(finished) == 99:
            others.set()

    async def both() -> RunReport[int, None]:
        return await asyncio.wait_for(run_all(range(100), work, concurrency=2, progress=False), 10)

    assert len(asyncio.run(both()).done) == 100
    assert finished == [*range(1, 100), 0]


def test_no_more_items_are_worked_on_than_there_are_places() -> None:
    here = most = 0

    async def work(item: int) -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0)
        here -= 1

    run(range(50), work, concurrency=7)
    assert most == 7


# A stop


def test_a_stop_starts_nothing_new_and_lets_what_is_in_flight_finish() -> None:
    started: list[int] = []

    async def work(item: int) -> int:
        started.append(item)
        await asyncio.sleep(0)
        if item == 1:
            raise StopRun("the account is empty")
        await asyncio.sleep(0.01)
        return item

    report = run(range(100), work, concurrency=4)
    assert started == [0, 1, 2, 3]
    assert (sorted(report.done), report.failed) == ([(0, 0), (2, 2), (3, 3)], [])
    assert (report.pending, report.exit_code) == ([1, *range(4, 100)], 2)
    assert "the account is empty" in report.summary()


def test_the_first_stop_is_the_one_that_is_told() -> None:
    async def work(item: int) -> None:
        await asyncio.sleep(item / 1000)
        raise StopRun(f"stop {item}")

    report = run(range(8), work, concurrency=8)
    assert (str(report.stopped), len(report.pending)) == ("stop 0", 8)


# Signals

CHILD = """
import asyncio, pathlib, sys
from infrastructure import run_all

async def work(item):
    if item == 3:
        pathlib.Path("started").touch()
    await asyncio.sleep(float(sys.argv[1]))
    return item

report = asyncio.run(run_all(range(50), work, concurrency=4, drain=float(sys.argv[2])))
print(len(report.done), len(report.failed), len(report.pending))
sys.exit(report.exit_code)
"""


class Child:
    """A run in a process of its own, to which signals are sent once it is at work."""

    def __init__(
        self, folder: Path, each: float, drain: float, wrapper: Sequence[str] = ()
    ) -> None:
        command = [*wrapper, sys.executable, "-c", CHILD, str(each), str(drain)]
        pipe, environment = subprocess.PIPE, {"PYTHONPATH": str(CODE), "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        wait_for((folder / "started").exists)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self) -> tuple[list[int], int, float]:
        """What it printed, its exit code, and the seconds it took from now."""
        started = time.monotonic()
        out, err = self.process.communicate(timeout=30)
        assert "Traceback" not in err, err
        return [int(number) for number in out.split()], self.process.returncode, now() - started


def now() -> float:
    return time.monotonic()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = now() + 20
    while not condition():
        assert now() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_lets_what_is_in_flight_finish_and_is_the_exit_code(
    name: str, tmp_path: Path
) -> None:
    child = Child(tmp_path, each=0.3, drain=10)
    child.send(signal.Signals[name])
    counts, code, seconds = child.ends()
    assert (counts, code) == ([4, 0, 46], 128 + signal.Signals[name])
    assert seconds < 5


def test_what_is_not_finished_after_the_drain_stays_pending(tmp_path: Path) -> None:
    child = Child(tmp_path, each=60, drain=0.2)
    child.send(signal.SIGINT)
    counts, code, seconds = child.ends()
    assert (counts, code) == ([0, 0, 50], 130)
    assert seconds < 5


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    child = Child(tmp_path, each=60, drain=60)
    child.send(signal.SIGINT)
    time.sleep(0.1)
    child.send(signal.SIGINT)
    counts, code, seconds = child.ends()
    assert (counts, code) == ([0, 0, 50], 130)
    assert seconds < 5


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    child = Child(tmp_path, each=0.02, drain=10, wrapper=["nohup"])
    child.send(signal.SIGHUP)
    counts, code, _ = child.ends()
    assert (counts, code) == ([50, 0, 0], 0)


def test_the_handlers_of_the_caller_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(["done"], act)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_another_thread_works_without_signals() -> None:
    async def aside() -> Any:
        return await asyncio.to_thread(run, ["done", "fail"], act)

    assert asyncio.run(aside()).summary() == "1 done, 1 failed, 0 pending"


def test_a_run_that_is_cancelled_from_outside_leaves_no_task_behind() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    async def main() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_all(range(9), work, concurrency=3, progress=False), 0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1
    assert sorted(ended) == [0, 1, 2]


# Progress


def backend(tokens: int, cost: float, unknown: int = 0) -> Any:
    return SimpleNamespace(totals=SimpleNamespace(tokens=tokens, cost=cost, unknown_costs=unknown))


def report_of(done: int, failed: int, total: int) -> RunReport[Any, Any]:
    error = ValueError()
    return RunReport(total, done=[(0, 0)] * done, failed=[(0, error)] * failed)


def test_the_progress_line_shows_what_is_done_in_flight_failed_spent_and_left() -> None:
    line = progress_line(
        "pilot", report_of(3, 1, 10), 2, 20.0, [backend(18_000, 0.05), backend(240, 0.01)]
    )
    assert line == (
        "pilot  [###.......] 3/10 done  2 in flight  1 failed  18,240 tok  $0.06  about 30 s left"
    )


def test_a_cost_that_is_not_known_is_not_shown_as_a_number() -> None:
    line = progress_line("pilot", report_of(3, 0, 5), 1, 3.0, [backend(100, 0.0, unknown=2)])
    assert "cost unknown" in line
    assert "$" not in line


@pytest.mark.parametrize(("done", "failed", "total"), [(0, 0, 0), (0, 0, 5), (0, 3, 5), (5, 0, 5)])
def test_the_progress_line_has_a_bar_of_ten_whatever_is_done(
    done: int, failed: int, total: int
) -> None:
    line = progress_line("pilot", report_of(done, failed, total), 0, 1.0, [])
    assert re.search(r"\[[#.]{10}\]", line)
    assert f"{done}/{total} done" in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_usual_line_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the terminal is wide would leave its wrapped part behind on every rewrite."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "80")
    many = [backend(123_456_789, 1234.56)]
    run(["done"] * 300, act, label="generate pilot", backends=many, progress=True)
    lines = re.split(r"\r\x1b\[K|\n", shown.getvalue())
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80


def test_a_log_file_gets_one_line_at_the_end_and_no_control_codes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(["done"] * 20 + ["fail"], act, label="pilot", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "pilot  [#########.] 20/21 done  0 in flight  1 failed\n"


CLOSED = """
import asyncio, sys
from infrastructure import append_checkpoint, run_all

async def work(item):
    append_checkpoint("done.jsonl", {"id": str(item)})

report = asyncio.run(run_all(range(20), work, label="pilot"))
sys.exit(report.exit_code)
"""


@pytest.mark.parametrize("where", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_closed_terminal_costs_no_result(where: str, tmp_path: Path) -> None:
    command = f'"$0" -c "$1" {where}'
    environment = {"PYTHONPATH": str(CODE), "PATH": "/usr/bin:/bin"}
    shell = ["sh", "-c", command, sys.executable, CLOSED]
    done = subprocess.run(shell, cwd=tmp_path, env=environment, check=False, timeout=30)
    assert (tmp_path / "done.jsonl").read_bytes().count(b"\n") == 20
    # 120 is Python's own word for a stream that it could not flush at the end.
    assert done.returncode == (120 if "full" in where else 0)
