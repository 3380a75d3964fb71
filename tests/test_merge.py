"""Three-way merge: the four cases, line endings, what is not text, and that no line is lost."""

import random
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_skills.merge import Merged, marker_lines, match_lines, merge, plain, same_text

BASE = b"one\ntwo\nthree\nfour\nfive\n"
YOURS = BASE.replace(b"two", b"TWO, mine")
NEW = BASE.replace(b"four", b"four and a half")
CLASH = b"""\
one
<<<<<<< yours
TWO, mine
||||||| base
two
=======
two, better
>>>>>>> new
three
four
five
"""


def text(lines: list[str], end: str, closed: bool) -> bytes:
    """A file of these lines; the last one may lack its ending."""
    return (end.join(lines) + (end if closed and lines else "")).encode()


FILES = st.builds(
    text,
    st.lists(st.sampled_from(["a", "b", "c", "d", "", "e f"]), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)


def lines_of(data: bytes) -> Counter[bytes]:
    return Counter(filter(None, plain(data).split(b"\n")))


# The four cases


def test_an_untouched_file_becomes_the_new_one() -> None:
    assert merge(BASE, BASE, NEW) == Merged(NEW, 0)


def test_edits_in_different_places_are_both_kept() -> None:
    assert merge(BASE, YOURS, NEW) == Merged(b"one\nTWO, mine\nthree\nfour and a half\nfive\n", 0)


def test_an_equal_edit_on_both_sides_is_one_edit() -> None:
    new = YOURS.replace(b"five", b"5")
    assert merge(BASE, YOURS, new) == Merged(new, 0)


def test_a_clash_shows_all_three_texts_between_markers() -> None:
    merged = merge(BASE, YOURS, BASE.replace(b"two", b"two, better"))
    assert merged == Merged(CLASH, 1)
    assert marker_lines(CLASH) == [2, 4, 8]


# Smaller promises


def test_neighbouring_edits_clash_because_nothing_between_them_says_that_they_are_apart() -> None:
    merged = merge(b"a\nb\nc\n", b"A\nb\nc\n", b"a\nB\nc\n")
    assert merged is not None
    assert merged.clashes == 1


def test_a_deletion_against_an_edit_is_a_clash_and_against_nothing_is_a_deletion() -> None:
    without = BASE.replace(b"two\n", b"")
    assert merge(BASE, without, NEW) == Merged(NEW.replace(b"two\n", b""), 0)
    merged = merge(BASE, YOURS, without)
    assert merged is not None
    assert merged.clashes == 1


def test_two_different_endings_of_one_file_clash_and_equal_ones_do_not() -> None:
    clash = merge(BASE, BASE + b"mine\n", BASE + b"ours\n")
    assert clash is not None
    assert clash.clashes == 1
    assert merge(BASE, YOURS + b"same\n", BASE + b"same\n") == Merged(YOURS + b"same\n", 0)


def test_line_endings_of_your_file_stay_and_are_no_edit() -> None:
    crlf = BASE.replace(b"\n", b"\r\n")
    assert merge(BASE, crlf, NEW) == Merged(NEW.replace(b"\n", b"\r\n"), 0)
    merged = merge(BASE, YOURS.replace(b"\n", b"\r\n"), NEW)
    assert merged is not None
    assert merged.data.count(b"\r\n") == merged.data.count(b"\n") == 5


def test_mixed_line_endings_stay_where_they_are() -> None:
    mixed = b"one\r\ntwo\nthree\nfour\nfive\n"
    assert merge(BASE, mixed, NEW) == Merged(mixed.replace(b"four", b"four and a half"), 0)


def test_a_missing_last_line_ending_is_kept_and_never_glues_two_lines() -> None:
    assert merge(BASE, YOURS[:-1], NEW) == Merged(merge(BASE, YOURS, NEW)[0][:-1], 0)  # type: ignore[index]
    assert merge(b"a\nb\n", b"A\nx\nb", b"a\nb\nc\n") == Merged(b"A\nx\nb\nc", 0)


def test_a_last_clash_ends_its_line() -> None:
    merged = merge(b"a\nb", b"a\nmine", b"a\nours")
    assert merged is not None
    assert merged.data.endswith(b"mine\n||||||| base\nb\n=======\nours\n>>>>>>> new\n")


def test_a_byte_order_mark_stays_and_is_no_edit() -> None:
    assert merge(BASE, b"\xef\xbb\xbf" + BASE, NEW) == Merged(b"\xef\xbb\xbf" + NEW, 0)
    assert same_text(BASE, b"\xef\xbb\xbf" + BASE.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("other", [b"\xff\xfe\x00", b"caf\xe9\n", b"a\0b\n"])
def test_what_is_no_utf8_text_is_not_merged(other: bytes) -> None:
    assert merge(BASE, other, NEW) is merge(BASE, YOURS, other) is merge(other, BASE, NEW) is None
    assert merge(other, other, NEW) == Merged(NEW, 0)


def test_strange_line_separators_are_part_of_a_line() -> None:
    base = "a\x0cb\u2028c\x85d\nmiddle\nz\n".encode()
    yours, new = base + b"mine\n", base.replace(b"a", b"A")
    assert merge(base, yours, new) == Merged(new + b"mine\n", 0)


def test_a_heading_underlined_with_equal_signs_is_no_marker() -> None:
    assert marker_lines(b"Title\n=======\n<<<<<<< HEAD\n") == []


KINDS = {
    "three different lines": lambda chance: [str(chance.randrange(3)) for _ in range(5000)],
    "half of them blank": lambda chance: [chance.choice(["", "x", "y z"]) for _ in range(5000)],
    "every line new": lambda chance: [str(chance.random()) for _ in range(5000)],
    "another order": lambda chance: chance.sample([str(i) for i in range(5000)], 5000),
    "in pairs": lambda chance: [str(i // 2) for i in range(5000)][:: chance.choice([1, -1])],
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_5000_lines_merge_in_seconds_at_worst(kind: str) -> None:
    chance, started = random.Random(kind), time.process_time()
    base, yours, new = ("\n".join(KINDS[kind](chance)).encode() for _ in range(3))
    merged = merge(base, yours, new)
    assert time.process_time() - started < 10
    assert merged is not None
    assert not (lines_of(yours) - lines_of(base)) - lines_of(merged.data)


# Properties


@given(FILES, FILES, FILES)
def test_no_line_that_you_added_or_changed_is_ever_lost(
    base: bytes, yours: bytes, new: bytes
) -> None:
    merged = merge(base, yours, new)
    assert merged is not None
    assert not (lines_of(yours) - lines_of(base)) - lines_of(merged.data)
    assert not (lines_of(new) - lines_of(base)) - lines_of(merged.data)


@given(FILES, FILES)
def test_when_one_side_did_nothing_the_result_is_the_other(base: bytes, other: bytes) -> None:
    assert merge(base, base, other) == Merged(other, 0)
    assert merge(base, other, base) == merge(base, other, other) == Merged(other, 0)


@given(FILES, FILES, FILES)
def test_both_sides_may_change_places(base: bytes, yours: bytes, new: bytes) -> None:
    one, two = merge(base, yours, new), merge(base, new, yours)
    assert one is not None
    assert two is not None
    assert one.clashes == two.clashes
    assert one.clashes or lines_of(one.data) == lines_of(two.data)


@given(FILES, FILES, FILES)
def test_a_clash_is_counted_exactly_when_there_are_markers(
    base: bytes, yours: bytes, new: bytes
) -> None:
    merged = merge(base, yours, new)
    assert merged is not None
    assert len(marker_lines(merged.data)) == 3 * merged.clashes


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_matched_lines_are_equal_and_in_order(a: list[str], b: list[str]) -> None:
    pairs = match_lines(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
