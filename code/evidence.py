"""Statistics that say how sure a figure is. Works alone when copied; needs numpy and scipy.

    from evidence import bootstrap, clopper_pearson, judge_quality, krippendorff_alpha, rogan_gladen

    low, high = clopper_pearson(13, 15)  # exact: never covers less than it says; see also wilson
    krippendorff_alpha(units)  # a unit: the answers that several judges gave about one thing
    bootstrap({transcript: units}, krippendorff_alpha, seed=1)  # resamples whole transcripts
    quality = judge_quality(pairs)  # (person passes, judge passes)
    rogan_gladen(70, 90, quality.tpr.counts, quality.tnr.counts)  # the rate behind the judge's rate
    passes_needed(20)  # 17: so many of 20 show a process that passes more than 70 %

None and "ERROR" are no answers, anywhere. What can't be computed is None, never 0 or 1.
Importing it opens nothing and loads no numpy or scipy; the call that needs one imports it.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from statistics import NormalDist, fmean
from typing import Any, NamedTuple, TypeVar

from infrastructure import FinetuneError

Unit = TypeVar("Unit")
# A list resamples its units; {transcript: its units} resamples transcripts, each as a whole.
Grouped = Iterable[Unit] | Mapping[Any, Sequence[Unit]]
Counts = tuple[int, int]  # k of n
Pair = tuple[Hashable, Hashable]  # what two judges answered about the same thing
Statistic = Callable[[Sequence[Any]], float | None]

NO_ANSWER = (None, "ERROR")
LEAST_KNOWN = 1.1  # what a judge's TPR and TNR, each at its lower bound, must exceed together
MOST_LABELS = 10_000  # more labels than anybody gives: beyond it, only a better judge helps
LABELS = (20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 700, 1000, 1400, 2000)

# ══ 1 Intervals of one share ══════════════════════════════════════════════════════════════════════

# All are two-sided. A bound that holds on one side with 95 % is that end at level 0.90.


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share, k of n; (0, 1) for nothing observed."""
    tail = _tail(k, n, level)
    special = _scipy_special()
    low = float(special.betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(special.betainccinv(k + 1, n - k, tail)) if k < n else 1.0
    return low, high


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, k of n; (0, 1) for nothing observed."""
    z = NormalDist().inv_cdf(1 - _tail(k, n, level))
    if n == 0:
        return 0.0, 1.0
    share, spread = k / n, z * z / n
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = ((share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return (low if k > 0 else 0.0), (high if k < n else 1.0)  # the ends are exact, not rounded


def jeffreys(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Jeffreys' interval of a share, k of n; (0, 1) for nothing observed.

    It is Bayesian, from Beta(k + 1/2, n - k + 1/2); right on average, like Wilson's. For an upper
    bound that holds with 95 %, ask at level 0.90 and take the upper end.
    """
    tail = _tail(k, n, level)
    special = _scipy_special()
    low = float(special.betaincinv(k + 0.5, n - k + 0.5, tail)) if k > 0 else 0.0
    high = float(special.betainccinv(k + 0.5, n - k + 0.5, tail)) if k < n else 1.0
    return low, high


def _tail(k: int, n: int, level: float) -> float:
    """What one tail may hold; refuses counts and levels that can't be."""
    _check_counts(k, n)
    return _tail_of(level)


def _check_counts(k: int, n: int) -> None:
    whole = all(hasattr(each, "__index__") and not isinstance(each, bool) for each in (k, n))
    if not whole or not 0 <= k <= n:
        raise FinetuneError(
            f"evidence: {k!r} of {n!r} is no share. Give whole numbers, 0 <= k <= n."
        )


def _tail_of(level: float) -> float:
    if not 0 < level < 1:
        raise FinetuneError(f"evidence: a level of {level!r} is not between 0 and 1, such as 0.95.")
    return (1 - level) / 2


def _scipy_special() -> Any:
    try:
        from scipy import special
    except ImportError:
        todo = "Install what pyproject.toml names: uv sync, or pip install scipy."
        raise FinetuneError(f"evidence: exact intervals need scipy. {todo}") from None
    return special


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        todo = "Install what pyproject.toml names: uv sync, or pip install numpy."
        raise FinetuneError(f"evidence: intervals by drawing need numpy. {todo}") from None
    return numpy


# ══ 2 Agreement ═══════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class FlipRate:
    """How often two asks of the same thing differ, and over how much that was seen."""

    rate: float | None
    low: float
    high: float
    units: int  # things that were answered twice or more
    transcripts: int  # the independent ones, which the interval resamples


class Tally(NamedTuple):
    """A statistic made of sums, which makes resampling quick: a row per unit, and what sums say."""

    rows: Callable[[Sequence[Any]], list[list[float]]]
    value: Callable[[Sequence[float]], float | None]

    def of(self, units: Iterable[Any]) -> float | None:
        columns = zip(*self.rows(list(units)), strict=True)
        sums = [math.fsum(column) for column in columns]  # the same in any order
        return self.value(sums) if sums else None


def raw_agreement(pairs: Iterable[Pair]) -> float | None:
    """The share of pairs that agree; None without a pair."""
    return RAW.of(pairs)


def cohen_kappa(pairs: Iterable[Pair]) -> float | None:
    """Agreement of two judges beyond chance; None without a pair or when only one label occurs."""
    return KAPPA.of(pairs)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]], level: str = "nominal") -> float | None:
    """Agreement of any number of judges beyond chance, also where some did not answer.

    A unit holds the answers about one thing; one with fewer than two says nothing. At the level
    "interval" answers are numbers, and those far apart disagree more. None when only one answer
    occurs, or no unit has two.
    """
    if level not in ALPHAS:
        raise FinetuneError(f'evidence: no level {level!r}. Have: "nominal", "interval".')
    return ALPHAS[level].of(units)


