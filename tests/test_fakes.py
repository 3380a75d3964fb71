"""Is the fake faithful? The real SDKs read its answers and raise what they raise in the world."""

import asyncio
import http.client
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from fakes import provider as fakes
from fakes.provider import FakeProvider, Load, Reply, Usage

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
genai = pytest.importorskip("google.genai")

# google-genai derives from aiohttp's session, which aiohttp discourages on every first call.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp:DeprecationWarning")

MESSAGES: list[Any] = [{"role": "user", "content": "good morning"}]
PATIENCE = 0.5  # seconds


async def ask_openai(fake: FakeProvider, **extra: Any) -> Any:
    options = {"base_url": fake.openai_url, "api_key": "k", "max_retries": 0, "timeout": PATIENCE}
    async with openai.AsyncOpenAI(**options) as client:
        return await client.chat.completions.create(model="m", messages=MESSAGES, **extra)


async def ask_anthropic(fake: FakeProvider) -> Any:
    options = {"base_url": fake.url, "api_key": "k", "max_retries": 0, "timeout": PATIENCE}
    async with anthropic.AsyncAnthropic(**options) as client:
        return await client.messages.create(model="m", messages=MESSAGES, max_tokens=64)


async def ask_google(fake: FakeProvider) -> Any:
    # One attempt: otherwise the SDK sends again, seconds after a lost connection, and says nothing.
    options = {"timeout": round(1000 * PATIENCE), "retry_options": {"attempts": 1}}
    client = genai.Client(api_key="k", http_options={"base_url": fake.url, **options})
    async with client.aio as models:
        return await models.models.generate_content(model="m", contents="good morning")


ASK: dict[str, Callable[[FakeProvider], Awaitable[Any]]] = {
    "openai": ask_openai,
    "anthropic": ask_anthropic,
    "google": ask_google,
}


def answer(provider: str, reply: Reply) -> Any:
    """What the provider's own SDK makes of the reply: an object of its own or its exception."""

    async def ask() -> Any:
        try:
            return await ASK[provider](fake)
        except Exception as error:  # noqa: BLE001  the tests look at it
            return error

    with FakeProvider() as fake:
        fake.script([reply])
        return asyncio.run(ask())


def post(fake: FakeProvider, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_openai_reads_text_usage_model_and_stop_reason() -> None:
    read = answer("openai", Reply("hello", usage=Usage(12, 7, reasoning=3)))
    assert (read.choices[0].message.content, read.choices[0].finish_reason) == ("hello", "stop")
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.model) == (12, 7, "m")
    assert read.usage.completion_tokens_details.reasoning_tokens == 3


def test_anthropic_reads_text_usage_model_and_stop_reason() -> None:
    read = answer("anthropic", Reply("hello", usage=Usage(12, 7, reasoning=3)))
    assert (read.content[0].text, read.stop_reason, read.model) == ("hello", "end_turn", "m")
    assert (read.usage.input_tokens, read.usage.output_tokens) == (12, 7)
    assert read.usage.output_tokens_details.thinking_tokens == 3


def test_google_reads_text_usage_model_and_stop_reason() -> None:
    read = answer("google", Reply("hello", usage=Usage(12, 7, reasoning=3)))
    counted = read.usage_metadata
    assert (read.text, read.candidates[0].finish_reason.value) == ("hello", "STOP")
    assert (counted.prompt_token_count, counted.candidates_token_count, read.model_version) == (
        12,
        4,
        "m",
    )
    assert (counted.thoughts_token_count, counted.total_token_count) == (3, 19)


# The type each SDK raises; a tuple stands for openai, anthropic, google.
RAISED: dict[str, tuple[Reply, str | tuple[str, str, str]]] = {
    "rate limit": (fakes.rate_limited("1"), ("RateLimitError", "RateLimitError", "ClientError")),
    "quota": (
        fakes.insufficient_quota(),
        ("RateLimitError", "EnforcedSpendLimitReachedError", "ClientError"),
    ),
    "overloaded": (fakes.overloaded(), ("InternalServerError", "OverloadedError", "ServerError")),
    "500": (fakes.server_error(500), ("InternalServerError", "InternalServerError", "ServerError")),
    "wrong key": (
        fakes.unauthorized(),
        ("AuthenticationError", "AuthenticationError", "ClientError"),
    ),
    "forbidden": (
        fakes.forbidden(),
        ("PermissionDeniedError", "PermissionDeniedError", "ClientError"),
    ),
    "unknown model": (fakes.unknown_model(), ("NotFoundError", "NotFoundError", "ClientError")),
    "too long": (fakes.context_too_long(), ("BadRequestError", "BadRequestError", "ClientError")),
    "torn JSON": (fakes.truncated_json(), "JSONDecodeError"),
    "dropped": (
        fakes.dropped(),
        ("APIConnectionError", "APIConnectionError", "ServerDisconnectedError"),
    ),
    "cut": (
        Reply(cut_after=10),
        ("APIConnectionError", "APIConnectionError", "ClientPayloadError"),
    ),
    "silence": (Reply(never=True), ("APITimeoutError", "APITimeoutError", "TimeoutError")),
}


