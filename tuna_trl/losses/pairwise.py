"""Losses that are sums over pairs: RRHF, BRIO, SLiC and SimPO.

Everywhere i is the better response of a pair, a_k = logp_k / |y_k| ** length_exponent (nats a token at exponent 1) and
l_k = logp_k (nats). Ties and identical token sequences make no pair.

    rrhf   sum over pairs of max(0, a_j - a_i)                                   Yuan et al. 2023, 2304.05302
    brio   as `tuna` with BRIO's own margin: max(0, a_j - a_i + margin * gap)    Liu et al. 2022, 2203.16804
    slic   sum over pairs of max(0, delta - l_i + l_j)                           Zhao et al. 2023, 2305.10425
    simpo  mean over pairs of -log sigmoid(beta (a_i - a_j) - gamma)             Meng et al. 2024, 2405.14734

The papers' likelihood terms are the trainer's: RRHF and SLiC pair with `mle_target="best"` or `"reference"`, BRIO
with `mle_weight=0.01` (its code weighs 0.1 to 10) and `length_exponent=2.0`; SimPO has none (`mle_weight=0`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .pairs import better_pairs, competition_ranks, length_normalised
from .tuna import tuna_loss


def rrhf_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    length_exponent: float = 1.0,
) -> Tensor:
    """RRHF: a hinge without margin on every pair. Equals `tuna` with `margin=0, pair_reduction="sum"`.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`]. Returns: `(B,)`.
    """
    scores = length_normalised(logps, lengths, length_exponent)
    pairs = better_pairs(ranks, mask, groups)
    hinge = torch.relu(scores.unsqueeze(1) - scores.unsqueeze(2))
    return torch.where(pairs, hinge, 0.0).sum((1, 2))


def brio_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    margin: float = 0.001,
    pair_reduction: str = "gap_mean",
    length_exponent: float = 1.0,
) -> Tensor:
    """BRIO's contrastive loss: Tuna's form with BRIO's margin 0.001 (its code averages each gap; its paper sums).

    Args: as [`tuna_trl.losses.tuna.tuna_loss`]. Returns: `(B,)`.
    """
    return tuna_loss(
        logps,
        lengths,
        ranks,
        mask,
        groups=groups,
        margin=margin,
        pair_reduction=pair_reduction,
        length_exponent=length_exponent,
    )


def slic_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    delta: float = 1.0,
) -> Tensor:
    """SLiC's rank calibration on summed log-probabilities, over all pairs (the paper has one pair).

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        delta: the margin of every pair, nats.

    Returns:
        `(B,)`.
    """
    scores = length_normalised(logps, lengths, 0.0)
    pairs = better_pairs(ranks, mask, groups)
    hinge = torch.relu(delta + scores.unsqueeze(1) - scores.unsqueeze(2))
    return torch.where(pairs, hinge, 0.0).sum((1, 2))


def simpo_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    beta: float = 2.0,
    gamma: float = 0.5,
    rank_scaled: bool = False,
    length_exponent: float = 1.0,
) -> Tensor:
    """SimPO over all pairs (the paper has one pair), averaged over them.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        beta: multiplies the scores (nats a token with `length_exponent` 1).
        gamma: the target reward margin, in units of `beta` times a score.
        rank_scaled: the margin of a pair is `gamma` times its rank gap.

    Returns:
        `(B,)`.
    """
    scores = length_normalised(logps, lengths, length_exponent)
    pairs = better_pairs(ranks, mask, groups)
    # the slots that make no pair may hold anything; zero before the sigmoid, so that no gradient is 0 * inf
    difference = torch.where(pairs, scores.unsqueeze(2) - scores.unsqueeze(1), 0.0)
    target = torch.as_tensor(gamma, dtype=scores.dtype, device=scores.device)
    if rank_scaled:
        own = competition_ranks(ranks, mask)
        target = gamma * (own.unsqueeze(1) - own.unsqueeze(2)).to(scores.dtype)
    losses = torch.where(pairs, -logsigmoid(beta * difference - target), 0.0)
    return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
