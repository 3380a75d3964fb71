"""Model calls: what a provider may do wrong, through every kind of model, over real sockets."""

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

import fakes.provider as fakes
from calls import HELLO, KEY, WIRED, FastTime, ask, ask_all, model
from children import child
from fakes.provider import FakeProvider, Load, Reply, Usage
from infrastructure import (
    CompletionResult,
    FinetuneError,
    LocalBackend,
    ModelFailure,
    StopRun,
    fault_of,
    get_backend,
    parse_delay,
    retry_after,
    run_all,
)
from infrastructure import Usage as Used

# google-genai derives from aiohttp's session, which aiohttp discourages on every first call.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp:DeprecationWarning")
wired = pytest.mark.parametrize("kind", WIRED)


class Verdict(BaseModel):
    answer: str
    reason: str


GOOD = '{"answer": "YES", "reason": "it is kind"}'


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


def judge(backend: Any, **how: Any) -> Any:
    return asyncio.run(backend.complete_structured("Judge it.", Verdict, **how))


# An answer


@wired
def test_a_reply_comes_with_its_text_model_stop_reason_and_usage(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply("hi there", usage=Usage(12, 7, reasoning=3))])
    said = ask(model(kind, fake), system="Be kind.")
    assert (said.content, said.model, said.stop_reason) == ("hi there", "fake-model", "stop")
    assert (said.usage.input_tokens, said.usage.output_tokens) == (12, 7)
    assert (said.usage.reasoning_tokens, said.usage.estimated, said.notes) == (3, False, ())


@wired
def test_a_conversation_is_sent_whole_and_in_order(kind: str, fake: FakeProvider) -> None:
    said = [("user", "one"), ("assistant", "two"), ("user", "three")]
    turns = [{"role": role, "content": text} for role, text in said]
    asyncio.run(model(kind, fake).chat([{"role": "system", "content": "Be kind."}, *turns]))
    sent = fake.requests[0].raw.decode()
    assert [sent.count(text) for text in ("Be kind.", "one", "two", "three")] == [1] * 4
    assert sent.index("one") < sent.index("two") < sent.index("three")


@wired
def test_usage_that_is_missing_is_estimated_and_flagged(kind: str, fake: FakeProvider) -> None:
    fake.script([Reply("a reply of some words", usage=None)])
    usage = ask(model(kind, fake), "a question of some words").usage
    assert usage.estimated
    assert 3 <= usage.input_tokens <= 20
    assert 3 <= usage.output_tokens <= 20


@wired
def test_another_model_that_answers_is_named_with_the_one_that_was_asked(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply(model="another-9"), Reply(model="fake-model-2026-01-31")])
    backend = model(kind, fake)
    assert ask(backend).notes == ("asked fake-model, answered by another-9",)
    assert ask(backend).notes == ()  # a dated name of the same model


@wired
def test_lone_surrogates_and_nuls_arrive_as_text_that_can_be_stored(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply("a\ud800b\x00c")])
    said = ask(model(kind, fake), "d\udfffe\x00f")
    assert said.content.encode() == b"a?b\x00c"
    assert fake.requests[0].text == "d?e\x00f"


def test_a_reply_of_more_than_ten_million_characters_is_a_failure(fake: FakeProvider) -> None:
    fake.script([Reply("x" * 10_000_001)])
    backend = model("local", fake)
    assert ask(backend).kind == "too_long"
    assert backend.totals.failures == {"too_long": 1}


# Rate limits: waited for in the call's own slot, never a failure

ASKED = {  # how the provider asks to wait: the reply, and the seconds waited
    "seconds": (fakes.rate_limited("7"), 7, 10.5),
    "milliseconds": (fakes.rate_limited("250ms"), 0.25, 0.375),
    "an HTTP date": (lambda: fakes.rate_limited(fakes.http_date(60)), 55, 90),
    "RetryInfo": (fakes.google_retry_info("12s"), 12, 18),
    "text": (fakes.google_retry_info("500ms"), 0.5, 0.75),
    "the past": (fakes.rate_limited("-5"), 0, 0),
    "nothing": (fakes.rate_limited(None), 0, 1),
}


