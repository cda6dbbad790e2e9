"""95 % intervals: Wilson for proportions, Student's t for means.

Legend: n independent trials (episodes, windows, layouts or seeds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import t as student

Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval (low, high) of a proportion; unlike p +- 2 sd it stays in [0, 1] and holds near 0 and 1.

    centre = (p + z^2/2n) / (1 + z^2/n), half width = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n).

    Raises:
        ValueError: if there are no trials, or the successes are not between 0 and n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials: give n >= 1 and successes between 0 and n")
    p, z2 = successes / n, Z * Z
    scale = 1 + z2 / n
    centre = (p + z2 / (2 * n)) / scale
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / scale
    # At the ends the bound is exactly 0 or 1, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low, high of independent values, by Student's t with n - 1 degrees of freedom.

    Right for the few seeds of a table as for the many windows of one seed. One value alone has no spread: the interval
    is that value.

    Raises:
        ValueError: if there are no values, or one is not finite.
    """
    n = len(values)
    if n == 0 or not all(math.isfinite(v) for v in values):
        raise ValueError(f"{n} values {list(values)[:5]}: a mean needs at least one value, all of them finite")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean, mean
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return mean, mean - half, mean + half
