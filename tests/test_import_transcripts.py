"""Conversations of others: taken once, by stated rules, and what is refused is refused aloud."""

import codecs
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import CODE
from designs import example

sys.path.append(str(CODE / "templates/scripts"))

import import_transcripts

from formats import Refused, content_hash, read, talk_of
from infrastructure import canonical_hash, iter_records

Json = dict[str, Any]


def ours(*pairs: tuple[str, str], **fields: Any) -> Json:
    rows = [{"user": user, "assistant": reply, "meta": {"n": 1}} for user, reply in pairs]
    return {"id": "own-1", "exchanges": rows, **fields}


def chat(*turns: str, **fields: Any) -> Json:
    """OpenAI messages from `u:hello`, `a:hi`, `s:be kind`."""
    role = {"u": "user", "a": "assistant", "s": "system"}
    messages = [{"role": role[turn[0]], "content": turn[2:]} for turn in turns]
    return {"messages": messages, **fields}


def share(*turns: str) -> Json:
    who = {"u": "human", "a": "gpt", "s": "system"}
    return {"conversations": [{"from": who[turn[0]], "value": turn[2:]} for turn in turns]}


def message(**fields: Any) -> str:
    """A conversation whose second message has these fields."""
    reply = {"role": "assistant", "content": "ho"} | fields
    return json.dumps({"messages": [{"role": "user", "content": "hi"}, reply]})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example(tmp_path_factory.mktemp("import") / "demo")


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-R", str(made), str(tmp_path / "demo")], check=True)
    return tmp_path / "demo"


