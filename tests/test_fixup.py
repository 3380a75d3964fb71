"""scripts/fixup.py, the fate of every transcript, and the gates `scale` and `fixup`."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import judging
from designs import designed, edit
from finetune_skills import checks_curate, gates
from infrastructure import Appender, encode_line, iter_records, selector_hash
from judging import FATES, Court, fates, tally

PROJECT, CANDIDATES = "config/project.yaml", "data/candidates.jsonl"
MANIFEST = "data/processed/passing_transcripts.json"

# Words decide: BAD-N3 in a reply is a NO on N3 there; the repair takes it out, unless it says so.
OWN = """
import asyncio, json, re
from pathlib import Path
import simulated

def note(what):
    with Path(__file__).with_name("asked").open("a") as log:
        print(what, file=log)

def judge(messages, *, schema=None, scope=""):
    note(scope)
    talk, given = simulated.conversation(messages[1]["content"]), {}
    for name in schema.model_fields:
        bad = [n for n, (_, reply) in enumerate(talk, 1) if f"BAD-{name}" in reply]
        quotes = [{"exchange": n, "quote": talk[n - 1][1]} for n in bad or [1]]
        answer = "NO" if bad else "YES"
        given[name] = {"reasoning": "so it is", "evidence": quotes, "answer": answer}
    return json.dumps(given)

async def repair(messages, *, schema=None, scope=""):
    note(scope)
    await asyncio.sleep(0.005)
    reply = messages[-1]["content"].split("The reply to mend:\\n")[1].split("\\n\\nWhat is")[0]
    if "HOPELESS" in reply:
        return "UNFIXABLE"
    if "FOOTER" in reply:
        return "All is well.\\n\\nCo-Authored-By: A Coding Agent <noreply@example.com>"
    if "WORDY" in reply:
        return "word " * 200
    if "STUBBORN" in reply:
        return reply.replace("STUBBORN", "Still")
    return re.sub(r"BAD-[A-Z]\\d ?", "", reply) + "Good."
"""
# Replies with nothing in common, so that no filter takes one for another.
REPLIES = (
    "It left the depot on Monday.",
    "Please hold the side button for ten seconds.",
    "Two charges stand there, and I have sent one back.",
    "Orange means that the cartridge is used up.",
    "The hose goes below the sink, behind the valve.",
    "Which colour does the app show you now?",
    "A plumber has to look at that part of the house.",
    "Then I close this one and wish you a good day.",
)
GOOD = "Your invoice comes by mail tomorrow."
N_BAD = "BAD-U1 BAD-H1 BAD-N3 "  # enough to fall below the threshold


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with judges and a repair of our own, and no transcript yet."""
    root = designed(tmp_path_factory.mktemp("shop") / "demo")
    (root / "own.py").write_text(OWN)
    text = (root / PROJECT).read_text()
    begin, end = text.index("  judges:\n"), text.index("  evaluation_judges:")
    own = '  judges:\n    - {model: "python:own:judge", label: own}\n'
    (root / PROJECT).write_text(text[:begin] + own + text[end:])
    edit(root / PROJECT, '"python:simulated:repair"', '"python:own:repair"')
    edit(root / PROJECT, "min_exchanges: 10", "min_exchanges: 4")
    waive(root, "rubric", "audit")
    return root


@pytest.fixture
def place(shop: Path, tmp_path: Path) -> Path:
    shutil.copytree(shop, tmp_path / "demo")
    return tmp_path / "demo"


def waive(root: Path, *names: str) -> None:
    seen = {"project.yaml#/seeds": selector_hash(root, "project.yaml#/seeds")}
    for name in names:
        row = {"schema": 1, "at": "", "gate": name, "result": "waived", "looked_at": seen}
        with Appender(root / ".finetune/ledger.jsonl") as ledger:
            ledger.append(row)


def talk(root: Path, item: str, replies: dict[int, str], turns: int = 8, **more: Any) -> Path:
    """One transcript and its line of candidates; these replies, and good ones elsewhere."""
    said = {**dict(enumerate(REPLIES[:turns], 1)), **replies}
    pairs = [
        {"user": f"Where is parcel {n} of {item}?", "assistant": said[n]} for n in sorted(said)
    ]
    made = {"schema": 1, "id": item, "exchanges": pairs, "provenance": {"batch": "scale-001"}}
    path = root / f"data/raw/transcripts/scale-001/{item}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made | more))
    with Appender(root / CANDIDATES) as file:
        file.append({"id": item, "event": "generated", "fate": "accepted", "batch": "scale-001"})
    return path


