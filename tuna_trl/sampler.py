"""The order of training: batches of instructions of like length, the longest first, the same again after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class GroupedByLength(Sampler[int]):
    """Draws instructions at random, but so that neighbours have like lengths: processes then wait little for each
    other, and padded rows hold little padding. The longest instruction is in the very first batch, so that a run that
    does not fit into memory says so at its first step.

    Each epoch's order depends on `seed` and the epoch alone (transformers' LengthGroupedSampler draws from the global
    generator, so a resumed run sees another order). Batches hold a fixed number of instructions; none is split.

    Args:
        lengths: tokens of each instruction, the prompt and all responses.
        batch_size: instructions of one optimiser step.

    >>> sampler = GroupedByLength([3, 9, 4, 8], batch_size=2, seed=0)
    >>> sorted(sampler)
    [0, 1, 2, 3]
    >>> next(iter(sampler))
    1
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        if not self._lengths:
            return iter(())
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))
