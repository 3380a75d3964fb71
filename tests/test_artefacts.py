"""The artefact filter, against a frozen set of leaks and look-alikes in several languages."""

import hashlib
import importlib.util
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

import curation
import settings
from children import CODE
from curation import inspector

LEAKS = Path(__file__).parent / "leaks"
SPEC = importlib.util.spec_from_file_location("measure_leaks", LEAKS / "measure.py")
assert SPEC
assert SPEC.loader
measure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measure)
rows = measure.rows

STARTER = settings.load_artefacts(CODE / "templates")
ONLY_CODE = STARTER.model_copy(update={"patterns": []})
ENGLISH, CHINESE = inspector(STARTER, "en"), inspector(STARTER, "zh")
FROZEN = {
    "first": "08e3c48fc718e10ecf864984ee874bef00a8ca4fb945ae197624c71576c4b60b",
    "second": "06cbed815cda7fc5de4251813ca7bc1ee377ddb1f02f44c3a0ca488108ee2fb0",
}
KINDS = {
    "blank", "cut_end", "instruction_echo", "language", "prompt_talk", "refusal", "repeat",
    "role_prefix", "script", "self_disclosure", "tool_box", "tool_footer",
}  # fmt: skip


# The set


@pytest.mark.parametrize("half", FROZEN)
def test_the_leak_set_is_frozen(half: str) -> None:
    found = hashlib.sha256((LEAKS / f"{half}.jsonl").read_bytes()).hexdigest()
    assert found == FROZEN[half]


@pytest.mark.parametrize("half", FROZEN)
def test_each_half_holds_leaks_and_look_alikes_of_every_kind(half: str) -> None:
    count = Counter((row["label"], row["kind"]) for row in rows(half))
    assert set(count) == {(label, kind) for label in ("leak", "fine") for kind in KINDS}
    assert all(number >= 3 for number in count.values())


def test_the_set_is_large_and_in_several_languages() -> None:
    both = rows("first") + rows("second")
    labels = Counter(row["label"] for row in both)
    assert min(labels["leak"], labels["fine"]) >= 60
    assert len({row["language"] for row in both}) >= 10
    assert len({row["id"] for row in both}) == len(both)


# The filter on the set


@pytest.mark.parametrize("half", FROZEN)
def test_nine_leaks_in_ten_are_caught_and_look_alikes_pass(half: str) -> None:
    """Patterns are tuned on the first half only, so that the second one says something."""
    recall, alarms, _ = measure.measure(half)
    assert recall >= 0.9
    assert alarms <= 0.03


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_what_is_found_begins_with_a_kind_that_can_be_counted() -> None:
    found = measure.filter_of_the_starter()
    kinds = {what.split(": ")[0] for row in rows("first") for what in found(row)}
    assert kinds <= KINDS | {"other"}


@pytest.mark.parametrize("project", ["code/templates", "examples/support-desk"])
def test_replies_that_calibrate_as_good_pass(project: str) -> None:
    rubric = yaml.safe_load((CODE.parent / project / "config/rubric.yaml").read_text("utf-8"))
    examples = [e for c in rubric["criteria"].values() for e in c["calibration_examples"]]
    good = [each["response"] for each in examples if each["type"] == "PASS"]
    assert len(good) >= 8
    assert [look for text in good if (look := ENGLISH("assistant", text, [], []))] == []


# The detectors


def test_a_detector_that_is_switched_off_finds_nothing() -> None:
    text = "Schließen Sie zuerst das Ventil und warten Sie, dann ist das Wasser wieder klar."
    tutor = STARTER.model_copy(update={"detectors": settings.Detectors(language=False)})
    assert ENGLISH("assistant", text, [], [])[0].startswith("language: looks like de: ")
    assert inspector(tutor, "en")("assistant", text, [], []) == []


def test_scripts_of_the_project_come_from_its_file_or_its_language() -> None:
    both = STARTER.model_copy(update={"scripts": ["Latin", "Cyrillic"]})
    text = "Закройте вентиль под раковиной."
    assert ENGLISH("assistant", text, [], [])[0].startswith("script: ")
    assert inspector(both, "en")("assistant", text, [], []) == []
    assert inspector(STARTER, "xx")("assistant", text, [], []) == []
    assert set(curation.RANGES) == set(settings.SCRIPTS)
    assert curation.scripts_of("ja") == ("Han", "Hiragana", "Katakana")
    assert curation.scripts_of("sr-Latn") == ()


def test_quotation_marks_around_the_whole_message_hide_nothing() -> None:
    text = "Schließen Sie zuerst das Ventil und warten Sie, dann ist das Wasser wieder klar."
    assert ENGLISH("user", f'"{text}"', [], [])[0].startswith("language: ")
    assert ENGLISH("user", f'The note says "{text}" What does it want?', [], []) == []


def test_every_language_is_recognised_as_itself() -> None:
    """Its own small words never look like another language of its script."""
    for language, words in curation._SMALL_WORDS.items():
        assert inspector(ONLY_CODE, language)("user", words, [], []) == []


def test_a_short_message_is_not_judged_by_its_language() -> None:
    assert ENGLISH("user", "no se, amigo, la vida es dura", [], []) == []


def test_seven_words_of_the_guidance_are_an_echo_and_six_are_not() -> None:
    told = ["In this message the person mentions two small remarks first."]
    assert ENGLISH("user", "the person mentions two small remarks", told, []) == []
    echo = ENGLISH("user", "The person \u201cmentions two small remarks first\u201d", told, [])
    assert [each.split(": ")[0] for each in echo] == ["instruction_echo"]