@wired
@pytest.mark.parametrize("how", ASKED)
def test_a_rate_limit_is_waited_for_as_the_provider_asks(
    kind: str, how: str, fake: FakeProvider
) -> None:
    reply, least, most = ASKED[how]
    fake.script([reply() if callable(reply) else reply])
    passed = FastTime()
    assert ask(model(kind, fake, passed)).content == "echo: hello"
    assert least <= passed.now <= most


@wired
def test_rate_limits_are_no_failed_attempts(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.rate_limited("1")] * 20)
    backend = model(kind, fake, tries=1, timeout=5.0)
    assert ask(backend).content == "echo: hello"
    assert (backend.totals.limited, backend.totals.failures) == (20, {})


@wired
def test_a_wait_above_the_cap_stops_the_run_and_says_so(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.rate_limited("86400")], repeat_last=True)
    stopped = ask(model(kind, fake, max_wait=600.0))
    assert isinstance(stopped, StopRun)
    assert re.search(r"86400 s.*cap is 600", str(stopped))
    assert len(fake.requests) == 1


@wired
def test_rate_limits_without_end_stop_the_run_when_patience_is_over(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([fakes.rate_limited("60")], repeat_last=True)
    passed = FastTime()
    stopped = ask(model(kind, fake, passed, patience=900.0))
    assert isinstance(stopped, StopRun)
    assert 900 < passed.now < 1000


@wired
def test_one_limited_call_waits_in_its_own_slot_while_the_others_go_on(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([fakes.rate_limited("60")])
    others, passed = asyncio.Event(), FastTime()

    async def sleep(seconds: float) -> None:
        await (others.wait() if seconds >= 60 else passed.sleep(seconds))

    async def work(item: int) -> None:
        await backend.complete(f"item {item}")
        if backend.totals.calls == 11:
            others.set()

    backend = model(kind, fake, passed, sleep=sleep)
    report = asyncio.run(asyncio.wait_for(run_all(range(12), work, progress=False), 10))
    assert len(report.done) == 12
    assert backend.totals.limited == 1


def test_a_limit_on_all_workers_at_once_loses_nothing_and_is_no_herd() -> None:
    with FakeProvider(Load(latency=0.01, rate=400, burst=20, retry_after="0.1")) as fake:
        backend = get_backend("local:m", base_url=fake.openai_url, concurrency=64)
        started = time.monotonic()
        report = asyncio.run(run_all(range(400), backend_call(backend), concurrency=64))
        assert (len(report.done), backend.totals.failures) == (400, {})
        assert time.monotonic() - started < 3
        assert fake.stats["limited"] < 0.35 * fake.stats["requests"]


def backend_call(backend: Any) -> Callable[[int], Any]:
    return lambda item: backend.complete(f"item {item}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12), ("12.5s", 12.5), ("500ms", 0.5), (" -5 ", -5), ("soon", None), ("", None)],
)
def test_a_delay_is_read_in_every_spelling(text: str, seconds: float | None) -> None:
    assert parse_delay(text) == seconds


def test_a_date_is_a_delay_from_now_and_never_negative() -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    assert parse_delay(date, now=lambda: 1792567650.0) == 30
    late = fakes_error(429, {"Retry-After": date})
    assert retry_after(late, now=lambda: 1792567700.0) == 0


def test_milliseconds_rule_over_seconds_and_headers_over_text() -> None:
    both = fakes_error(429, {"Retry-After-Ms": "250", "Retry-After": "9"})
    assert retry_after(both) == 0.25
    assert retry_after(fakes_error(429, {"retry-after": "2"}, "try again in 9s")) == 2
    assert retry_after(fakes_error(429, {}, "Please retry in 12.5s.")) == 12.5


def fakes_error(status: int, headers: dict[str, str], text: str = "") -> Exception:
    """An SDK's exception, as far as anybody looks at it."""
    error = Exception(text)
    error.status_code, error.headers = status, headers  # type: ignore[attr-defined]
    return error


# Faults that pass: retried, then typed

PASSING = {  # the fault, and the kind that it is recorded as when it lasts
    "500": (fakes.server_error(500), "overloaded"),
    "529": (fakes.overloaded(), "overloaded"),
    "408": (fakes.server_error(408), "overloaded"),
    "dropped": (fakes.dropped(), "transport"),
    "cut in the body": (Reply(cut_after=10), "transport"),
    "half a JSON": (fakes.truncated_json(), "undecodable"),
    "a login page": (fakes.html_page(), "undecodable"),
    "an empty object": (fakes.empty_body_object(), "undecodable"),
    "an error with 200": (Reply(body=b'{"error": {"message": "overloaded"}}'), "undecodable"),
    "a list": (Reply(body=b"[]"), "undecodable"),
    "no body": (Reply(body=b""), "undecodable"),
    "bytes that are not UTF-8": (Reply(body=b'{"a": "\xff\xfe"}'), "undecodable"),
    "blank content": (fakes.blank_content(" \n"), "empty"),
    "null content": (fakes.blank_content(None), "empty"),
}


@wired
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_retried(kind: str, fault: str, fake: FakeProvider) -> None:
    fake.script([PASSING[fault][0]])
    backend = model(kind, fake)
    assert ask(backend).content == "echo: hello"
    assert (len(fake.requests), backend.totals.failures) == (2, {})


@wired
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_lasts_is_a_typed_and_counted_failure(
    kind: str, fault: str, fake: FakeProvider
) -> None:
    reply, expected = PASSING[fault]
    fake.script([reply], repeat_last=True)
    backend = model(kind, fake, tries=3)
    failure = ask(backend, scope="t07")
    assert (type(failure), failure.kind, failure.scope) == (ModelFailure, expected, "t07")
    assert (len(fake.requests), backend.totals.failures) == (3, {expected: 1})


@wired
def test_the_providers_own_words_are_in_the_failure(kind: str, fake: FakeProvider) -> None:
    page = b"<h1>Upstream maintenance until noon</h1>"
    as_html = {"content-type": "text/html"}
    fake.script([Reply(status=503, body=page, headers=as_html)], repeat_last=True)
    assert "Upstream maintenance until noon" in str(ask(model(kind, fake, tries=2)))


@wired
def test_waits_between_tries_are_spread_and_grow(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.server_error()], repeat_last=True)
    passed = FastTime()
    ask(model(kind, fake, passed, tries=7))
    assert all(wait <= 0.5 * 2**step for step, wait in enumerate(passed.waits, 1))
    assert len(set(passed.waits)) == 6


@wired
def test_a_busy_server_that_says_when_to_come_back_is_believed(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply(status=503, error="server_error", headers={"retry-after": "3"})])
    passed = FastTime()
    assert ask(model(kind, fake, passed)).content == "echo: hello"
    assert 3 <= passed.now <= 4.5


