"""Scoring given responses on a server: many requests at once, every reply journalled before it is used.

The journalled unit is one reply: the tokens of a prompt, or the score of one response. Equal responses to equal
prompts are asked for once. A kill at any instant costs at most the requests that are in flight. Knows neither ranks
nor datasets.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from ..clients.base import Usage
from ..clients.prompt_logprobs import PromptScorer, Unscored
from ..clients.retry import Refused
from ..data.schema import Messages, digest
from ..errors import BuildError, InputError
from .asking import Asker, Stopped, saying_what_is_kept
from .cost import Budget
from .given import GivenRow
from .journal import Journal
from .progress import progress
from .rank_rows import is_empty
from .remote import check_paid
from .score_buckets import Found


Send = Callable[[], tuple[dict[str, Any], Usage]]  # one request: what to keep of its reply, and what it used
_NOTHING = {"logprob": None, "num_tokens": None}
_OF_THE_ROW = (400, 413, 422)  # statuses that a living server gives to one request (mostly: too long)


def score_remote(
    rows: Iterable[GivenRow],
    scorer: PromptScorer,
    *,
    journal: Journal,
    budget: Budget,
    retry: bool = False,
    max_length: int | None = None,
    total: int | None = None,
    show_progress: bool = True,
) -> Iterator[tuple[GivenRow, Found]]:
    """Each row with its scores, in order; rows are read as they are needed, a few hundred ahead.

    The server is held against itself ([`PromptScorer.check`]) before the first request, and not at all when the
    journal holds everything. A request that fails after its retries leaves its responses unscored (`reason`
    `unanswered`) and is not sent again by the next run, unless `retry`. When nothing but failures comes back, the
    server is taken to be down: the run stops, and those failures are forgotten.

    Args:
        budget: the cap; every request reserves its worst case first.
        max_length: tokens that a prompt with one response may have; longer ones are asked for and not ranked.
        total: number of rows, for the progress bar.

    Raises:
        BudgetExceeded: the next request could cost more than what is left; nothing received is lost.
        BuildError: the server cannot score given text, or gives nothing but failures.
        KeyboardInterrupt: after the replies in flight were received and journalled.
    """
    asking = ScoreAsking(scorer, journal, budget, retry, max_length)
    title = f"Scoring on {scorer.name}"
    with progress(title, total, unit="rows", closing=asking.said, show=show_progress) as advance:
        with saying_what_is_kept(journal, asking.kept, "command"):
            for result in asking.each(rows):
                advance(1)
                yield result


class ScoreAsking(Asker):
    """Sends requests, `scorer.concurrency` at once, and puts what came back in order."""

    unit = "scores"
    lost = "responses were not scored by the server"

    def __init__(
        self, scorer: PromptScorer, journal: Journal, budget: Budget, retry: bool, max_length: int | None
    ) -> None:
        super().__init__(journal, budget, scorer.concurrency)
        self.scorer, self.retry, self.max_length = scorer, retry, max_length
        self.base = digest(["given", scorer.fingerprint()])
        self._checking, self._checked = threading.Lock(), False
        self._asked: set[str] = set()  # keys that a thread is asking for
        self._failed_now: set[str] = set()  # requests that failed in this run: not sent again in it
        self._answered = threading.Condition()

    def kept(self) -> str:
        """What is in the journal, in words."""
        count = self.known + self.received
        return f"{count} scores" if count else ""

    def missing(self, row: GivenRow, asked: set[int]) -> Iterator[tuple[Messages, str | None]]:
        """The requests that a row needs and the journal does not hold: its prompt with a text, or without one.

        Args:
            asked: hashes of what was found missing before, which is added to.
        """
        for response in row.responses:
            whats = [_what(row, response), ["prompt", row.prompt]]
            if is_empty(response) or self._known(whats[0]) is not None:
                continue
            for what, text in zip(whats, (response["content"], None), strict=True):
                short = int(digest(what)[:16], 16)  # eight bytes of a request are kept, not the request
                if short not in asked and self._known(what) is None:
                    asked.add(short)
                    yield row.prompt, text

    def each(self, rows: Iterable[GivenRow]) -> Iterator[tuple[GivenRow, Found]]:
        """Results in the order of `rows`; at most `ahead` rows are on their way at once."""
        pending: deque[tuple[GivenRow, Future[Found]]] = deque()
        with self.pool("scorer") as pool:
            for row in rows:
                pending.append((row, pool.submit(self._row, row)))
                while pending and (pending[0][1].done() or len(pending) >= self.ahead):
                    yield pending[0][0], pending.popleft()[1].result()
            while pending:
                yield pending[0][0], pending.popleft()[1].result()

    def _row(self, row: GivenRow) -> Found:
        """The scores of one row, in a thread of the pool."""
        try:
            return [dict(_NOTHING) if is_empty(each) else self._response(row, each) for each in row.responses]
        except BaseException as error:
            self.stop(error)
            raise

    def _response(self, row: GivenRow, response: Mapping[str, Any]) -> dict[str, Any]:
        text, cut = response["content"], response["finish_reason"] == "length"
        what = _what(row, response)
        record = self._known(what)
        if record is None:
            start = self._start(row)
            record = start if "failure" in start else self._ask(what, self._scoring(row, start["ids"], text, cut), row)
            with self._lock:
                self.received += "failure" not in record
        else:
            with self._lock:
                self.known += 1
        if "failure" in record:
            with self._lock:
                self.failures += 1
            return {**_NOTHING, "reason": "unanswered", "failure": record["failure"]}
        if self.max_length is not None and (record.get("length") or 0) > self.max_length:
            return dict(_NOTHING)
        return {name: record[name] for name in ("logprob", "num_tokens", "reason") if name in record}

    def _start(self, row: GivenRow) -> dict[str, Any]:
        """The tokens of a row's prompt."""

        def send() -> tuple[dict[str, Any], Usage]:
            ids, usage = self.scorer.start(row.prompt)
            return {"ids": list(ids)}, usage

        return self._known(["prompt", row.prompt]) or self._ask(["prompt", row.prompt], send, row)

    def _scoring(self, row: GivenRow, ids: list[int], text: str, cut: bool) -> Send:
        def send() -> tuple[dict[str, Any], Usage]:
            try:
                logprobs, length, usage = self.scorer.response(row.prompt, ids, text, cut=cut)
            except Unscored as error:  # a reply, and so an answer: asking again would give the same
                return {**_NOTHING, "reason": error.reason}, error.usage
            if not logprobs:  # nothing at all, and no end that counts
                return {**_NOTHING, "reason": "not_finite"}, usage
            return {"logprob": math.fsum(logprobs), "num_tokens": len(logprobs), "length": length}, usage

        return send

    def _known(self, what: list[Any]) -> dict[str, Any] | None:
        """The record of a request; that of a failure only where it is not to be sent again."""
        _, record = self._latest(what)
        again = self.retry and record is not None and "failure" in record and digest(what) not in self._failed_now
        return None if again else record

    def _latest(self, what: list[Any]) -> tuple[str, dict[str, Any] | None]:
        """The key under which a request is to be sent next, and what came of the last time."""
        number, record = 0, None
        while record is None or "failure" in record:  # a failure that was asked for again has another key
            key = digest([self.base, *what, number])
            found = self.streak.record(key)
            if found is None:
                break
            record, number = found, number + 1
        return key, record

    def _ask(self, what: list[Any], send: Send, row: GivenRow) -> dict[str, Any]:
        """Reserve, claim, send, journal, settle."""
        worst = self._worst(row, what[2] if what[0] == "response" else None)
        key, _ = self._latest(what)
        self._check_once()
        while True:
            with self._alone(key):
                if (record := self.streak.record(key)) is not None:
                    return record
                self.budget.reserve(worst)
                try:
                    if self._stopping.is_set():
                        raise Stopped
                    if self.journal.claim([key]).state == "mine":
                        record = self._send(key, send, worst)
                        if "failure" in record:
                            self._failed_now.add(digest(what))
                        return record
                finally:
                    self.budget.observe(self.journal.spent())
                    self.budget.settle(worst, 0.0)  # what it cost is in the journal's sum
            self._stopping.wait(0.05)  # another process is asking

    def _send(self, key: str, send: Send, worst: float) -> dict[str, Any]:
        doubted = bool(self.streak)
        try:
            record, usage = send()
        except (BuildError, InputError) as error:
            lives = isinstance(error, Refused) and error.status in _OF_THE_ROW
            record = self.streak.fail([key], error, of_the_row=lives)
        except BaseException:
            self.journal.release([key])
            raise
        else:
            lives, cost = True, self.scorer.cost(usage)
            self.journal.put_all({key: record}, kind="score", cost=worst if cost is None else cost)
        if lives and doubted:  # a reply to what was sent before the first failure does not say that it still lives
            self.streak.end()
        return record

    def _check_once(self) -> None:
        """The server's self-check, before the first request of a run; other threads wait for it."""
        with self._checking:
            if self._checked or self._stopping.is_set():
                return
            worst = self.scorer.worst_check_cost() or 0.0
            self.budget.reserve(worst)
            try:
                with check_paid(self.scorer, self.journal, self.budget):
                    self.scorer.check()
            except BaseException as error:
                self.stop(error)  # before the next thread is let in
                raise
            finally:
                self.budget.settle(worst, 0.0)
            self._checked = True

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One thread at a time asks for a key: the lease on it is the process's."""
        with self._answered:
            while key in self._asked:
                self._answered.wait()
            self._asked.add(key)
        try:
            yield
        finally:
            with self._answered:
                self._asked.discard(key)
                self._answered.notify_all()

    def _worst(self, row: GivenRow, text: str | None) -> float:
        worst = self.scorer.worst_case_cost(row.prompt, text)
        return worst or 0.0  # unknown only without a cap: `check_spending`


def _what(row: GivenRow, response: Mapping[str, Any]) -> list[Any]:
    """What the score of a response depends on, beside the server."""
    return ["response", row.prompt, response["content"], response["finish_reason"] == "length"]
