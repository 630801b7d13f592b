"""Sums of what is logged: added up on the device without a sync, reduced over the processes in one collective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .metrics import GAPS, kendall_tau, margins_by_gap, mean_margin, rank_accuracy
from .scoring import ResponseScores


_FIELDS = (
    "instructions",  # rows with weight 1
    "rank_loss",
    "nll",
    "nll_tokens",
    "ranked_rows",  # rows with an untied pair, the only ones that accuracy, tau and margin are means over
    "accuracy",
    "tau",
    "margin",
    "scored_rows",  # rows with a ranked response
    "best",
    "worst",
    *(f"margin_gap{g}" for g in range(1, GAPS + 1)),
    *(f"pairs_gap{g}" for g in range(1, GAPS + 1)),
    "tokens",  # the last: see `take_tokens`
)


class BatchSums:
    """Running sums of one log interval or one eval set."""

    def __init__(self) -> None:
        self.count = 0  # micro-batches added
        self._sums: Tensor | None = None

    def add(
        self,
        rank_losses: Tensor,
        nll: Tensor,
        result: ResponseScores,
        scores: Tensor,
        batch: dict[str, Tensor],
        weights: Tensor,
    ) -> None:
        """Add a micro-batch.

        Args:
            rank_losses: `(B,)`. nll: `()`, the weighted sum. scores: `(B, N)` s_k. weights: `(B,)` 0 or 1.
        """
        ranks, mask = batch["ranks"], batch["rank_mask"] & (weights > 0).unsqueeze(1)
        with torch.no_grad():
            accuracy = rank_accuracy(scores, ranks, mask)
            ranked = ~accuracy.isnan()
            usable = mask.any(1)
            # slot 0 is read where a row has no usable response, and left out of the sum
            best = torch.where(mask, ranks, torch.iinfo(ranks.dtype).max).argmin(1, keepdim=True)
            worst = torch.where(mask, ranks, -1).argmax(1, keepdim=True)
            zero = torch.zeros_like(accuracy)
            gap_sums, gap_counts = margins_by_gap(scores, ranks, mask)
            tokens = (batch["attention_mask"].sum((1, 2)) * weights).sum()
            values = [
                weights.sum(),
                (rank_losses * weights).sum(),
                nll,
                (result.nll_tokens.sum(1) * weights).sum(),
                ranked.sum(),
                torch.where(ranked, accuracy, zero).sum(),
                torch.where(ranked, kendall_tau(scores, ranks, mask), zero).sum(),
                torch.where(ranked, mean_margin(scores, ranks, mask), zero).sum(),
                usable.sum(),
                torch.where(usable, scores.gather(1, best).squeeze(1), zero).sum(),
                torch.where(usable, scores.gather(1, worst).squeeze(1), zero).sum(),
                *gap_sums,
                *gap_counts,
                tokens,
            ]
            sums = torch.stack([value.to(dtype=torch.float32, device=scores.device) for value in values])
            self._sums = sums if self._sums is None else self._sums + sums
        self.count += 1

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The metrics over all processes: one gather. A metric of no rows (accuracy in SFT data) is left out.

        `rank/margin_gap<g>` is the mean over the pairs of rank gap g, of all rows; the last one is of its gap and all
        wider ones (`rank/margin_gap4plus`).
        """
        if self._sums is None:
            self._sums = torch.zeros(len(_FIELDS), device=accelerator.device)
        total = accelerator.gather(self._sums).reshape(-1, len(_FIELDS)).double().sum(0)
        value = dict(zip(_FIELDS, total.tolist(), strict=True))
        metrics: dict[str, float] = {}
        if value["ranked_rows"]:
            metrics["rank/accuracy"] = value["accuracy"] / value["ranked_rows"]
            metrics["rank/kendall_tau"] = value["tau"] / value["ranked_rows"]
            metrics["rank/margin"] = value["margin"] / value["ranked_rows"]
        for g in range(1, GAPS + 1):
            if pairs := value[f"pairs_gap{g}"]:
                metrics[f"rank/margin_gap{g}{'plus' if g == GAPS else ''}"] = value[f"margin_gap{g}"] / pairs
        if value["ranked_rows"] or value["rank_loss"]:  # a user's loss may have one for rows without a pair
            metrics["loss/rank"] = value["rank_loss"] / max(value["instructions"], 1)
        if value["nll_tokens"]:
            metrics["loss/mle"] = value["nll"] / value["nll_tokens"]
        if value["scored_rows"]:
            metrics["logps/best"] = value["best"] / value["scored_rows"]
            if value["ranked_rows"]:
                metrics["logps/worst"] = value["worst"] / value["scored_rows"]
        return metrics

    def take_tokens(self, accelerator: Any) -> int:
        """The tokens of all sequences over all processes (padding not counted) since the last call: one gather."""
        if self._sums is None:
            self._sums = torch.zeros(len(_FIELDS), device=accelerator.device)
        tokens = accelerator.gather(self._sums[-1:]).double().sum()
        self._sums[-1] = 0.0
        return int(tokens.item())
