"""One row of a teacher's build: scores, ranks and status from the log-probs of what was drawn. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..clients.base import Sample
from ..data.schema import competition_ranks, make_row, mark_duplicates
from .buckets import Drawn


if TYPE_CHECKING:
    from .teacher import TeacherBuildConfig

# What OpenAI's API gives for a token outside its top list; no model assigns it to a token that it drew.
_NO_LOGPROB = -9999.0


def teacher_row(drawn: Drawn, name: str, config: TeacherBuildConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The ranked row of one prompt; see [`tuna_trl.build.teacher.build_teacher_ranked`] for the rules.

    Args:
        name: the teacher's.
        provenance: what all rows of the build share.
    """
    samples = drawn.samples
    duplicate_of = mark_duplicates([sample.text for sample in samples])
    sums = [sum_logprob(sample) for sample in samples]
    scores = _scores(samples, sums, duplicate_of, config)
    scored = {i: score for i, score in enumerate(scores) if score is not None}
    ranks = dict(zip(scored, competition_ranks(list(scored.values()), config.tie_delta), strict=True))
    responses = [
        {
            "index": i,
            "rank": ranks.get(i),
            "score": scores[i],
            "model": name,
            "content": sample.text,
            "logprob": sums[i],
            "num_tokens": len(sample.token_logprobs) or None,
            "finish_reason": sample.finish_reason,
            "duplicate_of": duplicate_of[i],
            "source": "teacher",
        }
        for i, sample in enumerate(samples)
    ]
    own: dict[str, Any] = {"occurrence": drawn.item.occurrence}
    if drawn.failures:
        own["failures"] = list(drawn.failures)
    return make_row(
        drawn.item.prompt,
        responses,
        ranking_method="teacher_logprob",
        ranker=name,
        status=_status(drawn, len(ranks)),
        reference=drawn.item.reference,
        source=drawn.item.source,
        provenance={**provenance, **own},
    )


def row_failed(drawn: Drawn, config: TeacherBuildConfig) -> bool:
    """Whether the row comes out as `failed`: fewer than two responses can be ranked, and not because they were cut."""
    samples = drawn.samples
    sums = [sum_logprob(sample) for sample in samples]
    scores = _scores(samples, sums, [None] * len(samples), config)
    return _status(drawn, sum(score is not None for score in scores)) == "failed"


def sum_logprob(sample: Sample) -> float | None:
    """The sum of a sample's token log-probs in nats; None if any is missing, not finite or a placeholder (-9999).

    A bad one is never left out of the sum: the rest would then pass for a better response.
    """
    values = sample.token_logprobs
    if not values or not all(value is not None and _NO_LOGPROB < value < math.inf for value in values):
        return None
    return math.fsum(values)


def _scores(
    samples: Sequence[Sample],
    sums: Sequence[float | None],
    duplicate_of: Sequence[int | None],
    config: TeacherBuildConfig,
) -> list[float | None]:
    """Each response's score; None where it is not to be ranked. Equal texts get that of the first that has one."""
    first: dict[int, float] = {}
    scores: list[float | None] = []
    for i, (sample, total) in enumerate(zip(samples, sums, strict=True)):
        cut = sample.finish_reason == "length" and not config.rank_truncated
        if total is None or cut:
            scores.append(None)
            continue
        original = duplicate_of[i]
        text = i if original is None else original
        scores.append(first.setdefault(text, total / len(sample.token_logprobs) ** config.length_exponent))
    return scores


def _status(drawn: Drawn, ranked: int) -> str:
    samples = drawn.samples
    if samples and ranked == len(samples) and not drawn.failures:
        return "ok"
    if ranked >= 2:
        return "partial"
    return "truncated" if any(sample.finish_reason == "length" for sample in samples) else "failed"
