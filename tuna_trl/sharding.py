"""Weights that lie on several ranks (FSDP2, DeepSpeed ZeRO-3), as far as the head and the scores must know of them.

Both gather a module's weights in hooks around its call, and a gather waits for every rank. How many chunks of tokens a
head works through differs from rank to rank, so a head that is sharded by itself is called once, and its chunks run
inside that call: one gather in the forward, one in the backward, on every rank. (Called a chunk at a time, two gloo
ranks with unequal chunks broke off: "Is there a distributed collective mismatch in your code?".) A head that shares
the shards of the whole model needs nothing: its weights are there for the whole forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError


def gathers_when_called(head: nn.Module) -> bool:
    """Whether a call of `head` gathers its weights from other ranks.

    Raises:
        InputError: what is gathered is not the head as a whole but something inside it, so a call of each chunk would
            gather; or FSDP version 1 wraps it.
    """
    parts = list(_sharded_parts(head))
    if not parts:
        return False
    if parts != [head]:
        inner = next(part for part in parts if part is not head)
        raise InputError(
            f"The output embedding ({type(head).__name__}) is sharded inside ({type(inner).__name__}); ranks with "
            "unequal numbers of tokens would wait for each other for ever. Shard the decoder layers and the model "
            "(FSDP2: TRANSFORMER_BASED_WRAP), use DeepSpeed ZeRO-2, or leave the head out of the adapter."
        )
    return True


def call_once(head: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)` within one call of `head`, so that its hooks gather its weights before and free them behind.

    Raises:
        InputError: `head` has other hooks, which expect hidden states and logits; or its mixed precision rounds what
            comes out.
    """
    for hook in (*head._forward_pre_hooks.values(), *head._forward_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith(("torch.distributed.", "deepspeed.")):
            raise InputError(
                f"The output embedding is sharded by itself and has a hook ({getattr(hook, '__qualname__', hook)}), "
                "which would be given log-probabilities in place of logits. Take the hook off, or shard the head with "
                "the model."
            )
    own = head.__dict__.get("forward")
    head.forward = function
    try:
        result = head(*inputs)
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own
    if result.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"The mixed precision of the sharded output embedding rounds log-probabilities to {result.dtype}. Shard "
            "it with MixedPrecisionPolicy(output_dtype=None)."
        )
    return result


def keep_scores_exact(fsdp_plugin: Any) -> None:
    """Have FSDP2 leave alone what modules return: accelerate's policy for bf16 has `output_dtype=bfloat16`, which
    would round every log-prob to 8 bits (a token's 5 nats to the nearest 1/32) before a loss sees it.

    Args:
        fsdp_plugin: `accelerator.state.fsdp_plugin`, before the model is prepared; its policy is replaced.
    """
    policy = fsdp_plugin.mixed_precision_policy
    if fsdp_plugin.fsdp_version == 2 and policy is not None and policy.output_dtype is not None:
        fsdp_plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def global_rows(parameter: Tensor) -> int:
    """The first dimension of a weight, wherever its shards lie (ZeRO-3 leaves a shape of 0 behind)."""
    return int(getattr(parameter, "ds_shape", parameter.shape)[0])


def _sharded_parts(head: nn.Module) -> Iterator[nn.Module]:
    """The modules in `head` whose own hooks gather."""
    fsdp: tuple[type, ...] = ()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        fsdp = (FSDPModule,)
        if isinstance(head, FullyShardedDataParallel):
            raise InputError(
                "FSDP version 1 has wrapped the output embedding by itself. Use version 2 (`fsdp_version: 2`; "
                "accelerate's configuration `fsdp2`)."
            )
    for module in head.modules():
        if isinstance(module, fsdp) or any(hasattr(p, "ds_id") for p in module.parameters(recurse=False)):
            yield module
