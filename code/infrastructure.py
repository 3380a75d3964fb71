"""The kernel of finetune-skills: model calls, crash-safe files, tokens, slices, rubric scores.

One file that works alone. Copy it next to your own script:

    backend = get_backend("openai:MODEL", journal=Journal("data/journal/demo.jsonl"))
    result = await backend.complete("Say hello.", scope="demo/hello")
    print(result.content, result.usage, result.cost)

Chapters: 1 models, 2 runs, 3 checkpoints, 4 tokens, 5 slicing, 6 rubric and scores, 7 project.
Importing it opens no file, socket or client; SDKs are imported by the call that needs them.
Needs Python 3.11; pydantic, tenacity, pyyaml, and for its own sake the SDK of each provider used.
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
import importlib
import importlib.util
import inspect
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
import zlib
from collections import Counter, deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO, TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
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
    """One call without a usable answer. `kind` says why; it is counted, and never stored as an answer."""

    exit_code = 1

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        text: str = "",
        model: str = "",
        usage: Usage | None = None,
        cost: float | None = None,
        scope: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.text, self.model = kind, text, model
        self.usage, self.cost, self.scope = usage, cost, scope


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 1  Models
# ════════════════════════════════════════════════════════════════════════════════════════════════

RETRIED = frozenset({"rate_limit", "overloaded", "transport", "timeout", "undecodable", "empty"})
STOPS = frozenset({"spent", "denied", "unknown_model"})
# Answered and paid for: asking the same again would only be paid again, so these replay.
ANSWERED = frozenset({"refusal", "filter", "length", "context_full", "tool_call", "too_long"})
# After these the provider may have charged although no answer came: the budget keeps the worst case.
MAYBE_PAID = frozenset({"timeout", "transport", "undecodable", "empty"})
# A run of calls that end in one of these means that nobody is there: the run stops.
NOBODY_THERE = frozenset({"transport", "timeout", "overloaded"})
TRIES = {"empty": 3}  # a blank reply is paid for each time
MAX_REPLY = 10_000_000  # characters; a longer reply is a fault, not an answer

STOP_WORDS = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "filter",
    "safety": "filter",
    "recitation": "filter",
    "blocklist": "filter",
    "prohibited_content": "filter",
    "spii": "filter",
    "language": "filter",
    "refusal": "refusal",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "tool_use": "tool_call",
    "pause_turn": "tool_call",
    "malformed_function_call": "tool_call",
    "model_context_window_exceeded": "context_full",
}
SPENT = re.compile(
    r"insufficient[_ ](quota|balance|funds|credit)|spend[_ ]limit|credit balance is too low|PerDay"
)
BAD_KEY = re.compile(r"API_KEY_INVALID|API key not valid|invalid[ _]api[ _]key", re.IGNORECASE)
NO_ROOM = re.compile(
    r"context[ _](length|window|size)|prompt is too long|too many tokens|maximum number of tokens",
    re.IGNORECASE,
)
# Transport errors of the SDKs by class name, so that no SDK needs importing to recognise them.
TRANSPORT_NAMES = frozenset({"APIConnectionError", "TransportError", "ClientError"})
KEY_VARIABLES = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GOOGLE_API_KEY",
    "MISTRAL_API_KEY",
    "HF_TOKEN",
)
PRESETS = {  # name: (base URL, variable of the key)
    "vllm": ("http://127.0.0.1:8000/v1", ""),
    "llama-server": ("http://127.0.0.1:8080/v1", ""),
    "mlx": ("http://127.0.0.1:8080/v1", ""),
    "ollama": ("http://127.0.0.1:11434/v1", ""),
    "lmstudio": ("http://127.0.0.1:1234/v1", ""),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "llama": ("https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
}
# Every option of a backend is one of these two; the first kind is part of a call's identity.
ANSWER_OPTIONS = frozenset(
    {"model", "max_tokens", "parameters", "base_url", "label", "preset", "n_ctx", "root"}
)
RUNTIME_OPTIONS = frozenset(
    {
        "timeout",
        "attempt_timeout",
        "tries",
        "max_wait",
        "patience",
        "concurrency",
        "journal",
        "budget",
    }
    | {"price", "api_key", "key_variable", "clock", "sleep", "executable"}
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call as the provider counted them; `estimated` when it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0  # reasoning included
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class CompletionResult:
    """A whole, usable reply. `cost` in dollars, None when the price is unknown."""

    content: str
    model: str
    usage: Usage
    stop_reason: str
    cost: float | None
    notes: tuple[str, ...] = ()
    replayed: bool = False


@dataclass(frozen=True)
class Structured(Generic[M]):
    """What a structured call gave: a valid value or a failure, and every reply that was paid for it."""

    value: M | None
    failure: ModelFailure | None
    replies: tuple[CompletionResult, ...]


@dataclass(slots=True)
class Call:
    """One request as a provider's `_call` sees it."""

    messages: list[dict[str, str]]
    schema: type[BaseModel] | None
    max_tokens: int
    scope: str


@dataclass(slots=True)
class Reply:
    """What a provider's `_call` returns, before anything is made of it."""

    text: str
    stop: str
    usage: Usage | None
    model: str
    cost: float | None = None
    notes: tuple[str, ...] = ()


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


