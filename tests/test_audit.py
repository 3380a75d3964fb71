"""The audit of a whole set: what is planted is found, what is clean is not, and the gate believes
nothing that it can't make again."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curation
from conversations import conversations
from curation import Measured, Ruler, Talk, contamination, declared, entropy, findings, measure
from designs import designed, edit
from evidence import wilson
from finetune_skills import gates
from finetune_skills.rehearsal import bench
from infrastructure import iter_records
from judging import words_hash
from settings import Artefacts, ProjectSettings, load_artefacts, load_project

PROJECT, AUDIT = "config/project.yaml", "data/audit/audit.json"
MANIFEST = "data/processed/passing_transcripts.json"
FORMULA = "I completely understand how frustrating this must be for you."
Exchange = dict[str, Any]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with a judged pilot, everybody in it passed, and the gate `scale` open."""
    root = designed(tmp_path_factory.mktemp("judged") / "demo")
    bench.script(root, "personas.py", "--count", "40")
    bench.script(root, "personas.py", "--count", "8", "--evaluation")
    bench.script(root, "generate.py")
    bench.script(root, "assess.py")
    list_all(root)
    scale = replace(gates.GATES["scale"], looks_at=("project.yaml#/limits",))
    gates.record(root, scale, "passed", "test")
    return root


@pytest.fixture
def place(judged: Path, tmp_path: Path) -> Path:
    shutil.copytree(judged, tmp_path / "demo")
    return tmp_path / "demo"


def transcripts(root: Path) -> list[Path]:
    return sorted((root / "data/raw/transcripts").rglob("*.json"))


def list_all(root: Path) -> None:
    """A manifest in which all transcripts pass, in the words that they have."""
    rows = []
    for path in transcripts(root):
        talk = json.loads(path.read_bytes())
        hashed = words_hash((each["user"], each["assistant"]) for each in talk["exchanges"])
        file = path.relative_to(root).as_posix()
        rows.append(
            {"id": talk["id"], "source_file": file, "transcript_hash": hashed, "score": 1.0}
        )
    (root / MANIFEST).write_text(json.dumps({"schema": 1, "count": len(rows), "transcripts": rows}))


def plant(root: Path, change: Callable[[Exchange, int], object], only: Sequence[str] = ()) -> None:
    """Change the exchanges of transcripts, and pass them as they are then."""
    for path in transcripts(root):
        if not only or path.stem in only:
            talk = json.loads(path.read_bytes())
            for number, exchange in enumerate(talk["exchanges"], 1):
                change(exchange, number)
            path.write_text(json.dumps(talk))
    list_all(root)


