"""A figure with its 95 % interval over rows, and the tail of the chi-square law. Pure functions of numbers.

Rows are what is drawn at random, so rows are what an interval is over: the repeats of one row are no further evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


_RESAMPLES = 2000
_MANY = 5000  # values; from here on the bootstrap's interval and the normal one are the same to three digits
_Z = 1.959963984540054  # the normal law's 97.5 % point


@dataclass(frozen=True)
class Estimate:
    """A mean over `rows` rows with its 95 % interval; `value` is None over no row, the ends over fewer than two."""

    value: float | None
    low: float | None
    high: float | None
    rows: int

    def covers(self, x: float) -> bool:
        """Whether `x` lies in the interval; False where there is none."""
        return self.low is not None and self.high is not None and self.low <= x <= self.high

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def shown(self, digits: int = 3, *, scale: float = 1.0, unit: str = "", sign: bool = False) -> str:
        """The estimate as people read it.

        >>> Estimate(0.25, 0.2, 0.3, 1200).shown(1, scale=100, unit=" %")
        '25.0 % [20.0, 30.0] over 1,200 rows'
        >>> Estimate(None, None, None, 0).shown()
        'unknown (no rows)'
        """
        if self.value is None:
            return "unknown (no rows)"
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        text = form.format(self.value * scale) + unit
        if self.low is not None and self.high is not None:
            text += f" [{form.format(self.low * scale)}, {form.format(self.high * scale)}]"
        return f"{text} over {self.rows:,} row{'' if self.rows == 1 else 's'}"


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value a row, with the bootstrap's percentile interval (from 5,000 rows on the normal one).

    Args:
        values: one a row; rows without a value are left out by the caller.
        seed: of the bootstrap, so that equal rows give equal figures.
    """
    import numpy as np

    n = len(values)
    if n == 0:
        return Estimate(None, None, None, 0)
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    if n >= _MANY:
        half = _Z * float(array.std(ddof=1)) / math.sqrt(n)
        return Estimate(mean, mean - half, mean + half, n)
    draw = np.random.default_rng(seed)
    # in slices of a few million draws, so that memory stays small
    size = max(1, 2_000_000 // n)
    means = [
        array[draw.integers(0, n, (min(size, _RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, _RESAMPLES, size)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), n)


def ratio_estimate(totals: Sequence[float], counts: Sequence[float]) -> Estimate:
    """`sum(totals) / sum(counts)` with one pair a row, and the interval of the linearised ratio.

    Rows differ in how much they hold (questions, pairs), and what a row holds is no independent evidence:
    `se = sqrt(R / (R - 1) sum_r (t_r - ratio c_r)^2) / sum_r c_r` (Cochran 1977, 6.4).

    Args:
        totals: by row, the sum of what is averaged.
        counts: by row, how many things that sum is over; rows with none are left out.
    """
    kept = [(t, c) for t, c in zip(totals, counts, strict=True) if c > 0]
    n = len(kept)
    if n == 0:
        return Estimate(None, None, None, 0)
    size = math.fsum(c for _, c in kept)
    ratio = math.fsum(t for t, _ in kept) / size
    if n == 1:
        return Estimate(ratio, None, None, 1)
    spread = math.fsum((t - ratio * c) ** 2 for t, c in kept) * n / (n - 1)
    half = _Z * math.sqrt(spread) / size
    return Estimate(ratio, ratio - half, ratio + half, n)


def chi_square_tail(x: float, degrees: int) -> float:
    """P(chi-square with so many degrees of freedom > x), in closed form (Abramowitz and Stegun 26.4.4 and 26.4.5).

    >>> round(chi_square_tail(3.841458820694124, 1), 12)
    0.05
    """
    half = x / 2
    if half <= 0:
        return 1.0
    # log of each term, because exp(-x/2) underflows long before the sum of the terms does
    if degrees % 2 == 0:
        terms = [k * math.log(half) - math.lgamma(k + 1) for k in range(degrees // 2)]
        head = 0.0
    else:
        terms = [(k - 0.5) * math.log(half) - math.lgamma(k + 0.5) for k in range(1, (degrees + 1) // 2)]
        head = math.erfc(math.sqrt(half))
    return min(1.0, head + math.fsum(math.exp(term - half) for term in terms))
