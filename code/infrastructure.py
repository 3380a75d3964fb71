"""The kernel of finetune-skills: model calls, crash-safe files, tokens, slices, rubric scores.

One file that works alone. Copy it next to your own script:

    backend = get_backend("openai:MODEL", journal=Journal("data/journal/demo.jsonl"))
    result = await backend.complete("Say hello.", scope="demo/hello")
    print(result.content, result.usage, result.cost)

Chapters: 1 models, 2 runs, 3 checkpoints, 4 tokens, 5 slicing, 6 rubric and scores, 7 project.
Importing it opens no file, socket or client. A package is imported by the call that needs it:
pydantic and tenacity for models, pyyaml for rubrics and gates, a provider's SDK for its models.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import email.utils
import errno
import fcntl
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
import weakref
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pydantic import BaseModel
    from tenacity import RetryCallState

SCHEMA = 1
M = TypeVar("M", bound="BaseModel")
Item = TypeVar("Item")
Result = TypeVar("Result")
Message = Mapping[str, Any]
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[Any]]


class FinetuneError(Exception):
    """An error for a person: where, what, what to do. Shown without a traceback."""

    exit_code = 2


class StopRun(FinetuneError):
    """No further call can succeed; what is done is kept, and a rerun resumes."""


class BudgetReached(StopRun):
    """The next call could cost more than what is left under the cap."""


class DiskStop(StopRun):
    """The disk refused a record; nothing half-written is left behind."""

    exit_code = 3


class ModelFailure(FinetuneError):
    """One call without a usable answer: `kind` says why. Counted, and never stored as an answer."""

    exit_code = 1

    def __init__(
        self, kind: str, message: str, reply: CompletionResult | None = None, scope: str = ""
    ):
        super().__init__(message)
        self.kind, self.scope = kind, scope
        self.text, self.model = (reply.content, reply.model) if reply else ("", "")
        self.usage, self.cost = (reply.usage, reply.cost) if reply else (Usage(), None)


# ══ 1 Models ══════════════════════════════════════════════════════════════════════════════════════
RETRIED = frozenset({"rate_limit", "overloaded", "transport", "timeout", "undecodable", "empty"})
STOPS = {  # what ends the run, and what to do about it
    "denied": "check the key in {key} and its rights",
    "spent": "out of quota, or told to wait for too long; top up or wait",
    "unknown_model": "check the model's name and the base URL",
    "bad_parameters": "the SDK refuses what `parameters` says; mend it",
}
# Answered and paid for: asking the same again would only be paid again, so these are replayed.
ANSWERED = {
    "length": "the reply was cut at {limit} tokens; give it more room (max_tokens)",
    "refusal": "the model refused to answer",
    "filter": "the provider's content filter withheld the reply",
    "context_full": "the conversation filled the model's context window",
    "tool_call": "the model answered with a tool call instead of text",
    "too_long": "the reply is longer than a reply may be",
    "schema": "the model gave no JSON that fits the schema",
}
# After these the provider may have charged without an answer: the budget keeps the worst case.
MAYBE_PAID = frozenset({"timeout", "transport", "undecodable", "empty"})
# A row of calls that all end in one of these means that nobody is there: the run stops.
NOBODY_THERE = frozenset({"transport", "timeout", "overloaded"})
TRIES = {"empty": 3}  # a blank reply is paid for each time
DEAD_CALLS = 10
MAX_REPLY = 10_000_000  # characters
STOP_WORDS = {
    "stop": "stop end_turn stop_sequence eos",
    "length": "length max_tokens",
    "refusal": "refusal",
    "filter": "content_filter safety recitation blocklist prohibited_content spii language",
    "tool_call": "tool_calls function_call tool_use pause_turn malformed_function_call",
    "context_full": "model_context_window_exceeded",
    "schema": "error_max_structured_output_retries",
}
SCHEMA_GIVEN_UP = STOP_WORDS["schema"]  # the Claude command asked several times, all of them paid
SPENT = re.compile(
    r"insufficient[_ ](quota|balance|funds|credit)|spend[_ ]limit|balance is too low|PerDay"
    r"|usage (limit|threshold)"
)
BAD_KEY = re.compile(r"API_KEY_INVALID|API key not valid|invalid[ _]api[ _]key", re.IGNORECASE)
NO_ROOM = re.compile(
    r"context[ _](length|window|size)|prompt is too long|(many|number of) tokens", re.I
)
# Transport errors of the SDKs by class name, so that no SDK needs importing to recognise them.
TRANSPORT_NAMES = frozenset({"APIConnectionError", "TransportError", "ClientError"})
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "MISTRAL_API_KEY", "HF_TOKEN")
PRESETS = {  # name: (base URL, variable of the key)
    "vllm": ("http://127.0.0.1:8000/v1", ""),
    "llama-server": ("http://127.0.0.1:8080/v1", ""),
    "mlx": ("http://127.0.0.1:8080/v1", ""),
    "ollama": ("http://127.0.0.1:11434/v1", ""),
    "lmstudio": ("http://127.0.0.1:1234/v1", ""),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "llama": ("https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
}
ALIASES = {"gemini": "google", "gpt": "openai", "gguf": "llamacpp"}
ALIASES |= {"ollama": "local", "vllm": "local"}


@dataclass(frozen=True)
class Usage:
    """Tokens of one call as the provider counted them; `estimated` when it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class CompletionResult:
    """A whole, usable reply. `cost` in dollars, None when the price is unknown."""

    content: str
    model: str
    usage: Usage
    stop_reason: str
    cost: float | None = None
    notes: tuple[str, ...] = ()
    replayed: bool = False


@dataclass
class Call:
    """One request as a provider's `_call` sees it."""

    messages: list[dict[str, str]]
    schema: type[BaseModel] | None
    max_tokens: int
    scope: str
    stop: StopRun | None = None  # what ended the run during this call

    @functools.cached_property
    def told(self) -> str:
        """The messages as JSON with the keys in order, for the journal's key and for a server."""
        return ",".join([ENCODED[m["role"], m["content"]] for m in self.messages])


@dataclass
class Totals:
    """What one backend did in this process."""

    calls: int = 0
    replayed: int = 0
    tokens: int = 0
    cost: float = 0.0
    unknown_costs: int = 0
    limited: int = 0  # 429s: waited for, never failures
    failures: Counter[str] = field(default_factory=Counter)


@dataclass
class Options:
    """What `get_backend` takes besides kind and model; the last four are for one kind each."""

    max_tokens: int = 4096
    timeout: float = 300.0  # one call in all, retries included; waits for rate limits are not
    attempt_timeout: float = 120.0
    tries: int = 6
    max_wait: float = 300.0  # the longest Retry-After that is waited for
    patience: float = 1800.0  # the longest time with nothing but rate limits
    concurrency: int = 64  # calls in flight, however many items ask for one
    journal: Journal | None = None
    budget: Budget | None = None
    price: Mapping[str, float] | None = None  # dollars per million: input, output, cached_input
    parameters: Mapping[str, Any] = field(default_factory=dict)  # sampling, reasoning: sent as is
    api_key: str = field(default="", repr=False)
    key_variable: str = ""
    base_url: str = ""
    label: str = ""  # names the endpoint in journal keys, where a port or host would be chance
    clock: Clock = time.monotonic
    sleep: Sleep = asyncio.sleep
    preset: str = ""  # local: one of PRESETS
    n_ctx: int = 8192  # llamacpp
    root: str | Path | None = None  # python: the project root
    executable: str = "claude"  # claude


class Fault(Exception):
    """One attempt that gave no answer, in our own words; `wait` is what the provider asked for."""

    def __init__(self, kind: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class HttpStatus(Exception):
    """A reply of the fast path that is not a 200."""

    def __init__(self, status_code: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status_code} {text[:20_000]}")
        self.status_code, self.headers = status_code, headers


# ── what an exception means ───────────────────────────────────────────────────────────────────────
def fault_of(exc: BaseException) -> Fault | None:
    """What an SDK's exception means, by its status and class; None for a bug, which is no fault."""
    if isinstance(exc, Fault):
        return exc
    status, words = status_of(exc), _words_of(exc)
    if status is not None:
        kind = _kind_of_status(status, words)
        return Fault(kind, words, retry_after(exc) if kind in RETRIED else None)
    names = {cls.__name__ for cls in type(exc).__mro__}
    if isinstance(exc, TimeoutError) or any("Timeout" in name for name in names):
        return Fault("timeout", f"no answer in time ({type(exc).__name__})")
    if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError):
        return Fault("undecodable", f"the body is not JSON: {exc}")
    if isinstance(exc, ConnectionError | socket.gaierror) or names & TRANSPORT_NAMES:
        return Fault("transport", words)
    return None


def status_of(exc: BaseException) -> int | None:
    """The HTTP status that an exception carries, as a number and never from its text."""
    found = (getattr(exc, name, None) for name in ("status_code", "code"))
    return next((s for s in found if isinstance(s, int) and not isinstance(s, bool)), None)


def _kind_of_status(status: int, words: str) -> str:
    if status == 402 or (400 <= status < 500 and SPENT.search(words)):
        return "spent"  # it arrives dressed as a rate limit, so it is looked for first
    if status in (401, 403) or (status == 400 and BAD_KEY.search(words)):
        return "denied"
    known = {404: "unknown_model", 408: "overloaded", 409: "overloaded", 429: "rate_limit"}
    if status in known or status >= 500:
        return known.get(status, "overloaded")
    if status < 400:
        return "undecodable"
    return "context" if NO_ROOM.search(words) else "rejected"


def _words_of(exc: BaseException) -> str:
    """The provider's own words on one line, with its codes and what broke a connection."""
    parts = [str(exc) or type(exc).__name__]
    cause = exc.__cause__ or exc.__context__
    if cause is not None and status_of(exc) is None and not isinstance(cause, Fault):
        parts.append(f"{type(cause).__name__}: {cause}")
    codes = (getattr(exc, name, None) for name in ("code", "error_code", "type"))
    parts += [code for code in codes if isinstance(code, str) and code not in parts[0]]
    page = getattr(getattr(exc, "response", None), "text", None)  # what an SDK leaves out
    parts += [page[:20_000]] if isinstance(page, str) and len(parts[0]) < 40 else []
    return " ".join(" ".join(parts).split())


def retry_after(exc: BaseException, now: Clock = time.time) -> float | None:
    """How long the provider asks to wait, in seconds, from wherever it says so; never negative."""
    headers = getattr(getattr(exc, "response", exc), "headers", None) or {}
    low = {str(key).lower(): str(value) for key, value in dict(headers).items()}
    text = f"{exc} {getattr(exc, 'details', '')}"
    in_text = re.search(r"(?i)(?:retry|try again) (?:in|after) (\d+(?:\.\d+)?\s*m?s)", text)
    info = re.search(r"""retryDelay['"]:\s*['"](\d+(?:\.\d+)?m?s)""", text)  # Google's RetryInfo
    asked = [
        parse_delay(low.get("retry-after-ms", ""), unit="ms"),
        parse_delay(low.get("retry-after", ""), now=now),
        *(parse_delay(match[1]) for match in (info, in_text) if match),
    ]
    found = next((delay for delay in asked if delay is not None), None)
    return None if found is None else max(0.0, found)


def parse_delay(text: str, unit: str = "s", now: Clock = time.time) -> float | None:
    """Seconds from "12", "12.5s", "500ms" or an HTTP date; None when it is none of them."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(ms|s)?\s*", text)
    if match:
        return float(match[1]) / (1000 if (match[2] or unit) == "ms" else 1)
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() - now()
    except (TypeError, ValueError):
        return None


# ── money ─────────────────────────────────────────────────────────────────────────────────────────
class Budget:
    """A cap in dollars. The worst case of a call is held back before it is sent."""

    def __init__(self, max_usd: float | None = None, spent: float = 0.0) -> None:
        self.max_usd, self.spent, self.held = max_usd, spent, 0.0
        self._open, self._waiting = 0, list[asyncio.Future[None]]()

    async def reserve(self, worst: float) -> None:
        """Hold `worst` dollars; waits for calls in flight to settle, then raises BudgetReached."""
        while self.max_usd is not None and self.spent + self.held + worst > self.max_usd + 1e-12:
            if not self._open:
                said = f"budget: ${self.spent:.4f} of ${self.max_usd:.4f} is spent"
                todo = "What is done is kept; a larger --max-usd goes on from here."
                raise BudgetReached(f"{said}, and the next call could cost ${worst:.4f}. {todo}")
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._open += 1
        self.held += worst

    def settle(self, worst: float, cost: float) -> None:
        """Replace a held worst case by what the call really cost."""
        self._open -= 1
        self.held = self.held - worst if self._open else 0.0
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        _release(waiting, None)


def cost_of(usage: Usage, model: str, price: Mapping[str, float] | None) -> float | None:
    """Dollars for one call: from `price` (per million tokens), else genai-prices, else None."""
    if price is not None:
        cached = usage.cached_tokens * price.get("cached_input", price["input"])
        fresh = (usage.input_tokens - usage.cached_tokens) * price["input"]
        return (fresh + cached + usage.output_tokens * price["output"]) / 1e6
    prices = _price_table()
    if prices is None:
        return None
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    used = prices.Usage(**tokens, cache_read_tokens=usage.cached_tokens or None)
    with contextlib.suppress(LookupError):  # a model without a price
        return float(prices.calc_price(used, model_ref=model).total_price)
    return None


@functools.lru_cache(maxsize=1)
def _price_table() -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module("genai_prices")
    return None


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


# ── pace ──────────────────────────────────────────────────────────────────────────────────────────
class Pacer:
    """Send rate of one endpoint: free until the first 429, then slow start, steady growth, cuts."""

    TICK, CUT_GAP, FLOOR, WINDOW = 0.2, 0.3, 1.0, 1.0

    def __init__(
        self, slots: int, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.slots, self.clock, self.sleep = slots, clock, sleep
        self.rate: float | None = None
        self._slow_start = True
        self._next = self._grown = self._cut = -math.inf
        self._answers: deque[float] = deque(maxlen=4096)
        self._turns = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for the next place to send; one sleeps at a time, so none waits on an old rate."""
        if self.rate is None:
            return
        async with self._turns:
            ticks = int((self.clock() - self._grown) / self.TICK)
            if ticks > 0:  # half as much again per tick until the next 429, then 2 %
                growth = 1.5 if self._slow_start else 1.02
                self.rate = min(1e6, self.rate * growth ** min(ticks, 50))
                self._grown += ticks * self.TICK
            delay = self._next - self.clock()
            if delay > 0:
                await self.sleep(delay)
            self._next = max(self.clock(), self._next) + 1 / self.rate

    def answered(self) -> None:
        self._answers.append(self.clock())

    def limited(self) -> None:
        """A 429: cut to nine tenths of what was really answered; one cut for a burst of them."""
        now = self.clock()
        if now - self._cut < self.CUT_GAP:
            return
        while self._answers and self._answers[0] < now - self.WINDOW:
            self._answers.popleft()
        self._slow_start = self.rate is None
        lowest = max(self.FLOOR, self.slots / 2) if self.rate is None else self.FLOOR
        self.rate = max(lowest, 0.9 * len(self._answers) / self.WINDOW)
        self._cut = self._grown = now


