"""A digest of a model's weights that changes with any bit of them, cheap enough to take before every build.

Reads tensors where they are (CPU or GPU) and changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.schema import digest
from ..errors import InputError


_CHUNK = 1 << 24  # words summed at a time
_PROBES = 256


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 over every parameter and buffer of `model`, adapters included: name, shape, dtype, contents.

    Contents are the sum of the tensor's bytes read as 64-bit integers, modulo 2^64, and 256 of these words at equal
    distances. The sum takes no rounding, so it is the same on every device and for any number of threads, and one
    changed bit anywhere changes it; the words catch a reordering, which a sum alone would not. One training step of an
    adapter, or of a full model in bfloat16 where most small updates round away, gives another digest.

    Raises:
        InputError: weights that are not loaded (on the meta device).
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return digest([[name, list(t.shape), str(t.dtype), *_contents(name, t)] for name, t in sorted(state.items())])


def _contents(name: str, tensor: Tensor) -> tuple[int, list[int]]:
    if tensor.is_meta:
        raise InputError(
            f"The weight {name!r} is not loaded (meta device), so the model cannot be told from another. "
            "Load the model without offloading to disk."
        )
    data = tensor.detach().reshape(-1).contiguous()
    if data.storage_offset() * data.element_size() % 8:
        data = data.clone()  # a view as eight-byte words must begin at one
    data = data.view(torch.uint8)
    whole = len(data) // 8 * 8
    words = data[:whole].view(torch.int64)
    total = sum(int(chunk.sum()) for chunk in words.split(_CHUNK)) if whole else 0
    probes = words[:: max(1, len(words) // _PROBES)][:_PROBES]
    return total % (1 << 64), probes.tolist() + data[whole:].tolist()
