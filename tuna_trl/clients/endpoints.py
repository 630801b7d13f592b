"""Several servers of one model: which of them gets the next request. Sends nothing itself."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, urlsplit

from ..errors import InputError


C = TypeVar("C")

OPENAI = "https://api.openai.com/v1"
REST = 30.0  # seconds that a server which failed gets no request while another one answers


class Endpoints(Generic[C]):
    """The clients of servers that are the same to their user; thread-safe.

    A request goes to the server with the fewest in flight, in turn among equals. A server that failed rests: it has
    nothing in flight, so it would otherwise draw every request.
    """

    def __init__(self, clients: Sequence[C], clock: Any = time.monotonic) -> None:
        self.clients = tuple(clients)
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = [0] * len(clients)
        self._rests_until = [float("-inf")] * len(clients)
        self._last_used = [0] * len(clients)
        self._turn = 0

    @contextmanager
    def lend(self) -> Iterator[C]:
        """The client to use for one try; a try that raises sends its server to rest."""
        with self._lock:
            place = min(range(len(self.clients)), key=self._order)
            self._turn += 1
            self._last_used[place] = self._turn
            self._in_flight[place] += 1
        rest = self._clock() + REST
        try:
            yield self.clients[place]
            rest = float("-inf")
        finally:
            with self._lock:
                self._in_flight[place] -= 1
                self._rests_until[place] = rest

    def _order(self, place: int) -> tuple[float, int, int]:
        """Rested before resting (the one that rests the shortest first), then by load, then in turn."""
        resting = max(0.0, self._rests_until[place] - self._clock())
        return resting, self._in_flight[place], self._last_used[place]


def server_urls(base_url: str | None, endpoints: Sequence[str] | None) -> list[str]:
    """The addresses to use: `endpoints`, else `base_url`, else OPENAI_BASE_URL, else OpenAI's API.

    Raises:
        InputError: both are given, none is in the list, one is there twice, or one is no address.
    """
    if base_url is not None and endpoints is not None:
        raise InputError("Give `base_url` or `endpoints`, not both.")
    if endpoints is None:
        return [_checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI, "base_url")]
    if isinstance(endpoints, str) or not endpoints:
        raise InputError("`endpoints` must be a list of one or more addresses.")
    urls = [_checked_url(url, f"endpoints[{k}]") for k, url in enumerate(endpoints)]
    if len({url.rstrip("/") for url in urls}) != len(urls):
        raise InputError("`endpoints` names the same address twice.")
    return urls


def _checked_url(url: str, argument: str) -> str:
    """The address of a server, as it was given.

    Raises:
        InputError: it is no http(s) address, or carries a user, a password or a query, where keys end up in logs.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"`{argument}` is no address of a server: expected http://host:port/v1 or https://host/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(f"`{argument}` carries a password or a query. Give the key as `api_key`, the address bare.")
    return url


def is_openai(url: str) -> bool:
    """Whether this is OpenAI's own API, in any of its regions."""
    return f".{_host(url)}".endswith(".api.openai.com")


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    parts = _split(url)
    return (parts.hostname or "") if parts else ""


def _split(url: Any) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is no number
        return parts
    except (ValueError, TypeError, AttributeError):
        return None
