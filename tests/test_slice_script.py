"""scripts/slice.py as a person runs it, and the gate that looks at what it made."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from designs import edit, example
from finetune_skills import gates
from finetune_skills.checks_slice import SLICE_SEEN, check_slice
from finetune_skills.rehearsal import bench
from infrastructure import Appender, encode_line, selector_hash
from judging import words_hash
from slicing import FOLDER, MANIFEST, taught_exchanges
from test_tokens import CHATML, REWRITES, own

PROJECT, PERSONAS = "config/project.yaml", "data/personas/evaluation.jsonl"
FILES = ("train.jsonl", "validation.jsonl", "training_data.jsonl", "skipped.jsonl")
FILES += ("slices.json", "README.md")
NEAR = """


def near_duplicates(texts, threshold):
    return [(a, b, 0.9) for a in texts for b in texts if a < b and texts[a][:9] == texts[b][:9]]
"""


def transcript(number: int, exchanges: int, **more: Any) -> dict[str, Any]:
    topics = [{"category": "water" if number % 2 else "bills", "subtopic": "s", "complexity": "c"}]
    person = {"id": f"train-{number:05}", "name": f"Ann {number}", "seed": number}
    name = f"talk-{number:03}"
    said = [
        {"user": f"{name} asks {n}", "assistant": f"{name} hears {n}"} for n in range(exchanges)
    ]
    made: dict[str, Any] = {"schema": 1, "id": name, "persona": person | {"topic_seeds": topics}}
    return made | {"exchanges": said, "source": "generated", "provenance": {}} | more


def store(root: Path, talks: list[dict[str, Any]]) -> Path:
    """These transcripts, and a manifest in which all of them pass."""
    rows = []
    for talk in talks:
        file = f"data/raw/transcripts/scale-001/{talk['id']}.json"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(talk))
        pairs = [(each["user"], each["assistant"]) for each in talk["exchanges"]]
        row = {"id": talk["id"], "source_file": file, "score": 0.9, "judges": ["mild", "strict"]}
        row["transcript_hash"] = words_hash(pairs)
        rows.append(row | ({"trial": True} if talk["provenance"].get("trial") else {}))
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    manifest = {"schema": 1, "count": len(rows), "transcripts": rows}
    (root / MANIFEST).write_text(json.dumps(manifest))
    return root


def opened(root: Path, *names: str) -> Path:
    """The support desk, with `fixup` and these gates let through by a person."""
    example(root)
    seen = {"config/rubric.yaml": selector_hash(root, "config/rubric.yaml")}
    with Appender(root / ".finetune/ledger.jsonl") as ledger:
        for name in ("fixup", *names):
            ledger.append({"schema": 1, "gate": name, "result": "waived", "looked_at": seen})
    with (root / "curation.py").open("a") as code:
        code.write(NEAR)
    return root


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return opened(tmp_path_factory.mktemp("empty") / "demo")


@pytest.fixture
def place(empty: Path, tmp_path: Path) -> Path:
    """Thirty passing transcripts of 5 to 34 exchanges."""
    shutil.copytree(empty, tmp_path / "demo")
    edit(tmp_path / "demo" / PROJECT, "target_examples: 40 ", "target_examples: 20 ")
    return store(tmp_path / "demo", [transcript(n, 5 + n) for n in range(30)])


@pytest.fixture(scope="module")
def sliced(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training set of 24 transcripts, of which two are of one scenario."""
    root = tmp_path_factory.mktemp("sliced") / "demo"
    shutil.copytree(empty, root)
    edit(root / PROJECT, "target_examples: 40 ", "target_examples: 20 ")
    talks = [transcript(n, 6) for n in range(24)]
    talks[1]["persona"]["seed"] = talks[0]["persona"]["seed"]
    made(store(root, talks))
    return root


@pytest.fixture
def done(sliced: Path, tmp_path: Path) -> Path:
    shutil.copytree(sliced, tmp_path / "demo")
    return tmp_path / "demo"


