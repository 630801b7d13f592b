"""Asking a judge many questions: in parallel, within a budget, every reply journalled before anybody reads it.

A kill at any instant costs at most the requests that are in flight: they are asked again by the next run, which says
how many. Processes that share a journal never ask the same question. With a batch transport the questions go out by
`batches.py` instead.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from operator import methodcaller

from ..clients.base import BatchTransport, Judge, Reply
from ..errors import BudgetExceeded, BuildError, InputError
from .asking import saying_what_is_kept
from .batches import BatchAsking
from .cost import Budget
from .journal import Journal
from .progress import progress
from .questions import KIND, Answer, Desk, Question, answered, read
from .totals import usage_totals


__all__ = ["Answer", "Question", "ask_all", "read", "usage_totals"]

_LOOK = 0.05  # seconds between two looks for a reply that another process waits for
_LOOKS = 20  # after so many, see whether that process still lives


def ask_all(
    questions: Sequence[Question],
    judge: Judge,
    *,
    journal: Journal,
    budget: Budget,
    max_malformed: int = 2,
    show_progress: bool = True,
    batch: BatchTransport | None = None,
    poll: float = 60.0,
    stop_over_budget: bool = True,
) -> None:
    """Fill `answers` of every question: from the journal where a reply is there, else by asking the judge.

    A malformed reply is asked for again, one that was cut at the limit once more with twice the limit (where the judge
    `gives_room`), a refusal never. Each reply is kept, under a key of its own.

    Args:
        questions: distinct questions (no two with the same key).
        budget: the cap; it is kept together with all who use this journal ([`Budget.share`]).
        max_malformed: how often a malformed reply is asked for again.
        batch: ask in batches: `judge.batch()`. The first question is asked by itself, so that a request that the API
            refuses is refused now and not a day later.
        poll: seconds between two looks at a batch.
        stop_over_budget: raise when a question does not fit under the cap; False gives it a verdict of status
            `over_budget`, which is not journalled, and goes on with those that fit.

    Raises:
        BudgetExceeded: the next request could cost more than what is left; nothing received is lost.
        InputError: the judge says that a request is wrong; the message names the row.
        BuildError: the judge gave no reply.
        KeyboardInterrupt: after the replies in flight were received and journalled; batches go on at the provider's.
    """
    desk = Desk(
        judge,
        journal,
        budget,
        batch=batch,
        max_malformed=max_malformed,
        stop_over_budget=stop_over_budget,
        show_progress=show_progress,
    )
    due = [question for question in questions if desk.look(question)]
    _count_spent(questions, desk)
    before = journal.sent_again()
    note = f"{answered(questions)} of {len(questions)} judgments were already in the journal"
    single = _Single(desk)
    kept = f"of {len(questions)} judgments"
    try:
        with saying_what_is_kept(journal, lambda: f"{answered(questions)} {kept}"):
            if batch is not None:
                probing = f"{judge.name} judges one question by itself, before the batches"
                asking = BatchAsking(desk, batch, single=lambda one: single.run([one], probing), poll=poll)
                asking.run(questions, note)
            else:
                _refuse_batched(due, desk)
                single.run(due, f"{judge.name} judges", note)
                while due := [question for question in due if desk.look(question)]:
                    single.run(due, f"{judge.name} judges again what was malformed or cut")
    finally:
        again = journal.sent_again() - before
        if show_progress:
            if again:
                _say(f"{again} requests were in flight when an earlier run ended and were sent again.")
            _say(f"{judge.name}: {usage_totals(questions, judge).line()}")


def _count_spent(questions: Sequence[Question], desk: Desk) -> None:
    """Count what the journal's replies cost; the journals of older versions hold no sum."""
    spent = math.fsum(
        desk.billed(question.asked(attempt), answer.reply, answer.batch)
        for question in questions
        for attempt, answer in enumerate(question.answers)
    )
    desk.budget.observe(spent)
    desk.budget.share(desk.journal)


def _refuse_batched(due: Sequence[Question], desk: Desk) -> None:
    """What is in a batch at the provider's is not asked for singly: it would be paid for twice."""
    batches = desk.journal.batches(lambda known: known.open_batches())
    if batches and any(desk.journal.batches(methodcaller("waits", desk.key(q))) for q in due):
        raise InputError(
            f"Some of these questions are in batches that are not collected yet ({', '.join(batches)}). Run the same "
            "build in batch mode to collect them (--batch)."
        )


