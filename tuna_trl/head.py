"""The chunked language-model head: hidden states and target tokens in, log-probabilities out, never `(T, V)` logits.

Three ways to the same number, each with a float32 log-sum-exp over the whole vocabulary:

* frozen plain head (LoRA, QLoRA): every loss here reaches the head only through d loss / d logp_t, a scalar a token,
  so d logp_t / d hidden_t = W[y_t] - p_t W is formed in the forward and the backward is one product; no recomputation.
* trained plain head: softmax minus target is kept where it fits into `KEPT_BYTES`, else each chunk's logits are made
  again in the backward; the weight's gradient is summed over the chunks in float32.
* any other head (adapted, quantised, with hooks): each chunk is checkpointed, and the head is called as a module, so
  that LoRA on it, a bias or a dequantisation counts.

A head that is sharded by itself is called once, and its chunks run inside that call ([`tuna_trl.sharding`]).
Memory is one chunk of logits, about `CHUNK_BYTES`, whatever B, N and L are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .sharding import call_once, gathers_when_called, global_rows


CHUNK_BYTES = 64 * 2**20  # of float32 logits: 341 tokens at V = 49,152, 110 at V = 151,936
KEPT_BYTES = 256 * 2**20  # of a trained head's slopes: 1,365 tokens in float32 at V = 49,152


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its logits behind the head: `z <- softcap * tanh(scale * z / softcap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read from a transformers config: Cohere's `logit_scale` multiplies, Granite's `logits_scaling` divides
        (HyperCLOVA X's multiplies), Falcon-H1 has `lm_head_multiplier`, Gemma 2 and 3n `final_logit_softcapping`."""
        text = config.get_text_config()
        scale = getattr(text, "logit_scale", None)
        if scale is None:
            scale = getattr(text, "lm_head_multiplier", None)
        if scale is None and getattr(text, "logits_scaling", None) is not None:
            scale = text.logits_scaling if text.model_type == "hyperclovax" else 1.0 / text.logits_scaling
        return cls(1.0 if scale is None else float(scale), getattr(text, "final_logit_softcapping", None))


def token_logps(hidden: Tensor, targets: Tensor, head: nn.Module, transform: LogitTransform) -> Tensor:
    """log softmax(transform(head(hidden)))[target] of each token, in nats.

    Args:
        hidden: `(T, d)` hidden states at the positions that predict.
        targets: `(T,)` the tokens predicted.
        head: the output embedding, `(T, d) -> (T, V)`.

    Returns:
        `(T,)` float32 (float64 for float64 hidden states); differentiable in `hidden` and in the head's parameters.
    """
    plain = _is_plain(head)
    if not gathers_when_called(head):
        return _chunked(hidden, targets, head, head, transform, plain)
    forward = head.forward  # without the hooks: they run once, around all chunks
    return call_once(head, lambda h, y: _chunked(h, y, head, forward, transform, plain), hidden, targets)