def audit(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/audit.py", *words]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )


def report(root: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = audit(root, *words, "--json")
    assert done.returncode == code, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def critical(told: Mapping[str, Any]) -> dict[str, Any]:
    return {row["test"]: row for row in told["findings"] if row["severity"] == "critical"}


def checked(root: Path) -> str:
    return " ".join(map(str, gates.run_check(root, gates.GATES["audit"]).findings))


def test_what_passes_is_audited_and_the_gate_opens(place: Path) -> None:
    told = report(place)
    assert (told["set"], told["count"], told["passed"]) == ("passing", 5, True)
    passing = json.loads((place / MANIFEST).read_bytes())["transcripts"]
    assert told["manifest"] == {row["id"]: row["transcript_hash"] for row in passing}
    assert checked(place) == ""
    figures = gates.run_check(place, gates.GATES["audit"]).figures
    assert (figures["conversations"], figures["critical"]) == (5, 0)


def test_a_second_run_writes_the_same_bytes(place: Path) -> None:
    report(place)
    before = (place / AUDIT).read_bytes()
    report(place)
    assert (place / AUDIT).read_bytes() == before


def test_a_formula_in_most_replies_is_critical_and_shown_in_three_conversations(
    place: Path,
) -> None:
    plant(place, lambda e, n: e.update(assistant=f"{FORMULA} {e['assistant']}") if n % 4 else None)
    told = report(place, code=1)
    row = critical(told)["phrase_critical"]
    assert row["what"] == '"i completely understand how frustrating this"'
    assert 0.5 < row["low"] < row["share"] < row["high"]
    assert len({each["id"] for each in row["examples"]}) == 3
    for each in row["examples"]:
        talk = json.loads((place / each["file"]).read_bytes())
        assert FORMULA in talk["exchanges"][each["exchange"] - 1]["assistant"]
    assert "phrase_critical" in checked(place)
    shown = audit(place).stdout
    assert "CRITICAL  phrase_critical" in shown
    assert "do: forbid the phrase" in shown
    assert max(map(len, shown.splitlines())) <= 80


def assistant_in_the_wrong_place(exchange: Exchange, number: int) -> None:
    if number == 3:
        exchange["user"] = "How can I help you today?"


def in_chinese(exchange: Exchange, number: int) -> None:
    if number == 2:
        exchange["assistant"] = (
            "\u5f88\u62b1\u6b49\u3002\u8bf7\u5148\u628a\u63d2\u5934\u62d4\u4e0b\u6765\u3002"
        )


def with_a_key(exchange: Exchange, number: int) -> None:
    if number == 1:
        exchange["user"] += " my key is sk-" + "abcdefghijklmnop1234"


def with_an_address(exchange: Exchange, number: int) -> None:
    if number == 1:
        exchange["user"] += " Write to a@example.com."


def at_length(exchange: Exchange, number: int) -> None:
    if number > 2:
        exchange["assistant"] = " ".join(f"word{n}" for n in range(400))


def test_what_is_planted_is_called_by_its_name_and_no_secret_is_repeated(place: Path) -> None:
    for change in (assistant_in_the_wrong_place, in_chinese, with_a_key, at_length):
        plant(place, change)
    told = report(place, code=1)
    assert critical(told).keys() >= {"simulator", "language", "secrets", "long_replies"}
    assert "abcdefghijklmnop1234" not in json.dumps(told)


def test_copies_of_a_conversation_are_found(place: Path) -> None:
    path, rng = transcripts(place)[0], random.Random(1)
    for name in ("copy-1", "copy-2", "copy-3"):
        talk = json.loads(path.read_bytes()) | {"id": name}
        for exchange in talk["exchanges"]:
            words = exchange["assistant"].split()
            words[rng.randrange(len(words))] = "changed"
            exchange["assistant"] = " ".join(words)
        path.with_name(f"{name}.json").write_text(json.dumps(talk))
    list_all(place)
    row = critical(report(place, code=1))["near_duplicates"]
    assert (row["k"], row["n"]) == (3, 8)
    assert all(" like " in each["text"] for each in row["examples"])


def test_an_evaluation_persona_in_the_set_is_contamination(place: Path) -> None:
    person = next(iter_records(place / "data/personas/evaluation.jsonl"))
    path = transcripts(place)[0]
    talk = json.loads(path.read_bytes())
    path.write_text(json.dumps(talk | {"persona": person | {"id": "other", "name": "Somebody"}}))
    row = critical(report(place, code=1))["contamination"]
    assert [each["id"] for each in row["examples"]] == [path.stem]
    assert person["id"] in row["examples"][0]["text"]


def test_another_set_is_compared_as_transcripts_and_as_training_examples(
    place: Path, tmp_path: Path
) -> None:
    path = transcripts(place)[1]
    talk = json.loads(path.read_bytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.json").write_text(json.dumps({"id": "x", "exchanges": talk["exchanges"]}))
    assert list(critical(report(place, "--against", str(tmp_path / "other"), code=1))) == [
        "contamination"
    ]
    messages = [{"role": "system", "content": "s"}]
    for each in talk["exchanges"]:
        messages += [{"role": side, "content": each[side]} for side in ("user", "assistant")]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x", "messages": messages}) + "\n")
    row = critical(report(place, "--against", str(tmp_path / "rows.jsonl"), code=1))[
        "contamination"
    ]
    assert [each["id"] for each in row["examples"]] == [path.stem]
    (tmp_path / "none.jsonl").write_text("{}\n")
    assert "no conversation in it" in audit(place, "--against", str(tmp_path / "none.jsonl")).stderr


def test_redaction_writes_copies_and_changes_no_original(place: Path) -> None:
    plant(place, with_an_address, only=["train-00002"])
    before = {path: path.read_bytes() for path in transcripts(place)}
    told = report(place, "--redact")
    assert {path: path.read_bytes() for path in transcripts(place)} == before
    assert told["redacted"] == ["data/repaired/train-00002.json"]
    copy = json.loads((place / "data/repaired/train-00002.json").read_bytes())
    assert copy["exchanges"][0]["user"].endswith("Write to [email].")
    row = json.loads((place / MANIFEST).read_bytes())["transcripts"][1]
    assert copy["repaired_from"] == {name: row[name] for name in ("source_file", "transcript_hash")}
    everything = report(place, "--all")
    assert "personal_data" not in {row["test"] for row in everything["findings"]}
    assert (place / "data/audit/all.json").is_file()


def test_what_was_changed_since_it_was_judged_is_judged_first(place: Path) -> None:
    path = transcripts(place)[0]
    talk = json.loads(path.read_bytes())
    talk["exchanges"][0]["assistant"] = "Something else."
    path.write_text(json.dumps(talk))
    done = audit(place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "other words than those that were judged" in done.stderr
    assert not (place / AUDIT).exists()


def test_when_nothing_passes_it_says_so(place: Path) -> None:
    for text in ('{"schema": 1, "count": 0, "transcripts": []}', "[]", "{"):
        (place / MANIFEST).write_text(text)
        done = audit(place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "python scripts/assess.py" in done.stderr
    (place / MANIFEST).unlink()
    assert "nothing to audit" in audit(place).stderr
    assert report(place, "--all")["count"] == 5


def test_a_dry_run_writes_nothing_and_a_closed_gate_stops_it(place: Path) -> None:
    assert report(place, "--dry-run") == {
        "calls": 0,
        "compared with": 0,
        "conversations": 5,
        "tests": 23,
    }
    gates.record(place, gates.GATES["scale"], "failed", "test")
    done = audit(place)
    assert (done.returncode, "gate scale" in done.stderr) == (2, True)
    assert not (place / "data/audit").exists()


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────


def rewritten(root: Path, **changed: Any) -> str:
    """What the check says of an audit in which somebody has changed something."""
    told = json.loads((root / AUDIT).read_bytes())
    (root / AUDIT).write_text(json.dumps(told | changed))
    said = checked(root)
    (root / AUDIT).write_text(json.dumps(told))
    return said


def test_the_gate_makes_the_verdict_again(place: Path) -> None:
    plant(place, with_a_key)
    told = report(place, code=1)
    assert "secrets" in checked(place)
    assert "not those of its counts" in rewritten(place, findings=[], passed=True)
    assert "secrets" in rewritten(place, findings=[], passed=True)
    fewer = [row for row in told["tests"] if row["test"] != "secrets"]
    assert "lacks the test secrets" in rewritten(place, tests=fewer, findings=[], passed=True)
    tests = [row | {"limit": 1.0} for row in told["tests"]]
    assert "secrets" in rewritten(place, tests=tests)


@pytest.mark.parametrize(
    "changed",
    [
        {"tests": None},
        {"findings": [{}]},
        {"manifest": []},
        {"figures": {}},
        {"tests": [{"k": "x"}]},
    ],
)
def test_a_broken_audit_is_named_and_does_not_stop_the_command(
    place: Path, changed: dict[str, Any]
) -> None:
    report(place)
    assert "audit.json" in rewritten(place, **changed)


def test_what_passes_now_is_what_has_to_be_audited(place: Path) -> None:
    report(place)
    transcripts(place)[0].unlink()
    list_all(place)
    assert "1 transcripts differ" in checked(place)
    report(place)
    assert checked(place) == ""
    (place / MANIFEST).write_text('{"transcripts": []}')
    assert "nothing was audited" in checked(place)


def test_other_limits_and_other_evaluation_people_make_it_stale(place: Path) -> None:
    report(place)
    edit(place / PROJECT, "phrase_critical: 0.5 ", "phrase_critical: 0.4 ")
    assert "made with other limits (phrase_critical)" in checked(place)
    edit(place / PROJECT, "phrase_critical: 0.4 ", "phrase_critical: 0.5 ")
    (place / "data/personas/evaluation.jsonl").unlink()
    assert "has changed since it was compared" in checked(place)


def test_without_an_audit_it_says_what_to_run(place: Path) -> None:
    assert "Run: python scripts/audit.py" in checked(place)


# ── any set ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ruler(judged: Path) -> Ruler:
    return Ruler(load_project(judged), load_artefacts(judged), wilson)


def a_talk(number: int, pairs: Sequence[tuple[str, str]], **more: Any) -> Talk:
    return Talk(f"t{number:03}", f"data/raw/transcripts/t{number:03}.json", pairs, **more)


def audited(talks: Sequence[Talk], ruler: Ruler) -> tuple[list[dict[str, Any]], Measured]:
    found = measure(talks, ruler)
    return findings(found, talks, declared(ruler.project), wilson), found


GIANT = "so and so, " * 40_000


@pytest.mark.parametrize(
    "pairs",
    [[], [("Hi.", "Hello.")], [("a", ""), ("", "b")], [("", "  "), ("...", "!")], [("one", GIANT)],
     [(GIANT, "two")], [(f"Question {n}?", f"Answer {n}.") for n in range(200)]],
)  # fmt: skip
def test_conversations_of_any_size_have_their_figures(
    pairs: list[tuple[str, str]], ruler: Ruler
) -> None:
    begun = time.process_time()
    rows, found = audited([a_talk(1, pairs)], ruler)
    assert found.figures["replies"] == len(pairs)
    assert all(0 <= made.k <= made.n for made in found.tests)
    assert all(row["low"] > row["limit"] for row in rows)
    assert time.process_time() - begun < 10


def test_nothing_at_all_is_no_finding(ruler: Ruler) -> None:
    rows, found = audited([], ruler)
    assert rows == []
    assert found.figures["conversations"] == 0


def clean(seed: int) -> list[Talk]:
    """Twelve conversations of eight exchanges, in words that nobody repeats too often."""
    said = iter(conversations(192, 15, seed))
    return [a_talk(n, [(next(said), next(said)) for _ in range(8)]) for n in range(12)]


@pytest.mark.slow  # more than ten seconds
def test_clean_sets_raise_a_critical_flag_in_at_most_one_draw_of_twenty(ruler: Ruler) -> None:
    quiet = replace(ruler, artefacts=Artefacts(schema=1))
    flags = 0
    for seed in range(200):
        rows, _ = audited(clean(seed), quiet)
        flags += any(row["severity"] == "critical" for row in rows)
    assert flags <= 10


@given(st.randoms(use_true_random=False))
@settings(max_examples=5, deadline=None)
def test_the_order_of_the_conversations_changes_nothing(rng: random.Random) -> None:
    project = ProjectSettings.model_validate(
        {"schema": 1, "name": "n", "domain": "d", "language": "en",
         "target": {"hardware": "h", "offline": True, "context_window": 32768}}
    )  # fmt: skip
    ruler, talks = Ruler(project, Artefacts(schema=1), wilson), clean(1)[:6]
    mixed = talks[:]
    rng.shuffle(mixed)
    one, other = audited(talks, ruler), audited(mixed, ruler)
    assert one[0] == other[0]
    assert one[1].figures == other[1].figures


def test_praise_that_only_comes_late_is_found_and_nothing_is_divided_by_zero(ruler: Ruler) -> None:
    late = [("m", "Do this.")] * 6 + [("m", "Great question, do this.")] * 3
    rows, found = audited([a_talk(n, late) for n in range(10)], ruler)
    assert "late_praise" in {row["test"] for row in rows}
    assert found.figures["praise"]["last third per first"] is None
    even = [("m", "Great question, do this."), ("m", "Do this."), ("m", "Good point, so do.")]
    rows, found = audited([a_talk(n, even) for n in range(10)], ruler)
    assert "late_praise" not in {row["test"] for row in rows}
    assert found.figures["praise"]["last third per first"] == 1


def test_a_language_without_a_word_list_is_not_measured_and_says_so(ruler: Ruler) -> None:
    korean = replace(ruler, project=ruler.project.model_copy(update={"language": "ko"}))
    _, found = audited([a_talk(1, [("a", "b")])], korean)
    assert set(found.silent) == {"praise", "late_praise", "happy_endings"}


def test_what_is_shown_has_no_control_signs_and_no_address(ruler: Ruler) -> None:
    reply = "\x1b[2J\ud800 As an AI, I write to a@example.com."
    rows, _ = audited([a_talk(n, [("m", reply)] * 3) for n in range(5)], ruler)
    shown = [each["text"] for row in rows for each in row["examples"]]
    assert any("As an AI" in text for text in shown)
    assert all(text.isprintable() and "a@example" not in text for text in shown)


def test_headers_in_every_reply_and_always_the_same_ending_are_found(ruler: Ruler) -> None:
    said = iter(conversations(60, 12))
    pairs = [("m", f"## First\n{next(said)}\nLet me know how it goes") for _ in range(60)]
    rows, found = audited([a_talk(1, pairs)], ruler)
    told = {row["what"] for row in rows}
    assert "replies with a header" in told
    assert 'replies that end with "how it goes"' in told
    assert found.figures["how replies end"]["entropy"] == 0


def test_messages_outside_their_words_and_people_who_come_twice_are_found(ruler: Ruler) -> None:
    metas = [{"range": [5, 30]}] * 4
    person = {"id": "p", "name": "Ann", "seed": 1, "trajectory": "stuck"}
    people = [person | {"id": f"p{n}", "seed": n} for n in range(5)]
    pairs = [("too short", "b")] * 4
    talks = [a_talk(n, pairs, metas=metas, persona=each) for n, each in enumerate(people)]
    rows, found = audited(talks, ruler)
    assert {"outside_limits", "alike_personas"} <= {row["test"] for row in rows}
    assert found.figures["people"]["different"] == 1


def test_the_same_scene_of_two_people_is_a_figure_and_no_contamination() -> None:
    talk = a_talk(
        1, [("a", "b")], persona={"id": "p1", "name": "Ann", "flaws": [], "trait": "calm"}
    )
    other = {"id": "e1", "name": "Bo", "flaws": [], "trait": "proud"}
    made, told = contamination([talk], [], [other], 0.8)
    assert (made.k, made.n, told["same scene"]) == (0, 1, 1)


def test_evenness_is_zero_for_one_kind_and_one_for_all_alike() -> None:
    assert entropy({"a": 9}) == 0
    assert entropy({"a": 3, "b": 3, "c": 3}) == 1
    assert entropy({}) is None
    assert 0 < (entropy({"a": 9, "b": 1}) or 0) < 1


def test_every_declared_test_is_made_or_may_lack_and_has_an_advice(place: Path) -> None:
    sys.path.insert(0, str(place / "scripts"))
    tests = declared(load_project(place))
    text = (place / "scripts/audit.py").read_text()
    assert all(f'    "{name}": "' in text for name in tests)
    assert set(curation.SHARED_LIMITS) <= set(tests)
