"""Attention of a packed row: every response sees its prompt and itself, and no mask of T x T is built.

Registered with transformers' `AttentionInterface`, so that it reaches every model family that uses the interface, also
under PEFT, checkpointing, DDP and FSDP. Called without a plan (generation, another trainer) the functions do what the
implementation did that they replace. Three ways:

* segmented: a few calls of `scaled_dot_product_attention` an instruction, on any device;
* varlen: one call a layer of a variable-length flash kernel over gathered keys and values (CUDA, 16 bit);
* mask: one block mask, for models that take a 4D mask but hand no keywords to their attention; quadratic in T.

The idea of sharing the prompt: Wang and Hegde 2024, arXiv 2410.20305; Prefix Grouper, arXiv 2506.05433.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .packing import AttentionPlan


Kernel = Callable[..., Any]

# what a model is set to -> what it is without a plan
IMPLEMENTATIONS = {"tuna_sdpa": "sdpa", "tuna_eager": "eager"}

# an attention that is given one of these computes something that no plan here reproduces
_UNKNOWN_TERMS = ("position_bias", "alibi", "head_mask", "cache")


def planned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a packed row.

    Args:
        query: `(1, H, T, D)`. key, value: `(1, H_kv, T, D)`. plan: of that T.
        attention_mask: not looked at.
        sliding_window: tokens a query sees, itself included, measured in positions.
        softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2).
        s_aux: `(H,)`, one more score of every query, that of a key without a value (GPT-OSS's sinks).

    Returns:
        `(1, T, H, D)` and None (no weights).

    Raises:
        NotImplementedError: the layer adds a term to its scores that is not known here (ALiBi).
    """
    if unknown := [name for name in _UNKNOWN_TERMS if kwargs.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__} uses {unknown[0]}, which shared prompts do not know")
    if query.shape[0] != 1 or query.shape[2] != plan.length:
        raise NotImplementedError(f"{type(module).__name__} attends over {tuple(query.shape)}, not over the row")
    if torch.is_autocast_enabled(query.device.type) and query.dtype == torch.float32:
        # as autocast does in front of SDPA; rotary embeddings give float32 queries, which no 16-bit kernel takes
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    plan.calls += 1
    plan.windows.append(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = None if s_aux is not None else _varlen_kernel(query, value, dropout, softcap)
    if kernel is not None:
        return kernel(query, key, value, plan, scale, dropout, sliding_window, softcap).unsqueeze(0), None
    terms = ScoreTerms(scale, dropout, softcap, s_aux)
    return segmented(query, key, value, plan, terms, sliding_window), None


@dataclass(frozen=True)
class ScoreTerms:
    """What a layer does to its scores but for masks: `scale`, `dropout` of the weights, `softcap`, `sinks` `(H,)`."""

    scale: float
    dropout: float = 0.0
    softcap: float | None = None
    sinks: Tensor | None = None


def segmented(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, terms: ScoreTerms, window: int | None = None
) -> Tensor:
    """`(1, T, H, D)`: trunk after trunk and branch after branch, each by one dense call."""
    pieces = []
    for group in plan.groups:
        trunk = slice(group.start, group.start + group.trunk)
        mask = None
        if window is not None and group.trunk > window:
            mask = plan.branch_mask(0, group.trunk, window, query.device)
        pieces.append(_dense(query[:, :, trunk], key[:, :, trunk], value[:, :, trunk], mask, terms))
        prompt = slice(group.start, group.start + group.prompt)
        for start, length in group.branches:
            own = slice(start, start + length)
            near = None if window is None or group.prompt + length <= window else window
            mask, keys, values = None, key[:, :, own], value[:, :, own]
            if group.prompt or near is not None:
                mask = plan.branch_mask(group.prompt, length, near, query.device)
                keys = torch.cat([key[:, :, prompt], keys], 2)
                values = torch.cat([value[:, :, prompt], values], 2)
            pieces.append(_dense(query[:, :, own], keys, values, mask, terms))
    return torch.cat(pieces, 2).transpose(1, 2).contiguous()


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, terms: ScoreTerms) -> Tensor:
    """`(1, H, Q, D)`: one segment; without a mask it is causal."""
    plain = terms.softcap is None and terms.sinks is None
    repeats = query.shape[1] // key.shape[1]
    # with a mask, CUDA's kernels take no grouped heads and the call would fall to plain products over all scores
    grouped = plain and (mask is None or query.device.type == "cpu")
    if repeats > 1 and not grouped:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if plain:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=terms.dropout,
            is_causal=mask is None,
            scale=terms.scale,
            enable_gqa=repeats > 1 and grouped,
        )
    scores = query @ key.transpose(2, 3) * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    if terms.sinks is not None:
        sinks = terms.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], 3)
    weights = scores.softmax(-1, dtype=_softmax_dtype(query)).to(query.dtype)[..., : key.shape[2]]
    return nn.functional.dropout(weights, terms.dropout) @ value