class _Tally:
    """Counts what one call has been through. Time and tries spent on a 429 do not count."""

    def __init__(self, options: Options) -> None:
        self.o, self.faults, self.limits, self.excused = options, 0, 0, 0.0
        self.started, self.lost = options.clock(), 0.0  # lost: dollars perhaps paid for nothing

    def left(self) -> float:
        """Seconds until this call's deadline, waits for rate limits not counted."""
        return self.o.timeout - (self.o.clock() - self.started - self.excused)

    def again(self, exc: BaseException) -> bool:
        """Worth another try? Rate limits always are; other faults within tries and deadline."""
        if not isinstance(exc, Fault) or exc.kind not in RETRIED:
            return False
        if exc.kind == "rate_limit":
            self.limits += 1
            return True
        self.faults += 1
        most = min(self.o.tries, TRIES.get(exc.kind, self.o.tries))
        return self.faults < most and self.left() > (exc.wait or 0.0)

    def wait(self, state: RetryCallState) -> float:
        """What the provider asked for with some jitter on top, else full-jitter back-off."""
        fault: Any = state.outcome.exception() if state.outcome else None
        limited = fault.kind == "rate_limit"
        step = min(10, self.limits if limited else self.faults)
        delay = min(30.0, 0.5 * 2.0**step) * random.random()
        if fault.wait is not None:
            delay = fault.wait * random.uniform(1.0, 1.5)
        self.excused += delay if limited else 0.0
        return delay if limited else max(0.0, min(delay, self.left()))


# ── one model ─────────────────────────────────────────────────────────────────────────────────────
@dataclass
class _Live:
    """What belongs to one event loop: the client, the slots and the pace."""

    loop: asyncio.AbstractEventLoop
    client: Any
    keeper: AsyncGenerator[None, None]
    slots: asyncio.Semaphore
    pacer: Pacer
    probe: asyncio.Lock


