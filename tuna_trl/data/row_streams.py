"""A user's rows as streams, from a file, a folder or the Hub: read one by one, as often as they are gone through.

JSON Lines are read here and not by `datasets`, whose error for a broken line names neither the line nor the file. Rows
are passed on as they stand, whatever their columns. Reads the path it is given; the network only for a Hub id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, SchemaError
from .files import SUFFIXES, data_files, data_suffix, named_rows


class FileRows:
    """The rows of .jsonl, .ndjson, .json or .parquet files, in order; each `iter` reads them anew.

    Raises, while it is read (and keeps what was read before):
        SchemaError: (an InputError) a line is no JSON, not UTF-8 or no object; names file, row (from 0) and line
            (from 1).
        InputError: the file cannot be read.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path).expanduser() for path in paths]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.named())

    def named(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows, each with its name as errors give it: file, row and line."""
        for path in self.paths:
            try:
                for where, row in named_rows([path]):
                    if not isinstance(row, Mapping):
                        raise SchemaError(f"{where}: a row must be a JSON object, got {row!r:.60}.")
                    yield where, dict(row)
            except OSError as error:
                raise InputError(f"{path} could not be read: {error.strerror or error}.") from error


class DatasetRows:
    """The rows of a split that `datasets` streams; its errors become ours.

    Raises, while it is read:
        InputError: a data file is broken or cannot be read.
    """

    def __init__(self, split: Iterable[Mapping[str, Any]], name: str) -> None:
        self.split, self.name = split, name

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        import pyarrow as pa
        from datasets.exceptions import DatasetGenerationError

        rows, i = iter(self.split), 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            # pyarrow's errors are mostly ValueErrors or TypeErrors, and pandas' are ValueErrors
            except (DatasetGenerationError, pa.ArrowException, OSError, ValueError, TypeError) as error:
                reason = str(error.__cause__ or error).strip() or type(error).__name__
                raise InputError(
                    f"{self.name} could not be read beyond its first {i} rows: {reason.splitlines()[0]}"
                ) from error
            yield row
            i += 1


def read_jsonl_stream(path: str | Path) -> FileRows:
    """The rows of a .jsonl file, one at a time and as often as they are gone through; see [`FileRows`]."""
    return FileRows([path])


def stream_rows(name: str, argument: str) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """Rows by split: of a .jsonl, .jsonl.gz, .json, .parquet or .csv file (split `train`), of a folder of such files
    (`train.jsonl`, `test-….parquet`; another name is `train`) or of a dataset, or of a dataset on the Hub. Rows are
    read when they are gone through, not before.

    Args:
        argument: how errors name where it came from ("--data").

    Raises:
        InputError: there is no such file, folder or dataset.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    path = Path(name).expanduser()
    suffix = data_suffix(path)
    if suffix in (*SUFFIXES, ".csv") and not path.is_dir():
        if not path.is_file():
            raise InputError(f"{argument} {name}: there is no such file.")
        if suffix != ".csv":
            return {"train": FileRows([path])}
        return {"train": DatasetRows(load_dataset("csv", data_files=str(path), streaming=True)["train"], path.name)}
    if path.is_dir() and not (path / "README.md").exists() and (found := _files_of_folder(path)):
        return found
    try:
        splits = load_dataset(str(path) if path.is_dir() else name, streaming=True)
    except (OSError, ValueError, DatasetNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{argument} {name!r} could not be loaded: {reason}") from error
    return {split: DatasetRows(rows, f"{name}, split {split!r},") for split, rows in splits.items()}


def _files_of_folder(path: Path) -> dict[str, FileRows]:
    """A folder of files that are read here; empty where it holds others, for `datasets` to find its way about."""
    try:
        return {split: FileRows(files) for split, files in data_files(path).items()}
    except InputError:
        return {}
