"""How much the place where a response is shown is worth to a judge, and how much of that is left in the ranks.

Two figures, because they answer two questions. In single judgments a judge that likes the first place goes on liking
it however often it is asked. In the ranks, means over repeats that move everybody on by one place, nothing of it is
left once each response stood at each place. Pure; one row at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .estimates import Estimate, chi_square_tail, ratio_estimate


@dataclass(frozen=True)
class Place:
    """What happens at one shown place (0 = first), over the questions that have it and whose verdict could be read."""

    place: int
    shown: int  # questions
    mean_score: float
    effect: float  # mean of the score at this place minus the mean score of its question, in units of the score
    first_share: float  # share of questions whose best score stands here; a tie of k counts 1 / k
    expected: float  # what that share is without a preference: the mean of 1 / candidates


@dataclass(frozen=True)
class PositionBias:
    """Position bias of the judgments, and what is left of it in the ranks.

    `first` and `effect`: see [`Place`], of the first place: share of firsts above the expected one, and points of
    score. `p_value`: of a score test that all places win alike, rows as the unit (None with no question of two or
    more). `left`: how far the response that a row's first question shows first comes out best of its row more often
    than 1 / N (a tie of k counts 1 / k); None over no row where no question shows all responses at once. `balanced`:
    share of the rows whose responses stood equally often at each place.
    """

    places: tuple[Place, ...]
    first: Estimate
    effect: Estimate
    p_value: float | None
    left: Estimate
    balanced: Estimate

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"places": [asdict(place) for place in self.places]}


@dataclass(frozen=True)
class Shown:
    """One question whose verdict could be read: the responses in shown order, and their scores."""

    repeat: int
    permutation: tuple[int, ...]
    scores: tuple[float, ...]


def first_credit(scores: Sequence[float]) -> list[float]:
    """One, shared out among the best.

    >>> first_credit([1.0, 3.0, 3.0])
    [0.0, 0.5, 0.5]
    """
    best = max(scores)
    ties = sum(score == best for score in scores)
    return [(score == best) / ties for score in scores]


class PositionCounts:
    """Adds up rows; `result()` is what they say."""

    def __init__(self) -> None:
        self._places: dict[int, list[float]] = defaultdict(lambda: [0.0] * 5)  # shown, score, effect, first, expected
        self._first: list[float] = []
        self._effect: list[float] = []
        self._questions: list[int] = []
        self._left: list[float] = []
        self._balanced: list[float] = []
        # (places, rows, sum of d, sum of d d^T) by number of places: the score test's ingredients
        self._tests: dict[int, tuple[list[float], list[list[float]], list[int]]] = {}

    def add(self, questions: Sequence[Shown]) -> None:
        """The questions of one row."""
        first = effect = 0.0
        count = 0
        deviations: dict[int, list[float]] = {}
        for question in questions:
            n = len(question.scores)
            if n < 2:
                continue
            count += 1
            mean = math.fsum(question.scores) / n
            credit = first_credit(question.scores)
            first += credit[0] - 1 / n
            effect += question.scores[0] - mean
            deviation = deviations.setdefault(n, [0.0] * n)
            for place, (score, share) in enumerate(zip(question.scores, credit, strict=True)):
                sums = self._places[place]
                for k, value in enumerate((1, score, score - mean, share, 1 / n)):
                    sums[k] += value
                deviation[place] += share - 1 / n
        if not count:
            return
        self._first.append(first)
        self._effect.append(effect)
        self._questions.append(count)
        self._balanced.append(float(_is_balanced(questions)))
        for n, deviation in deviations.items():
            sums, squares, rows = self._tests.setdefault(n, ([0.0] * n, [[0.0] * n for _ in range(n)], [0]))
            rows[0] += 1
            for i, d in enumerate(deviation):
                sums[i] += d
                for j, e in enumerate(deviation):
                    squares[i][j] += d * e

    def add_ranks(self, questions: Sequence[Shown], ranks: Mapping[int, int]) -> None:
        """What came of a row: rank by response index, the judged and ranked ones, no duplicates."""
        first = next((question for question in questions if set(question.permutation) == set(ranks)), None)
        if first is None or len(ranks) < 2:
            return
        credit = first_credit([-ranks[i] for i in first.permutation])
        self._left.append(credit[0] - 1 / len(ranks))

    def result(self) -> PositionBias:
        places = [
            Place(place, int(shown), score / shown, effect / shown, first / shown, expected / shown)
            for place, (shown, score, effect, first, expected) in sorted(self._places.items())
        ]
        ones = [1] * len(self._left)
        return PositionBias(
            tuple(places),
            ratio_estimate(self._first, self._questions),
            ratio_estimate(self._effect, self._questions),
            self._p_value(),
            ratio_estimate(self._left, ones),
            ratio_estimate(self._balanced, [1] * len(self._balanced)),
        )

    def _p_value(self) -> float | None:
        """Score test `R m^T S^+ m` over R rows: `m` is the mean over rows of (share of firsts - 1 / n) by place, `S`
        the second moment of that about zero. Chi-square with n - 1 degrees of freedom; rows of other lengths add."""
        import numpy as np

        if not self._tests:
            return None
        statistic, degrees = 0.0, 0
        for n, (sums, squares, (rows,)) in self._tests.items():
            mean = np.array(sums) / rows
            statistic += rows * float(mean @ np.linalg.pinv(np.array(squares) / rows, hermitian=True) @ mean)
            degrees += n - 1
        return chi_square_tail(statistic, degrees)


def _is_balanced(questions: Sequence[Shown]) -> bool:
    """Whether each response stood as often at each place as each other one."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for question in questions:
        for place, i in enumerate(question.permutation):
            counts[i, place] += 1
    responses = {i for i, _ in counts}
    places = {place for _, place in counts}
    return len({counts[i, place] for i in responses for place in places}) == 1
