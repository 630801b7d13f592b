"""Asking a judge many questions: in parallel, within a budget, every reply journalled before anybody reads it.

Knows questions and replies; nothing of rows, ranks or samplers. A kill at any instant costs at most the requests that
are in flight: they are asked again by the next run, which says how many.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field

from ..clients.base import Judge, JudgeRequest, Reply, Verdict
from ..data.schema import digest
from ..errors import BudgetExceeded, BuildError, InputError
from .cost import Budget
from .journal import Journal
from .progress import progress


@dataclass(frozen=True)
class Answer:
    """A reply and how the judge's protocol reads it."""

    reply: Reply
    verdict: Verdict


@dataclass
class Question:
    """One repeat of one row. `answers` holds every attempt, in order; the last one counts."""

    where: str  # the row, as an error names it
    request: JudgeRequest
    permutation: tuple[int, ...]  # permutation[shown place] = index of the response
    answers: list[Answer] = field(default_factory=list)

    def key(self, judge: Judge, attempt: int) -> str:
        """The journal key of an attempt: everything that the reply can depend on, and no URL."""
        return digest(
            {
                "kind": "judgment",
                "judge": judge.fingerprint(),
                "request": asdict(self.request),
                "permutation": self.permutation,
                "attempt": attempt,
            }
        )

    def wants(self, attempt: int) -> bool:
        """Whether attempt number `attempt` is due: the first always, a later one after a malformed reply."""
        return len(self.answers) == attempt and (attempt == 0 or self.answers[-1].verdict.status == "malformed")


def ask_all(
    questions: Sequence[Question],
    judge: Judge,
    *,
    journal: Journal,
    budget: Budget,
    max_malformed: int = 2,
    show_progress: bool = True,
) -> None:
    """Fill `answers` of every question: from the journal where a reply is there, else by asking the judge.

    Args:
        questions: distinct questions (no two with the same key).
        max_malformed: how often a malformed reply is asked for again; each reply is kept, under a key of its own.

    Raises:
        BudgetExceeded: the next request could cost more than what is left; nothing received is lost.
        InputError: the judge says that a request is wrong; the message names the row.
        BuildError: the judge gave no reply.
        KeyboardInterrupt: after the replies in flight were received and journalled.
    """
    lost = _read_journal(questions, judge, journal, budget, max_malformed)
    known = sum(bool(question.answers) for question in questions)
    note = f"{known} of {len(questions)} judgments were already in the journal"
    if lost:
        note += f"; {lost} requests were in flight when the last run ended and are sent again"
    asking = _Asking(judge, journal, budget, show_progress)
    try:
        for attempt in range(max_malformed + 1):
            due = [question for question in questions if question.wants(attempt)]
            if attempt == 0:
                asking.run(due, attempt, f"{judge.name} judges", note)
            elif due:
                asking.run(due, attempt, f"{judge.name} judges again what was malformed")
    except (BudgetExceeded, BuildError) as error:
        done = sum(bool(question.answers) for question in questions)
        way_out = "Raise max_cost and run" if isinstance(error, BudgetExceeded) else "Run"
        raise type(error)(
            f"{error} {done} of {len(questions)} judgments are in the journal {journal.path}. "
            f"{way_out} the same build again to go on: nothing received is asked for twice."
        ) from None


def _read_journal(
    questions: Sequence[Question], judge: Judge, journal: Journal, budget: Budget, max_malformed: int
) -> int:
    """Take what earlier runs received, and count its price; returns how many requests were sent but not answered."""
    lost = 0
    for question in questions:
        for attempt in range(max_malformed + 1):
            if not question.wants(attempt):
                break
            key = question.key(judge, attempt)
            record = journal.get(key)
            if record is None:
                lost += journal.get(_sent(key)) is not None
                break
            reply = Reply.from_json(record)
            budget.charge(_billed(judge, question.request, reply))
            question.answers.append(Answer(reply, read(judge, question.request, reply)))
    return lost


