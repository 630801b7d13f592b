"""What the journal knows of batches: which questions were sent in which, and which are not answered yet.

A submission is written down before it is sent, so that no kill can lose it; its batch's id follows when the provider
has named it. Every answer is a commit of its own. Touches two tables of the journal's file, and its replies.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.schema import canonical_json
from .leases import Leases
from .ledger import balance


SCHEMA = """
CREATE TABLE IF NOT EXISTS submissions (
    tag TEXT PRIMARY KEY,     -- ours, made before the batch is sent
    batch TEXT,               -- the provider's id; NULL while it is not known whether it arrived
    judge TEXT NOT NULL,      -- digest of the fingerprint of who is asked
    owner TEXT NOT NULL,      -- the process that sees to it
    sent REAL NOT NULL,       -- seconds since 1970, before it was sent
    size INTEGER NOT NULL,    -- requests
    state TEXT NOT NULL       -- open | collected | refused | lost | forgotten
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS submitted (
    key TEXT PRIMARY KEY,     -- of a question in an open submission that is not answered yet
    tag TEXT NOT NULL,
    worst REAL NOT NULL       -- USD that its answer may cost
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS submitted_tag ON submitted (tag);
"""


@dataclass(frozen=True)
class Submission:
    """A batch that was sent, or was about to be (`batch` is None: nobody knows whether it arrived)."""

    tag: str
    batch: str | None
    sent: float
    size: int


class Submissions:
    """The batches of one journal.

    Args:
        db, lock: a connection whose commits are on disk when they return.
        fast, fast_lock: one whose commits survive a kill but not a power cut: an answer that a power cut takes is
            still at the provider's, and the submission is still open, as its end is written over `db`.

    Every method may raise `sqlite3.Error`.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        lock: threading.Lock,
        fast: sqlite3.Connection,
        fast_lock: threading.Lock,
        leases: Leases,
    ) -> None:
        self._db, self._lock, self._fast, self._fast_lock, self._leases = db, lock, fast, fast_lock, leases

    def begin(
        self, tag: str, questions: Mapping[str, float], *, judge: str, cap: float
    ) -> tuple[Submission | None, list[str]]:
        """Write down a submission of those questions that nobody holds and that fit under the cap, in one transaction.

        Args:
            questions: key -> USD that its answer may cost.
            judge: digest of who is asked.
            cap: USD, on what was spent, is set aside, and may be spent by open batches, this one included.

        Returns:
            (the submission, None if it would be empty; the keys of the questions that only money kept out of it).
        """
        self._leases.register()
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                free = [key for key in questions if not self._held(key)]
                money = balance(self._db, self._leases, "")  # no purse is this one's: what is set aside counts
                left = cap - money.spent - money.others - money.batches
                taken, dear = [], []
                for key in free:
                    if questions[key] <= left:
                        left -= questions[key]
                        taken.append(key)
                    else:
                        dear.append(key)
                submission = Submission(tag, None, time.time(), len(taken)) if taken else None
                if submission is not None:
                    row = (tag, None, judge, self._leases.owner, submission.sent, submission.size, "open")
                    self._db.execute("INSERT INTO submissions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                    rows = [(key, tag, questions[key]) for key in taken]
                    self._db.executemany("INSERT INTO submitted VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return submission, dear

    def name(self, tag: str, batch: str) -> None:
        """Write down the id that the provider gave a submission."""
        with self._lock:
            self._db.execute("UPDATE submissions SET batch = ? WHERE tag = ?", (batch, tag))

    def mine(self, judge: str) -> list[Submission]:
        """The open submissions to a judge that are this process's, those of dead ones taken over, oldest first."""
        self._leases.register()
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                query = "SELECT tag, batch, sent, size, owner FROM submissions WHERE state = 'open' AND judge = ?"
                rows = self._db.execute(query, (judge,)).fetchall()
                mine = [
                    row for row in rows if row[4] == self._leases.owner or not self._leases.lives(row[4], self._db)
                ]
                update = "UPDATE submissions SET owner = ? WHERE tag = ?"
                self._db.executemany(update, [(self._leases.owner, row[0]) for row in mine])
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return sorted((Submission(*row[:4]) for row in mine), key=lambda submission: submission.sent)

    def open_batches(self) -> list[str]:
        """The open submissions of all, as people may know them: the batch's id, or that it has none."""
        with self._lock:
            rows = self._db.execute("SELECT batch FROM submissions WHERE state = 'open' ORDER BY sent").fetchall()
        return [row[0] or "(one that may not have arrived)" for row in rows]

    def known(self) -> set[str]:
        """The ids of all batches that were ever named here."""
        with self._lock:
            rows = self._db.execute("SELECT batch FROM submissions WHERE batch IS NOT NULL").fetchall()
        return {row[0] for row in rows}

    def awaited(self, tag: str) -> set[str]:
        """The keys of a submission's questions that are not answered yet."""
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT key FROM submitted WHERE tag = ?", (tag,))}

    def all_awaited(self) -> set[str]:
        """The keys of all questions in open batches."""
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT key FROM submitted")}

    def waits(self, key: str) -> bool:
        """Whether a question is in an open batch."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM submitted WHERE key = ?", (key,)).fetchone() is not None

    def receive(self, tag: str, key: str, record: Mapping[str, Any] | None, *, kind: str, cost: float = 0.0) -> None:
        """Write down one item of a batch, in a commit of its own, if it is still awaited; None: it gave no reply."""
        with self._fast_lock:
            self._fast.execute("BEGIN IMMEDIATE")
            try:
                gone = self._fast.execute("DELETE FROM submitted WHERE key = ? AND tag = ?", (key, tag)).rowcount
                if gone and record is not None:
                    values = (key, kind, canonical_json(record))
                    self._fast.execute("INSERT OR IGNORE INTO replies (key, kind, record) VALUES (?, ?, ?)", values)
                    self._fast.execute(ADD_TO_TOTAL, ("spent", cost))
                self._fast.execute("COMMIT")
            except BaseException:
                self._fast.execute("ROLLBACK")
                raise

    def end(self, tag: str, state: str, *, sent_again: int = 0) -> None:
        """Close a submission: what it did not answer may be asked for again.

        Args:
            state: `collected`, `refused` (certainly not taken), `lost` (not found at the provider's), `forgotten`.
            sent_again: requests that may have arrived all the same.
        """
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("DELETE FROM submitted WHERE tag = ?", (tag,))
                self._db.execute("UPDATE submissions SET state = ? WHERE tag = ?", (state, tag))
                if sent_again:
                    self._db.execute(ADD_TO_TOTAL, ("sent_again", sent_again))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def forget(self, batch: str) -> int:
        """Give up an open batch (its id): its questions may be asked for again. Returns how many they are."""
        with self._lock:
            query = "SELECT tag FROM submissions WHERE batch = ? AND state = 'open'"
            row = self._db.execute(query, (batch,)).fetchone()
        if row is None:
            return 0
        count = len(self.awaited(row[0]))
        self.end(row[0], "forgotten", sent_again=count)
        return count

    def _held(self, key: str) -> bool:
        for table in ("replies", "submitted"):
            if self._db.execute(f"SELECT 1 FROM {table} WHERE key = ?", (key,)).fetchone():
                return True
        row = self._db.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
        return row is not None and row[0] != self._leases.owner and self._leases.lives(row[0], self._db)


ADD_TO_TOTAL = "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
