"""One token per row from logits and a uniform number, with its log-prob under the model itself: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Sampling


_BLOCK = 256


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob under the model itself.

    The token is the first whose cumulative probability exceeds the row's uniform number, after temperature, then
    top-k, then top-p, in the order of the vocabulary; at temperature 0 it is the most probable one. The log-prob is
    `log_softmax(logits)[token]` of the raw logits at temperature 1, in float32 or better, whatever was drawn from.

    Args:
        logits: `(rows, V)`.
        uniforms: `(rows,)` float64 in [0, 1); not read at temperature 0.

    Returns:
        tokens `(rows,)` int64; log-probs `(rows,)`, nats.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    raw = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        tokens, total = raw.argmax(-1), raw.logsumexp(-1)
    else:
        scores = raw if sampling.temperature == 1 else raw / sampling.temperature
        scores = _cut(scores, sampling)
        tokens, total = _invert(scores, uniforms.to(raw.device))
        if scores is not raw:  # otherwise the sum over the vocabulary that was drawn from is the model's own
            total = raw.logsumexp(-1)
    return tokens, raw.gather(-1, tokens[:, None])[:, 0] - total


def _invert(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the cumulative distribution `softmax(scores)` at `uniforms`: `(rows,)` int64, and the log of the
    sum of exponentials of `scores`, `(rows,)`.

    Searched first among sums of 256 tokens, then within one: a cumulative sum over the whole vocabulary in float64
    takes a third of a decoding step (64 rows x 49,152 tokens, 2 cores).
    """
    highest = scores.amax(-1, keepdim=True)
    weights = (scores - highest).exp_()
    if short := -weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    blocks = weights.view(len(weights), -1, _BLOCK)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].double().cumsum(-1)
    # NaN compares with nothing and ends up at the far end, which may be padding.
    tokens = (block * _BLOCK + _first_above(inside, target - before))[:, 0].clamp(max=scores.shape[-1] - 1)
    return tokens, (highest + cumulative[:, -1:].log().to(highest.dtype))[:, 0]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """`(rows, 1)`: the first place whose cumulative sum exceeds `target`; never one that adds nothing.

    Rounding can lift `target` to the last sum or above it; then it is the last place that adds something.
    """
    last = cumulative[:, -1:]
    below = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(cumulative, below, right=True).clamp(max=cumulative.shape[-1] - 1)


def _cut(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores with -inf outside the top k (ties at the k-th stay) and outside the smallest set that reaches top_p."""
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= sampling.top_p  # what comes before a token already reaches top_p
        scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    return scores
