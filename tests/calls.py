"""Models of every provider, pointed at the fake one, with time that passes at once."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from fakes.provider import FakeProvider
from infrastructure import CompletionResult, FinetuneError, LLMBackend, get_backend

os.environ["NO_PROXY"] = "*"  # the fake is on this machine, whatever the machine is set up for

WIRED = ("local", "openai", "anthropic", "google")  # the kinds that speak HTTP
KEY = "sk-canary-4f6b1d9a8c7e2053"
HELLO = [{"role": "user", "content": "hello"}]
PRICE = {"input": 100.0, "output": 1000.0}  # dollars per million tokens


class FastTime:
    """A clock, and a sleep that moves it and returns at once."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, list[float]()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def model(kind: str, fake: FakeProvider, time: FastTime | None = None, **options: Any) -> Any:
    """A backend of this kind whose provider is the fake; its waits take no time."""
    time = time or FastTime()
    url = fake.openai_url if kind in ("local", "openai") else fake.url
    wired = {"base_url": url, "api_key": KEY, "clock": time.clock, "sleep": time.sleep}
    return get_backend(kind, **{"model": "fake-model", **wired, **options})


def ask(backend: LLMBackend, prompt: str = "hello", **how: Any) -> CompletionResult | FinetuneError:
    """What one call gives or raises, in an event loop of its own."""
    return ask_all(backend, [prompt], **how)[0]


def ask_all(
    backend: LLMBackend, prompts: Sequence[str], **how: Any
) -> list[CompletionResult | FinetuneError]:
    """The same for several calls at once."""

    async def together() -> list[Any]:
        calls = (backend.complete(prompt, **how) for prompt in prompts)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(together())
