"""Journal and models together: what makes a call the same one, and what is asked again."""

import asyncio
import dataclasses
import errno
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import fakes.provider as fakes
import infrastructure
from calls import HELLO, KEY, PRICE, WIRED, FastTime, ask, ask_all, model
from fakes.provider import FakeProvider, Reply
from infrastructure import (
    Budget,
    DiskStop,
    Journal,
    ModelFailure,
    StopRun,
    canonical_hash,
    get_backend,
    iter_records,
    run_all,
)

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp:DeprecationWarning")
wired = pytest.mark.parametrize("kind", WIRED)


class Verdict(BaseModel):
    answer: str


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "run.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


# A call that is in the journal is not made again


@wired
def test_a_replayed_call_makes_no_request_and_costs_nothing(
    kind: str, fake: FakeProvider, path: Path
) -> None:
    outcomes, budget = [], Budget(1.0)
    for _ in range(2):
        with Journal(path) as journal:
            backend = model(kind, fake, journal=journal, budget=budget, price=PRICE)
            outcomes.append(ask(backend, scope="t07.assistant", max_tokens=9))
    assert (len(fake.requests), backend.totals.replayed, backend.totals.cost) == (1, 1, 0)
    assert outcomes[1] == dataclasses.replace(outcomes[0], replayed=True)
    assert budget.spent == outcomes[0].cost > 0


@wired
def test_two_equal_calls_at_once_are_one_request(
    kind: str, fake: FakeProvider, journal: Journal
) -> None:
    said = ask_all(model(kind, fake, journal=journal), ["hello", "hello", "bye"], scope="t07")
    assert sorted(answer.content for answer in said) == ["echo: bye", "echo: hello", "echo: hello"]
    assert len(fake.requests) == 2


def test_the_key_is_the_hash_of_the_whole_request(fake: FakeProvider, path: Path) -> None:
    odd = {"temperature": 0.5, "a": {"messages": []}}
    text = '"messages":[] \u2028 caf\u00e9 \U0001f600 \\ \x00'
    with Journal(path) as journal:
        backend = model("local", fake, journal=journal, parameters=odd, label='"messages":[]')
        for scope, most in (("t07", 9), ("t07", 10), ("t\u00e9", 9)):
            ask(backend, text, system=text, scope=scope, max_tokens=most)
    told = [{"role": role, "content": text} for role in ("system", "user")]
    for line, (scope, most) in zip(
        [*iter_records(path)][::2], (("t07", 9), ("t07", 10), ("t\u00e9", 9)), strict=True
    ):
        request = backend._identity() | {"max_tokens": most, "messages": told, "schema": None}
        whole = {"v": 1, "scope": scope, "request": request | {"parameters": odd}}
        assert line["key"] == canonical_hash(whole)


def test_calls_with_and_without_a_schema_have_keys_of_their_own(
    fake: FakeProvider, path: Path
) -> None:
    with Journal(path) as journal:
        backend = model("local", fake, journal=journal)
        call = infrastructure.Call([{"role": "user", "content": "hello"}], None, 9, "s")
        keys = [
            backend._key(dataclasses.replace(call, schema=schema)) for schema in (None, Verdict)
        ]
    request = backend._identity() | {"max_tokens": 9, "messages": call.messages, "parameters": {}}
    for key, schema in zip(keys, (None, infrastructure.strict_schema(Verdict)), strict=True):
        whole = {"v": 1, "scope": "s", "request": request | {"schema": schema}}
        assert key == canonical_hash(whole)


def test_the_text_of_messages_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = infrastructure._Encoded()
    monkeypatch.setattr(kept, "room", 100)
    for text in (*"abc" * 9, "x" * 200):
        assert json.loads(kept["user", text]) == {"role": "user", "content": text}
        assert sum(map(len, kept.values())) <= 100
    assert not kept


def test_without_a_journal_nothing_is_replayed(fake: FakeProvider) -> None:
    backend = model("local", fake)
    assert [ask(backend, scope="s").replayed for _ in range(2)] == [False, False]
    assert len(fake.requests) == 2


ANSWERED = {"refusal": fakes.refusal(), "length": fakes.length_stop(), "tool": fakes.tool_call()}
ANSWERED |= {"filter": fakes.content_filter()}


