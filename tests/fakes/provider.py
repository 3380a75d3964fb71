"""A fake of the model providers on this machine: real sockets, real shapes, faults on request.

In a test, in a thread of the same process, with scripted replies:

    with FakeProvider() as fake:
        fake.script([rate_limited("1"), Reply("hello")])    # then: an echo of the last message
        client = AsyncOpenAI(base_url=fake.openai_url, api_key="k", max_retries=0)

For the benchmarks, as a process of its own that answers fast and counts honestly:

    python tests/fakes/provider.py --port 0 --latency 0.05 --rate 200 --burst 20

It listens on 127.0.0.1 only, needs the standard library only, and prints its address.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from email.utils import formatdate
from functools import cached_property, lru_cache
from hashlib import blake2b
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

OPENAI, ANTHROPIC, GOOGLE = "openai", "anthropic", "google"
JSON = "application/json"

# == 1. What a test asks for =======================================================================


class Usage(NamedTuple):
    """Tokens of one reply; `completion` includes `reasoning`, as bills do."""

    prompt: int = 10
    completion: int = 5
    reasoning: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer, free of any provider: the route decides how it is written."""

    text: str | None = "ok"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # sent as it is, whatever the route
    stop: str = "stop"  # stop, length, content_filter, refusal, tool_calls, context
    usage: Usage | None = field(default_factory=Usage)  # None: the reply names no usage
    model: str | None = None  # None: the model that was asked for
    refusal: str | None = None
    tool_call: bool = False
    error: str | None = None  # a row of ERRORS
    echo: bool = False  # an error page that repeats the headers of the request
    delay: float = 0.0  # seconds before the first byte
    drip: float = 0.0  # seconds between the bytes of the body
    cut_after: int | None = None  # close after so many bytes of the body; -1: before any byte
    never: bool = False  # take the request and stay silent


def rate_limited(retry_after: str | None = "1") -> Reply:
    """A 429; `retry_after` is seconds, an HTTP date, milliseconds as "250ms", or no header."""
    return Reply(status=429, error="rate_limited", headers=retry_headers(retry_after))


def retry_headers(retry_after: str | None) -> dict[str, str]:
    if retry_after is None:
        return {}
    if retry_after.endswith("ms"):
        return {"retry-after-ms": retry_after.removesuffix("ms")}
    return {"retry-after": retry_after}


def http_date(seconds_ahead: float) -> str:
    """A date for `rate_limited`, so far from now on the real clock."""
    return formatdate(time.time() + seconds_ahead, usegmt=True)


def google_retry_info(delay: str = "12s") -> Reply:
    """Google's 429: no header, the waiting time only in the body's RetryInfo."""
    return Reply(status=429, error="retry_info", text=delay)


def insufficient_quota() -> Reply:
    """Money is used up, dressed as a rate limit."""
    return Reply(status=429, error="insufficient_quota")


def overloaded() -> Reply:
    return Reply(status=529, error="overloaded")


def server_error(status: int = 500) -> Reply:
    return Reply(status=status, error="server_error")


def unauthorized() -> Reply:
    """A wrong key: 401, but Google answers it with 400 and the reason API_KEY_INVALID."""
    return Reply(status=401, error="unauthorized")


def forbidden() -> Reply:
    return Reply(status=403, error="forbidden")


def unknown_model() -> Reply:
    return Reply(status=404, error="unknown_model")


def context_too_long() -> Reply:
    return Reply(status=400, error="context_too_long")


def bad_request_schema() -> Reply:
    """A server that does not take `response_format` json_schema; see also `without_schemas`."""
    return Reply(status=400, error="bad_request_schema")


def echoes_headers(status: int = 500, html: bool = True) -> Reply:
    """An error that shows the caller's headers, key included, as a page or as JSON."""
    return Reply(status=status, error=None if html else "echo", echo=True)


def html_page() -> Reply:
    """What a captive portal or a proxy sends: a login page with status 200."""
    page = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
    return Reply(body=page, headers={"content-type": "text/html; charset=utf-8"})


def truncated_json() -> Reply:
    return Reply(body=b'{"id": "fake-1", "choices": [{"index": 0, "message": {"role": "assi')


def empty_body_object() -> Reply:
    return Reply(body=b"{}")


def blank_content(text: str | None = "") -> Reply:
    return Reply(text=text)