def run(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/import_transcripts.py", *map(str, words)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def told(root: Path, *words: object) -> Json:
    done = run(root, *words, "--json")
    assert done.stdout, done.stderr
    return {"code": done.returncode, **json.loads(done.stdout)}


def transcripts(root: Path) -> dict[str, Json]:
    found = map(json.loads, map(Path.read_bytes, root.glob("data/raw/transcripts/*/*.json")))
    return {each["id"]: each for each in found}


def transcripts_of(root: Path) -> list[Path]:
    return list(root.glob("data/raw/transcripts/*/*.json"))


def write(folder: Path, **files: Any) -> Path:
    """Files by name, `__` for the dot; anything that is no text or bytes is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        text = data if isinstance(data, str | bytes) else json.dumps(data)
        raw = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def said(folder: Path, name: str, wanted: str = "auto") -> list[Any]:
    """Exchanges as pairs for what is taken, the words of the refusal for what is not."""
    found: list[Any] = []
    try:
        for item in read(folder / name, name, wanted):
            try:
                if isinstance(item.value, Refused):
                    raise item.value
                rows = talk_of(item.value, item.format).exchanges
                found.append([(row["user"], row["assistant"]) for row in rows])
            except Refused as no:
                found.append(str(no))
    except Refused as no:
        found.append(str(no))
    return found


# ── what becomes of one file ──────────────────────────────────────────────────────────────────────

ONE = [("hi", "ho")]
TABLE: list[tuple[str, Any, list[Any]]] = [
    ("a.json", ours(*ONE), [ONE]),
    ("a.json", [ours(*ONE), ours(("x", "y"))], [ONE, [("x", "y")]]),
    ("a.json", {"transcript_id": "t", "conversations": ours(*ONE)["exchanges"]}, [ONE]),
    ("a.json", ours(*ONE)["exchanges"], [ONE]),
    ("a.json", chat("u:hi", "a:ho"), [ONE]),
    ("a.json", chat("u:hi", "a:ho")["messages"], [ONE]),
    ("a.json", share("u:hi", "a:ho"), [ONE]),
    ("a.json", [share("s:be kind", "u:hi", "a:ho")] * 2, [ONE, ONE]),
    ("a.json", "\n".join([json.dumps(chat("u:hi", "a:ho"))] * 2), [ONE, ONE]),
    ("a.json", chat("a:hello", "u:hi", "a:ho"), [ONE]),
    ("a.json", chat("u:hi", "u:there", "a:ho", "a:ha"), [[("hi\n\nthere", "ho\n\nha")]]),
    ("a.json", chat("u:hi", "s:now rude", "u:there", "a:ho"), [[("hi\n\nthere", "ho")]]),
    ("a.json", chat("u:hi", "a:ho", "u:bye"), [ONE]),
    ("a.json", chat("u:hi"), ["no exchange in it: a user message and a reply to it are needed"]),
    ("a.json", chat("a:hi"), ["no exchange in it: a user message and a reply to it are needed"]),
    ("a.json", chat(), ["no exchange in it"]),
    ("a.json", chat("u:hi", "a: "), ["message 2: empty"]),
    ("a.json", ours(("hi", "")), ["exchange 1, assistant: empty"]),
    ("a.json", message(role="critic"), ["message 2: 'critic' is no known role"]),
    ("a.json", message(role="tool"), ["message 2: a tool or function call; only conversations "
                                      "are read"]),
    ("a.json", message(tool_calls=[{"id": 1}], content=None),
     ["message 2: a tool or function call; only conversations are read"]),
    ("a.json", message(function_call={"name": "f"}),
     ["message 2: a tool or function call; only conversations are read"]),
    ("a.json", message(content=[{"type": "text", "text": "ho"}]), [ONE]),
    ("a.json", message(content=[{"type": "image_url", "image_url": {}}]),
     ["message 2: a part that is not text (image_url)"]),
    ("a.json", message(content={"text": "ho"}), ["message 2: no text"]),
    ("a.json", message(content=7), ["message 2: no text"]),
    ("a.json", message(role="Assistant "), [ONE]),
    ("a.json", "", ["is not JSON: Expecting value at column 1"]),
    ("a.json", "[]", ["holds nothing"]),
    ("a.json", "7", ["no conversation in it: none of exchanges, messages, conversations, "
                     "conversation is a list of messages"]),
    ("a.json", '{"messages": [', ["is not JSON: Expecting value at column 15"]),
    ("a.json", "[" * 100_000, ["nested too deep"]),
    ("a.json", "9" * 5_000, ["is not JSON: a number that is too long"]),
    ("a.json", codecs.BOM_UTF8 + message().encode(), [ONE]),
    ("a.json", message().encode("utf-16"), [ONE]),
    ("a.jsonl", (message() + "\r\n\r\n" + message()).encode("utf-16"), [ONE, ONE]),
    ("a.json", b"\xff\xfe\x00\x00" + message().encode("utf-32-le"),
     ["is UTF-32. Convert it to UTF-8, such as: iconv -f latin1 -t utf-8 OLD > NEW"]),
    ("a.json", '{"messages": "h\u00e9"}'.encode("latin1"),
     ["is not UTF-8. Convert it to UTF-8, such as: iconv -f latin1 -t utf-8 OLD > NEW"]),
    ("a.jsonl", "{broken\n" + message(), ["is not JSON: Expecting property name enclosed in "
                                          "double quotes at column 2", ONE]),
    ("a.jsonl", message().encode() + b"\n\xe9\n" + message().encode(),
     [ONE, "is not UTF-8. Convert it to UTF-8, such as: iconv -f latin1 -t utf-8 OLD > NEW", ONE]),
    ("a.csv", 'user,assistant\nhi,ho\n"a, b","c\nd"\n', [ONE, [("a, b", "c\nd")]]),
    ("a.csv", "conversation_id;Role;Content\n1;user;hi\n2;human;x\n1;gpt;ho\n2;bot;y\n",
     [ONE, [("x", "y")]]),
    ("a.csv", "id,prompt,response\n1,hi,ho\n1,x,y\n", [[("hi", "ho"), ("x", "y")]]),
    ("a.tsv", "question\tanswer\nhi\tho\n", [ONE]),
    ("a.csv", "user,assistant\nhi\nhi,ho\n", ["line 2 has 1 cells, the first line has 2", ONE]),
    ("a.csv", "name,age\n1,2\n", ["columns are missing: user and assistant, or conversation_id, "
                                  "role and content. The first line has: name, age"]),
    ("a.csv", 'user,assistant\nhi,"ho\n', ["line 2: is not CSV: unexpected end of data"]),
    ("a.csv", "user,assistant\nhi,\n", ["message 2: empty"]),
    ("a.csv", "user,assistant\nh\xe9,ho\n".encode("latin1"),
     ["is not UTF-8. Convert it to UTF-8, such as: iconv -f latin1 -t utf-8 OLD > NEW"]),
    ("a.csv", "user,assistant\n", ["holds nothing"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "result"), TABLE)
def test_a_small_input_gives_this(tmp_path: Path, name: str, data: Any, result: list[Any]) -> None:
    write(tmp_path, **{name.replace(".", "__"): data})
    assert said(tmp_path, name) == result


def test_a_wanted_format_takes_no_other(tmp_path: Path) -> None:
    write(tmp_path, a__json=share("u:hi", "a:ho"), b__txt="user,assistant\nhi,ho\n")
    assert said(tmp_path, "a.json", "openai") == ["is sharegpt, not openai. Leave --format away"]
    assert said(tmp_path, "b.txt", "csv") == [ONE]


# ── a whole run ───────────────────────────────────────────────────────────────────────────────────


def forty(folder: Path) -> Path:
    """Forty files of every format, two of them broken."""
    for n in range(38):
        turns, pair = (f"u:question {n}", f"a:reply {n}"), (f"question {n}", f"reply {n}")
        kinds: list[dict[str, Any]] = [
            {f"f{n:02}__json": ours(pair, id=f"own-{n}")}, {f"f{n:02}__jsonl": chat(*turns)},
            {f"f{n:02}__json": share("s:be kind", *turns)},
            {f"f{n:02}__csv": "user,assistant\n" + ",".join(pair)},
        ]  # fmt: skip
        write(folder / ("deep/er" if n % 2 else "."), **kinds[n % 4])
    return write(folder, broken__json='{"messages": [', tools__json=message(role="tool"))


def test_forty_mixed_files_with_two_broken_ones_give_38_transcripts_and_two_clear_lines(
    root: Path, tmp_path: Path
) -> None:
    done = run(root, forty(tmp_path / "in"))
    assert (done.returncode, done.stderr) == (1, "")
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    assert refused == [
        "refused: in/broken.json: is not JSON: Expecting value at column 15",
        "refused: in/tools.json: message 2: a tool or function call; only conversations are read",
    ]
    found = transcripts(root)
    assert len(found) == 38
    assert {name: len(row["exchanges"]) for name, row in found.items()} == dict.fromkeys(found, 1)
    batch = json.loads((root / "data/batches/import-001.json").read_bytes())
    assert (batch["kind"], batch["trial"], batch["inputs"]) == ("import", False, {})
    assert batch["ids"] == sorted(found)
    assert batch["transcripts"] == {name: canonical_hash(found[name]) for name in found}
    assert "| import-001 |      38 |   38 |" in (root / "design/generation_stats.md").read_text()


def test_each_transcript_says_where_it_is_from_and_has_one_line_in_candidates(
    root: Path, tmp_path: Path
) -> None:
    record = chat("s:be kind", "a:hello", "u:hi", "a:ho", id="t-7", lang="en")
    assert run(root, write(tmp_path / "in", a__jsonl=record), "--name", "beta").returncode == 0
    (found,) = transcripts(root).values()
    about = found["provenance"]
    assert (found["id"], found["source"], found["persona"]) == ("t-7", "imported", None)
    assert found["exchanges"] == [{"user": "hi", "assistant": "ho", "meta": {"opening": "hello"}}]
    assert (about["file"], about["position"], about["format"]) == ("in/a.jsonl", "line 1", "openai")
    assert (about["simulated"], about["system"], about["batch"]) == (False, ["be kind"], "beta")
    assert about["notes"] == {
        "assistant openings kept in meta": 1, "fields of records left out": 1,
        "system messages kept in provenance": 1,
    }  # fmt: skip
    (event,) = iter_records(root / "data/candidates.jsonl")
    assert event == {
        "schema": 1, "id": "t-7", "event": "imported", "fate": "accepted", "batch": "beta",
        "transcript_hash": canonical_hash(found),
    }  # fmt: skip


def test_a_second_run_takes_only_what_is_new_and_changes_nothing(
    root: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "in", a__jsonl=chat("u:hi", "a:ho"), b__json=chat("u:hi", "a:ho"))
    first = told(root, folder)
    assert (first["imported"], first["twice in these files"]) == (1, 1)
    before = {path: path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}
    again = told(root, folder)
    assert (again["code"], again["imported"], again["batch"]) == (0, 0, "nothing new")
    assert {path: path.read_bytes() for path in before} == before
    write(folder, c__json=chat("u:new", "a:one"))
    assert (told(root, folder)["batch"], len(transcripts(root))) == ("import-002", 2)


def test_where_nothing_was_generated_five_and_twenty_others_are_drawn_for_people(
    root: Path, tmp_path: Path
) -> None:
    done = run(root, forty(tmp_path / "in"))
    assert (done.returncode, "pilot-000, 5 of them" in done.stdout) == (1, True)
    batches = {path.stem: json.loads(path.read_bytes())
               for path in (root / "data/batches").glob("*.json")}  # fmt: skip
    five, twenty = (set(batches[name]["ids"]) for name in ("pilot-000", "confirm-000"))
    assert (len(five), len(twenty), len(five | twenty)) == (5, 20, 25)
    assert five | twenty <= set(batches["import-001"]["ids"])
    assert batches["pilot-000"]["drawn_from"] == ["import-001"]
    assert "pilot-000" not in (root / "design/generation_stats.md").read_text()
    before = (root / "data/batches/pilot-000.json").read_bytes()
    assert told(root, write(tmp_path / "more", z__json=chat("u:new", "a:one")))["imported"] == 1
    assert (root / "data/batches/pilot-000.json").read_bytes() == before


@pytest.mark.parametrize("reason", ["fewer than 25", "a pilot was generated"])
def test_nothing_is_drawn_from_few_or_beside_a_pilot(
    root: Path, tmp_path: Path, reason: str
) -> None:
    if reason == "fewer than 25":
        folder = write(tmp_path / "in", a__json=chat("u:new", "a:one"))
    else:
        folder = forty(tmp_path / "in")
        pilot = {"schema": 1, "id": "pilot-001", "kind": "pilot", "ids": [], "inputs": {}}
        write(root / "data/batches", **{"pilot-001__json": json.dumps(pilot)})
    run(root, folder)
    assert not list((root / "data/batches").glob("*-000.json"))
    assert (root / "data/batches/import-001.json").exists()


def test_a_frozen_name_takes_nothing_more(root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a__json=chat("u:hi", "a:ho"))
    assert run(root, folder, "--name", "beta").returncode == 0
    assert run(root, folder, "--name", "beta").returncode == 0
    done = run(root, write(folder, b__json=chat("u:x", "a:y")), "--name", "beta")
    assert done.returncode == 2
    assert "data/batches/beta.json: is frozen, and in/b.json is not in it" in done.stderr


def test_other_words_under_an_id_of_the_same_file_are_refused(root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a__json=chat("u:hi", "a:ho", id="t-1"))
    told(root, folder)
    changed = told(root, write(folder, a__json=chat("u:hi", "a:changed", id="t-1")))
    assert (changed["code"], changed["imported"]) == (1, 0)
    assert changed["refusals"] == [
        "in/a.json: id t-1 was imported from a.json before, with other words. "
        "Give the new version an id of its own"
    ]


def test_ids_that_are_taken_or_no_file_name_are_made_anew(root: Path, tmp_path: Path) -> None:
    rows = [chat(f"u:{n}", "a:ho", id=name) for n, name in enumerate(["1", "1", "../x", 7, "A"])]
    folder = write(tmp_path / "in", a__json=rows, b__json=chat("u:9", "a:ho", id="a"))
    result = told(root, folder)
    assert (result["imported"], len(transcripts(root))) == (6, 6)
    assert {"1", "7", "A"} <= set(transcripts(root))
    assert result["rules"] == {"ids made: the own one is taken or not valid": 3}


def test_a_mark_of_simulation_survives_the_import(root: Path, tmp_path: Path) -> None:
    record = ours(*ONE, provenance={"simulated": True, "trial": True, "seed": 3}, usage={"x": 1})
    told(root, write(tmp_path / "in", a__json=record))
    about = transcripts(root)["own-1"]["provenance"]
    assert (about["simulated"], about["trial"], about["before"]["seed"]) == (True, True, 3)
    assert json.loads((root / "data/batches/import-001.json").read_bytes())["trial"] is True
    assert "**SIMULATED: 1 of 1" in (root / "design/generation_stats.md").read_text()


def test_a_dry_run_writes_nothing(root: Path, tmp_path: Path) -> None:
    result = told(root, forty(tmp_path / "in"), "--dry-run")
    assert (result["imported"], result["refused"]) == (38, 2)
    assert not (root / "data").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nowhere",), "nowhere: there is no such file or folder"),
        (("design/prompt_versions",), "no file to import there"),
        (("config", "--name", "pilot-001"), "no name of a batch that generate.py makes"),
        (("scripts", "--name", "../x"), "letters, digits and . _ - only"),
    ],
)
def test_a_wrong_use_is_one_line_and_exit_2(root: Path, words: Any, line: str) -> None:
    (root / "config/a.json").write_text("[]")
    (root / "scripts/a.json").write_text("[]")
    (root / "design/prompt_versions").mkdir(exist_ok=True)
    done = run(root, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_transcript_of_the_project_is_named_and_costs_nothing(
    root: Path, tmp_path: Path
) -> None:
    write(root / "data/raw/transcripts/old", torn__json='{"exchanges": [')
    done = run(root, write(tmp_path / "in", a__json=chat("u:hi", "a:ho")))
    assert done.returncode == 0
    assert "torn.json: skipped: JSONDecodeError" in done.stderr


def test_a_kill_at_any_moment_and_a_rerun_give_the_same_files(root: Path, tmp_path: Path) -> None:
    rows = [chat(f"u:question {n}", "a:ho") for n in range(60)]
    folder = write(tmp_path / "in", a__jsonl="\n".join(map(json.dumps, rows)))
    command = [sys.executable, "scripts/import_transcripts.py", str(folder)]
    for there in (1, 20, 40, 59):
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(transcripts_of(root)) < there:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(transcripts_of(root)) >= there
    assert run(root, folder).returncode == 0
    found, batch = (
        transcripts(root),
        json.loads((root / "data/batches/import-001.json").read_text()),
    )
    assert (len(found), batch["ids"]) == (60, sorted(found))
    assert sorted(row["id"] for row in iter_records(root / "data/candidates.jsonl")) == batch["ids"]


def test_a_stop_between_two_transcripts_is_completed_by_the_next_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(f"u:question {n}", "a:ho", id=str(n)) for n in range(5)]
    folder = write(tmp_path / "in", a__jsonl="\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(import_transcripts, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["import_transcripts.py", str(folder)])
    monkeypatch.setattr(import_transcripts, "finish", lambda name: None)
    monkeypatch.setattr(import_transcripts, "_write_stats", lambda: None)
    assert import_transcripts.main() == 0
    assert not (root / "data/candidates.jsonl").exists()
    result = told(root, folder)
    assert (result["imported"], result["already here"]) == (0, 5)
    assert len(list(iter_records(root / "data/candidates.jsonl"))) == 5


# ── properties ────────────────────────────────────────────────────────────────────────────────────

TEXT = st.text(min_size=1, max_size=20).filter(str.strip).filter(lambda t: t.isprintable())
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["messages", "exchanges", "conversations", "role", "content", "from",
                         "value", "user", "assistant", "id", "text", "type", "meta", "system"])
        | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(PAIRS, st.dictionaries(st.text(max_size=5), st.integers(), max_size=3))
def test_our_own_format_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], meta: Json
) -> None:
    rows = [{"user": user, "assistant": reply, "meta": meta} for user, reply in pairs]
    folder = write(tmp_path_factory.getbasetemp(), own__json={"id": "x", "exchanges": rows})
    (item,) = read(folder / "own.json", "own.json")
    assert talk_of(item.value).exchanges == rows


@given(PAIRS)
def test_every_format_gives_the_same_words(pairs: list[tuple[str, str]]) -> None:
    turns = [turn for user, reply in pairs for turn in (f"u:{user}", f"a:{reply}")]
    hashes = {content_hash(talk_of(each).exchanges) for each in (ours(*pairs), chat(*turns),
                                                                 share(*turns))}  # fmt: skip
    assert len(hashes) == 1


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=300)
def test_nothing_that_a_file_may_hold_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.json", "any.jsonl", "any.csv"):
        write(folder, **{name.replace(".", "__"): data})
        assert all(isinstance(each, str | list) for each in said(folder, name))


@given(
    st.lists(
        st.lists(st.sampled_from(["user", "assistant", "id", "1", "", '"', "x,y"])), max_size=5
    )
)
def test_no_table_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    text = "\n".join(["id,user,assistant", *map(",".join, rows)])
    folder = write(tmp_path_factory.getbasetemp(), rows__csv=text)
    assert all(isinstance(each, str | list) for each in said(folder, "rows.csv"))


def test_the_order_of_files_does_not_matter(root: Path, made: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a__json=chat("u:hi", "a:ho", id="1"),
                   b__json=chat("u:x", "a:y", id="1"), c__json=chat("u:hi", "a:ho"))  # fmt: skip
    files = sorted(folder.iterdir())
    told(root, *files)
    first = transcripts(root)
    subprocess.run(["cp", "-R", str(made), str(tmp_path / "other")], check=True)
    told(tmp_path / "other", *reversed(files))
    assert transcripts(tmp_path / "other") == first


def test_half_a_character_is_refused_and_not_a_traceback(root: Path, tmp_path: Path) -> None:
    result = told(root, write(tmp_path / "in", a__json=chat("u:hi\ud800", "a:ho")))
    assert result["refusals"] == ["in/a.json: holds half a character (a lone surrogate)"]
