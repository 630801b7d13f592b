"""Rows that share a key, brought together: files with one answer a row become lists of answers.

The rows wait in a temporary SQLite file, so that only a 64-bit hash of each key is held in memory.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ...errors import SchemaError
from ..schema import digest


def grouped(
    rows: Iterable[tuple[str, Mapping[str, Any]]], key: Callable[[Mapping[str, Any]], Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Lists of the rows with the same key, in the order in which each key is first seen; all rows are read first.

    Args:
        rows: name and row.
        key: any JSON value.

    Yields:
        the name of the first row of a group, and its rows.

    Raises:
        SchemaError: a row holds what JSON cannot hold.
    """
    with tempfile.TemporaryDirectory(prefix="tuna_trl-") as folder:
        database = sqlite3.connect(Path(folder) / "groups.sqlite")
        try:
            database.execute("PRAGMA synchronous = OFF")
            database.execute(
                "CREATE TABLE rows (grp INTEGER, seq INTEGER, name TEXT, row TEXT, PRIMARY KEY (grp, seq))"
            )
            seen: dict[int, int] = {}
            with database:
                for i, (name, row) in enumerate(rows):
                    number = seen.setdefault(int(digest(key(row))[:16], 16), len(seen))
                    try:
                        text = json.dumps(row)
                    except TypeError as error:
                        raise SchemaError(f"{name}: {error}; mend it with dataset.remove_columns.") from None
                    database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (number, i, name, text))
            found = database.execute("SELECT grp, name, row FROM rows ORDER BY grp, seq")
            for _, group in groupby(found, key=lambda entry: entry[0]):
                entries = list(group)
                yield entries[0][1], [json.loads(text) for _, _, text in entries]
        finally:
            database.close()
