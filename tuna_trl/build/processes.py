"""This process among those that `accelerate launch` or `torchrun` started: read from the environment, nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Share:
    """Process `rank` of `world`. The first one writes the dataset, the others only draw."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def my_share() -> Share:
    """The share of this process, by the variables that `accelerate launch` and `torchrun` set.

    Raises:
        InputError: the processes are on several machines, which cannot share a journal.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if local != world:
        raise InputError(
            f"{world} processes were launched, {local} of them on this machine: a journal cannot be shared between "
            "machines. Launch on one machine, or use --engine ray, which samples across machines."
        )
    return Share(int(os.environ.get("RANK", "0")), world)