@wired
@pytest.mark.parametrize("reply", [Reply(never=True), Reply(drip=0.02)], ids=["silence", "drip"])
def test_a_hung_server_costs_its_deadline_and_no_second_more(
    kind: str, reply: Reply, fake: FakeProvider
) -> None:
    fake.script([reply], repeat_last=True)
    real = {"clock": time.monotonic, "sleep": asyncio.sleep}
    backend = model(kind, fake, timeout=0.4, attempt_timeout=0.15, **real)
    started = time.monotonic()
    assert ask(backend).kind == "timeout"
    assert time.monotonic() - started < 1.4


@wired
def test_a_row_of_calls_that_nobody_answers_stops_the_run(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.dropped()], repeat_last=True)
    call = backend_call(model(kind, fake, tries=1))
    report = asyncio.run(run_all(range(50), call, concurrency=1, progress=False))
    assert "got no answer" in str(report.stopped)
    assert (len(fake.requests), len(report.failed), len(report.pending)) == (10, 9, 41)


@wired
def test_answers_in_between_keep_the_run_going(kind: str, fake: FakeProvider) -> None:
    fake.script(([fakes.dropped()] * 9 + [Reply()]) * 3)
    call = backend_call(model(kind, fake, tries=1))
    report = asyncio.run(run_all(range(30), call, concurrency=1, progress=False))
    assert (len(report.done), len(report.failed), report.stopped) == (3, 27, None)


