"""The money of all who share one journal: what was spent, and what is set aside for requests in flight, by whom.

A reservation counts while its owner lives ([`Leases.lives`]): one that was in flight when its process died may have
been billed, but is not known to. What a batch may cost counts until it is collected, whoever lives
(`submissions.py`). Touches one table of the journal's file.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass

from .leases import Leases


SCHEMA = """
CREATE TABLE IF NOT EXISTS reserved (
    owner TEXT NOT NULL,      -- the process, as in `owners`
    purse TEXT NOT NULL,      -- one budget of it
    amount REAL NOT NULL,     -- USD
    PRIMARY KEY (owner, purse)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Money:
    """USD: `spent` by all, `others` set aside by living others, `batches` by batches that are not collected yet;
    `taken` says whether what was asked for was set aside."""

    spent: float
    others: float
    batches: float
    taken: bool = False


class Ledger:
    """One process's view; every method may raise `sqlite3.Error`."""

    def __init__(self, db: sqlite3.Connection, lock: threading.Lock, leases: Leases) -> None:
        self._db, self._lock, self._leases = db, lock, leases

    def take(self, purse: str, mine: float, worst: float, cap: float) -> Money:
        """Set `worst` USD aside beside the `mine` USD that are, if all of it fits under `cap`; in one transaction."""
        self._leases.register()
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                money = balance(self._db, self._leases, purse)
                fits = money.spent + money.batches + money.others + mine + worst <= cap
                if fits:
                    self._set(purse, mine + worst)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return Money(money.spent, money.others, money.batches, fits)

    def set(self, purse: str, amount: float) -> None:
        """What is set aside in `purse` from now on."""
        with self._lock:
            self._set(purse, amount)

    def balance(self, purse: str) -> Money:
        with self._lock:
            return balance(self._db, self._leases, purse)

    def _set(self, purse: str, amount: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO reserved VALUES (?, ?, ?)", (self._leases.owner, purse, amount))


def balance(db: sqlite3.Connection, leases: Leases, purse: str) -> Money:
    """The money as it stands, read over a connection that the caller holds."""
    spent = db.execute("SELECT value FROM totals WHERE name = 'spent'").fetchone()
    rows = db.execute("SELECT owner, purse, amount FROM reserved WHERE amount > 0").fetchall()
    others = sum(amount for owner, name, amount in rows if name != purse and leases.lives(owner, db))
    (batches,) = db.execute("SELECT TOTAL(worst) FROM submitted").fetchone()
    return Money(0.0 if spent is None else spent[0], others, batches)