def run(root: Path, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, f"scripts/{name}", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def fixed(root: Path, *words: str) -> dict[str, Any]:
    assert run(root, "assess.py").returncode == 0
    done = run(root, "fixup.py", "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fate(root: Path, item: str) -> judging.Fate:
    return fates(root, Court.of(root).combined())[item]


def made_of(root: Path, item: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"data/repaired/{item}.json").read_bytes())
    return found


def told(root: Path, gate: str) -> str:
    return " ".join(map(str, gates.run_check(root, gates.GATES[gate]).findings))


# ── one transcript ────────────────────────────────────────────────────────────────────────────────


def test_a_soft_failure_is_rewritten_judged_again_and_listed(place: Path) -> None:
    path = talk(place, "a", {3: f"{N_BAD}{GOOD}"})
    before = path.read_bytes()
    assert fixed(place)["repaired"] == 1
    found = made_of(place, "a")
    assert found["exchanges"][2]["assistant"] == f"{GOOD}Good."
    assert found["exchanges"][1]["assistant"] == REPLIES[1]
    about = found["repaired_from"]
    assert about["changes"] == [{"exchange": 3, "old": f"{N_BAD}{GOOD}", "new": f"{GOOD}Good."}]
    assert path.read_bytes() == before
    manifest = json.loads((place / MANIFEST).read_bytes())
    assert [each["source_file"] for each in manifest["transcripts"]] == ["data/repaired/a.json"]
    assert fate(place, "a") == ("repaired", "")


def test_a_safety_failure_is_cut_away_and_never_rewritten(place: Path) -> None:
    talk(place, "a", {6: f"BAD-S1 {GOOD}", 7: f"BAD-S1 {GOOD}"})
    assert fixed(place)["truncated"] == 1
    assert len(made_of(place, "a")["exchanges"]) == 5
    assert not any("fixup/" in line for line in (place / "asked").read_text().splitlines())


def test_a_safety_failure_too_early_rejects_with_the_reason(place: Path) -> None:
    talk(place, "a", {2: f"BAD-S2 {GOOD}"})
    assert fixed(place)["rejected"] == 1
    assert fate(place, "a") == ("rejected", "safety: S2 at exchange 2")
    assert not (place / "data/repaired/a.json").exists()


@pytest.mark.parametrize(("at", "state"), [(6, "truncated"), (2, "rejected")])
@pytest.mark.parametrize("how", ["HOPELESS", "FOOTER", "WORDY"])
def test_what_cant_be_mended_is_cut_or_rejected(place: Path, how: str, at: int, state: str) -> None:
    talk(place, "a", {at: f"{N_BAD}{how} {GOOD}"})
    assert fixed(place)[state] == 1
    assert fate(place, "a").state == state


def test_there_is_one_round(place: Path) -> None:
    talk(place, "a", {6: f"{N_BAD}STUBBORN {GOOD}"})
    assert fixed(place)["rejected"] == 1
    assert fate(place, "a").why.startswith("failed again: ")
    before = len((place / "asked").read_text().splitlines())
    assert run(place, "fixup.py").returncode == 0
    assert len((place / "asked").read_text().splitlines()) == before


def test_the_model_sees_what_comes_before_and_after_and_what_is_wrong(place: Path) -> None:
    talk(place, "a", {3: f"{N_BAD}{GOOD}"})
    fixed(place)
    rows = iter_records(place / "data/journal/fixup.jsonl")
    scopes = {row["scope"] for row in rows}
    assert "fixup/a/t03.repair-1" in scopes
    assert "assess/own/a" in scopes


def test_what_passes_is_left_alone(place: Path) -> None:
    talk(place, "a", {})
    report = fixed(place)
    assert (report["accepted"], report["pending"]) == (1, 0)
    assert not (place / "data/repaired").exists()


# ── all of them ───────────────────────────────────────────────────────────────────────────────────


def many(place: Path) -> None:
    for number in range(12):
        bad = {0: {}, 1: {3: f"{N_BAD}{GOOD}"}, 2: {6: f"BAD-S1 {GOOD}"}, 3: {1: f"BAD-S1 {GOOD}"},
               4: {5: f"{N_BAD}HOPELESS {GOOD}"}, 5: {6: f"{N_BAD}STUBBORN {GOOD}"}}  # fmt: skip
        talk(place, f"t{number:02}", bad[number % 6])


def test_everything_that_was_made_is_somewhere(place: Path) -> None:
    many(place)
    report = fixed(place)
    assert {state: report[state] for state in FATES} == {
        "accepted": 2, "repaired": 2, "truncated": 4, "rejected": 4, "pending": 0}  # fmt: skip
    assert sum(report[state] for state in FATES) == report["transcripts"] == 12


def test_killed_and_run_again_gives_the_same_fates_and_pays_nothing_twice(
    place: Path, tmp_path: Path
) -> None:
    many(place)
    assert run(place, "assess.py").returncode == 0
    calm = tmp_path / "calm"
    shutil.copytree(place, calm)
    assert run(calm, "fixup.py", "--concurrency", "1").returncode == 0
    for _ in range(4):
        command: dict[str, Any] = {
            "args": [sys.executable, "scripts/fixup.py", "--concurrency", "1"]
        }
        with subprocess.Popen(**command, cwd=place, stdout=-3, stderr=-3) as process:
            seen = len((place / "asked").read_text().splitlines())
            while (
                process.poll() is None and len((place / "asked").read_text().splitlines()) == seen
            ):
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
    assert run(place, "fixup.py", "--concurrency", "1").returncode == 0
    assert fates(place, Court.of(place).combined()) == fates(calm, Court.of(calm).combined())
    assert (place / MANIFEST).read_bytes() == (calm / MANIFEST).read_bytes()
    paid = [len((each / "asked").read_text().splitlines()) for each in (place, calm)]
    assert paid[0] <= paid[1] + 4


def test_a_crash_between_the_file_and_its_line_is_caught_up_once(place: Path) -> None:
    many(place)
    fixed(place)
    before = fates(place, Court.of(place).combined())
    lines = (place / CANDIDATES).read_bytes().splitlines(keepends=True)
    assert any(b'"fate":"truncated"' in line for line in lines)
    lost = [line for line in lines if b'"repaired"' not in line and b'"truncated"' not in line]
    (place / CANDIDATES).write_bytes(b"".join(lost))
    assert fates(place, Court.of(place).combined()) != before
    counts = set()
    for _ in range(2):
        assert run(place, "fixup.py").returncode == 0
        assert fates(place, Court.of(place).combined()) == before
        counts.add(len((place / CANDIDATES).read_bytes().splitlines()))
    assert len(counts) == 1


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_parts_do_what_one_run_does(place: Path, tmp_path: Path) -> None:
    many(place)
    assert run(place, "assess.py").returncode == 0
    whole = tmp_path / "whole"
    shutil.copytree(place, whole)
    assert run(whole, "fixup.py").returncode == 0
    for part in ("1/2", "2/2"):
        assert run(place, "fixup.py", "--shard", part).returncode in (0, 1)
    assert run(place, "fixup.py").returncode == 0
    assert fates(place, Court.of(place).combined()) == fates(whole, Court.of(whole).combined())


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place: Path) -> None:
    many(place)
    assert run(place, "assess.py").returncode == 0
    done = run(place, "fixup.py", "--dry-run")
    assert "cut before exchange 6" in done.stdout
    assert "rewrite exchange 3" in done.stdout
    assert not (place / "data/journal/fixup.jsonl").exists()