def refusal(text: str = "I can't help with that.") -> Reply:
    """OpenAI's refusal field, Anthropic's stop reason, Google's blocked prompt."""
    return Reply(text=None, stop="refusal", refusal=text)


def content_filter() -> Reply:
    """Cut by a filter: Anthropic has no such reason and says refusal."""
    return Reply(text=None, stop="content_filter")


def length_stop(text: str = "and then they") -> Reply:
    return Reply(text=text, stop="length")


def tool_call() -> Reply:
    return Reply(text=None, stop="tool_calls", tool_call=True)


def dropped() -> Reply:
    """The connection closes before any byte of the answer."""
    return Reply(cut_after=-1)


def without_schemas(*kinds: str, reply: Reply | None = None) -> Callable[["Request"], Reply]:
    """A `respond` for a server that refuses these kinds: json_schema, json_object."""

    def respond(request: Request) -> Reply:
        return bad_request_schema() if request.schema_kind in kinds else reply or echo_of(request)

    return respond


@dataclass
class Request:
    """One request as it came in; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    at: float  # time.monotonic()

    @cached_property
    def body(self) -> Any:
        """The parsed body; None when there is none or it is not JSON."""
        with contextlib.suppress(ValueError):
            return json.loads(self.raw)

    @property
    def provider(self) -> str:
        return provider_of(self.path, self.headers)

    @property
    def model(self) -> str:
        found = re.search(r"/models/([^:?]+)", self.path)
        return found[1] if found else str((self.body or {}).get("model", "fake-model"))

    @property
    def text(self) -> str:
        """What the last message says."""
        turns = (self.body or {}).get("messages") or (self.body or {}).get("contents") or []
        content = (turns[-1].get("content") or turns[-1].get("parts")) if turns else ""
        if isinstance(content, str):
            return content
        return "".join(part.get("text", "") for part in content or [])

    @property
    def schema_kind(self) -> str | None:
        """json_schema, json_object, or None where the request asks for text."""
        body = self.body or {}
        config = body.get("generationConfig") or {}
        if config.keys() & {"responseSchema", "responseJsonSchema", "responseMimeType"}:
            only_mime = not config.keys() & {"responseSchema", "responseJsonSchema"}
            return "json_object" if only_mime else "json_schema"
        wanted = body.get("response_format") or (body.get("output_config") or {}).get("format")
        kind = (wanted or {}).get("type")
        return None if kind == "text" else kind


def echo_of(request: Request) -> Reply:
    """The default: the last message back, so that a test sees which answer belongs to which."""
    return Reply(f"echo: {request.text}")


# == 2. The shape of each provider =================================================================


class Rendered(NamedTuple):
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def render(reply: Reply, provider: str, model: str, number: int, echoed: str = "") -> Rendered:
    """The reply as this provider would send it."""
    headers = {"content-type": JSON, REQUEST_ID[provider]: f"req_fake_{number}"} | reply.headers
    if reply.body is not None:
        return Rendered(reply.status, headers, reply.body)
    if reply.error:
        return render_error(reply, provider, model, headers, echoed)
    if reply.echo:
        headers["content-type"] = "text/html; charset=utf-8"
        return Rendered(reply.status, headers, f"<pre>{echoed}</pre>".encode())
    answer = ANSWERS[provider](reply, reply.model or model, number)
    return Rendered(reply.status, headers, dump(answer))


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def openai_answer(reply: Reply, model: str, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    if reply.tool_call:
        function = {"name": "look_up", "arguments": '{"query": "weather"}'}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "logprobs": None}
    choice["finish_reason"] = OPENAI_STOP.get(reply.stop, reply.stop)
    answer: dict[str, Any] = {"id": f"chatcmpl-{number}", "object": "chat.completion"}
    answer |= {"created": 1_790_000_000, "model": model, "choices": [choice]}
    if reply.usage:
        prompt, completion, reasoning = reply.usage
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
    return answer


def anthropic_answer(reply: Reply, model: str, number: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": f"msg_{number}", "type": "message", "role": "assistant"}
    answer |= {"model": model, "content": anthropic_content(reply)}
    answer |= {"stop_reason": ANTHROPIC_STOP.get(reply.stop, reply.stop), "stop_sequence": None}
    if reply.refusal:
        details = {"type": "refusal", "category": None, "explanation": reply.refusal}
        answer["stop_details"] = details
    if reply.usage:
        answer["usage"] = {
            "input_tokens": reply.usage.prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": reply.usage.completion,
            "output_tokens_details": {"thinking_tokens": reply.usage.reasoning},
            "service_tier": "standard",
        }
    return answer


def anthropic_content(reply: Reply) -> list[dict[str, Any]]:
    if reply.tool_call:
        use = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"query": "rain"}}
        return [use]
    return [] if reply.text is None else [{"type": "text", "text": reply.text}]


def google_answer(reply: Reply, model: str, number: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"modelVersion": model, "responseId": f"fake-{number}"}
    if reply.refusal:
        answer["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
    else:
        reason = GOOGLE_STOP.get(reply.stop, reply.stop)
        answer["candidates"] = [{**google_content(reply), "finishReason": reason, "index": 0}]
    if reply.usage:
        prompt, completion, reasoning = reply.usage
        # Google counts thoughts beside the candidates, the others inside the completion.
        answer["usageMetadata"] = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": completion - reasoning,
            "thoughtsTokenCount": reasoning,
            "totalTokenCount": prompt + completion,
        }
    return answer


def google_content(reply: Reply) -> dict[str, Any]:
    """A filtered candidate has no content at all, a blank one has content without parts."""
    if reply.tool_call:
        part: dict[str, Any] = {"functionCall": {"name": "look_up", "args": {"query": "rain"}}}
        return {"content": {"parts": [part], "role": "model"}}
    if reply.text is None:
        return {} if reply.stop == "content_filter" else {"content": {"role": "model"}}
    return {"content": {"parts": [{"text": reply.text}], "role": "model"}}


REQUEST_ID = {OPENAI: "x-request-id", ANTHROPIC: "request-id", GOOGLE: "x-goog-request-id"}
OPENAI_STOP = {"refusal": "stop", "context": "length"}
ANTHROPIC_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "context": "model_context_window_exceeded",
}
GOOGLE_STOP = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "content_filter": "SAFETY",
    "tool_calls": "STOP",
    "context": "MAX_TOKENS",
}
ANSWERS: dict[str, Callable[[Reply, str, int], dict[str, Any]]] = {
    OPENAI: openai_answer,
    ANTHROPIC: anthropic_answer,
    GOOGLE: google_answer,
}


def render_error(
    reply: Reply, provider: str, model: str, headers: dict[str, str], echoed: str
) -> Rendered:
    words = {"{model}": model, "{echo}": echoed, "{delay}": reply.text or ""}
    error = fill(error_object(reply, provider), words)
    if provider == ANTHROPIC:
        envelope = {"type": "error", "error": error, "request_id": headers[REQUEST_ID[provider]]}
        return Rendered(reply.status, headers, dump(envelope))
    status = error["code"] if provider == GOOGLE else reply.status
    return Rendered(status, headers, dump({"error": error}))


def error_object(reply: Reply, provider: str) -> dict[str, Any]:
    """The row of the table as this provider's error object."""
    row = ERRORS[reply.error or ""][(OPENAI, ANTHROPIC, GOOGLE).index(provider)]
    if provider == OPENAI:
        return dict(zip(("type", "code", "message"), row, strict=True)) | {"param": None}
    if provider == ANTHROPIC:
        return dict(zip(("type", "message", "details"), row, strict=False))
    message, *details = row
    code = 400 if reply.error == "unauthorized" else reply.status
    error = {"code": code, "message": message, "status": GOOGLE_STATUS.get(code, "UNKNOWN")}
    return error | ({"details": details} if details else {})


