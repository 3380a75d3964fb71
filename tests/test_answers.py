"""What `finetune init` asks becomes settings: budget, providers, and an example to begin with."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

import settings
from finetune_skills.answers import PROVIDERS, QUESTIONS, SHARES, SPECS, budget_of, split, texts
from finetune_skills.bundle import bundle_root
from finetune_skills.scaffold import (
    BASE,
    MANIFEST,
    bundle_files,
    create_project,
    digest,
    examples,
    without_effect,
)
from finetune_skills.upgrade import apply_upgrade
from infrastructure import KINDS, FinetuneError, get_backend
from test_command import at_a_terminal, finetune
from test_scaffold import FILES, VALUES, tree, write

GIVEN = {"name": "demo", "domain": "tea", "language": "en", "hardware": "a laptop"}
GIVEN |= {"offline": "true", "budget": "100.00", "providers": "google, local"}


def budgets(root: Path) -> dict[str, float | None]:
    return settings.load_project(root).budgets.model_dump()


# Budget


@pytest.mark.parametrize("said", ["100", "33.33", "$0.05", "0.01", "999999999.99", "12.5", "0"])
def test_the_stages_together_get_exactly_the_budget_in_whole_cents(said: str) -> None:
    parts = split(budget_of(said))
    assert sum(map(Decimal, parts.values())) == Decimal(said.removeprefix("$"))
    assert all(re.fullmatch(r"\d+\.\d\d", part) for part in parts.values())


def test_a_share_for_each_stage_that_pays_and_no_other() -> None:
    assert list(SHARES) == list(settings.Budgets.model_fields)
    assert sum(map(Decimal, map(str, SHARES.values()))) == 1


def test_a_budget_is_in_the_settings_of_a_new_project(tmp_path: Path) -> None:
    done = finetune(tmp_path, "init", "demo", "--budget", "100", "--providers", "openai,local")
    assert (done.returncode, done.stderr) == (0, "")
    found = budgets(tmp_path / "demo")
    assert found["generate"] == 35
    assert sum(value or 0 for value in found.values()) == pytest.approx(100)


@pytest.mark.parametrize("words", [[], ["--budget", "none", "--providers", "none"]])
def test_without_an_answer_nothing_is_decided(tmp_path: Path, words: list[str]) -> None:
    assert finetune(tmp_path, "init", "demo", *words).returncode == 0
    assert set(budgets(tmp_path / "demo").values()) == {None}
    assert "not decided yet" in (tmp_path / "demo/config/project.yaml").read_text()


WRONG = {
    "below zero": ("--budget", "-1", "Write it as 50 or 12.50"),
    "in words": ("--budget", "a lot", "Write it as 50 or 12.50"),
    "parts of a cent": ("--budget", "1.005", "Write it as 50 or 12.50"),
    "without an end": ("--budget", "inf", "Write it as 50 or 12.50"),
    "another provider's name": ("--providers", "openai,gemini", 'Did you mean "google"?'),
    "a slip": ("--providers", "antropic", 'Did you mean "anthropic"?'),
    "a name of 300 bytes": ("--name", "x" * 300, "Use letters, digits"),
    "a name that no file can have": ("--name", "a/b", "Use letters, digits"),
    "a path for an example": ("--example", "../code", "no examples"),
}


@pytest.mark.parametrize(("flag", "said", "why"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_one_line_and_nothing_is_written(
    tmp_path: Path, flag: str, said: str, why: str
) -> None:
    if flag == "--example" and examples(bundle_root()):
        why = "is not a known example"
    done = finetune(tmp_path, "init", "demo", flag, said)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []


# Providers


def test_every_kind_of_the_kernel_can_be_named_and_has_its_hints() -> None:
    assert set(PROVIDERS) == set(KINDS)
    wanted = {kind: cls.key_variable for kind, cls in KINDS.items() if kind != "claude"}
    for kind, variable in wanted.items():
        assert (variable or PROVIDERS[kind][1]) == PROVIDERS[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_short_entry_is_a_valid_role_and_can_be_built(kind: str, tmp_path: Path) -> None:
    done = finetune(tmp_path, "init", "demo", "--providers", kind)
    project = tmp_path / "demo/config/project.yaml"
    entry = re.search(r"^# A short entry: (.*)$", project.read_text(), re.MULTILINE)
    assert entry
    assert yaml.safe_load(entry[1])["model"].startswith(f"{kind}:")
    text = project.read_text().replace("base: null", f"base: {entry[1]}")
    project.write_text(text)
    base = settings.load_project(tmp_path / "demo").roles.base
    assert base
    spec, options = settings.backend_arguments(base)
    if kind not in ("llamacpp", "python"):
        assert get_backend(spec, **options).name
    packages = f".[{PROVIDERS[kind][0]}]" if PROVIDERS[kind][0] else "."
    assert f".venv/bin/pip install '{packages}'" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert kind in SPECS or entry[1] == f"{{model: {kind}:MODEL}}"


def test_init_says_what_to_install_and_which_keys_to_set(tmp_path: Path) -> None:
    done = finetune(tmp_path, "init", "demo", "--providers", " Google, local,google", "--json")
    told = json.loads(done.stdout)
    assert told["todo"] == [
        "There: python3 -m venv .venv && .venv/bin/pip install '.[google,local]'",
        "In .env (copy .env.example): GOOGLE_API_KEY",
    ]
    manifest = json.loads((tmp_path / "demo" / MANIFEST).read_text())
    assert manifest["values"]["providers"] == "google, local"


def test_at_a_terminal_each_question_is_asked_and_a_wrong_answer_asked_again(
    tmp_path: Path,
) -> None:
    typed = ["demo", "tea", "English", "en", "laptop", "yes", "true", "lots", "20"]
    typed += ["gemini", "google"]
    code, _, shown = at_a_terminal(tmp_path, "\n".join(typed), "init", "demo")
    assert code == 0, shown
    assert "not a sum of dollars" in shown
    assert "not a language code" in shown
    assert "not true or false" in shown
    assert 'Did you mean "google"?' in shown
    values = json.loads((tmp_path / "demo" / MANIFEST).read_text())["values"]
    assert {key: values[key] for key in QUESTIONS} == {
        "name": "demo", "domain": "tea", "language": "en", "hardware": "laptop", "offline": "true",
        "budget": "20.00", "providers": "google",
    }  # fmt: skip


# Upgrades


def made_before(root: Path) -> None:
    """A project as it was made before budget, providers and examples were asked for."""
    create_project(root, bundle_root(), texts({"name": "demo", "domain": "tea"} | OLD))
    manifest = json.loads((root / MANIFEST).read_text())
    new = r"^# (Providers named at the start|A short entry|`finetune init` divides).*\n"
    text = re.sub(new, "", (root / PROJECT).read_text(), flags=re.MULTILINE)
    write(root, {PROJECT: text, f"{BASE}/{PROJECT}": text})
    manifest["files"][PROJECT]["sha256"] = digest(text.encode())
    manifest["values"] = {"name": "demo", "domain": "tea"} | OLD
    del manifest["example"]
    write(root, {MANIFEST: json.dumps(manifest)})


OLD = {"language": "en", "hardware": "a laptop", "offline": "true"}
PROJECT = "config/project.yaml"


def test_a_project_without_the_newer_answers_upgrades_without_a_loss(tmp_path: Path) -> None:
    made_before(tmp_path / "one")
    made_before(tmp_path / "two")
    mine = (tmp_path / "two" / PROJECT).read_text().replace("assess: null", "assess: 77  # mine")
    (tmp_path / "two" / PROJECT).write_text(mine)
    for name, kind in (("one", "updated"), ("two", "merged")):
        done = {a.path: a.kind for a in apply_upgrade(tmp_path / name, bundle_root())}
        assert (done.pop(PROJECT), set(done.values())) == (kind, {"unchanged"})
        text = (tmp_path / name / PROJECT).read_text()
        assert "Providers named at the start: not decided yet" in text
        assert "{{" not in text
    assert set(mine.splitlines()) <= set(text.splitlines())
    assert budgets(tmp_path / "two")["assess"] == 77


def test_an_upgrade_fills_in_the_same_budget_whatever_the_shares_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_project(tmp_path / "demo", bundle_root(), texts(GIVEN))
    monkeypatch.setitem(SHARES, "generate", 0.9)
    assert {a.kind for a in apply_upgrade(tmp_path / "demo", bundle_root())} == {"unchanged"}


# Examples

DESK = {
    "examples/desk/config/project.yaml": "domain: desk\nlanguage: en\n",
    "examples/desk/config/prompts/assistant.md": "You are the desk. {{not_filled}}\n",
    "examples/desk/design/critique.md": "five experts\n",
    "examples/desk/data/raw/one.json": "made by a run\n",
    "examples/desk/.finetune/ledger.jsonl": "{}\n",
    "examples/therapy-domain.md": "no project\n",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", FILES | DESK)


@pytest.fixture
def desk(tmp_path: Path, bundle: Path) -> Path:
    create_project(tmp_path / "project", bundle, VALUES, example="desk")
    return tmp_path / "project"


def test_an_example_is_laid_over_the_templates(desk: Path) -> None:
    found = tree(desk)
    assert found["config/project.yaml"] == b"domain: desk\nlanguage: en\n"
    assert found["config/prompts/assistant.md"] == b"You are the desk. {{not_filled}}\n"
    assert found[f"{BASE}/design/critique.md"] == found["design/critique.md"] == b"five experts\n"
    assert found["scripts/generate.py"] == b"print('go')\n"
    assert not [name for name in found if name.startswith("data/") or "ledger" in name]
    manifest = json.loads(found[MANIFEST])
    assert (manifest["example"], "design/critique.md" in manifest["files"]) == ("desk", True)


def test_an_answer_that_an_example_has_decided_itself_has_no_effect_and_is_named(
    bundle: Path,
) -> None:
    assert without_effect(bundle_files(bundle), ["domain", "budget"]) == []
    assert without_effect(bundle_files(bundle, "desk"), ["domain", "budget"]) == ["budget"]
    assert without_effect(bundle_files(bundle_root()), QUESTIONS) == []


def test_an_upgrade_takes_what_is_new_in_the_example(desk: Path, bundle: Path) -> None:
    assert {action.kind for action in apply_upgrade(desk, bundle)} == {"unchanged"}
    (desk / "config/project.yaml").write_text("domain: mine\nlanguage: en\n")
    write(bundle, {
        "examples/desk/config/project.yaml": "domain: desk\nlanguage: en\nnew: 1\n",
        "examples/desk/design/model-choice.md": "why\n",
        "code/templates/config/project.yaml": "never: seen\n",
    })  # fmt: skip
    done = {a.path: a.kind for a in apply_upgrade(desk, bundle) if a.kind != "unchanged"}
    assert done == {"config/project.yaml": "merged", "design/model-choice.md": "added"}
    assert (desk / "config/project.yaml").read_text() == "domain: mine\nlanguage: en\nnew: 1\n"
    assert {action.kind for action in apply_upgrade(desk, bundle)} == {"unchanged"}


def gone(bundle: Path) -> None:
    shutil.rmtree(bundle / "examples/desk")


def renamed(bundle: Path) -> None:
    (bundle / "examples/desk").rename(bundle / "examples/help-desk")


@pytest.mark.parametrize("change", [gone, renamed])
def test_an_upgrade_without_the_example_stops_and_touches_nothing(
    desk: Path, bundle: Path, change: Callable[[Path], None]
) -> None:
    change(bundle)
    before = tree(desk)
    with pytest.raises(FinetuneError, match="example desk: "):
        apply_upgrade(desk, bundle)
    assert tree(desk) == before


@pytest.mark.parametrize("name", ["desc", "../desk", "desk/config", "therapy-domain.md", "."])
def test_an_unknown_example_names_those_that_are_there(bundle: Path, name: str) -> None:
    with pytest.raises(FinetuneError, match=r"not a known example.* Have: desk\.$"):
        bundle_files(bundle, name)


def test_an_example_does_not_replace_a_module(bundle: Path) -> None:
    write(bundle, {"examples/desk/settings.py": "MINE = 1\n"})
    with pytest.raises(FinetuneError, match=r"settings\.py is a module and in the example desk"):
        bundle_files(bundle, "desk")


def test_the_command_begins_with_an_example_and_asks_nothing_that_it_has_decided(
    tmp_path: Path,
) -> None:
    shutil.copytree(bundle_root() / "code", tmp_path / "code")
    create_project(tmp_path / "examples/desk", bundle_root(), texts(GIVEN))
    for path in (tmp_path / "examples/desk").glob("*.py"):
        path.unlink()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code")}
    said = []
    for words in (
        ["--example", "desc"],
        ["--example", "desk", "--budget", "5"],
        ["--example", "desk"],
    ):
        command = [sys.executable, "-m", "finetune_skills.cli", "init", "demo", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        said.append((done.returncode, done.stderr))
    assert [code for code, _ in said] == [2, 2, 0]
    assert 'Did you mean "desk"?' in said[0][1]
    assert "leave out --budget" in said[1][1]
    assert budgets(tmp_path / "demo")["generate"] == 35
