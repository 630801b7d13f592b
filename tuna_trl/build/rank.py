"""Ranks for responses that are there already: a local teacher scores them by teacher forcing, nothing is sampled.

    score(y) = sum over t of log p(y_t | x, y_<t) / |y| ** length_exponent

as in [`tuna_trl.build.teacher`]: natural logs in nats, temperature 1, raw logits, the end token counted. The tokens
are those the tokenizer makes of the text. Writes nothing but its journal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..data.schema import competition_ranks, digest, make_row, mark_duplicates, ranked_features
from ..errors import InputError
from .given import GivenRow, given_rows, given_splits
from .journal import Journal
from .progress import progress


if TYPE_CHECKING:
    from datasets import DatasetDict

# reason -> how it is said; counted in each row's provenance
REASONS = {
    "empty": "empty",
    "too_long": "too long for the teacher with their prompt",
    "cut": "cut by their sampler (rank_truncated ranks them)",
    "not_finite": "given no finite log-probability",
}


@dataclass
class RankConfig:
    """How given responses are ranked by a teacher.

    Args:
        length_exponent: 1.0 scores the mean log-prob of a token (nats a token), 0.0 the sum, which favours short ones.
        tie_delta: responses within this distance of the first of their group share its rank (units of the score).
        rank_truncated: rank responses whose sampler cut them (finish reason `length`) like the others; they are scored
            without an end token either way.
        max_length: tokens that a prompt with one response may have; None: the model's context.
        batch_size: rows (a prompt with all its responses) in one forward pass.
        bucket_size: rows scored and journalled as one.
        limit: only the first so many rows of each split.
        overwrite_ranks: take rows that another teacher ranked; its log-probs, scores and ranks are dropped.
        journal: an SQLite file; a run that finds its buckets there goes on from them. None keeps it in memory.
        show_progress: progress on stderr, and at the end why which responses have no rank.

    Raises:
        InputError: a value is out of range.
    """

    length_exponent: float = 1.0
    tie_delta: float = 0.0
    rank_truncated: bool = False
    max_length: int | None = None
    batch_size: int = 8
    bucket_size: int = 64
    limit: int | None = None
    overwrite_ranks: bool = False
    journal: str | Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        least = {"length_exponent": 0, "tie_delta": 0, "max_length": 1, "batch_size": 1, "bucket_size": 1, "limit": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < math.inf:  # NaN is in no range
                raise InputError(f"RankConfig: `{name}` is {value}, expected a number from {minimum} on.")


def rank_by_teacher(
    dataset: Any, model: Any, tokenizer: Any, config: RankConfig | None = None, *, name: str | None = None
) -> DatasetDict:
    """Rank given responses by their length-normalised log-likelihood under `model`.

    Equal texts share score and rank. A response that is empty (and was not ended so by its sampler, finish reason
    `stop`), too long, cut (unless `rank_truncated`) or without a finite log-prob stays in its row without a rank;
    `provenance["unranked"]` says why, and [`count_unranked`] adds up. `status` of a row: `ok`; `partial` if some
    responses are not ranked; with fewer than two ranked of several `truncated` if one was cut, else `failed`.

    Args:
        dataset: a Dataset, a DatasetDict, a list of rows or a dict of them; [`tuna_trl.build.given.given_rows`] says
            which rows are read. Ranks that they have are not looked at.
        model: a loaded causal language model; it is taught to score ([`tuna_trl.scoring.install`]).
        tokenizer: with a chat template.
        config: see [`RankConfig`].
        name: the teacher's id, for the rows; default: what it was loaded from.

    Returns:
        one split for each of `dataset` (`train` for a Dataset or a list), rows in the same order, with the columns of
        [`tuna_trl.data.schema.ranked_features`] and the ranking method `teacher_logprob`.

    Raises:
        SchemaError: a row cannot be read; the message names it.
        InputError: another teacher has ranked some of the rows, and `overwrite_ranks` is not set.
        BuildError: the journal cannot be written.
    """
    from datasets import Dataset, DatasetDict

    from ..clients.local import TransformersSampler

    config = config or RankConfig()
    given = given_splits(dataset)
    splits = {split: given_rows(rows, f"split {split!r}", config.limit) for split, rows in given.items()}
    teacher = TransformersSampler(model, tokenizer, name=name)  # refuses what cannot score either, and knows its name
    fingerprint = teacher.fingerprint()
    if not config.overwrite_ranks:
        _refuse_other_teachers(splits, teacher.name, fingerprint)
    scorer = _Scorer(model, tokenizer, fingerprint, config)
    result = DatasetDict()
    with Journal(config.journal or ":memory:") as journal:
        for split, rows in splits.items():
            scored = scorer.scores(rows, journal)
            ranked = [_row(row, found, scorer, teacher.name) for row, found in zip(rows, scored, strict=True)]
            result[split] = Dataset.from_list(ranked, features=ranked_features())
    if config.show_progress and (said := describe_unranked(result)):
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(said, markup=False)
    return result


def count_unranked(dataset: Mapping[str, Iterable[Mapping[str, Any]]]) -> Counter[str]:
    """Reason -> responses without a rank, over all splits of what [`rank_by_teacher`] returned; reasons in
    [`REASONS`]."""
    counts: Counter[str] = Counter()
    for rows in dataset.values():
        for row in rows:
            counts.update(row["provenance"]["unranked"])
    return counts


def describe_unranked(dataset: DatasetDict) -> str:
    """One line: how many responses have no rank, and why; empty if all have one."""
    counts = count_unranked(dataset)
    if not counts:
        return ""
    responses = sum(sum(rows["num_responses"]) for rows in dataset.values())
    reasons = ", ".join(f"{counts[reason]} {said}" for reason, said in REASONS.items() if counts[reason])
    return f"{sum(counts.values())} of {responses} responses have no rank: {reasons}."


class _Scorer:
    """A teacher, how it is run, and the key of what it has scored."""

    def __init__(self, model: Any, tokenizer: Any, fingerprint: dict[str, Any], config: RankConfig) -> None:
        from ..layouts import choose_layout

        self.config = config
        self.fingerprint = fingerprint
        self._model, self._tokenizer = model, tokenizer
        self._layout = choose_layout(model, "auto")  # asked once, not in every bucket

    def scores(self, rows: Sequence[GivenRow], journal: Journal) -> list[list[dict[str, Any]]]:
        """What [`tuna_trl.scoring.score_rows`] finds for each row, from the journal where it is there."""
        # longest first, and cut from all rows: what is in one forward pass is the same in a resumed run
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].size, i))
        size = self.config.bucket_size
        buckets = [order[start : start + size] for start in range(0, len(order), size)]
        keys = [self._key([rows[i] for i in bucket]) for bucket in buckets]
        records = [journal.get(key) for key in keys]
        missing = [b for b, record in enumerate(records) if record is None]
        note = f"{len(buckets) - len(missing)} of {len(buckets)} buckets were already in the journal"
        rows_missing = sum(len(buckets[b]) for b in missing)
        with progress("Scoring rows", rows_missing, note, show=self.config.show_progress) as advance:
            for b in missing:
                journal.put(keys[b], {"rows": self._ask([rows[i] for i in buckets[b]])}, kind="scores")
                records[b] = journal.get(keys[b])  # if another process was first, its record stands
                advance(len(buckets[b]))
        result: list[list[dict[str, Any]]] = [[] for _ in rows]
        for bucket, record in zip(buckets, records, strict=True):
            for i, scores in zip(bucket, record["rows"], strict=True):
                result[i] = scores
        return result

    def _ask(self, rows: Sequence[GivenRow]) -> list[list[dict[str, Any]]]:
        from ..scoring import score_rows

        scored = score_rows(
            self._model,
            self._tokenizer,
            [{"prompt": row.prompt, "responses": row.responses} for row in rows],
            batch_size=self.config.batch_size,
            max_length=self.config.max_length,
            batch_layout=self._layout,
        )
        return [[_finite(found) for found in row] for row in scored]

    def _key(self, bucket: Sequence[GivenRow]) -> str:
        return digest(
            {
                "kind": "scores",
                "teacher": self.fingerprint,
                "rows": [[r.prompt, [[x["content"], x["finish_reason"]] for x in r.responses]] for r in bucket],
                "max_length": self.config.max_length,
                "batch_size": self.config.batch_size,
            }
        )


def _finite(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON holds no NaN: tokens without a log-prob say that it was not finite."""
    logprob = found["logprob"]
    return {**found, "logprob": logprob if logprob is not None and math.isfinite(logprob) else None}


