"""What every ranking loss needs before it forms a pair: the score s_k, usable ranks, which pairs count."""

from __future__ import annotations

import torch
from torch import Tensor


def length_normalised(logps: Tensor, lengths: Tensor, length_exponent: float = 1.0) -> Tensor:
    """`s_k = logps_k / lengths_k ** length_exponent`, in float32 at least (nats a token at exponent 1).

    A bf16 quotient is off by up to 0.4 %, which at s = -2 is 0.008, a twelfth of Tuna's margin 0.1.

    Args:
        logps: `(B, N)` sums of token log-probabilities, nats.
        lengths: `(B, N)` tokens summed over; 0 (an empty slot) counts as 1 so that nothing divides by zero.
    """
    logps = logps if logps.dtype == torch.float64 else logps.float()
    return logps / lengths.clamp(min=1).to(logps.dtype) ** length_exponent


def competition_ranks(ranks: Tensor, mask: Tensor) -> Tensor:
    """Ranks among the usable responses alone: 1 + how many of them are strictly better. `(B, N)`, unusable ones 0.

    Responses drop out of a row (too long, empty, unranked), and the rank gaps of the rest must not remember them.
    """
    better = (ranks.unsqueeze(1) < ranks.unsqueeze(2)) & mask.unsqueeze(1)  # [b, i, j]: j beats i
    return torch.where(mask, 1 + better.sum(2), 0)


def better_pairs(ranks: Tensor, mask: Tensor, groups: Tensor | None = None) -> Tensor:
    """`(B, N, N)` bool, [b, i, j] = i and j make a pair and i is the better one.

    Ties make no pair; nor do identical token sequences, which a hinge with a margin could only push by a constant.

    Args:
        groups: `(B, N)` int, equal where the token sequences are identical; None if all differ.
    """
    pairs = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    return pairs if groups is None else pairs & (groups.unsqueeze(2) != groups.unsqueeze(1))
