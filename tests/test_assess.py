"""scripts/assess.py as a person runs it: what is fresh is kept, what is not is made again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from designs import designed, edit
from fakes.provider import FakeProvider, Reply
from finetune_skills.rehearsal import bench
from infrastructure import encode_line, iter_records

PROJECT, RUBRIC = "config/project.yaml", "config/rubric.yaml"
VERDICTS, JOURNAL = "data/assessments", "data/journal/assess.jsonl"
MANIFEST = "data/processed/passing_transcripts.json"

# Notes every call; a judge that says what the simulated one says, slowly.
SLOW = """
import asyncio
from pathlib import Path
import simulated

async def judge(messages, *, schema=None, scope=""):
    with Path(__file__).with_name("asked").open("a") as log:
        print(scope, file=log)
    await asyncio.sleep(0.005)
    return simulated.judge_strict(messages, schema=schema, scope=scope)
"""
# Cannot tell about one criterion of one transcript, as long as there is a file `unsure`.
UNSURE = """
import json
from pathlib import Path
import simulated

def judge(messages, *, schema=None, scope=""):
    given = json.loads(simulated.judge_strict(messages, schema=schema, scope=scope))
    with Path(__file__).with_name("asked").open("a") as log:
        print(scope, ",".join(given), file=log)
    if Path(__file__).with_name("unsure").exists() and "train-00002" in scope and "N2" in given:
        given["N2"]["answer"] = "ERROR"
    return json.dumps(given)
"""


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with a pilot of five transcripts."""
    root = designed(tmp_path_factory.mktemp("talked") / "demo")
    bench.script(root, "personas.py", "--count", "40")
    bench.script(root, "generate.py")
    return root


@pytest.fixture
def place(talked: Path, tmp_path: Path) -> Path:
    shutil.copytree(talked, tmp_path / "demo")
    return tmp_path / "demo"


def command(place: Path, *words: str) -> dict[str, Any]:
    known = {"cwd": place, "text": True, "env": os.environ | {"NO_PROXY": "*"}}
    return {"args": [sys.executable, "scripts/assess.py", *words], **known}


