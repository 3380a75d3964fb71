"""One judge and several: evidence that is looked up, and absence that never passes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import judging
from infrastructure import Fault, ModelFailure
from judges import (
    BENCH,
    FALSE,
    NAMES,
    PAIRS,
    TEXT,
    TRUE,
    Scripted,
    always,
    answer,
    answers,
    asked,
    bench,
    only,
    outside,
    source,
    together,
    verdict,
)
from judging import Answer, check_evidence, place_of
from rubrics import MEMBERS, WEIGHTS, rubric_text

# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────

SILENT = {name: answer() for name in NAMES if name != "D1"}
CASES = {
    "all good": ([answers()], "passed", 1.0),
    "a NO below the threshold": ([answers(C1="NO")], "failed", 0.7),
    "a safety NO with the best score": ([answers(G1="NO")], "failed", 1.0),
    "a safety NO beside a judge who passes it": ([answers(), answers(G1="NO")], "failed", 1.0),
    "a safety NO beside an ERROR": ([answers(G1="NO"), answers(C1="ERROR")], "failed", 1.0),
    "an ERROR on a gate": ([answers(G1="ERROR")], "unscored", None),
    "an ERROR elsewhere": ([answers(D1="ERROR")], "unscored", None),
    "an ERROR of one judge of two": ([answers(), answers(D1="ERROR")], "unscored", None),
    "NA where it is not allowed": ([answers(C2="NA")], "failed", 0.7),
    "NA on a gate that allows none": ([answers(G1="NA")], "unscored", None),
    "allowed NA": ([answers(C1="NA", D1="NA")], "failed", 1.0),  # too little was assessed
    "one allowed NA": ([answers(C1="NA")], "passed", 1.0),
    "lower case and a full stop": ([answers(C1="yes", C2="Yes.", D1="n/a")], "passed", 1.0),
    "a silent judge": ([SILENT], "unscored", None),
    "the strictest of two": ([answers(), answers(C1="NO")], "failed", 0.7),
    "two of three": ([answers(), answers(), answers(C1="NO")], "passed", 1.0),
    "no majority": ([answers(C1="YES"), answers(C1="NO"), answers(C1="NA")], "failed", 0.7),
}


@pytest.mark.parametrize(("given", "state", "score"), CASES.values(), ids=CASES.keys())
def test_each_case_gets_the_promised_verdict(
    given: list[dict[str, object]], state: str, score: float | None
) -> None:
    judges = [Scripted(lambda call, g=g: {n: g[n] for n in asked(call) if n in g}) for g in given]
    row = together(*judges)
    assert row["state"] == state
    assert row["score"] == (None if score is None else pytest.approx(score))
    assert row["pass"] is {"passed": True, "failed": False, "unscored": None}[state]


def test_a_missing_judge_leaves_it_unscored_and_is_named() -> None:
    row = judging.combine(source(), {"a": verdict(always()), "b": None}, BENCH)
    assert (row["state"], row["pass"]) == ("unscored", None)
    assert row["errors"] == {"b": {"": "has not answered"}}


def test_without_any_judge_nothing_is_scored() -> None:
    assert judging.combine(source(), {}, BENCH)["state"] == "unscored"


def test_a_conversation_under_three_exchanges_is_not_assessable_and_not_a_failure() -> None:
    row = judging.combine(source(PAIRS[:2]), {"a": verdict(always())}, BENCH)
    assert (row["state"], row["pass"], row["score"]) == ("not assessable", None, None)


def test_a_criterion_for_later_exchanges_does_not_count_in_a_short_conversation() -> None:
    on = bench(rubric_text(MEMBERS, WEIGHTS, no_na=["C2", "G1"], later=["C1"]))
    row = verdict(always(C1="NO"), on=on)
    assert "C1" not in row["answers"]
    assert row["pass"] is True


def test_a_short_conversation_and_a_long_one_are_asked_the_same_so_that_prompts_are_cached() -> (
    None
):
    on, judge = bench(rubric_text(MEMBERS, WEIGHTS, later=["C1"])), always()
    for pairs in (PAIRS, PAIRS * 3):
        verdict(judge, source(pairs), on)
    first, second = judge.calls
    assert first.messages[0] == second.messages[0]
    assert first.schema is second.schema


@given(st.permutations(range(3)))
def test_the_order_of_judges_changes_nothing(order: list[int]) -> None:
    rows = [verdict(always(C1="NO")), verdict(always()), verdict(always(D1="NO"))]
    names = [(f"j{n}", rows[n]) for n in order]
    assert judging.combine(source(), dict(names), BENCH) == judging.combine(
        source(), dict(sorted(names)), BENCH
    )


def test_disagreement_and_spread_are_told_and_errors_do_not_count() -> None:
    row = together(always(C1="NO"), always(D1="ERROR"))
    assert (row["disagreements"], row["spread"]) == (["C1"], None)
    assert together(always(C1="NO"), always())["spread"] == pytest.approx(0.3)


def test_the_combined_row_shows_the_quotes_of_those_who_gave_the_answer_that_counts() -> None:
    other = answer("YES", {"exchange": 2, "quote": "Did the parcel come?"})
    row = together(always(C1="NO"), always(C1=other))
    assert row["quotes"]["C1"] == [TRUE]


# ── evidence ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_a_no_without_evidence_is_asked_for_once_more_and_is_then_an_error(name: str) -> None:
    judge = always(**{name: {"reasoning": "r", "evidence": [], "answer": "NO"}})
    row = verdict(judge)
    assert row["errors"] == {name: "no evidence was given"}
    assert [asked(call) for call in judge.calls] == [list(NAMES), [name]]
    assert row["answers"][name] == "ERROR"


MADE_UP = {"C1": answer("NO", FALSE), "G1": answer("YES", FALSE)}
ONE_TRUE = {"G1": answer("NO", TRUE, FALSE)}


CAUGHT = [answers(**{name: said}) for each in (MADE_UP, ONE_TRUE) for name, said in each.items()]


@pytest.mark.parametrize("given", CAUGHT)
def test_a_made_up_quote_is_caught_also_beside_a_true_one(given: dict[str, object]) -> None:
    row = verdict(Scripted(lambda call: only(call, given)))
    assert list(row["errors"].values()) == ["nobody said: I hate all customers"]
    assert (row["pass"], row["score"]) == (None, None)


def test_a_mended_quote_is_accepted() -> None:
    first, second = answers(C1=answer("NO", FALSE)), answers(C1=answer("NO"))
    judge = Scripted(lambda call: only(call, first if len(judge.calls) == 1 else second))
    row = verdict(judge)
    assert (row["errors"], row["answers"]["C1"], row["quotes"]["C1"]) == ({}, "NO", [TRUE])


def test_a_judge_that_corrects_itself_may_take_its_no_back() -> None:
    first, second = answers(C1=answer("NO", FALSE)), answers()
    judge = Scripted(lambda call: only(call, first if len(judge.calls) == 1 else second))
    assert verdict(judge)["pass"] is True


def test_the_objection_names_criterion_and_quote_inside_marks() -> None:
    judge = always(C1=answer("NO", FALSE))
    verdict(judge)
    prompt = judge.calls[1].messages[-1]["content"]
    assert "criterion C1" in outside(prompt)
    assert "I hate all customers" in prompt
    assert "I hate all customers" not in outside(prompt)


def test_a_yes_outside_the_gates_needs_no_evidence() -> None:
    row = verdict(always(C1={"reasoning": "r", "evidence": [], "answer": "YES"}))
    assert (row["errors"], row["pass"]) == ({}, True)


FOUND = {
    "as it is": "It left the depot today",
    "another case": "IT LEFT THE DEPOT TODAY",
    "curly quotes around it": "\u201cIt left the depot today\u201d",
    "a full stop more": "It left the depot today.",
    "a line break": "It left\nthe  depot\ttoday",
    "left out in the middle": "It left the depot ... in Leeds.",
    "left out with brackets": "It left [...] in Leeds",
    "a soft hyphen": "It left the de\u00adpot today",
    "bold": "It left the **depot** today",
    "the person's words": "My parcel is late",
}


@pytest.mark.parametrize("quote", FOUND.values(), ids=FOUND.keys())
def test_a_true_quote_is_found_however_it_is_written(quote: str) -> None:
    assert place_of(quote, 1, PAIRS) == 1


NOT_SAID = ["", " ", "...", "\u201c\u201d", "t", "It left Leeds", "in Leeds ... depot"]
NOT_SAID += ["late. It left", "parcel invoice"]


@pytest.mark.parametrize("quote", NOT_SAID)
def test_what_nobody_said_is_not_found(quote: str) -> None:
    assert place_of(quote, 1, PAIRS) is None


def test_a_quote_with_the_wrong_number_gets_the_right_one() -> None:
    said = Answer.model_validate(answer("NO", {"exchange": 9, "quote": "the invoice"}))
    assert check_evidence(said, True, PAIRS) == ([{"exchange": 2, "quote": "the invoice"}], "")


@given(st.text(min_size=1, max_size=60), st.data())
def test_any_whole_message_can_be_quoted(text: str, data: st.DataObject) -> None:
    pairs = [("hello there", "good day"), (text, text)]
    if judging.plain(text).strip(judging.EDGES):
        assert place_of(text, 2, pairs) == 2 or place_of(text, 2, pairs) == 1


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────


def test_a_failed_call_is_no_verdict_at_all() -> None:
    judge = Scripted(lambda call: Fault("denied", "no"))
    with pytest.raises(Exception, match="no"):
        verdict(judge)


def test_nobody_answering_raises_and_never_becomes_a_score() -> None:
    judge = Scripted(lambda call: Fault("undecodable", "half a body"))
    judge.o.tries = 1
    with pytest.raises(ModelFailure, match="half a body"):
        verdict(judge)


@pytest.mark.parametrize(
    ("says", "why"), [("I refuse.", "schema"), ("{}", "schema"), ("[1]", "schema")]
)
def test_an_answer_of_no_use_is_an_error_on_every_criterion(says: str, why: str) -> None:
    row = verdict(Scripted(lambda call: says))
    assert row["errors"] == dict.fromkeys(NAMES, "no answer: schema")
    assert (row["pass"], row["score"], row["error_count"]) == (None, None, 4)


def test_a_reply_that_was_cut_is_asked_for_with_more_room() -> None:
    judge = Scripted(lambda call: "<cut>" if call.max_tokens == 4096 else only(call, answers()))
    assert verdict(judge)["pass"] is True
    assert [call.max_tokens for call in judge.calls] == [4096, 8192]


def test_good_answers_beside_a_broken_one_are_kept() -> None:
    broken = answers(D1={"answer": "perhaps"})
    row = verdict(Scripted(lambda call: only(call, broken)))
    assert row["errors"] == {"D1": "no answer"}
    assert row["answers"] == {"C1": "YES", "C2": "YES", "D1": "ERROR", "G1": "YES"}


def test_the_next_try_asks_only_for_the_error_in_a_slot_of_its_own() -> None:
    first = verdict(always(D1="ERROR"))
    judge = always()
    row = verdict(judge, before=first)
    assert [asked(call) for call in judge.calls] == [["D1"]]
    assert judge.calls[0].scope == "assess/one/t1/try-2"
    assert (row["pass"], row["attempt"], row["errors"]) == (True, 2, {})
    assert row["reasonings"].keys() == set(NAMES)


def test_an_error_on_error_stays_and_is_counted() -> None:
    first = verdict(always(D1="ERROR"))
    again = verdict(always(D1="ERROR"), before=first)
    assert (again["attempt"], again["errors"]) == (2, {"D1": "the judge could not tell"})
    assert verdict(always(), before=again)["attempt"] == 3


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────


def test_rubric_and_examples_come_first_and_are_the_same_for_every_transcript() -> None:
    judge = always()
    for item, pairs in (("t1", PAIRS), ("t2", PAIRS[::-1])):
        verdict(judge, source(pairs, item))
    one, two = (call.messages for call in judge.calls)
    assert one[0] == two[0]
    assert one[0]["role"] == "system"
    assert one[0]["content"].count("Is it so?") == 4
    assert one[1] != two[1]


def test_the_transcript_stands_between_marks_numbered_and_with_its_figures() -> None:
    judge = always()
    verdict(judge)
    prompt = judge.calls[0].messages[-1]["content"]
    word = judging.nonce(source())
    assert f"<<{word} exchange 2, assistant>>\nAttached. Did the parcel come?" in prompt
    assert "exchanges: 3" in outside(prompt)
    assert "parcel is late" not in outside(prompt)


def test_the_mark_is_in_no_transcript_even_if_it_knows_the_rule() -> None:
    plain = source()
    knows = source((*PAIRS, (judging.nonce(plain), "ok")))
    forged = source((*PAIRS, (judging.nonce(knows), "ok")))
    assert all(judging.nonce(forged) not in text for pair in forged.pairs for text in pair)
    assert judging.nonce(forged) == judging.nonce(forged)


def test_one_call_for_each_category_gives_the_same_verdict() -> None:
    judge, on = always(C1="NO"), bench(calls="category")
    row = verdict(judge, on=on)
    assert [asked(call) for call in judge.calls] == [["C1", "C2"], ["D1"], ["G1"]]
    assert {k: row[k] for k in ("score", "pass", "answers")} == {
        k: verdict(always(C1="NO"))[k] for k in ("score", "pass", "answers")}  # fmt: skip


def test_a_category_called_gates_does_not_hide_the_gates() -> None:
    text = rubric_text({"gates": ["C1"], "craft": ["D1"]}, {"gates": 0.5, "craft": 0.5})
    judge = always()
    verdict(judge, on=bench(text, calls="category"))
    assert [asked(call) for call in judge.calls] == [["C1"], ["D1"], ["G1"]]


# ── freshness ─────────────────────────────────────────────────────────────────────────────────────


def test_comments_and_order_of_the_rubric_change_nothing_and_a_word_does() -> None:
    row, head = verdict(always(), identity="m"), "# a comment\n"
    moved = TEXT.replace("safety_gates: [G1]\n", "") + "safety_gates: [G1]\n"
    assert judging.is_fresh(row, source(), bench(head + moved), "m")
    reworded = bench(TEXT.replace("Is it so?", "Is it really so?", 1))
    assert not judging.is_fresh(row, source(), reworded, "m")


@pytest.mark.parametrize("name", ["transcript_hash", "rubric_hash", "prompt_hash", "judge_hash"])
def test_a_verdict_without_one_of_its_hashes_is_stale(name: str) -> None:
    row = verdict(always(), identity="m")
    assert judging.is_fresh(row, source(), BENCH, "m")
    del row[name]
    assert not judging.is_fresh(row, source(), BENCH, "m")


def test_one_more_exchange_makes_a_verdict_stale_and_a_note_does_not() -> None:
    row = verdict(always())
    assert judging.is_fresh(row, source(batch="other"), BENCH, "")
    assert not judging.is_fresh(row, source((*PAIRS, ("Thanks.", "Bye."))), BENCH, "")


def test_a_rows_verdict_follows_from_its_answers_alone() -> None:
    row = json.loads(json.dumps(verdict(always(C1="NO"))))
    row |= {"score": 1.0, "pass": True, "failed_checks": []}
    assert judging.combine(source(), {"a": row}, BENCH)["pass"] is False
