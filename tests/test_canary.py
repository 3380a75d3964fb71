"""A key that everybody would recognise, through every fault: it is found nowhere afterwards."""

import asyncio
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import fakes.provider as fakes
from calls import KEY, PRICE, WIRED, model
from fakes.provider import FakeProvider, Reply, Request
from infrastructure import Budget, FinetuneError, Journal, get_backend

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class Aiohttp:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* is not a valid FinishReason:UserWarning"),
]
# Two kinds at once in the fast suite; the other two with the slow tests, because each is seconds.
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in WIRED[2:]]
wired = pytest.mark.parametrize("kind", [*WIRED[:2], *SLOW])
PIECE = 12  # characters of the key in a row are a hit, too: a text may have been cut inside of it
PIECES = [KEY[at : at + PIECE] for at in range(len(KEY) - PIECE + 1)]

Answer = Callable[[Request], Reply]


class Verdict(BaseModel):
    answer: str


def always(reply: Reply) -> Answer:
    return lambda request: reply


def constructors() -> dict[str, Answer]:
    """Every fault that the fake can make without being told more."""
    made = {
        name: maker()
        for name, maker in vars(fakes).items()
        if inspect.isfunction(maker) and maker.__annotations__.get("return") is Reply
        if all(p.default is not p.empty for p in inspect.signature(maker).parameters.values())
    }
    return {name: always(reply) for name, reply in made.items()}


def key_in(request: Request) -> str:
    """The key as this provider's client sends it."""
    found = (request.headers.get(name) for name in ("authorization", "x-api-key", "x-goog-api-key"))
    return next(filter(None, found))


def page_with_key(before: int, status: int = 200) -> Answer:
    """A page that shows the key after so many characters, so that a cut may fall into it."""
    html = {"content-type": "text/html"}
    return lambda request: Reply(
        status=status, body=("<pre>" + "x" * before + key_in(request)).encode(), headers=html
    )


SCENARIOS = constructors()
SCENARIOS |= {
    f"echo {status} {'page' if html else 'json'}": always(fakes.echoes_headers(status, html))
    for status in (200, 400, 401, 404, 429, 500)
    for html in (True, False)
}
SCENARIOS |= {f"page {n}": page_with_key(n) for n in (*range(70, 120, 8), 570, 590)}
SCENARIOS |= {f"error page {n}": page_with_key(n, 500) for n in (0, 570, 590, 19_990)}
SCENARIOS |= {
    "silence": always(Reply(never=True)),
    "cut body": always(Reply(cut_after=10)),
    "context": always(Reply("x", stop="context")),
    "no usage": always(Reply(usage=None)),
    "the key as answer": lambda request: Reply(key_in(request)),
    "the key as JSON": lambda request: Reply('{"answer": "%s"}' % key_in(request)),  # noqa: UP031
    "the key as model": lambda request: Reply(model=key_in(request)),
    "the key as stop reason": lambda request: Reply(stop=key_in(request)),
    "the key in a cut answer": lambda request: Reply(key_in(request), stop="length"),
}


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Everything that any library logs, formatted as a handler would."""
    lines: list[str] = []
    handler, root = logging.Handler(), logging.getLogger()
    show = logging.Formatter("%(name)s %(message)s")
    handler.emit = lambda record: lines.append(show.format(record))  # type: ignore[method-assign]
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(before)


async def everything_said(backend: Any, scope: str) -> list[str]:
    """Both kinds of call on this backend: all that they return or raise, as text."""
    said = [repr(backend), repr(backend.o), repr(backend.totals)]
    calls = (
        backend.complete("hello", scope=scope),
        backend.complete_structured("Judge it.", Verdict, scope=f"{scope}.judge"),
    )
    for call in calls:
        try:
            said.append(repr(await call))
        except FinetuneError as error:
            said += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    return said


def hits(*texts: str) -> list[str]:
    """Where the key, or a piece of it, was found."""
    found = ((text.find(piece), text) for text in texts for piece in PIECES if piece in text)
    return sorted({text[max(0, at - 60) : at + PIECE] for at, text in found})


@wired
def test_no_fault_brings_the_key_into_a_message_a_log_or_a_file(
    kind: str, tmp_path: Path, logged: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    found, requests = dict[str, list[str]](), 0
    for name, answer in SCENARIOS.items():
        with FakeProvider() as fake, Journal(tmp_path / "run.jsonl") as journal:
            fake.respond = answer
            money = {"journal": journal, "budget": Budget(1e6), "price": PRICE}
            short = {"tries": 2, "attempt_timeout": 0.2, "patience": 5.0, "max_wait": 60.0}
            said = asyncio.run(everything_said(model(kind, fake, **money, **short), name))
            requests += len(fake.requests)
        found[name] = hits(*said, *logged, *capfd.readouterr())
        logged.clear()
    assert requests >= len(SCENARIOS) >= 50
    found["files"] = hits(*(path.read_text() for path in tmp_path.rglob("*") if path.is_file()))
    assert {name: where for name, where in found.items() if where} == {}


SAYS = {
    "its environment": 'echo "$ANTHROPIC_API_KEY"; exit 1',
    "it on stderr": 'echo "$ANTHROPIC_API_KEY" >&2; exit 1',
    "it before the end": 'printf "%s%0{room}d" "$ANTHROPIC_API_KEY" 0 >&2; exit 1',
    "it in an error": """echo '{{"is_error": true, "result": "'$ANTHROPIC_API_KEY'"}}'; exit 1""",
    "it in an answer": """echo '{{"is_error": false, "result": "'$ANTHROPIC_API_KEY'"}}'""",
}


@pytest.mark.parametrize("what", SAYS)
@pytest.mark.parametrize("room", [270, 285, 295])
def test_the_key_of_the_claude_command_stays_out_of_what_it_says(
    what: str, room: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "claude"
    program.write_text("#!/bin/sh\ncat > /dev/null\n" + SAYS[what].format(room=room))
    program.chmod(0o700)
    with Journal(tmp_path / "run.jsonl") as journal:
        options = {"executable": str(program), "api_key": KEY, "tries": 1, "journal": journal}
        said = asyncio.run(everything_said(get_backend("claude:m", **options), "s"))
    files = [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert hits(*said, *files, *capfd.readouterr()) == []


VARIABLES = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "MISTRAL_API_KEY", "HF_TOKEN")


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_key_from_the_environment_is_kept_out_too_whoever_it_belongs_to(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f" {KEY}\n")
    with FakeProvider() as fake, Journal(tmp_path / "run.jsonl") as journal:
        fake.respond = lambda request: Reply(f"your key is {KEY}")
        backend = model("local", fake, api_key="its-own-key-5678", journal=journal)
        said = asyncio.run(everything_said(backend, "s"))
    assert hits(*said, (tmp_path / "run.jsonl").read_text()) == []


def test_the_search_finds_a_key_and_a_piece_of_it() -> None:
    assert hits(f"a {KEY} b") != []
    assert hits(f"a {KEY[5:17]} b", "nothing here") == [f"a {KEY[5:17]}"]
    assert hits(f"a {KEY[:11]} b", KEY.upper(), sys.version) == []
