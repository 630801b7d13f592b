"""Vicuna QA on models: answers, then each model's answers against those of an opponent, judged in both orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...build.cost import Budget
from ...build.journal import Journal
from ...build.judging import Question, ask_all
from ...clients.base import Judge, JudgeProtocol, JudgeRequest, Reply, Usage, Verdict
from ...data.schema import digest
from ...errors import InputError
from ..candidates import Candidate
from ..generation import GreedyAnswer, Task, answer_record, greedy_answers, render
from ..results import Scores, Table
from .data import VicunaQuestion
from .games import GameSummary, Pair, balanced_scores, summarise, two_games
from .protocols import ScoresV1, references_for


class CompletionJudge:
    """Any chat model as a judge: a function of system prompt and user turn that gives the reply's text.

    Args:
        complete: may be called from `concurrency` threads at once.
        protocol: what is asked and how the reply is read.
        name: goes into the results and, as the only mark of what `complete` is, into the journal's keys.
        concurrency: calls of `complete` at once.
    """

    method = "judge"
    paid = False
    max_batch = 1

    def __init__(
        self, complete: Callable[[str, str], str], protocol: JudgeProtocol, *, name: str, concurrency: int = 1
    ) -> None:
        self._complete, self.protocol, self.name, self.concurrency = complete, protocol, name, concurrency

    def fingerprint(self) -> dict[str, Any]:
        return {"judge": "completion", "model": self.name, **self.protocol.fingerprint()}

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return self.protocol.orders(order)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        return [Reply(raw=self._complete(*self.protocol.render(request)), stop_reason="stop") for request in requests]

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        return self.protocol.parse(request, reply)

    def worst_case_cost(self, request: JudgeRequest) -> float:
        return 0.0

    def cost(self, usage: Usage) -> float:
        return 0.0


def play(
    questions: Sequence[VicunaQuestion],
    ours: Sequence[str | None],
    theirs: Sequence[str | None],
    judge: Judge,
    *,
    journal: Journal,
    budget: Budget,
    use_scores: bool = False,
    show_progress: bool = True,
) -> list[Pair]:
    """Two games a question, the second with the answers swapped; results from the side of `ours`.

    Args:
        ours, theirs: an answer a question; a question that lacks one is dropped.
        judge: scores two candidates.
        use_scores: average the scores of both orders and compare the means, as the protocol of 2023 does; else the
            winner needs both games.

    Raises:
        InputError: the lists differ in length.
    """
    if not len(questions) == len(ours) == len(theirs):
        raise InputError(f"{len(questions)} questions, {len(ours)} and {len(theirs)} answers: they must be as many.")
    asked: list[list[Question]] = []
    for question, a, b in zip(questions, ours, theirs, strict=True):
        asked.append([] if a is None or b is None else _two_questions(question, (a, b)))
    # FastChat drops what cannot be read; to ask again until it can would be another benchmark
    flat = [game for games in asked for game in games]
    ask_all(flat, judge, journal=journal, budget=budget, max_malformed=0, show_progress=show_progress)
    pairs = []
    for question, games in zip(questions, asked, strict=True):
        first, second = [_scores(game) for game in games] or [None, None]
        if use_scores:
            pairs.append(balanced_scores(question.id, first, second))
        else:
            pairs.append(two_games(question.id, _result(first), _result(second)))
    return pairs


class VicunaQA:
    """The benchmark as [`tuna_trl.evaluation.runner.run`] takes it.

    Args:
        questions: what [`tuna_trl.evaluation.vicuna.data.load_questions`] gives.
        judge: compares two answers.
        against: name and answers (by question id) of the opponent; None: the first model that is run.
        template: see [`tuna_trl.evaluation.generation.render`].
        max_new_tokens: tokens of an answer; FastChat generates up to 1024.
    """

    name = "Vicuna QA"

    def __init__(
        self,
        questions: Sequence[VicunaQuestion],
        judge: Judge,
        *,
        against: tuple[str, Mapping[int, str]] | None = None,
        template: str = "chat",
        max_new_tokens: int = 1024,
    ) -> None:
        self.questions, self.judge, self.template = list(questions), judge, template
        self.max_new_tokens = max_new_tokens
        self.use_scores = isinstance(getattr(judge, "protocol", None), ScoresV1)
        self._opponent: tuple[str, list[str | None]] | None = None
        if against is not None:
            name, answers = against
            if missing := [question.id for question in self.questions if question.id not in answers]:
                raise InputError(f"The answers of {name} lack the questions {missing[:5]} ({len(missing)} in all).")
            self._opponent = name, [answers[question.id] for question in self.questions]

    def settings(self) -> dict[str, Any]:
        return {
            "questions": len(self.questions),
            "template": self.template,
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
            "judge": self.judge.name,
            "protocol": self.judge.fingerprint(),
            "opponent": None if self._opponent is None else self._opponent[0],
        }

    def notes(self) -> list[str]:
        rule = "scores averaged over both orders" if self.use_scores else "a win needs both orders of the answers"
        return [f"Win, tie and lose against {self.settings()['opponent']}: {rule}; a tie counts one half (adjusted)."]

    def baselines(self) -> dict[str, dict[str, float | None]]:
        return {}

    def run(self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool) -> Scores:
        answers = self._answers(candidate, journal, max_cost, show_progress)
        texts = [answer.text for answer in answers]
        if self._opponent is None:
            self._opponent = candidate.name, texts
            return Scores({}, records=self._records(answers, None))
        budget = Budget(max_cost)
        pairs = play(
            self.questions,
            texts,
            self._opponent[1],
            self.judge,
            journal=journal,
            budget=budget,
            use_scores=self.use_scores,
            show_progress=show_progress,
        )
        return self._scores(answers, pairs, budget.spent)

    def _answers(
        self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool
    ) -> list[GreedyAnswer]:
        if (stored := candidate.extra.get("answers")) is not None:
            return [GreedyAnswer(stored.get(question.id)) for question in self.questions]
        prompts = [render(Task(question.text, question.text), self.template) for question in self.questions]
        return greedy_answers(
            prompts,
            candidate.sampler,
            max_new_tokens=self.max_new_tokens,
            journal=journal,
            max_cost=max_cost,
            show_progress=show_progress,
        )

    def _scores(self, answers: Sequence[GreedyAnswer], pairs: list[Pair], spent: float) -> Scores:
        summary = summarise(pairs)
        figures = {
            "adjusted_win_rate": summary.adjusted_win_rate,
            "position_consistency": summary.position_consistency,
        }
        by_category = []
        for category in dict.fromkeys(question.category for question in self.questions):
            own = [p for p, q in zip(pairs, self.questions, strict=True) if q.category == category]
            by_category.append((category, *_row(summarise(own))))
        header = ("win", "tie", "lose", "dropped", "adjusted win rate", "position consistency")
        tables = (
            Table("Against the opponent", header, (_row(summary),)),
            Table("By category", ("category", *header), tuple(by_category)),
        )
        details = {"games": summary.to_json(), "judge_cost_usd": spent}
        return Scores(figures, {}, tables, details, self._records(answers, pairs))

    def _records(self, answers: Sequence[GreedyAnswer], pairs: Sequence[Pair] | None) -> list[dict[str, Any]]:
        records = []
        for place, (question, answer) in enumerate(zip(self.questions, answers, strict=True)):
            record = {"question_id": question.id, "text": answer.text, **answer_record(answer)}
            del record["prediction"]
            if pairs is not None:
                record |= {"result": pairs[place].result, "games": list(pairs[place].games)}
            records.append(record)
        return records


def _two_questions(question: VicunaQuestion, answers: tuple[str, str]) -> list[Question]:
    prompt = [{"role": "user", "content": question.text}]
    games = []
    for order in ((0, 1), (1, 0)):
        shown = tuple(answers[place] for place in order)
        nonce = digest(["vicuna", question.id, order, shown])[:16]
        request = JudgeRequest(prompt, shown, references_for(question), 0, nonce)
        games.append(Question(f"question {question.id}", request, order))
    return games


def _scores(game: Question) -> tuple[float, float] | None:
    """(our score, their score), whatever order they were shown in; None where the reply could not be read."""
    verdict = game.answers[-1].verdict
    if verdict.status != "ok":
        return None
    by_model = dict(zip(game.permutation, verdict.scores, strict=True))
    ours, theirs = by_model[0], by_model[1]
    return None if ours is None or theirs is None else (ours, theirs)


def _result(scores: tuple[float, float] | None) -> float | None:
    if scores is None:
        return None
    return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])


def _row(summary: GameSummary) -> tuple[Any, ...]:
    counts = (summary.win, summary.tie, summary.lose, summary.dropped)
    return (*counts, summary.adjusted_win_rate.mean, summary.position_consistency.mean)
