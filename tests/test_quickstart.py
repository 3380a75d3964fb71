"""The README's quickstart, run as it is written, and every name that the kernel promises."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import infrastructure
from children import CODE, child

README = CODE.parent / "README.md"
KERNEL = CODE / "infrastructure.py"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder with nothing but the kernel in it."""
    shutil.copy(KERNEL, tmp_path)
    return tmp_path


def python(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Python as a reader would start it in this folder: nothing of ours on its path."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


# The README's quickstart


def quickstart() -> dict[str, str]:
    """The section's Python blocks by the file names that its text gives them, in order."""
    section = README.read_text("utf-8").split("## Quickstart")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = re.findall(r"Save .*?`(\w+\.py)`", section)
    return dict(zip(names, blocks, strict=True))


def test_the_quickstart_runs_as_written_and_its_second_run_makes_no_call(empty: Path) -> None:
    for name, text in quickstart().items():
        (empty / name).write_text(text)
    first, second = (python(empty, "quickstart.py") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "q1 You said: Where is my parcel? " in first.stdout
    assert second.stdout == "2 answers were already there\n"


CONTRACT = """
import asyncio
from pydantic import BaseModel
from infrastructure import get_backend, Journal, run_all, append_checkpoint, load_checkpoint
from infrastructure import load_checkpoint_results, count_tokens, count_messages_tokens
from infrastructure import find_max_exchanges_under_limit, get_slice_points

class Verdict(BaseModel):
    answer: str

async def main():
    with Journal("data/journal/demo.jsonl") as journal:
        backend = get_backend("python", model="model:reply", journal=journal)
        said = await backend.complete("Say hello.", system="Be kind.", max_tokens=50, scope="a")
        print(backend.name, said.content, said.model, said.stop_reason, said.cost)
        print(said.usage.input_tokens > 0)
        print(await backend.complete_structured("Judge it.", Verdict, system=None, scope="b"))
        chat = await backend.chat([{"role": "user", "content": "hi"}], scope="c")

        async def work(item):
            append_checkpoint("data/done.jsonl", {"id": item, "said": chat.content})

        report = await run_all(["x", "y"], work)
        print(len(report.done), report.exit_code)

asyncio.run(main())
done = load_checkpoint_results("data/done.jsonl")
print(sorted(load_checkpoint("data/done.jsonl")), done["x"]["said"])
count = count_messages_tokens([{"role": "user", "content": "hi"}])
print(0 < count_tokens("hello") < count <= count.upper)
print(find_max_exchanges_under_limit([("a", "b")], "system", 1000), get_slice_points(3, "t"))
"""

MODEL = """
def reply(messages, *, schema=None, scope=""):
    return '{"answer": "YES"}' if schema else "hello from " + scope
"""


def test_the_calls_of_the_contract_work_as_it_writes_them(empty: Path) -> None:
    (empty / "model.py").write_text(MODEL)
    done = python(empty, "-c", CONTRACT)
    assert done.stdout.splitlines() == [
        "python:model:reply hello from a model:reply stop 0.0",
        "True",
        "answer='YES'",
        "2 0",
        "['x', 'y'] hello from c",
        "True",
        "1 [3]",
    ], done.stderr


# Promised names

PROMISED = {
    "get_backend": "kind model **options",
    "LLMBackend.complete": "self prompt system max_tokens",
    "LLMBackend.complete_structured": "self prompt response_model system",
    "LLMBackend.chat": "self messages",
    "run_all": "items work",
    "append_checkpoint": "path record",
    "load_checkpoint": "path",
    "load_checkpoint_results": "path",
    "count_tokens": "text",
    "count_messages_tokens": "messages",
    "find_max_exchanges_under_limit": "exchanges system_prompt max_tokens",
    "get_slice_points": "total_turns transcript_id first=3 min_gap=2 max_gap=5",
    "load_rubric": "path draft=False",
    "compute_category_score": "answers criteria_ids na_invalid",
    "compute_weighted_score": "category_scores weights",
    "compute_length_stats": "pairs",
    "score_answers": "rubric answers reasonings id=",
    "combine_verdicts": "rubric verdicts rule=auto",
    "project_root": "",
    "require_gate": "name",
}


@pytest.mark.parametrize(("name", "parameters"), PROMISED.items())
def test_a_promised_function_takes_the_promised_parameters(name: str, parameters: str) -> None:
    found: object = infrastructure
    for part in name.split("."):
        found = getattr(found, part)
    known = inspect.signature(found).parameters  # type: ignore[arg-type]
    for wanted in parameters.split():
        parameter, _, default = wanted.lstrip("*").partition("=")
        assert parameter in known
        assert "=" not in wanted or str(known[parameter].default) == default


FIELDS = {
    "CompletionResult": "content model usage stop_reason cost",
    "AssessmentResult": "id passed score threshold category_scores answers reasonings "
    "failed_checks safety_gate_failed error_count",
    "Rubric": "categories criteria safety_gates pass_threshold",
    "TokenCount": "method exactness upper",
    "ModelFailure": "kind scope",
}


@pytest.mark.parametrize(("name", "promised"), FIELDS.items())
def test_a_promised_record_has_the_promised_fields(name: str, promised: str) -> None:
    record = getattr(infrastructure, name)
    known = {*getattr(record, "__annotations__", {}), *inspect.signature(record).parameters}
    assert set(promised.split()) - {"scope"} <= known


def test_every_kind_of_model_is_there_and_errors_are_of_one_family() -> None:
    kinds = {"openai", "anthropic", "google", "claude", "local", "llamacpp", "python"}
    assert set(infrastructure.KINDS) == kinds
    for error in (infrastructure.StopRun, infrastructure.DiskStop, infrastructure.ModelFailure):
        assert issubclass(error, infrastructure.FinetuneError)


# Importing it

ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
WANTED = set("openai anthropic google aiohttp tiktoken llama_cpp genai_prices tokenizers".split())
WANTED |= set("jinja2 pydantic tenacity yaml numpy torch transformers requests httpx".split())
asked, touched = [], []

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in WANTED:
            asked.append(name)
            raise ImportError(name)

def watch(event, arguments):
    kind = event.split(".")[0]
    if kind in ("socket", "subprocess") or event in ("os.system", "os.mkdir", "os.remove"):
        touched.append(event)
    if event == "open" and isinstance(arguments[0], str):
        touched.append(arguments[0])

sys.meta_path.insert(0, Refuse())
sys.addaudithook(watch)
import infrastructure
import json
print(json.dumps({"asked": asked, "touched": touched, "python": [sys.base_prefix, sys.prefix]}))
"""


def test_importing_it_needs_no_package_and_opens_no_file_and_no_socket() -> None:
    """Started without site-packages; the files that Python reads in order to import are its own."""
    done = child("-I", "-S", "-B", "-c", ALONE, CODE)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["asked"] == []
    own = (str(KERNEL), str(CODE / "__pycache__" / "infrastructure."), *seen["python"])
    assert [path for path in seen["touched"] if not path.startswith(own)] == []


def test_importing_it_starts_no_thread_and_reads_no_key() -> None:
    code = "import os, threading; os.environ = None; import infrastructure"
    done = child("-c", f"{code}; print(threading.active_count())")
    assert (done.stdout, done.stderr) == ("1\n", "")
