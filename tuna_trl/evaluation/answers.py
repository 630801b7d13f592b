"""Judged quality of fresh answers: one score a prompt and model, from any judge, through the journal."""

from __future__ import annotations

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

    The different answers to a prompt are shown together, in an order drawn from their texts, so that no model has a
    place of its own; equal answers are shown once and share their score.

    Args:
        answers: model name -> one answer a prompt.

    Returns:
        model name -> one score a prompt (None where the judge's reply could not be read).
    """
    for name, texts in answers.items():
        if len(texts) != len(prompts):
            raise InputError(f"`answers[{name!r}]` has {len(texts)} entries for {len(prompts)} prompts.")
    questions, shown = [], []
    for i, prompt in enumerate(prompts):
        distinct = sorted({texts[i] for texts in answers.values()}, key=lambda text: digest([i, text]))
        nonce = digest(["answers", i, distinct])[:16]
        request = JudgeRequest(prompt, tuple(distinct), references[i], 0, nonce)
        questions.append(Question(f"heldout[{i}]", request, tuple(range(len(distinct)))))
        shown.append(distinct)
    ask_all(questions, judge, journal=journal, budget=budget, show_progress=show_progress)
    scores: dict[str, list[float | None]] = {name: [] for name in answers}
    for i, (question, distinct) in enumerate(zip(questions, shown, strict=True)):
        verdict = question.answers[-1].verdict
        for name, texts in answers.items():
            readable = verdict.status == "ok"
            scores[name].append(verdict.scores[distinct.index(texts[i])] if readable else None)
    return scores
