"""Which batch layout a model can train in: asked of the model itself, once, on a dozen tokens.

`"rows"` is one padded row a response and works with every model. `"shared_prompt"` is exact or refused: a model must
take the plan in every layer, with the sliding windows its config names, and give the hidden states of the padded rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .attention import IMPLEMENTATIONS, check_followed, plan_arguments
from .config import BATCH_LAYOUTS
from .errors import InputError
from .packing import pack
from .scoring import evaluating, install


logger = logging.get_logger(__name__)

# a branch that loses its prompt or sees another one is off by a large part of its norm; rounding is not
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}


def choose_layout(model: nn.Module, wanted: str = "auto", *, against: str | None = None) -> str:
    """The layout that `model` (PEFT or not) is scored in, `"shared_prompt"` or `"rows"`; sets the model up for it.

    Args:
        wanted: "auto" takes the shared prompt where it is exact, and else says in one line why not.
        against: what speaks against sharing beside the model (a training argument), as half a sentence.

    Raises:
        InputError: `wanted="shared_prompt"`, and this model cannot.
    """
    if wanted not in BATCH_LAYOUTS:
        raise InputError(f"`batch_layout` is {wanted!r}, expected one of {', '.join(BATCH_LAYOUTS)}.")
    if wanted == "rows":
        return "rows"
    base = install(model)
    reason = against or why_not_shared(base)
    if reason is None:
        return "shared_prompt"
    if wanted == "shared_prompt":
        raise InputError(f'`batch_layout="shared_prompt"` is not possible: {reason}. Use "auto" or "rows".')
    logger.warning(f"Responses are scored in padded rows, one each, prompts repeated: {reason}.")
    return "rows"


def argument_against(args: Any) -> str | None:
    """The training argument under which a packed row would not train as padded rows do; None = there is none."""
    if args.neftune_noise_alpha:
        return "`neftune_noise_alpha` scales its noise by the length of a row (arXiv 2310.05914), here the batch's"
    if args.torch_compile:
        return "`torch_compile` would compile anew for every batch"
    return None


def why_not_shared(base: nn.Module) -> str | None:
    """None if `base` follows a plan exactly, and is now set to an attention that does; else the reason, and nothing
    has changed. Sharded parameters cannot be asked: such a model is checked at its first step instead."""
    if getattr(base, "_tuna_shares", False):
        return None
    config = base.config.get_text_config()
    own = base.config._attn_implementation
    if reason := _static_reason(base, config):
        return reason
    planned = "tuna_eager" if own == "eager" else "tuna_sdpa"
    reason = _reason_to_not_follow(base, config, planned)
    if reason and not _windows(config) and not own.startswith(("flash", "flex")):
        # the attention gets no plan: a block mask does too, where no window has to be cut out of it
        reason = None if _reason_to_not_follow(base, config, own) is None else reason
    if reason is None:
        base._tuna_shares = True
    return reason


def _static_reason(base: nn.Module, config: Any) -> str | None:
    name = type(base).__name__
    if config.is_encoder_decoder:
        return f"{name} has an encoder"
    if base.base_model is base:
        return f"{name} has no backbone apart from its head"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{name} has layers of kind {sorted(kinds)[0]}"
    own = base.config._attn_implementation
    if own is None or not own.startswith(("sdpa", "eager", "flash_attention", "flex_attention", "tuna_")):
        return f"{name} runs the attention {own!r}"
    return None


def _reason_to_not_follow(base: nn.Module, config: Any, implementation: str) -> str | None:
    """Set the attention, ask the model, and set it back if the answer is no."""
    own = base.config._attn_implementation
    name = type(base).__name__
    reason: str | None
    try:
        if implementation != own:
            if not base._can_set_attn_implementation():
                return f"{name} does not use transformers' attention interface"
            base.set_attn_implementation(implementation)
        if base.config._attn_implementation != implementation:
            reason = f"{name} does not take another attention"
        elif _sharded(base):
            reason = None if implementation in IMPLEMENTATIONS else f"{name} is sharded and cannot be asked"
        else:
            reason = _difference(base, config)
    except Exception as error:  # noqa: BLE001 - whatever a foreign model does with a plan, it is a no, and is said
        reason = f"{name} does not follow the plan ({str(error).strip().splitlines()[0] if str(error) else error!r})"
    if reason is not None and base.config._attn_implementation != own:
        base.set_attn_implementation(own)
    return reason


def _difference(base: nn.Module, config: Any) -> str | None:
    """Run three branches over a prompt, packed and alone, and compare."""
    name = type(base).__name__
    batch = _question(base)
    packed = pack(batch)
    planned = base.config._attn_implementation in IMPLEMENTATIONS
    with evaluating(base), torch.no_grad():
        dtype = base.get_input_embeddings()(packed.input_ids).dtype
        rows = base.base_model(
            input_ids=batch["input_ids"].flatten(0, 1), attention_mask=batch["attention_mask"].flatten(0, 1)
        )
        shared = base.base_model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            use_cache=False,
            **plan_arguments(base, packed.plan, packed.input_ids.device, dtype),
        )
    check_followed(base, packed.plan)
    if planned:
        named, seen = _windows(config), [w for w in packed.plan.windows if w is not None]
        if sorted(named) != sorted(seen):
            return f"{name} hands its attention other sliding windows than its config names"
    row, place = batch["attention_mask"].flatten(0, 1).nonzero(as_tuple=True)
    packed_place, row, place = (t.to(rows.last_hidden_state.device) for t in (packed.place(row, place), row, place))
    expected = rows.last_hidden_state[row, place].double()
    found = shared.last_hidden_state[0, packed_place].double()
    error = ((found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)).max().item()
    if not error < _TOLERANCE.get(dtype, 0.1):
        return f"{name} gives other hidden states behind a shared prompt (relative difference {error:.1e})"
    return None


def _question(base: nn.Module) -> dict[str, Tensor]:
    """Two instructions with prompts of 5 and 3 tokens and responses of 4, 2, 3 and 1, 3, 0."""
    device = base.get_input_embeddings().weight.device
    lengths = torch.tensor([[9, 7, 8], [4, 6, 0]])
    prompts = torch.tensor([5, 3])
    ids = (torch.arange(2 * 3 * 9).view(2, 3, 9) * 7 + 3) % min(base.get_input_embeddings().weight.shape[0], 97)
    in_prompt = torch.arange(9) < prompts.view(2, 1, 1)
    ids = torch.where(in_prompt, ids[:, :1], ids)
    mask = (torch.arange(9) < lengths.unsqueeze(2)).long()
    batch = {"input_ids": ids, "attention_mask": mask, "prompt_lengths": prompts}
    return {name: value.to(device) for name, value in batch.items()}


def _windows(config: Any) -> list[int]:
    """The sliding windows that the config names, one entry a layer that has one."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return []
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [window] * sum(kind == "sliding_attention" for kind in kinds)
    return [window] * config.num_hidden_layers if getattr(config, "use_sliding_window", True) else []


def _sharded(base: nn.Module) -> bool:
    return any(p.is_meta or type(p.data).__name__ == "DTensor" or hasattr(p, "ds_id") for p in base.parameters())
