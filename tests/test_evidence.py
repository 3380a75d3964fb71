"""Statistics: the figures of published tables, and intervals that keep what they promise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from children import child
from evidence import clopper_pearson, jeffreys, wilson
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
