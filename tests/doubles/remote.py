"""A remote sampler without a network, everything counted, and a loopback server for samplers of killed processes."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

from doubles.loopback import Canned, Loopback
from tuna_trl.clients.base import Sample, Usage


class CountingRemote:
    """Samples are a function of prompt, seed and place; `requests` records (prompt text, n, seed) of each request.

    Args:
        make: `(prompt text, seed, place) -> Sample`, instead of the built-in function.
        before: called with the number of each request (0, 1, ...) and the prompt's text, before it is answered.
        per_request: what `check` says; None = as many as are asked for.
        gives: samples that a request really gives, at most.
        price: USD a sample; None = not known. `worst` is the bound of a sample's price.
    """

    name = "remote-1"

    def __init__(
        self,
        make: Callable[[str, int, int], Sample] | None = None,
        before: Callable[[int, str], Any] = lambda number, text: None,
        *,
        per_request: int | None = None,
        gives: int = 1000,
        concurrency: int = 3,
        paid: bool = False,
        price: float | None = 0.0,
        worst: float | None = None,
        delay: float = 0.0,
    ) -> None:
        self.make, self.before = make or draw, before
        self.per_request, self.gives, self.concurrency = per_request, gives, concurrency
        self.paid, self.price, self.worst, self.delay = paid, price, price if worst is None else worst, delay
        self.requests: list[tuple[str, int, int]] = []
        self.checks = 0
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def fingerprint(self) -> dict[str, Any]:
        return {"sampler": "counting"}

    def check(self, sampling, n):
        self.checks += 1
        return self.per_request or n

    def request(self, prompt, n, sampling, *, seed):
        text = prompt[-1]["content"]
        with self._lock:
            number = len(self.requests)
            self.requests.append((text, n, seed))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.before(number, text)
            time.sleep(self.delay)
            return [self.make(text, seed, place) for place in range(min(n, self.gives))]
        finally:
            with self._lock:
                self._at_once -= 1

    def worst_case_cost(self, prompt, n, sampling):
        return None if self.worst is None else n * self.worst

    def cost(self, usage):
        return None if self.price is None else self.price * usage.thinking  # `draw` counts samples there


def draw(text: str, seed: int, place: int) -> Sample:
    noise = hashlib.sha256(f"{text}|{seed}|{place}".encode()).digest()
    logprobs = tuple(-(byte + 1) / 37 for byte in noise[: 2 + noise[0] % 5])
    return Sample(noise.hex()[:12], logprobs, "stop", Usage(3, output=len(logprobs), thinking=1))


class LoopbackRemote:
    """Asks a [`CountingServer`] on this machine, one sample a request."""

    name = "loopback-1"
    paid = False

    def __init__(self, port: int, concurrency: int = 4) -> None:
        self.port, self.concurrency = port, concurrency

    def fingerprint(self) -> dict[str, Any]:
        return {"sampler": "loopback"}

    def check(self, sampling, n):
        return 1

    def request(self, prompt, n, sampling, *, seed):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/", json.dumps([prompt[-1]["content"], seed]))
        reply = json.loads(connection.getresponse().read())
        connection.close()
        return [Sample.from_json(reply)]

    def worst_case_cost(self, prompt, n, sampling):
        return 0.0

    def cost(self, usage):
        return 0.0


class CountingServer(Loopback):
    """Answers `[text, seed]` with a sample, after `delay` seconds; `asked` counts what was asked. Serves at once."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.asked: Counter[tuple[str, int]] = Counter()
        self.delay, self.lock = delay, threading.Lock()
        self.__enter__()

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        text, seed = json.loads(raw)
        with self.lock:
            self.asked[text, seed] += 1
        time.sleep(self.delay)
        return Canned(body=json.dumps(draw(text, seed, 0).to_json()).encode())

    def total(self) -> int:
        with self.lock:
            return self.asked.total()

    def close(self) -> None:
        self.__exit__()
