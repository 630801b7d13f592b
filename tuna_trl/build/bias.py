"""What moves a judge besides the quality of a response: place, length, kinship; and how far its repeats agree.

Pure functions of the judgments and the ranked rows, each read once. None of these figures proves a fault by itself: a
longer answer may be better, and so may the judge's own. They say where to look, with intervals over rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from ..data.summary import spearman
from ..errors import InputError, SchemaError
from .agreement import average_ranks
from .estimates import Estimate, mean_estimate, ratio_estimate
from .position_bias import PositionBias, PositionCounts, Shown


_OF_JUDGMENTS = ["prompt_id", "occurrence", "repeat", "attempt", "judge", "permutation", "scores", "status"]
_OF_ROWS = ["prompt_id", "responses", "ranker", "agreement_w", "agreement_tau", "provenance"]


@dataclass(frozen=True)
class LengthBias:
    """Length against rank within rows. `rho`: Spearman's, positive = the longer ranks better. `longer_wins`: share of
    pairs of unequal rank and unequal length that the longer one wins (0.5 = no preference)."""

    rho: Estimate
    longer_wins: Estimate
    pairs: int
    unit: str  # "tokens"; "characters" when any response lacks its number of tokens


@dataclass(frozen=True)
class SelfPreference:
    """By how many ranks the judge's own come out above the others of their row (mean rank of the others minus mean
    rank of its own; ties share the mean of their places); 0 = no preference, positive = its own rank better."""

    advantage: Estimate
    responses: int  # of its own


@dataclass(frozen=True)
class Agreement:
    """How far the repeats of a row agree. `w` and `tau`: means of the rows' `agreement_w` and `agreement_tau`.

    `all_equal`: share of rows whose repeats all order the responses alike, ties included. `same_best`: share of pairs
    of repeats with the same best response or responses. `turned`: share of the pairs of responses, untied in both of
    two repeats, that the second repeat turns round (test-retest).
    """

    w: Estimate
    tau: Estimate
    all_equal: Estimate
    same_best: Estimate
    turned: Estimate
    repeats: dict[int, int]  # readable repeats -> rows


@dataclass(frozen=True)
class BiasReport:
    """All of it.

    Args:
        judges: who judged.
        position: what the place of a response did.
        length: what its length did.
        self_preference: has an entry where such responses stand beside others: `answer` (the judge's own answer of
            the same request), `model` (by the judge's model), `family` (by a model of its family).
        agreement: of the repeats with each other.
    """

    judges: tuple[str, ...]
    position: PositionBias
    length: LengthBias
    self_preference: dict[str, SelfPreference]
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and None, for provenance and cards."""
        return {
            "judges": list(self.judges),
            "position": self.position.to_json(),
            "length": asdict(self.length),
            "self_preference": {kind: asdict(entry) for kind, entry in self.self_preference.items()},
            "agreement": asdict(self.agreement)
            | {"repeats": {str(k): rows for k, rows in self.agreement.repeats.items()}},
        }

    def table(self) -> str:
        """The figures as people read them."""
        from .bias_table import bias_table

        return bias_table(self)


def family(model: str) -> str:
    """The family of a model, by its name: the letters before the first digit, hyphen or dot, without the owner.

    >>> family("claude-opus-5-5"), family("meta-llama/Llama-3.3-70B-Instruct"), family("Qwen/Qwen2.5-7B")
    ('claude', 'llama', 'qwen')
    """
    name = model.rsplit("/", 1)[-1].lower()
    return re.split(r"[^a-z]", name, maxsplit=1)[0] or name


def bias_report(judgments: Any, ranked: Any) -> BiasReport:
    """Measure a judge on what it has judged.

    Args:
        judgments: rows with the columns of [`tuna_trl.data.schema.judgment_features`]: a list, a Dataset, an iterator,
            or splits of them. Read once; in memory stay the permutations and scores of one split.
        ranked: the ranked rows that came of them, in the same splits.

    Raises:
        InputError: the two have not the same splits.
        SchemaError: a judgment has another number of scores than of responses; the message names it.
    """
    replies, rows = _splits(judgments, _OF_JUDGMENTS), _splits(ranked, _OF_ROWS)
    if set(replies) - set(rows):
        raise InputError(
            f"`judgments` has splits that `ranked` lacks: {', '.join(sorted(set(replies) - set(rows)))}. Pass both of "
            "one build."
        )
    judges: Counter[str] = Counter()
    position, repeats = PositionCounts(), _Repeats()
    lengths, kin = _Lengths(), _Kin()
    w: list[float] = []
    tau: list[float] = []
    for split, part in rows.items():
        shown = _shown(replies.get(split, ()), split, judges)
        for questions in shown.values():
            position.add(questions)
            repeats.add(questions)
        for row in part:
            w += [] if row["agreement_w"] is None else [row["agreement_w"]]
            tau += [] if row["agreement_tau"] is None else [row["agreement_tau"]]
            lengths.add(row["responses"])
            kin.add(row["responses"], row["ranker"])
            position.add_ranks(shown.get(row_key(row), ()), _judged_ranks(row["responses"]))
    return BiasReport(
        tuple(name for name, _ in judges.most_common()),
        position.result(),
        lengths.result(),
        kin.result(),
        repeats.result(w, tau),
    )


def row_key(row: Mapping[str, Any]) -> tuple[str, int]:
    """What joins a ranked row with its judgments inside one split: the prompt, and which of equal prompts it is."""
    return row["prompt_id"], int((row["provenance"] or {}).get("occurrence") or 0)


def _splits(rows: Any, columns: list[str]) -> dict[str, Iterable[Mapping[str, Any]]]:
    """By split, and of a Dataset only the columns that are needed: raw replies and prompts are most of its bytes."""
    splits = dict(rows) if isinstance(rows, Mapping) else {"train": rows}
    return {
        name: part.select_columns(columns) if hasattr(part, "select_columns") else part
        for name, part in splits.items()
    }


def _shown(
    replies: Iterable[Mapping[str, Any]], split: str, judges: Counter[str]
) -> dict[tuple[str, int], list[Shown]]:
    """The questions of each row whose last reply could be read."""
    last: dict[tuple[str, int], dict[tuple[int, tuple[int, ...]], tuple[int, Shown | None]]] = defaultdict(dict)
    for i, reply in enumerate(replies):
        judges[reply["judge"]] += 1
        permutation, repeat = tuple(reply["permutation"]), reply["repeat"]
        scores = tuple(reply["scores"] or ())[: len(permutation)]
        readable = reply["status"] == "ok" and None not in scores
        if readable and len(scores) != len(permutation):
            raise SchemaError(
                f"judgments, split {split!r}, row {i}: column 'scores' has {len(scores)} entries for "
                f"{len(permutation)} responses in 'permutation'."
            )
        questions = last[reply["prompt_id"], reply["occurrence"]]
        attempt, _ = questions.get((repeat, permutation), (-1, None))
        if reply["attempt"] >= attempt:
            shown = Shown(repeat, permutation, scores) if readable else None
            questions[repeat, permutation] = (reply["attempt"], shown)
    return {key: [shown for _, shown in some.values() if shown is not None] for key, some in last.items()}


def _judged_ranks(responses: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Rank by index of what was shown to the judge and ranked; its own answer was written by it, not shown."""
    return {
        r["index"]: r["rank"]
        for r in responses
        if r["rank"] is not None and r["duplicate_of"] is None and r["source"] != "judge"
    }


class _Lengths:
    """Length against rank, in tokens and in characters; which of the two counts is known at the end only."""

    def __init__(self) -> None:
        self._tokens_known = True
        self._rhos: dict[str, list[float]] = {"tokens": [], "characters": []}
        self._won: dict[str, list[float]] = {"tokens": [], "characters": []}
        self._pairs: dict[str, list[int]] = {"tokens": [], "characters": []}

    def add(self, responses: Sequence[Mapping[str, Any]]) -> None:
        ranked = [r for r in responses if r["rank"] is not None]
        self._tokens_known &= all(r["num_tokens"] is not None for r in responses)
        quality = [-r["rank"] for r in ranked]
        both = {"tokens": [r["num_tokens"] or 0 for r in ranked], "characters": [len(r["content"]) for r in ranked]}
        for unit, lengths in both.items():
            rho = spearman(lengths, quality)
            self._rhos[unit] += [] if rho is None else [rho]
            signs = [
                (quality[i] > quality[j]) == (lengths[i] > lengths[j])
                for i, j in combinations(range(len(ranked)), 2)
                if quality[i] != quality[j] and lengths[i] != lengths[j]
            ]
            self._won[unit].append(sum(signs))
            self._pairs[unit].append(len(signs))

    def result(self) -> LengthBias:
        unit = "tokens" if self._tokens_known else "characters"
        wins = ratio_estimate(self._won[unit], self._pairs[unit])
        return LengthBias(mean_estimate(self._rhos[unit]), wins, sum(self._pairs[unit]), unit)


class _Kin:
    """The judge's own responses against the others of their row."""

    def __init__(self) -> None:
        self._advantages: dict[str, list[float]] = defaultdict(list)
        self._responses: Counter[str] = Counter()

    def add(self, responses: Sequence[Mapping[str, Any]], judge: str | None) -> None:
        ranked = [r for r in responses if r["rank"] is not None]
        ranks = average_ranks([-r["rank"] for r in ranked])
        own = {
            "answer": [r["source"] == "judge" for r in ranked],
            "model": [r["model"] is not None and r["model"] == judge for r in ranked],
            "family": [bool(judge and r["model"]) and family(r["model"]) == family(judge or "") for r in ranked],
        }
        for kind, mine in own.items():
            if any(mine) and not all(mine):
                ours = [rank for rank, is_own in zip(ranks, mine, strict=True) if is_own]
                others = [rank for rank, is_own in zip(ranks, mine, strict=True) if not is_own]
                self._advantages[kind].append(math.fsum(others) / len(others) - math.fsum(ours) / len(ours))
                self._responses[kind] += len(ours)

    def result(self) -> dict[str, SelfPreference]:
        return {
            kind: SelfPreference(mean_estimate(self._advantages[kind]), self._responses[kind])
            for kind in ("answer", "model", "family")
            if self._advantages[kind]
        }


class _Repeats:
    """How far the repeats of a row agree, from their own scores."""

    def __init__(self) -> None:
        self._equal: list[float] = []
        self._best: list[tuple[int, int]] = []  # (pairs of repeats with the same best, pairs) by row
        self._turned: list[tuple[int, int]] = []
        self._repeats: Counter[int] = Counter()

    def add(self, questions: Sequence[Shown]) -> None:
        tables: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for question in questions:
            for i, score in zip(question.permutation, question.scores, strict=True):
                tables[question.repeat][i].append(score)
        means = [{i: math.fsum(s) / len(s) for i, s in table.items()} for _, table in sorted(tables.items())]
        common = sorted(set.intersection(*map(set, means))) if means else []
        self._repeats[len(means)] += 1
        if len(means) < 2 or len(common) < 2:
            return
        pairs = list(combinations(common, 2))
        signs = [[(table[i] > table[j]) - (table[i] < table[j]) for i, j in pairs] for table in means]
        bests = [{i for i in common if table[i] == max(table[k] for k in common)} for table in means]
        self._equal.append(float(all(sign == signs[0] for sign in signs)))
        twice = list(combinations(range(len(means)), 2))
        self._best.append((sum(bests[a] == bests[b] for a, b in twice), len(twice)))
        products = [x * y for a, b in twice for x, y in zip(signs[a], signs[b], strict=True)]
        self._turned.append((products.count(-1), len(products) - products.count(0)))

    def result(self, w: Sequence[float], tau: Sequence[float]) -> Agreement:
        return Agreement(
            mean_estimate(w),
            mean_estimate(tau),
            mean_estimate(self._equal),
            ratio_estimate([a for a, _ in self._best], [b for _, b in self._best]),
            ratio_estimate([a for a, _ in self._turned], [b for _, b in self._turned]),
            dict(sorted(self._repeats.items())),
        )