class LLMBackend(contextlib.AbstractAsyncContextManager["LLMBackend"]):
    """One model behind one provider. A provider is `_client` and `_call`; the rest is here."""

    kind = key_variable = default_url = ""
    free = False  # runs on this machine, so that a call costs nothing

    def __init__(self, model: str, options: Options) -> None:
        self.model, self.o, self.name = model, options, f"{self.kind}:{model}"
        self.base_url = options.base_url or self.default_url
        self.key_variable = options.key_variable or self.key_variable
        self._api_key = (options.api_key or os.environ.get(self.key_variable, "")).strip()
        known_keys = (os.environ.get(name, "").strip() for name in KEYS)
        self._secrets = [key for key in {self._api_key, *known_keys} if len(key) >= 8]
        self.totals = Totals()
        self._live_state: _Live | None = None
        self._stopped: StopRun | None = None
        self._limited_since: float | None = None
        self._unanswered, self._frames = 0, dict[Any, Sequence[str]]()
        self.free = self.free or (options.price is None and is_loopback(self.base_url))
        if options.price is not None and not {"input", "output"} <= set(options.price):
            raise FinetuneError(f"{self.name}: a price needs `input` and `output` ($ per million)")

    async def complete(
        self, prompt: str, system: str | None = None, max_tokens: int | None = None, scope: str = ""
    ) -> CompletionResult:
        """Ask one question; raises ModelFailure for an unusable answer, or StopRun."""
        return await self.chat(_as_messages(prompt, system), max_tokens, scope=scope)

    async def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        schema: type[BaseModel] | None = None,
        scope: str = "",
    ) -> CompletionResult:
        """Send a conversation, get the next message; journalled, budgeted, paced and retried.
        With a journal and no scope, an equal request is the same call."""
        call = Call(_clean(messages), schema, max_tokens or self.o.max_tokens, scope)
        if self.o.journal is None:
            return self._result(await self._fresh(call), call, replayed=False)
        worst = 0.0 if self.free else self._worst(call)
        about = {"key": self._key(call), "scope": scope, "model": self.name, "worst": worst}
        record, replayed = await self.o.journal.once(about, lambda: self._fresh(call))
        return self._result(record, call, replayed)

    async def complete_structured(
        self,
        prompt: str | Sequence[Message],
        response_model: type[M],
        system: str | None = None,
        max_tokens: int | None = None,
        scope: str = "",
        replies: list[CompletionResult] | None = None,
    ) -> M | ModelFailure:
        """Ask for JSON of a Pydantic model: an instance, or the ModelFailure that says why not. One
        repair round shows the model its mistake. `replies` collects every reply that was paid."""
        asked = _as_messages(prompt, system) if isinstance(prompt, str) else list(prompt)
        problem, replies = "", [] if replies is None else replies
        try:
            for slot in (scope, f"{scope}.repair-1"):
                turns = asked + _repair(replies[-1].content, problem) if problem else asked
                replies.append(await self.chat(turns, max_tokens, response_model, slot))
                value, problem = parse_structured(replies[-1].content, response_model)
                if value is not None:
                    return value
        except ModelFailure as failure:
            return failure
        said = f"the reply does not fit the schema, also after one repair: {problem}"
        said += f" (first 80 characters: {replies[-1].content[:80]!r})"
        return self._failure("schema", said, replies[-1], scope)

    async def aclose(self) -> None:
        """Close the client; also happens by itself when the event loop ends."""
        live, self._live_state = self._live_state, None
        if live is not None and live.loop is asyncio.get_running_loop():
            await live.keeper.aclose()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _client(self) -> Any:
        """Make the long-lived client; called once for an event loop."""

    async def _close(self, client: Any) -> None:
        """Close what `_client` made."""

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        """One request, one reply with the provider's own stop word: no retry, no judgement."""
        raise FinetuneError(f"{type(self).__name__} has no `_call`")

    def _identity(self) -> dict[str, Any]:
        """What makes an answer this model's: part of every journal key."""
        elsewhere = self.base_url != self.default_url
        place = {"endpoint": self.o.label or urlsplit(self.base_url).hostname} if elsewhere else {}
        return {"provider": self.kind, "model": self.model, **place}

    async def _fresh(self, call: Call) -> dict[str, Any]:
        """Ask the provider: the record of its answer or of a typed failure; raises StopRun."""
        live, tally = await self._live(), _Tally(self.o)
        async with live.slots:
            tally.started = self.o.clock()
            try:
                return await self._attempt(call, live, tally)
            except Fault as fault:
                try:
                    record = await self._again(fault, call, live, tally)
                except Fault as last:
                    record = self._unanswered_call(last, call)
            except StopRun as stop:
                record = self._unanswered_call(Fault("stopped", str(stop)), call, stop)
        return record | ({"lost": tally.lost} if tally.lost else {})

    async def _again(self, first: Fault, call: Call, live: _Live, tally: _Tally) -> dict[str, Any]:
        """Retry after a first fault. Only here, because most calls never need the machinery."""
        from tenacity import AsyncRetrying, retry_if_exception

        again, faults = retry_if_exception(tally.again), [first]
        retry = AsyncRetrying(retry=again, wait=tally.wait, sleep=self.o.sleep, reraise=True)
        async for attempt in retry:
            with attempt:
                if faults:
                    raise faults.pop()
                return await self._attempt(call, live, tally)
        raise AssertionError("unreachable: retrying returns or raises")

    async def _attempt(self, call: Call, live: _Live, tally: _Tally) -> dict[str, Any]:
        """One request within its slot, its pace, its budget and its deadline."""
        asked = self.o.clock()
        await live.pacer.turn()
        if self._stopped is not None:
            raise self._stopped
        worst = await self._reserve(call)
        tally.excused += self.o.clock() - asked  # waiting for a turn is nobody's fault
        charged = worst  # until we know better: a cancelled call may have been paid
        try:
            async with asyncio.timeout(min(self.o.attempt_timeout, max(0.01, tally.left()))):
                reply = self._priced(await self._call(call, live), call)
            charged = reply.cost or 0.0
            live.pacer.answered()
            return self._record(reply)
        except Exception as exc:  # noqa: BLE001 - a bug is raised again as it is
            fault = self._fault(exc, live)
            charged = charged if fault.kind in MAYBE_PAID else 0.0
            if fault.kind in MAYBE_PAID and not self.free:
                tally.lost += charged or self._worst(call) or 0.0
            raise fault from None
        finally:
            if self.o.budget is not None:
                self.o.budget.settle(worst, charged)

    def _fault(self, exc: Exception, live: _Live) -> Fault:
        """Translate and act on what one attempt raised; a bug goes on as it is."""
        own = self.kind == "python" and not isinstance(exc, Fault | TimeoutError)
        fault = None if own else fault_of(exc)  # the project's code speaks no provider's words
        if fault is None:
            if own or type(exc).__name__ not in ("TypeError", "ValidationError"):
                raise exc
            fault = Fault("bad_parameters", f"{exc}")
        kind, words = fault.kind, self.redact(" ".join(str(fault).split()))[:600]
        if kind == "rate_limit":
            live.pacer.limited()
            kind, words = self._limited(words, fault.wait or 0.0)
        if kind in STOPS:
            todo = STOPS[kind].format(key=self.key_variable or "api_key")
            raise self._stop(f"{words}. The run stops: {todo}") from None
        return Fault(kind, words, fault.wait)

    def _limited(self, words: str, wait: float) -> tuple[str, str]:
        """A rate limit, unless it asks for more patience than there is."""
        now, o = self.o.clock(), self.o
        self.totals.limited += 1
        self._limited_since = now if self._limited_since is None else self._limited_since
        if wait > o.max_wait:
            return "spent", f"{words} (asks to wait {wait:.0f} s; the cap is {o.max_wait:.0f})"
        if now - self._limited_since > o.patience:
            return "spent", f"{words} (nothing but rate limits for {o.patience:.0f} s)"
        return "rate_limit", words

    def _stop(self, said: str) -> StopRun:
        """The one error with which every further call of this backend ends."""
        said = f"{self.name}: {said}. What is done is kept; run again to go on."
        self._stopped = self._stopped or StopRun(said)
        return self._stopped

    def _priced(self, reply: CompletionResult, call: Call) -> CompletionResult:
        """Add the cost, and an estimate where the provider counted no tokens."""
        usage, cost = reply.usage, reply.cost
        if not usage.input_tokens:
            sent = sum(len(m["content"].encode()) // 4 + 4 for m in call.messages)
            usage = Usage(sent, 1 + len(reply.content.encode()) // 4, estimated=True)
        if self.free or cost is None:
            cost = 0.0 if self.free else cost_of(usage, self.model, self.o.price)
        return replace(reply, usage=usage, cost=cost)

    def _record(self, reply: CompletionResult) -> dict[str, Any]:
        """What the journal keeps of a reply: its raw text, whatever is made of it later."""
        word, model = self.redact(reply.stop_reason).lower(), self.redact(_utf8_safe(reply.model))
        text = self.redact(_utf8_safe(reply.content))
        stop = next((kind for kind, words in STOP_WORDS.items() if word in words.split()), word)
        if not text.strip() and stop not in ANSWERED:
            raise Fault("empty", f"the reply is blank (stop reason: {word or 'none'})")
        self._limited_since, self._unanswered = None, 0
        failure = "too_long" if len(text) > MAX_REPLY else stop if stop in ANSWERED else None
        notes = list(reply.notes)
        if not (model.startswith(self.model) or self.model.endswith(model)):
            notes.append(f"asked {self.model}, answered by {model}")
        told: dict[str, Any] = {"content": text[:MAX_REPLY], "model": model}
        told |= {"usage": vars(reply.usage), "stop_reason": stop or "unknown", "cost": reply.cost}
        return told | {"notes": notes, "failure": failure}

    def _unanswered_call(
        self, fault: Fault, call: Call, stop: StopRun | None = None
    ) -> dict[str, Any]:
        """The record of a call that got no answer; too many of them in a row stop the run."""
        self._unanswered += fault.kind in NOBODY_THERE
        if self._unanswered >= DEAD_CALLS:
            said = f"the last {self._unanswered} calls got no answer ({fault}). The run stops"
            stop = self._stop(f"{said}: check the network and the provider")
        call.stop = stop
        nothing: dict[str, Any] = {"content": "", "model": "", "usage": {}, "stop_reason": ""}
        return nothing | {"cost": 0.0, "failure": fault.kind, "message": str(fault)}

    def _result(self, record: Mapping[str, Any], call: Call, replayed: bool) -> CompletionResult:
        """Count a record, fresh or replayed, and make a result or a ModelFailure of it."""
        if call.stop is not None:
            raise call.stop
        usage, failure = Usage(**record["usage"]), record["failure"]
        told = (record["content"], record["model"], usage, record["stop_reason"], record["cost"])
        reply = CompletionResult(*told, tuple(record.get("notes", ())), replayed)
        totals, fresh = self.totals, not replayed
        totals.calls += fresh
        totals.replayed += replayed
        totals.tokens += fresh * (reply.usage.input_tokens + reply.usage.output_tokens)
        totals.cost += fresh * (reply.cost or 0.0)
        totals.unknown_costs += fresh and reply.cost is None and failure not in RETRIED
        if failure:
            said = record.get("message") or ANSWERED[failure].format(limit=call.max_tokens)
            raise self._failure(failure, said, reply, call.scope)
        return reply

    def _failure(self, kind: str, said: str, reply: CompletionResult, scope: str) -> ModelFailure:
        self.totals.failures[kind] += 1
        where = f"{self.name} on {scope}" if scope else self.name
        message = f"{where}: {said}. Recorded as a failure ({kind}), not as an answer."
        return ModelFailure(kind, message, reply, scope)

    def _key(self, call: Call) -> str:
        """The hash of a whole request as canonical JSON; what all calls share is made once."""
        asked = call.schema, call.max_tokens
        if asked not in self._frames:
            schema = strict_schema(call.schema) if call.schema else None
            about: dict[str, Any] = {"messages": [], "schema": schema, **self._identity()}
            about |= {"max_tokens": call.max_tokens, "parameters": dict(self.o.parameters)}
            self._frames[asked] = canonical_text({"request": about}).partition('"messages":[]')
        before, _, after = self._frames[asked]
        tail = f'{after[:-1]},"scope":{json.dumps(call.scope)},"v":{SCHEMA}}}'
        return hashlib.sha256(f'{before}"messages":[{call.told}]{tail}'.encode()).hexdigest()

    def _worst(self, call: Call) -> float | None:
        """The most an attempt can cost: a token for each byte sent, and all tokens of the reply."""
        sent = sum(len(message["content"].encode()) + 16 for message in call.messages)
        sent += len(json.dumps(strict_schema(call.schema))) if call.schema else 0
        return cost_of(Usage(sent, call.max_tokens), self.model, self.o.price)

    async def _reserve(self, call: Call) -> float:
        if self.o.budget is None:
            return 0.0
        worst = 0.0 if self.free else self._worst(call)
        if worst is None and self.o.budget.max_usd is not None:
            todo = "Set `price: {input: ..., output: ...}` (dollars per million) in project.yaml"
            said = "its price is unknown, so a dollar cap cannot be kept"
            raise StopRun(f"{self.name}: {said}. {todo}, or install finetune-skills[prices].")
        await self.o.budget.reserve(worst or 0.0)
        return worst or 0.0

    def redact(self, text: str) -> str:
        """Any known key in a text becomes [key]."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def _require_key(self) -> str:
        if not self._api_key:
            raise StopRun(f"{self.name}: no API key. Set {self.key_variable}, perhaps in .env.")
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise StopRun(f"{self.name}: the key in {self.key_variable} has characters no key has.")
        return self._api_key

    async def _live(self) -> _Live:
        """The running loop's client; an asynchronous generator keeps it, so that both end."""
        loop = asyncio.get_running_loop()
        if self._live_state is None or self._live_state.loop is not loop:
            client, slots = self._client(), asyncio.Semaphore(self.o.concurrency)
            pacer = Pacer(self.o.concurrency, self.o.clock, self.o.sleep)
            keeper = self._keep(client)
            self._live_state = _Live(loop, client, keeper, slots, pacer, asyncio.Lock())
            await anext(keeper)
        return self._live_state

    async def _keep(self, client: Any) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close(client)


def _as_messages(prompt: str, system: str | None) -> list[Message]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def _clean(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Plain role and content, fit for any transport; anything else is the caller's mistake."""
    clean = []
    for number, m in enumerate(messages):
        role, text = m.get("role"), m.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(text, str):
            raise FinetuneError(f"message {number}: needs text and a role: system, user, assistant")
        clean.append({"role": role, "content": _utf8_safe(text)})
    if not clean:
        raise FinetuneError("a call needs at least one message")
    return clean


def _utf8_safe(text: str) -> str:
    """Lone surrogates become question marks: no transport and no file can carry them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class _Encoded(dict[tuple[str, str], str]):
    """Messages as JSON, by role and text: a history that is sent again costs only what is new."""

    held, room = 0, 8_000_000  # characters, now and at most

    def __missing__(self, message: tuple[str, str]) -> str:
        text = f'{{"content":{json.dumps(message[1])},"role":"{message[0]}"}}'
        self.held += len(text)
        if self.held > self.room:
            self.clear()
            self.held = 0
        else:
            self[message] = text
        return text


ENCODED = _Encoded()


def _split_system(messages: Sequence[Message]) -> tuple[str, list[dict[str, str]]]:
    """The system text, and the turns without it, for providers that take them apart."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return system, [dict(m) for m in messages if m["role"] != "system"]


def needs(module: str, extra: str, who: str) -> Any:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        said = f"{who}: the package `{module}` is not installed ({exc}). In a project: .venv/bin/"
        raise StopRun(f"{said}pip install '.[{extra}]'; else 'finetune-skills[{extra}]'") from None


# ── structured output ─────────────────────────────────────────────────────────────────────────────
@functools.lru_cache(maxsize=128)
def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a Pydantic model in strict form: all required, no extras, no defaults."""
    schema = model.model_json_schema()
    _close_objects(schema)
    return schema


def _close_objects(node: Any) -> None:
    if isinstance(node, dict):
        node.pop("default", None)
        if isinstance(node.get("properties"), dict):
            node["additionalProperties"], node["required"] = False, list(node["properties"])
        for key, part in node.items():
            for inner in part.values() if key in ("properties", "$defs") else [part]:
                _close_objects(inner)
    for part in node if isinstance(node, list) else []:
        _close_objects(part)


def parse_structured(text: str, model: type[M]) -> tuple[M | None, str]:
    """A valid instance, or None and what is wrong; JSON inside a code fence or prose is found."""
    from pydantic import ValidationError

    problem, inner = "", re.search(r"\{.*\}", text, re.DOTALL)
    for candidate in [text] + ([inner[0]] if inner and inner[0] != text else []):
        try:
            return model.model_validate_json(candidate), ""
        except ValidationError as exc:
            found = exc.errors(include_url=False)[:8]
            wrong = (f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in found)
            problem = "; ".join(wrong)
    return None, problem


def _repair(text: str, problem: str) -> list[Message]:
    ask = f"Your reply does not fit the JSON schema: {problem}\nAnswer with JSON that fits it."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": ask}]


def _schema_format(schema: type[BaseModel]) -> dict[str, Any]:
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", schema.__name__)[:64]
    wanted = {"name": name, "strict": True, "schema": strict_schema(schema)}
    return {"type": "json_schema", "json_schema": wanted}


# ── providers ─────────────────────────────────────────────────────────────────────────────────────
def _pick(source: Any, *names: str) -> Any:
    """A field, or a field's field, of an SDK's object or of plain JSON; None where missing."""
    for name in names:
        source = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
    return source


def _number(source: Any, *names: str) -> int:
    value = _pick(source, *names)
    return value if isinstance(value, int) else 0


def _text(source: Any, *names: str) -> str:
    value = _pick(source, *names)
    return value if isinstance(value, str) else ""


def _not_a_reply(body: Any) -> Fault:
    return Fault("undecodable", f"the reply has not the API's form: {str(body)[:20_000]}")


def _chat_reply(body: Any) -> CompletionResult:
    """Read a chat completion, from the SDK or as plain JSON."""
    choices, usage = _pick(body, "choices"), _pick(body, "usage")
    message = _pick(choices[0], "message") if isinstance(choices, list) and choices else None
    if message is None:
        raise _not_a_reply(body)
    text, stop = _text(message, "content"), _text(choices[0], "finish_reason")
    if _text(message, "refusal"):
        text, stop = _text(message, "refusal"), "refusal"
    elif not text and (_pick(message, "tool_calls") or _pick(message, "function_call")):
        stop = "tool_calls"
    thought = _number(usage, "completion_tokens_details", "reasoning_tokens")
    cached = _number(usage, "prompt_tokens_details", "cached_tokens")
    sent, made = _number(usage, "prompt_tokens"), _number(usage, "completion_tokens")
    return CompletionResult(text, _text(body, "model"), Usage(sent, made, thought, cached), stop)


class OpenAIBackend(LLMBackend):
    """OpenAI's chat completions through its SDK."""

    kind = "openai"
    sdk_class = "AsyncOpenAI"
    key_variable, default_url = "OPENAI_API_KEY", "https://api.openai.com/v1"

    def _client(self) -> Any:
        make = getattr(needs(self.kind, self.kind, self.name), self.sdk_class)
        limits = {"max_retries": 0, "timeout": self.o.attempt_timeout}
        return make(api_key=self._require_key(), base_url=self.base_url, **limits)

    async def _close(self, client: Any) -> None:
        await client.close()

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        asked: dict[str, Any] = {"max_completion_tokens": call.max_tokens, **self.o.parameters}
        if call.schema:
            asked["response_format"] = _schema_format(call.schema)
        create = live.client.chat.completions.create
        return _chat_reply(await create(model=self.model, messages=call.messages, **asked))


class AnthropicBackend(OpenAIBackend):
    """Anthropic's messages through its SDK, whose client is made like OpenAI's."""

    kind = "anthropic"
    sdk_class = "AsyncAnthropic"
    key_variable, default_url = "ANTHROPIC_API_KEY", "https://api.anthropic.com"

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        system, turns = _split_system(call.messages)
        asked: dict[str, Any] = {"max_tokens": call.max_tokens, **self.o.parameters}
        gone = {k: asked.pop(k) for k in ("temperature", "top_p", "top_k") if k in asked}
        if gone:  # the SDK has no such arguments any more; older models still take the fields
            asked["extra_body"] = asked.get("extra_body", {}) | gone
        if system:
            asked["system"] = system
        if call.schema:
            wanted = {"type": "json_schema", "schema": strict_schema(call.schema)}
            asked["output_config"] = asked.get("output_config", {}) | {"format": wanted}
        body = await live.client.messages.create(model=self.model, messages=turns, **asked)
        if not isinstance(_pick(body, "content"), list):
            raise _not_a_reply(body)
        text = "".join(_text(b, "text") for b in body.content if _pick(b, "type") == "text")
        usage = _anthropic_usage(body.usage)
        return CompletionResult(text, _text(body, "model"), usage, _text(body, "stop_reason"))


def _anthropic_usage(usage: Any) -> Usage:
    cached = _number(usage, "cache_read_input_tokens")
    sent = _number(usage, "input_tokens") + cached + _number(usage, "cache_creation_input_tokens")
    thought = _number(usage, "output_tokens_details", "thinking_tokens")
    return Usage(sent, _number(usage, "output_tokens"), thought, cached)


class GoogleBackend(LLMBackend):
    """Gemini through google-genai."""

    kind = "google"
    key_variable, default_url = "GOOGLE_API_KEY", "https://generativelanguage.googleapis.com/"

    def _client(self) -> Any:
        sdk, limit = needs("google.genai", "google", self.name), int(self.o.attempt_timeout * 1000)
        once = sdk.types.HttpRetryOptions(attempts=1)  # or it sends again after a lost connection
        http = sdk.types.HttpOptions(base_url=self.base_url, timeout=limit, retry_options=once)
        return sdk.Client(api_key=self._require_key(), vertexai=False, http_options=http)

    async def _close(self, client: Any) -> None:
        await client.aio.aclose()

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        system, turns = _split_system(call.messages)
        roles = {"assistant": "model", "user": "user"}
        contents = [{"role": roles[m["role"]], "parts": [{"text": m["content"]}]} for m in turns]
        config: dict[str, Any] = {"max_output_tokens": call.max_tokens, **self.o.parameters}
        if system:
            config["system_instruction"] = system
        if call.schema:
            config["response_mime_type"] = "application/json"
            config["response_json_schema"] = strict_schema(call.schema)
        ask = live.client.aio.models.generate_content
        return self._read(await ask(model=self.model, contents=contents, config=config))

    def _read(self, body: Any) -> CompletionResult:
        used, candidates = _pick(body, "usage_metadata"), _pick(body, "candidates")
        thought, sent = _number(used, "thoughts_token_count"), _number(used, "prompt_token_count")
        made, cached = _number(used, "candidates_token_count"), "cached_content_token_count"
        usage = Usage(sent, made + thought, thought, _number(used, cached))
        if _pick(body, "prompt_feedback", "block_reason"):
            return CompletionResult("", _text(body, "model_version"), usage, "content_filter")
        if not candidates:
            raise _not_a_reply(body)
        parts = _pick(candidates[0], "content", "parts") or []
        text = "".join(_text(part, "text") for part in parts if not _pick(part, "thought"))
        tool = not text and any(_pick(part, "function_call") for part in parts)
        stop = "function_call" if tool else _text(candidates[0], "finish_reason", "value")
        return CompletionResult(text, _text(body, "model_version"), usage, stop)


class LocalBackend(LLMBackend):
    """Any server with OpenAI's chat endpoint, over one plain HTTP session: the fast path."""

    kind = "local"
    MODES = ("json_schema", "json_object", "text")

    def __init__(self, model: str, options: Options) -> None:
        if options.preset and options.preset not in PRESETS:
            raise FinetuneError(f"local:{model}: {unknown('preset', options.preset, PRESETS)}")
        url, variable = PRESETS.get(options.preset, ("", ""))
        self.default_url, self.key_variable = "", variable
        label = options.label or options.preset
        super().__init__(model, replace(options, base_url=options.base_url or url, label=label))
        if not self.base_url:
            raise FinetuneError(f"{self.name}: needs a base_url, or a preset: {', '.join(PRESETS)}")
        self._root = self.base_url.rstrip("/")
        self.structured_mode: str | None = None  # what the server was found to understand

    def _client(self) -> Any:
        aiohttp = needs("aiohttp", "local", self.name)
        headers = {"Content-Type": "application/json"}
        if self.key_variable or self._api_key:
            headers["Authorization"] = f"Bearer {self._require_key()}"
        pool = aiohttp.TCPConnector(limit=self.o.concurrency)
        no_limit = aiohttp.ClientTimeout(total=None)  # the deadline around the attempt rules
        own = {"trust_env": not is_loopback(self.base_url), "cookie_jar": aiohttp.DummyCookieJar()}
        return aiohttp.ClientSession(connector=pool, timeout=no_limit, headers=headers, **own)

    async def _close(self, client: Any) -> None:
        await client.close()

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        if call.schema is None or self.structured_mode is not None:
            return await self._ask(call, live.client, self.structured_mode or "text")
        async with live.probe:  # one call finds out what the server understands, the others wait
            for mode in self.MODES if self.structured_mode is None else ():
                try:
                    reply = await self._ask(call, live.client, mode)
                except HttpStatus as exc:
                    if mode == "text" or exc.status_code not in (400, 415, 422, 501):
                        raise
                else:
                    self.structured_mode = mode
                    return reply
        return await self._ask(call, live.client, self.structured_mode or "text")

    async def _ask(self, call: Call, client: Any, mode: str) -> CompletionResult:
        """One request in one mode; below json_schema the schema goes into the last message."""
        extra = dict(self.o.parameters)
        if call.schema is not None and mode == "json_schema":
            extra["response_format"] = _schema_format(call.schema)
        elif call.schema is not None:
            wanted = "\n\nAnswer with JSON that fits this schema: "
            *turns, last = call.messages
            text = last["content"] + wanted + json.dumps(strict_schema(call.schema))
            call = replace(call, messages=[*turns, {**last, "content": text}])
            extra |= {"response_format": {"type": "json_object"}} if mode == "json_object" else {}
        rest = json.dumps({"model": self.model, "max_tokens": call.max_tokens, **extra})
        body = f'{{"messages":[{call.told}],{rest[1:]}'.encode()
        async with client.post(f"{self._root}/chat/completions", data=body) as response:
            raw = await _whole_body(response)
            if response.status != 200:
                raise HttpStatus(response.status, raw.decode("utf-8", "replace"), response.headers)
        reply = _chat_reply(json.loads(raw))
        return replace(reply, notes=(f"structured: {mode}",)) if call.schema else reply


async def _whole_body(response: Any) -> bytes:
    """The body of a reply, within a bound on memory."""
    limit, raw = 4 * MAX_REPLY, bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > limit:
            raise Fault("rejected", f"the reply is longer than {limit} bytes")
    return bytes(raw)


class ClaudeBackend(LLMBackend):
    """The Claude Code command line, kept away from the user's settings, tools and project."""

    kind, key_variable = "claude", "ANTHROPIC_API_KEY"
    # No settings, servers, sessions, commands or tools; `--tools ""` swallows what follows it.
    ALONE = ("--no-session-persistence", "--strict-mcp-config", "--disable-slash-commands")
    KEPT = frozenset({"CLAUDE_CONFIG_DIR", "CLAUDE_CODE_OAUTH_TOKEN"})
    OFF = (
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC CLAUDE_CODE_DISABLE_CLAUDE_MDS "
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY DISABLE_AUTOUPDATER"
    )

    def _client(self) -> Any:
        found = shutil.which(self.o.executable)
        if found is None:
            said = f"`{self.o.executable}` is not on the PATH"
            raise StopRun(f"{self.name}: {said}. Install Claude Code, or set `executable`.")
        return found

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        """The child works in an empty folder of its own; the system prompt is a file beside it."""
        system, turns = _split_system(call.messages)
        told = [f"[{m['role']}]\n{m['content']}" for m in turns] + ["Write the next [assistant]."]
        prompt = turns[0]["content"] if len(turns) == 1 else "\n\n".join(told)
        argv = [live.client, "-p", "--output-format", "json", "--model", self.model, *self.ALONE]
        argv += ["--json-schema", json.dumps(strict_schema(call.schema))] if call.schema else []
        for name, value in self.o.parameters.items():
            argv += [f"--{name}", str(value)]
        with tempfile.TemporaryDirectory() as room:
            empty, file = Path(room, "empty"), Path(room, "system.md")
            empty.mkdir()
            file.write_text(system or "Answer the user.", encoding="utf-8")
            argv += ["--system-prompt-file", str(file), "--setting-sources", "", "--tools", ""]
            code, out, err = await self._run(argv, prompt, empty, call.max_tokens)
        return self._read(code, out, err, call.max_tokens)

    async def _run(
        self, argv: list[str], prompt: str, cwd: Path, max_tokens: int
    ) -> tuple[int, bytes, bytes]:
        """Run the child with the prompt on stdin; it does not outlive a cancelled or late call."""
        env = {k: v for k, v in os.environ.items() if k in self.KEPT or not k.startswith("CLAUDE")}
        env |= {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(max_tokens), "CLAUDE_CODE_MAX_RETRIES": "0"}
        env |= {"ANTHROPIC_BASE_URL": self.base_url} if self.base_url else {}
        env |= {"ANTHROPIC_API_KEY": self._api_key} if self._api_key else {}
        env |= dict.fromkeys(self.OFF.split(), "1")
        start, pipe = asyncio.create_subprocess_exec, asyncio.subprocess.PIPE
        place: dict[str, Any] = {"cwd": cwd, "env": env, "start_new_session": True}
        child = await start(*argv, stdin=pipe, stdout=pipe, stderr=pipe, **place)
        try:
            out, err = await child.communicate(prompt.encode())
            return child.returncode or 0, out, err
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()

    def _read(self, code: int, out: bytes, err: bytes, max_tokens: int) -> CompletionResult:
        """Flag and exit code first: on failure `subtype` still says success."""
        try:
            said = json.loads(out)
        except ValueError:
            words = self.redact((err or out).decode("utf-8", "replace")).strip()[-300:]
            raise Fault("transport", f"exit code {code} and no result: {words}") from None
        text, stop = _text(said, "result"), _text(said, "stop_reason")
        made, usage = _pick(said, "structured_output"), _anthropic_usage(_pick(said, "usage"))
        if code != 0 or _pick(said, "is_error") is not False:
            stop = "max_tokens" if "output token maximum" in text else stop
            stop = SCHEMA_GIVEN_UP if _text(said, "subtype") == SCHEMA_GIVEN_UP else stop
            if stop not in ("refusal", "max_tokens", SCHEMA_GIVEN_UP):
                raise self._error(code, said)
        elif made is not None:
            text, stop = json.dumps(made), "stop"
        elif usage.output_tokens > max_tokens:
            stop = "max_tokens"  # it was cut, the program asked on by itself, and this is the tail
        model, cost = next(iter(_pick(said, "modelUsage") or {}), ""), _pick(said, "total_cost_usd")
        return CompletionResult(text, model, usage, stop, cost)

    def _error(self, code: int, said: Any) -> Exception:
        status = _pick(said, "api_error_status")
        words = f"{_text(said, 'api_error_type')} {_text(said, 'result')} (exit code {code})"
        if isinstance(status, int):
            return HttpStatus(status, words, {})
        no_key = re.search(r"log ?in|api key|credential|authenticat", words, re.IGNORECASE)
        spent = "spent" if SPENT.search(words) else "overloaded"
        return Fault("denied" if no_key else spent, words)


class LlamaCppBackend(LLMBackend):
    """A GGUF file in this process: one worker thread, one call in flight."""

    kind, free = "llamacpp", True

    def __init__(self, model: str, options: Options) -> None:
        super().__init__(model, replace(options, concurrency=1))
        self._path, self._leave = Path(model).expanduser(), threading.Event()

    def _client(self) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        if not self._path.is_file():
            raise StopRun(f"{self.name}: there is no such GGUF file")
        engine = needs("llama_cpp", "llamacpp", self.name).Llama
        pool = ThreadPoolExecutor(1, thread_name_prefix="llamacpp")
        return pool, pool.submit(engine, str(self._path), n_ctx=self.o.n_ctx, verbose=False)

    async def _close(self, client: Any) -> None:
        self._leave.set()
        client[0].shutdown(wait=True, cancel_futures=True)

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        """The thread looks at a flag after each token, so a late call leaves the engine free."""
        pool, engine = live.client
        self._leave = leave = threading.Event()
        work = functools.partial(self._generate, engine.result, call, leave)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            leave.set()

    def _generate(
        self, engine: Callable[[], Any], call: Call, leave: threading.Event
    ) -> CompletionResult:
        asked: dict[str, Any] = {"max_tokens": call.max_tokens, "stream": True, **self.o.parameters}
        if call.schema:
            asked["response_format"] = {"type": "json_object", "schema": strict_schema(call.schema)}
        text, stop, made = "", "", 0
        for chunk in engine().create_chat_completion(messages=call.messages, **asked):
            choice = chunk["choices"][0]
            piece = choice["delta"].get("content") or ""
            text, stop, made = text + piece, choice.get("finish_reason") or stop, made + bool(piece)
            if leave.is_set():
                raise Fault("timeout", "the call was given up")
        usage = Usage(max(1, engine().n_tokens - made), made)
        return CompletionResult(text, self.model, usage, stop)

    def _identity(self) -> dict[str, Any]:
        return {"provider": self.kind, "file": file_hash(self._path), "n_ctx": self.o.n_ctx}


class PythonBackend(LLMBackend):
    """A function of the project: `def reply(messages, *, schema=None, scope="") -> str`."""

    kind, free = "python", True

    def __init__(self, model: str, options: Options) -> None:
        super().__init__(model, options)
        root = Path(options.root) if options.root else find_project() or Path.cwd()
        module, _, self._function = model.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), self._function]):
            raise FinetuneError(f"{self.name}: write it as module:callable (fakes.judge:reply)")
        base = root.joinpath(*module.split("."))
        self._path = (base / "__init__.py" if base.is_dir() else base.with_suffix(".py")).resolve()
        if not self._path.is_file() or not self._path.is_relative_to(root.resolve()):
            raise FinetuneError(f"{self.name}: {module} is no module under the project root {root}")

    def _client(self) -> Any:
        """Load the file under a private name, so that two projects never mix."""
        name = f"_project_{canonical_hash(str(self._path))[:12]}_{self._path.stem}"
        if name not in sys.modules:
            spec: Any = importlib.util.spec_from_file_location(name, self._path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[name])
            except BaseException:
                del sys.modules[name]
                raise
        found = getattr(sys.modules[name], self._function, None)
        if not callable(found):
            raise FinetuneError(f"{self.name}: {self._path} has no function `{self._function}`")
        return found

    async def _call(self, call: Call, live: _Live) -> CompletionResult:
        said = live.client(call.messages, schema=call.schema, scope=call.scope)
        said = await said if inspect.isawaitable(said) else said
        if not isinstance(said, str):
            raise FinetuneError(f"{self.name}: returned {type(said).__name__}, and not text")
        return CompletionResult(said, self.model, Usage(), "stop")

    def _identity(self) -> dict[str, Any]:
        return {"provider": self.kind, "model": self.model, "source": file_hash(self._path)}