class _Single:
    """Sends questions in chunks of `judge.max_batch`, `judge.concurrency` chunks at once."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.judge, self.journal, self.budget = desk, desk.judge, desk.journal, desk.budget
        self._stopping = threading.Event()

    def run(self, questions: Sequence[Question], title: str, note: str = "") -> None:
        """Ask all; at the first error nothing more is sent, what is in flight is received, and the error is raised."""
        with (
            progress(title, len(questions), note, show=self.desk.show_progress) as advance,
            ThreadPoolExecutor(max(1, self.judge.concurrency), thread_name_prefix="judge") as pool,
        ):
            try:
                rest = self._ask_each(questions, pool, advance)
                while rest := self._still_asked(rest, advance):  # or asked by one that has died
                    rest = self._ask_each(rest, pool, advance)
            except BaseException as error:
                self._stopping.set()
                if isinstance(error, KeyboardInterrupt) and self.desk.show_progress:
                    _say("Stopping when what is in flight has arrived; Ctrl-C again gives it up.")
                raise  # leaving the pool waits for what is in flight; what is queued sees the flag

    def _ask_each(
        self, questions: Sequence[Question], pool: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> list[Question]:
        """Ask what nobody else asks; returns the rest."""
        size = max(1, self.judge.max_batch)
        chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
        futures = {pool.submit(self._ask_free, chunk): chunk for chunk in chunks}
        rest: list[Question] = []
        for future in as_completed(futures):
            taken = future.result()
            advance(len(futures[future]) - len(taken))
            rest += taken
        return rest

    def _still_asked(self, questions: list[Question], advance: Callable[[int], None]) -> list[Question]:
        """Wait a second for what another process asks; returns what has not arrived."""
        for _ in range(_LOOKS):
            if not questions:
                break
            time.sleep(_LOOK)
            left = [question for question in questions if self.journal.get(self.desk.key(question)) is None]
            advance(len(questions) - len(left))
            questions = left
        return questions

    def _ask_free(self, chunk: Sequence[Question]) -> list[Question]:
        """One call of the judge: reserve, claim, send, journal, settle, and only then read.

        Returns:
            those that another process is asking.
        """
        if self._stopping.is_set() or not chunk:  # a long queue is to be let go of without hashing and pricing it
            return []
        keys = {self.desk.key(question): question for question in chunk}
        worst = math.fsum(self.desk.worst(self.desk.next(question)) for question in chunk)
        try:
            self.budget.reserve(worst)
        except BudgetExceeded as error:
            if self.desk.stop_over_budget:
                self._stopping.set()
                raise
            for question in chunk:
                self.desk.give_up(question, str(error))
            return []
        mine: dict[str, Question] = {}
        replies: list[Reply] = []
        taken: list[Question] = []
        try:
            if self._stopping.is_set():  # while it waited for money
                return []
            mine, taken = self._claim(keys)
            if mine:
                replies = self._replies(list(mine.values()))
                cost = math.fsum(
                    self.desk.billed(self.desk.next(question), reply)
                    for question, reply in zip(mine.values(), replies, strict=True)
                )
                records = {key: reply.to_json() for key, reply in zip(mine, replies, strict=True)}
                self.journal.put_all(records, kind=KIND, cost=cost)
        except BaseException:
            self._stopping.set()  # before the reservation is given back, which wakes those that wait for it
            self.journal.release(list(mine))
            raise
        finally:
            self.budget.settle(worst, 0.0)  # what it cost is in the journal's sum
        for question, reply in zip(mine.values(), replies, strict=True):
            self.desk.answer(question, reply)
        return taken

    def _claim(self, keys: dict[str, Question]) -> tuple[dict[str, Question], list[Question]]:
        """(those to be asked now, those that another process is asking); what is there already needs neither."""
        mine, taken = {}, []
        try:
            for key, question in keys.items():
                state = self.journal.claim([key]).state
                if state == "mine":
                    mine[key] = question
                elif state == "taken":
                    taken.append(question)
                elif state == "batch":
                    _refuse_batched([question], self.desk)
        except BaseException:
            self.journal.release(list(mine))
            raise
        return mine, taken

    def _replies(self, chunk: Sequence[Question]) -> list[Reply]:
        try:
            replies = self.judge.ask([self.desk.next(question) for question in chunk])
        except InputError as error:
            raise type(error)(f"{', '.join(question.where for question in chunk)}: {error}") from None
        if len(replies) != len(chunk):
            raise BuildError(f"{self.judge.name} returned {len(replies)} replies to {len(chunk)} requests.")
        return replies


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
