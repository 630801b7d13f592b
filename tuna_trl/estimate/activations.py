r"""What autograd keeps of a forward until the backward: a formula, term by term, of a Llama-like decoder layer.

Read off transformers 5.23 and torch 2.13 and held to what `saved_tensors_hooks` counts (tests/test_estimate.py).
T tokens go through the linear layers: unique tokens (prompts once) of a shared prompt, N (P + R) with padding for
rows. Bytes of an element: s of the residual stream (the embedding's dtype), c of what linear layers compute in (2
under autocast, else s), a of adapter weights. Per layer, times T unless said otherwise:

    norms      each norm of width w:     4 w   its input in float32 (the stream itself where s = 4) + 4 a row
                                       + s w   the normed input, where the norm's weight trains (4 w for Gemma)
    attention  q                         c H D
               k, v                      c 2 K D   (K key heads; H of them where a padded batch needs a mask)
               branches                  c 2 K D for every key of every branch, the prompt again for each (shared);
                                         on CUDA H instead of K: with a mask no kernel there takes grouped heads
               masks                     c for every entry of R x (P + R) of a branch, or L x L of a padded row
               output                    c H D, once more in another layout where segments were joined, + 4 H (lse)
               varlen (CUDA, 16 bit)     keys of all segments instead of k, v and branches; no mask, no joining
    mlp        gate, act(gate), up       3 c F   (F of what a token visits; 1 c F without a gate)
    inputs     of linear layers:         nothing where the layer is frozen without an adapter
               trained, or LoRA          the input once for all layers that share it; or, where it is cast (autocast,
                                         adapters in another dtype) or dropped out, once for each of them
               LoRA dropout              + the mask: a byte an element on CUDA, a bytes on a CPU
               LoRA                      + rank, of the output of A
               8-bit base                the input (bitsandbytes keeps it)

Under autocast a 32-bit weight is cast and the copy kept: 2 bytes a parameter of the linear layers. Once a model: cos
and sin of positions, the final norm. With activation checkpointing a layer keeps its input, s d T, and one layer at a
time holds the rest. The head ([`tuna_trl.head`]) keeps c d a scored token, and, where it trains and all of it fits
into `KEPT_BYTES`, c V a scored token.

The terms that are CUDA's alone (varlen, repeated heads, byte masks of dropout) were read, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..head import KEPT_BYTES
from .shape import Layer, Linear, Norm, Shape
from .workload import Tokens


@dataclass(frozen=True)
class Execution:
    """How the model runs. `autocast`: bytes of the mixed precision's dtype, None without one. `device`: "cuda" or
    "cpu". `varlen`: whether a variable-length kernel runs on CUDA where dtypes allow it."""

    autocast: int | None = None
    checkpointing: bool = True
    device: str = "cuda"
    varlen: bool = True


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps for one layer, by what they are of."""

    norms: float
    attention: float
    mlp: float
    inputs: float

    @property
    def total(self) -> float:
        return self.norms + self.attention + self.mlp + self.inputs


def kept_by_layer(layer: Layer, shape: Shape, tokens: Tokens, execution: Execution) -> Kept:
    """The bytes of the table above for one layer, without checkpointing."""
    stream, compute = shape.weight_bytes, execution.autocast or shape.weight_bytes
    # a quantised layer's output has the dtype of its input
    outer = stream if shape.quantised_bits else compute
    norms = sum(_norm(norm, stream) for norm in layer.norms) * tokens.tokens
    mlp = (3 if layer.gated else 1) * outer * layer.inner * tokens.tokens
    return Kept(norms, _attention(layer, shape, tokens, execution), mlp, _inputs(layer, shape, tokens, execution))


def _norm(norm: Norm, stream: int) -> float:
    """Bytes a token."""
    if not norm.root_mean_square:
        return (stream * norm.width + 8) * norm.rows
    trained = (4 if norm.double else stream) * norm.width if norm.trained else 0
    return (4 * norm.width + 4 + trained) * norm.rows