@pytest.mark.parametrize("fault", RAISED)
def test_each_sdk_raises_what_it_raises_for_the_real_fault(fault: str) -> None:
    reply, expected = RAISED[fault]
    raised = tuple(type(answer(provider, reply)).__name__ for provider in ASK)
    assert raised == ((expected,) * 3 if isinstance(expected, str) else expected)


def test_a_login_page_is_a_string_to_two_sdks_and_a_decode_error_to_google() -> None:
    assert "log in" in answer("openai", fakes.html_page())
    assert "log in" in answer("anthropic", fakes.html_page())
    assert isinstance(answer("google", fakes.html_page()), json.JSONDecodeError)


def test_an_empty_object_becomes_an_answer_without_fields() -> None:
    assert answer("openai", fakes.empty_body_object()).choices is None
    assert answer("anthropic", fakes.empty_body_object()).content is None
    assert answer("google", fakes.empty_body_object()).candidates is None


@pytest.mark.parametrize("text", ["", None])
def test_blank_content_is_blank_in_every_shape(text: str | None) -> None:
    blank = fakes.blank_content(text)
    assert answer("openai", blank).choices[0].message.content == text
    assert [block.text for block in answer("anthropic", blank).content] == [""] * (text == "")
    assert not answer("google", blank).text


def test_a_reply_may_name_no_usage() -> None:
    assert answer("openai", Reply(usage=None)).usage is None
    assert answer("anthropic", Reply(usage=None)).usage is None
    assert answer("google", Reply(usage=None)).usage_metadata is None


def test_refusals_filters_lengths_and_tool_calls_have_each_providers_own_words() -> None:
    def stops(reply: Reply) -> tuple[str, str, str]:
        google = answer("google", reply)
        reason = google.candidates[0].finish_reason if google.candidates else None
        return (
            answer("openai", reply).choices[0].finish_reason,
            answer("anthropic", reply).stop_reason,
            (reason or google.prompt_feedback.block_reason).value,
        )

    assert stops(fakes.refusal()) == ("stop", "refusal", "PROHIBITED_CONTENT")
    assert stops(fakes.content_filter()) == ("content_filter", "refusal", "SAFETY")
    assert stops(fakes.length_stop()) == ("length", "max_tokens", "MAX_TOKENS")
    assert stops(fakes.tool_call()) == ("tool_calls", "tool_use", "STOP")
    assert answer("openai", fakes.refusal()).choices[0].message.refusal


def test_a_spent_quota_can_be_told_from_a_rate_limit() -> None:
    assert answer("openai", fakes.insufficient_quota()).code == "insufficient_quota"
    assert answer("openai", fakes.rate_limited()).code == "rate_limit_exceeded"
    spent, limited = fakes.insufficient_quota(), fakes.rate_limited()
    assert answer("anthropic", spent).error_code == "enforced_spend_limit_reached"
    assert answer("anthropic", limited).error_code is None


def test_the_waiting_time_is_where_each_provider_puts_it() -> None:
    seconds = answer("openai", fakes.rate_limited("7")).response.headers
    milliseconds = answer("anthropic", fakes.rate_limited("250ms")).response.headers
    details = answer("google", fakes.google_retry_info("12s")).details["error"]["details"]
    assert (seconds["retry-after"], milliseconds["retry-after-ms"]) == ("7", "250")
    assert [row["retryDelay"] for row in details if row["@type"].endswith("RetryInfo")] == ["12s"]
    assert "retry-after" not in answer("openai", fakes.rate_limited(None)).response.headers


def test_an_error_that_echoes_the_key_reaches_the_exception() -> None:
    """Otherwise a test for leaks would test nothing."""
    for page in (fakes.echoes_headers(html=True), fakes.echoes_headers(html=False)):
        by_openai = answer("openai", page)
        assert "Bearer k" in f"{by_openai} {by_openai.response.text}"
        assert "Bearer k" in str(answer("anthropic", page))
        assert '"x-goog-api-key": "k"' in str(answer("google", page))


