"""Near-duplicates: all of them are found, and no two different texts of one subject."""

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations import VOCABULARY, conversations, edited, planted
from curation import near_duplicates, similarity

TEXT = st.lists(st.sampled_from(VOCABULARY[:30]), max_size=40).map(" ".join)


def found(texts: dict[str, str], threshold: float = 0.8) -> set[tuple[str, str]]:
    return {(one, other) for one, other, _ in near_duplicates(texts, threshold)}


def test_copies_with_one_word_in_twenty_changed_are_found_and_nothing_else() -> None:
    texts, pairs = planted(2000, 120)
    got = found(texts)
    assert len(got & pairs) >= 0.99 * len(pairs)
    assert got == pairs


@pytest.mark.parametrize("words", [25, 60, 400])
def test_edited_copies_are_far_above_the_threshold_and_different_texts_far_below(
    words: int,
) -> None:
    texts, rng = list(conversations(100, words)), random.Random(1)
    copies = [similarity(text, edited(text, rng)) for text in texts]
    others = [similarity(one, other) for one, other in itertools.pairwise(texts)]
    assert sorted(copies)[5] >= 0.85
    assert max(others) <= 0.7


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_it_finds_what_comparing_all_with_all_finds() -> None:
    rng = random.Random(2)
    texts = {f"t{n}": text for n, text in enumerate(conversations(60, 40))}
    texts |= {f"{item}-{share}": edited(text, rng, share)
              for item, text in list(texts.items()) for share in (0.03, 0.06, 0.12)}  # fmt: skip
    every = {(one, other) for one, other in itertools.combinations(sorted(texts), 2)
             if similarity(texts[one], texts[other]) >= 0.8}  # fmt: skip
    got = found(texts)
    assert got <= every
    assert len(got) >= 0.99 * len(every)


def test_many_copies_of_one_text_stay_together_and_do_not_explode() -> None:
    rng, (text,) = random.Random(3), conversations(1, 120)
    crowd = {f"c{n:04}": edited(text, rng, 0.03) for n in range(600)}
    crowd |= {f"e{n:04}": text for n in range(600)}
    crowd |= {f"o{n:04}": other for n, other in enumerate(conversations(300, 120, seed=9))}
    pairs = found(crowd)
    assert len(pairs) < 40_000
    assert {item for pair in pairs for item in pair} == {i for i in crowd if i[0] != "o"}


def test_texts_without_words_are_like_no_other() -> None:
    assert near_duplicates({"a": "", "b": "", "c": " ... "}, 0.8) == []
    assert near_duplicates({}, 0.8) == []
    assert near_duplicates({"a": "one text"}, 0.8) == []
    assert similarity("", "") == 0


def test_case_quotes_and_signs_do_not_tell_texts_apart() -> None:
    texts = {"a": "Don\u2019t turn it, please.", "b": "don't turn it please"}
    assert near_duplicates(texts, 0.8) == [("a", "b", 1.0)]


def test_scripts_without_spaces_are_compared_too() -> None:
    letters = [chr(0x4E00 + n) for n in range(60)]
    one, other = "".join(letters), "".join(reversed(letters))
    assert found({"a": one, "b": one[:58] + one[:1], "c": other}) == {("a", "b")}


def test_one_giant_text_among_others_takes_no_longer_than_its_words() -> None:
    (giant,) = conversations(1, 20_000)
    begun = time.process_time()
    assert found({"a": giant, "b": giant + " once more", "c": "short"}) == {("a", "b")}
    assert time.process_time() - begun < 5


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_similarity_is_symmetric_and_between_nothing_and_all(one: str, other: str) -> None:
    assert similarity(one, other) == similarity(other, one)
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == (1 if one else 0)


@given(st.lists(TEXT, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_texts_changes_nothing(texts: list[str], rng: random.Random) -> None:
    named = {f"t{n}": text for n, text in enumerate(texts)}
    mixed = list(named.items())
    rng.shuffle(mixed)
    assert near_duplicates(named, 0.8) == near_duplicates(dict(mixed), 0.8)
