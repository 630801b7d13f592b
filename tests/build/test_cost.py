"""A budget is never passed by more requests at once, and never starves one that fits."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.cost import Budget
from tuna_trl.errors import BudgetExceeded


@given(st.floats(0.1, 5.0), st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 1.0)), max_size=30))
@settings(deadline=None, max_examples=40)
def test_spending_stays_under_the_cap_whatever_runs_at_once(cap, requests):
    budget = Budget(cap)
    above = []

    def one(worst, share):
        budget.reserve(worst)
        if budget.spent > cap + 1e-9:
            above.append(budget.spent)
        budget.settle(worst, worst * share)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(one, *request) for request in requests]
    errors = [future.exception() for future in futures]
    assert all(error is None or isinstance(error, BudgetExceeded) for error in errors)
    assert not above and budget.spent <= cap + 1e-9
    answered = [w * s for (w, s), error in zip(requests, errors, strict=True) if error is None]
    assert budget.spent == pytest.approx(sum(answered))


def test_a_request_that_fits_once_others_are_settled_waits_for_them():
    budget = Budget(1.0)
    budget.reserve(0.8)
    waiting = threading.Thread(target=budget.reserve, args=(0.8,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    budget.settle(0.8, 0.1)
    waiting.join(10)
    assert not waiting.is_alive()
    assert budget.spent == 0.1


def test_a_request_that_can_never_fit_is_refused_at_once_and_costs_nothing():
    budget = Budget(1.0)
    budget.charge(0.5)
    budget.reserve(0.2)
    with pytest.raises(BudgetExceeded, match=r"max_cost is 1\.00 USD: 0\.5000 USD are spent.*up to 0\.6000"):
        budget.reserve(0.6)
    budget.settle(0.2, 0.2)
    budget.reserve(0.3)


def test_a_cap_of_nothing_lets_free_requests_through_and_no_cap_lets_all():
    Budget(0.0).reserve(0.0)
    with pytest.raises(BudgetExceeded):
        Budget(0.0).reserve(1e-9)
    unlimited = Budget()
    for _ in range(10):
        unlimited.reserve(1e9)


def test_a_total_kept_elsewhere_is_taken_over_and_never_lowers_what_was_spent():
    budget = Budget(1.0)
    budget.observe(0.4)
    budget.observe(0.1)
    assert budget.spent == 0.4
    with pytest.raises(BudgetExceeded):
        budget.reserve(0.7)


def test_reservations_leave_no_dust():
    budget = Budget(1.0)
    amounts = [random.Random(k).random() / 50 for k in range(20)]
    for amount in amounts:
        budget.reserve(amount)
    for amount in reversed(amounts):
        budget.settle(amount, 0.0)
    budget.reserve(1.0)