@wired
@pytest.mark.parametrize("why", ANSWERED)
def test_an_answer_that_was_a_failure_is_replayed_as_the_same_failure(
    kind: str, why: str, fake: FakeProvider, path: Path
) -> None:
    fake.script([ANSWERED[why]])
    failures = []
    for _ in range(2):
        with Journal(path) as journal:
            failures.append(ask(model(kind, fake, journal=journal, price=PRICE), scope="s"))
    assert [type(failure) for failure in failures] == [ModelFailure] * 2
    assert (failures[0].kind, failures[0].cost) == (failures[1].kind, failures[1].cost)
    assert len(fake.requests) == 1


UNANSWERED = {"dropped": fakes.dropped(), "500": fakes.server_error(), "page": fakes.html_page()}
UNANSWERED |= {"blank": fakes.blank_content(), "too long": fakes.context_too_long()}


@wired
@pytest.mark.parametrize("why", UNANSWERED)
def test_a_call_that_got_no_answer_is_made_again(
    kind: str, why: str, fake: FakeProvider, path: Path
) -> None:
    fake.script([UNANSWERED[why]])
    outcomes = []
    for _ in range(2):
        with Journal(path) as journal:
            outcomes.append(ask(model(kind, fake, journal=journal, tries=1), scope="s"))
    assert isinstance(outcomes[0], ModelFailure)
    assert (outcomes[1].content, outcomes[1].replayed) == ("echo: hello", False)


def test_both_rounds_of_a_judgement_that_never_fits_are_replayed(
    fake: FakeProvider, path: Path
) -> None:
    fake.script([Reply("{}"), Reply("[]")])
    failures = []
    for _ in range(2):
        with Journal(path) as journal:
            asked = model("local", fake, journal=journal).complete_structured(
                "Judge it.", Verdict, scope="judge/t07"
            )
            failures.append(asyncio.run(asked))
    assert [failure.kind for failure in failures] == ["schema", "schema"]
    assert len(fake.requests) == 2


# What makes it another call


