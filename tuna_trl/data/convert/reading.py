"""Rows of anything by split, for the commands that read data: a thousand at a time.

Reads the path it is given; the network only for a Hub id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..files import data_suffix
from ..hub_access import check_dataset_name
from ..ranked_source import shard_files, shard_rows
from ..row_streams import DatasetRows, FileRows, stream_rows


Splits = Mapping[str, Iterable[Mapping[str, Any]]]


def open_rows(name: str, argument: str, *, revision: str | None = None, config: str | None = None) -> Splits:
    """The rows of a folder, a file or a Hub id as they stand, by split; each split can be gone through again.

    The shards of a folder in the Hub's layout are read here: streamed by `datasets`, whose readers work ahead, 100,000
    ranked rows took 731 MiB instead of 299, and twice the time.

    Args:
        argument: how errors name where it came from ("SRC").
        revision: branch, tag or commit of a Hub dataset.
        config: its config (subset).

    Raises:
        InputError: there is no such file, folder or dataset, or a revision or config of what is no Hub dataset.
    """
    path = Path(name).expanduser()
    if revision is None and config is None and path.is_dir() and (splits := shard_files(path / "data")):
        return {split: shard_rows(files) for split, files in splits.items()}
    return stream_source(name, argument, revision=revision, config=config)


def stream_source(name: str, argument: str, *, revision: str | None = None, config: str | None = None) -> Splits:
    """As [`tuna_trl.data.row_streams.stream_rows`], which reads folders and files, and of the Hub any revision and
    config. A name that nothing answers to is refused at once; see [`open_rows`] for the arguments."""
    path = Path(name).expanduser()
    if path.exists():
        for flag, value in (("--revision", revision), ("--config", config)):
            if value is not None:
                raise InputError(f"{flag} {value}: {name} is a local path, and only datasets on the Hub have one.")
        if path.is_file() and data_suffix(path) in (".jsonl.gz", ".ndjson.gz"):
            return {"train": FileRows([path])}
        return stream_rows(name, argument)
    check_dataset_name(name, argument)
    if revision is None and config is None:
        return stream_rows(name, argument)
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        splits = load_dataset(name, config, revision=revision, streaming=True)
    except (OSError, ValueError, DatasetNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{argument} {name!r} could not be loaded: {reason}") from error
    return {split: DatasetRows(rows, f"{name}, split {split!r},") for split, rows in splits.items()}