def fill(value: Any, words: dict[str, str]) -> Any:
    """A copy of a table row with its placeholders filled in."""
    if isinstance(value, dict):
        return {key: fill(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, words) for inner in value]
    for name, word in words.items():
        value = value.replace(name, word) if isinstance(value, str) else value
    return value


GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
GOOGLE_TYPE = "type.googleapis.com/google.rpc."
QUOTA = "You exceeded your current quota, please check your plan and billing details."
INVALID = "invalid_request_error"


def google_quota(period: str) -> dict[str, Any]:
    quota = f"GenerateRequestsPer{period}PerProjectPerModel"
    return {"@type": GOOGLE_TYPE + "QuotaFailure", "violations": [{"quotaId": quota}]}


# What happened, as OpenAI (type, code, message), Anthropic (type, message, details) and
# Google (message, details...) write it.
ERRORS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "rate_limited": (
        ("requests", "rate_limit_exceeded", "Rate limit reached for {model}: Limit 3."),
        ("rate_limit_error", "This request would exceed your organization's rate limit."),
        ("Resource has been exhausted (e.g. check quota).",),
    ),
    # Google uses the words of a spent quota for a limit that passes in seconds.
    "retry_info": (
        ("requests", "rate_limit_exceeded", "Rate limit reached. Try again in {delay}."),
        ("rate_limit_error", "Rate limit reached. Try again in {delay}."),
        (
            f"{QUOTA} Please retry in {{delay}}.",
            google_quota("Minute"),
            {"@type": GOOGLE_TYPE + "RetryInfo", "retryDelay": "{delay}"},
        ),
    ),
    "insufficient_quota": (
        ("insufficient_quota", "insufficient_quota", QUOTA),
        (
            "rate_limit_error",
            "You have reached your monthly API usage threshold.",
            {"error_code": "enforced_spend_limit_reached"},
        ),
        (QUOTA, google_quota("Day")),
    ),
    "overloaded": (
        ("overloaded", None, "The engine is currently overloaded."),
        ("overloaded_error", "Overloaded"),
        ("The model is overloaded. Please try again later.",),
    ),
    "server_error": (
        ("server_error", None, "The server had an error while processing your request."),
        ("api_error", "Internal server error"),
        ("An internal error has occurred.",),
    ),
    "unauthorized": (
        (INVALID, "invalid_api_key", "Incorrect API key provided."),
        ("authentication_error", "invalid x-api-key"),
        (
            "API key not valid. Please pass a valid API key.",
            {"@type": GOOGLE_TYPE + "ErrorInfo", "reason": "API_KEY_INVALID"},
        ),
    ),
    "forbidden": (
        (INVALID, None, "You are not allowed to sample from this model."),
        ("permission_error", "Your API key does not have permission to use this resource."),
        ("The caller does not have permission",),
    ),
    "unknown_model": (
        (INVALID, "model_not_found", "The model `{model}` does not exist."),
        ("not_found_error", "model: {model}"),
        ("models/{model} is not found for this API version.",),
    ),
    "context_too_long": (
        (
            INVALID,
            "context_length_exceeded",
            "This model's maximum context length is 8192 tokens. "
            "However, your messages resulted in 9001 tokens.",
        ),
        (INVALID, "prompt is too long: 210000 tokens > 200000 maximum"),
        (
            "The input token count (1200000) exceeds the maximum number of tokens "
            "allowed (1048576).",
        ),
    ),
    "bad_request_schema": (
        (INVALID, None, "'response_format' of type 'json_schema' is not supported."),
        (INVALID, "output_config.format: structured outputs are not supported by this model"),
        ('Invalid JSON payload received. Unknown name "responseJsonSchema": Cannot find field.',),
    ),
    "no_such_route": (
        (INVALID, None, "Invalid URL"),
        ("not_found_error", "Not Found"),
        ("Not Found",),
    ),
    "echo": (
        ("server_error", None, "Upstream said: {echo}"),
        ("api_error", "Upstream said: {echo}"),
        ("Upstream said: {echo}",),
    ),
}


