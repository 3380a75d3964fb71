"""The journal: no call is paid twice, by this process, the next one, or two at once."""

import asyncio
import errno
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import infrastructure
from children import child
from faults import bench
from infrastructure import (
    Appender,
    CompletionResult,
    DiskStop,
    Journal,
    StopRun,
    encode_line,
    get_backend,
    iter_records,
    run_all,
)

MODEL = """\
import asyncio, pathlib

async def reply(messages, *, schema=None, scope=""):
    with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
        print(scope, file=calls)
    await asyncio.sleep(60 if messages[-1]["content"] == "wait" else 0)
    return f"answer to {messages[-1]['content']}"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "calls").touch()
    return tmp_path / "journal" / "run.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


def ask(journal: Journal, *scopes: str) -> list[CompletionResult]:
    """One call per scope, all at once."""

    async def together() -> list[CompletionResult]:
        model = get_backend("python:model:reply", root=journal.path.parents[1], journal=journal)
        return await asyncio.gather(*(model.complete("hello", scope=scope) for scope in scopes))

    return asyncio.run(together())


def calls(path: Path) -> list[str]:
    return (path.parents[1] / "calls").read_text().split()


def line(kind: str, key: str, **more: Any) -> bytes:
    return encode_line({"schema": 1, "type": kind, "key": key, "scope": key, **more})


def result(key: str, cost: float | None, **more: Any) -> bytes:
    record = {"content": "x", "model": "m", "usage": {}, "stop_reason": "stop", "cost": cost}
    return line("result", key, worst=1.0, record=record | {"failure": None} | more)


# Results are kept


def test_a_journal_opened_again_answers_without_a_call(path: Path) -> None:
    answers = []
    for _ in range(2):
        with Journal(path) as journal:
            answers += ask(journal, "a", "b")
    assert [answer.replayed for answer in answers] == [False, False, True, True]
    assert {answer.content for answer in answers} == {"answer to hello"}
    assert calls(path) == ["a", "b"]


def test_equal_calls_at_once_are_one_call(journal: Journal) -> None:
    answers = ask(journal, *["a"] * 5)
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True, True]
    assert (calls(journal.path), len(journal)) == (["a"], 1)


def test_an_intent_is_on_the_disk_before_the_call_and_a_result_before_its_answer(
    journal: Journal,
) -> None:
    ask(journal, "a")
    lines = list(iter_records(journal.path))
    assert [record["type"] for record in lines] == ["intent", "result"]
    assert lines[0]["key"] == lines[1]["key"]
    assert lines[1]["record"]["content"] == "answer to hello"


def test_a_torn_tail_is_sealed_and_only_that_call_is_made_again(path: Path) -> None:
    with Journal(path) as journal:
        ask(journal, "a", "b")
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        with Journal(path) as journal:
            ask(journal, "a", "b")
    assert len(calls(path)) == 3
    assert len(journal.report.bad) == 1


def test_a_damaged_answer_is_never_replayed(path: Path) -> None:
    with Journal(path) as journal:
        ask(journal, "a")
    path.write_bytes(path.read_bytes().replace(b"answer to", b"answer of"))
    with Journal(path) as journal:
        assert ask(journal, "a")[0].content == "answer to hello"
    assert (calls(path), [number for number, _ in journal.report.bad]) == (["a", "a"], [2])


def test_journal_and_lock_are_for_their_owner_only(journal: Journal) -> None:
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in journal.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert journal.path.name in modes


# One process at a time

SECOND = """
import sys, time
from infrastructure import Journal, StopRun
started = time.monotonic()
try:
    Journal(sys.argv[1])
except StopRun as stop:
    print(stop, time.monotonic() - started < 1, sep="\\n")
