"""What a model is made of, read from a copy on the meta device: no weight is loaded or drawn.

Parameters by dtype and by whether they train, and each decoder layer as the linear layers, norms and attention heads
that [`tuna_trl.estimate.activations`] counts saved tensors by.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import InputError


# the linear layers whose input is no norm's output; all others of a block share one input
_ATTENTION_OUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_MLP_OUT = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2")
_BLOCK = 64  # weights a scale in bitsandbytes' 4-bit blocks; 256 scales a block where those are quantised too


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block. `rank`, `adapter_bytes` (a parameter), `dropout`: of its LoRA adapter, if any.

    `group` is equal for layers with the same input; `of_stream`: that input is a norm's output.
    """

    name: str
    inputs: int
    outputs: int
    group: str
    of_stream: bool
    trained: bool
    rank: int = 0
    adapter_bytes: int = 0
    dropout: float = 0.0


@dataclass(frozen=True)
class Norm:
    """A norm over `width`, `rows` times a token; `double`: it multiplies by its weight in float32 (Gemma)."""

    width: int
    rows: int
    trained: bool
    double: bool
    root_mean_square: bool


@dataclass(frozen=True)
class Layer:
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    heads: int
    key_heads: int
    head_dim: int
    window: int | None
    inner: int  # width of the MLP's activations, of all experts that a token visits
    gated: bool


@dataclass(frozen=True)
class Shape:
    """A model with its adapter. All parameter figures are counts, but for `weights_bytes`.

    `frozen_bytes`: of what does not train, quantised or not. `trained`: (count, bytes a parameter) groups. `head`:
    parameters of the output embedding; `tied`: it shares them with the embedding. `rough`: why the layer formula is
    only rough for this family, or None.
    """

    name: str
    layers: tuple[Layer, ...]
    hidden: int
    vocabulary: int
    positions: int | None
    weight_bytes: int
    parameters: int
    frozen_bytes: float
    quantised_bits: int | None
    trained: tuple[tuple[int, int], ...]
    linear_weights: int
    largest_linear: int
    head: int
    tied: bool
    head_trained: bool
    head_plain: bool
    softcap: bool
    embedding_trained: bool
    rough: str | None

    @property
    def trained_parameters(self) -> int:
        return sum(count for count, _ in self.trained)

    @property
    def trained_bytes(self) -> int:
        return sum(count * size for count, size in self.trained)

    @property
    def full(self) -> bool:
        """Whether the weights themselves train, rather than an adapter."""
        return any(linear.trained for layer in self.layers for linear in layer.linears)


