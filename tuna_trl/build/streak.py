"""Failures of a server in a row: when nothing but failures comes back, the server is down, and the rows are not at
fault. Writes to the journal it is given.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from ..errors import BudgetExceeded, BuildError
from .journal import Journal


class Streak:
    """The failures since the last reply: known to this run, and not in the journal until a reply has come.

    Args:
        concurrency: requests in flight at once; the server counts as down after four times as many failed requests
            in a row, 16 at least: a dead server, a revoked key, a quota that is used up.

    May be used by many threads.
    """

    def __init__(self, journal: Journal, concurrency: int) -> None:
        self.journal = journal
        self._most = max(16, 4 * concurrency)
        self._held: dict[str, str] = {}  # key -> reason
        self._requests, self._down = 0, False
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        with self._lock:
            return bool(self._held)

    def record(self, key: str) -> dict[str, Any] | None:
        """What is known of a key, here or in the journal; that of a failure is `{"failure": reason}`."""
        with self._lock:
            reason = self._held.get(key)
        return {"failure": reason} if reason is not None else self.journal.get(key)

    def fail(self, keys: Sequence[str], error: Exception, *, of_the_row: bool = False) -> dict[str, Any]:
        """One failed request, and the record that its keys have from now on.

        Args:
            keys: of the parts of the request; the leases on them are held.
            of_the_row: the server lives and refuses this one request. It is no part of the streak, however many follow
                one another: an input may begin with a hundred prompts that are too long.

        Raises:
            BuildError: the server is down.
        """
        if isinstance(error, BudgetExceeded):
            raise error
        reason = re.sub(r"\w+://\S+", "<server>", str(error))  # it may name the server, which is not for the dataset
        record = {"failure": reason}
        if of_the_row:
            self.journal.put_all(dict.fromkeys(keys, record), kind="failure")
            return record
        with self._lock:
            self._held.update(dict.fromkeys(keys, reason))
            self._requests += 1
            down = self._down = self._requests >= self._most
        if down:
            raise BuildError(f"{self._requests} requests in a row failed; the last one: {error}") from error
        return record

    def end(self) -> None:
        """The server lives: what failed before failed by itself, is journalled, and is not asked again."""
        with self._lock:
            if self._down:
                return
            held, self._held, self._requests = self._held, {}, 0
            if held:  # under the lock: a record is in the one place or in the other
                self.journal.put_all({key: {"failure": reason} for key, reason in held.items()}, kind="failure")

    def forget(self) -> None:
        """The server may be down: what failed is asked again by the next run."""
        if self._held:
            self.journal.release(list(self._held))
