"""Agreement, a judge against people, and pass rates corrected for a judge's mistakes."""

import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from evidence import (
    LABELS,
    bootstrap,
    cohen_kappa,
    flip_rate,
    judge_quality,
    krippendorff_alpha,
    labels_needed,
    pairable,
    raw_agreement,
    rogan_gladen,
    wilson,
)
from infrastructure import FinetuneError

Answers = list[list[Any]]

KAPPA = {
    (30, 10, 2, 78): 0.763158, (45, 15, 25, 15): 0.130435, (25, 35, 5, 35): 0.259259,
    (10, 0, 0, 0): None, (0, 0, 0, 0): None,
}  # fmt: skip
FOUR_JUDGES = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 ."""
BINARY = """
    1 1 1 0 0 1 0 1 1 1
    1 1 0 0 0 1 1 1 1 1
    1 1 1 0 . 1 0 1 . 1"""
FLEISS = """
    0 0 0 0 14 / 0 2 6 4 2 / 0 0 3 5 6 / 0 3 9 2 0 / 2 2 8 1 1
    7 7 0 0 0 / 3 2 6 3 0 / 2 5 3 2 2 / 6 5 2 1 0 / 0 2 2 3 7"""

answers = some.sampled_from(["YES", "NO", "NA", None, "ERROR"])
pairs = some.lists(some.tuples(answers, answers), max_size=30)
many = some.lists(some.lists(answers, max_size=5), max_size=30)
interval_alpha = partial(krippendorff_alpha, level="interval")


def by_unit(rows: str) -> Answers:
    """The answers about each thing, of a table with a row per judge."""
    judges = [line.split() for line in rows.strip().splitlines()]
    return [
        [None if each == "." else int(each) for each in unit] for unit in zip(*judges, strict=True)
    ]


def table(a: int, b: int, c: int, d: int) -> list[tuple[bool, bool]]:
    return [(True, True)] * a + [(True, False)] * b + [(False, True)] * c + [(False, False)] * d


# ══ Agreement ═════════════════════════════════════════════════════════════════════════════════════


@pytest.mark.parametrize("cells", KAPPA, ids=str)
def test_kappa_agrees_with_the_published_values(cells: tuple[int, int, int, int]) -> None:
    expected = KAPPA[cells]
    assert cohen_kappa(table(*cells)) == (expected and pytest.approx(expected, abs=6e-7))


def test_alpha_agrees_with_the_published_values_of_four_judges_with_gaps() -> None:
    units = by_unit(FOUR_JUDGES)
    assert krippendorff_alpha(units) == pytest.approx(0.743421, abs=6e-7)
    assert interval_alpha(units) == pytest.approx(0.849107, abs=6e-7)
    assert pairable(units) == 40


def test_alpha_agrees_with_the_published_values_of_two_and_three_judges() -> None:
    units = by_unit(BINARY)
    assert krippendorff_alpha([unit[:2] for unit in units]) == pytest.approx(0.547619, abs=6e-7)
    assert krippendorff_alpha(units) == pytest.approx(0.6625, abs=1e-12)
    assert interval_alpha(units) == pytest.approx(0.6625, abs=1e-12)  # two labels: the same


def test_alpha_is_the_kappa_of_fleiss_but_for_the_size_of_the_sample() -> None:
    counts = [[int(each) for each in row.split()] for row in re.split(r"[/\n]", FLEISS.strip())]
    units = [[label for label in range(5) for _ in range(row[label])] for row in counts]
    assert krippendorff_alpha(units) == pytest.approx(0.209931 + (1 - 0.209931) / 140, abs=6e-7)


@pytest.mark.parametrize("alone", [[], [("YES", None)], [("YES", "YES")] * 9 + [("NO", "ERROR")]])
def test_agreement_beyond_chance_is_unknown_where_only_one_label_occurs(alone: Any) -> None:
    assert cohen_kappa(alone) is None
    assert krippendorff_alpha(alone) is None
    assert raw_agreement(alone) == (1.0 if len(alone) > 1 else None)


@given(pairs)
def test_swapping_the_judges_changes_no_agreement(given: Any) -> None:
    swapped = [(b, a) for a, b in given]
    assert cohen_kappa(swapped) == cohen_kappa(given)
    assert raw_agreement(swapped) == raw_agreement(given)
    assert krippendorff_alpha(swapped) == krippendorff_alpha(given)


@given(pairs, many, some.permutations(["YES", "NO", "NA"]))
def test_other_words_for_the_answers_change_no_agreement(
    given: Any, units: Any, words: list[str]
) -> None:
    other = dict(zip(["YES", "NO", "NA"], words, strict=True)) | {None: None, "ERROR": "ERROR"}
    assert cohen_kappa([(other[a], other[b]) for a, b in given]) == cohen_kappa(given)
    renamed = [[other[each] for each in unit] for unit in units]
    assert krippendorff_alpha(renamed) == krippendorff_alpha(units)


@given(many, some.randoms())
def test_the_order_of_units_and_of_answers_changes_nothing(units: Any, chance: Any) -> None:
    mixed = [chance.sample(unit, len(unit)) for unit in chance.sample(units, len(units))]
    assert krippendorff_alpha(mixed) == krippendorff_alpha(units)
    assert flip_rate(mixed, draws=2).rate == flip_rate(units, draws=2).rate
    turned = units[::-1]
    assert flip_rate(turned, draws=20) == flip_rate(units, draws=20)


@given(pairs, many)
def test_a_missing_answer_is_no_answer_and_so_is_an_error(given: Any, units: Any) -> None:
    complete = [pair for pair in given if not {None, "ERROR"} & set(pair)]
    assert cohen_kappa(complete) == cohen_kappa(given)
    answered = [[each for each in unit if each in ("YES", "NO", "NA")] for unit in units]
    assert krippendorff_alpha(answered) == krippendorff_alpha(units)
    assert flip_rate(answered, draws=2).rate == flip_rate(units, draws=2).rate


@given(many.map(lambda units: [[{"YES": 1, "NO": 0}.get(a) for a in unit] for unit in units]))
def test_two_answers_as_numbers_agree_as_two_answers_in_words_do(units: Any) -> None:
    expected = krippendorff_alpha(units)
    moved = [[each if each is None else 1e6 + 0.1 * each for each in unit] for unit in units]
    assert interval_alpha(units) == (expected if expected is None else pytest.approx(expected))
    assert interval_alpha(moved) == (
        expected if expected is None else pytest.approx(expected, abs=1e-6)
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda: cohen_kappa([("YES", "NO", "NO")]), lambda: raw_agreement(["AB"]),
        lambda: krippendorff_alpha(["YES", "NO"]), lambda: krippendorff_alpha([True, None]),
        lambda: krippendorff_alpha([[1, 2]], level="ordinal"),
        lambda: interval_alpha([["1", "2"]]), lambda: interval_alpha([[1.0, float("nan")]]),
    ],
)  # fmt: skip
def test_what_are_no_answers_is_refused_in_words(ask: Callable[[], object]) -> None:
    with pytest.raises(FinetuneError, match="evidence: "):
        ask()


# ══ Resampling ════════════════════════════════════════════════════════════════════════════════════


def judged(transcripts: int, seed: int = 5) -> dict[str, Answers]:
    """Three judges on four criteria of each transcript; some transcripts are harder than others."""
    chance = random.Random(seed)
    easy = {f"t{i}": chance.betavariate(2, 1) for i in range(transcripts)}
    kinds = {
        name: [[("NO", "YES")[chance.random() < p] for _ in range(3)] for _ in range(4)]
        for name, p in easy.items()
    }
    kinds["t0"][0][0] = None
    return kinds


@pytest.mark.parametrize(
    "statistic", [krippendorff_alpha, interval_alpha], ids=["alpha", "numbers"]
)
def test_a_statistic_of_ours_is_resampled_quickly_to_the_same_interval(statistic: Any) -> None:
    number = {"YES": 3.1, "NO": 1.7}
    units = {name: [[number.get(a) for a in u] for u in g] for name, g in judged(12).items()}
    slowly = bootstrap(units, lambda drawn: statistic(drawn), seed=3, draws=60)
    assert bootstrap(units, statistic, seed=3, draws=60) == pytest.approx(slowly, abs=1e-12)


@pytest.mark.parametrize("statistic", [cohen_kappa, raw_agreement])
def test_pairs_are_resampled_quickly_to_the_same_interval(statistic: Any) -> None:
    units = [tuple(unit[:2]) for group in judged(10).values() for unit in group]
    slowly = bootstrap(units, lambda drawn: statistic(drawn), seed=3, draws=60)
    assert bootstrap(units, statistic, seed=3, draws=60) == pytest.approx(slowly, abs=1e-12)


def test_the_interval_is_the_same_in_any_order_and_another_with_another_seed() -> None:
    units = judged(20)
    turned = {name: units[name][::-1] for name in reversed(units)}
    found = bootstrap(units, krippendorff_alpha, seed=1, draws=200)
    assert bootstrap(turned, krippendorff_alpha, seed=1, draws=200) == found
    assert bootstrap(units, krippendorff_alpha, seed=2, draws=200) != found


def test_copies_within_a_transcript_make_nothing_surer() -> None:
    units = {name: group[:1] for name, group in judged(40).items() if name != "t0"}
    copied = {name: group * 10 for name, group in units.items()}
    width, same, less = (
        high - low
        for given in (units, copied, [unit for group in copied.values() for unit in group])
        for low, high in [bootstrap(given, krippendorff_alpha, seed=1, draws=400)]
    )
    assert same == pytest.approx(width, abs=0.03)
    assert less < 0.5 * width


def test_draws_without_a_value_are_left_out_and_too_few_with_one_give_no_interval() -> None:
    assert bootstrap([["YES", "YES"]] * 3, krippendorff_alpha, seed=1) is None
    assert bootstrap([["YES", "NO"]], krippendorff_alpha, seed=1) is None
    rare = [["YES", "YES"]] * 9 + [["NO", "NO"]]  # a draw has a NO in 65 % of cases
    assert bootstrap(rare, krippendorff_alpha, seed=1) == (1.0, 1.0)


def test_the_flip_rate_is_the_chance_that_two_asks_differ() -> None:
    runs = {"a": [["YES", "YES", "NO"], ["NO", "NO", "NO"]], "b": [["YES", "ERROR", "YES"], ["NO"]]}
    found = flip_rate(runs)
    assert (found.rate, found.units, found.transcripts) == (pytest.approx(2 / 9), 3, 2)
    assert found.low <= 2 / 9 <= found.high


def test_no_flip_seen_in_twenty_transcripts_is_not_no_flips() -> None:
    found = flip_rate({i: [["YES", "YES"], ["NO", "NO"]] for i in range(20)})
    assert (found.rate, found.low, found.high) == (0, 0, pytest.approx(0.168433, abs=1e-6))
    assert flip_rate([["YES", "NO"]] * 20).low == pytest.approx(1 - 0.168433, abs=1e-6)


def test_a_flip_rate_of_one_transcript_or_none_says_nothing() -> None:
    found = flip_rate({"a": [["YES", "NO"], ["NO", "NO"]]})
    assert (found.rate, found.low, found.high) == (0.5, 0, 1)
    nothing = flip_rate({"a": [["YES", "ERROR"]], "b": []})
    assert (nothing.rate, nothing.low, nothing.high, nothing.units) == (None, 0, 1, 0)


def test_the_interval_of_the_flip_rate_covers_the_truth() -> None:
    chance, found = random.Random(7), []
    for seed in range(200):  # each of 5 answers is a NO with 30 %, so two asks differ with 42 %
        asks = [[[chance.random() < 0.3 for _ in range(2)] for _ in range(5)] for _ in range(40)]
        found.append(flip_rate(dict(enumerate(asks)), seed, draws=200))
    assert 0.90 <= sum(each.low <= 0.42 <= each.high for each in found) / 200 <= 0.98


# ══ A judge against people ════════════════════════════════════════════════════════════════════════


def test_the_quality_of_a_judge_is_what_people_say_of_the_same_transcripts() -> None:
    quality = judge_quality([*table(30, 10, 2, 78), (True, None), ("ERROR", False)])
    assert (quality.tpr.counts, quality.tnr.counts) == ((30, 40), (78, 80))
    assert (quality.tpr.low, quality.tpr.high) == wilson(30, 40)
    assert (quality.false_fails, quality.false_passes, quality.left_out) == (10, 2, 2)
    assert quality.kappa == pytest.approx(0.763158, abs=6e-7)


def test_a_judge_that_met_no_bad_transcript_has_no_true_negative_rate() -> None:
    tnr = judge_quality(table(9, 1, 0, 0)).tnr
    assert (tnr.n, tnr.rate, tnr.low, tnr.high) == (0, None, 0, 1)


def test_words_are_not_taken_for_true() -> None:
    with pytest.raises(FinetuneError, match=r"'NO'.* is not two of True and False"):
        judge_quality([(True, "NO")])


def test_the_corrected_rate_agrees_with_the_published_value_and_interval() -> None:
    found = rogan_gladen(320, 400, tpr=(78, 80), tnr=(30, 40), draws=200_000)
    assert found.rate == pytest.approx(0.7586207, abs=6e-8)
    assert (found.low, found.high) == pytest.approx((0.671, 0.841), abs=2e-3)
    assert (found.raw, found.refused) == (0.8, "")


def test_a_judge_that_may_be_a_coin_is_refused_with_the_number_of_labels_that_would_do() -> None:
    found = rogan_gladen(320, 400, tpr=(8, 10), tnr=(6, 10))
    assert (found.rate, found.low, found.high, found.raw) == (None, None, None, 0.8)
    assert "TPR of 0.49 and a TNR of 0.31, together 0.80" in found.refused
    more = int(re.search(r"About (\d+) more labels would do", found.refused)[1]) // 2
    enough = [(round(k / 10 * (10 + more)), 10 + more) for k in (8, 6)]
    assert rogan_gladen(320, 400, *enough).refused == ""


@pytest.mark.parametrize(
    ("judge", "tpr", "tnr", "words"),
    [
        ((0, 0), (9, 10), (9, 10), "Nothing was judged. Judge at least 1 transcript"),
        ((5, 9), (9, 10), (0, 0), "No label says that a person fails a transcript. Get about 50"),
        ((5, 9), (0, 0), (0, 0), "that a person passes or fails a transcript"),
        ((5, 9), (5, 10), (5, 10), "Even 10000 more labels would not do: .* make 1.00. Improve"),
    ],
)
def test_what_can_not_be_corrected_says_what_would_help(
    judge: Any, tpr: Any, tnr: Any, words: str
) -> None:
    found = rogan_gladen(*judge, tpr, tnr)
    assert found.rate is None
    assert re.search(words, found.refused)


@given(some.integers(0, 90), some.integers(42, 50), some.integers(40, 50))
def test_a_corrected_rate_lies_in_its_interval_within_zero_and_one(
    passed: int, good: int, bad: int
) -> None:
    found = rogan_gladen(passed, 90, (good, 50), (bad, 50), draws=500)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert rogan_gladen(passed, 90, (good, 50), (bad, 50), draws=500) == found


@given(some.integers(0, 90), some.integers(42, 50), some.integers(42, 50))
def test_failing_for_passing_is_corrected_alike(passed: int, good: int, bad: int) -> None:
    found = rogan_gladen(passed, 90, (good, 50), (bad, 50), draws=2)
    mirror = rogan_gladen(90 - passed, 90, (bad, 50), (good, 50), draws=2)
    assert mirror.rate == pytest.approx(1 - found.rate, abs=1e-12)


SETTINGS = [  # TPR, TNR, good = bad labels, judged, what people would pass
    (0.95, 0.90, 50, 90, 0.3), (0.95, 0.90, 100, 500, 0.8), (0.90, 0.80, 50, 500, 0.5),
    (0.90, 0.80, 100, 90, 0.8), (0.85, 0.75, 50, 90, 0.5), (0.85, 0.75, 100, 500, 0.3),
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_corrected_rates_cover_the_truth_as_often_as_they_say(setting: Any) -> None:
    covered, _ = coverage(*setting, times=2000)
    assert 0.93 <= covered <= 0.97


def coverage(
    tpr: float, tnr: float, labels: int, judged: int, truth: float, times: int, draws: int = 2000
) -> tuple[float, int]:
    """How often the interval of a simulated judge holds the truth, and how often there is none."""
    import numpy

    chance = numpy.random.default_rng(11)
    good, bad = chance.binomial(labels, tpr, times), chance.binomial(labels, tnr, times)
    passed = chance.binomial(judged, truth * tpr + (1 - truth) * (1 - tnr), times)
    found = [
        rogan_gladen(int(k), judged, (int(a), labels), (int(b), labels), seed, draws)
        for seed, (k, a, b) in enumerate(zip(passed, good, bad, strict=True))
    ]
    given = [each for each in found if not each.refused]
    return sum(each.low <= truth <= each.high for each in given) / len(given), times - len(given)


def test_the_labels_needed_are_those_of_the_table_and_fewer_are_not_enough() -> None:
    needed = labels_needed(66, 90, tpr=(19, 20), tnr=(18, 20))
    assert needed == 100
    narrow = rogan_gladen(66, 90, (48, 50), (45, 50))
    wide = rogan_gladen(66, 90, (38, 40), (36, 40))
    assert narrow.high - narrow.low < 0.25 < wide.high - wide.low


@given(some.floats(0.05, 0.6), some.floats(0.05, 0.6))
def test_a_narrower_interval_never_needs_fewer_labels(one: float, other: float) -> None:
    narrow, wide = (
        labels_needed(66, 90, (19, 20), (18, 20), width, draws=400) or max(LABELS) + 1
        for width in sorted([one, other])
    )
    assert narrow >= wide


def test_no_number_of_labels_makes_up_for_few_judged_or_a_poor_judge() -> None:
    assert labels_needed(15, 20, tpr=(95, 100), tnr=(90, 100)) is None
    assert labels_needed(250, 500, tpr=(11, 20), tnr=(10, 20)) is None
    with pytest.raises(FinetuneError, match="No label says that a person fails"):
        labels_needed(15, 20, tpr=(9, 10), tnr=(0, 0))
