"""The models that the bench runs: SmolLM2-135M or a cut of it, random ones in the shape of larger ones, copies that
share their weights. Reads the embedded model; downloads nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


# random weights cost what trained ones do
SHAPES = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, heads=14, kv=2, vocab_size=151936),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, heads=12, kv=2, vocab_size=151936),
    "vocabulary": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, heads=4, kv=4, vocab_size=151936),
    "tiny": dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, heads=4, kv=2, vocab_size=320),
}
LORA_RANK = 16


@dataclass(frozen=True)
class Machine:
    """Where and in which precision everything runs, and which model: "embedded" or one of `SHAPES`."""

    device: torch.device
    dtype: torch.dtype
    model: str


def base_model(machine: Machine, *, layers: int | None = None, model: str | None = None) -> PreTrainedModel:
    """A fresh model on its device, frozen; `layers`: its first so many only."""
    name = model or machine.model
    if name == "embedded":
        from tuna_trl.loading import load_model

        base = load_model("embedded", dtype=machine.dtype, device_map=None)
    else:
        base = _random(**SHAPES[name]).to(machine.dtype)
    if layers is not None and layers < base.config.num_hidden_layers:
        base.model.layers = base.model.layers[:layers]
        base.config.num_hidden_layers = layers
        if getattr(base.config, "layer_types", None):
            base.config.layer_types = base.config.layer_types[:layers]
    return base.to(machine.device).requires_grad_(False)


def with_lora(base: PreTrainedModel) -> nn.Module:
    """A copy of `base` that shares its weights, with an adapter of its own: each side may teach its copy another
    forward, the weights are in memory once, and the adapters are equal."""
    from peft import get_peft_model

    shared = sharing_copy(base)
    torch.manual_seed(0)
    return get_peft_model(shared, lora_config()).train()


def sharing_copy(base: PreTrainedModel) -> PreTrainedModel:
    """A deep copy but for the parameters, which are the same objects."""
    return copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})


def lora_config():
    """Rank 16 on all linear layers, both factors random (a zero B would make half of the gradients zero), no
    dropout."""
    from peft import LoraConfig

    return LoraConfig(r=LORA_RANK, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0)


def _random(heads: int, kv: int, **sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)
