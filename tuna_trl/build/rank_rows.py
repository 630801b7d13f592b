"""One row of given responses, ranked: scores, ranks and status from the log-probs that a teacher found. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..data.schema import competition_ranks, make_row, mark_duplicates
from .given import GivenRow


if TYPE_CHECKING:
    from .rank import RankConfig

# reason -> how it is said; counted in each row's provenance
REASONS = {
    "empty": "empty",
    "too_long": "too long for the teacher with their prompt",
    "cut": "cut by their sampler (rank_truncated ranks them)",
    "not_finite": "given no finite log-probability",
    "rewritten": "put otherwise than they are by the server's chat template",
    "unanswered": "not scored by the server (provenance says why)",
}


def rank_row(
    row: GivenRow,
    found: Sequence[Mapping[str, Any]],
    *,
    name: str,
    fingerprint: Mapping[str, Any],
    config: RankConfig,
) -> dict[str, Any]:
    """The ranked row; see [`tuna_trl.build.rank.rank_given`] for the rules.

    Args:
        found: for each response `{"logprob": nats, "num_tokens": int}`, both None where there is none; a `reason` of
            [`REASONS`] says why where it is not the length, a `failure` what the server said.
        name, fingerprint: the teacher's.
    """
    texts = [response["content"] for response in row.responses]
    duplicate_of = mark_duplicates(texts)
    reasons = [_why_not(response, scores, config) for response, scores in zip(row.responses, found, strict=True)]
    first: dict[int, float] = {}
    scores: list[float | None] = []
    for i, reason in enumerate(reasons):
        own = None
        if reason is None:
            own = found[i]["logprob"] / found[i]["num_tokens"] ** config.length_exponent
            original = duplicate_of[i]
            own = first.setdefault(i if original is None else original, own)
        scores.append(own)
    scored = {i: score for i, score in enumerate(scores) if score is not None}
    ranks = dict(zip(scored, competition_ranks(list(scored.values()), config.tie_delta), strict=True))
    responses = [
        {
            **response,
            "rank": ranks.get(i),
            "score": scores[i],
            "logprob": None if reasons[i] == "empty" else found[i]["logprob"],
            "num_tokens": None if reasons[i] == "empty" else found[i]["num_tokens"],
            # as `index` in the row, which need not be the place where the response was given
            "duplicate_of": None if (same := duplicate_of[i]) is None else row.responses[same]["index"],
        }
        for i, response in enumerate(row.responses)
    ]
    unranked = Counter(reason for reason in reasons if reason is not None)
    own_part: dict[str, Any] = {"responses": row.origin, "unranked": dict(sorted(unranked.items()))}
    if failures := sorted({scores["failure"] for scores in found if "failure" in scores}):
        own_part["failures"] = failures
    return make_row(
        row.prompt,
        responses,
        ranking_method="teacher_logprob",
        ranker=name,
        status=_status(len(responses), len(ranks), unranked),
        reference=row.reference,
        source=row.source,
        provenance=_provenance(fingerprint, config) | own_part,
    )


def count_unranked(dataset: Mapping[str, Iterable[Mapping[str, Any]]]) -> Counter[str]:
    """Reason -> responses without a rank, over all splits of a dataset ranked here; reasons in [`REASONS`]."""
    counts: Counter[str] = Counter()
    for rows in dataset.values():
        for row in rows:
            counts.update(row["provenance"]["unranked"])
    return counts


def describe_unranked(dataset: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """One line: how many responses have no rank, and why; empty if all have one.

    Args:
        dataset: ranked rows by split.
    """
    counts = count_unranked(dataset)
    return said_unranked(counts, sum(row["num_responses"] for rows in dataset.values() for row in rows))


def said_unranked(counts: Mapping[str, int], responses: int) -> str:
    """The line of [`describe_unranked`] from the counts of reasons and of all responses."""
    if not sum(counts.values()):
        return ""
    reasons = ", ".join(f"{counts[reason]} {said}" for reason, said in REASONS.items() if counts.get(reason))
    return f"{sum(counts.values())} of {responses} responses have no rank: {reasons}."


def is_empty(response: Mapping[str, Any]) -> bool:
    """No words at all; but a model that ended at once has answered with its end token, and a build ranks that."""
    return not response["content"].strip() and response["finish_reason"] != "stop"


def _why_not(response: Mapping[str, Any], found: Mapping[str, Any], config: RankConfig) -> str | None:
    """Why a response gets no rank; None if it gets one."""
    if is_empty(response):
        return "empty"
    if found.get("reason") is not None:
        return found["reason"]
    if found["num_tokens"] is None:
        return "too_long"
    if found["logprob"] is None:
        return "not_finite"
    return "cut" if response["finish_reason"] == "length" and not config.rank_truncated else None


def _status(responses: int, ranked: int, unranked: Mapping[str, int]) -> str:
    if ranked == responses:
        return "ok"
    if ranked >= 2:
        return "partial"
    return "truncated" if unranked.get("cut") else "failed"


def _provenance(fingerprint: Mapping[str, Any], config: RankConfig) -> dict[str, Any]:
    """What ranked the row; no time stamps, so that equal runs give equal bytes."""
    return {
        "builder": f"tuna_trl {__version__} rank",
        "ranker": dict(fingerprint),
        "length_exponent": config.length_exponent,
        "include_eos": fingerprint.get("include_eos", True),
        "rank_truncated": config.rank_truncated,
        "tie_delta": config.tie_delta,
        "max_length": config.max_length,
    }