def test_a_server_without_schemas_refuses_them_and_answers_the_rest() -> None:
    with FakeProvider() as fake:
        fake.respond = fakes.without_schemas("json_schema")
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
        with pytest.raises(openai.BadRequestError, match="response_format"):
            asyncio.run(ask_openai(fake, response_format=schema))
        read = asyncio.run(ask_openai(fake, response_format={"type": "json_object"}))
    assert read.choices[0].message.content == "echo: good morning"


def test_models_are_listed_in_the_shape_of_whoever_asks() -> None:
    async def names(fake: FakeProvider) -> tuple[list[str], list[str]]:
        options = {"api_key": "k", "max_retries": 0}
        async with openai.AsyncOpenAI(base_url=fake.openai_url, **options) as first:
            by_openai = [model.id async for model in first.models.list()]
        async with anthropic.AsyncAnthropic(base_url=fake.url, **options) as second:
            return by_openai, [model.id async for model in second.models.list()]

    with FakeProvider() as fake:
        assert asyncio.run(names(fake)) == (["fake-model"], ["fake-model"])


def test_the_script_comes_first_then_the_echo_and_every_request_is_kept() -> None:
    with FakeProvider() as fake:
        fake.script([Reply("one"), Reply("two", status=503)])
        body = json.dumps({"model": "m", "messages": MESSAGES}).encode()
        answers = [post(fake, body) for _ in range(3)]
    assert [status for status, _ in answers] == [200, 503, 200]
    assert b"echo: good morning" in answers[2][1]
    assert [request.body["model"] for request in fake.requests] == ["m", "m", "m"]


def test_the_last_reply_can_stand_for_all_that_follow() -> None:
    with FakeProvider() as fake:
        fake.script([Reply("one"), Reply("two")], repeat_last=True)
        texts = [json.loads(post(fake, b"{}")[1]) for _ in range(3)]
    assert [text["choices"][0]["message"]["content"] for text in texts] == ["one", "two", "two"]


def test_a_mistake_in_a_tests_own_answer_fails_that_test() -> None:
    def broken(request: fakes.Request) -> Reply:
        raise KeyError("typo")

    def use() -> None:
        with FakeProvider() as fake:
            fake.respond = broken
            assert post(fake, b"{}")[0] == 500

    with pytest.raises(KeyError, match="typo"):
        use()


def test_a_drip_takes_its_time_byte_by_byte() -> None:
    with FakeProvider() as fake:
        fake.script([Reply(body=b"0123456789", drip=0.02)])
        before = time.monotonic()
        assert post(fake, b"{}")[1] == b"0123456789"
    assert time.monotonic() - before >= 0.15


async def flood(url: str, calls: int) -> list[int]:
    """All calls at once on plain aiohttp, each with a body of its own."""
    async with aiohttp.ClientSession() as session:

        async def call(number: int) -> int:
            async with session.post(f"{url}/v1/messages", json={"n": number}) as response:
                return response.status if await response.read() else 0

        return await asyncio.gather(*map(call, range(calls)))


def test_a_rate_limit_answers_the_burst_and_counts_what_it_sent() -> None:
    with FakeProvider(Load(rate=0.001, burst=20)) as fake:
        statuses = asyncio.run(flood(fake.url, 50))
        assert (statuses.count(200), statuses.count(429)) == (20, 30)
        assert (fake.stats["ok"], fake.stats["limited"], fake.stats["requests"]) == (20, 30, 50)


def test_a_body_that_was_answered_twice_is_counted_once() -> None:
    with FakeProvider(Load()) as fake:
        for body in (b"first", b"first", b"second", b"first"):
            post(fake, body)
        assert (fake.stats["ok"], fake.stats["twice"]) == (4, 1)


def test_the_same_calls_meet_the_same_faults_in_any_order() -> None:
    def statuses(bodies: list[bytes], seed: int) -> dict[bytes, int]:
        with FakeProvider(Load(share_500=0.4, seed=seed)) as fake:
            return {body: post(fake, body)[0] for body in bodies}

    bodies = [b"%d" % number for number in range(40)]
    first = statuses(bodies, seed=1)
    assert first == statuses(bodies[::-1], seed=1) != statuses(bodies, seed=2)
    assert 6 <= list(first.values()).count(500) <= 26
