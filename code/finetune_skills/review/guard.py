"""Who may talk to the review server: one browser on this machine, and only our own pages.

The address that the terminal shows carries a token that works once. It is swapped for a cookie.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 1_000_000  # bytes of one request
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
CLOSED = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>finetune review</title>
<h1>This page is closed</h1>
<p>{why}</p>
<p>Labels that are not saved yet stay in this browser and are sent as soon as the page is open.</p>
<p><a href="/">Try again</a></p></html>"""


@dataclass
class Guard:
    """Wraps the application: checks host, cookie, origin and size before anything else runs."""

    app: ASGIApp
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    used: bool = False

    @property
    def cookie_name(self) -> str:
        """Cookies know no port: two projects on one machine must not share a name."""
        return f"finetune_review_{self.port}"

    @property
    def hosts(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = self.refusal(Request(scope))
        limited = Limited(receive)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (answer or self.app)(scope, limited, guarded)

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that must not get further; None lets it through."""
        if request.headers.get("host", "") not in self.hosts:
            return refused("This server answers only to its own address.")
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/" and request.method == "GET":
            return RedirectResponse("/", 303) if self.known(request.headers) else self.swap(given)
        if not self.known(request.headers):
            return refused("Open the address that the terminal shows. It works once per start.")
        if request.method not in ("GET", "HEAD") and not self.ours(request.headers):
            return refused("This request did not come from our own page.")
        if not size_of(request.headers) <= LARGEST_BODY:
            return Response(f"more than {LARGEST_BODY:,} bytes", 413)
        return None

    def swap(self, given: str) -> Response:
        """The cookie for the token, once, and a redirect to an address without it."""
        if self.used or not secrets.compare_digest(given.encode(), self.token.encode()):
            return refused(
                "This address was used before. Each one works once: run the command again."
            )
        self.used = True
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie_name, self.cookie, httponly=True, samesite="strict", path="/")
        return answer

    def known(self, headers: Headers) -> bool:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        given = cookies.get(self.cookie_name)
        return given is not None and secrets.compare_digest(
            given.value.encode(), self.cookie.encode()
        )

    def ours(self, headers: Headers) -> bool:
        """A change has to come from a page of this very address, as JSON."""
        origin, kind = headers.get("origin"), headers.get("content-type", "")
        same = origin == f"http://{headers.get('host')}"
        return same and kind.partition(";")[0].strip() == "application/json"


def refused(why: str) -> Response:
    return HTMLResponse(CLOSED.format(why=why), 403)


def size_of(headers: Headers) -> float:
    """The announced size; what is no number is too large."""
    said = headers.get("content-length", "0")
    return int(said) if said.isdecimal() and len(said) < 19 else float("inf")


class TooLarge(Exception):
    """A body grew beyond what was announced or allowed."""


@dataclass
class Limited:
    """Receives a body up to our limit, whatever its header said."""

    receive: Receive
    size: int = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.size += len(message.get("body", b""))
        if self.size > LARGEST_BODY:
            raise TooLarge
        return message
