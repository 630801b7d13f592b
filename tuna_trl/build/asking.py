"""What all that ask a server at length have in common: a pool of requests that stops as one, the counts that are said
at the end, and what an error says of the journal. Sends nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..errors import BudgetExceeded, BuildError
from .cost import Budget
from .journal import Journal
from .streak import Streak


class Stopped(Exception):
    """Another thread has failed; its error is the one to show."""


class Asker:
    """Requests to one server, `concurrency` at once; every reply goes into the journal before it is used."""

    unit = "replies"
    lost = "replies failed"  # what is said of failures, after their number

    def __init__(self, journal: Journal, budget: Budget, concurrency: int) -> None:
        self.journal, self.budget, self.concurrency = journal, budget, concurrency
        self.known = self.received = self.failures = 0
        self.streak = Streak(journal, concurrency)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._error: BaseException | None = None

    @property
    def ahead(self) -> int:
        """Rows that are on their way at once, at most."""
        return max(64, 8 * self.concurrency)

    def said(self) -> str:
        """What is said at the end."""
        words = f"{self.known} of {self.known + self.received} {self.unit} were already in the journal"
        if again := self.journal.sent_again():
            words += f"; {again} requests were in flight when an earlier run ended and were sent again"
        return words + (f"; {self.failures} {self.lost}" if self.failures else "")

    @contextmanager
    def pool(self, name: str) -> Iterator[ThreadPoolExecutor]:
        """Threads for requests. At the first error nothing more is sent, and what is in flight is received."""
        self.budget.share(self.journal)
        with ThreadPoolExecutor(max(1, self.concurrency), thread_name_prefix=name) as pool:
            try:
                yield pool
                self.streak.end()
            except BaseException as error:
                self._stopping.set()  # leaving the pool waits for what is in flight; what is queued sees the flag
                if isinstance(error, Stopped):
                    raise self._error or BuildError("The build was stopped.") from None
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self.streak.forget()

    def stop(self, error: BaseException) -> None:
        """Let all threads know; the first error is the one to show."""
        with self._lock:
            if not isinstance(error, Stopped):
                self._error = self._error or error
        self._stopping.set()


@contextmanager
def saying_what_is_kept(journal: Journal, kept: Callable[[], str], again: str = "build") -> Iterator[None]:
    """A [`BudgetExceeded`] or [`BuildError`] from inside says what is in the journal, and how to go on from there.

    Args:
        kept: "12 samples", "" for nothing; called when there is an error.
        again: what is to be run again: the same `build`, the same `command`.
    """
    try:
        yield
    except (BudgetExceeded, BuildError) as error:
        if journal.in_memory or not (words := kept()):
            raise
        dear = isinstance(error, BudgetExceeded)
        kind, way_out = (BudgetExceeded, "Raise max_cost and run") if dear else (BuildError, "Run")
        raise kind(
            f"{error} {words} are in the journal {journal.path}. {way_out} the same {again} again to go on: nothing "
            "received is asked for twice."
        ) from error
