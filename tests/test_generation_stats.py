"""Figures of a set of transcripts: counted from files, the same bytes for the same files."""

import copy
import json
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from designs import designed, edit, example
from evidence import clopper_pearson
from figures import generation_stats, observer, write_generation_stats
from infrastructure import append_checkpoint, count_words
from settings import Flaw

Json = dict[str, Any]
PAGE = "design/generation_stats.md"
FORGETS = "forgets what was agreed"


def exchange(user: str, reply: str, **meta: Any) -> Json:
    known = {"stage": "", "response": "", "flaws": [], "range": [5, 30], "asked_again": {}}
    return {
        "user": user,
        "assistant": reply,
        "meta": known | {"found": {}, "violations": []} | meta,
    }


def used(calls: int, dollars: float | None) -> Json:
    return {"calls": calls, "input": 10 * calls, "output": calls, "dollars": dollars}


ASKS = exchange("What do I do now? It drips.", "a b c", flaws=["yes-but"])  # 7 words, 3 words
AGAIN = exchange(  # 6 words, 40 words
    "Fine. What do I do now?", "word " * 40, flaws=[FORGETS], response="engages",
    asked_again={"user": 1}, found={"assistant": ["refusal: x: I can't", "refusal: y: no"]},
)  # fmt: skip
SHORT = exchange("one two", "x y", violations=["user words"])  # 2 words, 2 words
TERSE = {"communication_style": "terse"}
FIRST: Json = {
    "id": "t-1", "persona": TERSE, "exchanges": [ASKS, AGAIN], "ended": "target",
    "source": "generated", "usage": {"user": used(3, 0.5), "assistant": used(2, None)},
    "provenance": {"batch": "pilot-001", "models": {"user_sim": "local:small"}},
}  # fmt: skip
SECOND: Json = {
    "id": "t-2", "persona": TERSE, "exchanges": [SHORT], "ended": "error", "source": "generated",
    "usage": {"user": used(1, 0.25), "assistant": used(1, 0.1)},
    "cut": {"after": 1, "why": ["self_disclosure: names: As an AI: I"]},
    "provenance": {"batch": "pilot-001", "simulated": True, "trial": True},
}  # fmt: skip
THIRD: Json = {
    "id": "t-3", "persona": None, "ended": "target", "source": "imported", "usage": FIRST["usage"],
    "exchanges": [{"user": ASKS["user"], "assistant": "ok", "meta": {}}],
    "provenance": {"batch": "beta"},
}  # fmt: skip


