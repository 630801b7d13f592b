"""Floating-point operations of a training step, counted from shapes, and the rate at which this machine does them.

A multiplication and an addition are two operations. Counted are the products of matrices; what is elementwise is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from .measure import timed


# (prompt tokens, tokens of each response) of one instruction
Lengths = tuple[int, Sequence[int]]


@dataclass(frozen=True)
class ModelSize:
    """What a Llama-shaped model multiplies; `lora_rank` on all linear layers but the head, which is frozen."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    lora_rank: int = 16

    @classmethod
    def of(cls, config: object, lora_rank: int = 16) -> ModelSize:
        """Read from a transformers config."""
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            config.intermediate_size,
            config.vocab_size,
            lora_rank,
        )

    def products(self) -> list[tuple[int, int, int]]:
        """(in, out, how many) of the linear layers of the whole body."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.hidden, query, self.layers),
            (self.hidden, key, 2 * self.layers),
            (query, self.hidden, self.layers),
            (self.hidden, self.feed_forward, 2 * self.layers),
            (self.feed_forward, self.hidden, self.layers),
        ]


@dataclass(frozen=True)
class StepFlops:
    """Forward and backward of one step."""

    body: float
    lora: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.body + self.lora + self.attention + self.head


def shared_flops(size: ModelSize, batch: Sequence[Lengths]) -> StepFlops:
    """The least that the step needs: every token once, the head on response tokens only."""
    tokens = sum(prompt + sum(responses) for prompt, responses in batch)
    predicted = sum(sum(responses) for _, responses in batch)
    seen = sum(p * p / 2 + sum(r * p + r * r / 2 for r in responses) for p, responses in batch)
    return _flops(size, tokens, predicted, seen)


def reference_flops(size: ModelSize, batch: Sequence[Lengths]) -> StepFlops:
    """The reference step: every copy of the prompt and every padding token, the head on all of them."""
    rows = sum(len(responses) for _, responses in batch)
    longest = max(p + r for p, responses in batch for r in responses)
    return _flops(size, rows * longest, rows * longest, rows * longest**2 / 2)


def _flops(size: ModelSize, tokens: float, predicted: float, seen: float) -> StepFlops:
    """`seen`: pairs of a token and a token that it attends to."""
    weights = sum(i * o * n for i, o, n in size.products())
    adapters = size.lora_rank * sum((i + o) * n for i, o, n in size.products())
    return StepFlops(
        body=4 * weights * tokens,  # forward, and the gradient of the input; the weights have none
        lora=6 * adapters * tokens,
        # forward two products of 2 operations, backward two and a half times that (it forms the scores again)
        attention=3.5 * 4 * size.layers * size.heads * size.head_dim * seen,
        head=4 * size.hidden * size.vocabulary * predicted,  # forward, and the gradient of the hidden state
    )


@dataclass(frozen=True)
class GemmRate:
    """Operations a second of products in the model's shapes: of its body (weighed as the model weighs them), of its
    head, and the fastest of all of them."""

    body: float
    head: float
    fastest: float


def gemm_rate(size: ModelSize, tokens: int, device: torch.device, dtype: torch.dtype, *, chunk: int = 341) -> GemmRate:
    """Measured on the spot: every linear layer of the model forward and backward, on `tokens` rows; the head on
    `chunk` rows at a time."""
    seconds = operations = 0.0
    rates = []
    for inner, outer, count in size.products():
        one, flops = _product(tokens, inner, outer, device, dtype)
        seconds, operations = seconds + count * one, operations + count * flops
        rates.append(flops / one)
    one, flops = _product(chunk, size.hidden, size.vocabulary, device, dtype)
    return GemmRate(operations / seconds, flops / one, max(*rates, flops / one))


def _product(rows: int, inner: int, outer: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(seconds, operations) of y = x W^T and dx = dy W; the median of five."""
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(outer, inner, device=device, dtype=dtype)
    dy = torch.randn(rows, outer, device=device, dtype=dtype)
    flops = 4.0 * rows * inner * outer

    def both() -> None:
        linear(x, weight)
        dy @ weight

    both()
    return statistics.median(timed(both, device) for _ in range(5)), flops


def floor_seconds(flops: StepFlops, rate: GemmRate) -> float:
    """What the step would take if every operation ran at the measured rate of the model's own products."""
    return (flops.body + flops.lora + flops.attention) / rate.body + flops.head / rate.head
