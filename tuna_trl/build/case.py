"""One row of a judge's build: what is asked about it, and what the verdicts come to.

Pure: asks nobody and writes nothing. Equal responses are collapsed before they are asked about, and share what comes
out; the order of the candidates is permuted and goes round from repeat to repeat, so that no place is anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..clients.base import JudgeRequest
from ..data.schema import competition_ranks, digest, mark_duplicates
from .agreement import kendalls_w, mean_tau_b
from .judging import Question
from .sampling import Drawn


@dataclass(frozen=True)
class Case:
    """One row in the making. `questions` is empty when there are not two different responses to compare."""

    drawn: Drawn
    duplicate_of: list[int | None]
    questions: list[Question]


@dataclass(frozen=True)
class Ranking:
    """What the verdicts on one row come to; scores and ranks by response index."""

    status: str
    scores: list[float | None]
    ranks: list[int | None]
    agreement_w: float | None = None
    agreement_tau: float | None = None


def shown_order(
    distinct: Sequence[int], *, seed: int, prompt_id: str, occurrence: int, repeat: int
) -> tuple[int, ...]:
    """The responses in the order in which repeat number `repeat` shows them.

    Repeats go round: each is the one before, moved on by one place, so that n repeats show each of n responses at each
    place exactly once; then another permutation begins. Permutations come from hashes, not from a generator, so that
    they are the same on every machine and for every subset of the rows.

    Args:
        distinct: indices of the responses to show.
    """
    n = len(distinct)
    lap, step = divmod(repeat, n)
    base = sorted(distinct, key=lambda i: digest(["order", seed, prompt_id, occurrence, lap, i]))
    return tuple(base[step:] + base[:step])


def make_case(drawn: Drawn, *, where: str, seed: int, repeats: int) -> Case:
    """What is to be asked about one prompt: nothing if all its responses are the same."""
    item = drawn.item
    texts = [sample.text for sample in drawn.samples]
    duplicate_of = mark_duplicates(texts)
    distinct = [i for i, original in enumerate(duplicate_of) if original is None]
    questions = []
    for repeat in range(repeats if len(distinct) > 1 else 0):
        order = shown_order(distinct, seed=seed, prompt_id=item.prompt_id, occurrence=item.occurrence, repeat=repeat)
        candidates = tuple(texts[i] for i in order)
        # The candidates are hashed too: a response that holds its own nonce would have to be found by trial.
        nonce = digest(["nonce", seed, item.prompt_id, item.occurrence, repeat, candidates])[:16]
        request = JudgeRequest(item.prompt, candidates, item.reference, repeat, nonce)
        questions.append(Question(where, request, order))
    return Case(drawn, duplicate_of, questions)


def rank_case(case: Case, tie_delta: float) -> Ranking:
    """Mean scores over the repeats that could be read, and competition ranks of them."""
    n = len(case.drawn.samples)
    if not case.questions:
        return Ranking("ok", [None] * n, [1] * n)
    verdicts = [question.answers[-1].verdict for question in case.questions]
    read = [k for k, verdict in enumerate(verdicts) if verdict.status == "ok"]
    if not read:
        return Ranking(verdicts[0].status, [None] * n, [None] * n)
    table = []  # one dict a readable repeat: response index -> score
    for k in read:
        places = zip(case.questions[k].permutation, verdicts[k].scores, strict=True)
        table.append({i: score for i, score in places if score is not None})
    scored = [i for i in sorted(table[0]) if all(i in row for row in table)]
    means = {i: math.fsum(row[i] for row in table) / len(table) for i in scored}
    order = verdicts[0].order if len(verdicts) == 1 and tie_delta == 0 else None
    merit = means
    if order is not None:  # places best first: an earlier one wins among equal scores
        place = {case.questions[0].permutation[p]: k for k, p in enumerate(order)}
        strict = sorted(scored, key=lambda i: (-means[i], place[i]))
        merit = {i: -float(k) for k, i in enumerate(strict)}
    # A duplicate has the score and the rank of its original.
    original = [i if first is None else first for i, first in enumerate(case.duplicate_of)]
    ranked = [i for i in range(n) if original[i] in merit]
    ranks: list[int | None] = [None] * n
    for i, rank in zip(ranked, competition_ranks([merit[original[i]] for i in ranked], tie_delta), strict=True):
        ranks[i] = rank
    by_repeat = [[row[i] for i in scored] for row in table]
    complete = len(read) == len(verdicts) and len(ranked) == n
    return Ranking(
        "ok" if complete else "partial",
        [means.get(original[i]) for i in range(n)],
        ranks,
        kendalls_w(by_repeat),
        mean_tau_b(by_repeat),
    )
