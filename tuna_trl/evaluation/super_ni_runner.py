"""Super-NaturalInstructions on models: prompts, answers, and the tables of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..build.journal import Journal
from .candidates import Candidate
from .generation import GreedyAnswer, answer_record, greedy_answers, render
from .ranking import Interval, bootstrap_interval
from .results import Scores, Table
from .super_ni import NiData, NiScorer, category_metric, copy_baselines, grouped, tk_prompt


class SuperNi:
    """The benchmark as [`tuna_trl.evaluation.runner.run`] takes it.

    Args:
        data: what [`tuna_trl.evaluation.super_ni.load_super_ni`] gives.
        shots: positive examples in the prompt, 0 or 2 in the papers.
        template: see [`tuna_trl.evaluation.generation.render`].
        max_source_length: tokens of the benchmark's prompt, as the model's tokenizer counts; servers have no limit.
        max_new_tokens: tokens of an answer.
    """

    name = "Super-NaturalInstructions"

    def __init__(
        self,
        data: NiData,
        *,
        shots: int = 2,
        template: str = "chat",
        max_source_length: int = 1024,
        max_new_tokens: int = 128,
    ) -> None:
        self.data, self.shots, self.template = data, shots, template
        self.max_source_length, self.max_new_tokens = max_source_length, max_new_tokens
        self._scorer = NiScorer()

    def settings(self) -> dict[str, Any]:
        return {
            "shots": self.shots,
            "template": self.template,
            "max_source_length": self.max_source_length,
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
            "tasks": len(self.data.tasks),
            "instances": len(self.data.rows()),
            "tasks_absent": list(self.data.absent),
        }

    def notes(self) -> list[str]:
        total = len(self.data.tasks) + len(self.data.absent)
        said = ["ROUGE-L over all instances, classification included, as papers report it."]
        if total != 119 or self.data.absent:
            said.append(
                f"{len(self.data.tasks)} of the split's {total} tasks: not comparable with published 119-task numbers."
            )
        return said

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """ROUGE-L and exact match of Copy-Demo and Copy-Input."""
        return {
            name: {figure: value.mean for figure, value in self.score_texts(texts).figures.items()}
            for name, texts in copy_baselines(self.data).items()
        }

    def run(self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool) -> Scores:
        count = decode = None
        if candidate.local:
            tokenizer = candidate.tokenizer
            count = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
            decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        options: dict[str, Any] = dict(
            shots=self.shots, count_tokens=count, decode=decode, max_source_length=self.max_source_length
        )
        prompts = [render(tk_prompt(task, instance, **options), self.template) for task, instance in self.data.rows()]
        answers = greedy_answers(
            prompts,
            candidate.sampler,
            max_new_tokens=self.max_new_tokens,
            journal=journal,
            max_cost=max_cost,
            show_progress=show_progress,
        )
        return self.score(answers)

    def score_texts(self, texts: Sequence[str]) -> Scores:
        return self.score([GreedyAnswer(text) for text in texts])

    def score(self, answers: Sequence[GreedyAnswer]) -> Scores:
        """Scores of one answer an instance; an answer that is missing is left out and counted."""
        records = []
        for (task, instance), answer in zip(self.data.rows(), answers, strict=True):
            rouge, exact = (None, None) if answer.text is None else self._scorer.scores(answer.text, instance.outputs)
            records.append(
                {
                    "task": task.name,
                    "category": task.category,
                    "id": instance.id,
                    **answer_record(answer),
                    "rouge_l": rouge,
                    "exact_match": exact,
                }
            )
        values = {name: [record[name] for record in records] for name in ("rouge_l", "exact_match")}
        figures = {name: bootstrap_interval(column) for name, column in values.items()}
        over_tasks = {name: task_interval(records, name) for name in values}
        cut = sum(record["finish_reason"] == "length" for record in records)
        return Scores(
            figures,
            values,
            (_by_category(records), _by_task(records)),
            {"over_tasks": {name: value.to_json() for name, value in over_tasks.items()}, "cut_answers": cut},
            records,
        )


def task_interval(
    records: Sequence[Mapping[str, Any]], name: str, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean over instances with a bootstrap over tasks: whole tasks are drawn, because instances of one task are
    alike. Wider than over instances; it says what other tasks of the same kinds would give."""
    tasks = [[row[name] for row in rows if row[name] is not None] for rows in grouped(records, "task").values()]
    sums = np.array([math.fsum(values) for values in tasks if values])
    counts = np.array([len(values) for values in tasks if values], dtype=float)
    if not len(sums):
        return Interval(None, None, None, 0, len(tasks))
    places = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[places].sum(1) / counts[places].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums), len(tasks) - len(sums))


def _by_category(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for category, group in grouped(records, "category").items():
        metric = category_metric(category)
        value = bootstrap_interval([row[metric] for row in group])
        rows.append(
            (category, len({row["task"] for row in group}), len(group), metric, value.mean, value.low, value.high)
        )
    header = ("category", "tasks", "instances", "metric", "mean", "low", "high")
    return Table("By category (%)", header, tuple(sorted(rows)))


def _by_task(records: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for task, group in grouped(records, "task").items():
        means = [bootstrap_interval([row[name] for row in group], draws=1).mean for name in ("rouge_l", "exact_match")]
        rows.append((task, group[0]["category"], len(group), *means))
    return Table("By task (%)", ("task", "category", "instances", "ROUGE-L", "exact match"), tuple(rows))
