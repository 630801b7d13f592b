"""Rank metrics of one batch: accuracy, Kendall's tau-b, margins. Pure functions of `(B, N)` tensors, one value a row;
the margins by rank gap are sums over the batch.

A row with no untied pair has no metric: it comes out as NaN, and the caller leaves it out and counts it. The trainer
packs sums and counts into one vector, so that a step costs one collective.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .losses.pairs import better_pairs, competition_ranks


GAPS = 4  # rank gaps told apart: 1, 2, 3, and 4 or more (the paper's four responses have gaps 1 to 3)


def pair_signs(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signs of every pair i < j, by score and by rank, and which pairs exist.

    Args:
        scores: `(B, N)`, higher = better.
        ranks: `(B, N)` integers, 1 = best.
        mask: `(B, N)` bool, which responses count.

    Returns:
        by_score, by_rank: `(B, N, N)` in {-1, 0, 1}, 1 = the first of the pair is better; valid: `(B, N, N)` bool.
        `by_score` is float32 at least: counts of pairs above 256 are not exact in bfloat16.
    """
    # an empty slot may hold anything (0 nats over 0 tokens is NaN), and the sign of NaN is nowhere documented
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, 0.0)
    by_score = torch.sign(scores.unsqueeze(2) - scores.unsqueeze(1))
    by_rank = torch.sign(ranks.unsqueeze(1) - ranks.unsqueeze(2))
    upper = torch.triu(torch.ones(scores.shape[1], scores.shape[1], dtype=torch.bool, device=scores.device), 1)
    valid = mask.unsqueeze(2) & mask.unsqueeze(1) & upper
    return by_score, by_rank, valid


def rank_accuracy(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Share of a row's untied pairs that the scores order as the ranks do; equal scores count one half.

    Args:
        scores, ranks, mask: as in [`pair_signs`].

    Returns:
        `(B,)` in [0, 1]; NaN where a row has no untied pair.
    """
    by_score, by_rank, valid = pair_signs(scores, ranks, mask)
    untied = valid & (by_rank != 0)
    right = (by_score == by_rank).to(by_score.dtype) + 0.5 * (by_score == 0).to(by_score.dtype)
    count = untied.sum((1, 2))
    return (right * untied).sum((1, 2)) / torch.where(count > 0, count, torch.nan)


def kendall_tau(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Kendall's tau-b between scores and ranks (Kendall 1945): `(C - D) / sqrt((n0 - ties_s) (n0 - ties_r))`.

    `C` and `D` count concordant and discordant pairs, `n0` all pairs, `ties_*` the pairs tied in one of the two.

    Args:
        scores, ranks, mask: as in [`pair_signs`].

    Returns:
        `(B,)` in [-1, 1]; 0 where all scores are equal but the ranks are not; NaN where a row has no untied pair.
    """
    by_score, by_rank, valid = pair_signs(scores, ranks, mask)
    concordance = (by_score * by_rank * valid).sum((1, 2))
    untied_rank = (valid & (by_rank != 0)).sum((1, 2)).to(by_score.dtype)
    untied_score = (valid & (by_score != 0)).sum((1, 2)).to(by_score.dtype)
    tau = concordance / torch.sqrt(untied_rank * untied_score).clamp(min=1.0)
    return torch.where(untied_rank > 0, tau, torch.nan)


def mean_margin(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Mean over a row's untied pairs of s(better) - s(worse), in the units of the scores (nats a token).

    Returns:
        `(B,)`; NaN where a row has no untied pair.
    """
    _, by_rank, valid = pair_signs(scores, ranks, mask)
    untied = valid & (by_rank != 0)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    difference = (scores.unsqueeze(2) - scores.unsqueeze(1)) * by_rank
    count = untied.sum((1, 2))
    return torch.where(untied, difference, 0.0).sum((1, 2)) / torch.where(count > 0, count, torch.nan)


def margins_by_gap(scores: Tensor, ranks: Tensor, mask: Tensor, gaps: int = GAPS) -> tuple[Tensor, Tensor]:
    """The margins of a batch by rank gap: of all pairs with `r_j - r_i = g`, the sum of `s_i - s_j` and how many.

    The ranks are those that the losses use: competition ranks among the responses that count, so that a response that
    dropped out widens no gap. A model that has learnt a ranking has margins that grow with the gap; Tuna's hinge asks
    for `margin * g`.

    Args:
        scores, ranks, mask: as in [`pair_signs`].
        gaps: how many gaps are told apart; the last one takes every wider gap too.

    Returns:
        sums, counts: `(gaps,)` over all rows, element g - 1 = gap g; the sums in the units of the scores (nats a
        token), float32 at least, the counts in the same dtype. A gap without a pair has sum 0 and count 0.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    compact = competition_ranks(ranks, mask)
    gap = (compact.unsqueeze(1) - compact.unsqueeze(2)).clamp(max=gaps)  # [b, i, j] = r_j - r_i
    # no boolean index: how many pairs there are would have to come back from the device
    wanted = torch.arange(1, gaps + 1, device=gap.device).view(-1, 1, 1, 1)
    chosen = better_pairs(compact, mask) & (gap == wanted)
    difference = scores.unsqueeze(2) - scores.unsqueeze(1)
    return torch.where(chosen, difference, 0.0).sum((1, 2, 3)), chosen.sum((1, 2, 3)).to(difference.dtype)