def _chunked(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Module,
    forward: Callable[[Tensor], Tensor],
    transform: LogitTransform,
    plain: bool,
) -> Tensor:
    """`forward` makes logits, and is `head` or its own forward; `plain` as found by [`_is_plain`]."""
    chunk = max(16, CHUNK_BYTES // (4 * _vocabulary(head)))
    if plain:
        if torch.is_autocast_enabled(hidden.device.type):
            # as autocast would in the product; done here, the slope that is kept takes half the bytes, and a bf16
            # weight is not copied to float32
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        function = _TrainedHead if trained else _FrozenHead
        return function.apply(hidden, targets, head.weight, head.bias, transform, chunk)
    pieces = [
        checkpoint(_chunk_logps, h, y, forward, transform, use_reentrant=False)
        for h, y in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)


def _chunk_logps(
    hidden: Tensor, targets: Tensor, forward: Callable[[Tensor], Tensor], transform: LogitTransform
) -> Tensor:
    logits = transform(_at_least_fp32(forward(hidden)))
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - torch.logsumexp(logits, 1)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _is_plain(head: nn.Module) -> bool:
    """A linear layer whose own weight and bias are all there is to it."""
    return (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward  # `fully_shard` makes a subclass of it
        and (gathers_when_called(head) or not (head._forward_hooks or head._forward_pre_hooks))
        and "forward" not in head.__dict__  # accelerate's hooks, which move inputs to the head's device
    )


def _vocabulary(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    return int(size) if size else max(global_rows(p) for p in head.parameters())


class _FrozenHead(torch.autograd.Function):
    """Log-probs under a frozen head, with d logp / d hidden saved instead of logits: `(T, d)`, not `(T, V)`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        chunk: int,
    ) -> Tensor:
        needs_grad = ctx.needs_input_grad[0]
        logps = hidden.new_empty(len(hidden), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        slope = torch.empty_like(hidden) if needs_grad else None
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            # one kernel with the bias in it, as the module's own: added afterwards, a bf16 sum would be rounded twice
            logits = transform(_at_least_fp32(nn.functional.linear(hidden[rows], weight, bias)))
            logps[rows], change = _logps_and_slope(logits, targets[rows], transform, needs_grad)
            if slope is not None and change is not None:
                slope[rows] = change.to(weight.dtype) @ weight
            del logits, change  # or the next chunk is made beside this one
        ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grad.unsqueeze(1).to(slope.dtype), None, None, None, None, None


class _TrainedHead(torch.autograd.Function):
    """Log-probs under a head that is trained. What its gradient needs of the logits is kept where all of it fits into
    `KEPT_BYTES` (3 products of T x d x V), else made again chunk by chunk in the backward (4 products)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        chunk: int,
    ) -> Tensor:
        logps = hidden.new_empty(len(hidden), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        own, own_bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        wanted = any(ctx.needs_input_grad[i] for i in (0, 2, 3))
        keep = wanted and len(hidden) * weight.shape[0] * hidden.element_size() <= KEPT_BYTES
        kept = []
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = transform(_at_least_fp32(nn.functional.linear(hidden[rows], own, own_bias)))
            logps[rows], change = _logps_and_slope(logits, targets[rows], transform, keep)
            if keep and change is not None:
                kept.append(change.to(hidden.dtype))
            del logits, change
        ctx.save_for_backward(hidden, targets, weight, bias, *kept)
        ctx.transform, ctx.chunk = transform, chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, *kept = ctx.saved_tensors
        own, own_bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # float32 sums: of 8 chunks in bfloat16 the last would add to a gradient with 8 bits
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = weight.new_zeros(weight.shape, dtype=exact) if ctx.needs_input_grad[2] else None
        to_bias = bias.new_zeros(bias.shape, dtype=exact) if ctx.needs_input_grad[3] else None
        for i, start in enumerate(range(0, len(hidden), ctx.chunk)):
            rows = slice(start, start + ctx.chunk)
            logits = None
            if kept:
                change = kept[i]
            else:
                logits = ctx.transform(_at_least_fp32(nn.functional.linear(hidden[rows], own, own_bias)))
                _, change = _logps_and_slope(logits, targets[rows], ctx.transform, True)
            change = (change * grad[rows].unsqueeze(1)).to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[rows] = change @ own
            if to_weight is not None:
                if to_weight.dtype == change.dtype:
                    to_weight.addmm_(change.T, hidden[rows])
                else:
                    to_weight += change.T @ hidden[rows]
            if to_bias is not None:
                to_bias += change.sum(0)
            del logits, change
        cast = [None if t is None else t.to(o.dtype) for t, o in ((to_weight, weight), (to_bias, bias))]
        return to_hidden, None, *cast, None, None


def _logps_and_slope(
    logits: Tensor, targets: Tensor, transform: LogitTransform, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """`(rows,)` log-probs, and `(rows, V)` d logp / d (logits before the transform), written over `logits`.

    In place, because a chunk is larger than any cache: with a temporary a step, the passes over it took 0.7 of 2.2 s
    (1,020 tokens, d = 576, V = 49,152, one core); so, they are lost in the products' noise.
    """
    bend = None
    if needs_grad and transform.softcap:
        bend = 1 - (logits / transform.softcap) ** 2
    target = targets.unsqueeze(1)
    chosen = logits.gather(1, target)
    peak = logits.amax(1, keepdim=True)
    weights = logits.sub_(peak).exp_()
    total = weights.sum(1, keepdim=True)
    logps = (chosen - peak - total.log()).squeeze(1)
    if not needs_grad:
        return logps, None
    change = weights.mul_(-1 / total)
    change.scatter_add_(1, target, torch.ones_like(total))
    if bend is not None:
        change.mul_(bend)
    if transform.scale != 1.0:
        change.mul_(transform.scale)
    return logps, change
