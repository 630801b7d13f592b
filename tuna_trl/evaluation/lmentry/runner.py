"""LMentry on models: bare prompts, greedy answers, accuracy, robustness and the LMentry score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...build.journal import Journal
from ..candidates import Candidate
from ..generation import GreedyAnswer, Task, answer_record, greedy_answers, render
from ..ranking import Interval
from ..results import Scores, Table
from .aggregate import Counts, aggregate, bootstrap
from .data import Example
from .scorers import is_right
from .tasks import CORE


class LMentry:
    """The benchmark as [`tuna_trl.evaluation.runner.run`] takes it.

    Args:
        examples: what [`tuna_trl.evaluation.lmentry.data.load_lmentry`] gives.
        template: "raw" is the benchmark's own: the bare input.
        truncate: read an answer up to its first line break and full stop, for models that never stop.
        max_new_tokens: the benchmark generates to a total of 50 tokens with its input; this counts new ones.
    """

    name = "LMentry"

    def __init__(
        self, examples: Sequence[Example], *, template: str = "raw", truncate: bool = False, max_new_tokens: int = 50
    ) -> None:
        self.examples, self.template, self.truncate = list(examples), template, truncate
        self.max_new_tokens = max_new_tokens

    def settings(self) -> dict[str, Any]:
        return {
            "template": self.template,
            "truncate": self.truncate,
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
            "examples": len(self.examples),
            "tasks": len({example.task for example in self.examples}),
        }

    def notes(self) -> list[str]:
        said = ["A model that is always wrong has robustness 100: read the LMentry score, not the robustness alone."]
        if missing := sorted(set(CORE) - {example.task for example in self.examples}):
            said.append(f"No accuracy and no score: the data lacks {', '.join(missing)}.")
        return said

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """None: a constant answer has no meaning across the tasks."""
        return {}

    def run(self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool) -> Scores:
        prompts = [render(Task(example.prompt, example.prompt), self.template) for example in self.examples]
        answers = greedy_answers(
            prompts,
            candidate.sampler,
            max_new_tokens=self.max_new_tokens,
            journal=journal,
            max_cost=max_cost,
            show_progress=show_progress,
        )
        return self.score(answers)

    def score(self, answers: Sequence[GreedyAnswer]) -> Scores:
        """Scores of one answer an example; an answer that is missing is left out and counted."""
        counts, records = Counts(), []
        for example, answer in zip(self.examples, answers, strict=True):
            right = None
            if answer.text is not None:
                right = is_right(example.task, example.metadata, answer.text, truncate=self.truncate)
                counts.add(example.task, example.template, example.answer_index, 1, int(right))
            records.append(
                {
                    "task": example.task,
                    "id": example.id,
                    "template_id": example.template,
                    **answer_record(answer),
                    "right": right,
                }
            )
        return self._scores(counts, records)

    def _scores(self, counts: Counts, records: list[dict[str, Any]]) -> Scores:
        report = aggregate(counts)
        intervals = bootstrap(counts)
        missing = sum(record["right"] is None for record in records)
        figures = {
            "lmentry_score": _left_out(intervals.get("score"), missing),
            "accuracy": _left_out(intervals.get("accuracy"), missing),
            "robustness": _left_out(intervals.get("robustness"), missing),
        }
        values = {
            "right (core tasks, %)": [
                None if record["right"] is None else 100.0 * record["right"]
                for record in records
                if record["task"] in CORE
            ]
        }
        tasks = tuple(
            (task, report.examples[task], report.tasks[task], *(report.templates[task].get(t) for t in range(3)))
            for task in report.tasks
        )
        header = ("task", "examples", "accuracy", "template 0", "template 1", "template 2")
        tables = (
            Table("Robustness, its four parts (%)", ("part", "value"), tuple(report.parts.items())),
            Table("By task (%)", header, tasks),
        )
        return Scores(figures, values, tables, {"report": report.to_json()}, records)


def _left_out(interval: Interval | None, missing: int) -> Interval:
    if interval is None:
        return Interval(None, None, None, 0, missing)
    return Interval(interval.mean, interval.low, interval.high, interval.rows, missing)