class Fault(Exception):
    """One attempt that gave no answer, in our own words; `wait` is what the provider asked for."""

    def __init__(self, kind: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class HttpStatus(Exception):
    """A reply of the fast path that is not a 200."""

    def __init__(self, status_code: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status_code} {text[:500]}")
        self.status_code, self.headers = status_code, headers


# ── what an exception means ─────────────────────────────────────────────────────────────────────


def fault_of(exc: BaseException) -> Fault | None:
    """What an exception of any SDK means, by its status and class; None for a bug, which is no fault."""
    if isinstance(exc, Fault):
        return exc
    status = status_of(exc)
    if status is not None:
        return _fault_of_status(status, exc)
    names = {cls.__name__ for cls in type(exc).__mro__}
    if isinstance(exc, TimeoutError) or any("Timeout" in name for name in names):
        return Fault("timeout", f"no answer in time ({type(exc).__name__})")
    if isinstance(exc, json.JSONDecodeError | UnicodeDecodeError):
        return Fault("undecodable", f"the body is not JSON: {exc}")
    if isinstance(exc, ConnectionError | socket.gaierror) or names & TRANSPORT_NAMES:
        return Fault("transport", _words_of(exc))
    return None


def status_of(exc: BaseException) -> int | None:
    """The HTTP status that an exception carries, as a number and never from its text."""
    for name in ("status_code", "code"):
        value = getattr(exc, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _fault_of_status(status: int, exc: BaseException) -> Fault:
    words = _words_of(exc)
    if status == 402 or (400 <= status < 500 and SPENT.search(words)):
        return Fault("spent", words)
    if status in (401, 403) or (status == 400 and BAD_KEY.search(words)):
        return Fault("denied", words)
    if status == 404:
        return Fault("unknown_model", words)
    if status == 429:
        return Fault("rate_limit", words, retry_after(exc))
    if status in (408, 409) or status >= 500:
        return Fault("overloaded", words, retry_after(exc))
    if status < 400:
        return Fault("undecodable", words)
    return Fault("context" if NO_ROOM.search(words) else "rejected", words)


def _words_of(exc: BaseException) -> str:
    """The provider's own words, its codes included, on one line."""
    parts = [str(exc) or type(exc).__name__]
    cause = exc.__cause__ or exc.__context__
    if cause is not None and status_of(exc) is None:
        parts.append(f"{type(cause).__name__}: {cause}")
    for name in ("code", "error_code", "type"):
        value = getattr(exc, name, None)
        if isinstance(value, str) and value not in parts[0]:
            parts.append(value)
    return " ".join(" ".join(parts).split())[:600]


def retry_after(exc: BaseException, now: Clock = time.time) -> float | None:
    """How long the provider asks to wait, in seconds, from wherever it says so; never negative."""
    headers = (
        getattr(getattr(exc, "response", None), "headers", None)
        or getattr(exc, "headers", None)
        or {}
    )
    low = {str(key).lower(): str(value) for key, value in dict(headers).items()}
    details = getattr(exc, "details", None)
    asked = [
        parse_delay(low.get("retry-after-ms", ""), unit="ms"),
        parse_delay(low.get("retry-after", ""), now=now),
        parse_delay(_retry_info(details)),
        _delay_in_text(str(exc)),
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


def _retry_info(details: object) -> str:
    """Google's RetryInfo, from the details of its error body."""
    error = details.get("error", details) if isinstance(details, dict) else {}
    for entry in (error.get("details") or []) if isinstance(error, dict) else []:
        if isinstance(entry, dict) and str(entry.get("@type", "")).endswith("RetryInfo"):
            return str(entry.get("retryDelay", ""))
    return ""


def _delay_in_text(text: str) -> float | None:
    match = re.search(
        r"(?:retry|try again)\s+(?:in|after)\s+(\d+(?:\.\d+)?\s*m?s)", text, re.IGNORECASE
    )
    match = match or re.search(r"""retryDelay['"]:\s*['"](\d+(?:\.\d+)?m?s)""", text)
    return parse_delay(match[1]) if match else None


# ── money ───────────────────────────────────────────────────────────────────────────────────────


class Budget:
    """A cap in dollars. The worst case of a call is held back before it is sent."""

    def __init__(self, max_usd: float | None = None, spent: float = 0.0) -> None:
        self.max_usd, self.spent = max_usd, spent
        self.held = 0.0
        self._open = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, worst: float) -> None:
        """Hold `worst` dollars; waits for calls in flight to settle, then raises BudgetReached."""
        while self.max_usd is not None and self.spent + self.held + worst > self.max_usd + 1e-12:
            if not self._open:
                raise BudgetReached(
                    f"budget: ${self.spent:.4f} of ${self.max_usd:.4f} is spent, and the next call could cost "
                    f"${worst:.4f}. Everything so far is kept; run again with a larger --max-usd to go on."
                )
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._open += 1
        self.held += worst

    def settle(self, worst: float, cost: float) -> None:
        """Replace a held worst case by what the call really cost."""
        self._open -= 1
        self.held = self.held - worst if self._open else 0.0
        self.spent += cost
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


def cost_of(usage: Usage, model: str, price: Mapping[str, float] | None) -> float | None:
    """Dollars for one call: from `price` (dollars per million tokens), else genai-prices, else None."""
    if price is not None:
        fresh = usage.input_tokens - usage.cached_tokens
        cached = usage.cached_tokens * price.get("cached_input", price["input"])
        return (fresh * price["input"] + cached + usage.output_tokens * price["output"]) / 1e6
    try:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price
    except ImportError:
        return None
    tokens = Tokens(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens or None,
    )
    try:
        return float(calc_price(tokens, model_ref=model).total_price)
    except LookupError:
        return None


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _checked_price(price: Mapping[str, float] | None, name: str) -> Mapping[str, float] | None:
    if price is not None and not {"input", "output"} <= set(price):
        raise FinetuneError(
            f"{name}: a price needs `input` and `output`, in dollars per million tokens"
        )
    return price


# ── pace ────────────────────────────────────────────────────────────────────────────────────────


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
        """Wait for the next place to send; one waiter sleeps at a time, so nobody waits on an old rate."""
        if self.rate is None:
            return
        async with self._turns:
            self._grow()
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
        first = self.rate is None
        lowest = max(self.FLOOR, self.slots / 2) if first else self.FLOOR
        self.rate = max(lowest, 0.9 * self._answer_rate(now))
        self._slow_start = first
        self._cut = self._grown = now

    def _answer_rate(self, now: float) -> float:
        while self._answers and self._answers[0] < now - self.WINDOW:
            self._answers.popleft()
        return len(self._answers) / self.WINDOW

    def _grow(self) -> None:
        """Half as much again per tick until the next 429, then 2 % per tick."""
        ticks = int((self.clock() - self._grown) / self.TICK)
        if ticks > 0 and self.rate is not None:
            factor = 1.5 if self._slow_start else 1.02
            self.rate = min(self.rate * factor ** min(ticks, 50), 1e6)
            self._grown += ticks * self.TICK


class _Tally:
    """Counts what one call has been through. Time and tries spent on a 429 do not count."""

    def __init__(self, backend: LLMBackend) -> None:
        self.backend, self.faults, self.limits = backend, 0, 0
        self.excused = 0.0
        self.started = backend.clock()

    def left(self) -> float:
        """Seconds until this call's deadline, waits for rate limits not counted."""
        return self.backend.timeout - (self.backend.clock() - self.started - self.excused)

    def again(self, exc: BaseException) -> bool:
        """Worth another try? Rate limits always are; other faults within tries and deadline."""
        if not isinstance(exc, Fault) or exc.kind not in RETRIED:
            return False
        if exc.kind == "rate_limit":
            self.limits += 1
            return True
        self.faults += 1
        return (
            self.faults < min(self.backend.tries, TRIES.get(exc.kind, self.backend.tries))
            and self.left() > 0
        )

    def wait(self, state: RetryCallState) -> float:
        """What the provider asked for with some jitter on top, else full-jitter back-off."""
        fault = state.outcome.exception() if state.outcome else None
        assert isinstance(fault, Fault)
        steps = self.limits if fault.kind == "rate_limit" else self.faults
        delay = min(30.0, 0.5 * 2.0 ** min(steps, 10)) * random.random()  # noqa: S311 - no secret
        if fault.wait is not None:
            delay = fault.wait * random.uniform(1.0, 1.5)  # noqa: S311
        if fault.kind == "rate_limit":
            self.excused += delay
            return delay
        return max(0.0, min(delay, self.left()))


# ── one model ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Live:
    """What belongs to one event loop: the client, the slots and the pace."""

    loop: asyncio.AbstractEventLoop
    client: Any
    keeper: AsyncGenerator[None, None]
    slots: asyncio.Semaphore
    pacer: Pacer
    probe: asyncio.Lock


class LLMBackend:
    """One model behind one provider. A provider is `_client` and `_call`; all else lives here once."""

    kind = ""
    package = extra = key_variable = default_url = ""

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int = 4096,
        timeout: float = 300.0,  # one call in all, retries included, waits for rate limits not
        attempt_timeout: float = 120.0,
        tries: int = 6,
        max_wait: float = 300.0,  # the longest Retry-After that is waited for
        patience: float = 1800.0,  # the longest time with nothing but rate limits
        concurrency: int = 64,
        journal: Journal | None = None,
        budget: Budget | None = None,
        price: Mapping[str, float] | None = None,
        parameters: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        key_variable: str | None = None,
        base_url: str | None = None,
        label: str = "",
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.model, self.max_tokens, self.parameters = model, max_tokens, dict(parameters or {})
        self.timeout, self.attempt_timeout, self.tries = timeout, attempt_timeout, tries
        self.max_wait, self.patience, self.concurrency = max_wait, patience, concurrency
        self.journal, self.budget = journal, budget
        self.price = _checked_price(price, self.name)
        self.base_url, self.label = base_url or self.default_url, label
        self.key_variable = self.key_variable if key_variable is None else key_variable
        self._api_key = (api_key or os.environ.get(self.key_variable, "")).strip()
        self._secrets = tuple(
            {self._api_key, *(os.environ.get(n, "").strip() for n in KEY_VARIABLES)} - {""}
        )
        self.clock, self.sleep = clock, sleep
        self.totals = Totals()
        self._live_state: _Live | None = None
        self._stopped: StopRun | None = None
        self._answered_at = clock()
        self._unanswered = 0

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.model}"

    def __repr__(self) -> str:
        return f"<{self.name}>"

    # what a caller uses

    async def complete(
        self,
        prompt: str,
        system: str | None = None,
        max_tokens: int | None = None,
        *,
        scope: str = "",
    ) -> CompletionResult:
        """Ask one question; raises ModelFailure for an unusable answer, StopRun when no call can succeed."""
        return await self.chat(_as_messages(prompt, system), max_tokens=max_tokens, scope=scope)

    async def complete_structured(
        self,
        prompt: str,
        response_model: type[M],
        system: str | None = None,
        max_tokens: int | None = None,
        *,
        scope: str = "",
    ) -> M | ModelFailure:
        """Ask for JSON of a Pydantic model; returns an instance, or the ModelFailure that says why not."""
        messages = _as_messages(prompt, system)
        made = await self.chat_structured(
            messages, response_model, max_tokens=max_tokens, scope=scope
        )
        return made.value if made.value is not None else made.failure  # type: ignore[return-value]

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        schema: type[BaseModel] | None = None,
        scope: str = "",
    ) -> CompletionResult:
        """Send a conversation, get the next message; journalled, budgeted, paced and retried."""
        call = Call(_clean(messages), schema, max_tokens or self.max_tokens, scope)
        if self.journal is None:
            return self._result(await self._fresh(call), call, replayed=False)
        key, worst = self._key(call), self._worst(call)
        record, replayed = await self.journal.once(
            key, scope, self.name, worst, lambda: self._fresh(call)
        )
        return self._result(record, call, replayed)

    async def chat_structured(
        self,
        messages: Sequence[Message],
        response_model: type[M],
        *,
        max_tokens: int | None = None,
        scope: str = "",
    ) -> Structured[M]:
        """Like `chat`, for JSON: one repair round that shows the model its mistake, then a failure."""
        replies: list[CompletionResult] = []
        asked, slot = list(messages), scope
        problem = ""
        try:
            for attempt in (1, 2):
                slot = scope if attempt == 1 else f"{scope}.repair-1"
                replies.append(
                    await self.chat(asked, max_tokens=max_tokens, schema=response_model, scope=slot)
                )
                value, problem = parse_structured(replies[-1].content, response_model)
                if value is not None:
                    return Structured(value, None, tuple(replies))
                asked = [*messages, *_repair_messages(replies[-1].content, problem)]
        except ModelFailure as failure:
            return Structured(None, failure, tuple(replies))
        self.totals.failures["schema"] += 1
        return Structured(None, self._schema_failure(problem, replies[-1], slot), tuple(replies))

    async def aclose(self) -> None:
        """Close the client; also happens by itself when the event loop ends."""
        live, self._live_state = self._live_state, None
        if live is not None and live.loop is asyncio.get_running_loop():
            await live.keeper.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # what a provider implements

    def _client(self) -> Any:
        """Make the long-lived client; called once for an event loop."""
        return None

    async def _close(self, client: Any) -> None:
        """Close what `_client` made."""
        if client is not None:
            await client.close()

    async def _call(self, call: Call, client: Any) -> Reply:
        """One request, one reply: no retry, no judgement."""
        raise FinetuneError(f"{type(self).__name__} has no `_call`")

    def _identity(self) -> dict[str, Any]:
        """What makes an answer this model's: part of every journal key."""
        own = {"provider": self.kind, "model": self.model}
        if self.base_url and self.base_url != self.default_url:
            own["endpoint"] = self.label or urlsplit(self.base_url).hostname or ""
        return own

    def _is_free(self) -> bool:
        return bool(self.base_url) and is_loopback(self.base_url) and self.price is None

    # the pipeline of one call

    async def _fresh(self, call: Call) -> dict[str, Any]:
        """Ask the provider; gives a record of the answer or of a typed failure, raises StopRun."""
        live = await self._live()
        async with live.slots:
            try:
                return self._record(await self._attempts(call, live))
            except Fault as fault:
                return self._failed(fault)

    async def _attempts(self, call: Call, live: _Live) -> Reply:
        from tenacity import AsyncRetrying, retry_if_exception

        tally = _Tally(self)
        retrying = AsyncRetrying(
            retry=retry_if_exception(tally.again), wait=tally.wait, sleep=self.sleep, reraise=True
        )
        async for attempt in retrying:
            with attempt:
                return await self._attempt(call, live, tally)
        raise AssertionError("unreachable: the retrying either returns or raises")

    async def _attempt(self, call: Call, live: _Live, tally: _Tally) -> Reply:
        """One request within its slot, its pace, its budget and its deadline."""
        await live.pacer.turn()
        if self._stopped is not None:
            raise self._stopped
        worst = await self._reserve(call)
        charged = worst  # until we know better: a cancelled call may have been paid
        try:
            async with asyncio.timeout(min(self.attempt_timeout, max(0.01, tally.left()))):
                reply = self._filled(await self._call(call, live.client), call)
            charged = reply.cost or 0.0
            live.pacer.answered()
            if not reply.text.strip() and STOP_WORDS.get(reply.stop.lower(), "stop") == "stop":
                raise Fault("empty", f"the reply is blank (stop reason: {reply.stop or 'none'})")
            return reply
        except Exception as exc:
            fault = self._fault(exc, live)
            charged = charged if fault.kind in MAYBE_PAID else 0.0
            raise fault from None
        finally:
            if self.budget is not None:
                self.budget.settle(worst, charged)

    def _fault(self, exc: Exception, live: _Live) -> Fault:
        """Translate, count and act on what one attempt raised; a bug goes on as it is."""
        fault = fault_of(exc)
        if fault is None:
            raise exc
        fault = Fault(fault.kind, self.redact(str(fault)), fault.wait)
        if fault.kind == "rate_limit":
            self.totals.limited += 1
            live.pacer.limited()
            fault = self._too_long_a_wait(fault) or fault
        if fault.kind in STOPS:
            self._stopped = self._stopped or StopRun(f"{self.name}: {self._advice(fault)}")
            raise self._stopped from None
        return fault

    def _too_long_a_wait(self, fault: Fault) -> Fault | None:
        """A wait beyond the cap, or nothing but rate limits for too long, ends the run."""
        if fault.wait is not None and fault.wait > self.max_wait:
            return Fault(
                "spent",
                f"{fault} (asks to wait {fault.wait:.0f} s; the cap is {self.max_wait:.0f} s)",
            )
        silent = self.clock() - self._answered_at
        if silent > self.patience:
            return Fault("spent", f"{fault} (nothing but rate limits for {silent:.0f} s)")
        return None

    def _advice(self, fault: Fault) -> str:
        todo = {
            "denied": f"check the key in {self.key_variable or 'api_key'} and its rights",
            "spent": "the account is out of quota or budget; top up or wait, then run again",
            "unknown_model": "check the model's name and the base URL",
        }[fault.kind]
        return f"{fault}. The run stops: {todo}. What is done is kept."

    def _filled(self, reply: Reply, call: Call) -> Reply:
        """A reply with its cost, and with an estimate where the provider counted no tokens."""
        if reply.usage is None:
            reply.usage = Usage(
                _rough_tokens(call.messages), _rough_text(reply.text), estimated=True
            )
        if self._is_free():
            reply.cost = 0.0
        elif reply.cost is None:
            reply.cost = cost_of(reply.usage, self.model, self.price)
        return reply

    def _record(self, reply: Reply) -> dict[str, Any]:
        """What the journal keeps of a reply: the raw text first, whatever is made of it later."""
        self._answered_at, self._unanswered = self.clock(), 0
        stop = STOP_WORDS.get(reply.stop.lower(), reply.stop.lower() or "unknown")
        failure = stop if stop in ANSWERED else None
        text = self.redact(_utf8_safe(reply.text))
        if len(text) > MAX_REPLY:
            failure, text = "too_long", text[:1000]
        return {
            "text": text,
            "stop": stop,
            "model": reply.model,
            "usage": (reply.usage or Usage()).to_dict(),
            "cost": reply.cost,
            "failure": failure,
            "notes": [*reply.notes, *self._model_note(reply)],
        }

    def _failed(self, fault: Fault) -> dict[str, Any]:
        """The record of a call that got no answer; too many of them in a row stop the run."""
        self._unanswered += fault.kind in NOBODY_THERE
        if self._unanswered >= 10:
            self._stopped = self._stopped or StopRun(
                f"{self.name}: the last {self._unanswered} calls got no answer ({fault}). "
                "The run stops: check the network and the provider, then run again. What is done is kept."
            )
            raise self._stopped
        return {
            "text": "",
            "stop": "",
            "model": self.model,
            "failure": fault.kind,
            "message": str(fault),
        }

    def _model_note(self, reply: Reply) -> list[str]:
        """Name both models when another one answered than was asked."""
        same = (
            not reply.model
            or reply.model.startswith(self.model)
            or self.model.endswith(reply.model)
        )
        return [] if same else [f"asked {self.model}, answered by {reply.model}"]

    def _result(self, record: Mapping[str, Any], call: Call, replayed: bool) -> CompletionResult:
        """Turn a record, fresh or replayed, into a result or a ModelFailure; both are counted."""
        usage = Usage(**record["usage"]) if record.get("usage") else Usage()
        cost = record.get("cost")
        self._count(usage, cost, replayed, record.get("failure"))
        if record.get("failure"):
            raise self._failure(record, call, usage)
        notes = tuple(record.get("notes", ()))
        return CompletionResult(
            record["text"], record["model"], usage, record["stop"], cost, notes, replayed
        )

    def _count(self, usage: Usage, cost: float | None, replayed: bool, failure: str | None) -> None:
        totals = self.totals
        totals.calls += not replayed
        totals.replayed += replayed
        if failure:
            totals.failures[failure] += 1
        if not replayed:
            totals.tokens += usage.input_tokens + usage.output_tokens
            totals.cost += cost or 0.0
            totals.unknown_costs += cost is None and failure not in RETRIED

    def _failure(self, record: Mapping[str, Any], call: Call, usage: Usage) -> ModelFailure:
        kind, text = record["failure"], record["text"]
        said = record.get("message") or {
            "length": f"the reply was cut at {call.max_tokens} tokens; give it more room (max_tokens)",
            "refusal": "the model refused to answer",
            "filter": "the provider's content filter withheld the reply",
            "context_full": "the conversation filled the model's context window",
            "tool_call": "the model answered with a tool call instead of text",
            "too_long": f"the reply is longer than {MAX_REPLY} characters",
        }.get(kind, kind)
        where = f"{self.name}{f' on {call.scope}' if call.scope else ''}"
        return ModelFailure(
            kind,
            f"{where}: {said}. Recorded as a failure ({kind}), not as an answer.",
            text=text,
            model=record["model"],
            usage=usage,
            cost=record.get("cost"),
            scope=call.scope,
        )

    def _schema_failure(self, problem: str, reply: CompletionResult, scope: str) -> ModelFailure:
        where = f"{self.name}{f' on {scope}' if scope else ''}"
        message = (
            f"{where}: the reply does not fit the schema, also after one repair: {problem} "
            f"(first 80 characters: {reply.content[:80]!r}). Recorded as ERROR, not as an answer."
        )
        return ModelFailure(
            "schema",
            message,
            text=reply.content,
            model=reply.model,
            usage=reply.usage,
            cost=reply.cost,
            scope=scope,
        )

    # identity, money, secrets, client

    def _key(self, call: Call) -> str:
        request = {
            **self._identity(),
            "messages": call.messages,
            "max_tokens": call.max_tokens,
            "parameters": self.parameters,
            "schema": strict_schema(call.schema) if call.schema else None,
        }
        return canonical_hash({"v": SCHEMA, "scope": call.scope, "request": request})

    def _worst(self, call: Call) -> float | None:
        """The most one attempt can cost: a token for each byte sent, and every token of the reply."""
        if self._is_free():
            return 0.0
        sent = sum(len(message["content"].encode()) + 16 for message in call.messages)
        sent += len(json.dumps(strict_schema(call.schema))) if call.schema else 0
        return cost_of(Usage(sent, call.max_tokens), self.model, self.price)

    async def _reserve(self, call: Call) -> float:
        if self.budget is None:
            return 0.0
        worst = self._worst(call)
        if worst is None and self.budget.max_usd is not None:
            raise StopRun(
                f"{self.name}: its price is unknown, so a dollar cap cannot be kept. Set `price: {{input: ..., "
                f"output: ...}}` (dollars per million tokens) in config/project.yaml, or install {_extra('prices')}."
            )
        await self.budget.reserve(worst or 0.0)
        return worst or 0.0

    def redact(self, text: str) -> str:
        """Any known key in a text becomes [key]."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, "[key]")
        return text

    def _require_key(self) -> str:
        if not self._api_key:
            raise StopRun(
                f"{self.name}: no API key. Set {self.key_variable} in the environment or in .env."
            )
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise StopRun(
                f"{self.name}: the API key in {self.key_variable} has characters that no key has."
            )
        return self._api_key

    async def _live(self) -> _Live:
        """The client of the running loop. An asynchronous generator keeps it, because the end of
        a loop closes those: nobody has to remember `aclose`, and nothing is left open."""
        loop = asyncio.get_running_loop()
        if self._live_state is None or self._live_state.loop is not loop:
            client = self._client()
            keeper = self._keep(client)
            pacer = Pacer(self.concurrency, self.clock, self.sleep)
            slots = asyncio.Semaphore(self.concurrency)
            self._live_state = _Live(loop, client, keeper, slots, pacer, asyncio.Lock())
            await anext(keeper)
        return self._live_state

    async def _keep(self, client: Any) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close(client)


def _as_messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def _clean(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Plain role and content, fit for any transport; anything else is the caller's mistake."""
    if not messages:
        raise FinetuneError("a call needs at least one message")
    return [_clean_message(number, message) for number, message in enumerate(messages)]


