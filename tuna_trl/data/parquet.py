"""Parquet files of a dataset config: the same rows and features give the same bytes, whatever made the dataset.

Writes into the folder it is given; knows the types of columns and nothing of their meaning.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SchemaError
from .schema import canonical_json


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, DatasetInfo, Features

_ROW_GROUP = 1000  # rows; fixed, so that equal rows give equal bytes (the viewer likes groups well below 300 MB)


def cast_columns(dataset: Dataset, features: Features, where: str) -> Dataset:
    """The dataset with exactly these columns and types; rows are copied only where a type differs.

    Args:
        where: how errors name the dataset.

    Raises:
        SchemaError: a column's values do not fit its type.
    """
    dataset = dataset.with_format(None).select_columns(list(features))
    if dataset.features == features:
        return dataset
    try:
        with quiet_unless_terminal():
            return dataset.cast(features)
    except (TypeError, ValueError) as error:  # pyarrow's errors are one of the two
        wrong = [name for name, feature in features.items() if dataset.features[name] != feature]
        raise SchemaError(
            f"{where}: column {wrong[0]!r} is of type {dataset.features[wrong[0]]}, expected {features[wrong[0]]}, "
            f"and could not be cast: {error}. "
            "Mend it with Dataset.from_list(rows, features=tuna_trl.ranked_features())."
        ) from error


def write_config(splits: DatasetDict, folder: Path) -> DatasetInfo:
    """Write the splits of one config as `folder/<split>-00000-of-00001.parquet`, and describe them.

    Returns:
        a `DatasetInfo` with the features, and the sizes in rows and bytes.

    Raises:
        OSError: the disk is full or not writable.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo

    folder.mkdir()
    described = SplitDict()
    for split, part in splits.items():
        num_bytes = _write_parquet(part, folder / f"{split}-00000-of-00001.parquet")
        described[split] = SplitInfo(split, num_bytes=num_bytes, num_examples=len(part))
    return DatasetInfo(
        features=next(iter(splits.values())).features,
        splits=described,
        download_size=sum(file.stat().st_size for file in folder.iterdir()),
        dataset_size=sum(info.num_bytes for info in described.values()),
    )


def _write_parquet(dataset: Dataset, file: Path) -> int:
    """Write one split; returns its size in Arrow bytes. The file's bytes depend on rows and features alone."""
    import pyarrow.parquet as pq

    schema, num_bytes = dataset.features.arrow_schema, 0
    arrow = dataset.with_format("arrow")
    # content-defined chunks: a later version of the dataset uploads only what changed
    with pq.ParquetWriter(file, schema, use_content_defined_chunking=True, write_page_index=True) as writer:
        for start in range(0, len(dataset), _ROW_GROUP):
            rows = arrow[start : start + _ROW_GROUP].combine_chunks()
            rows = _canonical(rows, dataset.features).cast(schema)
            writer.write_table(rows)
            num_bytes += rows.nbytes
    return num_bytes


@contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """No progress bars of `datasets` in a log file; those of a terminal stay as the user set them."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


def _canonical(table: pa.Table, features: Features) -> pa.Table:
    """JSON columns with sorted keys: equal values, equal bytes, in whatever order a dict was filled."""
    import pyarrow as pa
    from datasets import Json

    for i, (name, feature) in enumerate(features.items()):
        if isinstance(feature, Json):
            texts = [None if t is None else canonical_json(json.loads(t)) for t in table.column(name).to_pylist()]
            field = table.schema.field(name)
            column = pa.ExtensionArray.from_storage(field.type, pa.array(texts, pa.string()))
            table = table.set_column(i, field, column)
    return table