def shape_of(
    config: Any, *, dtype: Any = "float32", peft_config: Any = None, bits: int | None = None, double: bool = False
) -> Shape:
    """The shape of a model by its transformers config.

    Args:
        dtype: of the weights, a name or a torch dtype; "auto" is the config's own.
        peft_config: of an adapter to train, not changed; None trains all weights.
        bits: 4 (nf4 or fp4) or 8, as bitsandbytes quantises the linear layers; None does not.
        double: 4-bit scales are quantised too.

    Raises:
        InputError: transformers cannot build a causal language model of the config, or peft no adapter for it.
    """
    dtype = _dtype(dtype, config)
    model = _on_meta(config, dtype)
    base = model
    if peft_config is not None:
        from peft import get_peft_model

        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
                model = get_peft_model(model, copy.deepcopy(peft_config))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise InputError(f"The adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error
    return _read(model, base, dtype, bits, double)


def _dtype(dtype: Any, config: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in (None, "auto"):
        found = config.dtype or torch.float32
        return getattr(torch, found) if isinstance(found, str) else found
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"`dtype` is {dtype!r}, expected auto, float32, bfloat16 or float16.")
    return found


def _on_meta(config: Any, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # the weights are built plain; what quantisation saves is counted from `bits`
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"No causal language model can be built of the config ({config.model_type}): {reason}") from (
            error
        )


def _read(model: nn.Module, base: nn.Module, dtype: torch.dtype, bits: int | None, double: bool) -> Shape:
    text = base.config.get_text_config()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    head_weight = _own_weight(head)
    kept = {id(p) for module in (head, embedding) for p in module.parameters()}
    quantised = set()
    if bits is not None:
        quantised = {id(w) for m in _linears(model) if id(w := _own_weight(m)) not in kept and not w.requires_grad}
    frozen = 0.0
    trained: dict[int, int] = {}
    for name, parameter in model.named_parameters():
        size, count = parameter.element_size(), parameter.numel()
        if parameter.requires_grad:
            # a quantised base has its adapter in bf16 (tuna_trl.adapters)
            size = 2 if bits is not None and "lora_magnitude_vector" not in name else size
            trained[size] = trained.get(size, 0) + count
        elif bits is not None and id(parameter) in quantised:
            frozen += _quantised_bytes(parameter, bits, double)
        else:
            frozen += size * count
    blocks = _blocks(model, text.num_hidden_layers)
    weights = [_own_weight(m) for block in blocks for m in _linears(block)]
    return Shape(
        name=type(base).__name__,
        layers=tuple(_layer(block, text, i, bits) for i, block in enumerate(blocks)),
        hidden=text.hidden_size,
        vocabulary=head_weight.shape[0],
        positions=getattr(text, "max_position_embeddings", None),
        weight_bytes=dtype.itemsize,
        parameters=sum(p.numel() for p in model.parameters()),
        frozen_bytes=frozen,
        quantised_bits=bits,
        trained=tuple(sorted((count, size) for size, count in trained.items())),
        linear_weights=sum(w.numel() for w in weights),
        largest_linear=max((w.numel() for w in weights), default=0),
        head=head_weight.numel(),
        tied=bool(text.tie_word_embeddings),
        head_trained=any(p.requires_grad for p in head.parameters()),
        head_plain=type(head) is nn.Linear,
        softcap=bool(getattr(text, "final_logit_softcapping", None)),
        embedding_trained=any(p.requires_grad for p in embedding.parameters()),
        rough=_rough(base, blocks),
    )


def _own_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a layer, beneath an adapter or a copy that is saved."""
    for name in ("base_layer", "original_module"):
        module = getattr(module, name, module)
    return module.weight


def _linears(module: nn.Module) -> list[nn.Module]:
    """Linear layers, each with its adapter as one; adapters' own matrices are not among them."""
    found = []
    for name, child in module.named_modules():
        inner = any(part in name for part in ("lora_", ".base_layer", "modules_to_save", "original_module"))
        if not inner and _is_linear(getattr(child, "base_layer", child)):
            found.append(child)
    return found


def _is_linear(module: nn.Module) -> bool:
    # Conv1D is GPT-2's linear layer, whose weight is transposed
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _quantised_bytes(weight: torch.Tensor, bits: int, double: bool) -> float:
    """4 bit: half a byte, and a scale a block of 64 (float32, or a byte and a float32 for 256 of them); 8 bit: a byte,
    and a float32 scale a row (bitsandbytes 0.50)."""
    count = weight.numel()
    if bits == 8:
        return count + 4 * weight.shape[0]
    blocks = -(-count // _BLOCK)
    return count / 2 + (blocks + 4 * -(-blocks // 256) if double else 4 * blocks)


def _blocks(model: nn.Module, layers: int) -> list[nn.Module]:
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return list(module)
    raise InputError(f"{type(model).__name__} has no list of {layers} decoder layers, so its memory is not known.")


def _layer(block: nn.Module, text: Any, index: int, bits: int | None) -> Layer:
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kinds = getattr(text, "layer_types", None)
    sliding = kinds[index] == "sliding_attention" if kinds else getattr(text, "use_sliding_window", True)
    linears, gated = [], False
    for name, module in _named_linears(block):
        last = name.rpartition(".")[2]
        attends = any(word in name for word in ("attn", "attention"))
        of_stream = last not in (_ATTENTION_OUT if attends else _MLP_OUT)
        gated = gated or "gate" in last
        linears.append(_linear(name, module, of_stream, ("attention" if attends else "mlp"), bits))
    inner = max((x.inputs for x in linears if x.group == "mlp out"), default=0)
    experts = getattr(text, "num_experts_per_tok", None)
    if not inner:  # fused experts are no linear layers
        width = getattr(text, "moe_intermediate_size", None) or getattr(
            text, "intermediate_size", 4 * text.hidden_size
        )
        inner, gated = width * (experts or 1), True
    return Layer(
        linears=tuple(linears),
        norms=tuple(_norms(block, heads, key_heads, head_dim)),
        heads=heads,
        key_heads=key_heads,
        head_dim=head_dim,
        window=getattr(text, "sliding_window", None) if sliding else None,
        inner=inner,
        gated=gated,
    )


def _named_linears(block: nn.Module) -> list[tuple[str, nn.Module]]:
    names = {id(module): name for name, module in block.named_modules()}
    return [(names[id(module)], module) for module in _linears(block)]


def _linear(name: str, module: nn.Module, of_stream: bool, part: str, bits: int | None) -> Linear:
    weight = _own_weight(module)
    outputs, inputs = (
        weight.shape if isinstance(getattr(module, "base_layer", module), nn.Linear) else weight.shape[::-1]
    )
    rank, adapter_bytes, dropout = 0, 0, 0.0
    for key, matrix in (getattr(module, "lora_A", None) or {}).items():
        rank, adapter_bytes = matrix.weight.shape[0], 2 if bits is not None else matrix.weight.element_size()
        dropout = getattr(module.lora_dropout[key], "p", 0.0)
    return Linear(
        name=name,
        inputs=inputs,
        outputs=outputs,
        group=f"{part} {'in' if of_stream else 'out'}",
        of_stream=of_stream,
        trained=weight.requires_grad,
        rank=rank,
        adapter_bytes=adapter_bytes,
        dropout=dropout,
    )


def _norms(block: nn.Module, heads: int, key_heads: int, head_dim: int) -> list[Norm]:
    found = []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or not isinstance(weight, torch.Tensor) or weight.dim() != 1:
            continue
        rows = 1
        if weight.shape[0] == head_dim and "norm" in name:
            rows = heads if "q_" in name or "query" in name else key_heads if "k_" in name or "key" in name else 1
        kind = type(module).__name__
        found.append(
            Norm(weight.shape[0], rows, weight.requires_grad, kind.startswith("Gemma"), not kind.endswith("LayerNorm"))
        )
    return found


def _rough(base: nn.Module, blocks: list[nn.Module]) -> str | None:
    text = base.config.get_text_config()
    if getattr(text, "num_experts_per_tok", None) or getattr(text, "num_local_experts", None):
        return "a mixture of experts is counted as the experts that a token visits, without the routing"
    if not any(x.of_stream for block in blocks for x in [*_layer(block, text, 0, None).linears]):
        return f"{type(base).__name__}'s layers hold no linear layers that are known here"
    others = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        return f"layers of kind {sorted(others)[0]} are counted as attention"
    return None
