"""Does a model order held-out responses as the judge does? Figures per row, with bootstrap intervals over rows.

Pure functions of lists: the model's scores come from [`tuna_trl.scoring.score_rows`], the ranks from a ranked dataset.
The row is what is resampled, because the pairs of one row are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import InputError


_ROWS_AT_ONCE = 1024  # bounds the (rows, N, N) pair tensors
_DRAWS_AT_ONCE = 2**22  # bounds the (draws, n) index array, 32 MiB

Scores = Sequence[Sequence[float | None]]
Ranks = Sequence[Sequence[int | None]]


@dataclass(frozen=True)
class Interval:
    """A mean over rows with its bootstrap interval; all three are None over no row.

    `rows` were counted, `left_out` had no value (for the rank metrics: no two responses that the judge tells apart).
    """

    mean: float | None
    low: float | None
    high: float | None
    rows: int = 0
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RankingReport:
    """How the model's order and the judge's agree: one value a row (NaN where left out), and the means over rows."""

    rank_accuracy: Interval
    kendall_tau: Interval
    row_accuracy: list[float]
    row_tau: list[float]

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return self.rank_accuracy.rows

    @property
    def left_out(self) -> int:
        """Rows without two scored responses that the judge ranks differently."""
        return self.rank_accuracy.left_out


def bootstrap_interval(
    values: Sequence[float | None], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of a mean (Efron 1979).

    `draws` times, as many values as there are are drawn with replacement and averaged; the interval is from the
    `(1 - level) / 2` to the `(1 + level) / 2` quantile of those averages. With one value it has no width: it says how
    far the rows at hand carry, and one row carries no further than itself.

    Args:
        values: one a row; None and NaN are left out and counted.
        level: the share of resamples inside the interval, between 0 and 1.
        draws: resamples.
        seed: of the resampling; the same values and seed give the same interval.

    Raises:
        InputError: `level` or `draws` is out of range, or a value is infinite.
    """
    if not 0 < level < 1:
        raise InputError(f"`level` is {level}; it must lie between 0 and 1, 0.95 for a 95 % interval.")
    if draws < 1:
        raise InputError(f"`draws` is {draws}; at least one resample is needed (2000 is usual).")
    array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    if np.isinf(array).any():
        raise InputError(f"`values` holds {array[np.isinf(array)][0]} at place {int(np.isinf(array).argmax())}.")
    kept = array[~np.isnan(array)]
    n = len(kept)
    if n == 0:
        return Interval(None, None, None, 0, len(array))
    rng = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_ONCE // n)
    means = [
        kept[rng.integers(n, size=(min(block, draws - start), n))].mean(axis=1) for start in range(0, draws, block)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(kept.mean()), float(low), float(high), n, len(array) - n)


def paired_interval(
    after: Sequence[float | None],
    before: Sequence[float | None],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The bootstrap interval of the mean of `after - before`, row by row: narrower than two separate intervals.

    Args:
        after, before: one value a row, the same rows in the same order; a row that lacks either is left out.

    Raises:
        InputError: the lists differ in length, and what [`bootstrap_interval`] raises.
    """
    if len(after) != len(before):
        raise InputError(f"`after` has {len(after)} rows and `before` {len(before)}; they must be the same rows.")
    differences = [None if a is None or b is None else a - b for a, b in zip(after, before, strict=True)]
    return bootstrap_interval(differences, level=level, draws=draws, seed=seed)


def compare_orders(model_scores: Scores, judge_ranks: Ranks) -> RankingReport:
    """Rank accuracy and Kendall's tau-b of a model's scores against a judge's ranks.

    Args:
        model_scores: for each row one score per response, higher = better (nats a token, say); None or NaN where the
            response was not scored. N may differ from row to row.
        judge_ranks: likewise the ranks, 1 = best; None where the response is not ranked. Responses that lack either
            make no pair.

    Raises:
        InputError: the lists do not match, or a score is infinite.
    """
    accuracy, tau = _row_metrics(model_scores, judge_ranks, "model_scores")
    return RankingReport(bootstrap_interval(accuracy), bootstrap_interval(tau), accuracy, tau)


def length_baselines(token_counts: Scores, judge_ranks: Ranks) -> dict[str, Interval]:
    """The rank accuracy of "the longer response is better" and of its opposite: what a model has to beat.

    Args:
        token_counts: for each row the lengths of its responses, in tokens. Equal lengths count one half.
        judge_ranks: as in [`compare_orders`].
    """
    shorter = [[None if count is None else -count for count in row] for row in token_counts]
    return {
        "longer_wins": bootstrap_interval(_row_metrics(token_counts, judge_ranks, "token_counts")[0]),
        "shorter_wins": bootstrap_interval(_row_metrics(shorter, judge_ranks, "token_counts")[0]),
    }


def _row_metrics(scores: Scores, ranks: Ranks, argument: str) -> tuple[list[float], list[float]]:
    """Rank accuracy and tau of each row; NaN where it has no pair."""
    import torch

    from ..metrics import kendall_tau, rank_accuracy

    if len(scores) != len(ranks):
        raise InputError(f"`{argument}` has {len(scores)} rows and `judge_ranks` {len(ranks)}; they must match.")
    for i, (row_scores, row_ranks) in enumerate(zip(scores, ranks, strict=True)):
        if len(row_scores) != len(row_ranks):
            raise InputError(
                f"row {i}: `{argument}` has {len(row_scores)} responses and `judge_ranks` {len(row_ranks)}; "
                "give None for a response that has no score or no rank."
            )
        if any(score is not None and math.isinf(score) for score in row_scores):
            raise InputError(f"row {i}: `{argument}` holds an infinite score; give None if there is no score.")
    accuracy, tau = [], []
    for start in range(0, len(scores), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        batch = [torch.from_numpy(array) for array in _padded(scores[block], ranks[block])]
        accuracy += rank_accuracy(*batch).tolist()
        tau += kendall_tau(*batch).tolist()
    return accuracy, tau


def _padded(scores: Scores, ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(B, N)` scores, ranks and mask of ragged rows; a response that lacks score or rank is masked."""
    shape = len(scores), max(1, max(map(len, scores)))
    array: np.ndarray = np.zeros(shape)
    places: np.ndarray = np.zeros(shape, dtype=np.int64)
    mask: np.ndarray = np.zeros(shape, dtype=bool)
    for i, row in enumerate(zip(scores, ranks, strict=True)):
        for k, (score, rank) in enumerate(zip(*row, strict=True)):
            if score is not None and not math.isnan(score) and rank is not None:
                array[i, k], places[i, k], mask[i, k] = score, rank, True
    return array, places, mask
