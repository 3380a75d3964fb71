"""The README's ten minutes with one local server, each command as it stands there, on a fake."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from children import CODE
from fakes.provider import FakeProvider, Reply, Request
from reviews import begin
from test_command import at_a_terminal, finetune

README = (CODE.parent / "README.md").read_text("utf-8")
SECTION = README.split("## Ten minutes with one local server")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)
SAID = "The second charge was marked, and the cartridge leaves the depot on Monday"


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    """Speaks OpenAI's protocol; as a judge it passes everything, with a quote that is there."""
    with FakeProvider() as fake:
        numbers = iter(range(10**6))
        fake.respond = lambda request: Reply(reply_to(request, next(numbers)))
        yield fake


def reply_to(request: Request, number: int) -> str:
    wanted = request.body.get("response_format")
    if wanted is None:
        return f"{SAID} at {number} o'clock. Which light do you see below the sink?"
    fields = wanted["json_schema"]["schema"]["properties"]
    answer = {"reasoning": "It is there.", "evidence": [{"exchange": 1, "quote": SAID}]}
    return json.dumps({name: answer | {"answer": "YES"} for name in fields})


def run(root: Path, line: str) -> "subprocess.CompletedProcess[str]":
    """A command of the section; what its text puts into the project's environment is this one's."""
    if line.startswith("finetune "):
        return finetune(root, *line.split()[1:])
    words = [sys.executable, *line.removeprefix(".venv/bin/python ").split()]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)


def configured(root: Path, block: str, url: str) -> None:
    """The YAML of the section in place of what stands at these roles."""
    path = root / "config/project.yaml"
    text, roles = path.read_text("utf-8"), block.replace("MODEL", "tiny")
    roles = roles.replace("preset: ollama", f'base_url: "{url}"')
    begin_, end = text.index("  user_sim:"), text.index("  evaluation_judges:")
    path.write_text(text[:begin_] + roles + text[end:], "utf-8")


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_the_ten_minutes_go_as_they_stand_there(tmp_path: Path, server: FakeProvider) -> None:
    (_, made), (kind, roles), (_, lines) = BLOCKS
    assert kind == "yaml"
    assert made.splitlines()[0] == "finetune init desk --example support-desk"
    assert run(tmp_path, made.splitlines()[0]).returncode == 0
    root = tmp_path / "desk"
    configured(root, roles, server.openai_url)
    codes: dict[str, Any] = {}
    for line in lines.strip().splitlines():
        if line.startswith("finetune waive"):
            words = ["waive", "baseline", "--reason", "a first look", "--by", "YOU"]
            assert line == 'finetune waive baseline --reason "a first look" --by YOU'
            codes[line] = at_a_terminal(root, "baseline", *words)[0]
        elif line.startswith("finetune review"):
            page = begin(root, *line.split()[2:], "--by", "Ann").enter()
            assert page.request("/").text.count("train-0000") >= 5
            codes[line] = page.end()[0]
        else:
            done = run(root, line)
            codes[line] = done.returncode
            assert done.returncode == 0 or line == CLOSED, f"{line}: {done.stdout}{done.stderr}"
    assert codes[CLOSED] == 1  # the baseline, which the text says
    assert set(codes.values()) == {0, 1}
    verdicts = (root / "data/assessments/combined.jsonl").read_text().splitlines()
    assert [json.loads(row)["state"] for row in verdicts] == ["passed"] * 5


CLOSED = "finetune gate --phase design"
