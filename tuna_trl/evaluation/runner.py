"""Runs a benchmark on one model after the other and writes what came out; a stopped run goes on from its journal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from ..build.journal import Journal
from ..build.remote import check_spending
from ..clients.base import RemoteSampler
from .candidates import Candidate
from .results import Evaluation, ModelScores, Scores, write_results


class Benchmark(Protocol):
    """What can be run on a model."""

    name: str

    def settings(self) -> dict[str, Any]:
        """All that decides the figures beside the model."""
        ...

    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        ...

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """Figures that need no model."""
        ...

    def run(self, candidate: Candidate, journal: Journal, max_cost: float, show_progress: bool) -> Scores: ...


def run(
    benchmark: Benchmark,
    candidates: Iterable[Candidate],
    output: str | Path,
    *,
    journal: str | Path | None = None,
    max_cost: float | None = None,
    show_progress: bool = True,
) -> Evaluation:
    """Evaluate each candidate and write `results.json`, `results.md` and `predictions/` to `output`.

    Args:
        candidates: the first is the one that the others are held against.
        journal: an SQLite file; default: `journal.sqlite` in `output`. What is there is not generated or asked again.
        max_cost: cap in USD on a paid server or judge; needed for one (`math.inf`: none).

    Raises:
        InputError: a paid server without a cap, and what the benchmark says of its data.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    with Journal(journal or folder / "journal.sqlite") as opened:
        for candidate in candidates:
            if isinstance(candidate.sampler, RemoteSampler):
                check_spending(candidate.sampler, max_cost, opened.path)
            cap = math.inf if max_cost is None else max_cost
            scores = benchmark.run(candidate, opened, cap, show_progress)
            models.append(ModelScores(candidate.name, candidate.record, scores))
    evaluation = Evaluation(benchmark.name, benchmark.settings(), models, benchmark.baselines(), benchmark.notes())
    write_results(evaluation, folder)
    return evaluation