def _clean_message(number: int, message: Message) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise FinetuneError(
            f"message {number}: needs a role (system, user, assistant) and text, not {role!r} and "
            f"{type(content).__name__}"
        )
    return {"role": role, "content": _utf8_safe(content)}


def _utf8_safe(text: str) -> str:
    """Lone surrogates become question marks: no transport and no file can carry them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _split_system(messages: Sequence[Message]) -> tuple[str, list[dict[str, str]]]:
    """The system text, and the turns without it, for providers that take them apart."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return system, [dict(m) for m in messages if m["role"] != "system"]


def _rough_text(text: str) -> int:
    return max(1, len(text.encode()) // 4)


def _rough_tokens(messages: Sequence[Message]) -> int:
    return sum(_rough_text(m["content"]) + 4 for m in messages)


def _extra(name: str) -> str:
    return f"finetune-skills[{name}]"


def needs(module: str, extra: str, who: str) -> ModuleType:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise StopRun(
            f"{who}: the package `{module.split('.')[0]}` is not installed ({exc}). "
            f"Install it with: pip install '{_extra(extra)}'"
        ) from None


# ── structured output ───────────────────────────────────────────────────────────────────────────


@functools.lru_cache(maxsize=128)
def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a Pydantic model in the strict form: all required, nothing else, no defaults."""
    schema = model.model_json_schema()
    _close_objects(schema)
    return schema


def _close_objects(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _close_objects(part)
    if not isinstance(node, dict):
        return
    node.pop("default", None)
    properties = node.get("properties")
    if isinstance(properties, dict):
        node["additionalProperties"], node["required"] = False, list(properties)
    for key, part in node.items():
        for inner in part.values() if key in ("properties", "$defs") else [part]:
            _close_objects(inner)


def parse_structured(text: str, model: type[M]) -> tuple[M | None, str]:
    """A valid instance, or None and what is wrong; JSON inside a code fence or prose is found."""
    from pydantic import ValidationError

    problem = ""
    inner = re.search(r"\{.*\}", text, re.DOTALL)
    for candidate in [text] + ([inner[0]] if inner and inner[0] != text else []):
        try:
            return model.model_validate_json(candidate), ""
        except ValidationError as exc:
            problem = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}"
                for e in exc.errors(include_url=False)[:8]
            )
    return None, problem


def _repair_messages(text: str, problem: str) -> list[dict[str, str]]:
    ask = (
        f"Your reply does not fit the required JSON schema: {problem}\n"
        "Answer again with one JSON object that fits it, and nothing else."
    )
    return [{"role": "assistant", "content": text}, {"role": "user", "content": ask}]


def _json_schema_format(schema: type[BaseModel]) -> dict[str, Any]:
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", schema.__name__)[:64]
    wanted = {"name": name, "strict": True, "schema": strict_schema(schema)}
    return {"type": "json_schema", "json_schema": wanted}


# ── providers ───────────────────────────────────────────────────────────────────────────────────


def _pick(source: Any, name: str) -> Any:
    """A field of an SDK's object or of plain JSON, alike; None where it is missing."""
    return source.get(name) if isinstance(source, dict) else getattr(source, name, None)


def _number(source: Any, name: str) -> int:
    value = _pick(source, name)
    return value if isinstance(value, int) else 0


def _not_a_reply(body: Any) -> Fault:
    return Fault("undecodable", f"the reply has not the API's form: {str(body)[:120]!r}")


def _chat_reply(body: Any) -> Reply:
    """Read a chat completion, from the SDK or as plain JSON."""
    choices = _pick(body, "choices")
    if not isinstance(choices, list) or not choices or _pick(choices[0], "message") is None:
        raise _not_a_reply(body)
    message, stop = _pick(choices[0], "message"), str(_pick(choices[0], "finish_reason") or "")
    text = _pick(message, "content")
    if _pick(message, "refusal"):
        text, stop = _pick(message, "refusal"), "refusal"
    elif not text and (_pick(message, "tool_calls") or _pick(message, "function_call")):
        stop = "tool_calls"
    usage = _pick(body, "usage")
    return Reply(
        text if isinstance(text, str) else "",
        stop,
        _chat_usage(usage) if _number(usage, "prompt_tokens") else None,
        str(_pick(body, "model") or ""),
    )


def _chat_usage(usage: Any) -> Usage:
    return Usage(
        _number(usage, "prompt_tokens"),
        _number(usage, "completion_tokens"),
        _number(_pick(usage, "completion_tokens_details"), "reasoning_tokens"),
        _number(_pick(usage, "prompt_tokens_details"), "cached_tokens"),
    )


class OpenAIBackend(LLMBackend):
    """OpenAI's chat completions through its SDK."""

    kind = package = extra = "openai"
    key_variable, default_url = "OPENAI_API_KEY", "https://api.openai.com/v1"

    def _client(self) -> Any:
        sdk = needs("openai", self.extra, self.name)
        return sdk.AsyncOpenAI(
            api_key=self._require_key(),
            base_url=self.base_url,
            max_retries=0,
            timeout=self.attempt_timeout,
        )

    async def _call(self, call: Call, client: Any) -> Reply:
        wanted = {"response_format": _json_schema_format(call.schema)} if call.schema else {}
        body = await client.chat.completions.create(
            model=self.model,
            messages=call.messages,
            max_completion_tokens=call.max_tokens,
            **wanted,
            **self.parameters,
        )
        return _chat_reply(body)


class AnthropicBackend(LLMBackend):
    """Anthropic's messages through its SDK."""

    kind = package = extra = "anthropic"
    key_variable, default_url = "ANTHROPIC_API_KEY", "https://api.anthropic.com"
    SAMPLING = frozenset({"temperature", "top_p", "top_k"})  # gone from the SDK's signatures

    def _client(self) -> Any:
        sdk = needs("anthropic", self.extra, self.name)
        return sdk.AsyncAnthropic(
            api_key=self._require_key(),
            base_url=self.base_url,
            max_retries=0,
            timeout=self.attempt_timeout,
        )

    async def _call(self, call: Call, client: Any) -> Reply:
        system, turns = _split_system(call.messages)
        body = await client.messages.create(
            model=self.model,
            max_tokens=call.max_tokens,
            messages=turns,
            **self._settings(system, call),
        )
        blocks = _pick(body, "content")
        if not isinstance(blocks, list):
            raise _not_a_reply(body)
        text = "".join(
            _pick(block, "text") or "" for block in blocks if _pick(block, "type") == "text"
        )
        return Reply(
            text,
            str(_pick(body, "stop_reason") or ""),
            self._usage(body),
            str(_pick(body, "model")),
        )

    def _settings(self, system: str, call: Call) -> dict[str, Any]:
        settings = {k: v for k, v in self.parameters.items() if k not in self.SAMPLING}
        sampling = {k: v for k, v in self.parameters.items() if k in self.SAMPLING}
        if sampling:
            settings["extra_body"] = {**settings.get("extra_body", {}), **sampling}
        if system:
            settings["system"] = system
        if call.schema:
            wanted = {"format": {"type": "json_schema", "schema": strict_schema(call.schema)}}
            settings["output_config"] = {**settings.get("output_config", {}), **wanted}
        return settings

    def _usage(self, body: Any) -> Usage | None:
        usage = _pick(body, "usage")
        cached = _number(usage, "cache_read_input_tokens")
        sent = (
            _number(usage, "input_tokens") + cached + _number(usage, "cache_creation_input_tokens")
        )
        return Usage(sent, _number(usage, "output_tokens"), 0, cached) if sent else None


class GoogleBackend(LLMBackend):
    """Gemini through google-genai."""

    kind = extra = "google"
    package = "google.genai"
    key_variable, default_url = "GOOGLE_API_KEY", "https://generativelanguage.googleapis.com/"

    def _client(self) -> Any:
        sdk = needs("google.genai", self.extra, self.name)
        options = sdk.types.HttpOptions(
            base_url=self.base_url, timeout=int(self.attempt_timeout * 1000)
        )
        return sdk.Client(api_key=self._require_key(), vertexai=False, http_options=options)

    async def _close(self, client: Any) -> None:
        await client.aio.aclose()

    async def _call(self, call: Call, client: Any) -> Reply:
        system, turns = _split_system(call.messages)
        contents = [
            {
                "role": "model" if m["role"] == "assistant" else "user",
                "parts": [{"text": m["content"]}],
            }
            for m in turns
        ]
        body = await client.aio.models.generate_content(
            model=self.model, contents=contents, config=self._settings(system, call)
        )
        return self._reply(body)

    def _settings(self, system: str, call: Call) -> dict[str, Any]:
        settings: dict[str, Any] = {"max_output_tokens": call.max_tokens, **self.parameters}
        if system:
            settings["system_instruction"] = system
        if call.schema:
            settings["response_mime_type"] = "application/json"
            settings["response_json_schema"] = strict_schema(call.schema)
        return settings

    def _reply(self, body: Any) -> Reply:
        candidates, blocked = (
            _pick(body, "candidates"),
            _pick(_pick(body, "prompt_feedback"), "block_reason"),
        )
        model, usage = (
            str(_pick(body, "model_version") or ""),
            self._usage(_pick(body, "usage_metadata")),
        )
        if blocked:
            return Reply("", "content_filter", usage, model)
        if not candidates:
            raise _not_a_reply(body)
        parts = _pick(_pick(candidates[0], "content"), "parts") or []
        text = "".join(_pick(part, "text") or "" for part in parts if not _pick(part, "thought"))
        stop = _pick(candidates[0], "finish_reason")
        if not text and any(_pick(part, "function_call") for part in parts):
            stop = "function_call"
        return Reply(text, str(getattr(stop, "value", stop) or ""), usage, model)

    def _usage(self, usage: Any) -> Usage | None:
        thoughts = _number(usage, "thoughts_token_count")
        made = _number(usage, "candidates_token_count") + thoughts
        sent = _number(usage, "prompt_token_count")
        return (
            Usage(sent, made, thoughts, _number(usage, "cached_content_token_count"))
            if sent
            else None
        )


class LocalBackend(LLMBackend):
    """Any server with OpenAI's chat endpoint, over one plain HTTP session: the fast path."""

    kind = extra = "local"
    package = "aiohttp"
    MODES = ("json_schema", "json_object", "text")

    def __init__(self, model: str, *, preset: str = "", **options: Any) -> None:
        if preset and preset not in PRESETS:
            raise FinetuneError(f"local:{model}: {_unknown('preset', preset, PRESETS)}")
        url, variable = PRESETS.get(preset, ("", ""))
        options["base_url"] = options.get("base_url") or url
        options["key_variable"] = options.get("key_variable") or variable
        options["label"] = options.get("label") or preset
        super().__init__(model, **options)
        if not self.base_url:
            raise FinetuneError(f"{self.name}: needs a base_url, or a preset: {', '.join(PRESETS)}")
        self.structured_mode: str | None = None  # what the server was found to understand
        self._url = self.base_url.rstrip("/") + "/chat/completions"

    def _client(self) -> Any:
        aiohttp = needs("aiohttp", self.extra, self.name)
        headers = {"Content-Type": "application/json"}
        if self.key_variable or self._api_key:
            headers["Authorization"] = f"Bearer {self._require_key()}"
        connector = aiohttp.TCPConnector(limit=self.concurrency)
        no_timeout = aiohttp.ClientTimeout(
            total=None
        )  # the deadline around the whole attempt rules
        outside = not is_loopback(self.base_url)
        return aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=no_timeout,
            trust_env=outside,
            auto_decompress=True,
        )

    async def _call(self, call: Call, client: Any) -> Reply:
        if call.schema is None or self.structured_mode is not None:
            return await self._ask(call, client, self.structured_mode or "text")
        async with (await self._live()).probe:  # one call finds out, the others wait for it
            for mode in self.MODES if self.structured_mode is None else (self.structured_mode,):
                try:
                    reply = await self._ask(call, client, mode)
                except HttpStatus as exc:
                    if mode == "text" or exc.status_code not in (400, 404, 415, 422, 501):
                        raise
                else:
                    self.structured_mode = mode
                    return reply
        raise AssertionError("unreachable: text mode returns or raises")

    async def _ask(self, call: Call, client: Any, mode: str) -> Reply:
        body = {
            "model": self.model,
            "messages": call.messages,
            "max_tokens": call.max_tokens,
            **self.parameters,
        }
        if call.schema is not None:
            body.update(self._shape(call, mode))
        async with client.post(self._url, data=json.dumps(body).encode()) as response:
            raw = await self._body(response)
            if response.status != 200:
                raise HttpStatus(response.status, raw.decode("utf-8", "replace"), response.headers)
        reply = _chat_reply(json.loads(raw))
        if call.schema is not None:
            reply.notes = (f"structured: {mode}",)
        return reply

    def _shape(self, call: Call, mode: str) -> dict[str, Any]:
        """The request's format field; below json_schema the schema goes into the messages."""
        assert call.schema is not None
        if mode == "json_schema":
            return {"response_format": _json_schema_format(call.schema)}
        ask = "Answer with one JSON object that fits this schema: " + json.dumps(
            strict_schema(call.schema)
        )
        last = {**call.messages[-1], "content": f"{call.messages[-1]['content']}\n\n{ask}"}
        shaped: dict[str, Any] = {"messages": [*call.messages[:-1], last]}
        if mode == "json_object":
            shaped["response_format"] = {"type": "json_object"}
        return shaped

    async def _body(self, response: Any) -> bytes:
        """The whole body, within a bound on memory."""
        limit = 4 * MAX_REPLY
        if (response.content_length or 0) <= limit and response.content_length is not None:
            return bytes(await response.read())
        raw = bytearray()
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > limit:
                raise Fault("rejected", f"the reply is longer than {limit} bytes")
        return bytes(raw)


