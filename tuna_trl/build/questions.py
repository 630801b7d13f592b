"""A question to a judge, its answers, and when it is due to be asked again. Asks nobody; reads the journal.

Knows nothing of rows, ranks or samplers. What is asked is `judging.py`, in batches `batches.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..clients.base import BatchTransport, Judge, JudgeRequest, Reply, Verdict
from ..clients.too_long import TOO_LONG
from ..data.schema import digest
from ..errors import InputError
from .cost import Budget
from .journal import Journal


KIND = "judgment"  # of replies in the journal
ROOM = 2  # times the limit that a reply may take after one was cut


@dataclass(frozen=True)
class Answer:
    """A reply and how the judge's protocol reads it. `batch`: it came in a batch; `cost`: its price in USD, if known.

    Where the money did not reach, it is an empty reply with a verdict of status `over_budget`.
    """

    reply: Reply
    verdict: Verdict
    batch: bool = False
    cost: float | None = None


@dataclass
class Question:
    """One repeat of one row. `answers` holds every attempt, in order; the last one counts."""

    where: str  # the row, as an error names it
    request: JudgeRequest
    permutation: tuple[int, ...]  # permutation[shown place] = index of the response
    answers: list[Answer] = field(default_factory=list)

    def asked(self, attempt: int) -> JudgeRequest:
        """The request of an attempt: with more room once a reply was cut at the limit."""
        cut = any(answer.verdict.status == "truncated" for answer in self.answers[:attempt])
        return replace(self.request, room=ROOM) if cut else self.request

    def key(self, judge: Judge, attempt: int, fingerprint: dict[str, Any] | None = None) -> str:
        """The journal key of an attempt: everything that the reply can depend on, and no URL.

        Args:
            fingerprint: `judge.fingerprint()`, where it is at hand.
        """
        request = asdict(self.asked(attempt))
        if request["room"] == 1:  # keys of journals from before there was room
            del request["room"]
        return digest(
            {
                "kind": KIND,
                "judge": judge.fingerprint() if fingerprint is None else fingerprint,
                "request": request,
                "permutation": self.permutation,
                "attempt": attempt,
            }
        )

    def due(self, *, max_malformed: int, gives_room: bool) -> bool:
        """Whether it is to be asked: at first, after each of the first malformed replies, and once after a cut one."""
        if not self.answers:
            return True
        statuses = [answer.verdict.status for answer in self.answers]
        if statuses[-1] == "malformed":
            return statuses.count("malformed") <= max_malformed
        if self.answers[-1].reply.stop_reason == TOO_LONG:
            return False  # the question itself does not fit: room for the reply changes nothing
        return statuses[-1] == "truncated" and gives_room and statuses.count("truncated") == 1


class Desk:
    """What one round of asking works with: the judge, the journal, the money.

    Args:
        batch: how the judge is asked in batches; None where it is not (the journal may hold replies of batches).
        stop_over_budget: whether a question that does not fit under the cap is an error, or else a verdict.
    """

    def __init__(
        self,
        judge: Judge,
        journal: Journal,
        budget: Budget,
        *,
        batch: BatchTransport | None = None,
        max_malformed: int = 2,
        stop_over_budget: bool = True,
        show_progress: bool = True,
    ) -> None:
        self.judge, self.journal, self.budget = judge, journal, budget
        self.max_malformed, self.stop_over_budget, self.show_progress = max_malformed, stop_over_budget, show_progress
        self._batch = batch
        self._fingerprint = judge.fingerprint()
        self.judge_id = digest(self._fingerprint)

    def key(self, question: Question) -> str:
        """The key of its next attempt."""
        return question.key(self.judge, len(question.answers), self._fingerprint)

    def next(self, question: Question) -> JudgeRequest:
        """The request of its next attempt."""
        return question.asked(len(question.answers))

    def due(self, question: Question) -> bool:
        gives_room = getattr(self.judge, "gives_room", False)
        return question.due(max_malformed=self.max_malformed, gives_room=gives_room)

    def look(self, question: Question) -> bool:
        """Take what the journal holds of it; whether it is still due."""
        while self.due(question):
            record = self.journal.get(self.key(question))
            if record is None:
                return True
            self.take(question, record)
        return False

    def take(self, question: Question, record: dict[str, Any]) -> None:
        """Read a journalled reply to its next attempt."""
        came_in_batch = record.pop("batch", False)
        self.answer(question, Reply.from_json(record), batch=came_in_batch)

    def answer(self, question: Question, reply: Reply, *, batch: bool = False) -> None:
        request = self.next(question)
        question.answers.append(Answer(reply, read(self.judge, request, reply), batch, self.cost(reply, batch)))

    def cost(self, reply: Reply, batch: bool) -> float | None:
        """Price of a reply in USD, if it is known."""
        if not batch:
            return self.judge.cost(reply.usage)
        if self._batch is None:
            if not hasattr(self.judge, "batch"):
                return None
            self._batch = self.judge.batch()
        return self._batch.cost(reply.usage)

    def billed(self, request: JudgeRequest, reply: Reply, batch: bool = False) -> float:
        """What a reply cost; where its price is not known its worst case, so that a cap is never passed unseen."""
        cost = self.cost(reply, batch)
        return cost if cost is not None else self.judge.worst_case_cost(request) or 0.0

    def worst(self, request: JudgeRequest, transport: BatchTransport | None = None) -> float:
        """Upper bound of a request's price; a price that is not known fits into no cap."""
        worst = (transport or self.judge).worst_case_cost(request)
        if worst is None and math.isfinite(self.budget.max_cost):
            raise InputError(
                f"The price of {self.judge.name} is not known, so max_cost={self.budget.max_cost:g} cannot be kept. "
                "Give its prices in a YAML file (prices=...), or lift the cap with max_cost=math.inf."
            )
        return worst or 0.0

    def give_up(self, question: Question, why: str) -> None:
        """Mark a question that the money does not reach; it is not journalled, so that a larger cap asks it."""
        n = len(question.request.candidates)
        question.answers.append(Answer(Reply(""), Verdict("over_budget", (None,) * n, None, why), cost=0.0))


def answered(questions: Sequence[Question]) -> int:
    """How many questions have a reply."""
    return sum(any(each.verdict.status != "over_budget" for each in question.answers) for question in questions)


def read(judge: Judge, request: JudgeRequest, reply: Reply) -> Verdict:
    """The judge's reading of a reply, with a verdict that cannot rank (no score, NaN, wrong count) as malformed."""
    verdict = judge.parse(request, reply)
    n = len(request.candidates)
    if verdict.status != "ok":
        return verdict
    scores = [score for score in verdict.scores if score is not None]
    if len(verdict.scores) != n or not scores or not all(map(math.isfinite, scores)):
        wrong = f"scores are {verdict.scores}, expected a finite number for each of {n} candidates"
    elif verdict.order is not None and sorted(verdict.order) != list(range(n + (verdict.answer_score is not None))):
        wrong = f"order is {verdict.order}, which does not name each place once"
    else:
        return verdict
    return Verdict("malformed", (None,) * n, None, wrong)