"""


def test_a_second_process_is_refused_within_a_second_and_told_whose_it_is(journal: Journal) -> None:
    said, soon = child("-c", SECOND, journal.path).stdout.splitlines()
    assert f"in use by process {os.getpid()} " in said
    assert soon == "True"


def test_a_second_journal_in_the_same_process_is_refused_too(journal: Journal) -> None:
    with pytest.raises(StopRun, match=f"process {os.getpid()} "):
        Journal(journal.path)


DIES = """
import os, signal, sys
from infrastructure import Journal
journal = Journal(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_dead_holders_journal_is_taken_over(path: Path) -> None:
    assert child("-c", DIES, path).returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert ask(journal, "a")[0].replayed is False


def test_a_closed_journal_is_free_for_others_and_makes_no_call(journal: Journal) -> None:
    journal.close()
    assert child("-c", SECOND, journal.path).stdout == ""
    with pytest.raises(Exception, match="closed"):
        ask(journal, "a")
    assert calls(journal.path) == []


def test_a_journal_that_is_a_link_is_refused_and_keeps_no_lock(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(DiskStop, match="symbolic link"):
        Journal(path)
    path.unlink()
    Journal(path).close()


# The file vanishes, the disk refuses


@pytest.mark.parametrize("change", [os.unlink, lambda path: os.rename(path, f"{path}.old")])
def test_a_journal_deleted_or_renamed_stops_the_run_before_a_call_is_sent(
    journal: Journal, change: Callable[[Path], None]
) -> None:
    ask(journal, "a")
    change(journal.path)
    with pytest.raises(DiskStop, match="moved or deleted"):
        ask(journal, "b")
    assert calls(journal.path) == ["a"]


def test_a_vanished_journal_stops_the_run_also_where_it_would_have_answered(
    journal: Journal,
) -> None:
    ask(journal, "a")
    journal.path.unlink()
    with pytest.raises(StopRun):
        ask(journal, "a")


def full(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stops_the_run_with_its_exit_code_and_sends_nothing_more(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_backend("python:model:reply", root=journal.path.parents[1], journal=journal)
    monkeypatch.setattr(os, "write", full)
    items = [f"s{number}" for number in range(30)]
    report = asyncio.run(
        run_all(items, lambda item: model.complete("hello", scope=item), progress=False)
    )
    assert (report.exit_code, len(report.pending)) == (3, 30)
    assert calls(journal.path) == []


def test_a_run_stopped_by_a_full_disk_goes_on_when_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(path) as journal, monkeypatch.context() as patched:
        ask(journal, "a")
        patched.setattr(os, "write", full)
        with pytest.raises(DiskStop):
            ask(journal, "b")
    with Journal(path) as journal:
        assert [answer.replayed for answer in ask(journal, "a", "b")] == [True, False]
    assert calls(path) == ["a", "b"]


# Many at once


def test_64_calls_at_once_are_written_in_few_whole_batches(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: batches.append(data) or write(fd, data))
    ask(journal, *(f"s{number}" for number in range(64)))
    assert sum(batch.count(b"\n") for batch in batches) == 128
    assert all(batch.endswith(b"}\n") for batch in batches)
    assert len(batches) <= 16


def test_calls_that_come_one_after_the_other_wait_for_no_company(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(infrastructure.time, "sleep", slept.append)
    for number in range(5):
        ask(journal, f"s{number}")
    assert slept == []


def test_calls_that_trickle_in_share_their_writes(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, slept, go = list[int](), list[float](), threading.Event()
    append = Appender.append_bytes

    def counted(file: Appender, data: bytes) -> int:
        written.append(data.count(b"\n"))
        return append(file, data)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        go.wait(30)

    monkeypatch.setattr(Appender, "append_bytes", counted)
    monkeypatch.setattr(infrastructure.time, "sleep", sleep)

    async def trickle() -> None:
        model = get_backend("python:model:reply", root=journal.path.parents[1], journal=journal)
        calls = [asyncio.ensure_future(model.complete("hello", scope=f"a{n}")) for n in range(9)]
        async with asyncio.timeout(30):
            while not slept:  # the writer has met several at once, and waits for more
                await asyncio.sleep(0.001)
        for number in range(40):
            calls.append(asyncio.ensure_future(model.complete("hello", scope=f"b{number}")))
            await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*calls)

    asyncio.run(trickle())
    assert sum(written) == 2 * 49
    assert max(written) >= 40
    assert set(slept) == {Journal.MOMENT}


def test_64_calls_at_once_are_all_there_when_the_journal_is_opened_again(path: Path) -> None:
    scopes = [f"s{number}" for number in range(64)]
    with Journal(path) as journal:
        ask(journal, *scopes)
    with Journal(path) as journal:
        assert all(answer.replayed for answer in ask(journal, *scopes))
    assert (len(journal), journal.unfinished, journal.report.bad) == (64, 0, [])


# Money and unfinished calls


def test_spent_counts_what_was_paid_and_the_worst_case_of_what_never_came_back(path: Path) -> None:
    path.parent.mkdir()
    lost = line("intent", "b", worst=0.25)
    path.write_bytes(line("intent", "a", worst=1.0) + result("a", 0.125) + lost)
    with Journal(path) as journal:
        assert (journal.spent, journal.unfinished) == (0.375, 1)
        assert (len(journal), journal.unknown_costs) == (1, 0)


def test_an_unknown_cost_is_counted_as_unknown_and_never_as_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(result("a", None) + result("b", 0.5))
    with Journal(path) as journal:
        assert (journal.spent, journal.unknown_costs) == (0.5, 1)


def test_an_answer_is_kept_and_a_call_without_one_is_made_again(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(result("a", 0.1, failure="refusal") + result("b", None, failure="timeout"))
    with Journal(path) as journal:
        assert (journal.replay("a") or {})["failure"] == "refusal"
        assert journal.replay("b") is None


def test_a_paid_call_stays_paid_when_it_was_lost_and_made_again(path: Path) -> None:
    path.parent.mkdir()
    lost = line("intent", "a", worst=0.25)
    path.write_bytes(lost + line("intent", "a", worst=0.25) + result("a", 0.125))
    with Journal(path) as journal:
        assert journal.spent == 0.375


IN_FLIGHT = """
import asyncio, os, signal, sys
from pathlib import Path
from infrastructure import Journal, get_backend

async def main(path):
    model = get_backend("python:model:reply", root=path.parents[1], journal=Journal(path))
    await model.complete("hello", scope="done")
    waiting = [asyncio.ensure_future(model.complete("wait", scope=f"s{n}")) for n in range(5)]
    while (path.parents[1] / "calls").read_text().count("\\n") < 6:
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_after_a_kill_the_calls_in_flight_are_known_as_unfinished(path: Path) -> None:
    assert child("-c", IN_FLIGHT, path).returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert (len(journal), journal.unfinished) == (1, 5)
        assert ask(journal, "done")[0].replayed


def test_killed_runs_end_byte_identical_and_repay_only_what_was_in_flight() -> None:
    figures = bench("runs", kills=30, seed=4)
    assert (figures["lost"], figures["duplicated"], figures["different"]) == (0, 0, 0)
    assert figures["repaid"] <= figures["in_flight"]
    assert figures["most_in_flight"] <= figures["concurrency"]