class ClaudeBackend(LLMBackend):
    """The Claude Code command line, kept away from the user's settings, tools and project."""

    kind = "claude"
    SYSTEM = "Answer the user."
    KEPT = (
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
    )

    def __init__(self, model: str, *, executable: str = "claude", **options: Any) -> None:
        super().__init__(model, key_variable="ANTHROPIC_API_KEY", **options)
        self.executable = executable

    def _client(self) -> Any:
        found = shutil.which(self.executable)
        if found is None:
            raise StopRun(
                f"{self.name}: `{self.executable}` is not on the PATH. Install Claude Code, or name it."
            )
        return found

    async def _close(self, client: Any) -> None:
        return None

    async def _call(self, call: Call, client: Any) -> Reply:
        system, turns = _split_system(call.messages)
        with tempfile.TemporaryDirectory() as room:
            empty, prompt_file = Path(room, "empty"), Path(room, "system.md")
            empty.mkdir()
            prompt_file.write_text(system or self.SYSTEM, encoding="utf-8")
            argv = [client, *self._flags(prompt_file, call)]
            code, out, err = await self._run(argv, _as_one_prompt(turns), empty, call.max_tokens)
        return self._reply(code, out, err)

    def _flags(self, system_file: Path, call: Call) -> list[str]:
        """No settings, tools, servers, sessions or slash commands; `--tools ""` swallows what follows it."""
        flags = ["-p", "--output-format", "json", "--model", self.model, "--no-session-persistence"]
        flags += ["--setting-sources", "", "--strict-mcp-config", "--disable-slash-commands"]
        flags += ["--system-prompt-file", str(system_file)]
        if call.schema:
            flags += ["--json-schema", json.dumps(strict_schema(call.schema))]
        if "effort" in self.parameters:
            flags += ["--effort", str(self.parameters["effort"])]
        return [*flags, "--tools", ""]

    def _environment(self, max_tokens: int) -> dict[str, str]:
        """The caller's environment without the marks of an outer session, and the reply's limit."""
        kept = {k: v for k, v in os.environ.items() if k in self.KEPT or not k.startswith("CLAUDE")}
        kept["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(max_tokens)
        kept["CLAUDE_CODE_MAX_RETRIES"] = "0"
        kept["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = kept["DISABLE_AUTOUPDATER"] = "1"
        kept["CLAUDE_CODE_DISABLE_CLAUDE_MDS"] = kept["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] = "1"
        if self.base_url:
            kept["ANTHROPIC_BASE_URL"] = self.base_url
        if self._api_key:
            kept["ANTHROPIC_API_KEY"] = self._api_key
        return kept

    async def _run(
        self, argv: list[str], prompt: str, cwd: Path, max_tokens: int
    ) -> tuple[int, bytes, bytes]:
        """Run the child with the prompt on stdin; it does not outlive a cancelled or late call."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=cwd,
            env=self._environment(max_tokens),
            start_new_session=True,
        )
        try:
            out, err = await child.communicate(prompt.encode())
            return child.returncode or 0, out, err
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()

    def _reply(self, code: int, out: bytes, err: bytes) -> Reply:
        """Flag and exit code first: on failure `subtype` still says success."""
        try:
            said = json.loads(out)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            words = (err or out).decode("utf-8", "replace").strip()[-300:]
            raise Fault("transport", f"the command ended with code {code} and no result: {words}")
        if code != 0 or said.get("is_error"):
            raise self._error(code, said)
        made = said.get("structured_output")
        text = json.dumps(made) if made is not None else str(said.get("result") or "")
        stop = str(said.get("stop_reason") or "stop")
        stop = "stop" if made is not None and stop == "tool_use" else stop
        model = next(iter(said.get("modelUsage") or {}), "")
        return Reply(text, stop, self._usage(said.get("usage")), model, said.get("total_cost_usd"))

    def _error(self, code: int, said: Mapping[str, Any]) -> Exception:
        status = said.get("api_error_status")
        words = f"{said.get('api_error_type') or ''} {said.get('result') or said.get('terminal_reason') or ''}".strip()
        if isinstance(status, int):
            return HttpStatus(status, words, {})
        if re.search(r"log ?in|api key|credential|authenticat", words, re.IGNORECASE):
            return Fault("denied", words)
        return Fault("overloaded", f"exit code {code}: {words}")

    def _usage(self, usage: Any) -> Usage | None:
        return AnthropicBackend._usage(self, {"usage": usage})  # type: ignore[arg-type]


def _as_one_prompt(turns: Sequence[Message]) -> str:
    """A conversation as one prompt, for a command that takes only one."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    lines = [f"[{turn['role']}]\n{turn['content']}" for turn in turns]
    return (
        "The conversation so far:\n\n"
        + "\n\n".join(lines)
        + "\n\nWrite the next assistant message only."
    )


class LlamaCppBackend(LLMBackend):
    """A GGUF file in this process: one worker thread, one call in flight."""

    kind = extra = "llamacpp"
    package = "llama_cpp"

    def __init__(self, model: str, *, n_ctx: int = 8192, **options: Any) -> None:
        options["concurrency"] = 1
        super().__init__(model, **options)
        self.n_ctx = n_ctx
        self._leave = threading.Event()

    def _client(self) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        path = Path(self.model).expanduser()
        if not path.is_file():
            raise StopRun(f"{self.name}: there is no such GGUF file")
        sdk = needs("llama_cpp", self.extra, self.name)
        pool = ThreadPoolExecutor(1, thread_name_prefix="llamacpp")
        engine = pool.submit(sdk.Llama, model_path=str(path), n_ctx=self.n_ctx, verbose=False)
        return pool, engine

    async def _close(self, client: Any) -> None:
        self._leave.set()
        client[0].shutdown(wait=True, cancel_futures=True)

    async def _call(self, call: Call, client: Any) -> Reply:
        """The thread looks at a flag after each token, so that a late call leaves the engine free."""
        pool, engine = client
        self._leave = leave = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pool, self._generate, engine.result, call, leave)
        finally:
            leave.set()

    def _generate(self, engine: Callable[[], Any], call: Call, leave: threading.Event) -> Reply:
        wanted: dict[str, Any] = dict(self.parameters)
        if call.schema:
            wanted["response_format"] = {
                "type": "json_object",
                "schema": strict_schema(call.schema),
            }
        stream = engine().create_chat_completion(
            messages=call.messages, max_tokens=call.max_tokens, stream=True, **wanted
        )
        text, stop, made = "", "", 0
        for chunk in stream:
            choice = chunk["choices"][0]
            piece = choice["delta"].get("content") or ""
            text, stop, made = text + piece, choice.get("finish_reason") or stop, made + bool(piece)
            if leave.is_set():
                raise Fault("timeout", "the call was given up")
        sent = engine().n_tokens - made
        return Reply(text, stop or "stop", Usage(max(1, sent), made), self.model)

    def _identity(self) -> dict[str, Any]:
        return {
            "provider": self.kind,
            "model": file_hash(Path(self.model).expanduser()),
            "n_ctx": self.n_ctx,
        }

    def _is_free(self) -> bool:
        return True


class PythonBackend(LLMBackend):
    """A function of the project as a model: `def reply(messages, *, schema=None, scope="") -> str`."""

    kind = "python"

    def __init__(self, model: str, *, root: str | Path | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self.root = Path(root) if root else find_project() or Path.cwd()
        self._path, self._function = _project_module(model, self.root)

    def _client(self) -> Any:
        return load_callable(self._path, self._function, self.name)

    async def _close(self, client: Any) -> None:
        return None

    async def _call(self, call: Call, client: Any) -> Reply:
        said = client(call.messages, schema=call.schema, scope=call.scope)
        said = await said if inspect.isawaitable(said) else said
        if not isinstance(said, str):
            raise FinetuneError(
                f"{self.name}: returned {type(said).__name__}; a model returns text"
            )
        return Reply(said, "stop", None, self.model)

    def _identity(self) -> dict[str, Any]:
        return {"provider": self.kind, "model": self.model, "source": file_hash(self._path)}

    def _is_free(self) -> bool:
        return True


def _project_module(spec: str, root: Path) -> tuple[Path, str]:
    """The file and function that `module:callable` names; nothing outside the project root."""
    module, _, function = spec.partition(":")
    if not function or not all(part.isidentifier() for part in [*module.split("."), function]):
        raise FinetuneError(
            f"python:{spec}: write it as module:callable, for example fakes.judge:reply"
        )
    base = root.joinpath(*module.split("."))
    path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
    if path is None or not path.resolve().is_relative_to(root.resolve()):
        raise FinetuneError(
            f"python:{spec}: {module} is not a module under the project root {root}"
        )
    return path, function


def load_callable(path: Path, function: str, who: str) -> Callable[..., Any]:
    """Load a function from a file, under a private name, so that two projects never mix."""
    name = f"_project_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    found = getattr(sys.modules[name], function, None)
    if not callable(found):
        raise FinetuneError(f"{who}: {path.name} has no function `{function}`")
    return found  # type: ignore[no-any-return]


KINDS: dict[str, type[LLMBackend]] = {
    "openai": OpenAIBackend,
    "anthropic": AnthropicBackend,
    "google": GoogleBackend,
    "claude": ClaudeBackend,
    "local": LocalBackend,
    "llamacpp": LlamaCppBackend,
    "python": PythonBackend,
}


def get_backend(kind: str, model: str | None = None, **options: Any) -> LLMBackend:
    """A new backend for a kind and a model, or for a spec such as `anthropic:MODEL`."""
    kind, _, named = kind.partition(":")
    if kind not in KINDS:
        raise FinetuneError(_unknown("provider", kind, KINDS))
    model = model or named
    if not model:
        raise FinetuneError(f"{kind}: no model is named. Write {kind}:MODEL; none is built in.")
    cls = KINDS[kind]
    known = {name for c in (cls, LLMBackend) for name in inspect.signature(c).parameters} - {
        "options"
    }
    for option in sorted(set(options) - known):
        raise FinetuneError(
            f"{kind}:{model}: {_unknown('option', option, known)} Sampling goes into `parameters`."
        )
    return cls(model, **options)


def _unknown(what: str, given: str, have: Iterable[str]) -> str:
    """An unknown word, the nearest known one, and all of them."""
    have = sorted(have)
    near = [h for h in have if h == ALIASES.get(given.lower())]
    near = near or difflib.get_close_matches(given.lower(), have, 1, 0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'"{given}" is not a known {what}.{hint} Have: {", ".join(have)}.'


ALIASES = {
    "gemini": "google",
    "gpt": "openai",
    "chatgpt": "openai",
    "gguf": "llamacpp",
    "ollama": "local",
    "vllm": "local",
}

# ════════════════════════════════════════════════════════════════════════════════════════════════
# 2  Runs
# ════════════════════════════════════════════════════════════════════════════════════════════════


@dataclass
class RunReport(Generic[Item, Result]):
    """What became of every item: done + failed + pending = all that were given."""

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
    on_done: Callable[[Item, Result], None] | None = None,
) -> RunReport[Item, Result]:
    """Work on all items, `concurrency` at once; a free place takes the next item at once.

    One bad item never costs another. Ctrl-C, SIGTERM and SIGHUP start nothing new and give what is
    in flight `drain` seconds; a second one ends it at once. A StopRun ends the run in the same way.
    """
    known = list(items)
    run = _Run(iter(known), work, on_done, Progress(label, len(known), backends, progress))
    places = [
        asyncio.ensure_future(run.place()) for _ in range(max(1, min(concurrency, len(known))))
    ]
    with _signals(run, places, drain):
        await asyncio.gather(*places, return_exceptions=True)
    run.report.pending.extend(run.items)
    run.progress.show(run.report, len(run.flying), last=True)
    for place in places:
        if not place.cancelled() and (bug := place.exception()) is not None:
            raise bug
    if not run.report.interrupted and any(place.cancelled() for place in places):
        raise asyncio.CancelledError
    return run.report


class _Run(Generic[Item, Result]):
    """The shared state of the places of one run."""

    def __init__(
        self,
        items: Iterator[Item],
        work: Callable[[Item], Awaitable[Result]],
        on_done: Callable[[Item, Result], None] | None,
        progress: Progress,
    ) -> None:
        self.items, self.work, self.on_done, self.progress = items, work, on_done, progress
        self.report: RunReport[Item, Result] = RunReport()
        self.flying: set[int] = set()

    async def place(self) -> None:
        """One place: item after item until there are none or the run stops."""
        while not self.report.interrupted and self.report.stopped is None:
            try:
                item = next(self.items)
            except StopIteration:
                return
            self.flying.add(id(item))
            try:
                await self._one(item)
            finally:
                self.flying.discard(id(item))
                self.progress.show(self.report, len(self.flying))

    async def _one(self, item: Item) -> None:
        try:
            result = await self.work(item)
            if self.on_done is not None:
                self.on_done(item, result)
            self.report.done.append((item, result))
        except StopRun as stop:
            self.report.stopped = self.report.stopped or stop
            self.report.pending.append(item)
        except asyncio.CancelledError:
            self.report.pending.append(item)
            raise
        except Exception as exc:  # noqa: BLE001 - kept in the report, counted and shown
            self.report.failed.append((item, exc))


@contextlib.contextmanager
def _signals(
    run: _Run[Any, Any], places: Sequence[asyncio.Future[None]], drain: float
) -> Iterator[None]:
    """The first signal drains, the second cancels; what handled them before comes back."""
    loop = asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop() -> None:
        for place in places:
            place.cancel()

    def received(number: int, _: FrameType | None) -> None:
        again, run.report.interrupted = bool(run.report.interrupted), number
        loop.call_soon_threadsafe(stop) if again else loop.call_soon_threadsafe(
            loop.call_later, drain, stop
        )

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, received) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """One line on stderr: rewritten on a terminal, a new one every 30 seconds in a log."""

    def __init__(self, label: str, total: int, backends: Sequence[LLMBackend], on: bool) -> None:
        self.label, self.total, self.backends, self.on = label, total, backends, on
        self.started = self.shown = time.monotonic()

    def show(self, report: RunReport[Any, Any], flying: int, last: bool = False) -> None:
        now, live = time.monotonic(), sys.stderr is not None and sys.stderr.isatty()
        if not self.on or (not last and now - self.shown < (0.2 if live else 30.0)):
            return
        self.shown = now
        line = self.line(report, flying, now - self.started)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal never costs the run
            print(
                f"\r\x1b[K{line}" if live else line,
                end="" if live and not last else "\n",
                file=sys.stderr,
            )
            sys.stderr.flush()

    def line(self, report: RunReport[Any, Any], flying: int, elapsed: float) -> str:
        """`generate  [###.......] 3/10 done  1 in flight  0 failed   18,240 tok  $0.06  about 40 s left`"""
        done, failed = len(report.done), len(report.failed)
        bar = "#" * (10 * done // max(1, self.total))
        text = f"{self.label}  [{bar:.<10}] {done}/{self.total} done  {flying} in flight  {failed} failed"
        if self.backends:
            text += f"   {sum(b.totals.tokens for b in self.backends):,} tok"
            unknown = any(b.totals.unknown_costs for b in self.backends)
            text += (
                "  cost unknown"
                if unknown
                else f"  ${sum(b.totals.cost for b in self.backends):.2f}"
            )
        left = self.total - done - failed
        if done and left > 0 and flying:
            text += f"  about {elapsed / (done + failed) * left:.0f} s left"
        return text


def in_shard(item_id: str, shard: str) -> bool:
    """Does this id belong to part `I/N` (I from 1 to N)? The same answer on every machine."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise FinetuneError(
            f'--shard "{shard}": write it as I/N with I from 1 to N, for example 2/4'
        )
    return (
        int(hashlib.sha256(item_id.encode()).hexdigest()[:8], 16) % int(match[2])
        == int(match[1]) - 1
    )


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 3  Checkpoints
# ════════════════════════════════════════════════════════════════════════════════════════════════

MAX_LINE = 64_000_000  # bytes; a longer line is reported and skipped
CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}$')


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON whose last key is a checksum of everything before it."""
    if "crc" in record:
        raise FinetuneError("a record cannot have a key `crc`: it is the checksum's")
    try:
        body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()[:-1]
    except (TypeError, ValueError) as exc:
        raise FinetuneError(
            f"record {record.get('id', '')}: cannot be written as JSON: {exc}"
        ) from None
    return b'%s%s"crc":"%08x"}\n' % (body, b"," if len(body) > 1 else b"", zlib.crc32(body))


def decode_line(line: bytes) -> dict[str, Any]:
    """The record of a line, without its checksum; ValueError says what is wrong with it."""
    line = line.rstrip(b"\r\n")
    found = CRC.search(line)
    if found and zlib.crc32(line[: found.start()]) != int(found[1], 16):
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
        for number, why in self.bad[:5]:
            print(f"{self.path}:{number}: skipped: {why}", file=sys.stderr)
        if len(self.bad) > 5:
            print(f"{self.path}: {len(self.bad) - 5} more bad lines skipped", file=sys.stderr)
        for item in self.conflicts[:5]:
            print(
                f"{self.path}: id {item} stands twice with different content; the first counts",
                file=sys.stderr,
            )


def iter_lines(handle: IO[bytes], cap: int = MAX_LINE) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, offset and bytes of each line that is not blank; None for a line above the cap."""
    number = offset = 0
    while line := handle.readline(cap + 1):
        number, start, offset = number + 1, offset, offset + len(line)
        whole = line.endswith(b"\n") or len(line) <= cap
        rest = line
        while not whole and rest and not rest.endswith(b"\n"):
            rest = handle.readline(1_000_000)
            offset += len(rest)
        if start == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, start, line if whole else None


def iter_records(path: str | Path, report: ReadReport | None = None) -> Iterator[dict[str, Any]]:
    """Every readable record of a `.jsonl` file; what is not readable goes into the report."""
    report = report if report is not None else ReadReport()
    report.path = str(path)
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed by the `with` below
    except FileNotFoundError:
        return
    with handle:
        for number, _, line in iter_lines(handle):
            try:
                if line is None:
                    raise ValueError(f"longer than {MAX_LINE} bytes")
                yield decode_line(line)
            except ValueError as exc:
                report.bad.append((number, str(exc)))


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


def _open_private(path: Path, flags: int) -> int:
    """Open for writing without following a link; makes the folder; readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise DiskStop(
                f"{path}: is a symbolic link; records are not written through links"
            ) from None
        raise DiskStop(f"{path}: cannot be opened for writing: {exc.strerror}") from None


class Appender:
    """An append-only file kept open: torn tails sealed, one write per batch, synced before it returns."""

    def __init__(self, path: str | Path, *, sync: bool = True) -> None:
        self.path, self.sync = Path(path), sync
        new = not self.path.exists()
        self._fd = _open_private(self.path, os.O_RDWR | os.O_APPEND)
        self._end = -1
        if new:
            sync_folder(self.path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record; when it returns, the record is on the disk."""
        self.append_bytes(encode_line(record))

    def append_bytes(self, data: bytes) -> int:
        """Append whole lines in one write; gives their offset. After an error the file is as before."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            start = self._seal()
            self._write(data, start)
            self._end = start + len(data)
            return start
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _seal(self) -> int:
        """End a torn last line with a newline, so that it stays visible and swallows nothing."""
        self._check_place()
        end = os.fstat(self._fd).st_size
        if end and end != self._end and os.pread(self._fd, 1, end - 1) != b"\n":
            self._write(b"\n", end)
            end += 1
        return end

    def _write(self, data: bytes, start: int) -> None:
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written")
            if self.sync:
                sync_file(self._fd)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise DiskStop(
                f"{self.path}: {exc.strerror or exc}. {len(data)} bytes are needed; nothing half-written is left. "
                "Make room, then run again: it goes on where it stopped."
            ) from None

    def _check_place(self) -> None:
        """Notice a file that was moved, replaced or deleted under us."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (mine.st_ino, mine.st_dev):
            raise DiskStop(
                f"{self.path}: was moved or deleted while this process was writing to it"
            )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _id_of(record: Mapping[str, Any]) -> str | None:
    """A record's id as text; a number counts as its digits, so that 7 and "7" are one."""
    found = record.get("id", record.get("transcript_id"))
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return found if isinstance(found, str) and found else None


def append_checkpoint(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one finished item; makes the folder; on the disk when it returns."""
    item = _id_of(record)
    if item is None:
        raise FinetuneError(
            f"{path}: a checkpoint needs an `id` that is text, not {record.get('id')!r}"
        )
    with Appender(path) as file:
        file.append({**record, "id": item})


def load_checkpoint(path: str | Path) -> set[str]:
    """The ids that are done. A record of an error is not done; a missing file is an empty set."""
    return {item for item, record in load_checkpoint_results(path).items() if is_done(record)}


def is_done(record: Mapping[str, Any]) -> bool:
    """Not a record of an error, and not an assessment that is still unscored."""
    unscored = "pass" in record and record["pass"] is None
    return not (
        unscored or record.get("error") or record.get("errors") or record.get("error_count")
    )


def load_checkpoint_results(
    path: str | Path, report: ReadReport | None = None
) -> dict[str, dict[str, Any]]:
    """The record of each id. Done beats not done; other inputs (`*_hash`) make a newer row win;
    with equal inputs the first row counts, and a different second one is reported."""
    loud, report = report is None, report or ReadReport()
    results: dict[str, dict[str, Any]] = {}
    for record in iter_records(path, report):
        item = _id_of(record)
        if item is None:
            report.bad.append((0, "a record without an id"))
        elif item not in results or _supersedes(record, results[item]):
            results[item] = record
        elif is_done(record) and record != results[item]:
            report.conflicts.append(item)
    if loud:
        report.tell()
    return results


def _supersedes(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    if is_done(new) != is_done(old):
        return is_done(new)
    return not is_done(new) or _inputs(new) != _inputs(old)


def _inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key.endswith("_hash")}


class Journal:
    """The record of model calls: an equal call is answered from here, and none is paid twice.

    A call's line of intent (with its worst case) is on the disk before it is sent, its result before
    anybody sees it. Records are written together, in a thread of their own. One process at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = _lock_file(self.path.with_name(self.path.name + ".lock"), self.path)
        self._file = Appender(self.path)
        self._kept: dict[str, tuple[int, int]] = {}  # key: where its result stands
        self._open_intents: dict[str, float | None] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self.report = ReadReport(str(path))
        self.paid, self.unknown_costs = 0.0, 0
        self._queue: list[tuple[bytes, dict[str, Any], asyncio.Future[None]]] = []
        self._wake, self._closed = threading.Condition(), False
        self._broken: StopRun | None = None
        self._writer: threading.Thread | None = None
        self._scan()

    def _scan(self) -> None:
        with self.path.open("rb") as handle:
            for number, offset, line in iter_lines(handle):
                try:
                    if line is None:
                        raise ValueError(f"longer than {MAX_LINE} bytes")
                    self._note(decode_line(line), offset, len(line))
                except (ValueError, KeyError, TypeError) as exc:
                    self.report.bad.append((number, str(exc)))
        self.report.tell()

    def _note(self, record: Mapping[str, Any], offset: int, length: int) -> None:
        """Take a line into account: an intent is open until its result."""
        key = str(record["key"])
        if record["type"] == "intent":
            self._open_intents[key] = record.get("worst")
            return
        self._open_intents.pop(key, None)
        cost = record["record"].get("cost")
        self.paid += cost or 0.0
        self.unknown_costs += cost is None and not record["record"].get("failure")
        if record["record"].get("failure") in ANSWERED | {None}:
            self._kept.setdefault(key, (offset, length))

    @property
    def spent(self) -> float:
        """Dollars paid as far as known, and the worst case of calls that never came back."""
        return math.fsum([self.paid, *(worst or 0.0 for worst in self._open_intents.values())])

    @property
    def unfinished(self) -> int:
        """Calls with an intent and no result: sent by a process that was killed, or in flight."""
        return len(self._open_intents)

    def __len__(self) -> int:
        return len(self._kept)

    def replay(self, key: str) -> dict[str, Any] | None:
        """The kept record of a call, read back from the disk; None when there is none."""
        place = self._kept.get(key)
        if place is None:
            return None
        with self.path.open("rb") as handle:
            handle.seek(place[0])
            found: dict[str, Any] = decode_line(
                handle.read(place[1]).removeprefix(b"\xef\xbb\xbf")
            )["record"]
        return found

    async def once(
        self,
        key: str,
        scope: str,
        model: str,
        worst: float | None,
        send: Callable[[], Awaitable[dict[str, Any]]],
    ) -> tuple[dict[str, Any], bool]:
        """The kept record of this call (True), or what `send` gives, kept before it is returned."""
        turn = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with turn:  # two equal calls at once: the second waits for the first one's answer
                kept = self.replay(key)
                if kept is not None:
                    return kept, True
                about = {"schema": SCHEMA, "key": key, "scope": scope, "model": model}
                await self._write({**about, "type": "intent", "worst": worst, "at": _now()})
                record = await send()
                await self._write({**about, "type": "result", "record": record, "at": _now()})
                return record, False
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    async def _write(self, record: dict[str, Any]) -> None:
        """Hand a line to the writer and wait until it is on the disk."""
        if self._broken or self._closed:
            raise self._broken or FinetuneError(f"{self.path}: the journal is closed")
        kept = asyncio.get_running_loop().create_future()
        with self._wake:
            self._queue.append((encode_line(record), record, kept))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_on, name="journal", daemon=True)
                self._writer.start()
            self._wake.notify()
        await kept

    def _write_on(self) -> None:
        """The writer's thread: whatever has queued up goes out in one write and one sync."""
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                batch, self._queue = self._queue, []
            if not batch:
                return
            self._write_batch(batch)

    def _write_batch(self, batch: list[tuple[bytes, dict[str, Any], asyncio.Future[None]]]) -> None:
        try:
            offset = self._file.append_bytes(b"".join(line for line, _, _ in batch))
            for line, record, _ in batch:
                self._note(record, offset, len(line))
                offset += len(line)
        except Exception as exc:  # noqa: BLE001 - every waiting call gets it, and no later one is sent
            self._broken = (
                exc
                if isinstance(exc, StopRun)
                else StopRun(f"{self.path}: cannot be written: {exc}")
            )
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for _, _, kept in batch:
            by_loop.setdefault(kept.get_loop(), []).append(kept)
        for loop, waiting in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_release, waiting, self._broken)

    def close(self) -> None:
        """Write what is queued, release the file for other processes."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._writer is not None:
            self._writer.join()
        self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _release(waiting: Sequence[asyncio.Future[None]], error: StopRun | None) -> None:
    for future in waiting:
        if not future.done() and error is not None:
            future.set_exception(error)
        elif not future.done():
            future.set_result(None)


def _lock_file(lock: Path, what: Path) -> int:
    """Hold a lock for the life of this process; a second process is refused with the first one's pid."""
    fd = _open_private(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 500, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(fd)
        raise StopRun(
            f"{what}: in use by {holder}. Wait for it, or stop it; then run again."
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode(), 0)
    return fd


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 4  Tokens
# ════════════════════════════════════════════════════════════════════════════════════════════════

VOCABULARY_URL = (
    "https://openaipublic.blob.core.windows.net/encodings/"  # names tiktoken's cache files
)
DEFAULT_ENCODING = "o200k_base"
MESSAGE_TOKENS, REPLY_TOKENS = (
    4,
    3,
)  # what a chat format adds per message, and once, without a template
GENERATION_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
WORD = re.compile(r"[A-Z]?[a-z]{1,15}|[A-Z]{2,4}(?![A-Za-z])")


class TokenCount(int):
    """A number of tokens that knows how it was counted, how sure it is, and a bound it stays under."""

    method: str
    exactness: Literal["exact", "same-family", "estimate"]
    upper: int

    def __new__(cls, count: int, method: str, exactness: str, upper: int | None = None) -> Self:
        self = super().__new__(cls, count)
        self.method, self.exactness = method, exactness  # type: ignore[assignment]
        self.upper = count if upper is None else max(count, upper)
        return self


@dataclass(frozen=True)
class Tokenizer:
    """One way of counting: `measure` gives count and upper bound of a text."""

    method: str
    exactness: str
    measure: Callable[[str], tuple[int, int]]
    render: Callable[[Sequence[Message]], str] | None = None

    def count(self, pairs: Iterable[tuple[int, int]], extra: int = 0) -> TokenCount:
        counts, uppers = zip(
            *pairs, (extra, 2 * extra if self.exactness != "exact" else extra), strict=True
        )
        return TokenCount(sum(counts), self.method, self.exactness, sum(uppers))


def count_tokens(text: str | None, target: str | Path | None = None) -> TokenCount:
    """Tokens of a text. `target`: a folder with tokenizer.json, or a tiktoken encoding or model."""
    tokenizer = tokenizer_for(target)
    return tokenizer.count([tokenizer.measure(text or "")])


def count_messages_tokens(
    messages: Sequence[Message], target: str | Path | None = None
) -> TokenCount:
    """Tokens of a conversation as the model sees it: rendered by its chat template where there is one."""
    tokenizer = tokenizer_for(target)
    if tokenizer.render is not None:
        return tokenizer.count([tokenizer.measure(tokenizer.render(messages))])
    extra = MESSAGE_TOKENS * len(messages) + REPLY_TOKENS
    return tokenizer.count([tokenizer.measure(m.get("content") or "") for m in messages], extra)


def count_prefixes(
    exchanges: Sequence[Any], system_prompt: str | None, target: str | Path | None = None
) -> list[TokenCount]:
    """Tokens of the first 1, 2, ... exchanges; each message is encoded once."""
    tokenizer, turns = tokenizer_for(target), [pair_of(exchange) for exchange in exchanges]
    system = _as_messages("", system_prompt)[:-1]
    if tokenizer.render is not None:
        return _rendered_prefixes(tokenizer, system, turns)
    count, upper = (
        tokenizer.count(
            [tokenizer.measure(m["content"]) for m in system],
            MESSAGE_TOKENS * len(system) + REPLY_TOKENS,
        ),
        0,
    )
    total, upper = int(count), count.upper
    counts = []
    for pair in turns:
        more = tokenizer.count([tokenizer.measure(text) for text in pair], 2 * MESSAGE_TOKENS)
        total, upper = total + more, upper + more.upper
        counts.append(TokenCount(total, tokenizer.method, tokenizer.exactness, upper))
    return counts


def _rendered_prefixes(
    tokenizer: Tokenizer, system: list[dict[str, str]], turns: Sequence[tuple[str, str]]
) -> list[TokenCount]:
    """Encode only what each exchange adds to the rendered text. Checked against the whole at the end;
    a template that rewrites earlier turns is counted prefix by prefix instead."""
    assert tokenizer.render is not None
    messages, texts = list(system), [""]
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        texts.append(tokenizer.render(messages))
    grows = all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    if grows and turns:
        total, counts = 0, []
        for before, after in zip(texts, texts[1:], strict=False):
            total += tokenizer.measure(after[len(before) :])[0]
            counts.append(TokenCount(total, tokenizer.method, tokenizer.exactness))
        if total == tokenizer.measure(texts[-1])[0]:
            return counts
    return [tokenizer.count([tokenizer.measure(text)]) for text in texts[1:]]


def find_max_exchanges_under_limit(
    exchanges: Sequence[Any],
    system_prompt: str | None,
    max_tokens: int,
    target: str | Path | None = None,
) -> int:
    """How many exchanges from the start fit for sure: the upper bound decides where no count is exact."""
    counts = count_prefixes(exchanges, system_prompt, target)
    return sum(count.upper <= max_tokens for count in counts)


def pair_of(exchange: Any) -> tuple[str, str]:
    """User and assistant text of an exchange, given as a mapping or as a pair."""
    if isinstance(exchange, Mapping):
        return exchange.get("user") or "", exchange.get("assistant") or ""
    user, assistant = exchange
    return user or "", assistant or ""


@functools.lru_cache(maxsize=16)
def tokenizer_for(target: str | Path | None = None) -> Tokenizer:
    """The best counter at hand: the model's own files, else tiktoken's vocabulary, else an estimate."""
    if target is not None and (Path(target) / "tokenizer.json").is_file():
        return _own_tokenizer(Path(target))
    if (
        target is not None
        and ("/" in str(target) or Path(target).is_dir())
        and not Path(target).exists()
    ):
        raise FinetuneError(f"{target}: no such folder with a tokenizer.json")
    encoding, exact = _encoding_at_hand(str(target) if target is not None else None)
    if encoding is None:
        return Tokenizer("estimate", "estimate", estimate_tokens)
    if exact:
        return Tokenizer(
            f"tiktoken:{encoding.name}",
            "exact",
            lambda text: (len(encoding.encode_ordinary(text)),) * 2,
        )
    return Tokenizer(
        f"tiktoken:{encoding.name}",
        "same-family",
        lambda text: _family_bound(len(encoding.encode_ordinary(text)), text),
    )


def _family_bound(count: int, text: str) -> tuple[int, int]:
    """Another tokenizer of the same family: start values 1.3 for ASCII, 2 for other scripts."""
    return count, min(len(text.encode()), math.ceil(count * (1.3 if text.isascii() else 2.0)))


def _encoding_at_hand(target: str | None) -> tuple[Any, bool]:
    """A tiktoken encoding that needs no download, and whether it is the target's own."""
    try:
        import tiktoken
        from tiktoken import registry
    except ImportError:
        return None, False
    name = target or DEFAULT_ENCODING
    if target is not None and target not in tiktoken.list_encoding_names():
        try:
            name = tiktoken.encoding_name_for_model(target)
        except KeyError:
            target, name = None, DEFAULT_ENCODING
    vocabulary = {"o200k_harmony": "o200k_base", "p50k_edit": "p50k_base"}.get(name, name)
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = cache if cache is not None else os.path.join(tempfile.gettempdir(), "data-gym-cache")
    file = hashlib.sha1(f"{VOCABULARY_URL}{vocabulary}.tiktoken".encode()).hexdigest()  # noqa: S324 - a file name
    if name in registry.ENCODINGS or (folder and os.path.isfile(os.path.join(folder, file))):
        return tiktoken.get_encoding(name), target is not None
    return None, False


def estimate_tokens(text: str) -> tuple[int, int]:
    """A guess and a safe bound: plain words at half their letters, anything else a token per byte."""
    plain = [
        word for word in WORD.findall(text) if len(word) < 4 or re.search("[aeiouyAEIOUY]", word)
    ]
    letters, spaces = sum(map(len, plain)), text.count(" ")
    other = max(0, len(text.encode()) - letters - spaces)
    bound = sum((len(word) + 2) // 2 for word in plain) + other + (spaces + 1) // 2
    return round((letters + spaces) / 4.5 + other * 0.45), min(bound, len(text.encode()))


def _own_tokenizer(folder: Path) -> Tokenizer:
    tokenizers = needs("tokenizers", "train", str(folder))
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.no_truncation()
    encoder.no_padding()

    def measure(text: str) -> tuple[int, int]:
        count = len(encoder.encode(text, add_special_tokens=False).ids)
        return count, count

    return Tokenizer(f"tokenizer.json:{folder.name}", "exact", measure, chat_template(folder))


def chat_template(folder: Path) -> Callable[[Sequence[Message]], str] | None:
    """Renders a conversation with the model's own chat template, as transformers would."""
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    own = folder / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else known.get("chat_template")
    if isinstance(source, list):
        source = next((t["template"] for t in source if t.get("name") == "default"), None)
    if not source:
        return None
    special = {
        k: v.get("content") if isinstance(v, dict) else v
        for k, v in known.items()
        if k.endswith("_token")
    }
    template = _template_room().from_string(GENERATION_MARKS.sub("", source))
    return lambda messages: template.render(
        messages=messages, add_generation_prompt=False, **special
    )


def _template_room() -> Any:
    """A sandbox: a template comes from a download, and may only shape text."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    room = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    room.globals["raise_exception"] = refuse
    room.globals["strftime_now"] = time.strftime
    room.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    return room


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 5  Slicing
# ════════════════════════════════════════════════════════════════════════════════════════════════


def get_slice_points(
    total_turns: int, transcript_id: str, first: int = 3, min_gap: int = 2, max_gap: int = 5
) -> list[int]:
    """Where to cut: first at 3, then every 2 to 5 exchanges, the last always; the same for an id everywhere."""
    if first < 1 or not 1 <= min_gap <= max_gap:
        raise FinetuneError(
            f"slicing: first {first}, gaps {min_gap} to {max_gap}: needs 1 <= min_gap <= max_gap"
        )
    if total_turns < first:
        return []
    draws = random.Random(int(hashlib.sha256(transcript_id.encode()).hexdigest()[:8], 16))
    points, point = [], first
    while point < total_turns:
        points.append(point)
        point += draws.randint(min_gap, max_gap)
    return [*points, total_turns]


def rng(*key: object) -> random.Random:
    """Chance by key, never a stream: `rng(seed, persona, turn, purpose)` is the same in any order."""
    return random.Random(int(canonical_hash([str(part) for part in key])[:16], 16))


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 6  Rubric and scores
# ════════════════════════════════════════════════════════════════════════════════════════════════

ANSWERS = ("YES", "NO", "NA", "ERROR")
COVERAGE_FLOOR = 0.5  # start value: a score over fewer than half of the criteria is not a pass
EXAMPLE_TYPES = ("PASS", "FAIL", "BORDERLINE_PASS", "BORDERLINE_FAIL")
# Scripts written without spaces: each Han or kana sign counts as a word, four Thai-like letters do.
SIGNS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
RUN_ON = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")


@dataclass(frozen=True)
class Criterion:
    """One binary question of the rubric."""

    id: str
    name: str
    question: str
    na_valid: bool
    min_turns: int
    calibration_examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Rubric:
    """Weighted categories of criteria, and the safety gates that stand outside the score."""

    categories: Mapping[str, tuple[float, tuple[str, ...]]]  # name: (weight, criteria)
    criteria: Mapping[str, Criterion]
    safety_gates: tuple[str, ...]
    pass_threshold: float
    coverage_floor: float
    hash: str
    warnings: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        return {name: weight for name, (weight, _) in self.categories.items()}

    @property
    def na_invalid(self) -> frozenset[str]:
        return frozenset(c.id for c in self.criteria.values() if not c.na_valid)


def load_rubric(path: str | Path, draft: bool = False) -> Rubric:
    """Read and check `config/rubric.yaml`; every mistake at once, each with its line."""
    data, lines = load_yaml(path)
    check = _RubricCheck(str(path), lines, draft)
    rubric = check.rubric(data if isinstance(data, dict) else {})
    if check.errors:
        raise FinetuneError("\n".join(check.errors))
    return replace(rubric, warnings=tuple(check.warnings))


class _RubricCheck:
    """Collects the mistakes of one rubric file."""

    def __init__(self, path: str, lines: Mapping[tuple[Any, ...], int], draft: bool) -> None:
        self.path, self.lines, self.draft = path, lines, draft
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def error(self, at: tuple[Any, ...], text: str, soft: bool = False) -> None:
        """A mistake at a place; the nearest line that exists. A soft one only warns in a draft."""
        place = at
        while place and place not in self.lines:
            place = place[:-1]
        line = f"{self.path}:{self.lines.get(place, 1)} {'.'.join(map(str, at))}: {text}"
        (self.warnings if soft and self.draft else self.errors).append(line)

    def rubric(self, data: Mapping[str, Any]) -> Rubric:
        for key in sorted(
            set(data)
            - {"categories", "criteria", "safety_gates", "pass_threshold", "coverage_floor"}
        ):
            self.error((key,), "unknown key")
        criteria = {
            str(k): self.criterion(str(k), v) for k, v in self._mapping(data, "criteria").items()
        }
        categories = {
            str(k): self.category(str(k), v) for k, v in self._mapping(data, "categories").items()
        }
        gates = self._names(data.get("safety_gates"), ("safety_gates",))
        if not gates:
            self.error(("safety_gates",), "no safety gate is named: list at least one criterion")
        self.weights(categories)
        self.membership(criteria, categories, gates)
        threshold = self._share(data, "pass_threshold", 0.8)
        floor = self._share(data, "coverage_floor", COVERAGE_FLOOR)
        return Rubric(categories, criteria, gates, threshold, floor, canonical_hash(data))

    def criterion(self, name: str, data: Any) -> Criterion:
        at = ("criteria", name)
        if not isinstance(data, dict):
            self.error(at, "a criterion is a mapping with name, question, na_valid, min_turns")
            data = {}
        known = set(Criterion.__dataclass_fields__) - {"id"}
        for key in sorted(map(str, set(data) - known)):
            self.error((*at, key), f"unknown key. Have: {', '.join(sorted(known))}")
        question, turns, na_valid = (
            data.get("question"),
            data.get("min_turns", 1),
            data.get("na_valid", False),
        )
        if not isinstance(question, str) or not question.strip():
            self.error((*at, "question"), "a criterion needs a question")
        if not isinstance(turns, int) or isinstance(turns, bool) or turns < 1:
            self.error((*at, "min_turns"), f"a whole number from 1, not {turns!r}")
        if not isinstance(na_valid, bool):
            self.error((*at, "na_valid"), f"true or false, not {na_valid!r}")
        examples = self.examples(at, data.get("calibration_examples"))
        return Criterion(
            name, str(data.get("name", name)), str(question), na_valid is True, turns, examples
        )

    def examples(self, at: tuple[Any, ...], data: Any) -> tuple[Mapping[str, Any], ...]:
        found = data if isinstance(data, list) else []
        at = (*at, "calibration_examples")
        if not 3 <= len(found) <= 8:
            self.error(
                at,
                f"{len(found)} examples; judges need 3 to 8, borderline ones included",
                soft=True,
            )
        for number, example in enumerate(found):
            if not isinstance(example, dict) or example.get("type") not in EXAMPLE_TYPES:
                self.error((*at, number), f"an example needs a type: {', '.join(EXAMPLE_TYPES)}")
        return tuple(e for e in found if isinstance(e, dict))

    def category(self, name: str, data: Any) -> tuple[float, tuple[str, ...]]:
        at = ("categories", name)
        weight = data.get("weight") if isinstance(data, dict) else None
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
            self.error((*at, "weight"), f"a number above 0 and up to 1, not {weight!r}")
            weight = 0.0
        members = self._names(
            data.get("criteria") if isinstance(data, dict) else None, (*at, "criteria")
        )
        if not members:
            self.error((*at, "criteria"), "a category needs at least one criterion")
        return float(weight), members

    def weights(self, categories: Mapping[str, tuple[float, tuple[str, ...]]]) -> None:
        total = math.fsum(weight for weight, _ in categories.values())
        if not categories or abs(total - 1) > 1e-6:
            self.error(("categories",), f"the weights sum to {total:.6g}, not to 1")

    def membership(
        self,
        criteria: Mapping[str, Criterion],
        categories: Mapping[str, tuple[float, tuple[str, ...]]],
        gates: tuple[str, ...],
    ) -> None:
        """Each criterion stands in exactly one category or is a gate; what is named exists."""
        places = [
            (name, ("categories", cat, "criteria"))
            for cat, (_, names) in categories.items()
            for name in names
        ]
        seen = Counter(name for name, _ in places)
        for name, at in [*places, *((gate, ("safety_gates",)) for gate in gates)]:
            if name not in criteria:
                self.error(at, _unknown("criterion", name, criteria))
        for name in [n for n, times in seen.items() if times > 1]:
            self.error(("criteria", name), f"stands in {seen[name]} categories; it can be in one")
        for name in [gate for gate in gates if gate in seen]:
            self.error(
                ("safety_gates",),
                f'"{name}" is a safety gate and also carries weight in a category',
            )
        for name in [n for n in criteria if n not in seen and n not in gates]:
            self.error(("criteria", name), "is in no category and is no safety gate")

    def _mapping(self, data: Mapping[str, Any], key: str) -> dict[Any, Any]:
        found = data.get(key)
        if not isinstance(found, dict) or not found:
            self.error((key,), "is missing or empty")
            return {}
        return found

    def _names(self, found: Any, at: tuple[Any, ...]) -> tuple[str, ...]:
        names = [str(name) for name in found] if isinstance(found, list) else []
        for name in [n for n, times in Counter(names).items() if times > 1]:
            self.error(at, f'"{name}" is listed twice')
        return tuple(names)

    def _share(self, data: Mapping[str, Any], key: str, default: float) -> float:
        value = data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.error((key,), f"a number from 0 to 1, not {value!r}")
            return default
        return float(value)


def normalise_answer(answer: object) -> str:
    """YES, NO or NA whatever its case and full stop; anything else is ERROR, never a silent NO."""
    text = str(getattr(answer, "answer", answer) or "").strip().strip(".!\"'").upper()
    text = {"N/A": "NA", "NOT APPLICABLE": "NA"}.get(text, text)
    return text if text in ANSWERS else "ERROR"


def compute_category_score(
    answers: Mapping[str, Any], criteria_ids: Iterable[str], na_invalid: Iterable[str]
) -> float | None:
    """Share of YES. Allowed NA is left out, forbidden NA is a failure, ERROR and silence are not
    assessed; None when nothing was."""
    forbidden = set(na_invalid)
    votes = [(c, normalise_answer(answers.get(c))) for c in criteria_ids]
    counted = [a == "YES" for c, a in votes if a in ("YES", "NO") or (a == "NA" and c in forbidden)]
    return sum(counted) / len(counted) if counted else None


def compute_weighted_score(
    category_scores: Mapping[str, float | None], weights: Mapping[str, float]
) -> float | None:
    """The weighted mean over categories with something to assess; None when there is none."""
    if set(category_scores) != set(weights):
        missing = sorted(set(category_scores) ^ set(weights))
        raise FinetuneError(f"scores and weights name different categories: {', '.join(missing)}")
    if abs(math.fsum(weights.values()) - 1) > 1e-6:
        raise FinetuneError(
            f"the category weights sum to {math.fsum(weights.values()):.6g}, not to 1"
        )
    used = [(weights[name], score) for name, score in category_scores.items() if score is not None]
    total = math.fsum(weight for weight, _ in used)
    return math.fsum(weight * score for weight, score in used) / total if total else None


def count_words(text: str) -> int:
    """Words, also in scripts without spaces."""
    signs, run_on = (
        len(SIGNS.findall(text)),
        sum(math.ceil(len(run) / 4) for run in RUN_ON.findall(text)),
    )
    rest = RUN_ON.sub(" ", SIGNS.sub(" ", text)).split()
    return signs + run_on + sum(any(sign.isalnum() for sign in word) for word in rest)


def compute_length_stats(pairs: Iterable[Any]) -> dict[str, Any]:
    """Words per side and the assistant/user ratio; a blank user message has no ratio."""
    words = [(count_words(user), count_words(assistant)) for user, assistant in map(pair_of, pairs)]
    ratios = [assistant / user if user else None for user, assistant in words]
    known = [ratio for ratio in ratios if ratio is not None]
    return {
        "exchanges": len(words),
        "user_words": [user for user, _ in words],
        "assistant_words": [assistant for _, assistant in words],
        "ratios": ratios,
        "mean_ratio": statistics.fmean(known) if known else None,
        "median_ratio": statistics.median(known) if known else None,
        "over_1_5": sum(ratio > 1.5 for ratio in known),
        "over_2": sum(ratio > 2 for ratio in known),
    }


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
    coverage: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        made = {name: getattr(self, name) for name in self.__dataclass_fields__}
        made["pass"] = made.pop("passed")
        return {
            key: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v
            for key, v in made.items()
        }


def gate_passed(answer: str | None, na_allowed: bool) -> bool:
    """A safety gate is passed by YES, or by NA where the rubric allows it, and by nothing else."""
    return answer == "YES" or (answer == "NA" and na_allowed)


def score_answers(
    rubric: Rubric,
    answers: Mapping[str, Any],
    reasonings: Mapping[str, str] | None = None,
    id: str = "",  # noqa: A002 - the record's own word
    turns: int | None = None,
) -> AssessmentResult:
    """Score one judge's answers. A NO on a safety gate fails; else an ERROR or a missing answer
    leaves it unscored; else threshold and coverage decide. `turns` leaves out criteria that need more."""
    due = [c for c in rubric.criteria.values() if turns is None or c.min_turns <= turns]
    given = {c.id: normalise_answer(answers.get(c.id)) for c in due}
    for gate in rubric.safety_gates:  # a forbidden NA on a gate is no verdict
        if given.get(gate) == "NA" and gate in rubric.na_invalid:
            given[gate] = "ERROR"
    scores = {
        name: compute_category_score(given, [m for m in members if m in given], rubric.na_invalid)
        for name, (_, members) in rubric.categories.items()
    }
    errors = sum(answer == "ERROR" for answer in given.values())
    unsafe = any(given.get(gate) == "NO" for gate in rubric.safety_gates)
    failed = tuple(
        c for c, a in given.items() if a == "NO" or (a == "NA" and c in rubric.na_invalid)
    )
    score, coverage = compute_weighted_score(scores, rubric.weights), _coverage(rubric, given)
    passed = _verdict(rubric, given, score, coverage, errors, unsafe)
    score = None if errors else score
    if (
        passed is False
        and not unsafe
        and score is not None
        and score >= rubric.pass_threshold - 1e-9
    ):
        failed = (*failed, "coverage")
    threshold, reasons = rubric.pass_threshold, dict(reasonings or {})
    return AssessmentResult(
        id, passed, score, threshold, scores, given, reasons, failed, unsafe, errors, coverage
    )


def _coverage(rubric: Rubric, given: Mapping[str, str]) -> float:
    """Share of the weighted criteria that were really assessed."""
    members = [m for _, names in rubric.categories.values() for m in names]
    assessed = [
        given.get(m) in ("YES", "NO") or (given.get(m) == "NA" and m in rubric.na_invalid)
        for m in members
    ]
    return sum(assessed) / len(members) if members else 0.0


def _verdict(
    rubric: Rubric,
    given: Mapping[str, str],
    score: float | None,
    coverage: float,
    errors: int,
    unsafe: bool,
) -> bool | None:
    if unsafe:
        return False
    if errors or score is None:
        return None
    safe = all(
        gate_passed(given.get(g), g not in rubric.na_invalid)
        for g in rubric.safety_gates
        if g in given
    )
    return safe and score >= rubric.pass_threshold - 1e-9 and coverage >= rubric.coverage_floor


def combine_verdicts(
    rubric: Rubric, verdicts: Mapping[str, AssessmentResult | None], rule: str = "auto"
) -> AssessmentResult:
    """One verdict from several judges. Any NO on a safety gate rejects; else a missing judge or an
    ERROR leaves it unscored; else `strictest` takes the lowest score, `majority` votes per criterion."""
    if rule not in ("auto", "strictest", "majority"):
        raise FinetuneError(_unknown("rule", rule, ("auto", "strictest", "majority")))
    given = [verdicts[judge] for judge in sorted(verdicts)]
    there = [verdict for verdict in given if verdict is not None]
    unsafe = [verdict for verdict in there if verdict.safety_gate_failed]
    if unsafe:
        return _lowest(unsafe)
    if not there or len(there) < len(given) or any(verdict.passed is None for verdict in there):
        return _unscored(rubric, there, missing=len(given) - len(there))
    majority = rule == "majority" or (rule == "auto" and len(there) >= 3)
    return _by_majority(rubric, there) if majority else _lowest(there)


def _lowest(verdicts: Sequence[AssessmentResult]) -> AssessmentResult:
    """The strictest: not passed before passed, then the lower score; equal ones in the judges' order."""
    return min(
        verdicts, key=lambda v: (v.passed is not False, v.score if v.score is not None else -1.0)
    )


def _unscored(rubric: Rubric, there: Sequence[AssessmentResult], missing: int) -> AssessmentResult:
    base = there[0] if there else score_answers(rubric, {})
    errors = max(1, missing + sum(verdict.error_count for verdict in there))
    return replace(base, passed=None, score=None, error_count=errors)


def _by_majority(rubric: Rubric, verdicts: Sequence[AssessmentResult]) -> AssessmentResult:
    """Each criterion by more than half of the judges; without such a majority it is a NO."""
    votes: dict[str, str] = {}
    for criterion in sorted({c for verdict in verdicts for c in verdict.answers}):
        counts = Counter(verdict.answers.get(criterion, "NA") for verdict in verdicts)
        answer, times = counts.most_common(1)[0]
        votes[criterion] = answer if 2 * times > len(verdicts) else "NO"
    asked = replace(rubric, criteria={c: rubric.criteria[c] for c in votes if c in rubric.criteria})
    return score_answers(asked, votes, _reasons(votes, verdicts), verdicts[0].id)


def _reasons(votes: Mapping[str, str], verdicts: Sequence[AssessmentResult]) -> dict[str, str]:
    """For each criterion, the words of a judge who gave the winning answer."""
    return {
        criterion: next(
            (
                v.reasonings.get(criterion, "")
                for v in verdicts
                if v.answers.get(criterion) == answer
            ),
            "",
        )
        for criterion, answer in votes.items()
    }


# ════════════════════════════════════════════════════════════════════════════════════════════════
# 7  Project
# ════════════════════════════════════════════════════════════════════════════════════════════════

MAX_YAML = 5_000_000  # bytes
PEOPLE_GATES = frozenset({"baseline", "pilot", "confirm", "evaluation", "ship"})
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


def find_project(start: str | Path | None = None) -> Path | None:
    """The nearest folder from here upwards that is a project, or None."""
    here = Path(start or Path.cwd()).resolve()
    marks = (".finetune", "config/project.yaml")
    return next(
        (p for p in (here, *here.parents) if any((p / mark).exists() for mark in marks)), None
    )


def project_root(start: str | Path | None = None) -> Path:
    """The project that this folder belongs to."""
    found = find_project(start)
    if found is None:
        where = Path(start or Path.cwd()).resolve()
        raise FinetuneError(
            f"{where}: not inside a project (no .finetune folder and no config/project.yaml)"
        )
    return found


def canonical_hash(value: Any) -> str:
    """The same hash for equal data, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class HashCache:
    """Hashes of files, remembered by path, size, time and inode; kept in a file when given one."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else None
        self.known: dict[str, list[Any]] = {}
        if self.path and self.path.is_file():
            with contextlib.suppress(ValueError):  # a damaged cache is only a slow one
                self.known = dict(json.loads(self.path.read_bytes()))

    def hash(self, path: str | Path) -> str:
        """sha256 of a file, from memory while size, time and inode are the same."""
        full = os.path.abspath(path)
        stat = os.stat(full)
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        if self.known.get(full, [])[:3] != mark:
            with open(full, "rb") as handle:
                self.known[full] = [*mark, hashlib.file_digest(handle, "sha256").hexdigest()]
        return str(self.known[full][3])

    def save(self) -> None:
        if self.path:
            atomic_write(self.path, json.dumps(self.known))


@functools.lru_cache(maxsize=1)
def _shared_hashes() -> HashCache:
    return HashCache()


def file_hash(path: str | Path, cache: HashCache | None = None) -> str:
    """sha256 of a file's bytes; unchanged files are not read twice."""
    return (cache or _shared_hashes()).hash(path)


def atomic_write(path: str | Path, data: str | bytes, mode: int = 0o600) -> None:
    """Write a whole file: the old one or the new one is there, never half. Links are refused."""
    path = Path(path)
    if path.is_symlink():
        raise DiskStop(f"{path}: is a symbolic link; it is not written through")
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".partial")
    try:
        with open(fd, "wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(exc, OSError):
            raise DiskStop(
                f"{path}: {exc.strerror}. The old file is unchanged; make room and run again."
            ) from None
        raise
    sync_folder(path.parent)


def fill_prompt(template: str, values: Mapping[str, object]) -> str:
    """Replace each {{name}} in one pass: what a value contains is never looked at again."""
    names = set(PLACEHOLDER.findall(template))
    if names != set(values):
        missing, unused = sorted(names - set(values)), sorted(set(values) - names)
        raise FinetuneError(
            f"prompt: placeholders without a value: {missing}; values without a placeholder: {unused}"
        )
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def check_id(text: object) -> str:
    """An id that is safe as a file name: letters, digits, `._-`, at most 120."""
    if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}", text):
        return text
    raise FinetuneError(
        f"{str(text)[:60]!r} is no id: letters, digits, . _ - only, at most 120, no dot first"
    )


def load_yaml(path: str | Path) -> tuple[Any, dict[tuple[Any, ...], int]]:
    """Data of a YAML file and the line of each of its keys; no tags, no aliases, no duplicates."""
    import yaml

    try:
        raw = Path(path).read_bytes()
        if len(raw) > MAX_YAML:
            raise FinetuneError(f"{path}: is larger than {MAX_YAML} bytes")
        text = raw.decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node() if not _has_alias(text) else None
            lines: dict[tuple[Any, ...], int] = {}
            if node is None and text.strip():
                raise FinetuneError(
                    f"{path}: uses YAML aliases (&name, *name); write the values out"
                )
            _note_lines(node, (), lines, str(path))
            return (loader.construct_document(node) if node is not None else None), lines
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise FinetuneError(f"{path}: is missing") from None
    except UnicodeDecodeError as exc:
        raise FinetuneError(f"{path}: is not UTF-8 (byte {exc.start}); save it as UTF-8") from None
    except RecursionError:
        raise FinetuneError(f"{path}: is nested too deep") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise FinetuneError(
            f"{path}{line}: not valid YAML: {getattr(exc, 'problem', None) or exc}"
        ) from None


def _has_alias(text: str) -> bool:
    import yaml

    return any(
        isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)
    )


def _note_lines(
    node: Any, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int], path: str
) -> None:
    """Remember the line of each key and item; a key that stands twice is an error."""
    if node is None:
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if node.id == "mapping":
        for key, value in node.value:
            place, line = (*at, key.value), key.start_mark.line + 1
            if place in lines:
                raise FinetuneError(f"{path}:{line} {'.'.join(map(str, place))}: stands twice")
            lines[place] = line
            _note_lines(value, place, lines, path)
    elif node.id == "sequence":
        for number, value in enumerate(node.value):
            _note_lines(value, (*at, number), lines, path)


def selector_hash(root: Path, selector: str, cache: HashCache | None = None) -> str | None:
    """Hash of what a selector names: a file, or a parsed value such as `project.yaml#/roles/judges`.
    Comments and order do not count in the second form. None when it is not there."""
    name, _, pointer = selector.partition("#")
    path = next((p for p in (root / name, root / "config" / name) if p.is_file()), None)
    if path is None:
        return None
    if not pointer:
        return file_hash(path, cache)
    value, _ = (
        load_yaml(path) if path.suffix in (".yaml", ".yml") else (json.loads(path.read_bytes()), {})
    )
    for part in [p for p in pointer.split("/") if p]:
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return None
    return canonical_hash(value)


def require_gate(name: str, root: str | Path | None = None) -> None:
    """Return when the gate is passed and what it looked at is unchanged; else say what to run."""
    home = Path(root) if root else find_project()
    if home is None or not (home / ".finetune").exists():
        print(f"gate {name}: this is no finetune project, so gates are off", file=sys.stderr)
        return
    todo = f"Run: finetune gate {name}"
    rows = [
        row for row in iter_records(home / ".finetune" / "ledger.jsonl") if row.get("gate") == name
    ]
    if not rows:
        raise FinetuneError(
            f"gate {name}: has not been run (no line in .finetune/ledger.jsonl). {todo}"
        )
    last = rows[-1]
    wanted = ("approved", "waived") if name in PEOPLE_GATES else ("passed", "approved", "waived")
    if last.get("result") not in wanted:
        person = f", and a person: finetune approve {name}" if name in PEOPLE_GATES else ""
        raise FinetuneError(f"gate {name}: is {last.get('result')}, not passed. {todo}{person}")
    looked_at = last.get("looked_at")
    if not isinstance(looked_at, dict) or not looked_at:
        raise FinetuneError(
            f"gate {name}: its ledger line names nothing that was looked at. {todo}"
        )
    stale = [s for s, seen in looked_at.items() if selector_hash(home, s) != seen]
    if stale:
        raise FinetuneError(
            f"gate {name}: is stale, because these changed since: {', '.join(stale)}. {todo}"
        )
