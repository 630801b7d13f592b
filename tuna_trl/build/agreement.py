"""How far repeated judgments of one row agree: Kendall's W and the mean pairwise tau-b. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def average_ranks(scores: Sequence[float]) -> list[float]:
    """Ranks of `scores`, 1 = highest; equal scores share the mean of the places they take.

    >>> average_ranks([0.5, 2.0, 2.0])
    [3.0, 1.5, 1.5]
    """
    return [sum(other > score for other in scores) + (list(scores).count(score) + 1) / 2 for score in scores]


def kendalls_w(scores: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance W of m rankings of n things, corrected for ties (Kendall 1948, chapter 6).

    `W = (12 sum_i R_i^2 - 3 m^2 n (n + 1)^2) / (m^2 n (n^2 - 1) - m sum_j T_j)`

    Where `R_i` is the sum of the ranks of thing i over the rankings, and `T_j = sum (t^3 - t)` over the groups of t
    things that ranking j ties.

    Args:
        scores: (m, n), one list a ranking, higher = better.

    Returns:
        0 (no agreement) to 1 (the same ranking every time); None where it is not defined: fewer than two rankings or
        things, or rankings that tie everything.

    >>> kendalls_w([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0]])
    1.0
    """
    m = len(scores)
    n = len(scores[0]) if scores else 0
    if m < 2 or n < 2:
        return None
    sums = [sum(ranks) for ranks in zip(*(average_ranks(row) for row in scores), strict=True)]
    ties = sum(row.count(value) ** 3 - row.count(value) for row in map(list, scores) for value in set(row))
    denominator = m * m * n * (n * n - 1) - m * ties
    if denominator == 0:
        return None
    return (12 * sum(r * r for r in sums) - 3 * m * m * n * (n + 1) ** 2) / denominator


def tau_b(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b of two lists of scores: `(C - D) / sqrt((n0 - ties_a) (n0 - ties_b))`; None if one is constant.

    >>> tau_b([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    0.3333333333333333
    """
    pairs = list(combinations(range(len(a)), 2))
    sign_a = [(a[i] > a[j]) - (a[i] < a[j]) for i, j in pairs]
    sign_b = [(b[i] > b[j]) - (b[i] < b[j]) for i, j in pairs]
    untied_a, untied_b = sum(map(abs, sign_a)), sum(map(abs, sign_b))
    if not untied_a or not untied_b:
        return None
    return sum(x * y for x, y in zip(sign_a, sign_b, strict=True)) / math.sqrt(untied_a * untied_b)


def mean_tau_b(scores: Sequence[Sequence[float]]) -> float | None:
    """Mean of [`tau_b`] over the pairs of rankings for which it is defined; None if there is no such pair.

    Args:
        scores: (m, n), one list a ranking.
    """
    values = [tau for a, b in combinations(scores, 2) if (tau := tau_b(a, b)) is not None]
    return sum(values) / len(values) if values else None