def test_an_assistant_may_state_a_fact_of_its_prompt() -> None:
    told = ["What it does: the filter takes out taste, chlorine and particles. It leaves lime in."]
    text = "The filter takes out taste, chlorine and particles. Lime stays."
    assert ENGLISH("assistant", text, told, []) == []


@pytest.mark.parametrize("side", ["user", "assistant"])
def test_a_short_message_may_come_again_and_a_long_one_not(side: str) -> None:
    long = "It is orange again and I do not know why."
    assert ENGLISH(side, "ok thanks", [], ["ok thanks"]) == []
    assert ENGLISH(side, long, [], ["Hello?", long.upper()])[0].startswith("repeat: ")


def test_a_person_may_leave_out_the_last_stop_and_an_assistant_who_uses_stops_not() -> None:
    text = "I did the reset twice now. It went white for a bit. Then it came back to orange again"
    assert ENGLISH("user", text, [], []) == []
    assert ENGLISH("assistant", text, [], [])[0].startswith("cut_end: ")
    assert ENGLISH("assistant", "Twist left, pull, push the new one in", [], []) == []


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "...", "```\n```"])
def test_a_message_without_words_is_blank(text: str) -> None:
    for side in ("user", "assistant"):
        assert ENGLISH(side, text, [], []) == ["blank: the message has no words"]


# Any text, and a lot of it

ANY = st.text(st.characters(exclude_categories=()), max_size=300)


@given(st.sampled_from(["user", "assistant"]), ANY, st.lists(ANY, max_size=2))
@tries(max_examples=150, deadline=None)
def test_any_text_is_inspected_without_an_error_and_always_alike(
    side: str, text: str, others: list[str]
) -> None:
    for inspect in (ENGLISH, CHINESE):
        first = inspect(side, text, others, others)
        inspect(side, "Something else in between.", others, [text])
        assert inspect(side, text, others, others[::-1]) == first
        assert all(": " in each for each in first)


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_the_order_of_messages_changes_nothing() -> None:
    mixed = rows("first")
    random.Random(5).shuffle(mixed)
    found = measure.filter_of_the_starter()
    one = {row["id"]: found(row) for row in mixed}
    assert one == {row["id"]: found(row) for row in rows("first")}


HUGE = 100_000
SEEDS = [
    "a", " ", "\n", '"', "\u201e", "`", "``` `", "\u4f60", "the user i should ", "as an ai you ",
    "{{", "<", "<|", "[", "*", "user: a\n", "can't cannot unable ", "je ne suis ", ". ",
    "\u2500" * 5 + " ", "co-authored-by: ", "https://", " of", "\u0301", "\ud800", "i am ",
    "ich bin ", "here's the ", "\u0645\u0648", "1. ", "(", "- ", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hostile_message_costs_less_than_fifty_milliseconds(seed: str) -> None:
    text = "x" + (seed * HUGE)[: HUGE - 2] + "y"
    spent = []
    for _ in range(3):
        start = time.process_time()
        ENGLISH("assistant", text, [text[:5_000]], [text[:-9]])
        spent.append(time.process_time() - start)
    assert min(spent) < 0.05


def test_of_a_huge_message_both_ends_are_searched() -> None:
    text = " and on".join(str(number) for number in range(5_000))
    leak = "As an AI language model, I can't say."
    assert ENGLISH("user", f"{leak} {text}", [], [])[0].startswith("self_disclosure: ")
    assert ENGLISH("user", f"{text} {leak}", [], [])[0].startswith("self_disclosure: ")


# The patterns


@pytest.mark.parametrize("artefact", STARTER.patterns, ids=lambda each: each.id)
def test_a_pattern_of_the_starter_keeps_its_own_word(artefact: settings.Artefact) -> None:
    search = artefact.search()
    assert artefact.why
    assert artefact.catches
    assert artefact.passes
    assert all(search(settings.plain_text(text)) for text in artefact.catches)
    assert not any(search(settings.plain_text(text)) for text in artefact.passes)


PATTERN = """schema: 1
patterns:
  - id: x
    kind: other
    pattern: 'ab+c'
    catches: [abc]
    passes: [ac]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[abc]", "[abc, ac]", ':6 patterns[0].catches[1]: "ac" is not found by the pattern.'),
        ("[ac]", "[ac, ABBC]", ':7 patterns[0].passes[1]: "ABBC" is found, but has to pass.'),
        ("pattern: 'ab+c'", "any_of: [ab+c, '(']", ":5 patterns[0].any_of[1]: is not a regular"),
        ("pattern: 'ab+c'", "any_of: [xyz, ab+d]", ':6 patterns[0].catches[0]: "abc" is not found'),
        ("schema: 1", "schema: 1\nscripts: [latin]", ':2 scripts[0]: "latin" is not a known'),
        ("schema: 1", "schema: 1\ndetectors: {echo: no}", ':2 detectors.echo: "echo" is not a'),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "artefacts.yaml"
    path.write_text(PATTERN.replace(old, new), "utf-8")
    found = [str(each) for each in settings.check_file(path, "f")]
    assert len(found) == 1
    assert found[0].startswith("f" + said)


def test_a_pattern_of_a_project_is_found_beside_the_detectors(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/artefacts.yaml").write_text(PATTERN, "utf-8")
    inspect = inspector(settings.load_artefacts(tmp_path), "en")
    assert inspect("user", "say ABBC now", [], []) == ["other: x: ABBC"]
