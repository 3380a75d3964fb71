"""Scripted judges, a bench for them, and transcripts to judge."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import judging
from children import CODE
from infrastructure import Call, CompletionResult, Fault, LLMBackend, Options, Usage
from judging import Bench, Row, Source
from rubrics import MEMBERS, WEIGHTS, rubric, rubric_text
from settings import Judging, load_prompt

NAMES = ("C1", "C2", "D1", "G1")
TEXT = rubric_text(MEMBERS, WEIGHTS, no_na=["C2", "G1"])
BENCH = Bench(rubric(TEXT), load_prompt(CODE / "templates", "assessor"), "support", Judging())
PAIRS = (
    ("My parcel is late.", "It left the depot today, and I can see it in Leeds."),
    ("And the invoice?", "Attached. Did the parcel come?"),
    ("No.", "Then I send another one."),
)
TRUE = {"exchange": 1, "quote": "it left the depot today"}
FALSE = {"exchange": 1, "quote": "I hate all customers"}


def source(pairs: Any = PAIRS, item: str = "t1", **more: Any) -> Source:
    return Source(item, f"data/raw/transcripts/b/{item}.json", tuple(pairs),
                  judging.words_hash(pairs), **more)  # fmt: skip


def bench(text: str = TEXT, **rules: Any) -> Bench:
    return replace(BENCH, rubric=rubric(text), judging=Judging(**rules))


def answer(value: str = "YES", *evidence: Mapping[str, Any]) -> Row:
    return {"reasoning": "because", "evidence": list(evidence or (TRUE,)), "answer": value}


def answers(**changed: Any) -> dict[str, Any]:
    """All YES with true evidence, but for these: an answer's word, or a whole answer."""
    given = {name: answer() for name in NAMES}
    for name, value in changed.items():
        given[name] = answer(value) if isinstance(value, str) else value
    return given


class Scripted(LLMBackend):
    """A judge that says what a function of the call says: text, or data as JSON, or a fault."""

    kind, free = "scripted", True

    def __init__(self, says: Callable[[Call], Any]) -> None:
        super().__init__("judge", Options())
        self.says, self.calls = says, list[Call]()

    async def _call(self, call: Call, live: Any) -> CompletionResult:
        self.calls.append(call)
        said = self.says(call)
        if isinstance(said, Fault):
            raise said
        text = said if isinstance(said, str) else json.dumps(said)
        stop = "length" if text.endswith("<cut>") else "stop"
        return CompletionResult(text, "judge", Usage(10, 5), stop)


def asked(call: Call) -> list[str]:
    """The criteria that this call asks about."""
    assert call.schema is not None
    return list(call.schema.model_fields)


def only(call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in asked(call)}


def always(**changed: Any) -> Scripted:
    """A judge that gives the same answers whenever it is asked."""
    given = answers(**changed)
    return Scripted(lambda call: only(call, given))


def verdict(judge: LLMBackend, about: Source | None = None, on: Bench = BENCH, **how: Any) -> Row:
    """What one judge says about a transcript."""
    return asyncio.run(judging.judge(about or source(), "one", judge, on, **how))


def together(*judges: LLMBackend, about: Source | None = None, on: Bench = BENCH) -> Row:
    """What several judges come to."""
    rows = {f"j{n}": verdict(judge, about, on) for n, judge in enumerate(judges)}
    return judging.combine(about or source(), rows, on)


def outside(prompt: str) -> str:
    """What of a prompt stands outside the marks: all that is meant for the judge."""
    word = re.search(r"^<<(\w+) begin>>$", prompt, re.MULTILINE)
    assert word, "the prompt marks no conversation"
    marked = rf"<<{word[1]} (?:begin|quote)>>.*?<<{word[1]} end(?: of quote)?>>"
    return re.sub(marked, "", prompt, flags=re.DOTALL)
