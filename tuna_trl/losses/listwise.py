"""Losses over the whole list: ListMLE, PRO, ListNet, DPO under Plackett-Luce, and LiPO-lambda.

Notation: W(k) the responses strictly worse than k, K the responses with W(k) not empty, a_k = logp_k / |y_k| **
length_exponent (nats a token), r_k competition ranks (1 = best), d_k = logp_k - ref_logp_k (nats). Plackett-Luce has
no ties; here the denominator of k holds k itself and what is strictly worse: the paper's, where there are none.

    listmle  - sum over k in K of log [ e^{t a_k} / (e^{t a_k} + sum over j in W(k) of e^{t a_j}) ]
             Xia et al. 2008 (ICML); `top_k` stops behind the k best
    pro      - sum over k in K of log [ e^{a_k T_k} / (e^{a_k T_k} + sum over j in W(k) of e^{a_j T_kj}) ],
             T_kj = r_j - r_k, T_k = max over j in W(k) of T_kj              Song et al. 2023, 2306.17492
    listnet  - sum over i of softmax(psi / target_temperature)_i log softmax(t a)_i      Cao et al. 2007 (ICML)
             psi = the ranker's scores; - r where a row has none
    dpo_pl   listmle of beta d: DPO under Plackett-Luce            Rafailov et al. 2023, 2305.18290, appendix A.3
    lipo     sum over pairs of Delta_ij log(1 + e^{-(s_i - s_j)}), s = beta d, Delta_ij = |G_i - G_j| |1/D_i - 1/D_j|,
             G = 2^psi - 1, D = log(1 + place under s)              Liu et al. 2024, 2402.01878
             psi_i = the share of the row's responses that i beats, ties and itself one half
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import InputError
from .pairs import better_pairs, competition_ranks, length_normalised


def listmle_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    tau: float = 1.0,
    top_k: int | None = None,
    length_exponent: float = 1.0,
) -> Tensor:
    """Plackett-Luce likelihood of the ranking; N = 2 is SimPO with beta = tau and gamma = 0.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        tau: multiplies the scores.
        top_k: how many ranks the likelihood is of, from the best on; None = all.

    Returns:
        `(B,)`.
    """
    scores = tau * length_normalised(logps, lengths, length_exponent)
    return _plackett_luce(scores, ranks, mask, groups, top_k)


def pro_loss(
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
    """PRO: each response against all that are worse, a larger rank distance pushing harder.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`]. Returns: `(B,)`.
    """
    scores = length_normalised(logps, lengths, length_exponent)
    worse = better_pairs(ranks, mask, groups)  # [b, k, j]: j is worse than k
    own = competition_ranks(ranks, mask)
    distance = torch.where(worse, (own.unsqueeze(1) - own.unsqueeze(2)).to(scores.dtype), 0.0)
    clean = torch.where(mask, scores, 0.0)
    positive = clean * distance.amax(2)
    negatives = torch.where(worse, clean.unsqueeze(1) * distance, -torch.inf)
    terms = torch.logsumexp(torch.cat([positive.unsqueeze(2), negatives], 2), 2) - positive
    return torch.where(worse.any(2), terms, 0.0).sum(1)


def listnet_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    tau: float = 1.0,
    target_temperature: float = 1.0,
    length_exponent: float = 1.0,
) -> Tensor:
    """Cross-entropy between the ranker's top-one distribution and the model's.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        tau: multiplies the model's scores.
        target_temperature: divides the ranker's scores, in their units.

    Returns:
        `(B,)`; a row without a pair is 0, as everywhere.
    """
    scores = tau * length_normalised(logps, lengths, length_exponent)
    by_rank = -competition_ranks(ranks, mask).to(scores.dtype)
    psi = by_rank if targets is None else targets.to(scores.dtype)
    scored = (torch.isfinite(psi) | ~mask).all(1, keepdim=True)
    psi = torch.where(scored, psi, by_rank) / target_temperature
    has_pair = better_pairs(ranks, mask, groups).flatten(1).any(1)
    # a row with nothing usable would be a softmax over -inf alone
    open_mask = mask | ~has_pair.unsqueeze(1)
    wanted = torch.softmax(torch.where(open_mask, torch.where(mask, psi, 0.0), -torch.inf), 1)
    clean = torch.where(mask, scores, 0.0)
    logits = torch.where(open_mask, clean, -torch.inf)
    log_model = clean - torch.logsumexp(logits, 1, keepdim=True)
    losses = -torch.where(mask, wanted * log_model, 0.0).sum(1)
    return torch.where(has_pair, losses, 0.0)


def dpo_pl_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """DPO's Plackett-Luce form on summed log-probabilities; N = 2 is DPO's sigmoid loss.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        ref_logps: `(B, N)` summed log-probabilities under the reference model, nats.
        beta: weight of the difference from the reference.

    Returns:
        `(B,)`.
    """
    return _plackett_luce(beta * _log_ratio(logps, lengths, ref_logps, "dpo_pl"), ranks, mask, groups, None)


def lipo_loss(
    logps: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    mask: Tensor,
    *,
    targets: Tensor | None = None,
    ref_logps: Tensor | None = None,
    groups: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """LiPO-lambda: a logistic loss a pair, weighed by what swapping the two would change in DCG under the model.

    Args: as [`tuna_trl.losses.tuna.tuna_loss`], and

    Args:
        ref_logps: `(B, N)` summed log-probabilities under the reference model, nats.
        beta: weight of the difference from the reference.

    Returns:
        `(B,)`.
    """
    scores = beta * _log_ratio(logps, lengths, ref_logps, "lipo")
    pairs = better_pairs(ranks, mask, groups)
    beats = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    ties = (ranks.unsqueeze(2) == ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    count = mask.sum(1, keepdim=True).clamp(min=1).to(scores.dtype)
    psi = (beats.sum(2) + 0.5 * ties.sum(2)).to(scores.dtype) / count
    clean = torch.where(mask, scores, 0.0)
    ahead = (clean.detach().unsqueeze(1) > clean.detach().unsqueeze(2)) & mask.unsqueeze(1)  # [b, i, j]: j before i
    discount = torch.log1p(1.0 + ahead.sum(2).to(scores.dtype))
    gain = torch.pow(2.0, psi) - 1.0
    weight = (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (
        1 / discount.unsqueeze(2) - 1 / discount.unsqueeze(1)
    ).abs()
    difference = torch.where(pairs, clean.unsqueeze(2) - clean.unsqueeze(1), 0.0)
    return torch.where(pairs, weight * softplus(-difference), 0.0).sum((1, 2))


def _plackett_luce(scores: Tensor, ranks: Tensor, mask: Tensor, groups: Tensor | None, top_k: int | None) -> Tensor:
    """- sum over k with something worse of log [ e^{s_k} / (e^{s_k} + sum over the worse of e^{s_j}) ], `(B,)`."""
    worse = better_pairs(ranks, mask, groups)
    clean = torch.where(mask, scores, 0.0)
    others = torch.where(worse, clean.unsqueeze(1).expand_as(worse), -torch.inf)
    terms = torch.logsumexp(torch.cat([clean.unsqueeze(2), others], 2), 2) - clean
    counted = worse.any(2)
    if top_k is not None:
        counted = counted & (competition_ranks(ranks, mask) <= top_k)
    return torch.where(counted, terms, 0.0).sum(1)


def _log_ratio(logps: Tensor, lengths: Tensor, ref_logps: Tensor | None, name: str) -> Tensor:
    if ref_logps is None:
        raise InputError(f"The ranking loss {name!r} compares with a reference model and needs `ref_logps` (B, N).")
    return length_normalised(logps, lengths, 0.0) - length_normalised(ref_logps, lengths, 0.0)