@wired
def test_a_port_where_nobody_listens_is_a_failure_in_plain_words(kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    time = FastTime()
    real = {"api_key": KEY, "clock": time.clock, "sleep": time.sleep, "tries": 2}
    failure = ask(get_backend(kind, "fake-model", base_url=address, **real))
    assert (failure.kind, "onnect" in str(failure)) == ("transport", True)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 520, 529])
def test_a_status_that_passes_is_one_to_retry(status: int) -> None:
    assert fault_of(fakes_error(status, {})).kind == "overloaded"


def test_a_status_is_a_number_and_a_bug_is_no_fault() -> None:
    assert fault_of(Exception("500 Internal Server Error")) is None
    assert fault_of(KeyError("status")) is None


# Answers that are none: typed, counted, not asked again

UNUSABLE = {  # the reply; its kind, where one provider has another word for it
    "refusal": (fakes.refusal(), "refusal", {"google": "filter"}),
    "filter": (fakes.content_filter(), "filter", {"anthropic": "refusal"}),
    "length": (fakes.length_stop(), "length", {}),
    "tool call": (fakes.tool_call(), "tool_call", {}),
    "full context": (Reply("and then", stop="context"), "length", {"anthropic": "context_full"}),
    "long prompt": (fakes.context_too_long(), "context", {}),
    "rejected": (Reply(status=422, error="bad_request_schema"), "rejected", {}),
}


@wired
@pytest.mark.parametrize("why", UNUSABLE)
def test_an_answer_that_is_none_is_a_typed_failure_and_not_asked_for_again(
    kind: str, why: str, fake: FakeProvider
) -> None:
    reply, usual, elsewhere = UNUSABLE[why]
    fake.script([reply], repeat_last=True)
    backend, expected = model(kind, fake), elsewhere.get(kind, usual)
    failure = ask(backend)
    assert (type(failure), failure.kind) == (ModelFailure, expected)
    assert (len(fake.requests), backend.totals.failures) == (1, {expected: 1})


@wired
def test_a_cut_reply_keeps_its_text_usage_and_cost(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.length_stop("and then they")])
    failure = ask(model(kind, fake, price={"input": 1, "output": 2}), max_tokens=5)
    assert (failure.text, failure.usage.output_tokens) == ("and then they", 5)
    assert failure.cost == pytest.approx(20e-6)
    assert "5 tokens" in str(failure)


@wired
def test_a_reply_that_a_filter_broke_off_is_no_answer(kind: str, fake: FakeProvider) -> None:
    fake.script([Reply("Sure, first you", stop="content_filter")])
    failure = ask(model(kind, fake))
    assert (type(failure), failure.text) == (ModelFailure, "Sure, first you")
    assert failure.kind in ("filter", "refusal")


# Structured output


@wired
def test_a_schema_is_asked_for_natively_and_gives_an_instance(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply(GOOD)])
    assert judge(model(kind, fake)) == Verdict(answer="YES", reason="it is kind")
    assert [request.schema_kind for request in fake.requests] == ["json_schema"]


MISFITS = {
    "a missing key": '{"answer": "YES"}',
    "a number": '{"answer": 7, "reason": "it is kind"}',
    "a list": "[1, 2]",
    "prose": "Yes, it is.",
}


@wired
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_reply_that_does_not_fit_gets_one_repair_round_that_shows_the_error(
    kind: str, misfit: str, fake: FakeProvider
) -> None:
    fake.script([Reply(MISFITS[misfit]), Reply(GOOD)])
    replies: list[CompletionResult] = []
    assert judge(model(kind, fake), replies=replies).answer == "YES"
    assert [reply.content for reply in replies] == [MISFITS[misfit], GOOD]
    assert re.search(r"reason: Field required|valid string|object|Invalid JSON", repair_of(fake))


