"""One row of a judge's build: what is asked about it, and what the verdicts come to.

A row is asked about in cycles (`repeats`), and a cycle is one question or several, as the judge's protocol has it:
all candidates at once, pair by pair, one by one. Equal responses are collapsed before they are asked about, and share
what comes out; the order of the candidates is permuted and goes round from cycle to cycle, so that no place is
anybody's. Pure: asks nobody and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..clients.base import JudgeRequest, Verdict
from ..data.schema import competition_ranks, digest, mark_duplicates
from .agreement import kendalls_w, mean_tau_b
from .judging import Question
from .sampling import Drawn


Orders = Callable[[Sequence[int]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Case:
    """One row in the making. `questions` is empty when there are not two different responses to compare; the cycle of
    a question is its `request.repeat`."""

    drawn: Drawn
    duplicate_of: list[int | None]
    questions: list[Question]


@dataclass(frozen=True)
class OwnAnswer:
    """The judge's own answer, ranked beside the responses. `duplicate_of`: the response with the same text."""

    text: str
    score: float
    rank: int | None
    duplicate_of: int | None = None


@dataclass(frozen=True)
class Ranking:
    """What the verdicts on one row come to; scores and ranks by response index."""

    status: str
    scores: list[float | None]
    ranks: list[int | None]
    agreement_w: float | None = None
    agreement_tau: float | None = None
    answer: OwnAnswer | None = None  # takes a place in the competition, so that `ranks` may leave one out


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


def make_case(drawn: Drawn, *, where: str, seed: int, repeats: int, orders: Orders | None = None) -> Case:
    """What is to be asked about one prompt: nothing if all its responses are the same.

    Args:
        where: the row, as errors name it.
        repeats: cycles of questions.
        orders: the questions of a cycle (the judge's `orders`); default: one, on all candidates at once.
    """
    item = drawn.item
    texts = [sample.text for sample in drawn.samples]
    duplicate_of = mark_duplicates(texts)
    distinct = [i for i, original in enumerate(duplicate_of) if original is None]
    questions = []
    for repeat in range(repeats if len(distinct) > 1 else 0):
        cycle = shown_order(distinct, seed=seed, prompt_id=item.prompt_id, occurrence=item.occurrence, repeat=repeat)
        for order in orders(cycle) if orders else [cycle]:
            candidates = tuple(texts[i] for i in order)
            # The candidates are hashed too: a response that holds its own nonce would have to be found by trial.
            nonce = digest(["nonce", seed, item.prompt_id, item.occurrence, repeat, candidates])[:16]
            request = JudgeRequest(item.prompt, candidates, item.reference, repeat, nonce)
            questions.append(Question(where, request, tuple(order)))
    return Case(drawn, duplicate_of, questions)


def rank_case(case: Case, tie_delta: float) -> Ranking:
    """Mean scores over the cycles that could be read, and competition ranks of them.

    In a cycle, the score of a response is the mean over its questions. Where candidates stand side by side (all at
    once, in pairs), a cycle counts if all its questions were read: else some responses would have met others than the
    rest. Where each is asked about alone, a response counts that was read in every cycle that was read at all.

    A judge's own answer (see [`tuna_trl.clients.contextual.ContextualProtocol`]) is another text in every cycle: the
    one of the first cycle that was read is ranked, with the score it got there.

    Returns:
        `ok`; `partial`, where some cycles or responses are missing; else no rank at all, with the status of the first
        question that could not be read (`over_budget`: it was never answered).
    """
    n = len(case.drawn.samples)
    if not case.questions:
        return Ranking("ok", [None] * n, [1] * n)
    table = _cycles(case.questions)
    scored = [i for i in sorted(table[0]) if all(i in row for row in table)] if table else []
    bad = [verdict.status for question in case.questions if (verdict := _verdict(question)).status != "ok"]
    if not scored:
        return Ranking(bad[0] if bad else "malformed", [None] * n, [None] * n)
    means: dict[int, float] = {i: math.fsum(row[i] for row in table) / len(table) for i in scored}
    # A duplicate has the score and the rank of its original, and so has a judge's answer that repeats a response.
    original = [i if first is None else first for i, first in enumerate(case.duplicate_of)]
    answered = _answered(case.questions)
    own = None
    if answered is not None:
        own = mark_duplicates([*(sample.text for sample in case.drawn.samples), answered[0]])[n]
        means.setdefault(n if own is None else own, answered[1])
        original.append(n if own is None else own)
    merit = _merit(case.questions, means, n, tie_delta)
    ranked = [i for i in range(len(original)) if original[i] in merit]
    ranks: list[int | None] = [None] * len(original)
    for i, rank in zip(ranked, competition_ranks([merit[original[i]] for i in ranked], tie_delta), strict=True):
        ranks[i] = rank
    by_cycle = [[row[i] for i in scored] for row in table]
    return Ranking(
        "partial" if bad or None in ranks[:n] else "ok",
        [means.get(original[i]) for i in range(n)],
        ranks[:n],
        kendalls_w(by_cycle),
        mean_tau_b(by_cycle),
        None if answered is None else OwnAnswer(answered[0], means[original[n]], ranks[n], own),
    )


def _verdict(question: Question) -> Verdict:
    """The reading that counts: the last attempt's."""
    return question.answers[-1].verdict if question.answers else Verdict("over_budget", ())


def _cycles(questions: Sequence[Question]) -> list[dict[int, float]]:
    """One dict for each cycle that counts: response index -> its mean score over the cycle's questions."""
    alone = all(len(question.permutation) == 1 for question in questions)
    cycles: dict[int, list[Question]] = {}
    for question in questions:
        cycles.setdefault(question.request.repeat, []).append(question)
    table = []
    for cycle in cycles.values():
        read = [question for question in cycle if _verdict(question).status == "ok"]
        if not read or (not alone and len(read) < len(cycle)):
            continue
        found: dict[int, list[float | None]] = {}
        for question in read:
            for i, score in zip(question.permutation, _verdict(question).scores, strict=True):
                found.setdefault(i, []).append(score)
        known = {i: [score for score in some if score is not None] for i, some in found.items()}
        table.append({i: math.fsum(some) / len(some) for i, some in known.items() if len(some) == len(found[i])})
    return table


def _answered(questions: Sequence[Question]) -> tuple[str, float] | None:
    """The judge's own answer and its score, of the first verdict that was read and has both."""
    for verdict in map(_verdict, questions):
        if verdict.status == "ok" and verdict.answer is not None and verdict.answer_score is not None:
            return verdict.answer, verdict.answer_score
    return None


def _merit(questions: Sequence[Question], means: dict[int, float], n: int, tie_delta: float) -> dict[int, float]:
    """What is compared: the means; or places, where a single question's order is to break ties between equal scores.

    `n` stands for the judge's own answer, which is the last place of its order.
    """
    verdict = _verdict(questions[0])
    if len(questions) > 1 or tie_delta != 0 or verdict.order is None:
        return means
    shown = (*questions[0].permutation, n)
    place = {shown[p]: k for k, p in enumerate(verdict.order)}  # places best first: an earlier one wins
    strict = sorted(means, key=lambda i: (-means[i], place[i]))
    return {i: -float(k) for k, i in enumerate(strict)}
