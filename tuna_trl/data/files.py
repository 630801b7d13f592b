"""A user's own rows in `.jsonl` (or `.jsonl.gz`), `.json` or `.parquet` files: found, read, normalised. Errors name
file, row and line.

Reads the files it is given and nothing else. JSON is read here and not by `datasets`, whose readers type a column by
its first rows and fail on a later one without saying which.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SchemaError
from .schema import normalise_row, ranked_features


if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.gz", ".ndjson.gz")
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLITS |= {"dev": "validation", "eval": "validation"}
_BATCH = 1000  # rows turned into Arrow at once

NamedRow = tuple[str, Any]  # how errors name the row, and what was read


def data_suffix(path: Path) -> str:
    """The ending that says what is in a file, in lower case: of `rows.JSONL.gz` it is `.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() + suffix if suffix == ".gz" else suffix


def data_files(path: Path) -> dict[str, list[Path]]:
    """The data files of a path by split, in the order of their names.

    A file is the split its name begins with (`train.jsonl`, `test-00000-of-00001.parquet`), otherwise `train`.

    Raises:
        InputError: there are none, or the file has another suffix.
    """
    if path.is_file():
        if data_suffix(path) not in SUFFIXES:
            raise InputError(f"{path} ends in {path.suffix!r}; rows are read from {', '.join(SUFFIXES)}.")
        found = [path]
    else:
        below = sorted(path.rglob("*"))
        found = [file for file in below if data_suffix(file) in SUFFIXES and file.is_file()]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not found:
            raise InputError(f"{path} holds no data file ({', '.join(SUFFIXES)}) and is no dataset of ours.")
    splits: dict[str, list[Path]] = {}
    for file in found:
        first_word = re.findall(r"^[a-z]*", file.stem.lower())[0]
        splits.setdefault(_SPLITS.get(first_word, "train"), []).append(file)
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def read_rows(files: Sequence[Path]) -> Dataset:
    """The rows of some files, normalised, as one `Dataset` with [`ranked_features`].

    Raises:
        SchemaError: a row is wrong; names file, row (from 0) and, in line formats, line (from 1).
        InputError: there is no row at all.
    """
    dataset = rows_to_dataset(named_rows(files))
    if len(dataset) == 0:
        raise InputError(f"{', '.join(file.name for file in files)}: no rows.")
    return dataset


def named_rows(files: Sequence[Path]) -> Iterator[NamedRow]:
    """The rows of some files as they stand there, each with its name, read as they are asked for."""
    for file in files:
        yield from _read(file)


def rows_to_dataset(rows: Iterable[NamedRow]) -> Dataset:
    """Rows through [`normalise_row`] into a `Dataset`, a batch at a time.

    Raises:
        SchemaError: naming the row that is wrong, or whose values do not fit the columns' types.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    batches, batch = [], []
    for where, row in tqdm(rows, desc="reading rows", disable=None, delay=3.0):
        if not isinstance(row, Mapping):
            raise SchemaError(f"{where}: a row must be an object with `prompt` and `responses`, got {row!r:.60}.")
        batch.append((where, normalise_row(row, where)))
        if len(batch) == _BATCH:
            batches.append(_to_arrow(batch))
            batch = []
    if batch:
        batches.append(_to_arrow(batch))
    if not batches:  # from_list of nothing ignores the features
        return Dataset.from_dict({column: [] for column in ranked_features()}, features=ranked_features())
    return concatenate_datasets(batches)


def _to_arrow(batch: Sequence[NamedRow]) -> Dataset:
    from datasets import Dataset

    features = ranked_features()
    try:
        return Dataset.from_list([row for _, row in batch], features=features)
    except (TypeError, ValueError, OverflowError):  # pyarrow's and unicode errors are ValueErrors or TypeErrors
        for where, row in batch:
            for column, feature in features.items():
                try:
                    Dataset.from_list([{column: row[column]}], features=type(features)({column: feature}))
                except (TypeError, ValueError, OverflowError) as error:
                    raise SchemaError(f"{where}: column {column!r} holds a value of a wrong type: {error}.") from error
        raise


def _read(file: Path) -> Iterator[NamedRow]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(file)
    return _read_json(file) if suffix == ".json" else _read_lines(file)


def _read_lines(file: Path) -> Iterator[NamedRow]:
    """JSON Lines, gzipped or not; blank lines are no rows."""
    i, number = 0, 0
    try:
        with gzip.open(file, "rb") if data_suffix(file).endswith(".gz") else open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007 - named in the error below
                if line := line.strip(b" \t\r\n" + (b"\xef\xbb\xbf" if number == 1 else b"")):
                    where = f"{file.name} row {i} (line {number})"
                    yield where, _parse(line, where)
                    i += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SchemaError(f"{file.name}: no whole gzip file, it breaks off behind line {number}: {error}.") from error


def _read_json(file: Path) -> Iterator[NamedRow]:
    """One JSON array of rows; a `.json` file that is JSON Lines in truth is read as that."""
    text = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not text.lstrip().startswith(b"["):
        yield from _read_lines(file)
        return
    for i, row in enumerate(_parse(text, file.name)):
        yield f"{file.name} row {i}", row


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where}: the text is not UTF-8: {error}.") from None
    except json.JSONDecodeError as error:
        raise SchemaError(f"{where}: no valid JSON: {error}.") from None
    except RecursionError:
        raise SchemaError(f"{where}: the JSON is nested too deeply.") from None


def _read_parquet(file: Path) -> Iterator[NamedRow]:
    """Row by row, with the features `datasets` finds in the file's own metadata (JSON columns come out decoded)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    i = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH):
                for row in Dataset(pa.Table.from_batches([batch])):
                    yield f"{file.name} row {i}", row
                    i += 1
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{file.name}: no valid Parquet file: {error}.") from error
