"""A real Chromium without a window, driven through its DevTools protocol.

    with Browser() as browser:
        page = browser.open("http://127.0.0.1:8000/")
        page.press("j")
        assert page.eval("document.title") == "..."

Needs `chromium` on the PATH and aiohttp. Every wait ends after a while with what it waited for.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu",
         "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
         "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio")  # fmt: skip
PATIENCE = 20.0  # seconds
CODES = {"Enter": (13, "\r"), " ": (32, " "), "Escape": (27, ""), "Tab": (9, "")}
CODES |= {"ArrowRight": (39, ""), "ArrowLeft": (37, ""), "ArrowDown": (40, "")}


def program() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with a profile of its own, gone when the block ends."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        self.loop = asyncio.new_event_loop()
        flags = [*FLAGS, f"--user-data-dir={self.folder}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            [program() or "chromium", *flags, "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.number = 0
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self.process.terminate()
        self.process.wait()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE + 10))

    async def _connect(self) -> None:
        place, end = Path(self.folder) / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (place.exists() and len(place.read_text().splitlines()) == 2):
            assert time.monotonic() < end, "Chromium did not start"
            await asyncio.sleep(0.05)
        port, path = place.read_text().splitlines()
        self.session = aiohttp.ClientSession()
        address = f"ws://127.0.0.1:{port}{path}"
        self.wire = await self.session.ws_connect(address, max_msg_size=100_000_000)
        self.reader = asyncio.ensure_future(self._read())

    async def _close(self) -> None:
        self.reader.cancel()
        await self.wire.close()
        await self.session.close()

    async def _read(self) -> None:
        async for message in self.wire:
            data = json.loads(message.data)
            waiting = self.answers.pop(data.get("id", -1), None)
            if waiting and not waiting.done():
                waiting.set_result(data)
            elif "method" in data:
                self.events.append(data)

    def send(self, method: str, session: str = "", **parameters: Any) -> Any:
        return self.run(self._send(method, session, parameters))

    async def _send(self, method: str, session: str, parameters: dict[str, Any]) -> Any:
        self.number += 1
        waiting = self.answers[self.number] = self.loop.create_future()
        said = {"id": self.number, "method": method, "params": parameters}
        await self.wire.send_json(said | ({"sessionId": session} if session else {}))
        answer = await waiting
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> "Page":
        """A new window of this browser at an address."""
        target = self.send("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        found = self.send("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, found["sessionId"], target)
        for part in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{part}.enable")
        page.size(width, height, dark)
        page.go(url)
        return page


class Page:
    """One window."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def send(self, method: str, **parameters: Any) -> Any:
        return self.browser.send(method, self.session, **parameters)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def go(self, url: str) -> None:
        """Open an address, or the same one again, and wait for the new page."""
        self.eval("window.before_this = true")
        self.send("Page.navigate", url=url)
        self.until("!window.before_this && document.readyState === 'complete'")

    def reload(self) -> None:
        self.go(self.eval("location.href"))

    def eval(self, code: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=code, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in answer, f"{code}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, code: str) -> Any:
        """Wait until an expression is true."""
        end, last = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            try:
                if last := self.eval(f"Boolean({code})"):
                    return last
            except AssertionError as error:  # between two pages there is nothing to ask
                last = error
            time.sleep(0.03)
        thrown = [event["exceptionDetails"] for event in self.events("Runtime.exceptionThrown")]
        said = f"never true: {code} (last: {last}, thrown: {thrown})"
        raise AssertionError(f"{said}, at {self.text()[:2000]}")

    def text(self) -> str:
        return str(self.eval("`${location.href} ${document.body.innerText}`"))

    def press(self, *keys: str) -> None:
        """Key presses as a keyboard sends them."""
        for key in keys:
            code, text = CODES.get(key, (ord(key[0].upper()), key))
            name = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key
            event = {"key": key, "code": name, "windowsVirtualKeyCode": code}
            event["modifiers"] = 8 if len(key) == 1 and key.isupper() else 0
            down = event | ({"text": text} if text else {})
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
            self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def saved(self) -> None:
        """Wait until the page says that everything is on the server's disk."""
        self.until("document.getElementById('saved').textContent === 'Saved'")

    def shot(self, path: Path, full: bool = False) -> None:
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(answer["data"]))

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """What the browser reported of this window so far."""
        return [
            event["params"] for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] in methods
        ]  # fmt: skip
