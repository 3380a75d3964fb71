"""Statistics that say how sure a figure is. Works alone when copied; needs scipy.

    from evidence import clopper_pearson, wilson

    low, high = clopper_pearson(13, 15)  # exact: never covers less than it says
    low, high = wilson(13, 15)  # for a rate in a report: narrower, right on average

Importing it opens nothing and loads no scipy; a package is imported by the call that needs it.
"""

import math
from statistics import NormalDist
from typing import Any

from infrastructure import FinetuneError

# ══ 1 Intervals of one share ══════════════════════════════════════════════════════════════════════


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


def _tail(k: int, n: int, level: float) -> float:
    """What one tail may hold; refuses counts and levels that can't be."""
    whole = all(hasattr(each, "__index__") and not isinstance(each, bool) for each in (k, n))
    if not whole or not 0 <= k <= n:
        raise FinetuneError(
            f"evidence: {k!r} of {n!r} is no share. Give whole numbers, 0 <= k <= n."
        )
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
