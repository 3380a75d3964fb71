"""Statistics: the figures of published tables, and intervals that keep what they promise."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from children import child
from evidence import (
    at_least,
    bands,
    clopper_pearson,
    e_value,
    jeffreys,
    passes_needed,
    posterior_above,
    wilson,
)
from infrastructure import FinetuneError

WILSON = {
    (30, 40): (0.598060, 0.858129), (78, 80): (0.913356, 0.993117), (320, 400): (0.75803, 0.836263),
    (8, 14): (0.325906, 0.786192), (3, 15): (0.070475, 0.451854), (1, 14): (0.012722, 0.314687),
    (0, 15): (0.0, 0.203883), (8, 10): (0.490162, 0.943318), (6, 10): (0.312674, 0.831820),
}  # fmt: skip
INTERVALS = [clopper_pearson, wilson, jeffreys]
counts = some.integers(1, 300).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n)))


@pytest.mark.parametrize("share", WILSON, ids=str)
def test_wilson_agrees_with_the_published_intervals(share: tuple[int, int]) -> None:
    assert wilson(*share) == pytest.approx(WILSON[share], abs=6e-7)


@pytest.mark.parametrize(
    ("k", "n", "high"), [(0, 30, 0.0950339), (0, 60, 0.0487029), (1, 14, 0.2967342)]
)
def test_clopper_pearson_agrees_with_the_published_one_sided_bounds(
    k: int, n: int, high: float
) -> None:
    assert clopper_pearson(k, n, 0.90)[1] == pytest.approx(high, abs=6e-8)


@given(counts)
def test_jeffreys_lies_inside_of_the_exact_interval(share: tuple[int, int]) -> None:
    (low, high), (lowest, highest) = jeffreys(*share), clopper_pearson(*share)
    assert lowest - 1e-12 <= low <= high <= highest + 1e-12


def test_an_upper_bound_on_one_side_is_the_end_of_a_wider_level() -> None:
    low, high = jeffreys(1, 2, 0.90)  # Beta(3/2, 3/2) is a half circle, whose area is known
    angle = math.asin(2 * high - 1)
    assert 0.5 + (angle + math.sin(angle) * math.cos(angle)) / math.pi == pytest.approx(0.95)
    assert low == pytest.approx(1 - high)


@given(counts)
def test_an_exact_interval_leaves_half_of_the_rest_on_each_side(share: tuple[int, int]) -> None:
    k, n = share
    low, high = clopper_pearson(k, n, 0.999)
    at_least = math.fsum(math.comb(n, i) * low**i * (1 - low) ** (n - i) for i in range(k, n + 1))
    at_most = math.fsum(math.comb(n, i) * high**i * (1 - high) ** (n - i) for i in range(k + 1))
    assert at_least == pytest.approx(0.0005 if k else 1, rel=1e-6)
    assert at_most == pytest.approx(0.0005 if k < n else 1, rel=1e-6)


@given(counts, some.sampled_from(INTERVALS))
def test_an_interval_holds_its_share_and_mirrors(share: tuple[int, int], interval: object) -> None:
    k, n = share
    low, high = interval(k, n)  # type: ignore[operator]
    assert 0 <= low <= k / n <= high <= 1
    assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)  # type: ignore[operator]


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_ends_are_exact_and_nothing_observed_says_nothing(interval: object) -> None:
    assert interval(0, 0) == (0.0, 1.0)  # type: ignore[operator]
    assert interval(0, 10)[0] == 0.0  # type: ignore[operator]
    assert interval(10, 10)[1] == 1.0  # type: ignore[operator]


@pytest.mark.parametrize(
    "given", [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 95), (1.0, 2, 0.95), (True, 2, 0.95)]
)
@pytest.mark.parametrize("interval", INTERVALS)
def test_what_is_no_share_is_refused_in_words(interval: object, given: tuple[object, ...]) -> None:
    with pytest.raises(FinetuneError, match="evidence: "):
        interval(*given)  # type: ignore[operator]


def test_importing_evidence_and_sampling_loads_neither_numpy_nor_scipy() -> None:
    ask = "import sys, evidence, sampling; print({'numpy', 'scipy'} & set(sys.modules))"
    assert child("-c", ask).stdout == "set()\n"


def test_without_numpy_the_message_says_what_to_install() -> None:
    ask = "import sys; sys.modules['numpy'] = None\n"
    ask += "from evidence import bootstrap; bootstrap([(1, 1)], len, seed=1)"
    assert "need numpy. Install what pyproject.toml names" in child("-c", ask).stderr


def test_without_scipy_the_message_says_what_to_install() -> None:
    ask = "import sys; sys.modules['scipy'] = None\n"
    ask += "from evidence import clopper_pearson, wilson; wilson(1, 2); clopper_pearson(1, 2)"
    done = child("-c", ask)
    assert "exact intervals need scipy. Install what pyproject.toml names" in done.stderr


# ══ Pass rates ════════════════════════════════════════════════════════════════════════════════════

RATES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
PASSES = {
    (17, 20): (0.001, 0.016, 0.107, 0.411, 0.648, 0.867, 0.984),
    (25, 30): (0.000, 0.006, 0.077, 0.428, 0.711, 0.927, 0.997),
    (32, 40): (0.000, 0.006, 0.111, 0.593, 0.865, 0.985, 1.000),
    (8, 10): (0.055, 0.167, 0.383, 0.678), (14, 20): (0.058, 0.250, 0.608, 0.913),
}  # fmt: skip
POSTERIOR = {
    (16, 20): 0.8016, (17, 20): 0.9144, (18, 20): 0.9729,
    (24, 30): 0.8654, (25, 30): 0.9373, (26, 30): 0.9761, (5, 5): 0.8824,
}  # fmt: skip
E_VALUES = {
    (5, 5, 0.5): 10.5, (9, 10, 0.5): 18.509091, (12, 15, 0.5): 8.906456, (14, 20, 0.5): 2.475542,
    (25, 40, 0.5): 1.255171, (2, 5, 0.5): 0.366667, (10, 10, 0.6): 37.45039,
    (17, 20, 0.6): 9.533482, (20, 20, 0.7): 198.81814, (0, 0, 0.3): 1.0,
}  # fmt: skip
STOPS = {  # the fewest passes that stop, after 5, 10, ... 60
    (0.5, 20): [None, 10, 13, 16, 20, 23, 26, 29, 32, 36, 39, 42],
    (0.6, 10): [None, 10, 14, 18, 21, 25, 28, 32, 36, 39, 43, 46],
    (0.7, 10): [None, 10, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51],
}
STOPPED = {  # the chance to stop within 60, by the true rate
    (0.5, 20): {0.5: 0.013, 0.6: 0.157, 0.7: 0.671, 0.8: 0.986, 0.9: 1.0},
    (0.6, 10): {0.6: 0.027, 0.7: 0.26, 0.8: 0.85},
    (0.7, 10): {0.7: 0.048, 0.8: 0.36, 0.9: 0.95},
}


@pytest.mark.parametrize("batch", PASSES, ids=str)
def test_the_chance_to_pass_a_batch_is_exact(batch: tuple[int, int]) -> None:
    found = [at_least(*batch, p) for p in RATES]
    assert found[: len(PASSES[batch])] == pytest.approx(PASSES[batch], abs=5.1e-4)


def test_two_batches_of_five_let_a_bad_process_through_and_stop_a_good_one() -> None:
    assert at_least(4, 5, 0.5) == pytest.approx(6 / 32, abs=1e-15)  # 19 %
    assert at_least(4, 5, 0.5) ** 2 == pytest.approx(0.035, abs=5e-4)
    assert at_least(4, 5, 0.8) ** 2 == pytest.approx(0.54, abs=5e-3)


@given(counts, some.floats(0, 1))
def test_at_least_is_the_sum_of_what_can_happen(share: tuple[int, int], p: float) -> None:
    k, n = share
    chances = (math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    assert at_least(k, n, p) == pytest.approx(math.fsum(chances), rel=1e-9, abs=1e-12)


@given(counts, some.floats(0, 1), some.floats(0, 1))
def test_more_passes_are_less_likely_and_a_better_process_likelier_to_give_them(
    share: tuple[int, int], one: float, other: float
) -> None:
    k, n = share
    low, high = sorted([one, other])
    assert at_least(k, n, low) <= at_least(k, n, high) + 1e-12
    assert at_least(k, n, low) <= at_least(max(k - 1, 0), n, low) + 1e-12
    assert at_least(0, n, low) == 1


@pytest.mark.parametrize("share", POSTERIOR, ids=str)
def test_the_posterior_agrees_with_the_published_values(share: tuple[int, int]) -> None:
    assert posterior_above(*share, 0.7) == pytest.approx(POSTERIOR[share], abs=5.1e-5)


def test_each_further_attempt_needs_more() -> None:
    assert [passes_needed(20, attempt=m) for m in (1, 2, 3, 4)] == [17, 18, 18, 19]
    assert [passes_needed(30, attempt=m) for m in (1, 2, 3, 4)] == [25, 26, 26, 26]
    assert passes_needed(40) == 32


def test_a_weaker_claim_needs_fewer_and_five_of_five_show_nothing() -> None:
    assert (passes_needed(10, 0.5, 0.95), passes_needed(20, 0.5, 0.95)) == (8, 14)
    assert passes_needed(5) is None


@given(some.integers(1, 60), some.floats(0.1, 0.9), some.integers(1, 5))
def test_the_passes_needed_are_enough_and_one_less_is_not(n: int, p: float, attempt: int) -> None:
    needed, level = passes_needed(n, p, 0.9, attempt), 1 - (1 - 0.9) / attempt
    if needed is None:
        assert posterior_above(n, n, p) < level
    else:
        assert posterior_above(needed, n, p) >= level
        assert needed == 0 or posterior_above(needed - 1, n, p) < level


@pytest.mark.parametrize("given", E_VALUES, ids=str)
def test_the_e_value_agrees_with_the_published_values(given: tuple[int, int, float]) -> None:
    assert e_value(*given) == pytest.approx(E_VALUES[given], abs=6e-6)


@pytest.mark.parametrize("rule", STOPS, ids=str)
def test_looking_after_every_five_stops_where_the_table_says(rule: tuple[float, int]) -> None:
    assert [stop(n, *rule) for n in range(5, 61, 5)] == STOPS[rule]


@pytest.mark.parametrize("rule", STOPPED, ids=str)
def test_looking_after_every_five_stops_as_often_as_the_table_says(rule: tuple[float, int]) -> None:
    found = {p: chance_to_stop(p, *rule) for p in STOPPED[rule]}
    assert found == pytest.approx(STOPPED[rule], abs=5e-3)
    assert found[rule[0]] <= 1 / rule[1]  # a process that is no better than p0


@pytest.mark.parametrize("p0", [0.1, 0.5, 0.7, 0.95])
def test_the_e_value_of_a_process_that_is_no_better_is_one_at_most_on_average(p0: float) -> None:
    for n in range(41):
        values = [math.comb(n, k) * e_value(k, n, p0) for k in range(n + 1)]
        for p in (p0, 0.9 * p0, 0.5 * p0):
            mean = math.fsum(v * p**k * (1 - p) ** (n - k) for k, v in enumerate(values))
            assert mean <= 1 + 1e-9


def test_an_e_value_is_never_an_overflow() -> None:
    assert (e_value(5000, 5000, 0.5), e_value(0, 5000, 0.9)) == (math.inf, 0.0)


def test_an_interval_over_two_bands_says_so() -> None:
    edges = (0.5, 0.7)
    assert bands(*wilson(5, 20), edges) == [0]
    assert bands(*wilson(12, 20), edges) == [0, 1, 2]
    assert bands(*wilson(19, 20), edges) == [2]
    assert bands(0.55, 0.75, edges) == [1, 2]


def test_a_bound_on_an_edge_reaches_no_further_and_a_point_on_it_is_in_both() -> None:
    assert bands(0.5, 0.7, (0.5, 0.7)) == [1]
    assert bands(0.7, 0.7, (0.5, 0.7)) == [1, 2]
    assert bands(0.0, 1.0, ()) == [0]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: at_least(3, 2, 0.5), lambda: at_least(1, 2, 1.5), lambda: posterior_above(1, 2, -1),
        lambda: passes_needed(-1), lambda: passes_needed(20, sure=90), lambda: e_value(1, 2, 1.0),
        lambda: passes_needed(20, attempt=0), lambda: bands(0.6, 0.5, (0.5,)),
        lambda: bands(0.5, 0.6, (0.7, 0.5)),
    ],
)  # fmt: skip
def test_what_is_no_pass_rate_is_refused_in_words(ask: Callable[[], object]) -> None:
    with pytest.raises(FinetuneError, match="evidence: "):
        ask()


def stop(n: int, p0: float, least: float) -> int | None:
    """The fewest passes of n that stop."""
    return next((k for k in range(n + 1) if e_value(k, n, p0) >= least), None)


def chance_to_stop(p: float, p0: float, least: float) -> float:
    """That a process with true rate p is stopped within 60, looking after every five; counted."""
    going, stopped = {0: 1.0}, 0.0
    for n in range(5, 61, 5):
        after: dict[int, float] = {}
        for k, i in itertools.product(going, range(6)):
            chance = going[k] * math.comb(5, i) * p**i * (1 - p) ** (5 - i)
            after[k + i] = after.get(k + i, 0.0) + chance
        end = stop(n, p0, least) or n + 1
        stopped += math.fsum(chance for k, chance in after.items() if k >= end)
        going = {k: chance for k, chance in after.items() if k < end}
    return stopped
