"""The cap on what a build may spend: worst cases are reserved before a request is sent, real prices settled after.

Prices stand in `tuna_trl.clients.prices`. Thread-safe; touches nothing but its own numbers.
"""

from __future__ import annotations

import math
import threading

from ..errors import BudgetExceeded


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

    def charge(self, amount: float) -> None:
        """Count money that was spent before, by a reply found in the journal; never raises."""
        with self._changed:
            self.spent += amount

    def observe(self, total: float) -> None:
        """Take over a total that is kept elsewhere (in the journal, by all who share it), where it is larger."""
        with self._changed:
            self.spent = max(self.spent, total)

    def reserve(self, worst: float) -> None:
        """Set `worst` aside for a request about to be sent; each call is followed by one [`settle`].

        When it would fit but for what is reserved by others, this waits for them: most cost far less than their worst
        case.

        Raises:
            BudgetExceeded: it does not fit into what is left of `max_cost`.
        """
        with self._changed:
            while self.spent + self._reserved + worst > self.max_cost:
                if self._in_flight == 0 or self.spent + worst > self.max_cost:
                    raise BudgetExceeded(
                        f"max_cost is {self.max_cost:.2f} USD: {self.spent:.4f} USD are spent, and the next request "
                        f"could cost up to {worst:.4f} USD."
                    )
                self._changed.wait()
            self._reserved += worst
            self._in_flight += 1

    def settle(self, worst: float, actual: float) -> None:
        """Give back a reservation and count what the request really cost (0.0 if it was never answered)."""
        with self._changed:
            self._in_flight -= 1
            # Summing and subtracting floats leaves dust; with nothing in flight nothing is reserved.
            self._reserved = self._reserved - worst if self._in_flight else 0.0
            self.spent += actual
            self._changed.notify_all()
