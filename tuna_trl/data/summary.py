"""What a ranked dataset says about itself: counts, ties, agreement, length against rank, who beats whom. One pass.

The card and the report draw the same figures from here, so that they cannot disagree. Read only; of each response a
few numbers are kept (about 40 bytes), of its text nothing. Judge replies: [`tuna_trl.data.judgment_summary`].
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .ranked_source import each_row
from .schema import STATUSES


if TYPE_CHECKING:
    from datasets import Dataset

_MAX_MODELS = 64  # whose pairs are counted: where each response has a name of its own, there is nothing to compare


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
    tokens: int = 0  # of the responses, where num_tokens says so
    counted: int = 0  # responses that have num_tokens
    status: dict[str, int] = field(default_factory=dict)  # in the order of STATUSES
    num_responses: dict[int, int] = field(default_factory=dict)
    num_ties: dict[int, int] = field(default_factory=dict)
    rankers: dict[tuple[str, str | None], int] = field(default_factory=dict)  # (ranking_method, ranker), most first
    models: dict[str, int] = field(default_factory=dict)  # responses by the model that wrote them, most first
    agreement_w: Mean = Mean(None, 0)
    agreement_tau: Mean = Mean(None, 0)
    agreements: dict[str, array[float]] = field(default_factory=dict)  # the single values of both
    length_rho: Mean = Mean(None, 0)  # Spearman of length and quality: positive = the longer response ranks better
    length_unit: str = "tokens"  # "characters" when any response lacks num_tokens
    lengths: dict[int, array[int]] = field(default_factory=dict)  # rank -> lengths of the responses there
    scores: array[float] = field(default_factory=lambda: array("d"))
    score_gaps: array[float] = field(default_factory=lambda: array("d"))
    # (a, b) -> share of comparisons within a row that a wins (a tie counts half), and their number
    wins: dict[tuple[str, str], Mean] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)  # the entries that all rows share


def summarise(datasets: Dataset | Iterable[Any]) -> RankedSummary:
    """The figures of one ranked dataset, or of its splits taken together; holds one row at a time."""
    counter = RankedCounter()
    for row in rows_of(datasets):
        counter.add(row)
    return counter.summary()


class RankedCounter:
    """Counts rows as they are added; `summary()` gives the figures of those so far."""

    def __init__(self) -> None:
        self._result = RankedSummary()
        self._prompts: set[int] = set()
        self._counts: dict[str, Counter[Any]] = defaultdict(Counter)
        self._agreements = {"agreement_w": array("d"), "agreement_tau": array("d")}
        self._tokens, self._characters = _Lengths(), _Lengths()
        self._all_counted = True
        self._points: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
        self._compared: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one full ranked row."""
        responses, result, counts = row["responses"], self._result, self._counts
        for name in ("status", "num_responses", "num_ties"):
            counts[name][row[name]] += 1
        counts["rankers"][row["ranking_method"], row["ranker"]] += 1
        counts["models"].update(r["model"] for r in responses if r["model"] is not None)
        for name, values in self._agreements.items():
            if row[name] is not None:
                values.append(row[name])
        self._add_lengths(responses)
        self._compare(responses)
        shared = row["provenance"] or {}
        result.provenance = _shared(result.provenance, shared) if result.rows else dict(shared)
        self._prompts.add(short_hash(row["prompt_id"]))
        result.rows += 1
        result.responses += len(responses)
        for response in responses:
            result.unranked += response["rank"] is None
            result.duplicates += response["duplicate_of"] is not None
            result.cut += response["finish_reason"] == "length"
            if response["score"] is not None:
                result.scores.append(response["score"])
        if row["score_gap"] is not None and len(responses) > 1:
            result.score_gaps.append(row["score_gap"])

    def summary(self) -> RankedSummary:
        """The figures of the rows added so far."""
        result, counts = self._result, self._counts
        lengths = self._tokens if self._all_counted else self._characters
        result.length_unit = "tokens" if self._all_counted else "characters"
        result.prompts = len(self._prompts)
        result.status = {name: counts["status"][name] for name in STATUSES if counts["status"][name]}
        result.num_responses = dict(sorted(counts["num_responses"].items()))
        result.num_ties = dict(sorted(counts["num_ties"].items()))
        result.rankers = dict(counts["rankers"].most_common())
        result.models = dict(counts["models"].most_common())
        result.agreements = self._agreements
        result.agreement_w, result.agreement_tau = map(mean, self._agreements.values())
        result.length_rho, result.lengths = mean(lengths.rhos), dict(sorted(lengths.by_rank.items()))
        result.wins = {}
        for (a, b), (points, number) in self._points.items():
            result.wins[a, b] = Mean(points / number, int(number))
            result.wins[b, a] = Mean(1 - points / number, int(number))
        return result

    def _add_lengths(self, responses: Sequence[Mapping[str, Any]]) -> None:
        tokens = [r["num_tokens"] for r in responses]
        counted = [n for n in tokens if n is not None]
        self._result.tokens += sum(counted)
        self._result.counted += len(counted)
        self._all_counted = self._all_counted and len(counted) == len(tokens)
        if self._all_counted:
            self._tokens.add(responses, tokens)
        self._characters.add(responses, [len(r["content"]) for r in responses])

    def _compare(self, responses: Sequence[Mapping[str, Any]]) -> None:
        """Every pair of ranked responses of two models, once."""
        known = [(r["model"], r["rank"]) for r in responses if r["model"] is not None and r["rank"] is not None]
        if len({model for model, _ in known}) < 2:
            return
        for model, _ in known:
            if len(self._compared) < _MAX_MODELS:
                self._compared.add(model)
        known = [(model, rank) for model, rank in known if model in self._compared]
        for i, (model, rank) in enumerate(known):
            for other, other_rank in known[i + 1 :]:
                if model != other:
                    point = 0.5 if rank == other_rank else float(rank < other_rank)
                    entry = self._points[min(model, other), max(model, other)]
                    entry[0] += point if model < other else 1 - point
                    entry[1] += 1


