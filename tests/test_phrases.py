"""Phrases that too many texts hold: found with their rate, in their longest form, and no others."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations import conversations
from curation import Phrase, count_phrases, phrases, words_of
from evidence import wilson

PLANTED = "I completely understand how you feel"
WORDS = st.sampled_from(["a", "b", "c", "d", "e"])
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=8)


def by_words(found: list[Phrase]) -> dict[str, Phrase]:
    return {phrase.words: phrase for phrase in found}


def replies(seed: int, rate: float = 0.0, count: int = 400) -> list[str]:
    """Replies of 60 words, of which about this share says the planted words."""
    rng = random.Random(seed)
    made = []
    for text in conversations(count, 60, seed):
        parts = text.split(". ")
        if rng.random() < rate:
            parts.insert(rng.randrange(len(parts) + 1), PLANTED)
        made.append(". ".join(parts))
    return made


@pytest.mark.parametrize("rate", [0.05, 0.20, 0.50])
def test_a_planted_phrase_is_found_with_its_rate_inside_the_interval(rate: float) -> None:
    inside = 0
    for seed in range(20):
        found = by_words(phrases(replies(seed, rate), wilson, least=0.02))
        phrase = found[PLANTED.lower()]
        inside += phrase.low <= rate <= phrase.high
    assert inside >= 17  # 95 % of them, give or take


def test_clean_texts_raise_a_red_flag_in_at_most_one_draw_of_twenty() -> None:
    texts = list(conversations(20_000, 60))
    flags = 0
    for seed in range(200):
        drawn = random.Random(seed).choices(texts, k=100)
        flags += any(phrase.low > 0.5 for phrase in phrases(drawn, wilson))
    assert flags <= 10


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_what_is_just_at_the_limit_is_seldom_called_critical() -> None:
    flags = sum(any(phrase.low > 0.5 for phrase in phrases(replies(seed, 0.5, 100), wilson))
                for seed in range(200))  # fmt: skip
    assert flags <= 10


def test_case_and_typographic_quotes_are_the_same_words() -> None:
    texts = [
        "That\u2019s a GREAT question!",
        "that's a great question",
        "So \u2018that's a great question\u2019.",
    ]
    (phrase,) = phrases(texts, wilson)
    assert (phrase.words, phrase.k, phrase.n) == ("that's a great question", 3, 3)
    assert phrase.where == (0, 1, 2)


def test_a_part_is_listed_only_where_it_is_clearly_commoner_than_the_whole() -> None:
    texts = ["let me know if you need help"] * 10 + ["please let me know today"] * 10
    found = by_words(phrases([f"{n} {text} {n}" for n, text in enumerate(texts)], wilson))
    assert found["let me know"].k == 20
    assert found["let me know if you need"].k == 10
    assert "me know if" not in found


def test_a_long_formula_is_named_once() -> None:
    texts = [f"{n} one two three four five six seven eight nine {n}" for n in range(5)]
    assert [phrase.words for phrase in phrases(texts, wilson)] == ["one two three four five six"]


def test_a_loop_of_words_is_named_too() -> None:
    assert [each.words for each in phrases(["ha ha ha ha ha ha ha ha"] * 3, wilson)] == [
        "ha " * 5 + "ha"
    ]
    found = phrases(["so so no so so no so so no so so no"] * 3, wilson)
    assert len(found) == 1


def test_a_phrase_said_twice_in_a_text_counts_once() -> None:
    found = by_words(
        phrases(["as I said before, as I said before", "as I said before", "no"], wilson)
    )
    assert found["as i said before"].k == 2


def test_scripts_without_spaces_are_counted_by_letters() -> None:
    said = "\u975e\u5e38\u611f\u8c22\u60a8\u7684\u8010\u5fc3"  # "thank you for your patience"
    texts = [f"\u7b2c{n}\u4e2a{said}\u3002" for n in "\u4e00\u4e8c\u4e09\u56db\u4e94"]
    (phrase,) = phrases(texts, wilson)
    assert said in phrase.words
    assert phrase.k == 5
    assert not phrases(
        ["\u8c22\u8c22", "\u8c22\u8c22", "\u8c22\u8c22\u4f60"], wilson
    )  # two letters make a word


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "  ", "..."], ["one text alone says what it says"]]
)
def test_nothing_is_said_too_often_where_hardly_anything_is_said(texts: list[str]) -> None:
    assert phrases(texts, wilson) == []


def test_one_giant_text_counts_once() -> None:
    giant = "very long words indeed " * 50_000
    found = by_words(phrases([giant, "very long words indeed", "no"], wilson))
    assert all(phrase.k <= 2 for phrase in found.values())


def test_listed_phrases_are_counted_however_rare() -> None:
    found = count_phrases(
        ["I don\u2019t  think so.", "no", ""], ["don't think", "never", "!"], wilson
    )
    assert [(each.words, each.k, each.n, each.where) for each in found] == [
        ("don't think", 1, 3, (0,)), ("never", 0, 3, ()), ("!", 0, 3, ())
    ]  # fmt: skip


def brute_force(texts: list[str], least: int) -> dict[str, int]:
    """Every run of 3 to 6 words that so many texts hold."""
    count: Counter[str] = Counter()
    for text in texts:
        words = words_of(text)
        count.update({" ".join(words[at : at + size]) for size in range(3, 7)
                      for at in range(len(words) - size + 1)})  # fmt: skip
    return {words: k for words, k in count.items() if k >= least}


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_counting_everything(texts: list[str]) -> None:
    every = brute_force(texts, max(2, -(-len(texts) // 10)))
    found = phrases(texts, wilson)
    assert all(every[phrase.words] == phrase.k for phrase in found)
    assert bool(found) == bool(every)
    for words, k in every.items():  # what is not listed is a part of what is, or follows from it
        assert any(phrase.k >= 0.5 * k for phrase in found), words


@given(TEXTS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_texts_changes_no_figure(texts: list[str], rng: random.Random) -> None:
    mixed = texts[:]
    rng.shuffle(mixed)
    one, other = phrases(texts, wilson), phrases(mixed, wilson)
    assert [(each.words, each.k) for each in one] == [(each.words, each.k) for each in other]


@given(TEXTS, st.lists(st.sampled_from(list("vwxyz")), min_size=3, max_size=6), st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_a_phrase_in_some_of_the_texts_is_found_whole(
    texts: list[str], planted: list[str], times: int
) -> None:
    said = " ".join(planted)
    found = phrases([*texts, *[f"{n} {said} {n}" for n in range(times)]], wilson)
    assert any(said in phrase.words and phrase.k == times for phrase in found)