def again(fake: FakeProvider, path: Path, one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Are these two calls the same one? Each: a question, and options of its backend."""
    for way in (one, two):
        question = {"prompt": "hello", "scope": "s"} | way.get("question", {})
        with Journal(path) as journal:
            backend = model("local", fake, journal=journal, **way.get("options", {}))
            schema = question.pop("schema", None)
            asyncio.run(
                backend.complete_structured(**question, response_model=schema)
                if schema
                else backend.complete(**question)
            )
    return len(fake.requests) == 1


class Longer(Verdict):
    reason: str = Field(description="why")


class Reworded(Verdict):
    answer: str = Field(description="YES or NO")


OTHER_CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scope": ({}, {"scope": "s2"}),
    "message": ({}, {"prompt": "hello!"}),
    "system": ({"system": "Be kind."}, {"system": "Be strict."}),
    "rubric in the prompt": ({"prompt": "Is it kind? 0.8"}, {"prompt": "Is it kind? 0.9"}),
    "max_tokens": ({}, {"max_tokens": 77}),
    "schema": ({"schema": Verdict}, {"schema": Longer}),
    "words of the schema": ({"schema": Verdict}, {"schema": Reworded}),
}


@pytest.mark.parametrize("what", OTHER_CALLS)
def test_what_is_asked_makes_another_call(what: str, fake: FakeProvider, path: Path) -> None:
    fake.respond = lambda request: Reply('{"answer": "YES", "reason": "it is kind"}')
    one, two = ({"question": question} for question in OTHER_CALLS[what])
    assert again(fake, path, one, one)
    assert not again(fake, path, one, two)


async def at_once(seconds: float) -> None:
    """A sleep of its own."""


ANSWER = {  # options that change what a model answers
    "max_tokens": 77,
    "parameters": {"temperature": 0.5},
    "label": "another server",
    "preset": "vllm",
    "base_url": "http://localhost:{port}/v1",
}
RUNTIME = {  # and options that only change how it is asked
    "timeout": 9.0,
    "attempt_timeout": 9.0,
    "tries": 2,
    "max_wait": 9.0,
    "patience": 9.0,
    "concurrency": 3,
    "budget": Budget(5.0),
    "price": PRICE,
    "api_key": "another-key-1234",
    "key_variable": "ANOTHER_KEY",
    "clock": FastTime().clock,
    "sleep": at_once,
}
ELSEWHERE = {"n_ctx", "root", "executable", "journal"}  # each has a test of its own below


def test_every_option_is_known_to_change_the_answer_or_not_to() -> None:
    options = {option.name for option in dataclasses.fields(get_backend("openai:m").o)}
    assert options == ANSWER.keys() | RUNTIME.keys() | ELSEWHERE
    assert not ANSWER.keys() & RUNTIME.keys()


@pytest.mark.parametrize("option", ANSWER)
def test_an_option_that_changes_the_answer_makes_another_call(
    option: str, fake: FakeProvider, path: Path
) -> None:
    value, port = ANSWER[option], fake.url.rpartition(":")[2]
    value = value.format(port=port) if isinstance(value, str) else value
    assert not again(fake, path, {}, {"options": {option: value}})


@pytest.mark.parametrize("option", RUNTIME)
def test_an_option_of_the_runtime_leaves_it_the_same_call(
    option: str, fake: FakeProvider, path: Path
) -> None:
    assert again(fake, path, {}, {"options": {option: RUNTIME[option]}})


@wired
def test_another_model_is_another_call(kind: str, fake: FakeProvider, journal: Journal) -> None:
    for name in ("one", "two", "one"):
        ask(model(kind, fake, model=name, journal=journal), scope="s")
    assert [request.model for request in fake.requests] == ["one", "two"]


def test_another_provider_is_another_call(fake: FakeProvider, journal: Journal) -> None:
    for kind in WIRED:
        ask(model(kind, fake, journal=journal), scope="s")
    assert [request.provider for request in fake.requests] == [
        "openai",
        "openai",
        "anthropic",
        "google",
    ]


def test_another_port_of_a_labelled_server_is_the_same_call(path: Path) -> None:
    for _ in range(2):
        with FakeProvider() as fake, Journal(path) as journal:
            said = ask(model("local", fake, journal=journal, label="judge"), scope="s")
    assert said.replayed
    assert fake.requests == []


def test_the_source_of_a_python_model_counts_and_its_folder_does_not(
    tmp_path: Path, journal: Journal
) -> None:
    replayed = []
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        source = f"def reply(messages, *, schema=None, scope=''): return '{text}'"
        (tmp_path / folder / "mine.py").write_text(source)
        own = get_backend("python:mine:reply", root=tmp_path / folder, journal=journal)
        replayed.append(ask(own, scope="s").replayed)
    assert replayed == [False, True, False]


PROGRAM = """#!/bin/sh
cat > /dev/null
echo '{"is_error": false, "result": "hi", "stop_reason": "end_turn", "total_cost_usd": 0.1}'
"""


def test_another_path_of_the_same_program_is_the_same_call(
    tmp_path: Path, journal: Journal
) -> None:
    replayed = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(PROGRAM)
        (tmp_path / name).chmod(0o700)
        backend = get_backend("claude:m", executable=str(tmp_path / name), journal=journal)
        replayed.append(ask(backend, scope="s").replayed)
    assert replayed == [False, True]


class Llama:
    """As much of llama-cpp-python as a call needs."""

    n_tokens = 4

    def __init__(self, path: str, n_ctx: int, verbose: bool) -> None:
        self.path = path

    def create_chat_completion(self, **asked: Any) -> Iterator[dict[str, Any]]:
        yield {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}


def test_the_content_and_context_of_a_gguf_count_and_its_path_does_not(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama))
    replayed = []
    for name, content, room in (("a", "x", 8), ("b", "x", 8), ("b", "y", 8), ("b", "y", 16)):
        (tmp_path / name).write_text(content * (3 if content == "y" else 1))
        own = get_backend(f"llamacpp:{tmp_path / name}", n_ctx=room, journal=journal)
        replayed.append(ask(own, scope="s").replayed)
    assert replayed == [False, True, False, False]


# On the disk in time


@wired
def test_the_intent_is_on_the_disk_before_the_request_and_the_result_before_the_reply(
    kind: str, fake: FakeProvider, path: Path, journal: Journal
) -> None:
    seen = []
    fake.respond = lambda request: seen.extend(iter_records(path)) or Reply("hi")
    ask(model(kind, fake, journal=journal, price=PRICE), scope="t07", max_tokens=100)
    assert [(line["type"], line["scope"]) for line in seen] == [("intent", "t07")]
    assert 0.1 < seen[0]["worst"] < 0.2
    result = list(iter_records(path))[1]
    assert (result["type"], result["key"]) == ("result", seen[0]["key"])
    assert result["record"]["content"] == "hi"


def test_a_cancelled_call_stays_an_intent_whose_worst_case_counts(
    fake: FakeProvider, path: Path
) -> None:
    fake.script([Reply(never=True)])
    with Journal(path) as journal:
        call = model("local", fake, journal=journal, price=PRICE).chat(HELLO, max_tokens=100)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(call, 0.1))
    with Journal(path) as journal:
        assert journal.unfinished == 1
        assert 0.1 < journal.spent < 0.2


@wired
def test_calls_that_were_refused_or_never_sent_count_as_nothing_spent(
    kind: str, fake: FakeProvider, path: Path
) -> None:
    fake.script([fakes.unauthorized()], repeat_last=True)
    for _ in range(2):
        with Journal(path) as journal:
            ask(model(kind, fake, journal=journal, price=PRICE), scope="s", max_tokens=100)
            assert journal.spent == 0


def test_calls_that_a_budget_refused_count_as_nothing_spent(fake: FakeProvider, path: Path) -> None:
    for _ in range(2):
        with Journal(path) as journal:
            tight = {"journal": journal, "budget": Budget(0.01), "price": PRICE}
            ask(model("local", fake, **tight), scope="s", max_tokens=100)
            assert (journal.spent, fake.requests) == (0, [])


def full(fd: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@wired
def test_a_disk_that_fills_up_during_a_call_stops_the_run_and_sends_nothing_more(
    kind: str, fake: FakeProvider, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = model(kind, fake, journal=journal)
    fake.respond = lambda request: monkeypatch.setattr(os, "write", full) or Reply()
    work = lambda item: backend.complete("hello", scope=f"s{item}")  # noqa: E731
    report = asyncio.run(run_all(range(20), work, concurrency=1, progress=False))
    monkeypatch.undo()
    assert isinstance(report.stopped, DiskStop)
    assert (len(fake.requests), len(report.pending), report.exit_code) == (1, 20, 3)


# A conversation that stops half-way goes on where it stopped


async def converse(backend: Any, exchanges: int) -> list[str]:
    turns, said = [], []
    for number in range(1, exchanges + 1):
        turns.append({"role": "user", "content": f"question {number}"})
        reply = await backend.chat(turns, scope=f"t{number:02}.assistant")
        turns.append({"role": "assistant", "content": reply.content})
        said.append(reply.content)
    return said


@wired
def test_a_limit_in_exchange_12_resumes_at_exchange_12(
    kind: str, fake: FakeProvider, path: Path
) -> None:
    fake.script([Reply(f"answer {n}") for n in range(1, 12)] + [fakes.rate_limited("86400")])
    with Journal(path) as journal, pytest.raises(StopRun, match="86400"):
        asyncio.run(converse(model(kind, fake, journal=journal), 20))
    fake.script([Reply(f"answer {n}") for n in range(12, 21)])
    with Journal(path) as journal:
        said = asyncio.run(converse(model(kind, fake, journal=journal), 20))
    assert said == [f"answer {number}" for number in range(1, 21)]
    assert [request.text for request in fake.requests[11:13]] == ["question 12"] * 2
    assert len(fake.requests) == 12 + 9


def test_the_key_of_the_account_is_not_in_the_journal(fake: FakeProvider, path: Path) -> None:
    fake.respond = lambda request: Reply(request.headers["authorization"])
    with Journal(path) as journal:
        said = ask(model("local", fake, journal=journal), scope="s")
    assert said.content == "Bearer [key]"
    assert KEY.encode() not in path.read_bytes()