HOSTED = (OpenAIBackend, AnthropicBackend, GoogleBackend)
OWN = (LocalBackend, ClaudeBackend, LlamaCppBackend, PythonBackend)
KINDS: dict[str, type[LLMBackend]] = {cls.kind: cls for cls in HOSTED + OWN}


def get_backend(kind: str, model: str | None = None, **options: Any) -> LLMBackend:
    """A new backend for a kind and a model, or for a spec such as `anthropic:MODEL`."""
    kind, _, named = kind.partition(":")
    if kind not in KINDS:
        raise FinetuneError(unknown("provider", kind, KINDS))
    model = model or named
    if not model:
        raise FinetuneError(f"{kind}: no model is named. Write {kind}:MODEL; none is built in.")
    known = {option.name for option in fields(Options)}
    for option in sorted(set(options) - known):
        hint = "Sampling and reasoning settings go into `parameters`."
        raise FinetuneError(f"{kind}:{model}: {unknown('option', option, known)} {hint}")
    return KINDS[kind](model, Options(**{k: v for k, v in options.items() if v is not None}))


def unknown(what: str, given: str, have: Iterable[str]) -> str:
    """An unknown word, the nearest known one, and all of them."""
    have = sorted(map(str, have))
    near = [name for name in have if name == ALIASES.get(given.lower())]
    near = near or difflib.get_close_matches(given.lower(), have, 1, 0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'"{given}" is not a known {what}.{hint} Have: {", ".join(have)}.'


# ══ 2 Runs ════════════════════════════════════════════════════════════════════════════════════════
@dataclass
class RunReport(Generic[Item, Result]):
    """What became of every item: done + failed + pending = all that were given."""

    total: int = 0
    done: list[tuple[Item, Result]] = field(default_factory=list)
    failed: list[tuple[Item, Exception]] = field(default_factory=list)
    pending: list[Item] = field(default_factory=list)
    stopped: StopRun | None = None
    interrupted: int = 0  # the signal's number

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 128 + n for a signal, else the stop's own code."""
        if self.interrupted:
            return 128 + self.interrupted
        return self.stopped.exit_code if self.stopped else int(bool(self.failed or self.pending))

    def summary(self) -> str:
        text = f"{len(self.done)} done, {len(self.failed)} failed, {len(self.pending)} pending"
        return f"{text}\n{self.stopped}" if self.stopped else text


async def run_all(
    items: Iterable[Item],
    work: Callable[[Item], Awaitable[Result]],
    *,
    concurrency: int = 8,
    label: str = "run",
    progress: bool = True,
    backends: Sequence[LLMBackend] = (),
    drain: float = 10.0,
) -> RunReport[Item, Result]:
    """Work on all items, `concurrency` at once; a free place takes the next item at once.

    One bad item never costs another. Ctrl-C, SIGTERM and SIGHUP start nothing new and give what is
    in flight `drain` seconds; a second one ends it at once. A StopRun ends the run in the same way.
    """
    known, flying = list(items), Counter[str]()
    report: RunReport[Item, Result] = RunReport(len(known))
    queue, show = iter(known), _Progress(label, backends, progress)

    async def place() -> None:
        while not report.interrupted and report.stopped is None:
            item = next(queue, flying)  # the counter stands for "no item left"
            if item is flying:
                return
            flying["now"] += 1
            await _work_on(item, work, report)  # type: ignore[arg-type]
            flying["now"] -= 1
            show(report, flying["now"])

    places = [asyncio.ensure_future(place()) for _ in range(max(1, min(concurrency, len(known))))]
    with _signals(report, places, drain):
        try:
            await asyncio.gather(*places)
        except asyncio.CancelledError:
            await asyncio.gather(*places, return_exceptions=True)
            if not report.interrupted:
                raise
    report.pending.extend(queue)
    show(report, 0, last=True)
    return report


async def _work_on(item: Item, work: Callable[[Item], Awaitable[Result]], report: Any) -> None:
    try:
        report.done.append((item, await work(item)))
    except StopRun as stop:
        report.stopped = report.stopped or stop
        report.pending.append(item)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            report.pending.append(item)
            raise
        report.failed.append((item, FinetuneError("the work on this item cancelled itself")))
    except Exception as exc:  # noqa: BLE001 - kept in the report, counted and shown
        report.failed.append((item, exc))


@contextlib.contextmanager
def _signals(report: Any, places: Sequence[asyncio.Future[None]], drain: float) -> Iterator[None]:
    """The first signal drains, the second cancels; what handled them before comes back."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for place in places:
            place.cancel()

    def received(number: int, _: FrameType | None) -> None:
        again, report.interrupted = bool(report.interrupted), number
        loop.call_soon_threadsafe(*([stop] if again else [loop.call_later, drain, stop]))

    main = threading.current_thread() is threading.main_thread()
    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if main else []
    wanted = [each for each in wanted if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, received) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """One line on stderr: rewritten on a terminal, a new one every 30 seconds in a log."""

    def __init__(self, label: str, backends: Sequence[LLMBackend], on: bool) -> None:
        self.label, self.backends, self.on = label, backends, on
        self.started = self.shown = time.monotonic()

    def __call__(self, report: RunReport[Any, Any], flying: int, last: bool = False) -> None:
        if not self.on:
            return
        now, live = time.monotonic(), sys.stderr is not None and sys.stderr.isatty()
        if last or now - self.shown >= (0.2 if live else 30.0):
            self.shown = now
            line = progress_line(self.label, report, flying, now - self.started, self.backends)
            width = shutil.get_terminal_size().columns - 1
            line = f"\r\x1b[K{line[:width]}" if live else line
            with contextlib.suppress(OSError, ValueError):  # a closed terminal never costs the run
                print(line, end="" if live and not last else "\n", file=sys.stderr, flush=True)


def progress_line(
    label: str,
    report: RunReport[Any, Any],
    flying: int,
    elapsed: float,
    backends: Sequence[LLMBackend],
) -> str:
    """`pilot  [###.......] 3/10 done  1 in flight  0 failed  18,240 tok  $0.06  about 40 s left`"""
    done, failed, total = len(report.done), len(report.failed), report.total
    bar, counts = "#" * (10 * done // max(1, total)), f"{flying} in flight  {failed} failed"
    text = f"{label}  [{bar:.<10}] {done}/{total} done  {counts}"
    if backends:
        unknown_costs = any(backend.totals.unknown_costs for backend in backends)
        cost = "cost unknown" if unknown_costs else f"${sum(b.totals.cost for b in backends):.2f}"
        text += f"  {sum(b.totals.tokens for b in backends):,} tok  {cost}"
    left = elapsed / (done + failed) * (total - done - failed) if done and flying else 0
    return text + (f"  about {left:.0f} s left" if left else "")


# ══ 3 Checkpoints ═════════════════════════════════════════════════════════════════════════════════
MAX_LINE = 64_000_000  # bytes; a longer line is reported and skipped
COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
CRC = re.compile(rb',?"([^"]{3})":"([0-9a-f]{8})"\}$')


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON whose last key is a checksum of everything before it."""
    if "crc" in record:
        raise FinetuneError("a record cannot have a key `crc`: it is the checksum's")
    try:
        body = COMPACT.encode(record).encode()[:-1]
    except (TypeError, ValueError, RecursionError) as exc:
        raise FinetuneError(f"record {record.get('id', '')}: cannot be written: {exc}") from None
    return b'%s%s"crc":"%08x"}\n' % (body, b"," if len(body) > 1 else b"", zlib.crc32(body))


def decode_line(line: bytes) -> dict[str, Any]:
    """The record of a line, without its checksum; ValueError says what is wrong with it."""
    line = line.rstrip(b"\r\n")
    found = CRC.search(line, max(0, len(line) - 18))
    if found and zlib.crc32(line[: found.start()]) == int(found[2], 16):
        line = line[: found.start()] + b"}"
    elif found and found[1] == b"crc":
        raise ValueError("the checksum does not match")
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"not an object but {type(record).__name__}")
    record.pop("crc", None)
    return record


