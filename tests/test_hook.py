"""The gate hook: stops a gated stage, lets everything else through, executes nothing."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_skills import stages
from infrastructure import selector_hash
from test_launcher import LOCK, fake_environment

ROOT = Path(__file__).resolve().parent.parent
HOOK = ROOT / "hooks/gate-hook"
Done = subprocess.CompletedProcess[str]


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH whose python3 can read YAML."""
    folder = tmp_path_factory.mktemp("tools")
    program(folder / "bin/python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return f"{folder}/bin:/usr/bin:/bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "demo"
    for folder in (".finetune", "scripts", "config", "design"):
        (root / folder).mkdir(parents=True)
    for name in (*stages.REQUIRES, "import_transcripts.py"):
        (root / "scripts" / name).write_text(f"open({str(root / 'RAN')!r}, 'w').close()\n")
    return root


def open_gate(root: Path, gate: str) -> None:
    (root / "config/project.yaml").write_text("roles: {base: one}\n")
    seen = {"project.yaml#/roles": selector_hash(root, "project.yaml#/roles")}
    row = {"schema": 1, "gate": gate, "result": "waived", "looked_at": seen}
    with (root / ".finetune/ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(row) + "\n")


def hook(command: str, cwd: Path, path: str, *arguments: str, **environment: str) -> Done:
    event = {"hook_event_name": "PreToolUse", "tool_name": "Bash", "cwd": str(cwd)}
    return subprocess.run(
        [HOOK, *arguments],
        input=json.dumps(event | {"tool_input": {"command": command}}),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": path, "HOME": str(cwd.parent), "XDG_CACHE_HOME": str(cwd.parent)}
        | environment,
        check=False,
    )


BLOCKED = r"""
python scripts/generate.py
python3 scripts/generate.py --count 5
python3.11 ./scripts/train.py
/usr/bin/python3 -u -W ignore scripts/slice.py
./scripts/export.py --provider openai
scripts/push_dataset.py
cd scripts && python generate.py
cd ROOT && python scripts/train.py
cd / ; python ROOT/scripts/train.py
python ROOT/scripts/run_evaluation.py
python ROOT/other/../scripts/run_evaluation.py
cd .. && cd demo && python3 scripts/baseline.py
A=1 python scripts/generate.py
env A=1 B=2 python scripts/generate.py
env -u A python scripts/generate.py
env -C ROOT python scripts/generate.py
CUDA_VISIBLE_DEVICES=0 nohup python scripts/train.py > log.txt 2>&1 &
bash -c 'python scripts/generate.py'
bash -lc "cd ROOT && python scripts/generate.py --count 10"
sh -c "bash -c 'python scripts/generate.py'"
uv run scripts/generate.py
uv run python scripts/generate.py
uv run --with rich --python 3.12 python scripts/train.py
uv --directory ROOT run scripts/train.py
uv run -m scripts.train
poetry run python scripts/audit.py
python -m scripts.generate
cd scripts && python3 -m generate
python "scripts/generate.py"
python 'scripts/fixup.py'
python scr'ipts'/generate.py
echo start && python scripts/generate.py
false || python scripts/generate.py
ls; python scripts/generate.py
ls\npython scripts/convert_to_gguf.py
yes | python scripts/submit_training.py
(cd / && ls) ; python scripts/generate.py
(python scripts/personas.py)
echo $(python scripts/generate.py)
echo "done: $(python scripts/generate.py)"
if true; then python scripts/generate.py; fi
for i in 1 2; do python scripts/generate.py --shard $i/2; done
timeout 60 python scripts/train.py
time nice -n 5 python scripts/train.py
torchrun --nproc-per-node 2 scripts/train.py --epochs 1
accelerate launch scripts/train.py
python -m torch.distributed.run scripts/train.py
python < scripts/generate.py
S=scripts; python $S/generate.py
export D=ROOT; python "$D/scripts/generate.py"
eval "python scripts/generate.py"
bash <<EOF\npython scripts/generate.py\nEOF
python scripts/generate.py --help; python scripts/generate.py
python scripts/import_transcripts.py && python scripts/audit.py
tmux new-session -d 'python scripts/train.py'
xargs python scripts/generate.py < ids.txt
cat ids.txt | xargs -n 1 python scripts/generate.py --count 1 --only
ls | xargs -I {} -P 2 uv run scripts/train.py {}
""".strip().splitlines()

LET_THROUGH = r"""
ls scripts
cat scripts/generate.py
head -20 scripts/train.py | grep python
grep -n "python scripts/generate.py" README.md
grep "|" scripts/train.py
rg 'generate.py' .
git log -- scripts/generate.py
git commit -m "python scripts/train.py now takes --seed"
git commit -m "$(cat <<'EOF'\nRun it:\n\npython scripts/train.py\nEOF\n)"
git add scripts/generate.py && git commit -m 'x; python scripts/train.py'
sed -i 's/a/b/' scripts/generate.py
vim scripts/generate.py
cp scripts/generate.py /tmp/generate.py
rm scripts/generate.py
chmod +x scripts/train.py
cat > notes.md <<EOF\npython scripts/train.py\nEOF
cat > scripts/train.py <<'EOF'\nimport os; os.system('python scripts/generate.py')\nEOF
echo python scripts/generate.py
echo 'python scripts/generate.py' >> notes.md
echo "a; python scripts/generate.py"
# python scripts/generate.py
ls # then python scripts/generate.py
python scripts/generate.py --help
python scripts/generate.py -h
python scripts/train.py --dry-run
uv run scripts/train.py --dry-run
bash -c 'python scripts/generate.py --help'
python scripts/import_transcripts.py
python -m pytest tests/test_generate.py
python -m py_compile scripts/generate.py
python -c "print('scripts/generate.py')"
python /elsewhere/scripts/train.py
cd / && python scripts/train.py
(cd / && python scripts/train.py)
python train.py
ruff check scripts/generate.py
python tools/count.py scripts/generate.py
finetune gate baseline
finetune status --json && cat scripts/generate.py
diff scripts/train.py .finetune/base/scripts/train.py
wc -l scripts/*.py
ssh host 'cd x && python scripts/train.py'
test -f scripts/train.py && echo there
find . -name train.py
awk '/x/ {print}' scripts/train.py
python - <<'EOF'\nprint("scripts/train.py")\nEOF
ls scripts/train.py | xargs wc -l
grep -l seed scripts/*.py | xargs sed -n 's/train.py/x/p'
make train  # runs scripts/train.py, which asks for its gate itself
just scripts/train.py
""".strip().splitlines()


def real(command: str, root: Path) -> str:
    return command.replace("ROOT", str(root)).replace("\\n", "\n")


@pytest.mark.parametrize("command", BLOCKED)
def test_a_command_that_would_run_a_gated_stage_is_stopped(
    command: str, project: Path, tools: str
) -> None:
    done = hook(real(command, project), project, tools)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"gate (\w+): not passed: .*Run: finetune gate \1", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", LET_THROUGH)
def test_every_other_command_is_let_through_in_silence(
    command: str, project: Path, tools: str
) -> None:
    done = hook(real(command, project), project, tools)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_table_is_of_the_promised_size() -> None:
    assert len(BLOCKED) + len(LET_THROUGH) >= 40


@pytest.mark.parametrize(("script", "gate"), stages.REQUIRES.items())
def test_each_script_waits_for_its_own_gate(
    script: str, gate: str, project: Path, tools: str
) -> None:
    before = hook(f"python scripts/{script}", project, tools)
    open_gate(project, gate)
    after = hook(f"python scripts/{script}", project, tools)
    assert (before.returncode, after.returncode) == (2, 0), after.stderr
    assert f"gate {gate}:" in before.stderr


def test_a_gate_that_went_stale_stops_again(project: Path, tools: str) -> None:
    open_gate(project, "baseline")
    (project / "config/project.yaml").write_text("roles: {base: two}\n")
    done = hook("python scripts/generate.py", project, tools)
    assert done.returncode == 2
    assert "stale" in done.stderr


def record(root: Path, gate: str, result: str, value: str) -> None:
    """A result that looked at one value of the project's own."""
    (root / "config" / f"{gate}.yaml").write_text(f"value: {value}\n")
    seen = {f"{gate}.yaml#/value": selector_hash(root, f"{gate}.yaml#/value")}
    row = {"schema": 1, "gate": gate, "result": result, "looked_at": seen}
    with (root / ".finetune/ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(row) + "\n")


BEFORE_TRAINING = ("model", "tokens", "taxonomy", "rubric", "personas", "prompts", "baseline")
BEFORE_TRAINING += ("pilot", "confirm", "scale", "audit", "fixup", "slice", "dataset", "mask")


@pytest.fixture
def open_chain(project: Path) -> Path:
    """A project in which each gate up to `mask` has passed, and people have agreed."""
    for gate in BEFORE_TRAINING:
        record(project, gate, "approved", "one")
    return project


@pytest.mark.parametrize("gate", BEFORE_TRAINING)
def test_a_stale_gate_anywhere_upstream_stops_the_stage_and_is_named(
    gate: str, open_chain: Path, tools: str
) -> None:
    assert hook("python scripts/train.py", open_chain, tools).returncode == 0
    (open_chain / f"config/{gate}.yaml").write_text("value: two\n")
    done = hook("python scripts/train.py", open_chain, tools)
    assert done.returncode == 2
    assert f"gate {gate}: not passed: stale" in done.stderr
    assert f"Run: finetune gate {gate}" in done.stderr
    assert "gate mask: " in done.stderr


def test_a_failed_gate_upstream_stops_and_one_downstream_does_not(
    open_chain: Path, tools: str
) -> None:
    record(open_chain, "training", "failed", "one")
    assert hook("python scripts/train.py", open_chain, tools).returncode == 0
    record(open_chain, "rubric", "failed", "one")
    assert "gate rubric: not passed" in hook("python scripts/train.py", open_chain, tools).stderr


def test_a_waiver_stands_for_all_that_comes_before_it(open_chain: Path, tools: str) -> None:
    record(open_chain, "model", "failed", "one")
    assert hook("python scripts/train.py", open_chain, tools).returncode == 2
    record(open_chain, "baseline", "waived", "one")
    assert hook("python scripts/train.py", open_chain, tools).returncode == 0


def test_a_gated_command_with_a_long_chain_is_answered_quickly(
    open_chain: Path, tools: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert hook("python scripts/train.py", open_chain, tools).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_without_a_finetune_folder_gates_are_off(project: Path, tools: str) -> None:
    shutil.rmtree(project / ".finetune")
    assert hook("python scripts/train.py", project, tools).returncode == 0


def test_the_pre_filter_names_every_gated_script() -> None:
    text = HOOK.read_text()
    for script in stages.REQUIRES:
        assert f"*{script}*" in text
        assert f'*"-m {script.removesuffix(".py")}"*' in text


def test_every_required_gate_exists() -> None:
    from finetune_skills.gates import GATES

    assert set(stages.REQUIRES.values()) <= set(GATES)


# Without help


WITHOUT_PYTHON = r"""
2 python scripts/train.py
2 cd x && python "scripts/train.py"
2 "python" scripts/train.py
2 '/usr/bin/python3' scripts/train.py
2 uv run scripts/train.py
2 ./scripts/train.py
2 scripts/train.py --epochs 1
2 bash -c "python scripts/train.py"
2 sh -c 'python scripts/train.py'
2 eval "python scripts/train.py"
2 env A="b" python scripts/train.py
2 echo "$(python scripts/train.py)"
2 git commit -m "one" ; python scripts/train.py
2 git commit -m "a \"quoted\" word" && python scripts/train.py
2 git commit -m "one" && torchrun scripts/train.py
0 git commit -m "python train.py now takes --seed"
0 git commit -m 'python scripts/train.py'
0 git commit -m "don't run python train.py" && git push
0 git commit -am "fix: 'python scripts/train.py' and so on"
0 grep -n "python scripts/train.py" README.md
0 echo 'python train.py' >> notes.md
0 cat scripts/train.py
0 ls scripts/train.py
""".strip().splitlines()


@pytest.mark.parametrize("line", WITHOUT_PYTHON)
def test_without_python_only_what_could_run_a_stage_is_stopped(line: str, project: Path) -> None:
    tools = project / "no-python"
    tools.mkdir()
    done = hook(line[2:], project, str(tools))
    assert (done.returncode, done.stdout) == (int(line[0]), ""), done.stderr
    assert ("Install Python 3.11" in done.stderr) == (done.returncode == 2)


def test_without_python_the_description_of_a_command_does_not_count(project: Path) -> None:
    (project / "no-python").mkdir()
    given = {"command": "cat train.py", "description": "see what python scripts/train.py does"}
    done = subprocess.run(
        [HOOK], input=json.dumps({"cwd": str(project), "tool_input": given}), text=True,
        capture_output=True, env={"PATH": f"{project}/no-python"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_crash_of_the_check_closes_for_gated_commands_alone(project: Path, tools: str) -> None:
    (project / ".finetune/ledger.jsonl").mkdir()
    assert hook("python scripts/train.py", project, tools).returncode == 2
    assert hook("cat scripts/train.py", project, tools).returncode == 0


def test_a_python_without_yaml_asks_the_one_that_the_launcher_made(
    project: Path, tmp_path: Path
) -> None:
    program(tmp_path / "t/python3", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    fake_environment(tmp_path, LOCK.read_bytes())
    before = hook("python scripts/train.py", project, f"{tmp_path}/t")
    open_gate(project, "mask")
    after = hook("python scripts/train.py", project, f"{tmp_path}/t")
    assert (before.returncode, after.returncode) == (2, 0), after.stderr
    assert "Run: finetune gate mask" in before.stderr


def test_a_command_that_fits_no_grammar_is_read_without_a_crash(project: Path, tools: str) -> None:
    for odd in ("'", '"', "$((", "<<", "python -m", "cd", "bash -c", "uv run", "env -C", "((((`"):
        for text in (f"{odd} # train.py", f"cat train.py; {odd}", f"{odd}\nls train.py"):
            assert hook(text, project, tools).returncode == 0, text
    deep = f"{'uv run ' * 3000} ls train.py"
    assert hook(deep, project, tools).returncode == 0


def test_unrelated_commands_cost_less_than_ten_milliseconds(project: Path, tools: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(20):
        hook("npm run build && git push", project, tools)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent / 20 < 0.010


# A session's start


def test_a_session_starts_with_one_line_inside_a_project(project: Path, tools: str) -> None:
    (project / "data/raw").mkdir(parents=True)
    inside = hook("", project / "data/raw", tools, "session-start")
    assert inside.returncode == 0
    assert inside.stdout.count("\n") == 1
    assert "0 of 20 gates are open; the next is model" in inside.stdout


def test_a_session_starts_in_silence_outside(tmp_path: Path, tools: str) -> None:
    done = hook("", tmp_path, tools, "session-start")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# A hostile repository


def test_nothing_of_a_hostile_project_is_executed(project: Path, tools: str) -> None:
    mark = f"import os; open({str(project / 'RAN')!r}, 'w').close()\n"
    modules = ("sitecustomize", "usercustomize", "yaml", "json", "infrastructure", "settings", "re")
    for name in (*modules, "conftest", "stages", "gate_hook", "scripts/infrastructure"):
        (project / f"{name}.py").write_text(mark)
    (project / "evil.pth").write_text(mark)
    for name in ("python3", "finetune", "git"):
        program(project / name, f"#!/bin/sh\ntouch {project}/RAN\n")
        program(project / ".venv/bin" / name, f"#!/bin/sh\ntouch {project}/RAN\n")
    (project / ".venv/pyvenv.cfg").touch()
    loaded = f"!!python/object/apply:os.system ['touch {project}/RAN']\n"
    (project / "config/project.yaml").write_text(f"roles: {loaded}")
    seen = {"project.yaml#/roles": "0" * 64, "$(touch RAN)": "x", "../../../etc/passwd": "x"}
    rows = [{"gate": gate, "result": "passed", "looked_at": seen} for gate in ("mask", "baseline")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (project / ".finetune/ledger.jsonl").write_text(text + '{"gate": "mask\n\x1b[2J')
    path = f".:{project}/.venv/bin:{tools}"
    unsafe = {"PYTHONPATH": f".:{project}", "VIRTUAL_ENV": f"{project}/.venv"}
    for command in ("python scripts/train.py", "cat scripts/train.py; echo $(touch RAN)"):
        hook(command, project, path, **unsafe)
        hook(command, project, path, "session-start", **unsafe)
    assert hook("python scripts/train.py", project, path, **unsafe).returncode == 2
    assert not (project / "RAN").exists()


def test_what_a_ledger_says_can_not_flood_the_message(project: Path, tools: str) -> None:
    row = {"gate": "mask", "result": "\n\x1b[31m" + "x" * 9000, "looked_at": {"a": "b"}}
    (project / ".finetune/ledger.jsonl").write_text(json.dumps(row) + "\n")
    said = hook("python scripts/train.py", project, tools).stderr
    assert len(said) < 700
    assert "\x1b" not in said


# The files of the plugin


def load(name: str) -> dict[str, object]:
    return dict(json.loads((ROOT / name).read_text(encoding="utf-8")))


def test_the_plugin_and_its_marketplace_have_what_a_client_needs() -> None:
    plugin, market = load(".claude-plugin/plugin.json"), load(".claude-plugin/marketplace.json")
    assert {"name", "version", "description", "license"} <= set(plugin)
    assert {"name", "description", "owner", "plugins"} <= set(market)
    assert market["plugins"][0]["name"] == plugin["name"]  # type: ignore[index]
    assert market["plugins"][0]["source"] == "./"  # type: ignore[index]
    assert f'version = "{plugin["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_hooks_file_starts_the_hook_from_the_plugin() -> None:
    events = load("hooks/hooks.json")["hooks"]
    assert set(events) == {"PreToolUse", "SessionStart"}  # type: ignore[call-overload]
    for event in events.values():  # type: ignore[attr-defined]
        [started] = event[0]["hooks"]
        assert started["command"].startswith('"${CLAUDE_PLUGIN_ROOT}/hooks/gate-hook"')
    assert os.access(HOOK, os.X_OK)
