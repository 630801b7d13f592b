"""Who is asking for what: leases on journal keys, so that two processes on one journal never ask for the same thing.

A lease is a key and its owner; an owner is a process that renews its term from a thread of its own. The lease of an
owner that has died (its process is gone from this machine, or its term has run out) is taken over, and that counts a
request which was in flight when it died. Questions in a batch that is at the provider's (`submissions.py`) can be
leased by nobody. Touches tables of the journal's file without waiting for the disk: after a power cut leases are
forgotten, which costs nothing but the count.
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


SCHEMA = """
CREATE TABLE IF NOT EXISTS owners (
    owner TEXT PRIMARY KEY,
    host TEXT NOT NULL,       -- this boot of this machine, as seen from this container
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,    -- when the process began: a pid is used again
    expires REAL NOT NULL     -- seconds since 1970
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) WITHOUT ROWID;
"""
TERM = 60.0  # seconds; six renewals, so that a process that is merely slow keeps what it holds
_RENEWAL = 10.0


@dataclass(frozen=True)
class Claim:
    """What came of asking for a lease. `state`: `mine`, `taken` (a living process holds it), `there` (answered),
    `batch` (its answer is to come with a batch).

    `taken_over` says that a process which died held it: what it asked for may be asked a second time.
    """

    state: str
    taken_over: bool = False


class Leases:
    """The leases of one process.

    Args:
        db: a connection to the journal's file in autocommit mode; used under `lock`.
        renew: keep the term running from a thread; False for a journal that nobody else can open.

    Every method may raise `sqlite3.Error`, which the journal turns into its own error.
    """

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock, *, renew: bool = True) -> None:
        self.owner = secrets.token_hex(8)
        self._db, self._lock, self._renew = db, lock, renew
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def claim(self, keys: Sequence[str]) -> Claim:
        """All of `keys` or none: they are the parts of one request."""
        self.register()
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = self._claim(keys)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        return result

    def release(self, keys: Sequence[str]) -> None:
        """Give back leases on what was not answered."""
        with self._lock:
            self._db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(k, self.owner) for k in keys])

    def others(self) -> list[int]:
        """The process ids of the living others that have the journal in use."""
        with self._lock:
            rows = self._db.execute("SELECT owner, pid FROM owners WHERE owner != ?", (self.owner,)).fetchall()
            return [pid for owner, pid in rows if self.lives(owner, self._db)]

    def register(self) -> None:
        """Begin the term, for what is held by other tables than this one's too."""
        with self._lock:
            if self._thread is None and self._renew:
                values = (self.owner, _host(), os.getpid(), _started(os.getpid()), time.time() + TERM)
                self._db.execute("INSERT INTO owners VALUES (?, ?, ?, ?, ?)", values)
                self._thread = threading.Thread(target=self._keep, name="journal-lease", daemon=True)
                self._thread.start()

    def lives(self, owner: str, db: sqlite3.Connection) -> bool:
        """Whether an owner (this one too) still sees to what it holds; asked over a connection that the caller may
        use."""
        if owner == self.owner:
            return True
        query = "SELECT host, pid, started, expires FROM owners WHERE owner = ?"
        row = db.execute(query, (owner,)).fetchone()
        if row is None or row[3] < time.time():
            return False
        return row[0] != _host() or _started(row[1]) == row[2]

    def close(self) -> None:
        """End the term; leases that are still held count as those of a process that died."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            with self._lock:
                self._db.execute("DELETE FROM owners WHERE owner = ?", (self.owner,))
                self._db.execute("DELETE FROM reserved WHERE owner = ?", (self.owner,))

    def _claim(self, keys: Sequence[str]) -> Claim:
        marks = ",".join("?" * len(keys))
        if self._db.execute(f"SELECT 1 FROM replies WHERE key IN ({marks}) LIMIT 1", keys).fetchone():
            return Claim("there")
        if self._db.execute(f"SELECT 1 FROM submitted WHERE key IN ({marks}) LIMIT 1", keys).fetchone():
            return Claim("batch")
        holders = {row[0] for row in self._db.execute(f"SELECT owner FROM claims WHERE key IN ({marks})", keys)}
        if any(self.lives(holder, self._db) for holder in holders - {self.owner}):
            return Claim("taken")
        self._db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", [(key, self.owner) for key in keys])
        taken_over = bool(holders - {self.owner})
        if taken_over:
            self._db.execute(
                "INSERT INTO totals VALUES ('sent_again', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
            )
        return Claim("mine", taken_over)

    def _keep(self) -> None:
        while not self._closing.wait(_RENEWAL):
            try:
                with self._lock:
                    query = "UPDATE owners SET expires = ? WHERE owner = ?"
                    self._db.execute(query, (time.time() + TERM, self.owner))
            except sqlite3.OperationalError:  # the file is busy or the disk full: the next renewal is in time
                continue


def _host() -> str:
    """This boot and this process namespace: elsewhere a pid of ours means nothing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:  # no Linux: that there is one must do
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "running"
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]  # a zombie has died already
