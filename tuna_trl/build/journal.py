"""The journal of a build: every slow or paid reply is written here, in a commit of its own, before it is used.

One SQLite file a build, write-ahead log, so that a `kill -9` loses at most what had not arrived yet. Keys are sha256
digests of the canonical request ([`tuna_trl.data.schema.digest`]): a changed prompt or parameter is a new key, an
unchanged one is never asked for again. No URL and no API key ever goes in. Several processes of one machine may share
the file (`leases.py`); SQLite's log cannot be shared between machines.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..data.schema import canonical_json
from ..errors import BuildError, InputError
from . import leases, ledger, submissions
from .leases import Claim, Leases
from .ledger import Ledger
from .submissions import ADD_TO_TOTAL, Submissions


T = TypeVar("T")

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,     -- digest of the canonical request
    kind TEXT NOT NULL,       -- samples | reply | failure | judgment
    record TEXT NOT NULL      -- canonical JSON
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    key TEXT PRIMARY KEY,     -- digest of one prompt of a bucket
    reply TEXT NOT NULL,      -- key of the bucket that answered it
    place INTEGER NOT NULL    -- and its place there
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    name TEXT PRIMARY KEY,    -- spent: USD, by all replies in this file; sent_again: requests, see `sent_again`
    value REAL NOT NULL
) WITHOUT ROWID;
{leases.SCHEMA}{ledger.SCHEMA}{submissions.SCHEMA}
"""


