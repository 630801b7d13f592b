"""Laws of failures in a row: so many of the server's own stop a run and are forgotten; a row's own never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.build.journal import Journal
from tuna_trl.build.streak import Streak
from tuna_trl.clients.retry import Refused
from tuna_trl.errors import BudgetExceeded, BuildError


MOST = 16
SAID = BuildError("no reply from https://user@host:1/v1")


@pytest.fixture
def journal():
    with Journal(":memory:") as journal:
        yield journal


def fail(streak, key, **options):
    streak.journal.claim([key])
    return streak.fail([key], SAID, **options)


@given(st.lists(st.sampled_from(["reply", "server", "row"]), max_size=80))
def test_a_server_is_down_after_sixteen_of_its_failures_without_a_reply_between_them(events):
    with Journal(":memory:") as journal:
        streak, in_a_row, settled = Streak(journal, 1), 0, 0
        for place, event in enumerate(events):
            if event == "reply":
                streak.end()
                settled, in_a_row = settled + in_a_row, 0
            elif event == "row":
                fail(streak, str(place), of_the_row=True)
                settled += 1
            elif in_a_row == MOST - 1:
                with pytest.raises(BuildError, match="16 requests in a row failed; the last one: no reply"):
                    fail(streak, str(place))
                streak.end()  # a reply that was on its way changes nothing any more
                break
            else:
                fail(streak, str(place))
                in_a_row += 1
            assert bool(streak) == (in_a_row > 0)
            assert streak.record(str(place)) == (None if event == "reply" else {"failure": "no reply from <server>"})
        assert journal.count("failure") == settled


def test_what_is_forgotten_is_free_for_the_next_run(journal):
    streak = Streak(journal, 1)
    fail(streak, "a")
    streak.forget()
    assert journal.get("a") is None and journal.claim(["a"]).state == "mine"


def test_many_requests_at_once_are_given_more_failures():
    with Journal(":memory:") as journal:
        streak = Streak(journal, 10)
        for place in range(39):
            fail(streak, str(place))
        with pytest.raises(BuildError, match="40 requests in a row"):
            fail(streak, "last")


def test_money_that_is_gone_is_no_failure_of_a_request(journal):
    streak = Streak(journal, 1)
    with pytest.raises(BudgetExceeded):
        streak.fail(["a"], BudgetExceeded("max_cost is 1 USD"))
    assert not streak and journal.count() == 0


def test_a_refusal_is_kept_in_the_servers_words(journal):
    streak = Streak(journal, 1)
    assert streak.fail(["a"], Refused("too long", 400, True), of_the_row=True) == {"failure": "too long"}
    assert journal.get("a") == {"failure": "too long"}
