"""The Claude Code command line as a model: a scripted program stands for it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from calls import KEY, FastTime, ask
from infrastructure import ModelFailure, StopRun, get_backend

PROGRAM = """#!{python} -IS
import json, os, pathlib, sys, time
home = pathlib.Path(__file__).parent
plans = json.loads((home / "plans.json").read_text())
number = len(list(home.glob("seen-*")))
system = sys.argv[sys.argv.index("--system-prompt-file") + 1]
seen = {{"argv": sys.argv[1:], "stdin": sys.stdin.read(), "cwd": os.getcwd(), "pid": os.getpid()}}
seen |= {{"here": os.listdir(), "env": dict(os.environ), "system": open(system).read()}}
(home / "half").write_text(json.dumps(seen))
(home / "half").rename(home / f"seen-{{number}}")
plan = plans[min(number, len(plans) - 1)]
time.sleep(plan.get("sleep", 0))
sys.stderr.write(plan.get("err", ""))
sys.stdout.write(plan["out"] if isinstance(plan["out"], str) else json.dumps(plan["out"]))
sys.exit(plan.get("code", 0))
"""


class Verdict(BaseModel):
    answer: str


class Scripted:
    """The program, what it will answer, and what it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "claude"
        self.path.write_text(PROGRAM.format(python=sys.executable))
        self.path.chmod(0o700)
        self.plan({"out": answer()})

    def plan(self, *plans: dict[str, Any]) -> None:
        (self.folder / "plans.json").write_text(json.dumps(plans))

    def model(self, **options: Any) -> Any:
        passed = FastTime()
        usual = {"executable": str(self.path), "api_key": KEY, "tries": 2, "patience": 60.0}
        usual |= {"clock": passed.clock, "sleep": passed.sleep}
        return get_backend("claude", **{"model": "claude-model", **usual, **options})

    @property
    def seen(self) -> list[Any]:
        found = sorted(self.folder.glob("seen-*"), key=lambda path: int(path.name[5:]))
        return [json.loads(path.read_text()) for path in found]


def answer(result: str = "hi there", **more: Any) -> dict[str, Any]:
    """What the program prints when all went well."""
    usage = {"input_tokens": 4, "cache_read_input_tokens": 8, "output_tokens": 5}
    said = {"type": "result", "subtype": "success", "is_error": False, "result": result}
    said |= {"stop_reason": "end_turn", "usage": usage, "total_cost_usd": 0.25}
    return said | {"modelUsage": {"claude-model": {}}} | more