class Journal:
    """A key-value store of received replies that survives a kill at any instant.

    Args:
        path: the SQLite file; its folder is created. Processes of one machine may have it open at once (a writer
            waits up to 60 seconds for another's commit).

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
            self._db = _connect(self.path)
            # FULL: a commit is on disk before `put` returns, so that a power cut loses no paid reply either.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            if self.in_memory:
                self._claims_db, claims_lock = self._db, self._lock
            else:
                self._claims_db, claims_lock = _connect(self.path), threading.Lock()
                self._claims_db.execute("PRAGMA synchronous=NORMAL")
        except (sqlite3.Error, OSError) as error:
            raise BuildError(f"The journal {self.path} could not be opened: {error}.") from error
        self._leases = Leases(self._claims_db, claims_lock, renew=not self.in_memory)
        self._ledger = Ledger(self._claims_db, claims_lock, self._leases)
        self._submissions = Submissions(self._db, self._lock, self._claims_db, claims_lock, self._leases)

    @property
    def in_memory(self) -> bool:
        """Whether nothing is written to a file."""
        return str(self.path) == ":memory:"

    def get(self, key: str) -> dict[str, Any] | None:
        """The record journalled under `key`, or None."""
        row = self._read("SELECT record FROM replies WHERE key = ?", (key,))
        return None if row is None else json.loads(row[0])

    def kept(self, key: str) -> dict[str, Any]:
        """The record under `key`, which is known to be there."""
        record = self.get(key)
        if record is None:
            raise KeyError(key)
        return record

    def place(self, key: str) -> tuple[str, int] | None:
        """Where a prompt was answered: the key of its bucket and its place there; None if nowhere."""
        return self._read("SELECT reply, place FROM places WHERE key = ?", (key,))

    def put(self, key: str, record: Mapping[str, Any], *, kind: str, places: Sequence[str] = ()) -> None:
        """Write a record and commit; a key that is already there keeps its first record.

        Args:
            places: keys of the prompts that the record answers, in order, for [`place`].
        """
        self.put_all({key: record}, kind=kind, places=[(place, key, i) for i, place in enumerate(places)])

    def put_all(
        self,
        records: Mapping[str, Mapping[str, Any]],
        *,
        kind: str,
        cost: float = 0.0,
        places: Iterable[tuple[str, str, int]] = (),
    ) -> None:
        """Write the parts of one reply in one commit, and give back the leases on them.

        Args:
            cost: USD that the reply cost; see [`spent`].
        """
        # Half a surrogate pair, which a reply can hold, has no UTF-8; in JSON its escape reads back as what it was.
        texts = {key: canonical_json(record).encode("utf-8", "backslashreplace") for key, record in records.items()}
        rows = [(key, kind, text.decode()) for key, text in texts.items()]
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany("INSERT OR IGNORE INTO replies (key, kind, record) VALUES (?, ?, ?)", rows)
                    self._db.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?)", places)
                    self._db.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key in records])
                    if cost:
                        self._db.execute(ADD_TO_TOTAL, ("spent", cost))
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise BuildError(
                f"A reply could not be written to the journal {self.path}: {error}. What was journalled before is "
                "safe; free some space and run the same command again to go on from there."
            ) from error

    def spent(self) -> float:
        """USD that the replies in this file cost, whoever asked for them."""
        row = self._read("SELECT value FROM totals WHERE name = 'spent'", ())
        return 0.0 if row is None else row[0]

    def sent_again(self) -> int:
        """Requests, of all runs on this file, that were sent again because the run that sent them first had died."""
        row = self._read("SELECT value FROM totals WHERE name = 'sent_again'", ())
        return 0 if row is None else int(row[0])

    def claim(self, keys: Sequence[str]) -> Claim:
        """Take a lease on one request (the keys of its parts), to be ended by [`put_all`] or [`release`]."""
        return self._written(lambda: self._leases.claim(keys))

    def release(self, keys: Sequence[str]) -> None:
        """Give back a lease on what was not answered."""
        self._written(lambda: self._leases.release(keys))

    def money(self, call: Callable[[Ledger], T]) -> T:
        """What `call` makes of the money of all who share this file."""
        return self._written(lambda: call(self._ledger))

    def batches(self, call: Callable[[Submissions], T]) -> T:
        """What `call` makes of the batches that this file knows."""
        return self._written(lambda: call(self._submissions))

    def count(self, kind: str | None = None) -> int:
        """How many replies are journalled, of one kind or in all."""
        query = "SELECT COUNT(*) FROM replies" + ("" if kind is None else " WHERE kind = ?")
        return self._read(query, () if kind is None else (kind,))[0]

    def close(self) -> None:
        try:
            self._written(self._leases.close)
        finally:
            for db in {id(db): db for db in (self._claims_db, self._db)}.values():
                with self._lock:
                    db.close()

    def _written(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except sqlite3.Error as error:
            raise BuildError(f"The journal {self.path} could not be written: {error}.") from error

    def _read(self, query: str, values: Sequence[Any]) -> Any:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise BuildError(f"The journal {self.path} could not be read: {error}.") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def set_aside(path: str | Path) -> Path | None:
    """Rename a journal, so that the next build begins anew; nothing is deleted.

    Returns:
        the new name, `<path>.aside-1` or the next that is free; None where there is no journal.

    Raises:
        InputError: another process is using it.
        BuildError: it cannot be opened or renamed.
    """
    path = Path(path)
    if not path.exists():
        return None
    with Journal(path) as journal:
        if others := journal._leases.others():
            raise InputError(f"The journal {path} is in use by process {others[0]}; stop it, or wait for its end.")
        if waiting := journal.batches(lambda batches: batches.open_batches()):
            raise InputError(
                f"The journal {path} waits for {len(waiting)} batches ({', '.join(waiting[:3])}), whose answers are "
                "paid for: collect them by the same command without --no-resume, or give each up with "
                "--forget-batch ID."
            )
    number = 1
    while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
        number += 1
    try:
        for suffix in ("-wal", "-shm", ""):  # the first two are gone when the last user has closed well
            if (part := Path(f"{path}{suffix}")).exists():
                os.rename(part, f"{aside}{suffix}")
    except OSError as error:
        raise BuildError(f"The journal {path} could not be renamed: {error}.") from error
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60.0, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    return db