def provider_of(path: str, headers: dict[str, str]) -> str:
    """Whose request this is: by its route, and by its headers where the routes are the same."""
    if path.split("?")[0].endswith("/chat/completions"):
        return OPENAI
    if path.split("?")[0].endswith("/messages") or "anthropic-version" in headers:
        return ANTHROPIC
    if ":generateContent" in path or "x-goog-api-key" in headers:
        return GOOGLE
    return OPENAI


def list_models(provider: str, names: list[str]) -> Reply:
    shapes: dict[str, Callable[[str], dict[str, Any]]] = {
        OPENAI: lambda name: {"id": name, "object": "model", "created": 1, "owned_by": "fake"},
        ANTHROPIC: lambda name: {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
        },
        GOOGLE: lambda name: {"name": f"models/{name}", "displayName": name},
    }
    rows = [shapes[provider](name) for name in names]
    if provider == GOOGLE:
        return Reply(body=dump({"models": rows}))
    more = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
    return Reply(body=dump({"data": rows} | ({"object": "list"} if provider == OPENAI else more)))


# == 3. HTTP/1.1, as little of it as the clients need ==============================================

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One keep-alive connection; the next request waits until this one is answered."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.buffer = bytearray()
        self.busy = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.connections.add(self)
        self.server.opened += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.take()

    def take(self) -> None:
        """Hands one whole request to the server, when there is one."""
        end = self.buffer.find(b"\r\n\r\n")
        if self.busy or end < 0:
            return
        found = LENGTH.search(self.buffer, 0, end)
        stop = end + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < stop:
            return
        head, body = bytes(self.buffer[:end]), bytes(self.buffer[end + 4 : stop])
        del self.buffer[:stop]
        self.busy = True
        self.server.serve(self, head, body)

    def answer(self, data: bytes) -> bool:
        """Sends a whole answer; False when the client has gone."""
        if self.transport.is_closing():
            return False
        self.transport.write(data)
        self.done()
        return True

    def done(self) -> None:
        self.busy = False
        if self.buffer:
            self.take()


