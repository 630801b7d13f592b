"""Parquet files of a dataset config: the same rows and features give the same bytes, whatever made the dataset.

Rows are written as they come, a thousand at a time, in shards of a fixed size, so that none has to fit into memory.
Writes into the folder it is given; knows the types of columns and nothing of their meaning.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SchemaError
from .schema import canonical_json


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features

SHARD_BYTES = 500_000_000  # Arrow bytes; what the Hub's own writers cut at
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


class ShardWriter:
    """Writes the rows of one split as `folder/<split>-0000i-of-0000n.parquet`, each shard as it fills.

    Where shards are cut depends on the rows alone: equal rows, equal bytes. A file that is being written ends in
    `.part`; names that say how many there are come with [`close`].

    Raises (all methods): OSError when the disk is full or not writable.
    """

    def __init__(self, folder: Path, split: str, features: Features, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.split, self.features, self.shard_bytes = folder, split, features, shard_bytes
        self.num_rows = self.num_bytes = 0
        self._shards: list[Path] = []
        self._writer: Any = None
        self._in_shard = 0

    def write(self, table: pa.Table) -> None:
        """Add rows: a thousand, or at the end fewer."""
        import pyarrow.parquet as pq

        schema = self.features.arrow_schema
        rows = _canonical(table.combine_chunks(), self.features).cast(schema)
        if self._writer is None:
            # content-defined chunks: a later version of the dataset uploads only what changed
            self._writer = pq.ParquetWriter(
                self._part(), schema, use_content_defined_chunking=True, write_page_index=True
            )
        self._writer.write_table(rows)
        self.num_rows += rows.num_rows
        self.num_bytes += rows.nbytes
        self._in_shard += rows.nbytes
        if self._in_shard >= self.shard_bytes:
            self._end_shard()

    def close(self) -> list[Path]:
        """End the last shard and give all their names; returns the files in order."""
        if self._writer is not None:
            self._end_shard()
        files = []
        for i, shard in enumerate(self._shards):
            files.append(shard.rename(self.folder / f"{self.split}-{i:05d}-of-{len(self._shards):05d}.parquet"))
        return files

    def _part(self) -> Path:
        return self.folder / f"{self.split}-{len(self._shards):05d}.part"

    def _end_shard(self) -> None:
        self._writer.close()
        self._shards.append(self._part().rename(self._part().with_suffix(".full")))
        self._writer, self._in_shard = None, 0


class ShardRows:
    """The rows of some Parquet files, read one at a time; what a card needs of a `Dataset`."""

    def __init__(self, files: list[Path], features: Features, num_rows: int) -> None:
        self.files, self.features, self.num_rows = files, features, num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets import Dataset

        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROW_GROUP):
                    table = pa.Table.from_batches([batch]).cast(self.features.arrow_schema)
                    yield from Dataset(table).to_list()


def tables(source: Dataset | Iterable[Mapping[str, Any]], features: Features) -> Iterator[pa.Table]:
    """A dataset, or rows as they come, in Arrow tables of a thousand rows (the last one fewer)."""
    from datasets import Dataset

    if isinstance(source, Dataset):
        arrow = source.with_format("arrow")
        for start in range(0, len(source), _ROW_GROUP):
            yield arrow[start : start + _ROW_GROUP]
        return
    rows = iter(source)
    while some := list(islice(rows, _ROW_GROUP)):
        yield Dataset.from_list(some, features=features).with_format("arrow")[:]


def write_config(
    splits: Iterable[tuple[str, Dataset | Iterable[Mapping[str, Any]]]], features: Features, folder: Path
) -> tuple[DatasetInfo, dict[str, ShardRows]]:
    """Write the splits of one config as shards in `folder`, in one pass over each, and describe them.

    Args:
        splits: name and rows, a `Dataset` or dicts as they come.

    Returns:
        a `DatasetInfo` with the features, and the sizes in rows and bytes; and the rows as they now stand there.

    Raises:
        OSError: the disk is full or not writable.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo

    folder.mkdir()
    described, written = SplitDict(), {}
    for split, rows in splits:
        writer = ShardWriter(folder, split, features)
        for table in tables(rows, features):
            writer.write(table)
        written[split] = ShardRows(writer.close(), features, writer.num_rows)
        described[split] = SplitInfo(split, num_bytes=writer.num_bytes, num_examples=writer.num_rows)
    info = DatasetInfo(
        features=features,
        splits=described,
        download_size=sum(file.stat().st_size for file in folder.iterdir()),
        dataset_size=sum(info.num_bytes for info in described.values()),
    )
    return info, written


def spooled(rows: Iterable[Mapping[str, Any]], features: Features) -> Dataset:
    """Rows as they come, as one `Dataset`: in memory up to a thousand, else memory-mapped from a temporary file.

    The file lies in the folder for temporary files and is deleted when the process ends.
    """
    import pyarrow as pa
    from datasets import Dataset

    schema, chunks = features.arrow_schema, tables(rows, features)
    first, second = next(chunks, None), next(chunks, None)
    if first is None:
        return Dataset.from_dict({name: [] for name in features}, features=features)
    if second is None:
        return Dataset(first.cast(schema))
    file = _temporary_folder() / f"{secrets.token_hex(8)}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in chain([first, second], chunks):
            writer.write_table(table.cast(schema))
    return Dataset.from_file(str(file))


@cache
def _temporary_folder() -> Path:
    folder, owner = tempfile.mkdtemp(prefix="tuna_trl-"), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return Path(folder)


@contextmanager
def quiet_unless_terminal(library: str = "datasets") -> Iterator[None]:
    """No progress bars in a log file; those of a terminal stay as the user set them.

    Args:
        library: the module with the switch: "datasets" or "huggingface_hub.utils".
    """
    bars = import_module(library)
    silence = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    if silence:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            bars.enable_progress_bars()


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