class _Lengths:
    """Lengths in one unit: by rank, and each row's correlation with quality."""

    def __init__(self) -> None:
        self.by_rank: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self.rhos = array("d")

    def add(self, responses: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> None:
        ranks, sizes = [], []
        for response, length in zip(responses, lengths, strict=True):
            if response["rank"] is not None:
                ranks.append(-response["rank"])
                sizes.append(length)
                self.by_rank[response["rank"]].append(length)
        rho = spearman(sizes, ranks)
        if rho is not None:
            self.rhos.append(rho)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho (Pearson's r of the mid-ranks); None with fewer than two values or where one side is constant.

    >>> spearman([1, 2, 3], [10, 20, 30])
    1.0
    """
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    x, y = _mid_ranks(a), _mid_ranks(b)
    centre = (len(a) + 1) / 2
    product = sum((i - centre) * (j - centre) for i, j in zip(x, y, strict=True))
    return product / math.sqrt(sum((i - centre) ** 2 for i in x) * sum((j - centre) ** 2 for j in y))


def _mid_ranks(values: Sequence[float]) -> list[float]:
    """Ascending ranks from 1; equal values share the mean of the places they take. Rows are short: no array needed."""
    place: dict[float, int] = {}
    count = Counter(values)
    for i, value in enumerate(sorted(values), start=1):
        place.setdefault(value, i)
    return [place[value] + (count[value] - 1) / 2 for value in values]


def mean(values: Iterable[float]) -> Mean:
    """The mean of some values, exactly summed."""
    kept = list(values)
    return Mean(math.fsum(kept) / len(kept) if kept else None, len(kept))


def short_hash(text: str | None) -> int:
    """64 bits of a text: among a million texts two share it with a chance of 3 in a hundred million."""
    return int.from_bytes(hashlib.blake2b(str(text).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def rows_of(datasets: Dataset | Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of one dataset, or of several one after the other."""
    for part in [datasets] if hasattr(datasets, "features") else datasets:
        yield from each_row(part)


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are in both, and equal."""
    return {key: value for key, value in one.items() if key in other and other[key] == value}
