"""The chunked language-model head: hidden states and target tokens in, log-probabilities out, never `(T, V)` logits.

Two ways to the same number, both with a float32 log-sum-exp over the whole vocabulary:

* frozen plain head (LoRA, QLoRA): every loss here reaches the head only through d loss / d logp_t, a scalar a token,
  so d logp_t / d hidden_t = W[y_t] - p_t W is formed in the forward and the backward is one product; no recomputation.
* anything else (trained, tied, adapted, quantised heads): each chunk is checkpointed, its logits are made again in the
  backward. The head is called as a module, so that LoRA on it, a bias or a dequantisation counts.

Memory is one chunk of logits, about `CHUNK_BYTES`, whatever B, N and L are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


CHUNK_BYTES = 64 * 2**20  # of float32 logits: 341 tokens at V = 49,152, 110 at V = 151,936


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
    def of(cls, config: object) -> LogitTransform:
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
    vocabulary = _vocabulary(head)
    chunk = max(16, CHUNK_BYTES // (4 * vocabulary))
    if _is_frozen_plain(head):
        if torch.is_autocast_enabled(hidden.device.type):
            # as autocast would in the product; done here, the slope that is kept takes half the bytes, and a bf16
            # weight is not copied to float32
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return _FrozenHead.apply(hidden, targets, head.weight, head.bias, transform, chunk)
    pieces = [
        checkpoint(_chunk_logps, h, y, head, transform, use_reentrant=False)
        for h, y in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces)


def _chunk_logps(hidden: Tensor, targets: Tensor, head: nn.Module, transform: LogitTransform) -> Tensor:
    logits = transform(_at_least_fp32(head(hidden)))
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - torch.logsumexp(logits, 1)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _is_frozen_plain(head: nn.Module) -> bool:
    """A linear layer whose own weight is all there is to it, and which is not trained."""
    return (
        type(head) is nn.Linear
        and not head.weight.requires_grad
        and (head.bias is None or not head.bias.requires_grad)
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and "forward" not in head.__dict__  # accelerate's hooks, which move inputs to the head's device
    )


def _vocabulary(head: nn.Module) -> int:
    size = getattr(head, "out_features", None)
    return int(size) if size else max(p.shape[0] for p in head.parameters())


class _FrozenHead(torch.autograd.Function):
    """Log-probs under a frozen head, with d logp / d hidden saved instead of logits: `(T, d)`, not `(T, V)`."""

    @staticmethod
    def forward(ctx, hidden, targets, weight, bias, transform, chunk):
        needs_grad = ctx.needs_input_grad[0]
        logps = hidden.new_empty(len(hidden), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        slope = torch.empty_like(hidden) if needs_grad else None
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            # one kernel with the bias in it, as the module's own: added afterwards, a bf16 sum would be rounded twice
            logits = transform(_at_least_fp32(nn.functional.linear(hidden[rows], weight, bias)))
            lse = torch.logsumexp(logits, 1)
            target = targets[rows].unsqueeze(1)
            logps[rows] = logits.gather(1, target).squeeze(1) - lse
            if needs_grad:
                slope[rows] = _hidden_slope(logits, lse, target, weight, transform).to(slope.dtype)
        ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return slope * grad.unsqueeze(1).to(slope.dtype), None, None, None, None, None


def _hidden_slope(logits: Tensor, lse: Tensor, target: Tensor, weight: Tensor, transform: LogitTransform) -> Tensor:
    """d logp / d hidden of one chunk, `(rows, d)`: (onehot - p) through the transform's derivative, times W."""
    slope = -torch.exp(logits - lse.unsqueeze(1))
    slope.scatter_add_(1, target, torch.ones_like(target, dtype=slope.dtype))
    if transform.softcap:
        slope = slope * (1 - (logits / transform.softcap) ** 2)
    if transform.scale != 1.0:
        slope = slope * transform.scale
    return slope.to(weight.dtype) @ weight
