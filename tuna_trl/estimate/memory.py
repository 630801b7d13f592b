"""The memory of one training step, term by term, and its peak: activations and gradients are not largest together.

The peak is the largest of

* forward's end: weights, optimizer state, gradients of earlier micro-batches, activations, a chunk of the head;
* backward's end: weights, optimizer state, all gradients, what one layer works with;
* the optimizer's step: weights, optimizer state, gradients, and what the optimizer works with.

Activations shrink in the backward as gradients grow, both layer by layer, so nothing in between is larger. One process
is counted: DDP adds a copy of the gradients (its buckets), FSDP and DeepSpeed divide the first terms; neither is here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import InputError
from ..head import CHUNK_BYTES, KEPT_BYTES
from .activations import Execution, cast_weights, kept, kept_by_layer
from .shape import Shape
from .workload import Tokens


GIB = 2**30
CARDS = (8, 12, 16, 24, 32, 80)  # GiB
# assumed, not measured: blocks that the caching allocator holds and cannot use, and the CUDA context
FRAGMENTATION = 0.05
CONTEXT = 0.5 * GIB


@dataclass(frozen=True)
class Optimizer:
    """Bytes a trained parameter. `state`: None = as many float copies (`copies`) as the parameter has bytes. `work`:
    temporary, in parameters' bytes. `paged`: the state moves to the host when the card is full."""

    copies: int = 0
    state: float = 0.0
    work: float = 0.0
    paged: bool = False


_ADAM_8BIT = Optimizer(state=2.0)
_LION_8BIT = Optimizer(state=1.0)
# `work` of the optimizers without one kernel for all: torch's foreach updates make a temporary of each parameter
OPTIMIZERS = {
    "adamw_torch": Optimizer(copies=2, work=1.0),
    "adamw_torch_fused": Optimizer(copies=2),
    "adamw_8bit": _ADAM_8BIT,
    "adamw_bnb_8bit": _ADAM_8BIT,
    "adamw_torch_8bit": _ADAM_8BIT,
    "adamw_torch_4bit": Optimizer(state=1.0),
    "paged_adamw_8bit": Optimizer(state=2.0, paged=True),
    "paged_adamw_32bit": Optimizer(state=8.0, paged=True),
    "lion_8bit": _LION_8BIT,
    "lion_32bit": Optimizer(state=4.0),
    "paged_lion_8bit": Optimizer(state=1.0, paged=True),
    "paged_lion_32bit": Optimizer(state=4.0, paged=True),
    "adafactor": Optimizer(work=0.0),
    "sgd": Optimizer(),
    "adagrad": Optimizer(copies=1, work=1.0),
    "rmsprop": Optimizer(copies=1, work=1.0),
}


@dataclass(frozen=True)
class StepMemory:
    """Bytes. The terms are what is listed; `peak` is the largest moment, not their sum."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    head: float
    working: float
    peak: float

    def on_card(self) -> float:
        """What a card must have: the peak, what the allocator loses, and the CUDA context."""
        return self.peak * (1 + FRAGMENTATION) + CONTEXT

    def fits(self, card: float) -> bool:
        """Whether a card of so many bytes holds it."""
        return self.on_card() <= card

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "on_card": self.on_card()}


def step_memory(
    shape: Shape, tokens: Tokens, execution: Execution, *, optim: str = "adamw_torch_fused", accumulation: int = 1
) -> StepMemory:
    """The memory of a step on one device.

    Args:
        tokens: of the heaviest micro-batch. accumulation: micro-batches a step; behind the first, gradients are there.

    Raises:
        InputError: an optimizer whose state is not known here.
    """
    weights = shape.frozen_bytes + shape.trained_bytes
    gradients = shape.trained_bytes
    optimizer, extra = optimizer_bytes(shape, optim)
    activations = kept(shape, tokens, execution)
    head_forward, head_backward = head_working(shape, tokens, execution)
    working = layer_working(shape, tokens, execution)
    earlier = gradients if accumulation > 1 else 0
    # trained 32-bit weights are cast once and cached for the whole forward; without checkpointing they are kept anyway
    cached = cast_weights(shape, execution) if shape.full and execution.checkpointing else 0.0
    forward = earlier + activations + max(head_forward + cached, head_backward, working)
    backward = gradients + working
    peak = weights + optimizer + max(forward, backward, gradients + extra)
    return StepMemory(weights, optimizer, gradients, activations, max(head_forward, head_backward), working, peak)


def optimizer_bytes(shape: Shape, optim: str) -> tuple[float, float]:
    """(state, temporary of its step), bytes on the device; a paged state counts as none."""
    kind = OPTIMIZERS.get(optim)
    if kind is None:
        raise InputError(
            f"`optim` is {optim!r}, whose memory is not known here; expected one of {', '.join(sorted(OPTIMIZERS))}."
        )
    state = kind.copies * shape.trained_bytes + kind.state * shape.trained_parameters
    return (0.0 if kind.paged else state), kind.work * shape.trained_bytes


def head_working(shape: Shape, tokens: Tokens, execution: Execution) -> tuple[float, float]:
    """(forward, backward): what the chunked head holds at once, beside what it keeps ([`tuna_trl.head`]).

    A chunk of float32 logits, worked on in place, and 16-bit logits beside it (with a soft cap, three more); the
    weight once more where autocast casts it. Backward of a trained head: the chunk times the loss's gradient, and the
    weight's float32 gradient, with one chunk's product beside it in 16 bit.
    """
    chunk = min(max(16, CHUNK_BYTES // (4 * shape.vocabulary)), max(tokens.scored, 1)) * shape.vocabulary * 4.0
    compute = execution.autocast or shape.weight_bytes
    copy = compute * shape.head if compute != shape.weight_bytes else 0.0
    once = chunk * ((1 if compute == 4 else 1.5) + (3 if shape.softcap else 0))
    if not shape.head_plain:  # checkpointed chunks: logits, their exponentials and gradients
        return 3 * chunk, 4 * chunk
    if not shape.head_trained:
        return once + copy, 0.0
    product = compute * shape.head if compute < 4 else 0.0
    kept_slopes = compute * shape.vocabulary * tokens.scored <= KEPT_BYTES
    scaled = chunk * ((1 if compute == 4 else 1.5) + (0 if kept_slopes else 1))
    return once + copy, copy + 4 * shape.head + max(scaled, product)


def layer_working(shape: Shape, tokens: Tokens, execution: Execution) -> float:
    """What a layer holds in its backward, beside what is kept: the gradient of one MLP activation and of the stream;
    with adapters in a wider dtype that activation in it too; a quantised weight, whole again; with checkpointing,
    where the layer is run again, all that it would keep."""
    compute = execution.autocast or shape.weight_bytes
    largest = max(shape.layers, key=lambda layer: kept_by_layer(layer, shape, tokens, execution).total)
    own = 0.0
    if execution.checkpointing:
        own = kept_by_layer(largest, shape, tokens, execution).total + cast_weights(shape, execution, 1)
    wider = max((x.adapter_bytes for x in largest.linears if x.adapter_bytes > compute), default=0)
    dequantised = compute * shape.largest_linear if shape.quantised_bits else 0.0
    return own + ((compute + wider) * largest.inner + 4 * shape.hidden) * tokens.tokens + dequantised