class _Asking:
    """Sends questions in chunks of `judge.max_batch`, `judge.concurrency` chunks at once."""

    def __init__(self, judge: Judge, journal: Journal, budget: Budget, show_progress: bool) -> None:
        self.judge, self.journal, self.budget, self.show_progress = judge, journal, budget, show_progress
        self._stopping = threading.Event()

    def run(self, questions: Sequence[Question], attempt: int, title: str, note: str = "") -> None:
        """Ask all; at the first error nothing more is sent, what is in flight is received, and the error is raised."""
        size = max(1, self.judge.max_batch)
        chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
        with (
            progress(title, len(questions), note, show=self.show_progress) as advance,
            ThreadPoolExecutor(max(1, self.judge.concurrency), thread_name_prefix="judge") as pool,
        ):
            futures = {pool.submit(self._ask, chunk, attempt): chunk for chunk in chunks}
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(len(futures[future]))
            except BaseException as error:
                self._stopping.set()
                if isinstance(error, KeyboardInterrupt) and self.show_progress:
                    _say("Stopping when what is in flight has arrived; Ctrl-C again gives it up.")
                raise  # leaving the pool waits for what is in flight; what is queued sees the flag

    def _ask(self, chunk: Sequence[Question], attempt: int) -> None:
        """One call of the judge: reserve, send, journal, settle, and only then read."""
        if self._stopping.is_set():  # a long queue is to be let go of without hashing and pricing it first
            return
        judge = self.judge
        worst = math.fsum(_worst(judge, question.request, self.budget) for question in chunk)
        keys = [question.key(judge, attempt) for question in chunk]
        self.budget.reserve(worst)
        spent = 0.0
        try:
            if self._stopping.is_set():  # while it waited for money
                return
            if judge.paid:  # so that the next run knows what may have been billed without being received
                for key in keys:
                    self.journal.put(_sent(key), {}, kind="sent")
            replies = self._replies(chunk)
            for key, reply in zip(keys, replies, strict=True):
                self.journal.put(key, reply.to_json(), kind="judgment")
            spent = math.fsum(_billed(judge, q.request, r) for q, r in zip(chunk, replies, strict=True))
        except BaseException:
            self._stopping.set()  # before the reservation is given back, which wakes those that wait for it
            raise
        finally:
            self.budget.settle(worst, spent)
        for question, reply in zip(chunk, replies, strict=True):
            question.answers.append(Answer(reply, read(judge, question.request, reply)))

    def _replies(self, chunk: Sequence[Question]) -> list[Reply]:
        try:
            replies = self.judge.ask([question.request for question in chunk])
        except InputError as error:
            raise type(error)(f"{', '.join(question.where for question in chunk)}: {error}") from None
        if len(replies) != len(chunk):
            raise BuildError(f"{self.judge.name} returned {len(replies)} replies to {len(chunk)} requests.")
        return replies


def read(judge: Judge, request: JudgeRequest, reply: Reply) -> Verdict:
    """The judge's reading of a reply, with a verdict that cannot rank (no score, NaN, wrong count) as malformed."""
    verdict = judge.parse(request, reply)
    n = len(request.candidates)
    if verdict.status != "ok":
        return verdict
    scores = [score for score in verdict.scores if score is not None]
    if len(verdict.scores) != n or not scores or not all(map(math.isfinite, scores)):
        wrong = f"scores are {verdict.scores}, expected a finite number for each of {n} candidates"
    elif verdict.order is not None and sorted(verdict.order) != list(range(n)):
        wrong = f"order is {verdict.order}, which does not name each of {n} places once"
    else:
        return verdict
    return Verdict("malformed", (None,) * n, None, wrong)


def _worst(judge: Judge, request: JudgeRequest, budget: Budget) -> float:
    """Upper bound of a request's price; a price that is not known fits into no cap."""
    worst = judge.worst_case_cost(request)
    if worst is None and math.isfinite(budget.max_cost):
        raise InputError(
            f"The price of {judge.name} is not known, so max_cost={budget.max_cost:g} cannot be kept. Give its prices "
            "in a YAML file (prices=...), or lift the cap with max_cost=math.inf."
        )
    return worst or 0.0


def _billed(judge: Judge, request: JudgeRequest, reply: Reply) -> float:
    """What a reply cost; where its price is not known its worst case, so that a cap is never passed unseen."""
    cost = judge.cost(reply.usage)
    return cost if cost is not None else judge.worst_case_cost(request) or 0.0


def _sent(key: str) -> str:
    return f"sent:{key}"


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
