"""What the judge replies of a dataset say about the judges: what they cost, how far they agree, which places they
prefer. One pass over the `judgments` config, read only.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .summary import Mean, mean, rows_of, short_hash


if TYPE_CHECKING:
    from datasets import Dataset

# Rows whose replies are held to be compared. A build writes the replies of a row one after the other; this many may
# lie between two of them.
_OPEN_ROWS = 50_000


@dataclass(frozen=True)
class Place:
    """How the responses shown at one place fared: `excess` is the share of replies that score it best of all (a tie
    of k counts 1/k) minus 1/N, which is what no preference would give; with the standard error of that."""

    score: Mean
    excess: Mean
    error: float | None


@dataclass(frozen=True)
class JudgeFigures:
    """One judge, or all of them together."""

    replies: int
    read: int  # replies that gave every candidate a score
    cost: float | None  # USD over the replies whose price is known; None when no price is
    tokens: dict[str, int]  # by kind, as the usage names them
    places: list[Place]  # by shown place, over the replies that were read
    first_wins: Mean
    first_expected: float | None


@dataclass(frozen=True)
class JudgmentSummary:
    """Figures of the `judgments` config: one row per judge reply."""

    replies: int
    judges: dict[str, int]
    status: dict[str, int]
    cost: float | None  # USD over the replies whose price is known; None when no price is
    tokens: dict[str, int]
    place_scores: list[Mean]  # mean score by shown place, over the replies that were read
    first_wins: Mean  # share of replies that score the first shown best of all; a tie of k counts 1/k
    first_expected: float | None  # what that share would be without a preference: the mean of 1 / candidates
    all: JudgeFigures
    by_judge: dict[str, JudgeFigures] = field(default_factory=dict)
    # (a, b), a <= b -> mean Kendall's tau-b of two replies to the same row; (a, a) are repeats of one judge
    agreement: dict[tuple[str, str], Mean] = field(default_factory=dict)


def summarise_judgments(datasets: Dataset | Iterable[Any]) -> JudgmentSummary:
    """The figures of the judge replies of one dataset, or of its splits taken together."""
    status: Counter[str] = Counter()
    judges: defaultdict[str, _Judge] = defaultdict(_Judge)
    total, agreement = _Judge(), _Agreement()
    for row in rows_of(datasets):
        status[row["status"]] += 1
        scores = row["scores"] or []
        if row["status"] != "ok" or len(scores) < 2 or any(score is None for score in scores):
            scores = None
        total.add(row, scores)
        judges[row["judge"] or "unknown"].add(row, scores)
        if scores:
            agreement.add(row, scores)
    figures = total.figures()
    ordered = sorted(judges.items(), key=lambda item: -item[1].replies)
    return JudgmentSummary(
        replies=total.replies,
        judges={name: judge.replies for name, judge in ordered},
        status=dict(status.most_common()),
        cost=figures.cost,
        tokens=figures.tokens,
        place_scores=[place.score for place in figures.places],
        first_wins=figures.first_wins,
        first_expected=figures.first_expected,
        all=figures,
        by_judge={name: judge.figures() for name, judge in ordered},
        agreement=agreement.means(),
    )


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b of two lists of scores; None where one of them ties everything.

    >>> kendall([3, 2, 1], [30, 10, 20])
    0.3333333333333333
    """
    product = of_a = of_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = (a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])
            product += x * y
            of_a += x * x
            of_b += y * y
    return product / math.sqrt(of_a * of_b) if of_a and of_b else None


class _Judge:
    """Sums over the replies of one judge."""

    def __init__(self) -> None:
        self.replies = self.read = 0
        self.costs = array("d")
        self.tokens: Counter[str] = Counter()
        self.scores: list[array[float]] = []  # by shown place
        self.excess: list[array[float]] = []
        self.first, self.expected = array("d"), array("d")

    def add(self, row: Mapping[str, Any], scores: Sequence[float] | None) -> None:
        self.replies += 1
        if row["cost"] is not None:
            self.costs.append(row["cost"])
        usage = row["usage"] if isinstance(row["usage"], Mapping) else {}
        self.tokens.update({k: v for k, v in usage.items() if isinstance(v, int) and not isinstance(v, bool) and v})
        if not scores:
            return
        self.read += 1
        best = max(scores)
        share = 1 / scores.count(best)
        for place, score in enumerate(scores):
            if place == len(self.scores):
                self.scores.append(array("d"))
                self.excess.append(array("d"))
            self.scores[place].append(score)
            self.excess[place].append((share if score == best else 0.0) - 1 / len(scores))
        self.first.append(share if scores[0] == best else 0.0)
        self.expected.append(1 / len(scores))

    def figures(self) -> JudgeFigures:
        return JudgeFigures(
            replies=self.replies,
            read=self.read,
            cost=math.fsum(self.costs) if self.costs else None,
            tokens=dict(self.tokens.most_common()),
            places=[Place(mean(s), mean(e), _error(e)) for s, e in zip(self.scores, self.excess, strict=True)],
            first_wins=mean(self.first),
            first_expected=mean(self.expected).value,
        )


class _Agreement:
    """Pairs of replies to the same row."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, Any], list[tuple[str, list[float]]]] = OrderedDict()
        self._taus: dict[tuple[str, str], array[float]] = defaultdict(lambda: array("d"))

    def add(self, row: Mapping[str, Any], scores: Sequence[float]) -> None:
        order = row["permutation"] or []
        if sorted(order) != list(range(len(scores))):
            return
        by_response = [0.0] * len(scores)
        for place, response in enumerate(order):
            by_response[response] = scores[place]
        judge = row["judge"] or "unknown"
        known = self._open.setdefault((short_hash(row["prompt_id"]), row["occurrence"]), [])
        for another, other in known:
            if len(other) == len(by_response) and (tau := kendall(other, by_response)) is not None:
                self._taus[min(judge, another), max(judge, another)].append(tau)
        known.append((judge, by_response))
        if len(self._open) > _OPEN_ROWS:
            self._open.popitem(last=False)

    def means(self) -> dict[tuple[str, str], Mean]:
        return {pair: mean(taus) for pair, taus in sorted(self._taus.items())}


def _error(values: Sequence[float]) -> float | None:
    """The standard error of a mean; None of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    centre = math.fsum(values) / n
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1) / n)
