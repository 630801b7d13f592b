"""Judged quality of fresh answers: one score a prompt and model, from any judge, through the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..build.cost import Budget
from ..build.journal import Journal
from ..build.judging import Question, ask_all
from ..clients.base import Judge, JudgeRequest
from ..data.schema import Messages, digest
from ..errors import InputError


def judge_answers(
    prompts: Sequence[Messages],
    references: Sequence[str | None],
    answers: Mapping[str, Sequence[str]],
    judge: Judge,
    *,
    journal: Journal,
    budget: Budget,
    show_progress: bool = True,
) -> dict[str, list[float | None]]:
    """Score the answers of several models to the same prompts.

    The different answers to a prompt are shown together (pair by pair, one by one, as the judge's protocol asks), in
    an order drawn from their texts, so that no model has a place of its own; equal answers are shown once and share
    their score.

    Args:
        answers: model name -> one answer a prompt.

    Returns:
        model name -> one score a prompt: the mean over the judge's replies that saw the answer; None where one of
        them could not be read. Where all models gave one answer and the judge only compares, 0.5.
    """
    for name, texts in answers.items():
        if len(texts) != len(prompts):
            raise InputError(f"`answers[{name!r}]` has {len(texts)} entries for {len(prompts)} prompts.")
    asked: list[list[Question]] = []
    shown: list[list[str]] = []
    for i, prompt in enumerate(prompts):
        distinct = sorted({texts[i] for texts in answers.values()}, key=lambda text: digest([i, text]))
        questions = []
        for places in judge.orders(tuple(range(len(distinct)))):
            candidates = tuple(distinct[place] for place in places)
            nonce = digest(["answers", i, candidates])[:16]
            request = JudgeRequest(prompt, candidates, references[i], 0, nonce)
            questions.append(Question(f"heldout[{i}]", request, tuple(places)))
        asked.append(questions)
        shown.append(distinct)
    every = [question for questions in asked for question in questions]
    ask_all(every, judge, journal=journal, budget=budget, show_progress=show_progress)
    scores: dict[str, list[float | None]] = {name: [] for name in answers}
    for i, (questions, distinct) in enumerate(zip(asked, shown, strict=True)):
        merit = _means(questions, len(distinct))
        for name, texts in answers.items():
            scores[name].append(merit[distinct.index(texts[i])])
    return scores


def _means(questions: Sequence[Question], n: int) -> list[float | None]:
    """The mean score of each of n answers."""
    if not questions:  # one answer, and a judge that only compares: a tie with itself
        return [0.5] * n
    found: list[list[float | None]] = [[] for _ in range(n)]
    for question in questions:
        verdict = question.answers[-1].verdict
        for place, answer in enumerate(question.permutation):
            found[answer].append(verdict.scores[place] if verdict.status == "ok" else None)
    means: list[float | None] = []
    for values in found:
        known = [value for value in values if value is not None]
        means.append(math.fsum(known) / len(known) if known and len(known) == len(values) else None)
    return means
