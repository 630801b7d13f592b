"""What a build streams, split by split: collected into a dataset, or put into a folder by one of several processes.

Knows neither teachers nor responses; writes the folder, and a temporary file for what does not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..data.schema import ranked_features
from ..errors import InputError
from .journal import Journal
from .processes import Share


if TYPE_CHECKING:
    from datasets import DatasetDict


class Streamed(Protocol):
    """A build or a ranking whose input is checked."""

    def journal(self) -> Journal: ...

    def splits(self, journal: Journal) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
        """Name and rows of each split; the rows of one before the next."""
        ...


def collected(build: Streamed) -> DatasetDict:
    """All rows; beyond a thousand memory-mapped from a temporary file, which goes when the process ends."""
    from datasets import DatasetDict

    from ..data.parquet import spooled

    features, result = ranked_features(), DatasetDict()
    with build.journal() as journal:
        for split, rows in build.splits(journal):
            result[split] = spooled(rows, features)
    return result


def written(build: Streamed, path: str | Path, share: Share, card: Mapping[str, Any] | None) -> Path:
    """The absolute path of the folder, which the first process writes; the others work until nothing is left to begin,
    and return perhaps before it stands."""
    from ..data.hub import stream_ranked

    with build.journal() as journal:
        if share.first:
            return stream_ranked(build.splits(journal), path, card=card)
        for _, rows in build.splits(journal):
            for _ in rows:
                pass
    return Path(path).expanduser().absolute()


def check_share(share: Share, journal: str | Path | None, one_process: str | None) -> None:
    """Refuse several processes where they cannot share the work.

    Args:
        journal: the config's.
        one_process: why this teacher is asked from one process; None: it is not.

    Raises:
        InputError: there are several, and no journal to share or such a reason.
    """
    if share.world > 1 and journal is None:
        raise InputError(f"{share.world} processes share their work in a journal: set `journal` to a file.")
    if share.world > 1 and one_process is not None:
        raise InputError(one_process)


def check_least(config: Any, least: Mapping[str, float]) -> None:
    """Refuse a number below the least that its field may be; None passes, and an infinite `max_cost`.

    Raises:
        InputError: names config, field and value.
    """
    for name, minimum in least.items():
        value = getattr(config, name)
        uncapped = name == "max_cost" and value == math.inf
        if value is not None and not uncapped and not minimum <= value < math.inf:  # NaN is in no range
            raise InputError(f"{type(config).__name__}: `{name}` is {value}, expected a number from {minimum} on.")