def pairable(units: Iterable[Sequence[Hashable]]) -> int:
    """How many answers alpha is made of: those about things with two answers or more."""
    return sum(size for unit in units if (size := len(_answers(unit))) > 1)


def flip_rate(
    runs: Grouped[Sequence[Hashable]], seed: int = 0, draws: int = 2000, level: float = 0.95
) -> FlipRate:
    """The chance that two asks of the same thing differ; a unit is one judge's answers to K asks.

    Give {transcript: [answers to each criterion]}, so that whole transcripts are resampled. Where
    all of them are alike (no flip at all, say), resampling sees no chance, and the exact interval
    of so many transcripts takes its place.
    """
    answered = ([unit for unit in group if len(_answers(unit)) > 1] for group in _groups(runs))
    groups = [group for group in answered if group]
    units = [unit for group in groups for unit in group]
    rate = FLIPS.of(units)
    if rate is None:
        return FlipRate(None, 0.0, 1.0, 0, 0)
    found = bootstrap(dict(enumerate(groups)), FLIPS.of, seed, draws, level) or (rate, rate)
    low, high = found if found[1] - found[0] > 1e-12 else _widest(rate, len(groups), level)
    return FlipRate(rate, low, high, len(units), len(groups))


def bootstrap(
    units: Grouped[Unit],
    statistic: Callable[[Sequence[Unit]], float | None],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """The percentile interval of a statistic over resampled units; None if there is none to give.

    It is approximate, and too narrow for few units: below 30 take it as a hint. What never varied
    gets no width, which is no proof. Units that share a source, such as a transcript, belong into
    a mapping, {transcript: its units}; then transcripts are resampled. Their order does not count.
    A draw without a value is left out; with fewer than half left, or fewer than two units, there is
    no interval. The statistics of this chapter are quick, also as a partial.
    """
    numpy, groups, tail = _numpy(), _groups(units), _tail_of(level)
    if len(groups) < 2:
        return None
    draw = partial(numpy.random.default_rng(seed).integers, 0, len(groups), len(groups))
    resample = _resampler(groups, statistic)
    values = [value for _ in range(draws) if (value := resample(draw())) is not None]
    if not values or 2 * len(values) < draws:
        return None
    low, high = numpy.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _groups(units: Grouped[Unit]) -> list[list[Unit]]:
    """What is resampled, in an order that does not depend on the order given; none is empty."""
    groups = units.values() if isinstance(units, Mapping) else [[unit] for unit in units]
    return sorted(filter(None, map(list, groups)), key=lambda group: sorted(map(repr, group)))


def _resampler(groups: list[list[Any]], statistic: Statistic) -> Callable[[Any], float | None]:
    """From the numbers of drawn groups to the statistic of all that is in them."""
    tally = _tally(statistic)
    if tally is None:
        return lambda drawn: statistic([unit for each in drawn for unit in groups[each]])
    numpy, size = _numpy(), len(groups)
    rows = numpy.array(tally.rows([unit for group in groups for unit in group]), dtype=float)
    starts = numpy.cumsum([0, *map(len, groups[:-1])])
    table = numpy.add.reduceat(rows, starts)  # a row of sums per group
    return lambda drawn: tally.value((numpy.bincount(drawn, minlength=size) @ table).tolist())


def _tally(statistic: Any) -> Tally | None:
    """The sums that a statistic of ours is made of; None for one of the caller's."""
    if isinstance(statistic, partial) and statistic.func is krippendorff_alpha:
        return ALPHAS.get(statistic.keywords.get("level", "nominal"))
    quick = {
        raw_agreement: RAW, cohen_kappa: KAPPA, krippendorff_alpha: ALPHAS["nominal"],
        FLIPS.of: FLIPS,
    }  # fmt: skip
    return quick.get(statistic)


def _widest(rate: float, transcripts: int, level: float) -> tuple[float, float]:
    """The exact interval if each transcript flipped either always or never: the least it shows."""
    low, _ = clopper_pearson(math.floor(rate * transcripts), transcripts, level)
    _, high = clopper_pearson(math.ceil(rate * transcripts), transcripts, level)
    return low, high


def _answers(unit: Sequence[Hashable]) -> list[Any]:
    if isinstance(unit, str) or not isinstance(unit, Iterable):
        raise FinetuneError(f"evidence: {unit!r} is no list of answers. Give one per thing asked.")
    return [answer for answer in unit if answer not in NO_ANSWER]


def _labels(units: Sequence[Sequence[Hashable]]) -> list[Any]:
    return list(dict.fromkeys(answer for unit in units for answer in _answers(unit)))


def _agreement_rows(pairs: Sequence[Pair]) -> list[list[float]]:
    """Per pair: is it one, do they agree."""
    if wrong := [pair for pair in pairs if isinstance(pair, str) or len(pair) != 2]:
        raise FinetuneError(f"evidence: {wrong[0]!r} is no pair. Give two judges' answers, (a, b).")
    return [[1, a == b] if len(_answers((a, b))) == 2 else [0, 0] for a, b in pairs]


def _kappa_rows(pairs: Sequence[Pair]) -> list[list[float]]:
    """Per pair: is it one, do they agree, which label on the left, which on the right."""
    labels = _labels(pairs)
    return [
        [is_pair, agree, *(is_pair and answer == label for answer in pair for label in labels)]
        for pair, (is_pair, agree) in zip(pairs, _agreement_rows(pairs), strict=True)
    ]


def _flip_rows(units: Sequence[Sequence[Hashable]]) -> list[list[float]]:
    """Per unit: was it answered twice or more, which share of its pairs of answers differ."""
    rows = _nominal_rows(units)
    return [[1, differ / size] if size else [0, 0] for size, differ, *_ in rows]


def _nominal_rows(units: Sequence[Sequence[Hashable]]) -> list[list[float]]:
    """Per unit with two answers or more: how many, how they differ, how often each label occurs."""
    labels = _labels(units)
    return [_nominal_row(_answers(unit), labels) for unit in units]


def _nominal_row(answers: list[Any], labels: list[Hashable]) -> list[float]:
    size, counts = len(answers), Counter(answers)
    if size < 2:
        return [0] * (2 + len(labels))
    alike = sum(count * count for count in counts.values())
    return [size, (size * size - alike) / (size - 1), *(counts[label] for label in labels)]


def _interval_rows(units: Sequence[Sequence[Hashable]]) -> list[list[float]]:
    """Per unit with two answers or more: how many, how they differ, their sum and sum of squares.

    Sums are taken from an answer in the middle, so that they stay small and exact.
    """
    labels = _labels(units)
    if wrong := [each for each in labels if not isinstance(each, Real) or not math.isfinite(each)]:
        raise FinetuneError(f'evidence: {wrong[0]!r} is no number. Use the level "nominal".')
    middle = sorted(map(float, labels))[len(labels) // 2] if labels else 0.0
    return [_interval_row([float(each) - middle for each in _answers(unit)]) for unit in units]


def _interval_row(answers: list[float]) -> list[float]:
    size = len(answers)
    if size < 2:
        return [0.0] * 4
    mean = fmean(answers)
    differ = 2 * size * math.fsum((each - mean) ** 2 for each in answers) / (size - 1)
    return [size, differ, math.fsum(answers), math.fsum(each * each for each in answers)]


def _share_value(sums: Sequence[float]) -> float | None:
    asked, found = sums
    return found / asked if asked else None


def _kappa_value(sums: Sequence[float]) -> float | None:
    pairs, agree, *sides = sums
    half = len(sides) // 2
    chance = sum(left * right for left, right in zip(sides[:half], sides[half:], strict=True))
    spread = pairs * pairs - chance
    return (pairs * agree - chance) / spread if spread else None


def _nominal_alpha(sums: Sequence[float]) -> float | None:
    size, differ, *counts = sums
    spread = size * size - sum(count * count for count in counts)
    return 1 - differ * (size - 1) / spread if spread else None


def _interval_alpha(sums: Sequence[float]) -> float | None:
    size, differ, total, squares = sums
    spread = 2 * (size * squares - total * total)
    only_one = spread <= 1e-12 * size * squares  # so much is rounding
    return None if only_one else 1 - differ * (size - 1) / spread


RAW, KAPPA = Tally(_agreement_rows, _share_value), Tally(_kappa_rows, _kappa_value)
FLIPS = Tally(_flip_rows, _share_value)
ALPHAS = {
    "nominal": Tally(_nominal_rows, _nominal_alpha),
    "interval": Tally(_interval_rows, _interval_alpha),
}


# ══ 3 A judge against people ══════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Share:
    """k of n with Wilson's interval; no rate where nothing was observed."""

    k: int
    n: int
    rate: float | None
    low: float
    high: float

    @property
    def counts(self) -> Counts:
        return self.k, self.n


@dataclass(frozen=True)
class Quality:
    """What a judge's answers are worth, measured on what people said of the same transcripts."""

    tpr: Share  # of what people pass, the judge passes
    tnr: Share  # of what people fail, the judge fails
    kappa: float | None
    false_passes: int
    false_fails: int
    left_out: int  # pairs without one of the two answers


@dataclass(frozen=True)
class Corrected:
    """The pass rate that people would give; without one, `refused` says why and what would help."""

    rate: float | None
    low: float | None
    high: float | None
    raw: float | None  # the judge's own
    refused: str


def judge_quality(pairs: Iterable[Pair], level: float = 0.95) -> Quality:
    """How a judge does against people; a pair is (person passes, judge passes), both yes or no."""
    given = list(pairs)
    found = [
        pair for pair, (is_pair, _) in zip(given, _agreement_rows(given), strict=True) if is_pair
    ]
    if wrong := [pair for pair in found if not all(each in (True, False) for each in pair)]:
        raise FinetuneError(f"evidence: {wrong[0]!r} is not two of True and False.")
    of = Counter((bool(person), bool(judge)) for person, judge in found)
    tpr = share(of[True, True], of[True, True] + of[True, False], level)
    tnr = share(of[False, False], of[False, False] + of[False, True], level)
    left_out = len(given) - len(found)
    return Quality(tpr, tnr, cohen_kappa(found), of[False, True], of[True, False], left_out)


def share(k: int, n: int, level: float = 0.95) -> Share:
    """k of n, with Wilson's interval."""
    low, high = wilson(k, n, level)
    return Share(k, n, k / n if n else None, low, high)


def rogan_gladen(
    passed: int,
    judged: int,
    tpr: Counts,
    tnr: Counts,
    seed: int = 0,
    draws: int = 20_000,
    level: float = 0.95,
) -> Corrected:
    """The pass rate behind a judge's, given its TPR and TNR as (k, n) of labelled transcripts.

    (rate + TNR - 1) / (TPR + TNR - 1), within 0 and 1; the interval draws all three from what was
    counted (Jeffreys). Refused where the judge may be little better than a coin.
    """
    for counts in ((passed, judged), tpr, tnr):
        _check_counts(*counts)
    raw = passed / judged if judged else None
    refused = _refusal(judged, tpr, tnr)
    if raw is None or refused:
        return Corrected(None, None, None, raw, refused)
    good, bad = tpr[0] / tpr[1], tnr[0] / tnr[1]
    rate = min(max((raw + bad - 1) / (good + bad - 1), 0.0), 1.0)
    low, high = _corrected_interval((passed, judged), tpr, tnr, seed, draws, _tail_of(level))
    return Corrected(rate, min(low, rate), max(high, rate), raw, "")


def labels_needed(
    passed: int,
    judged: int,
    tpr: Counts,
    tnr: Counts,
    width: float = 0.25,
    seed: int = 0,
    draws: int = 20_000,
    level: float = 0.95,
) -> int | None:
    """How many labels in all, half good, half bad, make the corrected interval narrower than this.

    The first of LABELS that does if the judge goes on as seen so far; None if none does: then judge
    more transcripts, or get a better judge. The default width is a start value.
    """
    if not tpr[1] or not tnr[1]:
        raise FinetuneError(f"evidence: how good the judge is isn't known. {_unknown(tpr, tnr)}")
    for labels in LABELS:
        scaled = (_scaled(tpr, labels // 2), _scaled(tnr, labels // 2))
        found = rogan_gladen(passed, judged, *scaled, seed, draws, level)
        if found.low is not None and found.high is not None and found.high - found.low < width:
            return labels
    return None


def _corrected_interval(
    judge: Counts, tpr: Counts, tnr: Counts, seed: int, draws: int, tail: float
) -> tuple[float, float]:
    """What is left of the draws between both tails; draws worse than a coin are none."""
    numpy = _numpy()
    chance = numpy.random.default_rng(seed)
    good, bad, rate = (chance.beta(k + 0.5, n - k + 0.5, draws) for k, n in (tpr, tnr, judge))
    better = good + bad > 1
    true = (rate + bad - 1)[better] / (good + bad - 1)[better]
    low, high = numpy.quantile(numpy.clip(true, 0, 1), [tail, 1 - tail])
    return float(low), float(high)


def _refusal(judged: int, tpr: Counts, tnr: Counts) -> str:
    """Why this can't be corrected, and the number that would fix it; "" if it can."""
    if not judged:
        return "Nothing was judged. Judge at least 1 transcript; about 100 say something."
    if not tpr[1] or not tnr[1]:
        return _unknown(tpr, tnr)
    good, bad = wilson(*tpr)[0], wilson(*tnr)[0]
    if good + bad > LEAST_KNOWN:
        return ""
    return (
        f"The labels allow a TPR of {good:.2f} and a TNR of {bad:.2f}, together {good + bad:.2f}; "
        f"a correction needs more than {LEAST_KNOWN:.2f}. {_remedy(tpr, tnr)}"
    )


def _unknown(tpr: Counts, tnr: Counts) -> str:
    missing = [word for word, counts in (("passes", tpr), ("fails", tnr)) if not counts[1]]
    return f"No label says that a person {' or '.join(missing)} a transcript. Get about 50 of each."


def _remedy(tpr: Counts, tnr: Counts) -> str:
    """How many more labels would do, if the judge goes on as it did."""
    for more in range(1, MOST_LABELS // 2 + 1):
        good, bad = (_scaled(counts, counts[1] + more) for counts in (tpr, tnr))
        if wilson(*good)[0] + wilson(*bad)[0] > LEAST_KNOWN:
            return f"About {2 * more} more labels would do, half good, half bad."
    reached = tpr[0] / tpr[1] + tnr[0] / tnr[1]
    return (
        f"Even {MOST_LABELS} more labels would not do: TPR and TNR, as seen, make {reached:.2f}. "
        "Improve the judge's prompt or take another judge."
    )


def _scaled(counts: Counts, n: int) -> Counts:
    """The same share of n."""
    return round(counts[0] / counts[1] * n), n


# ══ 4 Pass rates ══════════════════════════════════════════════════════════════════════════════════


WHOLE_SUM = 500  # up to so many a sum is exact and needs no package


def at_least(k: int, n: int, p: float) -> float:
    """The chance that a process which passes with chance p gives k or more of n; exact."""
    _check_counts(k, n)
    _check_chance(p)
    if n > WHOLE_SUM:
        return float(_scipy_special().betainc(k, n - k + 1, p)) if k else 1.0
    chances = (math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    return min(1.0, math.fsum(chances)) if k else 1.0


def posterior_above(k: int, n: int, p: float) -> float:
    """How probable it is after k of n that a process passes more than p; all rates alike before."""
    _check_counts(k, n)
    _check_chance(p)
    return 1 - at_least(k + 1, n + 1, p)


def passes_needed(n: int, p: float = 0.7, sure: float = 0.9, attempt: int = 1) -> int | None:
    """The fewest passes of n that make more than p this sure; None if not even n of n do.

    The m-th attempt may err only 1/m as often as the first, so that trying again is no way round.
    """
    _check_counts(0, n)
    _check_chance(sure)
    if attempt < 1:
        raise FinetuneError(f"evidence: attempt {attempt!r} is no number from 1 on.")
    needed = 1 - (1 - sure) / attempt
    return next((k for k in range(n + 1) if posterior_above(k, n, p) >= needed), None)


def e_value(k: int, n: int, p0: float) -> float:
    """Evidence in k of n against a pass rate of p0 or less; valid at every look.

    Stop with success as soon as it is 1/alpha or more: under such a rate, that ever happens with
    chance alpha at most. A change to the process begins a new one, at n = 0.
    """
    _check_counts(k, n)
    if not 0 < p0 < 1:
        raise FinetuneError(f"evidence: {p0!r} is not between 0 and 1, such as 0.5.")
    special = _scipy_special()
    above = float(special.betaincc(1 + k, 1 + n - k, p0))
    if above == 0:
        return 0.0
    mixed = float(special.betaln(1 + k, 1 + n - k)) + math.log(above) - math.log1p(-p0)
    log = mixed - k * math.log(p0) - (n - k) * math.log1p(-p0)
    return math.exp(log) if log < 700 else math.inf


def bands(low: float, high: float, edges: Sequence[float]) -> list[int]:
    """The numbers of all bands that an interval reaches into: 0 below the first edge, and so on.

    With edges 0.5 and 0.7: [1] lies between them; [1, 2] can't tell 50-70 % from more than 70 %.
    """
    if not low <= high or list(edges) != sorted(set(edges)):
        raise FinetuneError(f"evidence: {low!r} to {high!r} or the edges {edges!r} don't ascend.")
    first, last = bisect_right(edges, low), bisect_left(edges, high)
    return list(range(min(first, last), max(first, last) + 1))  # a point on an edge is in both


def _check_chance(p: float) -> None:
    if not 0 <= p <= 1:
        raise FinetuneError(f"evidence: a chance of {p!r} is not between 0 and 1.")
