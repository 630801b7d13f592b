"""Asking a server for N responses to every prompt: many requests at once, every reply journalled before it is used.

The journalled unit is one sample of one prompt; a reply with several samples is one commit. A kill at any instant
costs at most the requests that are in flight: they are asked again by the next run, which says how many. Knows
samplers by their protocol, and neither ranks nor datasets.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from ..clients.base import RemoteSampler, Sample, Usage
from ..clients.retry import Refused
from ..data.schema import digest
from ..errors import BuildError, InputError
from .asking import Asker, Stopped, saying_what_is_kept
from .buckets import Ask, Drawn, sample_from_json, sample_seed, sample_to_json
from .cost import Budget
from .items import PromptItem
from .journal import Journal
from .progress import progress
from .teacher_rows import sum_logprob


if TYPE_CHECKING:
    from ..clients.prompt_logprobs import PromptScorer


def ask_each(
    items: Iterable[PromptItem],
    sampler: RemoteSampler,
    ask: Ask,
    *,
    journal: Journal,
    budget: Budget,
    finish: Callable[[Drawn], Any] = lambda drawn: drawn,
    failed: Callable[[Drawn], bool] = lambda drawn: False,
    retry: bool = False,
    total: int | None = None,
    show_progress: bool = True,
) -> Iterator[Any]:
    """What `finish` makes of the responses to each item, in the order of `items`, which are read as they are needed.

    A request that fails after the sampler's own retries fails its row (`Drawn.failures` says why) and is not sent
    again by the next run, unless `retry`. When nothing but failures comes back, the server is taken to be down: the
    build stops, and those failures are forgotten. Prompts that do not fit the model are no such failures.

    Args:
        ask: `bucket_size` and `diversity` are not used.
        budget: the cap; every request reserves its worst case first.
        failed: with `retry`, unusable samples of prompts for which it is true are asked for once more, with new
            seeds; what such a retry of an earlier run gave counts in every run.

    Raises:
        BudgetExceeded: the next request could cost more than what is left; nothing received is lost.
        BuildError: the server gives no log-probs, or nothing but failures.
        KeyboardInterrupt: after the replies in flight were received and journalled.
    """
    asking = Asking(sampler, ask, journal, budget, finish, failed, retry)
    title = f"Sampling from {sampler.name}"
    with progress(title, total, unit="prompts", closing=asking.said, show=show_progress) as advance:
        with saying_what_is_kept(journal, lambda: f"{asking.known + asking.received} samples"):
            for result in asking.each(items):
                advance(1)
                yield result


def check_spending(sampler: RemoteSampler | PromptScorer, max_cost: float | None, journal: Any) -> None:
    """A paid sampler is asked only with a cap and a journal.

    Raises:
        InputError: one of them is missing, or the cap cannot be kept because the price is not known.
    """
    if not sampler.paid:
        return
    if max_cost is None:
        raise InputError(
            f"{sampler.name} costs money: set `max_cost` in USD (--max-cost), the most that this build may spend "
            "(math.inf for no cap)."
        )
    if journal is None:
        raise InputError(
            f"{sampler.name} costs money: set `journal`, a file where every reply is kept, so that a build that stops "
            "half-way pays for nothing twice."
        )
    if math.isfinite(max_cost) and sampler.cost(Usage(input=1, output=1)) is None:
        raise InputError(
            f"The price of {sampler.name} is not known, so max_cost={max_cost:g} cannot be kept. Give its prices in a "
            "YAML file (prices=...), or lift the cap with max_cost=math.inf (--max-cost inf)."
        )


@contextmanager
def check_paid(sampler: Any, journal: Journal, budget: Budget) -> Iterator[None]:
    """Tell the journal what a check of a server costs, passed or not; a sampler that counts it has `check_usage`."""
    before = asdict(getattr(sampler, "check_usage", Usage()))
    try:
        yield
    finally:
        after = asdict(getattr(sampler, "check_usage", Usage()))
        if cost := sampler.cost(Usage(**{name: after[name] - before[name] for name in after})):
            journal.put_all({}, kind="check", cost=cost)
            budget.observe(journal.spent())


@dataclass
class _Pending:
    """One prompt on its way. `records[s]` is the latest of sample s, `retries[s]` the number of its retry."""

    item: PromptItem
    base: str  # what the keys of its samples have in common
    records: list[dict[str, Any] | None]
    retries: list[int]
    futures: list[Future[str]] = field(default_factory=list)
    fresh: bool = False  # asked again in this run
    drawn: Drawn | None = None

    def key(self, sample: int, retry: int) -> str:
        return digest([self.base, sample, retry])

    def done(self) -> Drawn:
        assert self.drawn is not None  # _step says when
        return self.drawn


class Asking(Asker):
    """Sends requests, `sampler.concurrency` at once, and puts what came back in order."""

    unit = "samples"
    lost = "samples failed"

    def __init__(
        self,
        sampler: RemoteSampler,
        ask: Ask,
        journal: Journal,
        budget: Budget,
        finish: Callable[[Drawn], Any],
        failed: Callable[[Drawn], bool],
        retry: bool,
    ) -> None:
        super().__init__(journal, budget, sampler.concurrency)
        self.sampler, self.ask = sampler, ask
        self.finish, self.failed, self.retry = finish, failed, retry
        self.fingerprint = digest(["reply", sampler.fingerprint(), asdict(ask.sampling), ask.seed])
        self.per_request: int | None = None  # samples; found out when the first request is due

    def each(self, items: Iterable[PromptItem]) -> Iterator[Any]:
        """Results in the order of `items`; at most `ahead` prompts are on their way at once."""
        pending: deque[_Pending] = deque()
        with self.pool("sampler") as pool:
            for item in items:
                pending.append(self.begin(item))
                self._step(pending[-1], pool, wait=False)
                while pending and self._step(pending[0], pool, wait=len(pending) >= self.ahead):
                    yield self.finish(pending.popleft().done())
            while pending:
                self._step(pending[0], pool, wait=True)
                yield self.finish(pending.popleft().done())

    def begin(self, item: PromptItem) -> _Pending:
        """A prompt with what the journal holds of it."""
        n = self.ask.n
        base = digest([self.fingerprint, item.prompt_id, item.occurrence])
        pending = _Pending(item, base, [None] * n, [0] * n)
        self._look(pending)
        self.known += sum(record is not None for record in pending.records)
        return pending

    def _step(self, pending: _Pending, pool: ThreadPoolExecutor, *, wait: bool) -> bool:
        """Take a prompt as far as it goes; whether it is complete. With `wait` it is."""
        while pending.drawn is None:
            if pending.futures:
                if not wait and not all(future.done() for future in pending.futures):
                    return False
                outcomes = {future.result() for future in pending.futures}
                pending.futures = []
                if "stopped" in outcomes:
                    raise Stopped
                if outcomes == {"taken"} and not self._look(pending):
                    if not wait:  # another process is asking
                        return False
                    time.sleep(0.05)
            missing = self._look(pending)
            if missing:
                pending.futures = [pool.submit(self._request, pending, group) for group in self._groups(missing)]
            if pending.drawn is None and not wait:
                return False
        return True

    def _groups(self, missing: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """(sample, retry) in requests of what the server gives at once; one seed a request, so one retry number."""
        if self.per_request is None:
            self.per_request = max(1, min(self.ask.n, self._checked()))
        groups: list[list[tuple[int, int]]] = []
        for place in sorted(missing, key=lambda each: (each[1], each[0])):
            if groups and len(groups[-1]) < self.per_request and groups[-1][0][1] == place[1]:
                groups[-1].append(place)
            else:
                groups.append([place])
        return groups

    def _checked(self) -> int:
        """What the sampler's check says; what it used counts as spent, where the sampler knows it."""
        with check_paid(self.sampler, self.journal, self.budget):
            return self.sampler.check(self.ask.sampling, self.ask.n)

    def _look(self, pending: _Pending) -> list[tuple[int, int]]:
        """Read what is there; returns the (sample, retry) that are to be asked for, else sets `drawn`."""
        while True:
            for s, record in enumerate(pending.records):
                if record is None:
                    pending.records[s] = self.streak.record(pending.key(s, pending.retries[s]))
            if missing := [(s, pending.retries[s]) for s, record in enumerate(pending.records) if record is None]:
                return missing
            drawn = self._drawn(pending)
            bad = []
            if self.failed(drawn):
                bad = [s for s, record in enumerate(pending.records) if not (record and _sound(record))]
            newer = {s: self.streak.record(pending.key(s, pending.retries[s] + 1)) for s in bad}
            found = {s: record for s, record in newer.items() if record is not None}
            if not found and (pending.fresh or not self.retry or not bad):
                pending.drawn = drawn
                self.failures += len(drawn.failures)
                return []
            if not found:
                pending.fresh = True
            for s in found or bad:
                pending.retries[s] += 1
                pending.records[s] = found.get(s)

    def _drawn(self, pending: _Pending) -> Drawn:
        records = [record for record in pending.records if record is not None]
        samples = tuple(sample_from_json(record["sample"]) for record in records if "sample" in record)
        failures = tuple(record["failure"] for record in records if "failure" in record)
        return Drawn(pending.item, samples, self.ask.sampling.temperature, 1, None, failures)

    def _request(self, pending: _Pending, places: list[tuple[int, int]]) -> str:
        """One request, in a thread of the pool: reserve, claim, send, journal, settle."""
        if self._stopping.is_set():
            return "stopped"
        keys = [pending.key(*place) for place in places]
        prompt, sampling = pending.item.prompt, self.ask.sampling
        try:
            worst = self._worst(pending.item, len(places))
            self.budget.reserve(worst)
            try:
                claim = None if self._stopping.is_set() else self.journal.claim(keys)
                if claim is None or claim.state != "mine":
                    return "stopped" if claim is None else claim.state
                doubted = bool(self.streak)
                sample, retry = places[0]
                seed = sample_seed(self.ask.seed, pending.item, 1 + 1000 * retry, sample)
                try:
                    samples = self.sampler.request(prompt, len(places), sampling, seed=seed)
                    if not 0 < len(samples) <= len(places):
                        asked = f"{self.sampler.name} was asked for {len(places)} samples and returned {len(samples)}."
                        raise BuildError(asked)
                except (BuildError, InputError) as error:
                    lives = isinstance(error, Refused) and error.too_long
                    self.streak.fail(keys, error, of_the_row=lives)
                else:
                    lives = True
                    self._keep(keys, samples, worst)
                # A reply to what was sent before the first failure does not say that the server still lives.
                if lives and doubted:
                    self.streak.end()
            finally:
                self.budget.observe(self.journal.spent())
                self.budget.settle(worst, 0.0)  # what it cost is in the journal's sum
        except BaseException as error:
            self.stop(error)
            self.journal.release(keys)
            raise
        return "there"

    def _keep(self, keys: list[str], samples: list[Sample], worst: float) -> None:
        # A reply with fewer samples than asked for answers the first; leases on the others are given back.
        records = {key: {"sample": sample_to_json(s)} for key, s in zip(keys, samples, strict=False)}
        cost = self.sampler.cost(reduce(add, (sample.usage for sample in samples), Usage()))
        self.journal.put_all(records, kind="reply", cost=worst if cost is None else cost)
        self.journal.release(keys[len(samples) :])
        with self._lock:
            self.received += len(samples)

    def _worst(self, item: PromptItem, n: int) -> float:
        worst = self.sampler.worst_case_cost(item.prompt, n, self.ask.sampling)
        if worst is None and math.isfinite(self.budget.max_cost):
            raise InputError(
                f"The price of {self.sampler.name} is not known, so max_cost={self.budget.max_cost:g} cannot be kept. "
                "Give its prices in a YAML file (prices=...), or lift the cap with max_cost=math.inf."
            )
        return worst or 0.0


def _sound(record: dict[str, Any]) -> bool:
    return "sample" in record and sum_logprob(sample_from_json(record["sample"])) is not None