def _softmax_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


# ---- One call a layer, on CUDA ----


def _varlen_kernel(query: Tensor, value: Tensor, dropout: float, softcap: float | None) -> Kernel | None:
    """The variable-length kernel that can do this layer, or None."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if query.shape[-1] > 256 or query.shape[-1] != value.shape[-1] or torch.cuda.get_device_capability()[0] < 8:
        return None
    if _flash_attn() is not None:
        return _by_flash_attn
    if dropout == 0 and softcap is None and _torch_varlen() is not None:
        return _by_torch_varlen
    return None


@functools.cache
def _flash_attn() -> Kernel | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


@functools.cache
def _torch_varlen() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn  # torch >= 2.10
    except ImportError:
        return None
    return varlen_attn


def _by_flash_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    kernel: Any = _flash_attn()  # there: `_varlen_kernel` has looked
    index, cu_q, cu_k, max_q, max_k = plan.gathered_keys(query.device)
    query, key, value = _heads_last(query, key, value, index)
    # flash-attn >= 2.1 aligns causal masks to the last key, which is what a branch behind its prompt needs
    return kernel(
        query,
        key,
        value,
        cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )


def _by_torch_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    kernel: Any = _torch_varlen()  # there: `_varlen_kernel` has looked
    index, cu_q, cu_k, max_q, max_k = plan.gathered_keys(query.device)
    query, key, value = _heads_last(query, key, value, index)
    return kernel(
        query,
        key,
        value,
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scale,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _heads_last(query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(T, H, D)` queries, and each segment's keys and values, `(T_k, H_kv, D)`."""
    return query[0].transpose(0, 1), key[0].transpose(0, 1)[index], value[0].transpose(0, 1)[index]


# ---- The interface ----


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tuna_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if tuna_plan is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    return planned_attention(module, query, key, value, attention_mask, plan=tuna_plan, **kwargs)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tuna_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if tuna_plan is None:
        return eager_of(module)(module, query, key, value, attention_mask, **kwargs)
    return planned_attention(module, query, key, value, attention_mask, plan=tuna_plan, **kwargs)


def eager_of(module: nn.Module) -> Kernel:
    """A family's own eager attention, which every modeling file of transformers holds under this name."""
    for kind in type(module).__mro__:
        if (found := getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)) is not None:
            return found
    raise NotImplementedError(f"{type(module).__name__} has no eager attention of its own")


# a mask function of the same name each, or every ordinary padded forward would run without its mask
AttentionInterface.register("tuna_sdpa", _sdpa)
AttentionInterface.register("tuna_eager", _eager)
AttentionMaskInterface.register("tuna_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
AttentionMaskInterface.register("tuna_eager", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def plan_arguments(model: nn.Module, plan: AttentionPlan, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the backbone of `model` is called with so that it follows `plan`."""
    if model.config._attn_implementation in IMPLEMENTATIONS:
        # a 4D mask is handed on as it is (masking_utils.py): with none, restarted positions would be read as packed
        # documents and a mask of T x T be built; the planned attention does not look at it
        return {"tuna_plan": plan, "attention_mask": torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)}
    seen = plan.dense_mask(None, device)
    if model.config._attn_implementation == "eager":  # adds its mask to the scores: a bool one would be added as 0 / 1
        seen = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return {"attention_mask": seen}


def check_followed(model: nn.Module, plan: AttentionPlan) -> None:
    """After a planned forward.

    Raises:
        RuntimeError: a layer did not follow the plan, so the responses have seen each other.
    """
    layers = model.config.get_text_config().num_hidden_layers
    if model.config._attn_implementation in IMPLEMENTATIONS and plan.calls < layers:
        raise RuntimeError(
            f"{type(model).__name__} took the plan of the shared prompt in {plan.calls} of {layers} layers; its "
            'log-probabilities would be wrong. Set `batch_layout="rows"`.'
        )