def repair_of(fake: FakeProvider) -> str:
    assert len(fake.requests) == 2
    assert "Judge it." in fake.requests[1].raw.decode()
    return fake.requests[1].text


@wired
def test_a_reply_that_never_fits_is_a_failure_that_is_returned(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([Reply('{"answer": "YES"}')], repeat_last=True)
    backend = model(kind, fake)
    failure = judge(backend, scope="t07")
    assert (type(failure), failure.kind, failure.text) == (
        ModelFailure,
        "schema",
        '{"answer": "YES"}',
    )
    assert "reason: Field required" in str(failure)
    assert (len(fake.requests), backend.totals.failures) == (2, {"schema": 1})


@wired
def test_a_refusal_of_a_structured_question_is_returned_and_a_stop_raised(
    kind: str, fake: FakeProvider
) -> None:
    fake.script([fakes.refusal(), fakes.unauthorized()])
    backend = model(kind, fake)
    assert judge(backend).kind in ("refusal", "filter")
    with pytest.raises(StopRun):
        judge(backend)


@wired
def test_extra_fields_are_ignored_and_kept_in_the_raw_reply(kind: str, fake: FakeProvider) -> None:
    more = GOOD[:-1] + ', "confidence": 0.9}'
    fake.script([Reply(more)])
    replies: list[CompletionResult] = []
    assert judge(model(kind, fake), replies=replies).answer == "YES"
    assert replies[0].content == more


@wired
def test_json_in_a_fence_needs_no_repair(kind: str, fake: FakeProvider) -> None:
    fake.script([Reply(f"Here it is:\n```json\n{GOOD}\n```")])
    assert judge(model(kind, fake)).reason == "it is kind"
    assert len(fake.requests) == 1


# What a local server understands is found out once

REFUSED = {"json_schema": (), "json_object": ("json_schema",)}
REFUSED["text"] = ("json_schema", "json_object")


@pytest.mark.parametrize("mode", REFUSED)
def test_a_local_server_is_asked_once_what_it_understands(mode: str, fake: FakeProvider) -> None:
    fake.respond = fakes.without_schemas(*REFUSED[mode], reply=Reply(GOOD))
    backend, replies = model("local", fake), list[CompletionResult]()
    assert [judge(backend, replies=replies).answer for _ in range(3)] == ["YES"] * 3
    assert backend.structured_mode == mode
    assert {reply.notes for reply in replies} == {(f"structured: {mode}",)}
    assert len(fake.requests) == len(REFUSED[mode]) + 3


def test_twenty_calls_at_once_find_it_out_once(fake: FakeProvider) -> None:
    fake.respond = fakes.without_schemas("json_schema", "json_object", reply=Reply(GOOD))
    backend = model("local", fake)

    async def together() -> list[Any]:
        asked = (backend.complete_structured("Judge it.", Verdict) for _ in range(20))
        return await asyncio.gather(*asked)

    assert [verdict.answer for verdict in asyncio.run(together())] == ["YES"] * 20
    assert len(fake.requests) == 2 + 20


def test_a_server_without_schemas_finds_the_schema_in_the_prompt(fake: FakeProvider) -> None:
    fake.respond = fakes.without_schemas("json_schema", reply=Reply(GOOD))
    judge(model("local", fake))
    asked = fake.requests[-1].text
    assert asked.startswith("Judge it.")
    assert '"reason"' in asked


def test_a_prompt_that_is_too_long_does_not_look_like_a_server_without_schemas(
    fake: FakeProvider,
) -> None:
    fake.script([fakes.context_too_long()] * 3)
    backend = model("local", fake)
    assert judge(backend).kind == "context"
    fake.script([Reply(GOOD)])
    assert judge(backend).answer == "YES"
    assert backend.structured_mode == "json_schema"


# Errors that no further call can survive

CREDIT = b'{"error": {"message": "Your credit balance is too low to access the API."}}'
FINAL = {  # the reply, and words of the provider
    "a wrong key": (fakes.unauthorized(), "(?i)key"),
    "no right": (fakes.forbidden(), "(?i)not allowed|permission"),
    "an unknown model": (fakes.unknown_model(), "fake-model"),
    "402": (
        Reply(status=402, body=b'{"error": {"message": "Payment overdue"}}'),
        "Payment overdue",
    ),
    "no quota": (fakes.insufficient_quota(), "current quota|monthly API usage threshold"),
    "no credit": (Reply(status=400, body=CREDIT), "credit balance is too low"),
}


@wired
@pytest.mark.parametrize("why", FINAL)
def test_an_error_that_is_final_stops_the_run_after_one_request_per_worker(
    kind: str, why: str, fake: FakeProvider
) -> None:
    reply, words = FINAL[why]
    fake.script([reply], repeat_last=True)
    call = backend_call(model(kind, fake))
    report = asyncio.run(run_all(range(100), call, concurrency=8, progress=False))
    assert len(fake.requests) <= 8
    assert (len(report.pending), report.exit_code) == (100, 2)
    assert re.search(words, str(report.stopped))


@wired
def test_a_stopped_model_sends_nothing_more(kind: str, fake: FakeProvider) -> None:
    fake.script([fakes.unauthorized()])
    backend = model(kind, fake)
    assert [type(outcome) for outcome in (ask(backend), ask(backend))] == [StopRun] * 2
    assert len(fake.requests) == 1


# Parameters


@wired
def test_parameters_and_max_tokens_are_sent_as_they_are(kind: str, fake: FakeProvider) -> None:
    backend = model(kind, fake, parameters={"temperature": 0.25})
    assert ask(backend, max_tokens=77).content == "echo: hello"
    body = fake.requests[0].body
    sent = body.get("generationConfig", body)
    names = ("max_tokens", "max_completion_tokens", "maxOutputTokens")
    assert sent["temperature"] == 0.25
    assert [sent[name] for name in names if name in sent] == [77]


def test_anthropics_sampling_parameters_travel_in_the_extra_body(fake: FakeProvider) -> None:
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "extra_body": {"service_tier": "auto"}}
    ask(model("anthropic", fake, parameters=asked))
    sent = fake.requests[0].body
    assert (sent["temperature"], sent["top_p"], sent["top_k"]) == (0.5, 0.9, 40)
    assert sent["service_tier"] == "auto"