def run(place: Path, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/slice.py", *words]
    known: dict[str, Any] = {"cwd": place, "text": True, "env": os.environ | env}
    return subprocess.run(command, **known, capture_output=True, timeout=120, check=False)


def made(place: Path, *words: str, **env: str) -> dict[str, Any]:
    done = run(place, *words, "--json", **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(place: Path, *words: str) -> str:
    done = run(place, *words)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def rows(place: Path, name: str = "training_data.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / FOLDER / name).read_text().splitlines()]


def files(place: Path) -> dict[str, bytes]:
    return {name: (place / FOLDER / name).read_bytes() for name in FILES}


def findings(place: Path) -> str:
    return "\n".join(map(str, check_slice(place).findings))


# What is made


def test_what_passes_becomes_two_files_and_the_gate_passes(place: Path) -> None:
    told = made(place)
    assert told["figures"]["transcripts"] == 30
    assert told["figures"]["train"]["transcripts"] == 24
    data, both = rows(place), {"train": 0, "validation": 0}
    for side in both:
        both[side] = len(rows(place, f"{side}.jsonl"))
        assert both[side] == told["figures"][side]["examples"] > 0
    assert sum(both.values()) == len(data) == told["figures"]["examples"]
    assert {row["provenance"]["rubric_hash"] for row in data} != {""}
    assert findings(place) == ""


def test_every_reply_of_every_transcript_carries_loss_once(place: Path) -> None:
    made(place, "--mode", "slices")
    taught: dict[str, list[int]] = {}
    for row in rows(place):
        learned = taught_exchanges(row["messages"], row["supervised"], row["dropped"])
        taught.setdefault(row["transcript"], []).extend(learned)
    assert {name: sorted(each) for name, each in taught.items()} == {
        f"talk-{n:03}": list(range(1, 6 + n)) for n in range(30)
    }
    assert rows(place, "skipped.jsonl") == []


def test_both_topics_are_on_both_sides(place: Path) -> None:
    strata = made(place)["strata"]
    assert strata == {"generated / bills": {"train": 12, "validation": 3},
                      "generated / water": {"train": 12, "validation": 3}}  # fmt: skip


def test_the_same_bytes_in_any_order_in_any_process_and_at_the_same_time(place: Path) -> None:
    made(place, PYTHONHASHSEED="1")
    first = files(place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    manifest["transcripts"].reverse()
    (place / MANIFEST).write_text(json.dumps(manifest))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: run(place, PYTHONHASHSEED=seed), ("0", "random")))
    assert [each.returncode for each in both] == [0, 0]
    assert files(place) == first


def test_a_dry_run_writes_nothing_and_needs_no_gate(place: Path) -> None:
    (place / ".finetune/ledger.jsonl").write_bytes(b"")
    assert made(place, "--dry-run")["figures"]["examples"] == 30
    assert not (place / FOLDER / "train.jsonl").exists()
    assert "gate fixup" in refused(place)


def test_the_table_fits_and_says_what_was_taken_to_be_true(place: Path) -> None:
    said = run(place).stdout
    assert max(map(len, said.splitlines())) <= 90
    for words in ("examples per transcript", "tokens computed", "tokens supervised", "truncated",
                  "taken to keep earlier turns", "finetune gate slice"):  # fmt: skip
        assert words in said


def test_the_card_says_what_it_is_and_what_nobody_decided(place: Path) -> None:
    made(place)
    card = (place / FOLDER / "README.md").read_text()
    for words in ("30 training examples from 30 conversations", "Licence: not decided yet",
                  "Audit: not audited", "30 passed mild and strict", "| `train.jsonl` | 24 | 24 |",
                  "Terms of python:simulated:assistant (assistant): our own code"):  # fmt: skip
        assert words in card, words


@pytest.mark.parametrize("supervise", ["all", "last"])
def test_the_card_and_the_gate_know_other_ways_to_supervise(place: Path, supervise: str) -> None:
    edit(place / PROJECT, "supervise: once ", f"supervise: {supervise} ")
    made(place, "--mode", "slices")
    assert "Each reply carries loss once" not in (place / FOLDER / "README.md").read_text()
    assert findings(place) == ""


def test_the_audits_own_word_is_on_the_card_and_in_the_gate(done: Path) -> None:
    path = done / "data/audit/audit.json"
    path.parent.mkdir()
    rows = json.loads((done / MANIFEST).read_bytes())["transcripts"]
    known = {"passed": True, "manifest": {row["id"]: row["transcript_hash"] for row in rows}}
    path.write_text(json.dumps(known | {"findings": [{"severity": "warning"}] * 2}))
    made(done)
    assert "Audit: audited: passed, 2 warning." in (done / FOLDER / "README.md").read_text()
    for told, words in (
        (known | {"manifest": {}, "passed": False}, "failed; of other words or transcripts"),
        ({"findings": 3}, "cannot be read"),
        ({}, "without a result"),
    ):
        path.write_text(json.dumps(told))
        assert words in check_slice(done).figures["audit"]


def test_verdicts_by_an_older_rubric_are_named(done: Path) -> None:
    path = done / "data/assessments/combined.jsonl"
    path.parent.mkdir()
    path.write_bytes(encode_line({"id": "talk-001", "rubric_hash": "old"}))
    assert "1 by another rubric than today's" in check_slice(done).figures["judges"]


# Lineage, from files


def test_relatives_and_near_duplicates_stay_on_one_side(place: Path) -> None:
    talks = [transcript(n, 6) for n in range(12)]
    for n in (0, 1, 2):
        talks[n]["persona"]["seed"] = 77
    talks[5]["exchanges"][0] = talks[4]["exchanges"][0]
    store(place, talks)
    told = made(place)
    groups = {row["transcript"]: row["group"] for row in rows(place)}
    assert {groups[f"talk-{n:03}"] for n in range(3)} == {"talk-000"}
    assert groups["talk-004"] == groups["talk-005"]
    assert (told["near-duplicates"], told["figures"]["groups"]) == (1, 9)
    assert findings(place).count("holds 12 examples") == 1


def test_documents_stay_together_when_asked(place: Path) -> None:
    talks = [transcript(n, 6, source="document") for n in range(12)]
    for n, talk in enumerate(talks):
        start = 100 * n
        span = {"document": f"d{n % 3}", "start": start, "end": start + 10}
        talk |= {"persona": None, "provenance": {"spans": [span]}}
    store(place, talks)
    assert made(place)["figures"]["groups"] == 12
    assert made(place, "--group-by", "document")["figures"]["groups"] == 3


def test_all_in_one_group_is_an_error_that_says_what_to_do(place: Path) -> None:
    person = transcript(1, 1)["persona"]
    store(place, [transcript(n, 6, persona=person) for n in range(5)])
    assert "no validation set: 5 transcripts make 1 group" in refused(place)
    assert not (place / FOLDER / "train.jsonl").exists()


@pytest.mark.parametrize("change", [{"id": "train-00003"}, {"seed": 3}])
def test_an_evaluation_persona_among_the_training_is_refused(
    place: Path, change: dict[str, Any]
) -> None:
    made(place)
    people = [transcript(n, 1)["persona"] | {"id": f"eval-{n}", "seed": 1000 + n} for n in (50, 51)]
    (place / PERSONAS).parent.mkdir(parents=True, exist_ok=True)
    (place / PERSONAS).write_bytes(b"".join(map(encode_line, people)))
    made(place)
    people[1] |= change
    (place / PERSONAS).write_bytes(b"".join(map(encode_line, people)))
    said = refused(place)
    assert "talk-003" in said
    assert str(people[1]["id"]) in said
    assert "talk-003 has the evaluation's persona" in findings(place)


# What is refused


def test_nothing_passing_says_what_to_do(place: Path) -> None:
    store(place, [])
    assert "no transcript passes to learn from: none does" in refused(place)
    (place / MANIFEST).unlink()
    assert "assess.py" in refused(place)


def broken(place: Path) -> Iterator[tuple[str, str]]:
    """Manifests that do not fit, and what is said of them."""
    good, one = (place / MANIFEST).read_text(), "data/raw/transcripts/scale-001/talk-003.json"
    yield "{", "is no manifest"
    yield '{"transcripts": [{"id": "a"}]}', "is no manifest"
    yield '{"transcripts": [1]}', "is no manifest"
    yield good.replace('"talk-004"', '"talk-003"'), "talk-003 stands twice"
    yield good.replace(one, "data/baseline/talk-003.json"), "not below"
    yield good.replace(one, "data/repaired/../../x.json"), "not below"
    yield good.replace(one, "data/repaired/talk-003.json"), "is gone"
    yield good.replace(one, one.replace("003", "004")), "other words"


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_a_manifest_that_does_not_fit_names_what_is_wrong(place: Path) -> None:
    for text, words in list(broken(place)):
        (place / MANIFEST).write_text(text)
        said = refused(place)
        assert words in said, said
        assert "assess.py" in said


def test_a_transcript_that_changed_since_it_was_judged_is_refused(place: Path) -> None:
    made(place)
    path = place / "data/raw/transcripts/scale-001/talk-003.json"
    path.write_text(path.read_text().replace("hears 2", "heard 2"))
    assert "has other words than those that were judged. Run: python scripts/assess" in refused(
        place
    )
    assert "has other words" in findings(place)
    path.unlink()
    assert "talk-003.json is gone" in findings(place)


def test_a_limit_that_nothing_fits_is_an_error_and_writes_nothing(place: Path) -> None:
    talks = [transcript(n, 6) for n in range(6)]
    for n, talk in enumerate(talks):
        talk["exchanges"][0]["user"] = f"{n} " * 40_000
    store(place, talks)
    assert "its transcripts are all over limits.max_tokens (16,000)" in refused(place)
    assert not (place / FOLDER / "train.jsonl").exists()


def test_blank_replies_are_listed_and_cost_only_themselves(place: Path) -> None:
    talks = [transcript(n, 6) for n in range(6)]
    talks[2]["exchanges"][3]["assistant"] = "  "
    store(place, talks)
    assert made(place)["figures"]["replies without loss"] == {"blank reply": 1}
    listed = rows(place, "skipped.jsonl")
    assert [(row["transcript"], row["exchange"]) for row in listed] == [("talk-002", 4)]
    edit(place / PROJECT, "target_examples: 20 ", "target_examples: 6 ")
    made(place)
    assert findings(place) == ""


# Limits and settings


def test_over_a_tenth_lost_says_plan_shorter_conversations(place: Path) -> None:
    talks = [transcript(n, 40) for n in range(6)]
    for talk in talks:
        for each in talk["exchanges"][20:]:
            each["assistant"] += " word" * 600
    store(place, talks)
    told = made(place)
    assert told["figures"]["share lost"] > 0.1
    assert "plan shorter conversations" in told["next"]
    assert "Plan shorter conversations" in findings(place)
    edit(place / PROJECT, "over_limit: skip ", "over_limit: truncate ")
    told = made(place)
    assert told["figures"]["truncated"] > 0
    assert "Plan shorter" not in findings(place)


def test_a_tokenizer_of_the_base_model_counts_exactly_and_shows_its_template(place: Path) -> None:
    edit(place / PROJECT, 'tokenizer: ""', 'tokenizer: "../base"')
    assert "is not below the project" in refused(place)
    edit(place / PROJECT, 'tokenizer: "../base"', 'tokenizer: "models/base"')
    assert "models/base: there is no tokenizer.json" in refused(place)
    (place / "models").mkdir(exist_ok=True)
    own(place / "models/base", CHATML)
    told = made(place)
    assert told["tokens counted"]["exactness"] == "exact"
    assert told["tokens counted"]["chat template"] == "known"
    assert list(told["figures"]["ways"]) == ["whole: it fits"]
    assert findings(place) == ""
    own(place / "models/base", REWRITES)
    assert "files of slicing.tokenizer" in findings(place)


def test_other_settings_make_the_gate_say_which(place: Path) -> None:
    made(place)
    edit(place / PROJECT, "max_gap: 5 ", "max_gap: 4 ")
    assert "slicing.max_gap: is 4 now; the set was made with 5." in findings(place)
    made(place, "--mode", "slices", "--seed", "9")
    assert findings(place) == ""


# The gate


def forged(place: Path, change: Any) -> str:
    """A set whose three files agree, after a change to its first line; what the gate says."""
    from slicing import files_of

    data = rows(place)
    change(data)
    for name, text in files_of(data).items():
        (place / FOLDER / name).write_bytes(text)
    said = findings(place)
    assert said
    return said


def swap(data: list[dict[str, Any]]) -> None:
    data[0]["messages"][2]["content"] = "Something nobody said."


def unlearn(data: list[dict[str, Any]]) -> None:
    data[0]["supervised"].pop()


def again(data: list[dict[str, Any]]) -> None:
    data.append(data[0] | {"id": "again"})


def lose(data: list[dict[str, Any]]) -> None:
    del data[0]


def move(data: list[dict[str, Any]]) -> None:
    mine = next(row for row in data if row["transcript"] == "talk-001")
    mine |= {"group": "own", "split": "validation" if mine["split"] == "train" else "train"}


def grow(data: list[dict[str, Any]]) -> None:
    data[0]["tokens_at_most"] = 999_999


def rehash(data: list[dict[str, Any]]) -> None:
    data[0]["provenance"]["transcript_hash"] = "0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap, "its messages are not the system prompt and the transcript's"),
        (unlearn, "carries no loss and is not listed"),
        (again, "carries loss more than once"),
        (lose, "is missing in the set"),
        (move, "are related, and on two sides"),
        (grow, "limits.max_tokens is 16,000"),
        (rehash, "was made from other words"),
    ],
)
def test_a_set_that_was_changed_does_not_pass(done: Path, change: Any, words: str) -> None:
    assert findings(done) == ""
    assert words in forged(done, change)


