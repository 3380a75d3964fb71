"""The local server of `finetune review`: routes, and how it starts and ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from finetune_skills.bundle import use_bundle

use_bundle()

from finetune_skills import labels  # noqa: E402
from finetune_skills.review import pairs, views  # noqa: E402
from finetune_skills.review.guard import Guard, TooLarge  # noqa: E402
from finetune_skills.review.queue import EMPTY, Queue, Scope, Wanted  # noqa: E402
from finetune_skills.review.records import Entry, Records  # noqa: E402
from finetune_skills.review.text import plain, shown  # noqa: E402
from infrastructure import DiskStop, FinetuneError, canonical_hash  # noqa: E402

HERE = Path(__file__).resolve().parent
STATIC = {path.name: path for path in (HERE / "static").iterdir() if path.suffix in (".js", ".css")}
KINDS = {".js": "text/javascript", ".css": "text/css"}
FIRST_PORT, PORTS = 18_000, 12_000  # below the ports that systems hand out by themselves
ENDS = 2  # seconds that open requests get at the end

PLAIN = Markup(
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{status}</title>
<link rel="stylesheet" href="/static/review.css"><body><main class="card">
<h1>{text}</h1><p><a href="/">Back to the queue</a></p></main></body></html>"""
)


def templates() -> Environment:
    """Every template escapes everything; compiled now, so that no visitor waits for it."""
    loader = FileSystemLoader(HERE / "templates")
    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"shown": shown, "plain": plain}
    for name in made.list_templates():
        made.get_template(name)
    return made


