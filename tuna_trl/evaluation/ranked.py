"""Ranking accuracy of models on a ranked dataset, next to what "the longer response is better" gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..build.journal import Journal
from ..data.schema import digest
from ..errors import InputError
from .candidates import Candidate
from .ranking import Interval, bootstrap_interval, compare_orders, length_baselines
from .results import Scores


class RankedData:
    """The benchmark as [`tuna_trl.evaluation.runner.run`] takes it: each response's length-normalised log-likelihood
    under the model, against the dataset's ranks. Needs the models in this process: their chat template is used.

    Args:
        rows: ranked rows (`prompt`, `responses` with `rank`); rows without two ranks that differ are left out.
        length_exponent: score = summed log-prob (nats) / tokens ** this.
        max_length: tokens of a prompt with one response; longer responses are not scored.
        batch_size: rows in one forward pass.
    """

    name = "Ranking accuracy"

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        length_exponent: float = 1.0,
        max_length: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.rows = list(rows)
        if not self.rows:
            raise InputError("The ranked dataset has no rows.")
        self.length_exponent, self.max_length, self.batch_size = length_exponent, max_length, batch_size
        self.ranks = [[response["rank"] for response in row["responses"]] for row in self.rows]
        self._lengths: list[list[int | None]] | None = None

    def settings(self) -> dict[str, Any]:
        return {
            "rows": len(self.rows),
            "length_exponent": self.length_exponent,
            "max_length": self.max_length,
            "template": "chat",
            "data": digest([[row["prompt"], row["responses"]] for row in self.rows])[:16],
        }

    def notes(self) -> list[str]:
        return ["pair_accuracy: pairs that are ranked differently; equal scores count one half. Intervals over rows."]

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """By the first model's token counts."""
        if self._lengths is None:
            return {}
        found = {name: {"pair_accuracy": value.mean} for name, value in self._length_intervals().items()}
        longest = top_one(self._lengths, self.ranks)
        found["longer_wins"]["top_1"] = bootstrap_interval(longest, draws=1).mean
        return found

    def run(self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool) -> Scores:
        """Scores are not journalled: a pass over the data is short next to the generation of answers."""
        from ..scoring import score_rows

        if not candidate.local:
            raise InputError(
                f"{candidate.name}: ranking accuracy needs the log-probs of given responses, so the model must be in "
                "this process. Leave --base-url out."
            )
        scored = score_rows(
            candidate.model,
            candidate.tokenizer,
            self.rows,
            batch_size=self.batch_size,
            max_length=self.max_length,
            show_progress=show_progress,
        )
        lengths = [[one["num_tokens"] for one in row] for row in scored]
        self._lengths = self._lengths or lengths
        scores = [
            [
                None if one["num_tokens"] is None else one["logprob"] / one["num_tokens"] ** self.length_exponent
                for one in row
            ]
            for row in scored
        ]
        return self.score(scores)

    def score(self, scores: Sequence[Sequence[float | None]]) -> Scores:
        """Figures of one score a response, higher is better; None where there is none."""
        report = compare_orders(scores, self.ranks)
        top = top_one(scores, self.ranks)
        figures = {
            "pair_accuracy": report.rank_accuracy,
            "top_1": bootstrap_interval(top),
            "kendall_tau_b": report.kendall_tau,
        }
        values: dict[str, list[float | None]] = {
            "pair_accuracy": [_none(value) for value in report.row_accuracy],
            "top_1": top,
            "kendall_tau_b": [_none(value) for value in report.row_tau],
        }
        details: dict[str, Any] = {}
        if self._lengths is not None:
            details["length_baselines"] = {k: v.to_json() for k, v in self._length_intervals().items()}
        records = [
            {"row": place, "scores": list(row), "ranks": ranks, "pair_accuracy": accuracy}
            for place, (row, ranks, accuracy) in enumerate(
                zip(scores, self.ranks, values["pair_accuracy"], strict=True)
            )
        ]
        return Scores(figures, values, (), details, records)

    def _length_intervals(self) -> dict[str, Interval]:
        return length_baselines(self._lengths or [], self.ranks)


def top_one(scores: Sequence[Sequence[float | None]], ranks: Sequence[Sequence[int | None]]) -> list[float | None]:
    """For each row whether the response with the highest score has the best rank there is among the scored ones.

    Of several highest scores each counts its share. None for rows without two scored responses of different ranks.

    >>> top_one([[0.5, 0.1], [0.2, 0.2], [1.0]], [[2, 1], [1, 2], [1]])
    [0.0, 0.5, None]
    """
    found: list[float | None] = []
    for row, own in zip(scores, ranks, strict=True):
        kept = [
            (score, rank)
            for score, rank in zip(row, own, strict=True)
            if score is not None and rank is not None and not math.isnan(score)
        ]
        if len({rank for _, rank in kept}) < 2:
            found.append(None)
            continue
        best, highest = min(rank for _, rank in kept), max(score for score, _ in kept)
        top = [rank for score, rank in kept if score == highest]
        found.append(top.count(best) / len(top))
    return found


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value
