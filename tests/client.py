"""The real Claude Code client as tests and evals drive it.

It has a home of its own, reaches only the fake provider on this machine, and its model is scripted:
a play is a list of turns, each what the model says or one tool call, `{"Bash": {"command": "ls"}}`.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slow_parts
from calls import KEY
from fakes.provider import FakeProvider, Reply, Request

Turn = str | Mapping[str, Any]
Event = dict[str, Any]
QUIET: tuple[str, ...] = (
    "DISABLE_AUTOUPDATER",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "IS_SANDBOX",
)
QUIET += ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "OPENCODE_DISABLE_AUTOUPDATE")
QUIET += ("OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_DEFAULT_PLUGINS")
STREAM = ("--output-format", "stream-json", "--verbose", "--include-hook-events")


def start(
    folder: Path, home: Path, fake: FakeProvider, turns: Sequence[Turn], *words: str,
    part: str = "claude",
) -> list[Event]:  # fmt: skip
    """One session in a folder, in which the model does each turn; gives the client's events."""
    fake.respond = lambda request: played(request, turns)
    command = [slow_parts.client(part), "-p", "go", *STREAM]
    done = run([*command, "--permission-mode", "bypassPermissions", *words], folder, home, fake.url)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(
    command: Sequence[str], folder: Path, home: Path, url: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(home, url), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def environment(home: Path, url: str) -> dict[str, str]:
    """A home of its own, no network but the fake; nothing of this machine's settings."""
    (home / "tmp").mkdir(exist_ok=True, parents=True)
    quiet = dict.fromkeys(QUIET, "1")
    own = {"HOME": f"{home}/home", "CLAUDE_CONFIG_DIR": f"{home}/home/.claude"}
    own |= {"TMPDIR": f"{home}/tmp", "CLAUDE_CODE_TMPDIR": f"{home}/tmp", "TERM": "dumb"}
    own |= {"PATH": f"{home}/bin:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    own |= {"XDG_CACHE_HOME": f"{home}/home/.cache", "ANTHROPIC_API_KEY": KEY}
    return own | quiet | {"ANTHROPIC_BASE_URL": url}


# ── the scripted model ────────────────────────────────────────────────────────────────────────────


def played(request: Request, turns: Sequence[Turn]) -> Reply:
    """The next turn; after the last one, and for side questions, a word."""
    said = len(tool_results(request))
    turn = turns[said] if said < len(turns) and request.body.get("tools") else "Done."
    if isinstance(turn, str):
        return streamed([{"type": "text", "text": turn}], "end_turn")
    [(tool, values)] = turn.items()
    call = {"type": "tool_use", "id": f"toolu_{said}", "name": tool, "input": values}
    return streamed([call], "tool_use")


def bash(*commands: str) -> list[Turn]:
    return [{"Bash": {"command": command, "description": "as asked"}} for command in commands]


def streamed(blocks: list[dict[str, Any]], stop: str, tokens: int = 7) -> Reply:
    """A message of Anthropic's as the stream of events that the program asks for."""
    usage = {"input_tokens": 12, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
    }
    message |= {"content": [], "stop_reason": None, "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"usage": usage | {"output_tokens": 1}}}
    ]
    for index, block in enumerate(blocks):
        tool = block["type"] == "tool_use"
        empty: dict[str, Any] = {"input": {}} if tool else {"text": ""}
        text = {"type": "text_delta", "text": block.get("text", "")}
        made = {"type": "input_json_delta", "partial_json": json.dumps(block.get("input"))}
        events += [{"type": "content_block_start", "index": index, "content_block": block | empty}]
        events += [{"type": "content_block_delta", "index": index, "delta": made if tool else text}]
        events += [{"type": "content_block_stop", "index": index}]
    ended = {"stop_reason": stop, "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": ended, "usage": usage | {"output_tokens": tokens}}
    ]
    lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    body = "".join([*lines, 'event: message_stop\ndata: {"type": "message_stop"}\n\n'])
    return Reply(body=body.encode(), headers={"content-type": "text/event-stream"})


# ── what the model was sent ───────────────────────────────────────────────────────────────────────


def asked(fake: FakeProvider) -> list[Request]:
    return [request for request in fake.requests if request.method == "POST"]


def results(fake: FakeProvider) -> list[tuple[bool, str]]:
    """Of the last request: for each tool call whether it failed, and what the model reads."""
    blocks = tool_results(asked(fake)[-1])
    return [(bool(block.get("is_error")), json.dumps(block["content"])) for block in blocks]


def tool_results(request: Request) -> list[dict[str, Any]]:
    return [block for block in blocks(request) if block["type"] == "tool_result"]


def blocks(request: Request) -> list[dict[str, Any]]:
    contents = [message["content"] for message in request.body.get("messages", [])]
    return [block for content in contents if isinstance(content, list) for block in content]


def texts(request: Request) -> list[str]:
    """Every text that the model reads in this request, one per message or block."""
    plain = [m["content"] for m in request.body["messages"] if isinstance(m["content"], str)]
    return plain + [block["text"] for block in blocks(request) if block["type"] == "text"]


def started(events: Sequence[Event]) -> str:
    """What hooks of a session's start have put out."""
    of = [event for event in events if event.get("hook_event") == "SessionStart"]
    return "".join(str(event.get("stdout") or "") for event in of)
