"""What is measured of a trained arm, prompt by prompt: how it orders given responses, what it answers, how long.

Judges nothing but for a reward model, whose scores are its order: answers are judged together, when all are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..build.journal import Journal
from ..errors import BuildError
from ..evaluation.generation import greedy_answers
from ..evaluation.ranking import compare_orders


if TYPE_CHECKING:
    from datasets import Dataset

Rows = Sequence[Mapping[str, Any]]


def measure_model(
    model: Any,
    tokenizer: Any,
    heldout: Dataset,
    prompts: Rows,
    *,
    name: str,
    journal: Journal,
    max_new_tokens: int,
    batch_size: int,
    own_exponent: float = 1.0,
) -> dict[str, Any]:
    """Figures of a language model, JSON-ready.

    Args:
        own_exponent: the length exponent that the arm was trained with; its rank accuracy by it is added where it is
            not 1.

    Returns:
        `rank_accuracy`, `kendall_tau` (one a held-out row, by log-prob / tokens; None: no pair), `response_tokens`
        (tokens of the held-out responses), `answers`, `answer_tokens` and `finish_reasons` (one a prompt).

    Raises:
        BuildError: a prompt got no answer.
    """
    from ..clients.local import TransformersSampler
    from ..scoring import score_rows

    scored = score_rows(model, tokenizer, heldout, batch_size=batch_size, show_progress=True)
    found: dict[str, Any] = {**_orders(heldout, _normalised(scored, 1.0))}
    if own_exponent != 1.0:
        own = _orders(heldout, _normalised(scored, own_exponent))
        found["rank_accuracy_own_exponent"] = own["rank_accuracy"]
    found["response_tokens"] = [[one["num_tokens"] for one in row] for row in scored]
    answers = greedy_answers(
        [row["prompt"] for row in prompts],
        TransformersSampler(model, tokenizer, name=name),
        max_new_tokens=max_new_tokens,
        journal=journal,
    )
    for i, answer in enumerate(answers):
        if answer.text is None:
            raise BuildError(f"{name} gave no answer to prompt {i}: {answer.failure}.")
    found["answers"] = [answer.text for answer in answers]
    found["answer_tokens"] = [answer.tokens for answer in answers]
    found["finish_reasons"] = [answer.finish_reason for answer in answers]
    return found


def measure_judge(judge: Any, heldout: Dataset) -> dict[str, Any]:
    """`rank_accuracy` and `kendall_tau` of a reward model's order, one a held-out row."""
    from ..clients.base import JudgeRequest

    scores: list[list[float | None]] = []
    for row in heldout:
        texts = tuple(response["content"] for response in row["responses"])
        request = JudgeRequest(row["prompt"], texts, row["reference"])
        verdict = judge.parse(request, judge.ask([request])[0]) if texts else None
        if verdict is not None and verdict.status == "ok":
            scores.append(list(verdict.scores))
        else:
            scores.append([None] * len(texts))
    return _orders(heldout, scores)


def _normalised(scored: Sequence[Sequence[Mapping[str, Any]]], exponent: float) -> list[list[float | None]]:
    return [
        [None if one["logprob"] is None else one["logprob"] / one["num_tokens"] ** exponent for one in row]
        for row in scored
    ]


def _orders(heldout: Rows, scores: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    report = compare_orders(scores, [[response["rank"] for response in row["responses"]] for row in heldout])
    values = {"rank_accuracy": report.row_accuracy, "kendall_tau": report.row_tau}
    return {name: [None if math.isnan(one) else one for one in rows] for name, rows in values.items()}
