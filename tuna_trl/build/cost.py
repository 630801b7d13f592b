"""The cap on what a build may spend: worst cases are reserved before a request is sent, real prices settled after.

Prices stand in `tuna_trl.clients.prices`. Thread-safe; touches nothing but its own numbers, and those in the journal
once it is shared.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import BudgetExceeded


if TYPE_CHECKING:
    from .journal import Journal

_OTHERS = 0.2  # seconds between two looks at what other processes have given back


def total_cost(costs: Sequence[float | None]) -> float | None:
    """The sum in USD; None if one of the prices is not known."""
    known = [cost for cost in costs if cost is not None]
    return math.fsum(known) if len(known) == len(costs) else None


class Budget:
    """Money in USD: what was spent, what is reserved for requests in flight, and the cap on their sum.

    Args:
        max_cost: the cap; `math.inf` for none.

    A request whose reply was lost on the way (and was repeated) may have been billed without being counted here.
    """

    def __init__(self, max_cost: float = math.inf) -> None:
        self.max_cost = max_cost
        self.spent = 0.0
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = threading.Condition()
        self._journal: Journal | None = None
        self._purse = secrets.token_hex(8)
        self._before = 0.0  # spent, and not in the journal's own sum

    def share(self, journal: Journal) -> None:
        """From now on keep the cap together with everybody who uses this journal: what counts is what all of them
        spent, have in flight and may still owe for batches. What a request cost is then told to the journal
        ([`Journal.put_all`]), not to [`settle`]."""
        with self._changed:
            if self._journal is None:
                self._journal = journal
                self._before = max(0.0, self.spent - journal.spent())
            self._look()

    @property
    def cap(self) -> float:
        """The cap as the journal counts: on what is in its own sum."""
        return self.max_cost - self._before

    def charge(self, amount: float) -> None:
        """Count money that was spent before, by a reply found in the journal; never raises."""
        with self._changed:
            self.spent += amount

    def observe(self, total: float) -> None:
        """Take over a total that is kept elsewhere (in the journal, by all who share it), where it is larger."""
        with self._changed:
            self.spent = max(self.spent, total)

    def look(self) -> None:
        """Take over what all who share the journal have spent."""
        with self._changed:
            self._look()

    def reserve(self, worst: float) -> None:
        """Set `worst` aside for a request about to be sent; each call is followed by one [`settle`].

        When it would fit but for what is reserved by others, this waits for them: most cost far less than their worst
        case. What batches may cost counts as spent: they take hours.

        Raises:
            BudgetExceeded: it does not fit into what is left of `max_cost`.
        """
        with self._changed:
            while True:
                fits, others, batches = self._take(worst)
                if fits:
                    break
                if (self._in_flight == 0 and others == 0) or self.spent + batches + worst > self.max_cost:
                    raise BudgetExceeded(self._no_room(worst, batches))
                self._changed.wait(_OTHERS if others else None)
            self._reserved += worst
            self._in_flight += 1

    def settle(self, worst: float, actual: float) -> None:
        """Give back a reservation and count what the request really cost (0.0 if it was never answered, or if the
        journal was told)."""
        with self._changed:
            self._in_flight -= 1
            # Summing and subtracting floats leaves dust; with nothing in flight nothing is reserved.
            self._reserved = self._reserved - worst if self._in_flight else 0.0
            try:
                if self._journal is not None and worst:
                    self._look()
                    self._journal.money(lambda ledger: ledger.set(self._purse, self._reserved))
            finally:
                self.spent += actual
                self._changed.notify_all()

    def _take(self, worst: float) -> tuple[bool, float, float]:
        """Whether it fits (then it is written down for others); what others have in flight; what batches may cost."""
        if self._journal is None or not worst:
            return self.spent + self._reserved + worst <= self.max_cost, 0.0, 0.0
        money = self._journal.money(lambda ledger: ledger.take(self._purse, self._reserved, worst, self.cap))
        self.spent = max(self.spent, self._before + money.spent)
        return money.taken, money.others, money.batches

    def _look(self) -> None:
        if self._journal is not None:
            self.spent = max(self.spent, self._before + self._journal.spent())

    def _no_room(self, worst: float, batches: float) -> str:
        owed = f", batches in flight may cost {batches:.4f} USD" if batches else ""
        return (
            f"max_cost is {self.max_cost:.2f} USD: {self.spent:.4f} USD are spent{owed}, and the next request could "
            f"cost up to {worst:.4f} USD."
        )
