"""One way in and out for all conversions: what comes in as a stream goes out as a stream, a dataset as a dataset.

Touches nothing but, for a `Dataset` of more than a thousand rows, a temporary file
([`tuna_trl.data.parquet.spooled`]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..parquet import spooled


if TYPE_CHECKING:
    from datasets import Features

NamedRow = tuple[str, Any]  # how errors name the row, and the row
Convert = Callable[[Iterator[NamedRow]], Iterator[dict[str, Any]]]


def converted(dataset: Any, convert: Convert, features: Features | Callable[[], Features]) -> Any:
    """A dataset through `convert`, which is given each row with its name.

    Args:
        dataset: a `Dataset`, an `IterableDataset`, any other iterable of rows, or a mapping of split names to those.
        features: of the rows that come out; a function that makes them is called only where they are needed.

    Returns:
        a `Dataset` for a `Dataset`, an `IterableDataset` for one, a `DatasetDict` for a `DatasetDict`, an iterator of
        dicts for any other iterable, a dict for a mapping.

    Raises:
        InputError: `dataset` is none of these.
    """
    if isinstance(dataset, Mapping):
        kind: Any = type(dataset)
        return kind({split: _one(part, convert, features, split) for split, part in dataset.items()})
    return _one(dataset, convert, features, "")


def named(rows: Iterable[Any], split: str = "") -> Iterator[NamedRow]:
    """Rows with the names by which errors call them: "row 17", "split 'train', row 17"."""
    prefix = f"split {split!r}, " if split else ""
    for i, row in enumerate(rows):
        yield f"{prefix}row {i}", row


def _one(dataset: Any, convert: Convert, features: Any, split: str) -> Any:
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
        raise InputError(
            f"`dataset` must be a Dataset, an IterableDataset, a DatasetDict or an iterable of rows, got "
            f"{type(dataset).__name__}. A file or a Hub id is read by `tuna-trl import` or datasets.load_dataset."
        )
    if type(dataset).__module__.partition(".")[0] != "datasets":  # spares a second of import
        return convert(named(dataset, split))
    from datasets import Dataset, IterableDataset

    made = features() if callable(features) else features
    if isinstance(dataset, Dataset):
        return spooled(convert(named(dataset.with_format(None), split)), made)
    if isinstance(dataset, IterableDataset):
        return IterableDataset.from_generator(lambda: convert(named(dataset, split)), features=made)
    return convert(named(dataset, split))
