"""LMentry's accuracy, robustness and score from right and wrong, with the benchmark's own roundings.

    LMentry score = accuracy x robustness / 100

Accuracy is the mean over the 25 core tasks (%), each rounded to two decimals. Robustness is the mean, to one decimal,
of four numbers, each 100 less the mean gap between groups that should not differ (`tasks.py`): order of the arguments,
their content, the template, tasks that ask almost the same. A model that is always wrong has robustness 100: read the
score, not the robustness alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...errors import InputError
from ..ranking import Interval
from .tasks import ADJACENT, ARGUMENT_CONTENT, ARGUMENT_ORDER, CORE, core_task


class Outcome(NamedTuple):
    """One scored prediction. `answer_index`: which argument was right, None where the task has none."""

    task: str
    template: int
    answer_index: int | None
    right: bool


@dataclass(frozen=True)
class LMentryReport:
    """All figures in %. A part that lacks examples is None, and so is what it enters.

    `accuracy`, `score`: over the 25 core tasks; `tasks`, `templates`: of every task scored, subsets too.
    """

    accuracy: float | None
    robustness: float | None
    score: float | None
    parts: dict[str, float | None]  # argument_order, argument_content, template, adjacent_tasks
    tasks: dict[str, float | None]
    templates: dict[str, dict[int, float | None]]
    examples: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Counts:
    """Right and all predictions by task, template and answer index."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self.cells: dict[str, dict[tuple[int, int | None], list[int]]] = {}
        for outcome in outcomes:
            self.add(outcome.task, outcome.template, outcome.answer_index, 1, int(outcome.right))

    def add(self, task: str, template: int, answer_index: int | None, n: int, right: int) -> None:
        """Count `n` predictions, `right` of them right."""
        core_task(task)
        if not 0 <= right <= n:
            raise InputError(f"LMentry {task}: {right} of {n} predictions cannot be right.")
        cell = self.cells.setdefault(task, {}).setdefault((template, answer_index), [0, 0])
        cell[0] += n
        cell[1] += right

    def of(self, task: str, template: int | None = None, answer_index: int | None = None) -> tuple[int, int]:
        """All and right predictions of a task, of one template or answer index where they are given."""
        chosen = [
            cell
            for (own, index), cell in self.cells.get(task, {}).items()
            if template in (None, own) and answer_index in (None, index)
        ]
        return sum(cell[0] for cell in chosen), sum(cell[1] for cell in chosen)

    def accuracy(self, task: str, digits: int = 2, **which: int) -> float | None:
        """In %, rounded; None where nothing was scored."""
        n, right = self.of(task, **which)
        return round(100 * right / n, digits) if n else None


def aggregate(outcomes: Iterable[Outcome] | Counts) -> LMentryReport:
    """Accuracy, the four parts of robustness and the LMentry score.

    The denominators are the predictions there are, so that a sample of the benchmark has figures too.
    """
    counts = outcomes if isinstance(outcomes, Counts) else Counts(outcomes)
    tasks = {task: counts.accuracy(task) for task in counts.cells}
    templates = {
        task: {t: counts.accuracy(task, 1, template=t) for t in sorted({t for t, _ in cells})}
        for task, cells in counts.cells.items()
    }
    accuracy = _mean([tasks.get(task) for task in CORE])
    parts = {
        "argument_order": _robustness(
            [[counts.accuracy(task, answer_index=k) for k in (0, 1)] for task in ARGUMENT_ORDER]
        ),
        "argument_content": _robustness(
            [[tasks.get(f"{task}_{suffix}") for suffix in ends] for task, ends in ARGUMENT_CONTENT.items()]
        ),
        "template": _robustness([[templates.get(task, {}).get(t) for t in range(3)] for task in CORE]),
        "adjacent_tasks": _robustness([[tasks.get(a), tasks.get(b)] for a, b in ADJACENT]),
    }
    mean = _mean(list(parts.values()))
    robustness = None if mean is None else round(mean, 1)
    score = None if accuracy is None or robustness is None else accuracy * robustness / 100
    examples = {task: counts.of(task)[0] for task in counts.cells}
    return LMentryReport(accuracy, robustness, score, parts, tasks, templates, examples)


def bootstrap(counts: Counts, *, level: float = 0.95, draws: int = 500, seed: int = 0) -> dict[str, Interval]:
    """Bootstrap intervals of accuracy, robustness and score, in %.

    Within each task as many predictions are drawn again as there are. The tasks are fixed: the interval says what
    other examples of the same tasks would give. Gaps between groups widen by the noise of drawing, so that robustness
    is drawn lower than it is: the interval has the width of the draws' and lies around the figure itself.

    Returns:
        `accuracy`, `robustness`, `score`, those that have a value.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    report = aggregate(counts)
    drawn: dict[str, list[float]] = {"accuracy": [], "robustness": [], "score": []}
    for _ in range(draws):
        again = Counts()
        for task, cells in counts.cells.items():
            kinds = [(place, k) for place in cells for k in (0, 1)]  # of one place, the wrong and the right
            sizes = np.array([size for n, right in cells.values() for size in (n - right, right)], dtype=float)
            if total := sizes.sum():
                fresh = rng.multinomial(int(total), sizes / total).tolist()
                for ((template, index), k), n in zip(kinds, fresh, strict=True):
                    again.add(task, template, index, n, n * k)
        for name, values in drawn.items():
            if (value := getattr(aggregate(again), name)) is not None:
                values.append(value)
    rows = sum(counts.of(task)[0] for task in counts.cells)
    intervals = {}
    for name, values in drawn.items():
        point = getattr(report, name)
        if point is None:
            continue
        shift = point - np.mean(values)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) + shift
        intervals[name] = Interval(point, float(max(low, 0.0)), float(min(high, 100.0)), rows, 0)
    return intervals


def _robustness(groups: Sequence[Sequence[float | None]]) -> float | None:
    """100 less the mean over groups of the largest gap within; None where a group lacks a member."""
    mean = _mean([_gap(group) for group in groups])
    return None if mean is None else 100 - mean


def _gap(group: Sequence[float | None]) -> float | None:
    known = [value for value in group if value is not None]
    return max(known) - min(known) if len(known) == len(group) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
