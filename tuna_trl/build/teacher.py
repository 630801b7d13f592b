"""Probabilistic ranking (Tuna paper, section 3.1): a teacher draws N responses, its own log-likelihood ranks them.

    score(y) = sum over t of log p(y_t | x, y_<t) / |y| ** length_exponent

Natural logs in nats, at temperature 1 from raw logits, whatever the temperature y was drawn at; |y| counts the scored
tokens, the end token among them when it was produced. Writes nothing but its journal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..clients.base import Sample, Sampler, Sampling
from ..data.schema import competition_ranks, make_row, mark_duplicates, ranked_features
from ..errors import InputError
from .journal import Journal
from .sampling import Drawn, as_splits, draw, prompt_items


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


# What OpenAI's API gives for a token outside its top list; no model assigns it to a token that it drew.
_NO_LOGPROB = -9999.0


@dataclass
class TeacherBuildConfig:
    """How responses are drawn and ranked by their teacher.

    Args:
        num_responses: N, responses a prompt.
        temperature, top_p, top_k: how they are drawn; 1, 1, 0 draws from the teacher's own distribution. The scores
            are at temperature 1 whatever these are.
        max_new_tokens: tokens of a response at most, the end token included.
        seed: of the whole build; every sample has its own, derived from it.
        length_exponent: 1.0 scores the mean log-prob of a token (nats a token), 0.0 the sum, which favours short ones.
        rank_truncated: rank responses cut at `max_new_tokens` like the others; by default they get no rank.
        tie_delta: responses within this distance of the first of their group share its rank (units of the score).
        bucket_size: prompts drawn together and journalled as one.
        limit: only the first so many prompts of each split.
        journal: an SQLite file; a build that finds its buckets there goes on from them. None keeps the journal in
            memory, so that a build that dies begins anew.
        show_progress: progress on stderr.

    Raises:
        InputError: a value is out of range.
    """

    num_responses: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    length_exponent: float = 1.0
    rank_truncated: bool = False
    tie_delta: float = 0.0
    bucket_size: int = 16
    limit: int | None = None
    journal: str | Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "num_responses": 1, "temperature": 0, "top_k": 0, "max_new_tokens": 1, "length_exponent": 0,
            "tie_delta": 0, "bucket_size": 1, "limit": 1,
        }  # fmt: skip
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < math.inf:  # NaN is in no range
                raise InputError(f"TeacherBuildConfig: `{name}` is {value}, expected a number from {minimum} on.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"TeacherBuildConfig: `top_p` is {self.top_p}, expected (0, 1]; 1 cuts nothing.")
        if self.temperature == 0 and self.num_responses > 1:
            raise InputError(
                f"TeacherBuildConfig: `temperature` is 0, so that all {self.num_responses} responses to a prompt "
                "would be the same. Raise it (1.0 is the default) or set `num_responses=1`."
            )


def build_teacher_ranked(prompts: Any, teacher: Sampler, config: TeacherBuildConfig | None = None) -> DatasetDict:
    """Draw N responses to each prompt from `teacher` and rank them by their length-normalised log-likelihood.

    A response that was cut (finish reason `length`) keeps its log-prob but gets neither score nor rank, unless
    `rank_truncated`. One with a missing, non-finite or placeholder log-prob (-9999) gets none of the three. Equal
    texts share score and rank of the first of them that has any. `status` of a row: `ok`; `partial` if some responses
    are not ranked; with fewer than two ranked ones `truncated`, or `failed` if none was cut.

    Args:
        prompts: a Dataset, an IterableDataset, a DatasetDict or a list of rows with `prompt` (a string or messages)
            and, if there are any, `reference` and `source`.
        teacher: draws the responses, with log-probs.
        config: see [`TeacherBuildConfig`].

    Returns:
        one split for each split of `prompts` (`train` for a Dataset or a list), rows in the order of the prompts,
        with the columns of [`tuna_trl.data.schema.ranked_features`].

    Raises:
        InputError: prompts or config are not usable.
        BuildError: the teacher did not return what was asked for, or the journal cannot be written.
    """
    from datasets import DatasetDict

    config = config or TeacherBuildConfig()
    sampling = Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    splits = {name: prompt_items(rows, limit=config.limit) for name, rows in as_splits(prompts).items()}
    provenance = _provenance(teacher, sampling, config)
    result = DatasetDict()
    with Journal(config.journal or ":memory:") as journal:
        for name, items in splits.items():
            drawn = draw(
                items,
                teacher,
                n=config.num_responses,
                sampling=sampling,
                seed=config.seed,
                journal=journal,
                bucket_size=config.bucket_size,
                show_progress=config.show_progress,
            )
            result[name] = _dataset([_row(each, teacher, config, provenance) for each in drawn])
    return result


def _row(drawn: Drawn, teacher: Sampler, config: TeacherBuildConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    samples = drawn.samples
    duplicate_of = mark_duplicates([sample.text for sample in samples])
    sums = [sum_logprob(sample) for sample in samples]
    scores = _scores(samples, sums, duplicate_of, config)
    ranked = [i for i, score in enumerate(scores) if score is not None]
    ranks = dict(zip(ranked, competition_ranks([scores[i] for i in ranked], config.tie_delta), strict=True))
    responses = [
        {
            "index": i,
            "rank": ranks.get(i),
            "score": scores[i],
            "model": teacher.name,
            "content": sample.text,
            "logprob": sums[i],
            "num_tokens": len(sample.token_logprobs) or None,
            "finish_reason": sample.finish_reason,
            "duplicate_of": duplicate_of[i],
            "source": "teacher",
        }
        for i, sample in enumerate(samples)
    ]
    return make_row(
        drawn.item.prompt,
        responses,
        ranking_method="teacher_logprob",
        ranker=teacher.name,
        status=_status(samples, len(ranked)),
        reference=drawn.item.reference,
        source=drawn.item.source,
        provenance=provenance | {"occurrence": drawn.item.occurrence},
    )


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
        text = i if duplicate_of[i] is None else duplicate_of[i]
        scores.append(first.setdefault(text, total / len(sample.token_logprobs) ** config.length_exponent))
    return scores


def _status(samples: Sequence[Sample], ranked: int) -> str:
    if ranked == len(samples):
        return "ok"
    if ranked >= 2:
        return "partial"
    return "truncated" if any(sample.finish_reason == "length" for sample in samples) else "failed"


def _provenance(teacher: Sampler, sampling: Sampling, config: TeacherBuildConfig) -> dict[str, Any]:
    """What the rows came from; no time stamps, so that the same build gives the same bytes."""
    fingerprint = teacher.fingerprint()
    return {
        "builder": f"tuna_trl {__version__} teacher",
        "generator": fingerprint,
        "sampling": asdict(sampling),
        "seed": config.seed,
        "bucket_size": config.bucket_size,
        "length_exponent": config.length_exponent,
        # Whether the end token counts is the client's to say: some servers leave it out of their log-probs.
        "include_eos": fingerprint.get("include_eos", True),
        "rank_truncated": config.rank_truncated,
        "tie_delta": config.tie_delta,
    }


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(rows, features=ranked_features())