def head_of(status: int, headers: dict[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} {phrase(status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"content-length: {length}", "\r\n"]).encode()


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Unknown"


class Server:
    """What both ways of answering share."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.opened = 0

    def serve(self, connection: Connection, head: bytes, body: bytes) -> None:
        raise NotImplementedError


# == 4. Scripted answers, for tests ================================================================


class Scripted(Server):
    """Records every request and answers each with what the test asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.replies: deque[Reply] = deque()
        self.repeat_last = False
        self.respond: Callable[[Request], Reply] = echo_of
        self.models = ["fake-model"]
        self.errors: list[Exception] = []
        self.numbers = count(1)

    def serve(self, connection: Connection, head: bytes, body: bytes) -> None:
        request = parse_request(head, body)
        self.requests.append(request)
        try:
            reply = self.choose(request)
        except Exception as error:  # noqa: BLE001  the test sees it when the fake closes
            self.errors.append(error)
            reply = server_error(500)
        asyncio.get_running_loop().create_task(self.deliver(connection, request, reply))

    def choose(self, request: Request) -> Reply:
        if request.method == "GET" and re.search(r"/models/?(\?|$)", request.path):
            return list_models(request.provider, self.models)
        if not is_chat(request.path):
            return Reply(status=404, error="no_such_route")
        if not self.replies:
            return self.respond(request)
        last = len(self.replies) == 1 and self.repeat_last
        return self.replies[0] if last else self.replies.popleft()

    async def deliver(self, connection: Connection, request: Request, reply: Reply) -> None:
        """Writes the answer with the delays and cuts that were asked for."""
        if reply.never:
            return
        await asyncio.sleep(reply.delay)
        if reply.cut_after is not None and reply.cut_after < 0:
            return connection.transport.abort()
        echoed = json.dumps(request.headers) if reply.echo else ""
        shown = render(reply, request.provider, request.model, next(self.numbers), echoed)
        connection.transport.write(head_of(shown.status, shown.headers, len(shown.body)))
        await send_body(connection.transport, shown.body[: reply.cut_after], reply.drip)
        if reply.cut_after is not None:
            return connection.transport.close()
        connection.done()


async def send_body(transport: asyncio.Transport, body: bytes, drip: float) -> None:
    if not drip:
        return transport.write(body)
    for byte in body:
        if transport.is_closing():
            return
        transport.write(bytes([byte]))
        await asyncio.sleep(drip)


def parse_request(head: bytes, body: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Request(method, path, headers, body, time.monotonic())


def is_chat(path: str) -> bool:
    return path.split("?")[0].endswith(("/chat/completions", "/messages", ":generateContent"))


# == 5. Load, for benchmarks =======================================================================


@dataclass(frozen=True)
class Load:
    """How the server behaves under load; every field can be changed between runs."""

    latency: float = 0.0  # seconds before an answer
    jitter: float = 0.0  # up to so many seconds more, even over the range
    rate: float = 0.0  # answers allowed per second; 0: no limit
    burst: float = 20.0  # answers allowed at once
    retry_after: str = "1"  # header of a 429; empty: none
    share_500: float = 0.0
    share_drop: float = 0.0  # connection closed without an answer
    share_garbage: float = 0.0  # status 200, half of them a page, half of them torn JSON
    share_empty: float = 0.0  # a well-formed answer without text
    size: int = 300  # characters of an answer's text
    texts: int = 1  # how many different answers there are, in turns
    reply: str = ""  # the text of every answer, such as JSON that fits what is asked
    seed: int = 0

    def fates(self) -> list[tuple[str, float]]:
        """What can go wrong, with its share, in the order in which the draw is cut up."""
        half = self.share_garbage / 2
        shares = (self.share_500, self.share_drop, half, half, self.share_empty)
        return list(zip(("error", "dropped", "page", "torn", "empty"), shares, strict=True))


class Bucket:
    """A token bucket on the monotonic clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.at = burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Loaded(Server):
    """Answers as fast as Python can, and counts what it really sent.

    Chance is keyed by body and attempt, so the same calls meet the same faults in any order.
    """

    def __init__(self, load: Load) -> None:
        super().__init__()
        self.configure(load)

    def configure(self, load: Load) -> None:
        """New behaviour, and every counter back to zero."""
        self.load, self.bucket = load, Bucket(load.rate, load.burst) if load.rate else None
        self.chance = bool(load.jitter or any(share for _, share in load.fates()))
        self.stats: Counter[str] = Counter()
        self.attempts: Counter[bytes] = Counter()
        self.answered: Counter[int] = Counter()
        self.waited = 0.0
        self.started = self.ended = 0.0
        self.opened = len(self.connections)

    def serve(self, connection: Connection, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/__"):
            connection.answer(self.control(path, body))
            return
        self.stats["requests"] += 1
        self.started = self.started or time.monotonic()
        if self.bucket and not self.bucket.take():
            return self.finish(connection, path, body, "limited")
        fate, delay = self.draw(body)
        self.waited += delay
        if not delay:
            return self.finish(connection, path, body, fate)
        loop = asyncio.get_running_loop()
        loop.call_later(delay, self.finish, connection, path, body, fate)

    def draw(self, body: bytes) -> tuple[str, float]:
        """What happens to this attempt, and after how long."""
        load = self.load
        if not self.chance:
            return "ok", load.latency
        digest = blake2b(body, digest_size=8).digest()
        self.attempts[digest] += 1
        key = b"%d:%d" % (load.seed, self.attempts[digest])
        drawn = blake2b(digest + key, digest_size=16).digest()
        luck, spread = (int.from_bytes(part) / 2**64 for part in (drawn[:8], drawn[8:]))
        return pick(luck, load.fates()), load.latency + spread * load.jitter

    def finish(self, connection: Connection, path: bytes, body: bytes, fate: str) -> None:
        """Sends the answer and counts it; a client that left is counted as that."""
        if connection.transport.is_closing():
            self.stats["abandoned"] += 1
            return
        self.stats[fate] += 1
        self.ended = time.monotonic()
        if fate == "dropped":
            return connection.transport.abort()
        if fate == "ok":
            self.answered[hash(body)] += 1
        which = self.stats["ok"] % self.load.texts
        connection.answer(canned(path, model_in(path, body), fate, self.load, which))

    def control(self, path: bytes, body: bytes) -> bytes:
        if path == b"/__config":
            self.configure(Load(**json.loads(body or b"{}")))
        shown = dump({"load": asdict(self.load)} | self.figures())
        return head_of(200, {"content-type": JSON}, len(shown)) + shown

    def figures(self) -> dict[str, float]:
        names = ("requests", "ok", "limited", *(name for name, _ in self.load.fates()), "abandoned")
        counted: dict[str, float] = {name: self.stats[name] for name in names}
        return counted | {
            "twice": sum(times > 1 for times in self.answered.values()),
            "connections": self.opened,
            "waited_s": self.waited,
            "window_s": self.ended - self.started,
        }


def pick(luck: float, fates: Iterable[tuple[str, float]]) -> str:
    for name, share in fates:
        if luck < share:
            return name
        luck -= share
    return "ok"


MODEL = re.compile(rb'"model": ?"([^"]*)"')


def model_in(path: bytes, body: bytes) -> bytes:
    """The model asked for, without parsing a long history."""
    if b":generateContent" in path:
        return path.rsplit(b"/", 1)[-1].split(b":")[0]
    found = MODEL.search(body)
    return found[1] if found else b"fake-model"


WORDS = """
the parcel did not come on monday and my light blinks orange so what should we do now because it
leaks under the sink please send another valve or tell me how long that takes until friday
""".split()  # noqa: SIM905


def words_of(load: Load, which: int) -> str:
    """The text of an answer: the same for all, or one of several made of everyday words."""
    if load.reply:
        return load.reply
    if load.texts == 1:
        return ("These words stand for the answer of a model. " * (load.size // 40 + 1))[
            : load.size
        ]
    draw, text = random.Random(f"{load.seed}:{which}"), ""
    while len(text) < load.size:
        text += f"{' '.join(draw.choices(WORDS, k=9))}. ".capitalize()
    return text.strip()


@lru_cache(maxsize=4096)
def canned(path: bytes, model: bytes, fate: str, load: Load, which: int = 0) -> bytes:
    """A whole answer, made once per route, model, fate, load and text."""
    replies = {
        "ok": Reply(words_of(load, which)),
        "limited": rate_limited(load.retry_after or None),
        "error": server_error(500),
        "page": html_page(),
        "torn": truncated_json(),
        "empty": blank_content(""),
    }
    route = path.decode("latin-1")
    reply = replies[fate] if is_chat(route) else Reply(status=404, error="no_such_route")
    shown = render(reply, provider_of(route, {}), model.decode("latin-1"), 1)
    return head_of(shown.status, shown.headers, len(shown.body)) + shown.body


# == 6. In a thread, or in a process ===============================================================


class FakeProvider:
    """The fake in a thread of this process: scripted, or under a `Load`."""

    def __init__(self, load: Load | None = None) -> None:
        self.server: Scripted | Loaded = Scripted() if load is None else Loaded(load)
        self.loop = asyncio.new_event_loop()
        self.ready, self.stop = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=self.run, name="fake-provider", daemon=True)
        self.url = ""

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        return self.scripted.requests

    @property
    def models(self) -> list[str]:
        """What the list of models names; change it in place."""
        return self.scripted.models

    @property
    def respond(self) -> Callable[[Request], Reply]:
        return self.scripted.respond

    @respond.setter
    def respond(self, answer: Callable[[Request], Reply]) -> None:
        """Answers whatever the script does not; runs in the fake's thread."""
        self.scripted.respond = answer

    def script(self, replies: Iterable[Reply], repeat_last: bool = False) -> None:
        """One reply per request, in order; after them `respond`, or the last one for ever."""
        self.scripted.replies = deque(replies)
        self.scripted.repeat_last = repeat_last

    @property
    def stats(self) -> dict[str, float]:
        """The counters of a fake under load."""
        if not isinstance(self.server, Loaded):
            raise TypeError("a scripted fake keeps requests, not counters: see `requests`")
        return self.server.figures()

    @property
    def scripted(self) -> Scripted:
        if not isinstance(self.server, Scripted):
            raise TypeError("a fake under load has no script and keeps no requests: see `stats`")
        return self.server

    def __enter__(self) -> Self:
        self.thread.start()
        self.ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)
        errors = self.server.errors if isinstance(self.server, Scripted) else []
        if errors and error is None:
            raise errors[0]

    def run(self) -> None:
        with contextlib.closing(self.loop):
            self.loop.run_until_complete(self.live())

    async def live(self) -> None:
        listener = await listen(self.server, 0)
        self.url = address_of(listener)
        self.ready.set()
        await self.stop.wait()
        await close(listener, self.server)


async def listen(server: Server, port: int) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=1024)


def address_of(listener: asyncio.Server) -> str:
    return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def close(listener: asyncio.Server, server: Server) -> None:
    """Ends every connection and waits for what still runs, so that nothing leaks into a test."""
    listener.close()
    for connection in list(server.connections):
        connection.transport.abort()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)


async def run_alone(load: Load, port: int, while_stdin_open: bool) -> None:
    """Serves until it is stopped, or until whoever holds its standard input goes away."""
    server = Loaded(load)
    listener = await listen(server, port)
    print(address_of(listener), flush=True)
    stop = asyncio.Event()
    if while_stdin_open:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    await stop.wait()
    await close(listener, server)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else "",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--while-stdin-open", action="store_true", help="stop with the parent")
    for option in fields(Load):
        name = "--" + option.name.replace("_", "-")
        parser.add_argument(name, type=type(option.default), default=option.default, help=" ")
    given = vars(parser.parse_args())
    load = replace(Load(), **{option.name: given[option.name] for option in fields(Load)})
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_alone(load, given["port"], given["while_stdin_open"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
