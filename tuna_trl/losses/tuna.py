"""Tuna: a margin ranking loss whose margin grows with the distance of the ranks (Li et al. 2023, arXiv 2310.13385).

With `s_k` the length-normalised log-probability of response k and `r_k` its rank (1 = best), two readings exist:

    pair_reduction="gap_mean" (default; the released code, github.com/microsoft/LMOps, tuna)
        L = sum_g mean_{(i,j): r_j - r_i = g} max(0, s_j - s_i + m g)

    pair_reduction="sum" (the paper's objective)
        L = sum_{(i,j): r_i < r_j} max(0, s_j - s_i + m (r_j - r_i))

They weigh pairs differently: with 4 untied responses a pair at gap 1, 2, 3 weighs 1/3, 1/2, 1 in the first and 1 in
the second, so that the same `mle_weight` is a different strength of regularisation.

Where: m the margin (nats a token, 0.1 in paper and code), g >= 1 a rank gap, i better than j. The released code knows
neither ties nor ragged N; here ties and identical token sequences make no pair, and gaps are those of competition
ranks (1, 2, 2, 4) among the usable responses, which equal the code's where there are no ties.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .pairs import better_pairs, competition_ranks, length_normalised


PAIR_REDUCTIONS = ("gap_mean", "sum")


def tuna_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    margin: float = 0.1,
    pair_reduction: str = "gap_mean",
    length_exponent: float = 1.0,
) -> Tensor:
    """Tuna's ranking loss, one value an instruction.

    Args:
        logps: `(B, N)` summed log-probabilities, nats.
        lengths: `(B, N)` tokens summed over.
        ranks: `(B, N)` int, 1 = best.
        mask: `(B, N)` bool, the ranked responses.
        targets, ref_logps: not used; part of the common signature.
        groups: `(B, N)` int, equal for identical token sequences.
        margin: m, nats a token.
        pair_reduction: "gap_mean" or "sum", as above.
        length_exponent: s_k = logps_k / lengths_k ** length_exponent.

    Returns:
        `(B,)`, 0 where a row has no pair.
    """
    if pair_reduction not in PAIR_REDUCTIONS:
        raise InputError(f"`pair_reduction` is {pair_reduction!r}, expected one of {', '.join(PAIR_REDUCTIONS)}.")
    scores = length_normalised(logps, lengths, length_exponent)
    ranks = competition_ranks(ranks, mask)
    pairs = better_pairs(ranks, mask, groups)
    gaps = ranks.unsqueeze(1) - ranks.unsqueeze(2)  # [b, i, j] = r_j - r_i
    hinge = torch.relu(scores.unsqueeze(1) - scores.unsqueeze(2) + margin * gaps.to(scores.dtype))
    # where, not a product: an empty slot may hold anything, and 0 * inf would be NaN
    hinge = torch.where(pairs, hinge, 0.0)
    if pair_reduction == "sum":
        return hinge.sum((1, 2))
    gap_index = torch.where(pairs, gaps, 0).flatten(1)  # 0 collects what is no pair
    counts = torch.zeros(len(ranks), ranks.shape[1] + 1, dtype=hinge.dtype, device=hinge.device)
    counts = counts.scatter_add(1, gap_index, pairs.flatten(1).to(hinge.dtype))
    return (hinge.flatten(1) / counts.gather(1, gap_index).clamp(min=1)).sum(1)