@pytest.mark.parametrize("kind", ["openai", "anthropic", "google"])
def test_a_parameter_that_the_sdk_refuses_is_an_error_that_names_it(
    kind: str, fake: FakeProvider
) -> None:
    refused = ask(model(kind, fake, parameters={"temperatur": 1}))
    assert isinstance(refused, StopRun)
    assert re.search(r"temperatur\b.*parameters", str(refused), re.DOTALL)
    assert fake.requests == []


# What is missing is named

PACKAGES = {"openai": "openai", "anthropic": "anthropic", "google": "google.genai"}
PACKAGES |= {"local": "aiohttp"}


@wired
def test_a_missing_package_is_an_error_that_names_the_extra(
    kind: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    missing = ask(model(kind, fake))
    assert isinstance(missing, StopRun)
    assert f"finetune-skills[{kind}]" in str(missing)


VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
VARIABLES |= {"google": "GOOGLE_API_KEY"}


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("key", [None, "", " \n", "sk-\u2026"])
def test_a_key_that_is_missing_or_no_key_is_an_error_that_names_its_variable(
    kind: str, key: str | None, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLES[kind], raising=False)
    if key is not None:
        monkeypatch.setenv(VARIABLES[kind], key)
    assert VARIABLES[kind] in str(ask(model(kind, fake, api_key=None)))
    assert fake.requests == []


def test_a_preset_names_the_variable_of_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISTRAL_API_KEY", raising=False)
    assert "MISTRAL_API_KEY" in str(ask(get_backend("local:m", preset="mistral")))


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no model": ("openai", {}, "openai:MODEL"),
    "an empty model": ("openai:", {}, "openai:MODEL"),
    "no base_url": ("local:m", {}, "base_url"),
    "an unknown preset": ("local:m", {"preset": "lm-studio"}, "lmstudio"),
    "an unknown provider": ("gemini:m", {}, 'Did you mean "google"'),
    "an unknown option": ("openai:m", {"time_out": 5}, 'Did you mean "timeout"'),
    "a sampling setting": ("openai:m", {"temperature": 1}, "`parameters`"),
    "half a price": ("openai:m", {"price": {"input": 1}}, "`output`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_the_setting(mistake: str) -> None:
    spec, options, words = MISTAKES[mistake]
    with pytest.raises(FinetuneError) as error:
        get_backend(spec, **options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": None}],
        [{"role": "tool", "content": "x"}],
        [{"content": ""}],
    ],
)
def test_a_message_without_role_or_text_is_refused_before_it_is_sent(
    messages: list[Any], fake: FakeProvider
) -> None:
    with pytest.raises(FinetuneError, match="message"):
        asyncio.run(model("local", fake).chat(messages))
    assert fake.requests == []


# Clients


@wired
def test_one_client_serves_all_calls(kind: str, fake: FakeProvider) -> None:
    backend = model(kind, fake)

    async def in_a_row() -> None:
        for _ in range(5):
            await backend.chat(HELLO)

    asyncio.run(in_a_row())
    assert (len(fake.requests), fake.server.opened) == (5, 1)


@wired
def test_a_model_works_in_a_second_event_loop_and_after_it_was_closed(
    kind: str, fake: FakeProvider
) -> None:
    backend = model(kind, fake)

    async def twice() -> list[str]:
        async with backend:
            first = await backend.chat(HELLO)
        return [first.content, (await backend.chat(HELLO)).content]

    assert asyncio.run(twice()) + asyncio.run(twice()) == ["echo: hello"] * 4


NOISE = """
import asyncio, sys, warnings
from calls import WIRED, ask, model
from fakes.provider import FakeProvider
warnings.filterwarnings("ignore", "Inheritance class Aiohttp")
with FakeProvider() as fake:
    for kind in WIRED:
        backend = model(kind, fake)
        print(ask(backend).content, ask(backend).content)
        del backend
"""


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_nobody_has_to_close_a_model_and_nothing_is_said_about_it() -> None:
    done = child("-W", "default::ResourceWarning", "-c", NOISE)
    assert done.stdout.splitlines() == ["echo: hello echo: hello"] * 4
    assert done.stderr == ""


def test_two_models_that_were_asked_for_are_two(fake: FakeProvider) -> None:
    one, two = model("local", fake), model("local", fake, model="other-model")
    ask(one)
    assert (one.name, two.name) == ("local:fake-model", "local:other-model")
    assert (one.totals.calls, two.totals.calls) == (1, 0)


@wired
def test_concurrency_bounds_the_calls_however_many_are_asked_for(
    kind: str, fake: FakeProvider
) -> None:
    fake.respond = lambda request: Reply(delay=0.01)
    ask_all(model(kind, fake, concurrency=3), ["hello"] * 15)
    assert (len(fake.requests), fake.server.opened) == (15, 3)


def test_the_path_of_a_base_url_may_end_in_a_slash(fake: FakeProvider) -> None:
    assert ask(model("local", fake, base_url=fake.openai_url + "/")).content == "echo: hello"
    assert json.loads(fake.requests[0].raw)["model"] == "fake-model"


def test_calls_that_waited_for_the_first_structured_one_then_go_out_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One call finds out what the server understands; the rest is not sent one by one."""
    flying: list[int] = [0]
    most: list[int] = []

    async def ask(self: Any, call: Any, client: Any, mode: str) -> CompletionResult:
        flying[0] += 1
        most.append(flying[0])
        await asyncio.sleep(0.01)
        flying[0] -= 1
        return CompletionResult(GOOD, "m", Used(), "stop")

    monkeypatch.setattr(LocalBackend, "_ask", ask)
    backend = get_backend("local", model="m", base_url="http://127.0.0.1:9/v1")

    async def together() -> None:
        calls = (backend.complete_structured(f"{n}", Verdict) for n in range(32))
        await asyncio.gather(*calls)

    asyncio.run(together())
    assert most[0] == 1
    assert max(most) == 31