# ── the pages ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Review:
    """One run of the review: what it is about, who reads, and what was saved."""

    scope: Scope
    reviewer: str = ""
    language: str = ""
    pairs: list[pairs.Pair] = field(default_factory=list)
    saved: set[str] = field(default_factory=set)
    pages: Environment = field(default_factory=templates)
    queue: Queue = field(init=False)
    choices: labels.Store = field(init=False)

    def __post_init__(self) -> None:
        root = self.scope.root
        self.queue = Queue(self.scope, Records(root), labels.label_store(root))
        self.choices = labels.pair_store(root)

    def app(self) -> Starlette:
        """All routes. Ids are looked up in what is known; none ever becomes a path."""
        return Starlette(
            routes=[
                Route("/", self.first),
                Route("/t/{id}", self.transcript),
                Route("/ab/{number:int}", self.pair),
                Route("/static/{name}", static),
                Route("/api/reviewer", self.name, methods=["POST"]),
                Route("/api/labels/{id}", self.label),
                Route("/api/labels/{id}", self.save, methods=["POST"]),
                Route("/api/ab/{number:int}", self.choose, methods=["POST"]),
            ],
            exception_handlers={
                FinetuneError: told, HTTPException: missing, TooLarge: too_large, OSError: told,
            },
        )  # fmt: skip

    def page(self, template: str, **shown: Any) -> HTMLResponse:
        blind = self.scope.blind or bool(self.pairs)
        project = canonical_hash(str(self.scope.root.resolve()))[:12]
        about = {"blind": blind, "reviewer": self.reviewer, "language": self.language}
        compared = canonical_hash([pair.ids for pair in self.pairs])[:8]
        mode = f"ab-{compared}" if self.pairs else "blind" if blind else "open"
        about |= {"project": project, "mode": mode}
        return HTMLResponse(self.pages.get_template(template).render(**about, **shown))

    async def first(self, request: Request) -> Response:
        """Who are you, then the queue, or the pairs to compare."""
        asked = "name" in request.query_params
        if not self.reviewer or asked:
            known = labels.reviewer_name(self.reviewer or os.environ.get("USER", ""))
            return self.page("name.html", suggested=known)
        if self.pairs:
            return RedirectResponse(f"/ab/{self.first_pair()}", 303)
        self.queue.refresh()
        number = request.query_params.get("page", "1")
        page = int(number) if number.isdecimal() and len(number) < 9 else 1
        shown = views.queue_page(self.queue, self.wanted(request), self.reviewer, page)
        return self.page("queue.html", batch=self.scope.batch, **shown)

    async def transcript(self, request: Request) -> Response:
        if not self.reviewer:
            return RedirectResponse("/", 303)
        entry = self.entry(request)
        wanted = self.wanted(request)
        return self.page(
            "transcript.html", **views.transcript_page(self.queue, entry, wanted, self.reviewer)
        )

    async def pair(self, request: Request) -> Response:
        if not self.reviewer:
            return RedirectResponse("/", 303)
        number = self.pair_number(request)
        return self.page(
            "pair.html", **pairs.pair_page(self.pairs, number, self.choices, self.reviewer)
        )

    def wanted(self, request: Request) -> Wanted:
        """The filters of an address; unknown ones filter nothing."""
        given = request.query_params
        reason = views.known_reason(given.get("reason", ""), self.scope.blind)
        state = given.get("state", "")
        state = state if state in views.STATES else ""
        return Wanted(reason, state, given.get("batch", "")[:120], given.get("text", "")[:120])

    def entry(self, request: Request) -> Entry:
        """The transcript of an address, as it is on the disk now; 404 where there is none."""
        if self.pairs:
            raise HTTPException(404, "This run compares pairs.")
        known = self.queue.records.transcripts.entries
        if entry := known.get(request.path_params["id"]):
            self.queue.glance(entry)
        else:
            self.queue.refresh()
        found = self.queue.records.transcripts.entries.get(request.path_params["id"])
        if found is None:
            raise HTTPException(404, "There is no transcript with this id.")
        return found

    def pair_number(self, request: Request) -> int:
        number = int(request.path_params["number"])
        if not 1 <= number <= len(self.pairs):
            raise HTTPException(404, "There is no pair with this number.")
        return number

    def first_pair(self) -> int:
        """The first pair without a choice, else the first of all."""
        self.choices.refresh()
        rows = (self.choices.newest.get((pair.ids, self.reviewer)) for pair in self.pairs)
        return next((n for n, row in enumerate(rows, 1) if not (row or {}).get("choice")), 1)

    # ── what the pages send ──

    async def name(self, request: Request) -> Response:
        """Take the reviewer's name, for this run."""
        given = (await body_of(request)).get("name")
        name = labels.reviewer_name(given) if isinstance(given, str) else ""
        if not name:
            raise HTTPException(400, "A name is needed: it is kept with every label.")
        self.reviewer = name
        return JSONResponse({"reviewer": name})

    async def label(self, request: Request) -> Response:
        """The newest label, for a window that has been away."""
        self.queue.store.refresh()
        key = (request.path_params["id"], self.reviewer, self.scope.blind)
        return JSONResponse({"newer": newer_of(self.queue.store.newest.get(key))})

    async def save(self, request: Request) -> Response:
        """Append a label; when the answer is sent, it is on the disk."""
        item, given = request.path_params["id"], await body_of(request)
        if item not in self.queue.records.transcripts.entries:
            raise HTTPException(404, "There is no transcript with this id.")
        row = self.signed(given) | {"id": item, "blind": self.scope.blind}
        row |= {"seen": {}, "agreed": []} if self.scope.blind else {}
        try:
            saved = self.queue.store.save(labels.checked(row), base_of(given))
        except labels.Conflict as conflict:
            return JSONResponse({"newer": newer_of(conflict.newer)}, 409)
        self.saved.add(item)
        return JSONResponse({"revision": saved["revision"]})

    async def choose(self, request: Request) -> Response:
        number, given = self.pair_number(request), await body_of(request)
        row = pairs.pair_row(self.pairs[number - 1], self.reviewer, self.signed(given))
        try:
            saved = self.choices.save(row, base_of(given))
        except labels.Conflict as conflict:
            newer = conflict.newer
            shown = pairs.choice_of(newer) | {"revision": newer["revision"]} if newer else None
            return JSONResponse({"newer": shown}, 409)
        self.saved.add(str(number))
        return JSONResponse({"revision": saved["revision"]})

    def signed(self, given: dict[str, Any]) -> dict[str, Any]:
        """What was sent, if it was made under the name that is in use now."""
        label = given.get("label")
        if given.get("reviewer") != self.reviewer or not self.reviewer:
            raise HTTPException(400, f"Made under another name; now it is {self.reviewer}.")
        if not isinstance(label, dict):
            raise HTTPException(400, "label: an object is needed.")
        return label | {"reviewer": self.reviewer}

    def farewell(self) -> str:
        """What was done in this run, and what is left."""
        if self.pairs:
            self.choices.refresh()
            done = sum(bool(self.choices.newest.get((p.ids, self.reviewer))) for p in self.pairs)
            left, what = len(self.pairs) - done, "pair"
        else:
            self.queue.store.refresh()
            count = views.progress(self.queue, self.reviewer)
            left, what = count["total"] - count["done"], "transcript"
        many = "" if len(self.saved) == 1 else "s"
        return f"review: {len(self.saved)} {what}{many} labelled in this session, {left} to do"