@pytest.fixture
def claude(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


# What the program is given


def test_the_prompt_goes_to_stdin_and_the_system_prompt_into_a_file(claude: Scripted) -> None:
    said = ask(claude.model(), "hello", system="Be kind.")
    seen = claude.seen[0]
    assert (seen["stdin"], seen["system"]) == ("hello", "Be kind.")
    assert not {"hello", "Be kind."} & set(seen["argv"])
    assert (said.content, said.cost, said.usage.input_tokens) == ("hi there", 0.25, 12)


def test_a_prompt_larger_than_any_command_line_arrives_whole(claude: Scripted) -> None:
    long = "a long transcript\n" * 20_000
    ask(claude.model(), long, system=long)
    assert (claude.seen[0]["stdin"], claude.seen[0]["system"]) == (long, long)


def test_it_works_in_an_empty_folder_outside_the_project_that_is_gone_afterwards(
    claude: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    ask(claude.model())
    here = Path(claude.seen[0]["cwd"])
    assert (claude.seen[0]["here"], here.exists()) == ([], False)
    assert not here.is_relative_to(tmp_path)


def test_settings_servers_sessions_and_tools_are_kept_out(claude: Scripted) -> None:
    ask(claude.model())
    argv = claude.seen[0]["argv"]
    assert argv[argv.index("--setting-sources") + 1] == ""
    assert argv[-2:] == ["--tools", ""]  # it swallows what follows it
    assert {"-p", "--strict-mcp-config", "--no-session-persistence"} <= set(argv)


def test_max_tokens_endpoint_and_key_are_in_the_environment_and_the_key_nowhere_else(
    claude: Scripted,
) -> None:
    ask(claude.model(base_url="http://127.0.0.1:9"), max_tokens=77)
    seen = claude.seen[0]
    assert seen["env"]["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "77"
    assert seen["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9"
    assert seen["env"]["ANTHROPIC_API_KEY"] == KEY
    assert KEY not in " ".join([*seen["argv"], seen["stdin"], seen["system"]])


def test_a_session_that_runs_us_does_not_reach_the_program(
    claude: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAUDECODE", "1")
    monkeypatch.setenv("CLAUDE_CODE_SESSION_ID", "outer")
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", "/its/own")
    ask(claude.model())
    env = claude.seen[0]["env"]
    assert not {"CLAUDECODE", "CLAUDE_CODE_SESSION_ID"} & set(env)
    assert env["CLAUDE_CONFIG_DIR"] == "/its/own"


def test_without_a_key_of_ours_the_program_uses_its_own_login(
    claude: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "its-own")
    assert ask(claude.model(api_key=None)).content == "hi there"
    env = claude.seen[0]["env"]
    assert ("ANTHROPIC_API_KEY" in env, env["CLAUDE_CODE_OAUTH_TOKEN"]) == (False, "its-own")


def test_a_conversation_is_one_prompt_with_its_roles(claude: Scripted) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    turns += [{"role": "user", "content": "three"}]
    asyncio.run(claude.model().chat(turns))
    stdin = claude.seen[0]["stdin"]
    assert stdin.index("[user]\none") < stdin.index("[assistant]\ntwo") < stdin.index("three")


def test_parameters_become_flags_before_those_that_keep_it_alone(claude: Scripted) -> None:
    ask(claude.model(parameters={"effort": "low"}))
    argv = claude.seen[0]["argv"]
    assert argv[argv.index("--effort") + 1] == "low"
    assert argv.index("--effort") < argv.index("--setting-sources")


# What it answers


def test_structured_output_is_taken_and_its_tool_use_is_no_tool_call(claude: Scripted) -> None:
    made = {"structured_output": {"answer": "YES"}, "stop_reason": "tool_use"}
    claude.plan({"out": answer("not this one", **made)})
    verdict = asyncio.run(claude.model().complete_structured("Judge it.", Verdict))
    assert verdict == Verdict(answer="YES")
    argv = claude.seen[0]["argv"]
    assert "answer" in json.loads(argv[argv.index("--json-schema") + 1])["properties"]


def test_another_model_that_answered_is_named(claude: Scripted) -> None:
    claude.plan({"out": answer(modelUsage={"claude-other": {}})})
    assert ask(claude.model()).notes == ("asked claude-model, answered by claude-other",)


def error(status: int | None, words: str = "it went wrong", **more: Any) -> dict[str, Any]:
    """On failure `subtype` still says success."""
    said = answer(words, is_error=True, api_error_status=status, api_error_type="some_error")
    return {"out": said, "code": 1} | more


BROKEN = {
    "an error under subtype success": (error(None), "overloaded"),
    "an error with exit code 0": (error(None, code=0), "overloaded"),
    "exit code 1 under a success": ({"out": answer(), "code": 1}, "overloaded"),
    "a server error": (error(529), "overloaded"),
    "no JSON": ({"out": "Segmentation fault", "code": 139}, "transport"),
    "no output at all": ({"out": "", "err": "it crashed", "code": 1}, "transport"),
    "JSON that is no result": ({"out": "[1]"}, "overloaded"),
    "an empty result": ({"out": answer(" ")}, "empty"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_answer_is_retried(how: str, claude: Scripted) -> None:
    claude.plan(BROKEN[how][0], {"out": answer()})
    assert ask(claude.model()).content == "hi there"
    assert len(claude.seen) == 2


@pytest.mark.parametrize("how", BROKEN)
def test_an_answer_that_stays_broken_is_a_typed_failure_and_never_a_reply(
    how: str, claude: Scripted
) -> None:
    plan, expected = BROKEN[how]
    claude.plan(plan)
    failure = ask(claude.model())
    assert (type(failure), failure.kind) == (ModelFailure, expected)
    assert len(claude.seen) == 2


def test_what_the_program_says_on_stderr_is_in_the_failure(claude: Scripted) -> None:
    claude.plan({"out": "", "err": "error: unknown option '--tools'", "code": 1})
    failure = str(ask(claude.model()))
    assert "exit code 1" in failure
    assert "unknown option '--tools'" in failure


def test_its_rate_limit_is_waited_for(claude: Scripted) -> None:
    claude.plan(error(429), error(429), error(429), {"out": answer()})
    backend = claude.model(tries=1)
    assert ask(backend).content == "hi there"
    assert (backend.totals.limited, backend.totals.failures) == (3, {})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Invalid API key"),
        (403, "not allowed"),
        (404, "no such model"),
        (None, "Not logged in. Please run /login"),
        (400, "Credit balance is too low"),
        (429, "You have reached your monthly API usage threshold"),
    ],
)
def test_a_final_error_stops_the_run_with_its_words(
    status: int | None, words: str, claude: Scripted
) -> None:
    claude.plan(error(status, words))
    stopped = ask(claude.model())
    assert isinstance(stopped, StopRun)
    assert (words in str(stopped), len(claude.seen)) == (True, 1)


# How the real program reports them, at 2.1.197: as an error, and with what it has cost.
TOO_LONG = "API Error: Claude's response exceeded the 77 output token maximum."
POLICY = "API Error: Claude Code is unable to respond to this request, which appears to violate"
TOLD = {
    "length": answer(TOO_LONG, is_error=True, stop_reason="stop_sequence"),
    "refusal": answer(POLICY, is_error=True, stop_reason="refusal"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_cut_or_refused_answer_is_a_paid_failure_and_not_asked_for_again(
    kind: str, claude: Scripted
) -> None:
    claude.plan({"out": TOLD[kind], "code": 1})
    failure = ask(claude.model(), max_tokens=77)
    assert (failure.kind, failure.cost, len(claude.seen)) == (kind, 0.25, 1)


def test_the_tail_of_a_cut_answer_is_no_answer(claude: Scripted) -> None:
    """After a cut the program asks on by itself and shows only what came last."""
    usage = {"input_tokens": 40, "output_tokens": 77 + 5}
    claude.plan({"out": answer("and they lived happily.", usage=usage)})
    failure = ask(claude.model(), max_tokens=77)
    assert isinstance(failure, ModelFailure)
    assert failure.kind == "length"


def test_a_program_that_is_not_there_is_an_error_that_names_it() -> None:
    missing = ask(get_backend("claude:m", executable="claude-that-nobody-has"))
    assert isinstance(missing, StopRun)
    assert "`claude-that-nobody-has`" in str(missing)


# It never outlives its call


def is_gone(pid: int) -> bool:
    """No such process, or one that only waits to be buried."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()[:1] in ("", "Z")


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 5
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_a_late_program_is_killed_at_its_deadline(claude: Scripted) -> None:
    claude.plan({"out": answer(), "sleep": 60})
    started = time.monotonic()
    assert ask(claude.model(timeout=0.6, attempt_timeout=0.3)).kind == "timeout"
    assert time.monotonic() - started < 1.6
    assert all(is_gone(seen["pid"]) for seen in claude.seen)


def test_a_program_is_killed_with_its_cancelled_call(claude: Scripted) -> None:
    claude.plan({"out": answer(), "sleep": 60})

    async def cancel() -> None:
        call = asyncio.ensure_future(claude.model().complete("hello"))
        await asyncio.to_thread(wait_for, lambda: claude.seen)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(cancel())
    assert is_gone(claude.seen[0]["pid"])
    assert not Path(claude.seen[0]["cwd"]).exists()


GRANDCHILD = """#!/bin/sh
sleep 60 &
echo $! > "{folder}/pid"
wait
"""


def test_what_the_program_started_is_killed_with_it(claude: Scripted) -> None:
    claude.path.write_text(GRANDCHILD.format(folder=claude.folder))
    assert ask(claude.model(timeout=0.4, tries=1)).kind == "timeout"
    pid = int((claude.folder / "pid").read_text())
    assert wait_for(lambda: is_gone(pid))