def test_fates_conserve_every_transcript_under_random_histories(tmp_path: Path) -> None:
    """300 histories of events and verdicts in any order, torn ends and doubles included."""
    (tmp_path / "data").mkdir()
    chance = random.Random("histories")
    for _ in range(300):
        ids = [f"t{n}" for n in range(chance.randrange(12))]
        lines = [{"id": item, "event": chance.choice(["generated", "imported"]),
                  "fate": chance.choice(["accepted", "truncated", "rejected"])}
                 for item in ids for _ in range(chance.choice([1, 1, 2]))]  # fmt: skip
        hashes = {item: chance.choice("ab") for item in ids}
        lines += [{"id": item, "event": "fixup", "transcript_hash": chance.choice("ab"),
                   "fate": chance.choice(["repaired", "truncated", "rejected"]), "why": ["x"]}
                  for item in ids if chance.random() < 0.5]  # fmt: skip
        chance.shuffle(lines)
        (tmp_path / CANDIDATES).write_bytes(b"".join(map(encode_line, lines)) + b'{"id": "torn')
        judged = [item for item in ids if chance.random() < 0.8]
        rows = [{"id": item, "pass": chance.choice([True, False, None]), "state": "x",
                 "transcript_hash": hashes[item]} for item in judged]  # fmt: skip
        found = fates(tmp_path, rows)
        assert set(found) == set(ids)
        assert sum(tally(found).values()) == len(ids)
        passed = {row["id"] for row in rows if row["pass"]}
        good = {item for item, each in found.items() if each.state in FATES[:3]}
        assert good == passed


