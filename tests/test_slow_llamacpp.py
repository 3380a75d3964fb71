"""A real GGUF, made on the spot, through llama-cpp-python."""

import asyncio
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

import slow_parts
from infrastructure import Journal, ModelFailure, get_backend
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow
GREEDY = {"temperature": 0.0, "seed": 1}


class Verdict(BaseModel):
    ok: bool


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    slow_parts.require("llamacpp")
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_answers_in_this_process_and_costs_nothing(gguf: Path) -> None:
    backend = get_backend(f"llamacpp:{gguf}", n_ctx=256, parameters=GREEDY)
    with pytest.raises(ModelFailure) as cut:
        asyncio.run(backend.complete("hello", max_tokens=8))
    assert cut.value.kind == "length"
    assert cut.value.usage.output_tokens > 0
    assert cut.value.cost == 0.0


def test_the_same_question_gets_the_same_greedy_answer_through_one_slot(gguf: Path) -> None:
    backend = get_backend(f"llamacpp:{gguf}", n_ctx=256, parameters=GREEDY, concurrency=8)

    async def ask() -> str:
        with pytest.raises(ModelFailure) as cut:
            await backend.complete("hello", max_tokens=6)
        return cut.value.text

    async def several() -> list[str]:
        return await asyncio.gather(*(ask() for _ in range(4)))

    answers = asyncio.run(several())
    assert len(set(answers)) == 1
    assert backend.o.concurrency == 1


def test_a_late_call_ends_in_time_and_leaves_the_engine_to_the_next(gguf: Path) -> None:
    backend = get_backend(f"llamacpp:{gguf}", n_ctx=512, parameters=GREEDY, timeout=0.15, tries=1)

    async def both() -> float:
        await backend._live()  # the file is loaded outside the clock
        started = time.monotonic()
        with pytest.raises(ModelFailure):
            await backend.complete("x" * 200, max_tokens=300)
        return time.monotonic() - started

    assert asyncio.run(both()) < 5
    with pytest.raises(ModelFailure) as cut:
        asyncio.run(get_backend(f"llamacpp:{gguf}", n_ctx=256).complete("again", max_tokens=4))
    assert cut.value.kind == "length"


def test_json_is_constrained_by_the_grammar_of_the_schema(gguf: Path) -> None:
    backend = get_backend(f"llamacpp:{gguf}", n_ctx=512, parameters=GREEDY)
    verdict = asyncio.run(backend.complete_structured("ok?", Verdict, max_tokens=60))
    assert isinstance(verdict, Verdict) or verdict.kind == "length"


def test_another_file_under_the_same_name_is_another_model(gguf: Path, tmp_path: Path) -> None:
    first = get_backend(f"llamacpp:{gguf}")._identity()
    other = get_backend(f"llamacpp:{write_tiny_gguf(tmp_path / 'tiny.gguf', seed=1)}")._identity()
    assert first != other


def test_an_answered_call_is_replayed_without_the_engine(gguf: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "calls.jsonl") as journal:
        backend = get_backend(f"llamacpp:{gguf}", n_ctx=256, parameters=GREEDY, journal=journal)
        for _ in range(2):
            with pytest.raises(ModelFailure):
                asyncio.run(backend.complete("hello", max_tokens=4, scope="t"))
        assert (backend.totals.calls, backend.totals.replayed) == (1, 1)