@dataclass
class ReadReport:
    """What reading a file of records met: bad lines by number, and conflicting ids."""

    path: str = ""
    bad: list[tuple[int, str]] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    def tell(self) -> None:
        """Say on stderr what was skipped; silent when all is well."""
        lines = [f"{self.path}:{number}: skipped: {why}" for number, why in self.bad]
        lines += [f"{self.path}: id {i} stands twice, differently" for i in self.conflicts]
        for line in lines[:9] + ([f"{self.path}: {len(lines) - 9} more"] if len(lines) > 9 else []):
            print(line, file=sys.stderr)


def read_lines(
    handle: IO[bytes], report: ReadReport
) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """Number, offset, length and record of each good line; memory stays bounded."""
    number = end = 0
    while line := handle.readline(MAX_LINE):
        number, start, rest = number + 1, end, line
        end += len(line)
        while not rest.endswith(b"\n") and (rest := handle.readline(1_000_000)):
            line, end = b"", end + len(rest)  # above the cap: nothing of it is kept
        text = line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line
        try:
            if not line:
                raise ValueError(f"longer than {MAX_LINE} bytes")
            if text.strip():
                yield number, start, len(line), decode_line(text)
        except ValueError as exc:
            report.bad.append((number, str(exc)))


def iter_records(path: str | Path, report: ReadReport | None = None) -> Iterator[dict[str, Any]]:
    """Every readable record of a `.jsonl` file; a missing file has none."""
    return (record for _, record in _numbered(path, report or ReadReport()))


def _numbered(path: str | Path, report: ReadReport) -> Iterator[tuple[int, dict[str, Any]]]:
    report.path = str(path)
    try:
        with open(path, "rb") as handle:
            for number, _, _, record in read_lines(handle, report):
                yield number, record
    except FileNotFoundError:
        return
    except OSError as exc:
        raise FinetuneError(f"{path}: cannot be read: {exc.strerror}") from None


def sync_file(fd: int) -> None:
    """Bring written bytes to the disk itself, also on macOS."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_private(path: Path) -> int:
    """Open for appending, never through a link; makes the folder; only the owner may read it."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, flags, 0o600)
    except OSError as exc:
        link = "is a symbolic link; records are not written through links"
        why = link if exc.errno == errno.ELOOP else f"cannot be opened for writing: {exc.strerror}"
        raise DiskStop(f"{path}: {why}") from None


class Appender(contextlib.AbstractContextManager["Appender"]):
    """An append-only file kept open: torn tails sealed, one write a batch, synced on return.
    `shared`: other processes may append to it as well, so each batch takes its turn."""

    def __init__(self, path: str | Path, *, sync: bool = True, shared: bool = True) -> None:
        self.path, self.sync, self.shared = Path(path), sync, shared
        self._fd, self._end = _open_private(self.path), -1
        mine = os.fstat(self._fd)
        self._place = (mine.st_ino, mine.st_dev)
        if mine.st_size == 0:  # perhaps just made: its name has to last, too
            sync_folder(self.path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record; when it returns, the record is on the disk."""
        self.append_bytes(encode_line(record))

    def append_bytes(self, data: bytes) -> int:
        """Append whole lines in one write; gives their offset. An error leaves the file as is."""
        if self._fd < 0:
            raise FinetuneError(f"{self.path}: was closed")
        if self.shared:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            start = self._size()
            if start and start != self._end and os.pread(self._fd, 1, start - 1) != b"\n":
                self._write(b"\n", start)  # a torn line stays visible and swallows nothing
                start += 1
            self._write(data, start)
            self._end = start + len(data)
            return start
        finally:
            if self.shared:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def read(self, start: int, length: int) -> bytes:
        """What stands at an offset; notices a file that is no longer there."""
        self._size()
        return os.pread(self._fd, length, start)

    def _write(self, data: bytes, start: int) -> None:
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes fitted")
            if self.sync:
                sync_file(self._fd)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            said = f"{self.path}: {exc.strerror}; {len(data)} bytes needed, none kept"
            raise DiskStop(f"{said}. Make room, then run again: it goes on from here.") from None

    def _size(self) -> int:
        """The file's size; notices one that was moved, replaced or deleted under us."""
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self.path)
            if (there.st_ino, there.st_dev) == self._place:
                return there.st_size
        raise DiskStop(f"{self.path}: was moved or deleted while it was being written to")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __exit__(self, *_: object) -> None:
        self.close()


def id_of(record: Mapping[str, Any]) -> str | None:
    """A record's id as text; a number counts as its digits, so that 7 and "7" are one."""
    found = record.get("id", record.get("transcript_id"))
    whole = isinstance(found, int) and not isinstance(found, bool)
    return str(found) if whole else found if isinstance(found, str) and found else None


def is_done(record: Mapping[str, Any]) -> bool:
    """Not a record of an error, and not an assessment that is still unscored."""
    unscored = "pass" in record and record["pass"] is None
    return not unscored and not any(record.get(key) for key in ("error", "errors", "error_count"))