def _attention(layer: Layer, shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """Bytes of all tokens."""
    compute = execution.autocast or shape.weight_bytes
    queries = compute * layer.heads * layer.head_dim * tokens.tokens
    pair = 2 * compute * layer.head_dim  # of a key and its value, a head
    output = queries + 4 * layer.heads * tokens.tokens
    if runs_varlen(layer, shape, tokens, execution):
        return queries + pair * layer.key_heads * tokens.segment_keys + output
    if tokens.layout == "shared_prompt":
        repeated = layer.heads if execution.device == "cuda" else layer.key_heads
        keys = pair * (layer.key_heads * tokens.tokens + repeated * tokens.branch_keys)
        masks = compute * (tokens.cells + tokens.trunk_cells(layer.window))
        return queries + keys + masks + output
    masked = tokens.padded or (layer.window is not None and layer.window < tokens.length)
    heads = layer.heads if masked else layer.key_heads
    masks = compute * tokens.rows * tokens.length**2 if masked else 0
    return queries + pair * heads * tokens.tokens + masks + output


def runs_varlen(layer: Layer, shape: Shape, tokens: Tokens, execution: Execution) -> bool:
    """Whether [`tuna_trl.attention`] calls its variable-length kernel for this layer: it asks for 16-bit queries, and
    autocast makes them of a 32-bit model's too."""
    shared = tokens.layout == "shared_prompt" and execution.device == "cuda"
    return shared and execution.varlen and 2 in (shape.weight_bytes, execution.autocast) and layer.head_dim <= 256


def _inputs(layer: Layer, shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """Bytes of the inputs of linear layers, of all tokens."""
    groups: dict[str, list[Linear]] = {}
    for linear in layer.linears:
        groups.setdefault(linear.group, []).append(linear)
    joined = tokens.layout == "shared_prompt" and not runs_varlen(layer, shape, tokens, execution)
    total = 0.0
    for name, members in groups.items():
        shared = False  # whether the group's input itself is kept, once for all
        for linear in members:
            extra, whole = _input(linear, shape, execution)
            total += extra
            shared = shared or whole
        # the attention's output is what the layer behind it reads, where nothing was joined in between
        if shared and (name != "attention out" or joined):
            total += _arrives(members[0], shape, execution) * members[0].inputs
    return total * tokens.tokens


def _arrives(linear: Linear, shape: Shape, execution: Execution) -> int:
    """Bytes an element of a linear layer's input as it arrives."""
    compute = execution.autocast or shape.weight_bytes
    if linear.of_stream:
        return shape.weight_bytes
    return compute if linear.group == "attention out" or not shape.quantised_bits else shape.weight_bytes


def _input(linear: Linear, shape: Shape, execution: Execution) -> tuple[float, bool]:
    """(bytes a token that this layer keeps for itself, whether it keeps its input as it arrives)."""
    arrives = _arrives(linear, shape, execution)
    own, whole = 0.0, False
    if linear.trained:
        final = execution.autocast or arrives
        own, whole = (0.0, True) if final == arrives else (final * linear.inputs, False)
    elif shape.quantised_bits == 8:
        whole = True
    if linear.rank:
        final = execution.autocast or linear.adapter_bytes
        if linear.dropout:
            mask = 1 if execution.device == "cuda" else linear.adapter_bytes
            own += (final + mask) * linear.inputs
        elif linear.adapter_bytes != arrives or final != arrives:
            own += final * linear.inputs
        else:
            whole = True
        own += final * linear.rank
    return own, whole


def cast_weights(shape: Shape, execution: Execution, layers: int | None = None) -> float:
    """Bytes of the 16-bit copies of 32-bit weights that autocast makes, of all layers or of so many."""
    if execution.autocast is None or execution.autocast == shape.weight_bytes:
        return 0.0
    copied = 0 if shape.quantised_bits else shape.linear_weights
    adapters = sum(x.rank * (x.inputs + x.outputs) for layer in shape.layers for x in layer.linears)
    part = 1.0 if layers is None else layers / max(len(shape.layers), 1)
    return execution.autocast * (copied + adapters) * part


def kept_once(shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """Bytes that do not grow with the number of layers: positions, the final norm, and what the head keeps."""
    layer = shape.layers[0]
    positions = 2 * shape.weight_bytes * layer.head_dim * (tokens.length if tokens.layout == "rows" else tokens.tokens)
    final = _norm(Norm(shape.hidden, 1, shape.full, False, True), shape.weight_bytes) * tokens.tokens
    return positions + final + head_kept(shape, tokens, execution)


def head_kept(shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """Bytes that the head keeps for its backward."""
    compute = execution.autocast or shape.weight_bytes
    if not shape.head_plain:
        return shape.weight_bytes * shape.hidden * tokens.scored
    slopes = compute * shape.vocabulary * tokens.scored
    slopes = slopes if shape.head_trained and slopes <= KEPT_BYTES else 0
    return compute * shape.hidden * tokens.scored + slopes


def kept(shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """Bytes that autograd keeps at the end of the forward."""
    layers: float
    if execution.checkpointing:
        layers = shape.weight_bytes * shape.hidden * tokens.tokens * len(shape.layers)
    else:
        layers = sum(kept_by_layer(layer, shape, tokens, execution).total for layer in shape.layers)
        layers += cast_weights(shape, execution)
    return layers + kept_once(shape, tokens, execution)