def _row(row: GivenRow, found: Sequence[Mapping[str, Any]], scorer: _Scorer, name: str) -> dict[str, Any]:
    config = scorer.config
    texts = [response["content"] for response in row.responses]
    duplicate_of = mark_duplicates(texts)
    reasons = [_why_not(response, scores, config) for response, scores in zip(row.responses, found, strict=True)]
    first: dict[int, float] = {}
    scores: list[float | None] = []
    for i, reason in enumerate(reasons):
        own = None
        if reason is None:
            own = found[i]["logprob"] / found[i]["num_tokens"] ** config.length_exponent
            own = first.setdefault(i if duplicate_of[i] is None else duplicate_of[i], own)
        scores.append(own)
    ranked = [i for i, score in enumerate(scores) if score is not None]
    ranks = dict(zip(ranked, competition_ranks([scores[i] for i in ranked], config.tie_delta), strict=True))
    responses = [
        {
            **response,
            "rank": ranks.get(i),
            "score": scores[i],
            "logprob": None if reasons[i] == "empty" else found[i]["logprob"],
            "num_tokens": None if reasons[i] == "empty" else found[i]["num_tokens"],
            # as `index` in the row, which need not be the place where the response was given
            "duplicate_of": None if duplicate_of[i] is None else row.responses[duplicate_of[i]]["index"],
        }
        for i, response in enumerate(row.responses)
    ]
    unranked = Counter(reason for reason in reasons if reason is not None)
    return make_row(
        row.prompt,
        responses,
        ranking_method="teacher_logprob",
        ranker=name,
        status=_status(len(responses), len(ranked), unranked),
        reference=row.reference,
        source=row.source,
        provenance=_provenance(row, scorer) | {"unranked": dict(sorted(unranked.items()))},
    )


