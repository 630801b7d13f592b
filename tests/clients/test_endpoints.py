"""Which of several servers gets the next request: the least busy one, in turn, and not the one that just failed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients.endpoints import REST, Endpoints, is_loopback, is_openai, server_urls


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 5), st.integers(0, 30))
def test_requests_in_flight_differ_by_one_at_most(servers, requests):
    pool = Endpoints(list(range(servers)))
    with ExitStack() as stack:
        lent = [stack.enter_context(pool.lend()) for _ in range(requests)]
    counts = [lent.count(server) for server in range(servers)]
    assert max(counts) - min(counts) <= 1


@given(st.integers(2, 5))
def test_equals_take_turns(servers):
    pool = Endpoints(list(range(servers)))
    lent = []
    for _ in range(2 * servers):
        with pool.lend() as server:
            lent.append(server)
    assert lent == list(range(servers)) * 2


def fail(pool):
    with pytest.raises(ZeroDivisionError), pool.lend() as server:
        raise ZeroDivisionError
    return server


def test_a_server_that_failed_rests_and_comes_back():
    clock = Clock()
    pool = Endpoints(["a", "b"], clock)
    assert fail(pool) == "a"
    for _ in range(3):
        with pool.lend() as server:
            assert server == "b"
    clock.now = REST + 1.0
    with pool.lend() as server:
        assert server == "a"


def test_where_all_rest_the_one_that_failed_first_is_tried_first():
    clock = Clock()
    pool = Endpoints(["a", "b"], clock)
    fail(pool)
    clock.now = 5.0
    assert fail(pool) == "b"
    with pool.lend() as server:
        assert server == "a"


def test_the_only_server_is_used_even_while_it_rests():
    pool = Endpoints(["a"])
    assert fail(pool) == fail(pool) == "a"


@pytest.mark.parametrize(
    "url", ["http://localhost:8/v1", "http://127.0.0.7:8/v1", "http://[::1]/v1", "http://a.localhost"]
)
def test_loopback_is_known(url):
    assert is_loopback(url)


@pytest.mark.parametrize("url", ["http://localhost.evil.test/v1", "http://10.0.0.1/v1", "https://api.openai.com/v1"])
def test_what_only_looks_like_loopback_is_not(url):
    assert not is_loopback(url)


def test_openai_is_known_in_every_region_and_nobody_else():
    assert is_openai("https://api.openai.com/v1") and is_openai("https://eu.api.openai.com/v1")
    assert not is_openai("https://api.openai.com.evil.test/v1") and not is_openai("https://my-api.openai.test/v1")


def test_without_an_address_it_is_openais(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert server_urls(None, None) == ["https://api.openai.com/v1"]
