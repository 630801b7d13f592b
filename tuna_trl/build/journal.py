"""The journal of a build: every slow or paid reply is written here, in a commit of its own, before it is used.

One SQLite file a build, write-ahead log, so that a `kill -9` loses at most what had not arrived yet. Keys are sha256
digests of the canonical request ([`tuna_trl.data.schema.digest`]): a changed prompt or parameter is a new key, an
unchanged one is never asked for again. No URL and no API key ever goes in.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.schema import canonical_json
from ..errors import BuildError


_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,     -- digest of the canonical request
    kind TEXT NOT NULL,       -- samples | judgment
    record TEXT NOT NULL      -- canonical JSON
) WITHOUT ROWID;
"""


class Journal:
    """A key-value store of received replies that survives a kill at any instant.

    Args:
        path: the SQLite file; its folder is created. Two processes may have it open at once (a writer waits up to
            60 seconds for the other's commit).

    Raises:
        BuildError: the file cannot be opened, read or written (a full disk, a folder without write permission, a
            file that is no journal); nothing received before is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # sqlite3 connections are bound to one thread unless told otherwise; the lock makes sharing one right.
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60.0, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit is on disk before `put` returns, so that a power cut loses no paid reply either.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise BuildError(f"The journal {self.path} could not be opened: {error}.") from error

    def get(self, key: str) -> dict[str, Any] | None:
        """The record journalled under `key`, or None."""
        try:
            with self._lock:
                row = self._db.execute("SELECT record FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise BuildError(f"The journal {self.path} could not be read: {error}.") from error
        return None if row is None else json.loads(row[0])

    def put(self, key: str, record: Mapping[str, Any], *, kind: str) -> None:
        """Write a record and commit; a key that is already there keeps its first record."""
        try:
            with self._lock:
                self._db.execute(
                    "INSERT OR IGNORE INTO replies (key, kind, record) VALUES (?, ?, ?)",
                    (key, kind, canonical_json(record)),
                )
        except sqlite3.Error as error:
            raise BuildError(
                f"A reply could not be written to the journal {self.path}: {error}. What was journalled before is "
                "safe; free some space and run the same command again to go on from there."
            ) from error

    def count(self, kind: str | None = None) -> int:
        """How many replies are journalled, of one kind or in all."""
        query = "SELECT COUNT(*) FROM replies" + ("" if kind is None else " WHERE kind = ?")
        with self._lock:
            return self._db.execute(query, () if kind is None else (kind,)).fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
