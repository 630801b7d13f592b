"""Exported rows on disk: a folder that `load_dataset` reads, or one file.

A folder or file appears whole or not at all. Touches the path it is given and a hidden sibling of it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import BuildError, InputError
from ..folder import replace_folder
from ..parquet import write_config


if TYPE_CHECKING:
    from datasets import Features

FILES = (".jsonl", ".json", ".parquet")
Splits = Iterable[tuple[str, Iterator[Mapping[str, Any]]]]


def write_splits(
    splits: Splits, path: Path, features: Features | None, *, folder_suffix: str = ".parquet", overwrite: bool = False
) -> tuple[Path, dict[str, int]]:
    """Write rows as they come.

    Args:
        splits: name and rows of each.
        path: one file (.jsonl, .json: one array, .parquet) for one split, else a folder: `data/<split>-*.parquet`, or
            with another `folder_suffix` one such file a split. A split without rows is left out.
        features: of the columns; needed for Parquet.
        overwrite: replace what stands there.

    Returns:
        the absolute path, and the number of rows by split.

    Raises:
        InputError: `path` is there already, has another suffix, several splits were to go into one file, or there are
            no rows.
        BuildError: the disk is full or not writable; what stood at `path` is left whole.
    """
    path = Path(path).expanduser()
    if path.suffix and path.suffix not in FILES and not path.is_dir():
        raise InputError(f"{path} ends in {path.suffix!r}; rows are written to a folder or to {', '.join(FILES)}.")
    if not overwrite and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} is there already; name another, or replace it with --overwrite.")
    counts: dict[str, int] = {}
    kept = _with_rows(splits, counts)
    if path.suffix in FILES:
        return _write_one(list(kept), path, features), counts

    def fill(folder: Path) -> None:
        if folder_suffix == ".parquet":
            write_config(kept, features, folder / "data")
        else:
            for split, rows in kept:
                _write_file(rows, folder / f"{split}{folder_suffix}", features)
        _refuse_nothing(counts)

    owned = os.listdir(path) if path.is_dir() else ()
    return replace_folder(path, fill, owned=owned), counts


def _with_rows(splits: Splits, counts: dict[str, int]) -> Splits:
    """The splits that have a row, whose rows are counted as they are read."""

    def counted(split: str, first: Any, rows: Iterator[Any]) -> Iterator[Any]:
        counts[split] = 1
        yield first
        for row in rows:
            counts[split] += 1
            yield row

    for split, rows in splits:
        rows = iter(rows)
        first = next(rows, None)
        if first is not None:
            yield split, counted(split, first, rows)


def _write_one(splits: list[tuple[str, Iterator[Any]]], path: Path, features: Features | None) -> Path:
    _refuse_nothing([split for split, _ in splits])
    if len(splits) > 1:
        names = ", ".join(split for split, _ in splits)
        raise InputError(f"{path} is one file, but there are the splits {names}; name a folder, or one with --split.")
    path = path.resolve()
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(splits[0][1], part, features)
        os.replace(part, path)
    except OSError as error:
        raise BuildError(f"{path} could not be written: {error}. Free some space or choose another place.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _write_file(rows: Iterator[Mapping[str, Any]], path: Path, features: Features | None) -> None:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        from ..parquet import tables

        schema = cast("Features", features).arrow_schema  # None is for JSON alone
        with pq.ParquetWriter(path, schema) as writer:
            for table in tables(rows, features):
                writer.write_table(table.cast(schema))
        return
    array = path.suffix == ".json"
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for i, row in enumerate(rows):
            file.write(("[\n" if i == 0 else ",\n") if array else "")
            file.write(json.dumps(row, ensure_ascii=False) + ("" if array else "\n"))
        file.write("\n]\n" if array else "")


def _refuse_nothing(written: Any) -> None:
    if not written:
        raise InputError("No row is left to write: none has the status, the ranks or the gap that was asked for.")
