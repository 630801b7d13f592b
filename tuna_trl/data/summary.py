"""What a ranked dataset says about itself: counts, ties, agreement, length against rank. One pass, read only.

The card and the report draw the same figures from here, so that they cannot disagree.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .schema import STATUSES


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Mean:
    """A mean and the number of rows it is over; `value` is None over no row."""

    value: float | None
    rows: int


@dataclass
class RankedSummary:
    """Figures of the rows of a ranked dataset. Histograms map a value to its number of rows, in ascending order."""

    rows: int = 0
    prompts: int = 0  # distinct prompt_id
    responses: int = 0
    unranked: int = 0  # responses without a rank
    duplicates: int = 0  # responses with the text of another one of their row
    cut: int = 0  # responses the sampler cut (finish_reason "length")
    status: dict[str, int] = field(default_factory=dict)  # in the order of STATUSES
    num_responses: dict[int, int] = field(default_factory=dict)
    num_ties: dict[int, int] = field(default_factory=dict)
    rankers: dict[tuple[str, str | None], int] = field(default_factory=dict)  # (ranking_method, ranker), most first
    models: dict[str, int] = field(default_factory=dict)  # responses by the model that wrote them, most first
    agreement_w: Mean = Mean(None, 0)
    agreement_tau: Mean = Mean(None, 0)
    length_rho: Mean = Mean(None, 0)  # Spearman of length and quality: positive = the longer response ranks better
    length_unit: str = "tokens"  # "characters" when any response lacks num_tokens
    lengths: dict[int, list[int]] = field(default_factory=dict)  # rank -> lengths of the responses there
    scores: list[float] = field(default_factory=list)
    score_gaps: list[float] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)  # the entries that all rows share


def summarise(datasets: Dataset | Iterable[Dataset]) -> RankedSummary:
    """The figures of one ranked dataset, or of its splits taken together; holds one row at a time."""
    result, prompts, counts = RankedSummary(), set(), defaultdict(Counter)
    agreement, by_unit = defaultdict(list), {"tokens": _Lengths(), "characters": _Lengths()}
    for row in _rows(datasets):
        responses = row["responses"]
        for name in ("status", "num_responses", "num_ties"):
            counts[name][row[name]] += 1
        counts["rankers"][row["ranking_method"], row["ranker"]] += 1
        counts["models"].update(r["model"] for r in responses if r["model"] is not None)
        for name in ("agreement_w", "agreement_tau"):
            agreement[name].append(row[name])
        if any(r["num_tokens"] is None for r in responses):
            result.length_unit = "characters"
        by_unit["tokens"].add(responses, [r["num_tokens"] or 0 for r in responses])
        by_unit["characters"].add(responses, [len(r["content"]) for r in responses])
        shared = row["provenance"] or {}
        result.provenance = _shared(result.provenance, shared) if result.rows else dict(shared)
        prompts.add(row["prompt_id"])
        result.rows += 1
        result.responses += len(responses)
        result.unranked += sum(r["rank"] is None for r in responses)
        result.duplicates += sum(r["duplicate_of"] is not None for r in responses)
        result.cut += sum(r["finish_reason"] == "length" for r in responses)
        result.scores += [r["score"] for r in responses if r["score"] is not None]
        result.score_gaps += [] if row["score_gap"] is None or len(responses) < 2 else [row["score_gap"]]
    lengths = by_unit[result.length_unit]
    result.prompts = len(prompts)
    result.status = {name: counts["status"][name] for name in STATUSES if counts["status"][name]}
    result.num_responses = dict(sorted(counts["num_responses"].items()))
    result.num_ties = dict(sorted(counts["num_ties"].items()))
    result.rankers = dict(counts["rankers"].most_common())
    result.models = dict(counts["models"].most_common())
    result.agreement_w, result.agreement_tau = _mean(agreement["agreement_w"]), _mean(agreement["agreement_tau"])
    result.length_rho, result.lengths = _mean(lengths.rhos), dict(sorted(lengths.by_rank.items()))
    return result


class _Lengths:
    """Lengths in one unit: by rank, and each row's correlation with quality."""

    def __init__(self) -> None:
        self.by_rank: dict[int, list[int]] = defaultdict(list)
        self.rhos: list[float | None] = []

    def add(self, responses: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> None:
        ranked = [(r["rank"], length) for r, length in zip(responses, lengths, strict=True) if r["rank"] is not None]
        for rank, length in ranked:
            self.by_rank[rank].append(length)
        self.rhos.append(spearman([length for _, length in ranked], [-rank for rank, _ in ranked]))


@dataclass
class JudgmentSummary:
    """Figures of the `judgments` config: one row per judge reply."""

    replies: int
    judges: dict[str, int]
    status: dict[str, int]
    cost: float | None  # USD over the replies whose price is known; None when no price is
    place_scores: list[Mean]  # mean score by shown place, over the replies that were read
    first_wins: Mean  # share of replies that score the first shown best of all; a tie of k counts 1/k
    first_expected: float | None  # what that share would be without a preference: the mean of 1 / candidates


def summarise_judgments(datasets: Dataset | Iterable[Dataset]) -> JudgmentSummary:
    """The figures of the judge replies of one dataset, or of its splits taken together."""
    judges, status, costs = Counter(), Counter(), []
    places, first, expected = defaultdict(list), [], []
    for row in _rows(datasets):
        judges[row["judge"]] += 1
        status[row["status"]] += 1
        if row["cost"] is not None:
            costs.append(row["cost"])
        scores = row["scores"] or []
        if row["status"] != "ok" or len(scores) < 2 or any(score is None for score in scores):
            continue
        for place, score in enumerate(scores):
            places[place].append(score)
        first.append((scores[0] == max(scores)) / scores.count(max(scores)))
        expected.append(1 / len(scores))
    return JudgmentSummary(
        replies=status.total(),
        judges=dict(judges.most_common()),
        status=dict(status.most_common()),
        cost=sum(costs) if costs else None,
        place_scores=[_mean(scores) for _, scores in sorted(places.items())],
        first_wins=_mean(first),
        first_expected=math.fsum(expected) / len(expected) if expected else None,
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho (Pearson's r of the mid-ranks); None with fewer than two values or where one side is constant.

    >>> spearman([1, 2, 3], [10, 20, 30])
    1.0
    """
    x, y = _mid_ranks(a), _mid_ranks(b)
    centre = (len(a) + 1) / 2
    product = sum((i - centre) * (j - centre) for i, j in zip(x, y, strict=True))
    scale = math.sqrt(sum((i - centre) ** 2 for i in x) * sum((j - centre) ** 2 for j in y))
    return product / scale if scale > 0 else None


def _mid_ranks(values: Sequence[float]) -> list[float]:
    """Ascending ranks from 1; equal values share the mean of the places they take. Rows are short: no array needed."""
    place, count = {}, Counter(values)
    for i, value in enumerate(sorted(values), start=1):
        place.setdefault(value, i)
    return [place[value] + (count[value] - 1) / 2 for value in values]


def _mean(values: Iterable[float | None]) -> Mean:
    kept = [value for value in values if value is not None]
    return Mean(math.fsum(kept) / len(kept) if kept else None, len(kept))


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are in both, and equal."""
    return {key: value for key, value in one.items() if key in other and other[key] == value}


def _rows(datasets: Dataset | Iterable[Dataset]) -> Iterator[dict[str, Any]]:
    for part in [datasets] if hasattr(datasets, "features") else datasets:
        yield from part