def _why_not(response: Mapping[str, Any], found: Mapping[str, Any], config: RankConfig) -> str | None:
    """Why a response gets no rank; None if it gets one."""
    if _is_empty(response):
        return "empty"
    if found["num_tokens"] is None:
        return "too_long"
    if found["logprob"] is None:
        return "not_finite"
    return "cut" if response["finish_reason"] == "length" and not config.rank_truncated else None


def _is_empty(response: Mapping[str, Any]) -> bool:
    """No words at all; but a model that ended at once has answered with its end token, and a build ranks that."""
    return not response["content"].strip() and response["finish_reason"] != "stop"


def _status(responses: int, ranked: int, unranked: Mapping[str, int]) -> str:
    if ranked == responses:
        return "ok"
    if ranked >= 2:
        return "partial"
    return "truncated" if unranked.get("cut") else "failed"


def _provenance(row: GivenRow, scorer: _Scorer) -> dict[str, Any]:
    """What ranked the row, and where its responses came from; no time stamps, so that equal runs give equal bytes."""
    config = scorer.config
    return {
        "builder": f"tuna_trl {__version__} rank",
        "ranker": scorer.fingerprint,
        "length_exponent": config.length_exponent,
        "include_eos": True,
        "rank_truncated": config.rank_truncated,
        "tie_delta": config.tie_delta,
        "max_length": config.max_length,
        "responses": row.origin,
    }


def _refuse_other_teachers(
    splits: Mapping[str, Sequence[GivenRow]], name: str, fingerprint: Mapping[str, Any]
) -> None:
    """Log-probs of two models are no common scale, and neither are ranks made of them."""
    others: Counter[str] = Counter()
    for rows in splits.values():
        for row in rows:
            if row.teacher is not None and row.teacher != (name, row.teacher[1] and fingerprint["weights"]):
                same = row.teacher[0] == name
                others[f"{row.teacher[0]!r}{' with other weights' if same else ''}"] += 1
    if others:
        told = ", ".join(f"{count} by {other}" for other, count in others.most_common(5))
        raise InputError(
            f"`dataset` holds rows that another teacher than {name!r} has ranked ({told}). Scores of two teachers are "
            "never mixed: set `overwrite_ranks` (--overwrite-ranks) to drop theirs and rank every row anew."
        )


def refuse_anthropic(name: str) -> None:
    """Raise an [`InputError`] that says why, if `name` names a model behind Anthropic's API."""
    if name == "claude" or name.startswith(("claude-", "anthropic/", "anthropic:")):
        raise InputError(
            f"--teacher {name!r}: Anthropic's API returns no log-probabilities, and a teacher ranks by nothing else. "
            "Name a local model or a Hub id, or let Claude read and rank instead: tuna-trl build judge --judge "
            f"{name.removeprefix('anthropic/').removeprefix('anthropic:')}."
        )