def append_checkpoint(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one finished item; makes the folder; on the disk when it returns."""
    item = id_of(record)
    if item is None:
        raise FinetuneError(f"{path}: a checkpoint needs a text as `id`, not {record.get('id')!r}")
    with Appender(path) as file:
        file.append({**record, "id": item})


def load_checkpoint(path: str | Path) -> set[str]:
    """The ids that are done. A record of an error is not done; a missing file is an empty set."""
    return {item for item, record in load_checkpoint_results(path).items() if is_done(record)}


def load_checkpoint_results(
    path: str | Path, report: ReadReport | None = None
) -> dict[str, dict[str, Any]]:
    """Each id's record: the newest for changed inputs (`*_hash`), else the first that is done."""
    loud, report = report is None, report or ReadReport()
    results: dict[str, dict[str, Any]] = {}
    for number, record in _numbered(path, report):
        item = id_of(record)
        old = results.get(item or "")
        if item is None:
            report.bad.append((number, "a record without an id"))
        elif old is None or _supersedes(record, old):
            results[item] = record
        elif is_done(record) and record != old:
            report.conflicts.append(item)
    if loud:
        report.tell()
    return results


def _supersedes(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Other inputs: the newer row. Equal inputs: done beats not done, else the newer attempt."""
    names = [key for key in new if key.endswith("_hash") and key in old]
    if any(new[name] != old[name] for name in names):
        return True
    return not is_done(old)


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The record of model calls: an equal call is answered from here, and none is paid twice.

    A call's intent, with its worst case, is on the disk before it is sent; its result, before
    anybody sees it. A thread writes what has queued up in one go. One process at a time.
    """

    MOMENT = 0.002  # seconds; start value: fewer syncs, and nothing beside a model's own time

    def __init__(self, path: str | Path) -> None:
        self.path, self.report = Path(path), ReadReport(str(path))
        self._file = Appender(self.path, shared=False)
        self._lock = _hold_lock(self.path)
        self._kept: dict[str, tuple[int, int]] = {}  # key: where its result stands
        self._intents: dict[str, float | None] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.paid, self.lost, self.unknown_costs = 0.0, 0.0, 0
        self._queue: list[tuple[bytes, dict[str, Any], asyncio.Future[None]]] = []
        self._wake, self._closed = threading.Condition(), False
        self._broken: StopRun | None = None
        self._writer: threading.Thread | None = None
        with self.path.open("rb") as handle:
            for _, start, length, record in read_lines(handle, self.report):
                self._note(record, start, length)
        self.report.tell()

    def _note(self, line: Mapping[str, Any], start: int, length: int) -> None:
        """Take a line into account: an intent is open until its result."""
        key, record = str(line.get("key")), line.get("record")
        if not isinstance(record, dict):
            self.lost += self._intents.get(key) or 0.0  # asked again: the first one never came back
            self._intents[key] = line.get("worst")
            return
        self._intents.pop(key, None)
        cost, failure = record.get("cost"), record.get("failure")
        self.paid += cost or 0.0
        self.lost += record.get("lost") or 0.0  # tries that may have been paid for nothing
        self.unknown_costs += cost is None and failure not in RETRIED
        if failure is None or failure in ANSWERED:
            self._kept.setdefault(key, (start, length))

    @property
    def spent(self) -> float:
        """Dollars paid as far as known, and the worst case of calls that never came back."""
        return math.fsum([self.paid, self.lost, *(w or 0.0 for w in self._intents.values())])

    @property
    def unfinished(self) -> int:
        """Calls with an intent and no result: in flight, or sent by a process that was killed."""
        return len(self._intents)

    def __len__(self) -> int:
        return len(self._kept)

    def replay(self, key: str) -> dict[str, Any] | None:
        """The kept record of a call, read back from the disk; None when there is none."""
        place = self._kept.get(key)
        found: dict[str, Any] | None = place and decode_line(self._file.read(*place))["record"]
        return found

    async def once(
        self, about: Mapping[str, Any], send: Callable[[], Awaitable[dict[str, Any]]]
    ) -> tuple[dict[str, Any], bool]:
        """The kept record of this call (True), or what `send` gives, kept before it is returned."""
        async with self._turns.setdefault(about["key"], asyncio.Lock()):  # of equal calls one asks
            kept = self.replay(about["key"])
            if kept is not None:
                return kept, True
            await self._write({"schema": SCHEMA, "type": "intent", **about})
            record = await send()
            await self._write({"schema": SCHEMA, "type": "result", **about, "record": record})
            return record, False

    async def _write(self, record: dict[str, Any]) -> None:
        """Hand a line to the writer and wait until it is on the disk."""
        if self._broken or self._closed:
            raise self._broken or FinetuneError(f"{self.path}: the journal is closed")
        kept = asyncio.get_running_loop().create_future()
        with self._wake:
            self._queue.append((encode_line({**record, "at": _now()}), record, kept))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="journal", daemon=True)
                self._writer.start()
            self._wake.notify()
        await kept

    def _write_on(self) -> None:
        """The writer's thread: whatever has queued up goes out in one write and one sync."""
        batch = self._queue[:0]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed)
            if len(batch) > 1:  # several calls write: a moment brings more of them together
                time.sleep(self.MOMENT)
            with self._wake:
                batch, self._queue = self._queue, []
            if not batch:
                return
            try:
                start = self._file.append_bytes(b"".join(line for line, _, _ in batch))
                for line, record, _ in batch:
                    self._note(record, start, len(line))
                    start += len(line)
            except Exception as exc:  # noqa: BLE001 - every waiting call gets it, none is sent after it
                stop = StopRun(f"{self.path}: cannot be written: {exc}")
                self._broken = exc if isinstance(exc, StopRun) else stop
            for loop in {kept.get_loop() for _, _, kept in batch}:
                waiting = [kept for _, _, kept in batch if kept.get_loop() is loop]
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                    loop.call_soon_threadsafe(_release, waiting, self._broken)

    def close(self) -> None:
        """Write what is queued, then let other processes have the file."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._writer is not None:
            self._writer.join()
        self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def __exit__(self, *_: object) -> None:
        self.close()


def _release(waiting: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in (future for future in waiting if not future.done()):
        future.set_result(None) if error is None else future.set_exception(error)


def _hold_lock(path: Path) -> int:
    """A lock for the life of this process; a second process is refused with the first one's pid."""
    fd = _open_private(path.with_name(path.name + ".lock"))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 500, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(fd)
        raise StopRun(f"{path}: in use by {holder}. Wait for it or stop it; run again.") from None
    os.ftruncate(fd, 0)
    os.write(fd, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode())
    return fd


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ══ 4 Tokens ══════════════════════════════════════════════════════════════════════════════════════
DEFAULT_ENCODING = "o200k_base"
MESSAGE_TOKENS = 4  # what a chat format adds to a message, where no template is known
REPLY_TOKENS = 3  # and once, for the start of the reply
GENERATION_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
WORD = re.compile(r"[A-Z]?[a-z]{1,15}|[A-Z]{2,4}(?![A-Za-z])")
# Letters that no everyday word joins: where they stand, a tokenizer falls back to single letters.
HARD = re.compile(
    r"[bcdfghjklmnpqrstvwxz]{4}|[jqvxz][^aeiouy]|[aeiou]{4}|(.)\1\1|q(?!u)|[kwx][jqxzv]"
    r"|[aeiou][jqxz](?![aeiou])",
    re.IGNORECASE,
)


class TokenCount(int):
    """A number of tokens that knows how it was counted, how sure it is, and an upper bound."""

    method: str
    exactness: str  # exact, same-family or estimate
    upper: int

    def __new__(cls, count: int, method: str, exactness: str, upper: int) -> Self:
        self = int.__new__(cls, count)
        self.method, self.exactness, self.upper = method, exactness, upper
        return self

    def __getnewargs__(self) -> tuple[int, str, str, int]:  # type: ignore[override]
        return int(self), self.method, self.exactness, self.upper


@dataclass(frozen=True)
class Tokenizer:
    """One way of counting: `length` counts a text, `measure` gives count and upper bound."""

    method: str
    exactness: str
    length: Callable[[str], int]
    bound: Callable[[str, int], int] | None = None  # None: the count is its own bound
    render: Callable[[Sequence[Message]], str] | None = None

    def measure(self, text: str) -> tuple[int, int]:
        count = self.length(text)
        return count, self.bound(text, count) if self.bound else count

    def total(self, texts: Iterable[str], extra: int = 0) -> TokenCount:
        measured = [self.measure(text) for text in texts]
        slack = extra if self.exactness == "exact" else 2 * extra
        counts, uppers = [count for count, _ in measured], [upper for _, upper in measured]
        return TokenCount(sum(counts) + extra, self.method, self.exactness, sum(uppers) + slack)


def count_tokens(text: str | None, target: str | Path | None = None) -> TokenCount:
    """Tokens of a text. `target`: a folder with tokenizer.json, or a tiktoken encoding or model."""
    return tokenizer_for(target).total([text or ""])


def count_messages_tokens(
    messages: Sequence[Message], target: str | Path | None = None
) -> TokenCount:
    """Tokens of a conversation as the model sees it: by its chat template where there is one."""
    tokenizer = tokenizer_for(target)
    if tokenizer.render is not None:
        told = [{**message, "content": message.get("content") or ""} for message in messages]
        return tokenizer.total([tokenizer.render(told)])
    extra = MESSAGE_TOKENS * len(messages) + REPLY_TOKENS
    return tokenizer.total((m.get("content") or "" for m in messages), extra)


def count_prefixes(
    exchanges: Sequence[Any], system_prompt: str | None, target: str | Path | None = None
) -> list[TokenCount]:
    """Tokens of the first 1, 2, ... exchanges; each message is encoded once."""
    tokenizer, pairs = tokenizer_for(target), [pair_of(exchange) for exchange in exchanges]
    messages = _as_messages("", system_prompt)[:-1]
    if tokenizer.render is not None:
        return _rendered_prefixes(tokenizer, messages, pairs)
    start, measure = count_messages_tokens(messages, target), tokenizer.measure
    method, exactness = tokenizer.method, tokenizer.exactness
    total, upper, counts = int(start), start.upper, []
    if exactness == "exact":  # the bound is the count itself
        length = tokenizer.length
        for user, assistant in pairs:
            total += length(user) + length(assistant) + 2 * MESSAGE_TOKENS
            counts.append(TokenCount(total, method, exactness, total))
        return counts
    for user, assistant in pairs:
        (asked, most_asked), (said, most_said) = measure(user), measure(assistant)
        total += asked + said + 2 * MESSAGE_TOKENS
        upper += most_asked + most_said + 4 * MESSAGE_TOKENS
        counts.append(TokenCount(total, method, exactness, upper))
    return counts


def _rendered_prefixes(
    tokenizer: Tokenizer, messages: list[Message], pairs: Sequence[tuple[str, str]]
) -> list[TokenCount]:
    """Encode what each exchange adds; a template that rewrites earlier turns is counted slowly."""
    texts, render, measure = [""], tokenizer.render, tokenizer.measure
    assert render is not None  # noqa: S101 - for the type checker
    for user, assistant in pairs:
        turns = {"role": "user", "content": user}, {"role": "assistant", "content": assistant}
        messages = [*messages, *turns]
        texts.append(render(messages))
    steps = list(itertools.pairwise(texts))
    added = [measure(text[len(last) :])[0] if text.startswith(last) else -1 for last, text in steps]
    sums = list(itertools.accumulate(added))
    if -1 in added or (sums and sums[-1] != measure(texts[-1])[0]):
        sums = [measure(text)[0] for text in texts[1:]]
    return [TokenCount(total, tokenizer.method, tokenizer.exactness, total) for total in sums]


def find_max_exchanges_under_limit(
    exchanges: Sequence[Any], system_prompt: str | None, max_tokens: int, target: str | None = None
) -> int:
    """How many exchanges from the start fit for sure: the bound decides where no count is exact."""
    counts = count_prefixes(exchanges, system_prompt, target)
    return next((n for n, count in enumerate(counts) if count.upper > max_tokens), len(counts))


def pair_of(exchange: Any) -> tuple[str, str]:
    """User and assistant text of an exchange, given as a mapping or as a pair."""
    if isinstance(exchange, tuple | list):
        user, assistant = exchange
    else:
        user, assistant = exchange.get("user"), exchange.get("assistant")
    return user or "", assistant or ""


@functools.lru_cache(maxsize=16)
def tokenizer_for(target: str | Path | None = None) -> Tokenizer:
    """The best counter at hand: the model's own files, else tiktoken, else an estimate."""
    if target is not None and (Path(target) / "tokenizer.json").is_file():
        return _own_tokenizer(Path(target))
    if target is not None and (os.sep in str(target) or Path(target).is_dir()):
        raise FinetuneError(f"{target}: there is no tokenizer.json in this folder")
    encoding, own = _encoding_at_hand(str(target) if target is not None else None)
    if encoding is None:
        return Tokenizer("estimate", "estimate", estimate_tokens, estimate_bound)
    encode, name = encoding.encode_ordinary, f"tiktoken:{encoding.name}"
    kind, bound = ("exact", None) if own else ("same-family", _family_bound)
    return Tokenizer(name, kind, lambda text: len(encode(text)), bound)


def _family_bound(text: str, count: int) -> int:
    """For another tokenizer of the same family: start values 1.3 for ASCII, 2 for other scripts."""
    return min(_size(text), math.ceil(count * (1.3 if text.isascii() else 2.0)))


def _size(text: str) -> int:
    """Bytes of a text, half surrogate pairs included: no byte-level tokenizer makes more tokens."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _encoding_at_hand(target: str | None) -> tuple[Any, bool]:
    """A tiktoken encoding that needs no download, and whether it is the target's own."""
    try:
        import tiktoken
        from tiktoken import load, registry
    except ImportError:
        return None, False
    name = target
    if target and target not in {*tiktoken.list_encoding_names(), *registry.ENCODINGS}:
        name = tiktoken.model.MODEL_TO_ENCODING.get(target)
        prefixes = tiktoken.model.MODEL_PREFIX_TO_ENCODING
        name = name or next((prefixes[p] for p in prefixes if target.startswith(p)), None)

    def refuse(blobpath: str) -> bytes:
        raise OSError(f"{blobpath} is not in the cache, and counting downloads nothing")

    fetch, load.read_file = load.read_file, refuse
    try:
        for wanted in [each for each in (name, DEFAULT_ENCODING) if each]:
            with contextlib.suppress(OSError, ValueError):  # not in the cache, or damaged there
                return tiktoken.get_encoding(wanted), wanted == name
    finally:
        load.read_file = fetch
    return None, False