# ── gates ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_gate_opens_when_nothing_waits(place: Path) -> None:
    for number in range(8):
        talk(place, f"t{number}", {3: f"{N_BAD}{GOOD}"} if number < 2 else {})
    assert run(place, "assess.py").returncode == 0
    assert "2 transcripts wait: t0, t1" in told(place, "fixup")
    assert run(place, "fixup.py").returncode == 0
    checked = checks_curate.check_fixup(place)
    assert checked.findings == []
    assert checked.figures["needed repair"] == "2 of 8 generated"


def test_too_many_repairs_blame_the_prompt_and_name_what_fails(place: Path) -> None:
    for number in range(8):
        talk(place, f"t{number}", {3: f"{N_BAD}{GOOD}"} if number < 4 else {})
    fixed(place)
    said = told(place, "fixup")
    assert "config/prompts/assistant.md: 4 of 8 generated transcripts failed; 30%" in said
    assert "What fails most: U1, H1, N3" in said


def test_a_changed_original_is_noticed(place: Path) -> None:
    path = talk(place, "a", {3: f"{N_BAD}{GOOD}"})
    fixed(place)
    path.write_text(path.read_text().replace("parcel 1", "parcel one"))
    assert "its original has changed since it was repaired" in told(place, "fixup")
    path.unlink()
    assert "its original can't be read" in told(place, "fixup")


def test_a_manifest_that_is_not_what_passes_is_refused(place: Path) -> None:
    talk(place, "a", {})
    fixed(place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    manifest["transcripts"][0]["id"] = "b"
    (place / MANIFEST).write_text(json.dumps(manifest))
    assert "is not what passes now: a, b" in told(place, "fixup")


def test_nothing_passing_is_said(place: Path) -> None:
    talk(place, "a", {1: f"BAD-S1 {GOOD}"})
    fixed(place)
    assert "nothing passes" in told(place, "fixup")


def test_scale_needs_all_of_it_made_judged_and_a_sample_read(place: Path) -> None:
    assert "nothing was generated at scale yet" in told(place, "scale")
    batch = {"id": "scale-001", "kind": "scale", "ids": ["a", "b", "c"], "inputs": {}}
    (place / "data/batches").mkdir(parents=True, exist_ok=True)
    (place / "data/batches/scale-001.json").write_text(json.dumps(batch))
    talk(place, "a", {})
    talk(place, "b", {})
    said = told(place, "scale")
    assert "data/raw: c is not made yet" in said
    assert "a.json: has no verdict yet" in said
    assert "0 transcripts made at scale were read by a person, 3 are needed" in said


def test_before_anything_is_made_at_scale_a_trial_counts_and_is_called_one(place: Path) -> None:
    batch = {"id": "trial-001", "kind": "trial", "trial": True, "ids": ["a"], "inputs": {}}
    (place / "data/batches").mkdir(parents=True, exist_ok=True)
    (place / "data/batches/trial-001.json").write_text(json.dumps(batch))
    talk(place, "a", {})
    assert run(place, "assess.py").returncode == 0
    found = gates.run_check(place, gates.GATES["scale"])
    assert found.figures["made"] == "a trial only: nothing of it ships"
    assert "0 transcripts made at scale were read by a person, 1 are needed" in told(place, "scale")
    scale = {"id": "scale-001", "kind": "scale", "ids": ["b"], "inputs": {}}
    (place / "data/batches/scale-001.json").write_text(json.dumps(scale))
    assert "b is not made yet" in told(place, "scale")
    assert "made" not in gates.run_check(place, gates.GATES["scale"]).figures


def test_a_rate_outside_of_what_was_confirmed_is_drift(place: Path) -> None:
    for kind, bad in (("confirm", 0), ("scale", 14)):
        ids = [f"{kind}{n:02}" for n in range(20)]
        batch = {"id": f"{kind}-001", "kind": kind, "ids": ids, "inputs": {}}
        (place / "data/batches").mkdir(parents=True, exist_ok=True)
        (place / f"data/batches/{kind}-001.json").write_text(json.dumps(batch))
        for number, item in enumerate(ids):
            talk(place, item, {3: f"{N_BAD}{GOOD}"} if number < bad else {})
    assert run(place, "assess.py").returncode == 0
    assert "30% of 20 pass; confirmed were 20 of 20" in told(place, "scale")
    assert "Something has drifted" in told(place, "scale")
    assert run(place, "fixup.py").returncode == 0
    assert "30% of 20 pass" in told(place, "scale")  # repairs don't hide it