def newer_of(row: labels.Row | None) -> dict[str, Any] | None:
    """A label as a page needs it to compare."""
    if row is None:
        return None
    label = labels.Label.of(row)
    hashes = {key: getattr(label, key) for key in ("transcript_hash", "rubric_hash")}
    return views.content(label) | hashes | {"revision": label.revision, "at": label.at}


def base_of(given: dict[str, Any]) -> int:
    base = given.get("base_revision")
    if not isinstance(base, int) or isinstance(base, bool) or not 0 <= base < 2**53:
        raise HTTPException(400, "base_revision: a whole number is needed.")
    return base


async def body_of(request: Request) -> dict[str, Any]:
    try:
        data = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON.") from None
    if not isinstance(data, dict):
        raise HTTPException(400, "The body is no object.")
    return data


async def static(request: Request) -> Response:
    """A file of ours, by its name in a list that was made at the start."""
    path = STATIC.get(request.path_params["name"])
    if path is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(path, media_type=KINDS[path.suffix])


async def told(request: Request, error: Exception) -> Response:
    """Our own errors as text: the page shows them and keeps what it could not save."""
    return said_as(request, str(error), 507 if isinstance(error, DiskStop | OSError) else 400)


async def missing(request: Request, error: Exception) -> Response:
    return said_as(request, getattr(error, "detail", ""), getattr(error, "status_code", 500))


def said_as(request: Request, text: str, status: int) -> Response:
    """An error for a script or for a person."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": text}, status)
    page = PLAIN.format(status=status, text=shown(text))
    return HTMLResponse(page, status)


async def too_large(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "too much at once"}, 413)


# ── starting and ending ───────────────────────────────────────────────────────────────────────────


def prepare(scope: Scope, reviewer: str, language: str, ab: Path | None, seed: int) -> Review:
    """Read everything once; FinetuneError where there is nothing to review."""
    found = pairs.load_pairs(scope.root, ab, seed) if ab else []
    review = Review(scope, labels.reviewer_name(reviewer), language, found)
    if not found:
        review.queue.refresh()
        for problem in review.queue.records.problems[:5]:
            print(plain(problem), file=sys.stderr)
        if not review.queue.items:
            raise FinetuneError(EMPTY)
        if not any(True for _ in review.queue.in_scope()):
            raise FinetuneError(nothing_in(scope))
    return review


def nothing_in(scope: Scope) -> str:
    if scope.batch:
        said = f"data/batches: no transcript of {scope.batch} is there yet"
        return f"{said}. Make them with: python scripts/generate.py"
    return "review: no transcript has a reason to be read. Draw some: finetune review --sample 20"


def listen(port: int, root: Path) -> socket.socket:
    """A socket on this machine only: the port asked for, else this project's own, else any."""
    own = FIRST_PORT + zlib.crc32(str(root.resolve()).encode()) % PORTS
    for choice in [port] if port else [own, 0]:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", choice))
            return made
        except OSError as error:
            made.close()
            said = f"port {choice}: {error.strerror}"
    raise FinetuneError(f"{said}. Choose another with --port, or leave it out.")


def serve(review: Review, made: socket.socket, announce: Callable[[str, int], None]) -> None:
    """Answer until Ctrl-C; `announce` gets the address with its one-time token."""
    port = made.getsockname()[1]
    guard, server = server_of(review, port)
    made.listen()
    with stops():
        announce(f"http://127.0.0.1:{port}/?token={guard.token}", port)
        server.run(sockets=[made])


def server_of(review: Review, port: int) -> tuple[Guard, uvicorn.Server]:
    """The guarded application in a server that logs nothing and trusts no proxy."""
    guard = Guard(review.app(), port)
    config = uvicorn.Config(
        guard, log_level="error", access_log=False, lifespan="off", ws="none", http="h11",
        loop="asyncio", proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=ENDS,
    )  # fmt: skip
    return guard, uvicorn.Server(config)


@contextlib.contextmanager
def stops() -> Iterator[None]:
    """Ctrl-C and a plain kill end the same way: quietly, with the last line said."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