def put(root: Path, place: str, data: Json | str) -> None:
    path = root / "data" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with three transcripts, a damaged one, and a batch that is not done."""
    root = example(tmp_path / "demo")
    put(root, "raw/transcripts/pilot-001/t-1.json", FIRST)
    put(root, "raw/rejected/pilot-001/t-2.json", SECOND)
    put(root, "raw/transcripts/beta/deep/t-3.json", THIRD)
    put(root, "raw/transcripts/pilot-001/torn.json", '{"exchanges": [')
    pilot = {"id": "pilot-001", "kind": "pilot", "trial": False, "ids": ["t-1", "t-2", "t-4"]}
    put(root, "batches/pilot-001.json", pilot)
    line = {"event": "generated", "fate": "accepted"}
    append_checkpoint(root / "data/candidates.jsonl", {"id": "t-1", **line})
    append_checkpoint(root / "data/candidates.1-of-2.jsonl", {"id": "ghost", **line})
    return root


def every(root: Path) -> Json:
    return dict(generation_stats(root, clopper_pearson)["all"])


def test_counts_are_those_of_the_files(root: Path) -> None:
    found = every(root)
    fates = ("transcripts", "accepted", "truncated", "rejected", "exchanges")
    assert [found[name] for name in fates] == [3, 2, 0, 1, 4]
    assert found["sources"] == {"generated": 2, "imported": 1}
    assert found["rejected_for"] == {"self_disclosure": 1}
    assert found["ended"] == {"error": 1, "target": 2}


def test_a_truncated_transcript_counts_as_such_with_its_reason(root: Path) -> None:
    cut = {"after": 2, "why": ["blank: no words", "refusal: x"]}
    put(root, "raw/transcripts/pilot-001/t-1.json", FIRST | {"cut": cut})
    found = every(root)
    assert (found["accepted"], found["truncated"]) == (1, 1)
    assert found["truncated_for"] == {"blank": 1, "refusal": 1}


def test_words_and_ratios_are_those_counted_by_hand(root: Path) -> None:
    found = every(root)
    assert found["words"] == {
        "user": {"mean": 5.5, "median": 6.5},  # 7 6 2 7
        "assistant": {"mean": 11.5, "median": 2.5},  # 3 40 2 1
    }
    # 3/7, 40/6, 2/2, 1/7; the limit is max(30, 2 x words), so only 40 words are too long
    assert found["reply_ratio"] == {"mean": 2.0595, "median": 0.7143, "of": 4, "above_limit": 1}


def test_range_compliance_is_by_style_and_by_tries(root: Path) -> None:
    assert every(root)["styles"] == {
        "terse": {
            "messages": 3, "within": 2, "share": 0.6667, "within_after": {"0": 1, "1": 1, "2": 0},
            "reply_ratio": {"mean": 2.6984, "median": 1.0, "of": 3, "above_limit": 1},
        }
    }  # fmt: skip
    assert every(root)["violations"] == {"user words": 1}


def test_artefacts_that_were_made_again_are_counted_by_kind_and_side(root: Path) -> None:
    assert every(root)["artefacts_made_again"] == {"user": {}, "assistant": {"refusal": 2}}


def test_a_flaw_that_code_cannot_see_is_said_to_be_so(root: Path) -> None:
    found = every(root)["flaws"]
    assert found["yes-but"] == {"scheduled": 1, "seen_as": None}
    assert found[FORGETS] == {
        "scheduled": 1, "seen_as": "a question word for word again", "realised": 1,
        "not_scheduled": 2, "shown_unscheduled": 0,
    }  # fmt: skip


def test_reactions_stand_beside_their_configured_share_with_an_exact_interval(root: Path) -> None:
    row = every(root)["responses"]["engages"]
    low, high = clopper_pearson(1, 1, 0.999)
    assert row == {
        "expected": 0.2, "drawn": 1.0, "count": 1, "of": 1, "low": round(low, 4),
        "high": round(high, 4), "outside": False,
    }  # fmt: skip
    assert "low" not in generation_stats(root)["all"]["responses"]["engages"]


def test_draws_from_another_template_are_not_compared_with_this_one(root: Path) -> None:
    other = copy.deepcopy(FIRST)
    other["provenance"]["inputs"] = {"persona-template.yaml#/": "0123456789abcdef"}
    put(root, "raw/transcripts/pilot-001/t-1.json", other)
    found = every(root)
    assert (found["drawn_with_another_template"], found["responses"]) == (1, {})


def test_an_unknown_cost_stays_unknown_and_an_imported_one_is_not_ours(root: Path) -> None:
    assert every(root)["usage"] == {
        "assistant": {
            "calls": 3, "input": 30, "output": 3, "dollars": None, "dollars_known": 0.1,
            "transcripts_of_unknown_cost": 1,
        },
        "user": {
            "calls": 4, "input": 40, "output": 4, "dollars": 0.75, "dollars_known": 0.75,
            "transcripts_of_unknown_cost": 0,
        },
    }  # fmt: skip


def test_simulated_and_trial_transcripts_are_named_first(root: Path) -> None:
    page = _page(root)
    assert page.splitlines()[2].startswith("**SIMULATED: 1 of 3 transcripts")
    assert page.splitlines()[5].startswith("**TRIAL: 1 of 3 transcripts")


def test_a_damaged_file_is_named_and_costs_only_itself(root: Path) -> None:
    put(root, "raw/transcripts/odd.json", '{"exchanges": [{"user": 1, "assistant": "x"}]}')
    put(root, "raw/transcripts/list.json", "[1]")
    deep = json.dumps(THIRD | {"exchanges": [{"user": "a", "assistant": "b", "meta": 7}]})
    put(root, "raw/transcripts/meta.json", deep)
    put(root, "batches/torn.json", "{")
    found = generation_stats(root)
    names = [each["file"].rsplit("/", 1)[1] for each in found["damaged"]]
    assert names == ["torn.json", "list.json", "meta.json", "odd.json", "torn.json"]
    assert found["all"]["transcripts"] == 3


def test_batches_stand_apart_and_one_that_is_not_done_says_so(root: Path) -> None:
    batches = generation_stats(root)["batches"]
    assert list(batches) == ["beta", "pilot-001"]
    assert (batches["pilot-001"]["planned"], batches["pilot-001"]["transcripts"]) == (3, 2)
    assert (batches["beta"]["planned"], batches["beta"]["exchanges"]) == (None, 1)


def test_lines_and_transcripts_that_do_not_fit_are_counted(root: Path) -> None:
    found = generation_stats(root)
    assert found["candidates"] == {
        "lines": {"generated, accepted": 2}, "damaged_lines": 0, "transcripts_without_a_line": 2,
        "lines_without_a_transcript": 1, "ids_that_stand_twice": 0,
    }  # fmt: skip
    assert found["near_identical_openings"] == 2


def test_a_project_without_transcripts_has_figures_too(tmp_path: Path) -> None:
    root = example(tmp_path / "demo")
    assert write_generation_stats(root, clopper_pearson)["all"]["transcripts"] == 0
    assert "None." in (root / PAGE).read_text()


def _page(root: Path) -> str:
    write_generation_stats(root, clopper_pearson)
    return (root / PAGE).read_text("utf-8")


def test_equal_files_give_equal_bytes(root: Path, tmp_path: Path) -> None:
    first = _page(root), (root / "design/generation_stats.json").read_bytes()
    shutil.copytree(root, tmp_path / "other")
    assert (
        _page(tmp_path / "other"),
        (root / "design/generation_stats.json").read_bytes(),
    ) == first


def test_the_page_keeps_to_80_columns_whatever_names_are_like(root: Path) -> None:
    long = copy.deepcopy(SECOND)
    long["persona"] = {"communication_style": "s|" * 60}
    long["provenance"] |= {"batch": "b" * 120, "models": {"user_sim": "m" * 200}}
    long["cut"]["why"] = ["w\n" * 100]
    long["exchanges"][0]["meta"]["flaws"] = ["f" * 100]
    long["usage"]["user"] = used(10**9, None)
    put(root, "raw/transcripts/t-9.json", long)
    assert max(map(len, _page(root).splitlines())) == 80


GOLDEN = Path(__file__).with_suffix(".md")


def test_the_page_looks_like_this(root: Path) -> None:
    assert _page(root) == GOLDEN.read_text("utf-8")


@pytest.mark.parametrize(
    ("shows", "seen"),
    [
        ("asks again for something", "a question word for word again"),
        ("asks the same question", "a question word for word again"),
        ("repeats the last sentence", "a sentence word for word again"),
        ("writes in all caps", "words in capital letters"),
        ("answers with very short messages", "the lowest quarter of its words"),
        ("rambles on", "the highest quarter of its words"),
        ("asks several questions at once", "two questions or more"),
        ("tells a joke", None),
    ],
)
def test_code_sees_a_flaw_only_by_the_words_that_describe_it(shows: str, seen: str | None) -> None:
    eye = observer("a flaw", Flaw(weight=1, shows=shows))
    assert (eye and eye.shows) == seen


# ── a real run ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = designed(tmp_path_factory.mktemp("stats") / "demo")
    for words in (("personas.py", "--count", "40"), ("generate.py",)):
        script = [sys.executable, f"scripts/{words[0]}", *words[1:]]
        subprocess.run(script, cwd=root, capture_output=True, check=True)
    return root


def test_a_pilot_leaves_totals_that_equal_its_files(generated: Path) -> None:
    found = json.loads((generated / "design/generation_stats.json").read_bytes())
    files = [json.loads(p.read_bytes()) for p in generated.glob("data/raw/*/*/*.json")]
    rows = [row for each in files for row in each["exchanges"]]
    told = found["all"]
    assert (told["transcripts"], told["exchanges"]) == (len(files), len(rows))
    words = [count_words(row["user"]) for row in rows]
    assert told["words"]["user"]["mean"] == round(statistics.fmean(words), 4)
    flaws = Counter(name for row in rows for name in row["meta"]["flaws"])
    assert {name: each["scheduled"] for name, each in told["flaws"].items()} == flaws
    drawn = Counter(row["meta"]["response"] for row in rows if row["meta"]["response"])
    assert {n: r["count"] for n, r in told["responses"].items() if r["count"]} == drawn
    calls = sum(each["usage"]["user"]["calls"] for each in files)
    assert told["usage"]["user"]["calls"] == calls
    assert found["batches"]["pilot-001"]["transcripts"] == told["simulated"] == len(files)


def test_the_template_of_the_run_is_the_one_that_is_compared(generated: Path) -> None:
    assert every(generated)["drawn_with_another_template"] == 0
    edit(generated / "config/persona-template.yaml", "early: 0.1", "early: 0.2")
    assert every(generated)["drawn_with_another_template"] == 5
    edit(generated / "config/persona-template.yaml", "early: 0.2", "early: 0.1")


# ── what passes ───────────────────────────────────────────────────────────────────────────────────


def verdict(root: Path, item: str, passed: bool | None, topic: str, usd: float | None) -> None:
    """A transcript with one topic, judged."""
    persona = TERSE | {"topic_seeds": [{"category": topic, "complexity": "hard"}], "flaws": []}
    talk = FIRST | {"id": item, "persona": persona, "usage": {"user": used(1, usd)}}
    put(root, f"raw/transcripts/scale-001/{item}.json", talk)
    row = {"id": item, "pass": passed, "state": "x", "failed_checks": [], "batch": "scale-001"}
    row["source_file"] = f"data/raw/transcripts/scale-001/{item}.json"
    append_checkpoint(root / "data/assessments/combined.jsonl", row)
    append_checkpoint(root / "data/assessments/one.jsonl", {"id": item, "usage": {"dollars": 0.5}})


def test_pass_rates_are_counted_by_what_was_drawn(tmp_path: Path) -> None:
    root = example(tmp_path / "demo")
    for number, passed in enumerate((True, True, False, None)):
        verdict(root, f"t{number}", passed, "water", 0.25)
    found = generation_stats(root, clopper_pearson)["yield"]
    low, high = clopper_pearson(2, 3)
    told = {"passed": 2, "of": 3, "low": low, "high": high}
    assert found["topic"] == {"water": told}
    assert found["style"] == {"terse": told}
    assert found["difficulty"] == {"hard": told}
    assert found["flaw"] == {"(none)": told}
    assert found["dollars_per_passing"] == pytest.approx((3 * 0.25 + 4 * 0.5) / 2)


def test_one_unknown_cost_makes_the_cost_unknown(tmp_path: Path) -> None:
    root = example(tmp_path / "demo")
    verdict(root, "t1", True, "water", None)
    assert generation_stats(root)["yield"]["dollars_per_passing"] is None
    write_generation_stats(root)
    assert "each of them cost unknown" in (root / PAGE).read_text()


def test_topics_that_are_short_of_the_taxonomy_say_how_many_to_make(tmp_path: Path) -> None:
    root = example(tmp_path / "demo")
    for number in range(20):
        verdict(root, f"t{number}", passed=number % 2 == 0, topic="water", usd=0.0)
    short = generation_stats(root)["yield"]["short_of_taxonomy"]
    assert "water" not in short
    assert short["delivery"]["share"] == 0
    assert short["delivery"]["generate about"] >= 3
    write_generation_stats(root)
    assert "short of the taxonomy" in (root / PAGE).read_text()


def test_before_any_verdict_there_is_no_yield(root: Path) -> None:
    assert generation_stats(root)["yield"] == {}
