"""Adapters: wrapping a model with LoRA as TRL's trainers do, and merging one back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InputError


if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


def wrap_with_adapter(model: nn.Module, peft_config: Any, args: TrainingArguments) -> nn.Module:
    """`model` with a fresh adapter, or as it is when `peft_config` is None; then made ready for training.

    As TRL's trainers: input gradients for activation checkpointing (transformers#42489), adapter weights of a 4- or
    8-bit base in bf16 (QLoRA, arXiv 2305.14314 §3) but for DoRA magnitudes, whose updates bf16 would swallow.

    Raises:
        TypeError: `peft_config` is no `PeftConfig`.
        InputError: `model` has an adapter already.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    if peft_config is not None:
        if not isinstance(peft_config, PeftConfig):
            raise TypeError(
                f"`peft_config` must be a peft.PeftConfig (peft.LoraConfig, say), got {type(peft_config).__name__}."
            )
        if isinstance(model, PeftModel):
            raise InputError(
                "`model` is a PeftModel and `peft_config` is given too. To train the adapter that is there, leave "
                "`peft_config` out; to start a new one, pass `model.merge_and_unload()`."
            )
        if peft_config.is_prompt_learning:
            raise InputError(
                f"`peft_config`: {type(peft_config).__name__} puts virtual tokens in front of every sequence, and "
                "the scored positions would shift. Use LoRA or another adapter that changes weights."
            )
        model = get_peft_model(model, peft_config)
    if isinstance(model, PeftModel):
        if args.activation_checkpointing:
            model.enable_input_require_grads()
        if _is_quantised(model):
            import torch

            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_magnitude_vector" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _is_quantised(model: nn.Module) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))
