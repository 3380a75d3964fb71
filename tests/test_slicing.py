"""Slicing and chance: the same id gives the same cuts, everywhere and in any order."""

import hashlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from children import child
from infrastructure import FinetuneError, get_slice_points, rng

IDS = [f"transcript_{n}" for n in range(15)] + ["1", "t_0042", "a.b-c", "\u00e9t\u00e9", "x" * 120]
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 33, 50, 77, 100, 101, 250)
TOTALS = st.integers(3, 300)


def by_the_rule(total: int, name: str) -> list[int]:
    """Seed: the first 8 hex digits of sha256. First at 3, then gaps of 2 to 5; the last always."""
    if total < 3:
        return []
    chance, points = random.Random(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)), [3]
    while points[-1] < total:
        points.append(points[-1] + chance.randint(2, 5))
    return [*points[:-1], total]


@pytest.mark.parametrize("name", IDS)
def test_the_cuts_follow_from_the_rule_for_every_id_and_length(name: str) -> None:
    assert len(IDS) == len(LENGTHS) == 20
    for total in LENGTHS:
        assert get_slice_points(total, name) == by_the_rule(total, name)


def test_the_cuts_of_a_known_transcript_never_change() -> None:
    assert get_slice_points(30, "transcript_1") == [3, 8, 12, 14, 16, 18, 21, 26, 29, 30]
    assert get_slice_points(17, "t_0042") == [3, 5, 10, 13, 17]
    assert get_slice_points(3, "transcript_1") == [3]


@pytest.mark.parametrize("total", [0, 1, 2])
def test_a_conversation_that_is_too_short_is_not_cut(total: int) -> None:
    assert get_slice_points(total, "a") == []


@given(TOTALS, st.text())
def test_cuts_rise_from_the_first_to_the_last_by_gaps_within_bounds(total: int, name: str) -> None:
    points = get_slice_points(total, name)
    gaps = [later - earlier for earlier, later in itertools.pairwise(points)]
    assert (points[0], points[-1]) == (3, total)
    assert all(2 <= gap <= 5 for gap in gaps[:-1])
    assert all(1 <= gap <= 5 for gap in gaps[-1:])


@given(TOTALS, st.integers(1, 6), st.integers(1, 4), st.integers(0, 4))
def test_other_settings_move_the_bounds(total: int, first: int, least: int, more: int) -> None:
    points = get_slice_points(total, "a", first=first, min_gap=least, max_gap=least + more)
    gaps = [later - earlier for earlier, later in itertools.pairwise(points)]
    assert points == [] if total < first else (points[0], points[-1]) == (first, total)
    assert all(least <= gap <= least + more for gap in gaps[:-1])


@given(TOTALS, st.integers(0, 50))
def test_a_conversation_that_grows_keeps_its_earlier_cuts(total: int, more: int) -> None:
    before, after = get_slice_points(total, "a"), get_slice_points(total + more, "a")
    assert after[: len(before) - 1] == before[:-1]


@pytest.mark.parametrize("settings", [{"first": 0}, {"min_gap": 0}, {"min_gap": 4, "max_gap": 3}])
def test_settings_that_cannot_cut_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(FinetuneError, match="slicing"):
        get_slice_points(10, "a", **settings)


DRAW = """
import random
from infrastructure import get_slice_points, rng
random.seed(), random.random()
print(get_slice_points(40, "t_0042"), rng(7, "anna", 3, "flaw").random())
"""


def test_cuts_and_draws_are_the_same_in_every_process() -> None:
    said = {child("-c", DRAW, PYTHONHASHSEED=seed).stdout for seed in ("0", "1", "random")}
    draw = rng(7, "anna", 3, "flaw").random()
    assert said == {f"{get_slice_points(40, 't_0042')} {draw}\n"}


# Chance by key


def test_a_draw_depends_on_its_key_and_not_on_what_was_drawn_before() -> None:
    alone = rng(7, "anna", 3, "flaw").random()
    for turn in range(9):
        rng(7, "anna", turn, "topic").random()
    random.seed(1)
    assert rng(7, "anna", 3, "flaw").random() == alone


def test_a_draw_leaves_the_global_generator_alone() -> None:
    random.seed(1)
    expected = random.Random(1).random()
    rng(7, "anna").shuffle(list(range(9)))
    assert random.random() == expected


def test_each_part_of_a_key_and_its_place_counts() -> None:
    keys = [(1, "a"), (1, "b"), (2, "a"), ("a", 1), ("1a",), (1, "a", 0), ("1", "a ", "")]
    assert len({rng(*key).random() for key in keys}) == len(keys)


def test_draws_over_many_keys_are_spread_evenly() -> None:
    draws = [rng(7, persona, "flaw").random() for persona in range(2000)]
    tenths = [sum(int(draw * 10) == part for draw in draws) for part in range(10)]
    assert all(150 < count < 250 for count in tenths)