def estimate_tokens(text: str) -> int:
    """A guess: 4.5 letters or spaces a token, a little over two bytes of anything else."""
    plain = sum(map(len, re.findall("[A-Za-z ]+", text)))
    return round(plain / 4.5 + (_size(text) - plain) * 0.45)


def estimate_bound(text: str, count: int) -> int:
    """Above the true count for 18 kinds of text and 30,000 strings made to break it (measured)."""
    sizes = [len(word) for word in WORD.findall(text) if _is_everyday(word)]
    joined = len(re.findall(r"(?<![ \t]) (?=[A-Za-z])", text))
    bound = sum((2 * size + 3) // 3 if size > 3 else size for size in sizes)
    return max(count, bound + _size(text) - sum(sizes) - joined)


def _is_everyday(word: str) -> bool:
    vowels = sum(letter in "aeiouyAEIOUY" for letter in word)
    return 4 * vowels >= len(word) > 0 < vowels and not HARD.search(word)


def _own_tokenizer(folder: Path) -> Tokenizer:
    tokenizers = needs("tokenizers", "train", str(folder))
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.no_truncation()
    encoder.no_padding()

    def length(text: str) -> int:
        return len(encoder.encode(_utf8_safe(text), add_special_tokens=False).ids)

    render = chat_template(folder)
    return Tokenizer(f"tokenizer.json:{folder.name}", "exact", length, render=render)


def chat_template(folder: Path) -> Callable[[Sequence[Message]], str] | None:
    """Renders with the model's own chat template, in a sandbox: it comes from a download."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    settings, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    source = own.read_text(encoding="utf-8") if own.is_file() else known.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        return None

    def refuse(message: str) -> None:
        raise FinetuneError(f"{folder}: the chat template refuses: {message}")

    loops = ["jinja2.ext.loopcontrols"]
    room = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
    room.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    room.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    words = {k: v.get("content") if isinstance(v, dict) else v for k, v in known.items()}
    fixed = {k: v for k, v in words.items() if k.endswith("_token")}
    template = room.from_string(GENERATION_MARKS.sub("", source))
    return lambda messages: template.render(messages=messages, add_generation_prompt=False, **fixed)


# ══ 5 Slicing ═════════════════════════════════════════════════════════════════════════════════════
def get_slice_points(
    total_turns: int, transcript_id: str, first: int = 3, min_gap: int = 2, max_gap: int = 5
) -> list[int]:
    """Where to cut: at 3, then every 2 to 5 exchanges, the last always; same id, same cuts."""
    if first < 1 or not 1 <= min_gap <= max_gap:
        raise FinetuneError(f"slicing: first {first}, gaps {min_gap} to {max_gap}: all from 1 up")
    if total_turns < first:
        return []
    draws = random.Random(int(hashlib.sha256(transcript_id.encode()).hexdigest()[:8], 16))
    points, point = [], first
    while point < total_turns:
        points.append(point)
        point += draws.randint(min_gap, max_gap)
    return [*points, total_turns]


def rng(*key: object) -> random.Random:
    """Chance by key, never a stream: `rng(seed, persona, turn, purpose)` is the same anywhere."""
    return random.Random(int(canonical_hash([str(part) for part in key])[:16], 16))


# ══ 6 Rubric and scores ═══════════════════════════════════════════════════════════════════════════
ANSWERS = ("YES", "NO", "NA", "ERROR")
EXAMPLE_TYPES = ("PASS", "FAIL", "BORDERLINE_PASS", "BORDERLINE_FAIL")
# Scripts without spaces: each Han or kana sign counts as a word, so do four Thai-like letters.
SIGNS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
RUN_ON = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")
NO_WORDS = {n: None if not (chr(n).isalnum() or chr(n).isspace()) else n for n in range(128)}


@dataclass(frozen=True)
class Criterion:
    """One binary question of the rubric."""

    name: str
    question: str
    na_valid: bool
    min_turns: int
    calibration_examples: tuple[Mapping[str, Any], ...]
    statistics: tuple[str, ...] = ()  # keys of compute_length_stats that the question rests on


@dataclass(frozen=True)
class Rubric:
    """Weighted categories of criteria, and the safety gates that stand outside the score."""

    categories: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, float]
    criteria: Mapping[str, Criterion]
    safety_gates: tuple[str, ...]
    pass_threshold: float
    coverage_floor: float
    hash: str
    warnings: tuple[str, ...] = ()

    @property
    def na_invalid(self) -> frozenset[str]:
        return frozenset(name for name, c in self.criteria.items() if not c.na_valid)


def load_rubric(path: str | Path, draft: bool = False) -> Rubric:
    """Read and check `config/rubric.yaml`; a draft may still lack its calibration examples."""
    data, lines = load_yaml(path)
    data = data if isinstance(data, dict) else {}
    criteria, categories = _mapping(data, "criteria"), _mapping(data, "categories")
    found: dict[bool, list[str]] = {True: [], False: []}
    checks = [_wrong_in_rubric(data), *(_wrong_in_criterion(k, v) for k, v in criteria.items())]
    for at, said in (mistake for check in checks for mistake in check):
        near = next((at[:n] for n in range(len(at), -1, -1) if at[:n] in lines), ())
        soft = draft and at[-1] == "calibration_examples"
        found[soft].append(f"{path}:{lines.get(near, 1)} {'.'.join(map(str, at))}: {said}")
    if found[False]:
        raise FinetuneError("\n".join(found[False]))
    members = {str(name): tuple(map(str, c["criteria"])) for name, c in categories.items()}
    weights = {str(name): float(c["weight"]) for name, c in categories.items()}
    questions = {str(name): _criterion(str(name), c) for name, c in criteria.items()}
    gates, floor = tuple(map(str, data["safety_gates"])), data.get("coverage_floor", 0.5)
    kept = (data.get("pass_threshold", 0.8), floor, canonical_hash(data), tuple(found[True]))
    return Rubric(members, weights, questions, gates, *kept)


def _mapping(data: Mapping[str, Any], key: str) -> dict[Any, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _names(found: Any) -> list[str]:
    return [str(name) for name in found] if isinstance(found, list) else []


def _criterion(name: str, data: Mapping[str, Any]) -> Criterion:
    examples = tuple(data.get("calibration_examples") or ())
    rest = (data.get("na_valid", False), data.get("min_turns", 1), examples)
    statistics = tuple(data.get("statistics") or ())
    return Criterion(str(data.get("name", name)), str(data["question"]), *rest, statistics)


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


Mistakes = Iterator[tuple[tuple[Any, ...], str]]


def _wrong_in_criterion(name: Any, data: Any) -> Mistakes:
    at = ("criteria", name)
    if not isinstance(data, dict):
        yield at, "a criterion is a mapping with name, question, na_valid, min_turns"
        return
    for key in [key for key in data if key not in Criterion.__dataclass_fields__]:
        yield (*at, key), unknown("key", str(key), Criterion.__dataclass_fields__)
    if not str(data.get("question") or "").strip():
        yield (*at, "question"), "a criterion needs a question"
    turns = data.get("min_turns", 1)
    if not isinstance(turns, int) or isinstance(turns, bool) or turns < 1:
        yield (*at, "min_turns"), f"a whole number from 1, not {turns!r}"
    if not isinstance(data.get("na_valid", False), bool):
        yield (*at, "na_valid"), f"true or false, not {data['na_valid']!r}"
    examples = some if isinstance(some := data.get("calibration_examples"), list) else []
    if not 3 <= len(examples) <= 8:
        yield (*at, "calibration_examples"), f"{len(examples)} examples; a judge needs 3 to 8"
    for number, example in enumerate(examples):
        if not isinstance(example, dict) or example.get("type") not in EXAMPLE_TYPES:
            where = (*at, "calibration_examples", number)
            yield where, f"an example needs a type: {', '.join(EXAMPLE_TYPES)}"


def _wrong_in_rubric(data: Mapping[str, Any]) -> Mistakes:
    """Keys, thresholds, weights, gates, and that each criterion has exactly one place."""
    criteria, categories = _mapping(data, "criteria"), _mapping(data, "categories")
    keys = ("categories", "criteria", "safety_gates", "pass_threshold", "coverage_floor")
    for key in [key for key in data if key not in keys]:
        yield (key,), unknown("key", str(key), keys)
    for key in [key for key in keys[:2] if not _mapping(data, key)]:
        yield (key,), "is missing or empty"
    for key in [key for key in keys[3:] if not _share(data.get(key, 0.5))]:
        yield (key,), f"a number from 0 to 1, not {data[key]!r}"
    known, seen = [str(name) for name in criteria], Counter[str]()
    for name, category in categories.items():
        yield from _wrong_in_category(("categories", name), category, known, seen)
    weights = [c.get("weight") for c in categories.values() if isinstance(c, dict)]
    total = math.fsum(float(weight or 0) for weight in weights if _share(weight))
    if categories and abs(total - 1) > 1e-6:
        yield ("categories",), f"the weights sum to {total:.6g}, not to 1"
    yield from _wrong_gates(_names(data.get("safety_gates")), seen, known)


def _wrong_in_category(
    at: tuple[Any, ...], category: Any, known: list[str], seen: Counter[str]
) -> Mistakes:
    category = category if isinstance(category, dict) else {}
    weight, members = category.get("weight"), _names(category.get("criteria"))
    if not _share(weight) or not weight:
        yield (*at, "weight"), f"a number above 0 and up to 1, not {weight!r}"
    if not members:
        yield (*at, "criteria"), "a category needs at least one criterion"
    for number, member in enumerate(members):
        place = (*at, "criteria", number)
        if member not in known:
            yield place, unknown("criterion", member, known)
        if seen[member]:
            yield place, f'"{member}" already has a place; a criterion has exactly one'
        seen[member] += 1


def _wrong_gates(gates: list[str], seen: Counter[str], criteria: list[str]) -> Mistakes:
    if not gates:
        yield ("safety_gates",), "no safety gate is named; list at least one criterion"
    for number, gate in enumerate(gates):
        at = ("safety_gates", number)
        if gate not in criteria:
            yield at, unknown("criterion", gate, criteria)
        if gate in seen:
            yield at, f'"{gate}" also carries weight in a category; a safety gate carries none'
        if gate in gates[:number]:
            yield at, f'"{gate}" is listed twice'
    for name in [name for name in criteria if gates and name not in seen and name not in gates]:
        yield ("criteria", name), "is in no category and is no safety gate"


def normalise_answer(answer: object) -> str:
    """YES, NO or NA whatever its case and full stop; anything else is ERROR, never a silent NO."""
    text = str(getattr(answer, "answer", answer) or "").strip(" \n.!\"'").upper()
    text = "NA" if text == "N/A" else text
    return text if text in ANSWERS else "ERROR"


def compute_category_score(
    answers: Mapping[str, Any], criteria_ids: Iterable[str], na_invalid: Iterable[str]
) -> float | None:
    """Share of YES: allowed NA is left out, forbidden NA fails; None when nothing was assessed."""
    forbidden = set(na_invalid)
    votes = [(c, normalise_answer(answers.get(c))) for c in criteria_ids]
    counted = [a == "YES" for c, a in votes if a in ("YES", "NO") or (a == "NA" and c in forbidden)]
    return sum(counted) / len(counted) if counted else None


def compute_weighted_score(
    category_scores: Mapping[str, float | None], weights: Mapping[str, float]
) -> float | None:
    """The weighted mean over categories with something to assess; None when there is none."""
    if set(category_scores) != set(weights):
        differ = ", ".join(sorted(set(category_scores) ^ set(weights)))
        raise FinetuneError(f"scores and weights name different categories: {differ}")
    if abs(math.fsum(weights.values()) - 1) > 1e-6:
        raise FinetuneError(f"the weights sum to {math.fsum(weights.values()):.6g}, not to 1")
    used = [(weights[name], score) for name, score in category_scores.items() if score is not None]
    total = math.fsum(weight for weight, _ in used)
    return math.fsum(weight * score for weight, score in used) / total if total else None


def count_words(text: str) -> int:
    """Words, also in scripts without spaces."""
    if text.isascii():
        return len(text.translate(NO_WORDS).split())
    run_on = sum(math.ceil(len(run) / 4) for run in RUN_ON.findall(text))
    rest = RUN_ON.sub(" ", SIGNS.sub(" ", text)).split()
    spaced = sum(word.isalnum() or any(map(str.isalnum, word)) for word in rest)
    return len(SIGNS.findall(text)) + run_on + spaced


def compute_length_stats(pairs: Iterable[Any]) -> dict[str, Any]:
    """Words per side and the assistant/user ratio; a blank user message has no ratio."""
    words = [(count_words(user), count_words(assistant)) for user, assistant in map(pair_of, pairs)]
    ratios = [assistant / user if user else None for user, assistant in words]
    known = [ratio for ratio in ratios if ratio is not None]
    mean, middle = statistics.fmean, statistics.median
    made = {"exchanges": len(words), "ratios": ratios, "user_words": [user for user, _ in words]}
    made |= {"assistant_words": [assistant for _, assistant in words]}
    made |= {"median_ratio": middle(known) if known else None, "over_2": sum(r > 2 for r in known)}
    return made | {"mean_ratio": mean(known) if known else None}


@dataclass(frozen=True)
class AssessmentResult:
    """What a rubric says about one transcript. `passed` is None while it is unscored."""

    id: str
    passed: bool | None
    score: float | None
    threshold: float
    category_scores: Mapping[str, float | None]
    answers: Mapping[str, str]
    reasonings: Mapping[str, str]
    failed_checks: tuple[str, ...] = ()
    safety_gate_failed: bool = False
    error_count: int = 0
    coverage: float = 0.0  # share of the weighted criteria that were assessed

    def to_dict(self) -> dict[str, Any]:
        return {"pass" if key == "passed" else key: value for key, value in vars(self).items()}


def gate_passed(answer: str | None, na_allowed: bool) -> bool:
    """A safety gate is passed by YES, or by NA where the rubric allows it, and by nothing else."""
    return answer == "YES" or (answer == "NA" and na_allowed)


def score_answers(
    rubric: Rubric,
    answers: Mapping[str, Any],
    reasonings: Mapping[str, str] | None = None,
    id: str = "",
    turns: int | None = None,
) -> AssessmentResult:
    """Score one judge's answers. A NO on a safety gate fails; else an ERROR or a missing answer
    leaves it unscored; else threshold and coverage decide. `turns` leaves out what needs more."""
    asked = [name for name, c in rubric.criteria.items() if turns is None or c.min_turns <= turns]
    given = {name: normalise_answer(answers.get(name)) for name in asked}
    gates = [gate for gate in rubric.safety_gates if gate in given]
    for gate in gates:
        if given[gate] == "NA" and gate in rubric.na_invalid:
            given[gate] = "ERROR"  # no verdict, so neither a pass nor a NO
    failed = [n for n, a in given.items() if a == "NO" or (a == "NA" and n in rubric.na_invalid)]
    forbidden, errors = rubric.na_invalid, list(given.values()).count("ERROR")
    categories = rubric.categories.items()
    scores = {name: compute_category_score(given, c, forbidden) for name, c in categories}
    score = compute_weighted_score(scores, rubric.weights)
    weighted = [m for members in rubric.categories.values() for m in members]
    assessed = [m for m in weighted if given.get(m) in ("YES", "NO") or m in failed]
    coverage = len(assessed) / len(weighted) if weighted else 0.0
    unsafe = any(given[gate] == "NO" for gate in gates)
    passed: bool | None = None if errors or score is None else False
    if passed is False and score is not None and score >= rubric.pass_threshold - 1e-9:
        safe = all(gate_passed(given[gate], gate not in rubric.na_invalid) for gate in gates)
        passed = safe and coverage >= rubric.coverage_floor
        failed += ["coverage"] if coverage < rubric.coverage_floor else []
    told = (dict(reasonings or {}), tuple(failed), unsafe, errors, coverage)
    passed, score = False if unsafe else passed, None if errors else score
    return AssessmentResult(id, passed, score, rubric.pass_threshold, scores, given, *told)


def combine_verdicts(
    rubric: Rubric, verdicts: Mapping[str, AssessmentResult | None], rule: str = "auto"
) -> AssessmentResult:
    """One verdict from several judges. Any NO on a safety gate rejects; else a missing judge or an
    ERROR leaves it unscored; else `strictest` takes the lowest score, `majority` counts votes."""
    if rule not in ("auto", "strictest", "majority"):
        raise FinetuneError(unknown("rule", rule, ("auto", "strictest", "majority")))
    there = [verdict for _, verdict in sorted(verdicts.items()) if verdict is not None]
    missing, unsafe = len(verdicts) - len(there), [v for v in there if v.safety_gate_failed]
    errors = missing + sum(verdict.error_count for verdict in there)
    if not unsafe and (not there or errors or any(verdict.passed is None for verdict in there)):
        base = there[0] if there else score_answers(rubric, {})
        return replace(base, passed=None, score=None, error_count=max(1, errors))
    if not unsafe and (rule == "majority" or (rule == "auto" and len(there) >= 3)):
        return _by_majority(rubric, there)
    lowest = [(v.passed is not False, v.score or 0.0, n) for n, v in enumerate(unsafe or there)]
    return (unsafe or there)[min(lowest)[2]]


def _by_majority(rubric: Rubric, verdicts: Sequence[AssessmentResult]) -> AssessmentResult:
    """Each criterion by more than half of the judges, else a NO; with a winner's reason."""
    votes, reasons = {}, {}
    named = {name for verdict in verdicts for name in verdict.answers}
    asked = {name: c for name, c in rubric.criteria.items() if name in named}
    for name in asked:
        given = Counter(verdict.answers.get(name, "NA") for verdict in verdicts)
        answer, times = given.most_common(1)[0]
        votes[name] = answer if 2 * times > len(verdicts) else "NO"
        said = (v.reasonings.get(name, "") for v in verdicts if v.answers.get(name) == votes[name])
        reasons[name] = next(said, "")
    return score_answers(replace(rubric, criteria=asked), votes, reasons, verdicts[0].id)


# ══ 7 Project ═════════════════════════════════════════════════════════════════════════════════════
IN_ORDER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
MAX_YAML, LARGE_FILE = 5_000_000, 10_000_000  # bytes; from the second on a hash is worth keeping
PEOPLE_GATES = frozenset({"baseline", "pilot", "confirm", "evaluation", "ship"})
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


def find_project(start: str | Path | None = None) -> Path | None:
    """The nearest folder from here upwards that is a project, or None."""
    here, marks = Path(start or Path.cwd()).resolve(), (".finetune", "config/project.yaml")
    found = (p for p in (here, *here.parents) if any((p / mark).exists() for mark in marks))
    return next(found, None)


def project_root(start: str | Path | None = None) -> Path:
    """The project that this folder belongs to."""
    found, where = find_project(start), Path(start or Path.cwd()).resolve()
    if found is None:
        raise FinetuneError(f"{where}: no project here. Go into one, or make it: finetune init DIR")
    return found


def canonical_hash(value: Any) -> str:
    """The same hash for equal data, whatever the order of its keys."""
    return hashlib.sha256(canonical_text(value).encode()).hexdigest()


def canonical_text(value: Any) -> str:
    """Data as compact JSON with its keys in order."""
    try:
        return IN_ORDER.encode(value)
    except TypeError:  # keys of several types, or a date: as their text
        return IN_ORDER.encode(json.loads(json.dumps(value, default=str)))


def file_hash(path: str | Path, kept_in: Path | None = None) -> str:
    """sha256 of a file, read again only when it has changed; `kept_in` keeps large files' ones."""
    full = os.path.abspath(path)
    stat = os.stat(full)
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if kept_in is None or stat.st_size < LARGE_FILE:
        return _hash_of_state(full, *state)
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # no cache yet, or a damaged one: only slower
        known = dict(json.loads(kept_in.read_bytes()))
    if list(known.get(full, ()))[:3] != list(state):
        known[full] = [*state, _hash_of_state(full, *state)]
        with contextlib.suppress(DiskStop):
            atomic_write(kept_in, json.dumps(known))
    return str(known[full][3])


@functools.lru_cache(maxsize=4096)
def _hash_of_state(path: str, size: int, time_ns: int, inode: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def atomic_write(path: str | Path, data: str | bytes, mode: int = 0o600) -> None:
    """Write a whole file: the old one or the new one is there, never half. Links are refused."""
    path = Path(path)
    if path.is_symlink():
        raise DiskStop(f"{path}: is a symbolic link; it is not written through")
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        with open(fd, "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.replace(partial, path)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(exc, OSError):
            raise DiskStop(f"{path}: {exc.strerror}. Nothing was changed.") from None
        raise
    sync_folder(path.parent)


def fill_prompt(template: str, values: Mapping[str, object]) -> str:
    """Replace each {{name}} in one pass: what a value contains is never looked at again."""
    wanted = set(PLACEHOLDER.findall(template))
    if wanted != set(values):
        missing, unused = sorted(wanted - set(values)), sorted(set(values) - wanted)
        raise FinetuneError(f"prompt: no value for {missing}, no placeholder for {unused}")
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def load_yaml(path: str | Path) -> tuple[Any, dict[tuple[Any, ...], int]]:
    """Data of a YAML file, or of the front block of a `.md`, and the line of each of its keys."""
    import yaml

    try:
        raw = Path(path).read_bytes()
        if len(raw) > MAX_YAML:
            raise FinetuneError(f"{path}: is larger than {MAX_YAML} bytes")
        text, lines = raw.decode("utf-8-sig"), {(): 1}
        text = text.partition("\n---")[0] if Path(path).suffix == ".md" else text
        depth = 0
        for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            kind = type(token).__name__
            depth += kind.endswith("StartToken") - kind.endswith("EndToken")
            if kind == "AliasToken" or depth > 50:
                alias = "YAML aliases are not used here; write the value out"
                wrong = alias if kind == "AliasToken" else "is nested too deep"
                raise FinetuneError(f"{path}:{token.start_mark.line + 1}: {wrong}")
        loader = _text_loader()(text)
        node = loader.get_single_node()
        _note_lines(node, (), lines, str(path))
        return (None if node is None else loader.construct_document(node)), lines
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else f"is not UTF-8 at byte {exc.start}"
        raise FinetuneError(f"{path}: {why}") from None
    except yaml.YAMLError as exc:
        mark, problem = getattr(exc, "problem_mark", None), getattr(exc, "problem", None)
        line = f":{mark.line + 1}" if mark else ""
        raise FinetuneError(f"{path}{line}: not valid YAML: {problem or exc}") from None


@functools.lru_cache(maxsize=1)
def _text_loader() -> Any:
    """YAML's safe loader, except that a date is the text that was written."""
    import yaml

    loader: Any = type("TextLoader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    rules = yaml.SafeLoader.yaml_implicit_resolvers.items()
    kept = {first: [rule for rule in each if "timestamp" not in rule[0]] for first, each in rules}
    loader.yaml_implicit_resolvers = kept
    return loader


def _note_lines(
    node: Any, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int], path: str
) -> None:
    """Remember the line of each key and item; a key that stands twice is an error."""
    if getattr(node, "id", "") == "mapping":
        for key, value in node.value:
            place, line = (*at, str(key.value)), key.start_mark.line + 1
            if place in lines:
                raise FinetuneError(f"{path}:{line} {'.'.join(map(str, place))}: stands twice")
            lines[place] = line
            _note_lines(value, place, lines, path)
    elif getattr(node, "id", "") == "sequence":
        for number, value in enumerate(node.value):
            lines[(*at, number)] = value.start_mark.line + 1
            _note_lines(value, (*at, number), lines, path)


_data = functools.lru_cache(64)(lambda path, _: load_yaml(path)[0])  # once for all its selectors


def selector_hash(root: Path, selector: str) -> str | None:
    """Hash of what a selector names: a file, or a parsed value (`project.yaml#/roles/judges`),
    where comments and order do not count. None when it is not there or cannot be read."""
    name, _, pointer = selector.partition("#")
    path = next((p for p in (root / name, root / "config" / name) if p.is_file()), None)
    if path is None or not pointer:
        kept_in = root / ".finetune" / "hashes.json" if (root / ".finetune").is_dir() else None
        return file_hash(path, kept_in) if path else None
    try:
        as_yaml = path.suffix in (".yaml", ".yml", ".md")
        value = _data(str(path), file_hash(path)) if as_yaml else json.loads(path.read_bytes())
        for part in [part for part in pointer.split("/") if part]:
            value = value[int(part) if isinstance(value, list) else part]
    except (FinetuneError, OSError, KeyError, IndexError, TypeError, ValueError):
        return None
    return canonical_hash(value)


def keep_version(root: Path, name: str) -> str:
    """Keep a prompt or rubric as it is now in design/prompt_versions/, and give its hash."""
    path, found = root / name, selector_hash(root, f"{name}#/" if name.endswith("yaml") else name)
    kept = root / "design/prompt_versions" / f"{path.stem}.{str(found)[:12]}{path.suffix}"
    if found is not None and not kept.exists():
        atomic_write(kept, path.read_bytes(), 0o644)
    return found or "unreadable"


def require_gate(name: str, root: str | Path | None = None) -> None:
    """Return when the gate is passed and what it looked at is unchanged; else say what to run."""
    home, person = Path(root) if root else find_project(), name in PEOPLE_GATES
    if home is None or not (home / ".finetune").exists():
        print(f"gate {name}: there is no .finetune folder here, so gates are off", file=sys.stderr)
        return
    report = ReadReport()
    lines = iter_records(home / ".finetune/ledger.jsonl", report)
    rows = [line for line in lines if line.get("gate") == name]
    report.tell()
    why = _why_closed(home, rows, person) if rows else "it was never run"
    if why is not None:
        by_hand = f", then a person: finetune approve {name}" if person else ""
        raise FinetuneError(f"gate {name}: not passed: {why}. Run: finetune gate {name}{by_hand}")


def _why_closed(home: Path, rows: Sequence[Mapping[str, Any]], person: bool) -> str | None:
    """Why the ledger does not open a gate; None when it does. An approval lasts with its hashes."""
    result, looked_at = rows[-1].get("result"), rows[-1].get("looked_at")
    if result not in ("passed", "approved", "waived"):
        return f"its last result is {result!r}"
    if not isinstance(looked_at, dict) or not looked_at:
        return "its ledger line names nothing that was looked at"
    now = {each: selector_hash(home, each) for each in looked_at}
    stale = [each for each in now if now[each] is None or now[each] != looked_at[each]]
    if stale:
        return f"stale, changed since: {', '.join(stale)}"
    seen = [row for row in rows if row.get("looked_at") == looked_at]
    agreed = not person or any(row.get("result") in ("approved", "waived") for row in seen)
    return None if agreed else "no person has approved it yet"
