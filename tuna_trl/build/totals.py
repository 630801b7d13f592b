"""What asking a judge came to: tokens by kind, requests, price, and how the questions ended. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any

from ..clients.base import Judge, Usage
from .cost import total_cost
from .questions import Answer, Question


@dataclass(frozen=True)
class UsageTotals:
    """Sums over all replies to some questions, those of earlier runs included.

    `usage` counts every reply, `batch` those that came in batches; `cost` is in USD, None where a price is not known.
    `statuses` counts questions by how they ended, `replies` counts replies by how they were read: a question whose
    first reply was malformed and whose second is good is one `ok`, of two replies.
    """

    questions: int
    requests: int
    batch_requests: int
    usage: Usage
    batch: Usage
    cost: float | None
    statuses: dict[str, int] = field(default_factory=dict)
    replies: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """All of it in one line, for people."""
        ended = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        parts = [f"{self.questions} judgments ({ended or 'none asked'})"]
        if self.requests:
            batched = f", {self.batch_requests} of them in batches" if self.batch_requests else ""
            parts.append(f"{self.requests} requests{batched}")
            parts.append(self._tokens())
        parts.append("price not known" if self.cost is None else f"{self.cost:.4f} USD")
        return "; ".join(parts) + "."

    def _tokens(self) -> str:
        usage = self.usage
        more = {"read from the cache": usage.cached, "written to it": usage.cache_write}
        cached = "".join(f", {count:,} {what}" for what, count in more.items() if count)
        thinking = f" ({usage.thinking:,} of them thinking)" if usage.thinking else ""
        return f"{usage.input:,} tokens in{cached}, {usage.output:,} out{thinking}"


def usage_totals(questions: Sequence[Question], judge: Judge) -> UsageTotals:
    """What these questions came to; an answer that several questions share counts once.

    Args:
        judge: prices replies whose answer holds no price.
    """
    answers = {id(answer): answer for question in questions for answer in question.answers}.values()
    asked = [answer for answer in answers if answer.verdict.status != "over_budget"]
    costs = [_cost(answer, judge) for answer in asked]
    last = [question.answers[-1].verdict.status if question.answers else "not asked" for question in questions]
    batched = [answer for answer in asked if answer.batch]
    return UsageTotals(
        questions=len(questions),
        requests=len(asked),
        batch_requests=len(batched),
        usage=_sum(asked),
        batch=_sum(batched),
        cost=total_cost(costs),
        statuses=dict(sorted(Counter(last).items())),
        replies=dict(sorted(Counter(answer.verdict.status for answer in asked).items())),
    )


def _cost(answer: Answer, judge: Judge) -> float | None:
    return judge.cost(answer.reply.usage) if answer.cost is None and not answer.batch else answer.cost


def _sum(answers: Sequence[Answer]) -> Usage:
    return reduce(add, (answer.reply.usage for answer in answers), Usage())