def test_a_file_that_was_edited_alone_does_not_pass(done: Path) -> None:
    path = done / FOLDER / "train.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[1:]))
    assert "train.jsonl: is not what training_data.jsonl says" in findings(done)


@pytest.mark.parametrize("name", ["training_data.jsonl", "skipped.jsonl", "slices.json"])
def test_a_missing_or_torn_file_is_named(done: Path, name: str) -> None:
    (done / FOLDER / name).write_text("[")
    assert findings(done)
    (done / FOLDER / name).unlink()
    assert f"{name}: is not there" in findings(done)


def test_the_target_has_to_be_decided_and_reached(done: Path) -> None:
    edit(done / PROJECT, "target_examples: 20 ", "target_examples: 25 ")
    assert "holds 24 examples; the target is 25" in findings(done)
    edit(done / PROJECT, "target_examples: 25 ", "target_examples: null ")
    assert "Write how many examples you want" in findings(done)


def test_a_set_whose_near_duplicates_nobody_looked_for_does_not_pass(place: Path) -> None:
    made(place)
    with (place / "curation.py").open("a") as code:
        code.write("\n\nnear_duplicates = None\n")
    made(place)
    assert "near-duplicates were not looked for" in findings(place)


def test_the_gate_is_a_row_with_figures_and_goes_stale(done: Path) -> None:
    checked = check_slice(done)
    assert checked.figures["examples"] == checked.items == 24
    assert checked.figures["train"] == "19 of 19 transcripts"
    assert {*SLICE_SEEN} >= {f"{FOLDER}/{name}" for name in FILES}
    state = gates.pass_gate(done, "slice", "test")
    assert [str(each) for each in state.findings] == [
        "slice: needs fixup. Run: finetune gate fixup"
    ] or not state.findings


# From the first script to the last


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_trial_conversations_are_left_out_unless_asked_for_and_marked(tmp_path: Path) -> None:
    root = opened(tmp_path / "demo", "taxonomy", "prompts", "baseline", "rubric")
    bench.script(root, "personas.py", "--count", "40")
    bench.script(root, "personas.py", "--count", "8", "--evaluation")
    bench.script(root, "generate.py", "--trial")
    bench.script(root, "assess.py")
    assert "are trial, for --trial" in refused(root)
    told = made(root, "--trial")
    data = rows(root)
    assert len(data) >= told["figures"]["transcripts"] > 5
    assert all(row["trial"] and row["simulated"] for row in data)
    card = (root / FOLDER / "README.md").read_text()
    assert "**Trial.**" in card
    assert "**Simulated.**" in card
    edit(root / PROJECT, "target_examples: 40 ", "target_examples: 5 ")
    assert findings(root) == ""
    assert check_slice(root).figures["trial"] == len(data)
    sides = {row["group"]: row["split"] for row in data}
    pairs = itertools.combinations(data, 2)
    assert all(a["split"] == b["split"] for a, b in pairs if a["group"] == b["group"])
    assert set(sides.values()) == {"train", "validation"}