def assess(place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(**command(place, *words), capture_output=True, timeout=120, check=False)


def told(place: Path, *words: str) -> dict[str, Any]:
    done = assess(place, *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judged_by(place: Path, text: str) -> Path:
    """One judge: the function `judge` of this text."""
    (place / "own.py").write_text(text)
    known = (place / PROJECT).read_text()
    begin, end = known.index("  judges:\n"), known.index("  evaluation_judges:")
    own = '  judges:\n    - {model: "python:own:judge", label: own}\n'
    (place / PROJECT).write_text(known[:begin] + own + known[end:])
    return place


def combined(place: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in iter_records(place / VERDICTS / "combined.jsonl")}


def asked(place: Path) -> list[str]:
    path = place / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_every_transcript_gets_a_verdict_of_every_judge(place: Path) -> None:
    report = told(place)
    assert (report["judged now"], report["failed"]) == (10, 0)
    rows = combined(place)
    assert len(rows) == 5
    assert all(set(row["judges"]) == {"strict", "mild"} for row in rows.values())
    assert sum(report["states"].values()) == 5
    assert report["pass rate"]["of"] == 5


def test_the_manifest_holds_what_passes_and_nothing_else(place: Path) -> None:
    told(place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    passed = sorted(item for item, row in combined(place).items() if row["pass"])
    assert [each["id"] for each in manifest["transcripts"]] == passed
    assert manifest["count"] == len(passed) > 0
    assert all((place / each["source_file"]).exists() for each in manifest["transcripts"])


def test_a_second_run_asks_nothing_and_changes_no_byte(place: Path) -> None:
    told(place)
    files = (MANIFEST, f"{VERDICTS}/combined.jsonl", f"{VERDICTS}/strict.jsonl", JOURNAL)
    before = [(place / name).read_bytes() for name in files]
    assert told(place)["judged now"] == 0
    assert [(place / name).read_bytes() for name in files] == before


def test_the_figures_of_the_batch_reach_the_generation_statistics(place: Path) -> None:
    told(place)
    stats = json.loads((place / "design/generation_stats.json").read_bytes())
    (batch,) = stats["batches"].values()
    assert batch["verdicts"]["passed"] + batch["verdicts"]["failed"] == 5
    assert "## Verdicts" in (place / "design/generation_stats.md").read_text()


def test_a_comment_in_the_rubric_sends_nothing_and_a_word_judges_again(place: Path) -> None:
    told(place)
    edit(place / RUBRIC, "pass_threshold: 0.8\n", "# higher later\npass_threshold: 0.8\n")
    subprocess.run([sys.executable, "-c", GATE, "rubric"], cwd=place, check=True)
    assert told(place)["judged now"] == 0
    edit(place / RUBRIC, "none dropped or confused?", "none dropped, none confused?")
    waive(place, "rubric")
    assert told(place)["judged now"] == 10


GATE = f"""
import sys
sys.path.insert(0, {str(bench.FAULTY.parents[2])!r})
from pathlib import Path
from finetune_skills import gates
state = gates.pass_gate(Path("."), sys.argv[1], "test")
sys.exit(state.state != "passed")
"""


def waive(place: Path, gate: str) -> None:
    from finetune_skills import gates

    gates.decide(place, gate, "waived", "test", "a changed word")


def test_what_is_stale_and_costs_money_shows_its_cost_first(place: Path) -> None:
    told(place)
    edit(place / PROJECT, "- {model: \"python:simulated:judge_strict\", label: strict}",
         "- {model: \"openai:gpt\", label: strict, price: {input: 2.0, output: 8.0, source: page, "
         "checked: 2026-01-31}}")  # fmt: skip
    done = assess(place)
    assert done.returncode == 2
    assert re.search(
        r"5 verdicts are stale.*To judge them again: \$0\.\d\d\..*--rejudge", done.stderr
    )
    assert not (place / JOURNAL).read_text().count("openai")


def test_an_unknown_price_is_called_unknown(place: Path) -> None:
    edit(place / PROJECT, '"python:simulated:judge_strict"', '"openai:gpt"')
    plan = told(place, "--dry-run")
    assert plan["cost, about"] == "unknown (price of strict: no price)"
    assert not (place / VERDICTS).exists()


def test_an_error_is_asked_again_alone_by_the_next_run(place: Path) -> None:
    judged_by(place, UNSURE)
    (place / "unsure").touch()
    done = assess(place)
    assert done.returncode == 1
    row = combined(place)["train-00002"]
    assert (row["state"], row["pass"]) == ("unscored", None)
    assert row["errors"] == {"own": {"N2": "the judge could not tell"}}
    (place / "unsure").unlink()
    before = len(asked(place))
    assert told(place)["judged now"] == 1
    assert asked(place)[before:] == ["assess/own/train-00002/try-2 N2"]
    assert combined(place)["train-00002"]["state"] in ("passed", "failed")


def test_an_error_that_stays_is_asked_once_by_each_run_and_never_passes(place: Path) -> None:
    judged_by(place, UNSURE)
    (place / "unsure").touch()
    for number in range(1, 4):
        assert assess(place).returncode == 1
        assert sum("train-00002" in line for line in asked(place)) == number
    manifest = json.loads((place / MANIFEST).read_bytes())
    assert "train-00002" not in {each["id"] for each in manifest["transcripts"]}


def test_a_changed_transcript_is_judged_again_and_the_others_are_not(place: Path) -> None:
    judged_by(place, SLOW)
    told(place)
    path = next((place / "data/raw/transcripts").rglob("train-00003.json"))
    talk = json.loads(path.read_bytes())
    talk["exchanges"][0]["assistant"] = "Please ask somebody else."
    path.write_text(json.dumps(talk))
    before = len(asked(place))
    assert told(place)["judged now"] == 1
    assert asked(place)[before:] == ["assess/own/train-00003"]


def test_a_repaired_transcript_stands_for_its_original(place: Path) -> None:
    told(place)
    path = next((place / "data/raw/transcripts").rglob("train-00003.json"))
    talk = json.loads(path.read_bytes())
    talk["exchanges"] = talk["exchanges"][:4]
    (place / "data/repaired").mkdir()
    (place / "data/repaired/train-00003.json").write_text(json.dumps(talk))
    assert told(place)["judged now"] == 2
    assert combined(place)["train-00003"]["source_file"] == "data/repaired/train-00003.json"


def test_verdicts_without_hashes_are_made_again(place: Path) -> None:
    told(place)
    path = place / VERDICTS / "strict.jsonl"
    rows = list(iter_records(path))
    for row in rows:
        del row["judge_hash"]
    path.write_bytes(b"".join(map(encode_line, rows)))
    assert told(place)["judged now"] == 5


def test_other_names_for_id_and_exchanges_are_read(place: Path) -> None:
    path = next((place / "data/raw/transcripts").rglob("train-00003.json"))
    talk = json.loads(path.read_bytes())
    talk["transcript_id"], talk["conversations"] = talk.pop("id"), talk.pop("exchanges")
    path.write_text(json.dumps(talk))
    assert told(place)["states"].keys() <= {"passed", "failed"}
    assert len(combined(place)) == 5


def test_a_broken_transcript_is_named_and_costs_no_other(place: Path) -> None:
    path = next((place / "data/raw/transcripts").rglob("train-00003.json"))
    path.write_bytes(b'{"id": "train-00003", "exchanges": [{"user": "\xff')
    done = assess(place)
    assert done.returncode == 1
    assert f"{path.relative_to(place)}: no transcript" in done.stderr
    assert len(combined(place)) == 4


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_parts_make_what_one_run_makes(place: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(place, whole)
    told(whole)
    for part in ("1/3", "2/3", "3/3"):
        assert "combines" in told(place, "--shard", part)["next"]
    assert told(place)["judged now"] == 0
    assert (place / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    name = f"{VERDICTS}/combined.jsonl"
    assert (place / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_repeats_measure_flips_on_the_same_sample_and_touch_no_verdict(place: Path) -> None:
    told(place)
    before = (place / VERDICTS / "combined.jsonl").read_bytes()
    report = told(place, "--repeat", "2")
    assert report["judged now"] == 20
    assert 0 <= report["flips"]["strict"]["rate"] < 0.2
    assert told(place, "--repeat", "2")["judged now"] == 0
    assert (place / VERDICTS / "combined.jsonl").read_bytes() == before


def test_killed_again_and_again_nothing_is_lost_and_what_was_answered_is_not_asked(
    place: Path, tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    shutil.copytree(place, calm)
    for each in (place, calm):
        judged_by(each, SLOW)
    told(calm)
    kills = 0
    for wait in (0.0, 0.005, 0.01, 0.02, 0.0, 0.01):
        with subprocess.Popen(**command(place, "--concurrency", "1"), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:  # fmt: skip
            seen = len(asked(place))
            while process.poll() is None and len(asked(place)) == seen:
                time.sleep(0.001)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            kills += process.returncode == -signal.SIGKILL
    told(place)
    assert kills >= 3
    assert len(asked(place)) <= 5 + kills
    name = f"{VERDICTS}/combined.jsonl"
    assert (place / name).read_bytes() == (calm / name).read_bytes()


def test_rate_limits_and_server_errors_cost_no_verdict(place: Path) -> None:
    rubric = {n: {"reasoning": "r", "evidence": [], "answer": "YES"} for n in criteria(place)}
    with FakeProvider() as fake:
        talk = json.loads(next((place / "data/raw/transcripts").rglob("*1.json")).read_bytes())
        known = (place / PROJECT).read_text()
        begin, end = known.index("  judges:\n"), known.index("  evaluation_judges:")
        own = f'  judges:\n    - {{model: "local:m", base_url: "{fake.openai_url}", label: web}}\n'
        (place / PROJECT).write_text(known[:begin] + own + known[end:])
        quote = {"exchange": 1, "quote": talk["exchanges"][0]["assistant"]}
        for gate in ("S1", "S2", "S3"):
            rubric[gate]["evidence"] = [quote]
        only_one(place, talk["id"])
        fake.script([Reply("slow down", status=429, headers={"retry-after": "0"}),
                     Reply("oops", status=500), Reply(json.dumps(rubric))])  # fmt: skip
        report = told(place)
    assert (report["judged now"], report["states"]) == (1, {"passed": 1})


def criteria(place: Path) -> list[str]:
    from infrastructure import load_rubric

    return list(load_rubric(place / RUBRIC).criteria)


def only_one(place: Path, item: str) -> None:
    for path in (place / "data/raw/transcripts").rglob("*.json"):
        if path.stem != item:
            path.unlink()


def test_without_a_judge_or_a_transcript_it_says_what_to_do(place: Path) -> None:
    shutil.rmtree(place / "data/raw/transcripts")
    done = assess(place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "python scripts/generate.py" in done.stderr
    known = (place / PROJECT).read_text()
    begin, end = known.index("  judges:\n"), known.index("  evaluation_judges:")
    (place / PROJECT).write_text(known[:begin] + "  judges: []\n" + known[end:])
    done = assess(place)
    assert (done.returncode, "roles.judges: no judge is chosen" in done.stderr) == (2, True)


def test_two_judges_of_one_file_name_are_refused(place: Path) -> None:
    edit(place / PROJECT, "label: mild", 'label: "strict!"')
    done = assess(place)
    assert (done.returncode, "Give it another `label`" in done.stderr) == (2, True)


def test_a_closed_gate_keeps_it_from_spending(place: Path) -> None:
    edit(place / RUBRIC, "weight: 0.3\n", "weight: 0.31\n")
    done = assess(place)
    assert (done.returncode, "gate rubric" in done.stderr) == (2, True)
    assert not (place / JOURNAL).exists()
