"""A function of the project as a model, and no other code."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from calls import HELLO, ask, ask_all
from infrastructure import FinetuneError, ModelFailure, get_backend, run_all

PLAIN = """
import asyncio, json

def reply(messages, *, schema=None, scope=""):
    return json.dumps({"heard": messages[-1]["content"], "schema": bool(schema), "scope": scope})

async def later(messages, *, schema=None, scope=""):
    await asyncio.sleep(0)
    return reply(messages, schema=schema, scope=scope)

def nothing(messages, *, schema=None, scope=""):
    return None

def broken(messages, *, schema=None, scope=""):
    return {}["missing"]

NUMBER = 7
"""


class Heard(BaseModel):
    heard: str
    scope: str


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with modules, inside a folder that has modules, too."""
    root = tmp_path / "project"
    for folder in (root / "fakes", root / "package", tmp_path / "outside"):
        folder.mkdir(parents=True)
    for path in ("project/plain.py", "project/fakes/judge.py", "project/package/__init__.py"):
        (tmp_path / path).write_text(PLAIN)
    (tmp_path / "outside" / "plain.py").write_text(PLAIN)
    return root


@pytest.mark.parametrize(
    "spec", ["plain:reply", "plain:later", "fakes.judge:reply", "package:later"]
)
def test_a_function_of_the_project_answers_whether_or_not_it_is_async(
    spec: str, project: Path
) -> None:
    said = ask(get_backend(f"python:{spec}", root=project), scope="judge/t07")
    assert Heard.model_validate_json(said.content) == Heard(heard="hello", scope="judge/t07")
    assert (said.cost, said.usage.estimated, said.notes) == (0, True, ())


def test_it_is_given_the_schema_and_its_text_becomes_an_instance(project: Path) -> None:
    backend = get_backend("python:plain:reply", root=project)
    heard = asyncio.run(backend.complete_structured("Judge it.", Heard, scope="s"))
    assert heard == Heard(heard="Judge it.", scope="s")
    assert '"schema": true' in asyncio.run(backend.chat(HELLO, schema=Heard)).content


OUTSIDE = ["outside.plain:reply", "..outside.plain:reply", "/tmp/plain:reply", "os.path:join"]
OUTSIDE += ["os:getcwd", "linked:reply", "folder.plain:reply", "plain", "plain:", "plain:a-b"]


@pytest.mark.parametrize("spec", OUTSIDE)
def test_only_a_module_under_the_project_root_is_loaded(spec: str, project: Path) -> None:
    (project / "linked.py").symlink_to(project.parent / "outside" / "plain.py")
    (project / "folder").symlink_to(project.parent / "outside")
    with pytest.raises(FinetuneError, match="module"):
        get_backend(f"python:{spec}", root=project)


def test_a_function_that_is_not_there_is_an_error_that_names_file_and_function(
    project: Path,
) -> None:
    missing = ask(get_backend("python:plain:replay", root=project))
    assert isinstance(missing, FinetuneError)
    assert "plain.py has no function `replay`" in str(missing)
    assert "`NUMBER`" in str(ask(get_backend("python:plain:NUMBER", root=project)))


def test_a_model_that_returns_no_text_is_refused(project: Path) -> None:
    refused = ask(get_backend("python:plain:nothing", root=project))
    assert isinstance(refused, FinetuneError)
    assert not isinstance(refused, ModelFailure)
    assert "NoneType" in str(refused)


def test_a_bug_in_it_surfaces_as_itself_and_is_not_retried(project: Path) -> None:
    backend = get_backend("python:plain:broken", root=project)
    with pytest.raises(KeyError, match="missing"):
        asyncio.run(backend.complete("hello"))
    assert backend.totals.failures == {}


RAISES = """
import json

def reply(messages, *, schema=None, scope=""):
    raise {error}
"""


OWN = ["ValueError('mine')", "RuntimeError('mine')", "TypeError('mine')", "OSError('mine')"]
OWN += ["json.JSONDecodeError('mine', '', 0)"]


@pytest.mark.parametrize("error", OWN)
def test_its_own_exceptions_reach_the_report_of_a_run_unchanged(error: str, project: Path) -> None:
    (project / "raises.py").write_text(RAISES.format(error=error))
    backend = get_backend("python:raises:reply", root=project, parameters={"seed": 1})
    report = asyncio.run(run_all(["a"], backend.complete, progress=False))
    found = report.failed[0][1]
    assert (type(found).__name__ in error, "mine" in str(found)) == (True, True)


def test_a_module_that_does_not_load_shows_its_own_error_every_time(project: Path) -> None:
    (project / "torn.py").write_text("import a_package_that_nobody_has")
    backend = get_backend("python:torn:reply", root=project)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
            asyncio.run(backend.complete("hello"))


def test_two_projects_with_modules_of_one_name_never_mix(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        text = f"def reply(messages, *, schema=None, scope=''): return '{name}'"
        (tmp_path / name / "mine.py").write_text(text)
    backends = [get_backend("python:mine:reply", root=tmp_path / name) for name in ("one", "two")]
    assert [ask(backend).content for backend in backends] == ["one", "two"]


CROWD = """
import asyncio
here = most = 0

async def reply(messages, *, schema=None, scope=""):
    global here, most
    here += 1
    most = max(most, here)
    await asyncio.sleep(0.001)
    here -= 1
    return str(most)
"""


def test_concurrency_bounds_the_calls_and_not_the_items(project: Path) -> None:
    (project / "crowd.py").write_text(CROWD)
    backend = get_backend("python:crowd:reply", root=project, concurrency=4)
    answers: list[Any] = ask_all(backend, ["hello"] * 40)
    assert max(int(said.content) for said in answers) == 4
