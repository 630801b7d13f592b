"""A digest of a model's weights that changes with any bit of them, cheap enough to take before every build.

Reads tensors where they are (CPU or GPU) and changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.schema import digest
from ..errors import InputError


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22  # words summed at a time: the sum is taken over an int64 copy, 32 MB
_PROBES = 256


def weights_digest(model: torch.nn.Module) -> str:
    """sha256 over every parameter and buffer of `model`, adapters included: name, shape, dtype, contents.

    Contents are the sum of the tensor's words read as integers, modulo 2^64, and 256 words at equal distances. The sum
    takes no rounding, so it is the same on every device and for any number of threads, and one changed bit anywhere
    changes it; the words catch a reordering, which a sum alone would not. Training an adapter for one step, or a full
    model in bfloat16 where most small updates round away, gives another digest.

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
    words = tensor.detach().contiguous().reshape(-1).view(_WORDS[tensor.element_size()])
    total = sum(int(chunk.sum(dtype=torch.int64)) for chunk in words.split(_CHUNK)) % (1 << 64) if words.numel() else 0
    stride = max(1, words.numel() // _PROBES)
    return total, words[::stride][:_PROBES].tolist()
