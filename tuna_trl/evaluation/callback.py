"""A benchmark while training: its figures at every evaluation, in the log and for the choice of the best model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..build.journal import Journal
from ..errors import InputError
from .candidates import Candidate
from .generation import tokenizer_for
from .runner import Benchmark


if TYPE_CHECKING:
    from ..trainer import TunaTrainer


class BenchmarkCallback(TrainerCallback):
    """Runs a benchmark on the model as it is, each time that the trainer evaluates.

    Figures are logged as `eval_<prefix>_<figure>`, with `_low` and `_high`, and stand in the metrics of the
    evaluation, so that `metric_for_best_model` may name one. Add it when the trainer is made:
    `trainer.add_callback(BenchmarkCallback(trainer, SuperNi(data), prefix="super_ni"))`.

    Args:
        trainer: whose model and tokenizer are used; one process.
        benchmark: [`tuna_trl.evaluation.super_ni_runner.SuperNi`], [`tuna_trl.evaluation.lmentry.runner.LMentry`],
            [`tuna_trl.evaluation.ranked.RankedData`] or another [`tuna_trl.evaluation.runner.Benchmark`].
        prefix: of the figures' names.
        max_batch_tokens: tokens (prompts and answers) of one forward pass.

    Raises:
        InputError: the trainer runs in several processes.
    """

    def __init__(
        self, trainer: TunaTrainer, benchmark: Benchmark, *, prefix: str, max_batch_tokens: int = 32_768
    ) -> None:
        if trainer.args.world_size > 1:
            raise InputError(
                f"BenchmarkCallback runs in one process and the trainer has {trainer.args.world_size}: evaluate the "
                "checkpoints with `tuna-trl evaluate` instead."
            )
        self._trainer, self._benchmark, self._prefix = trainer, benchmark, prefix
        self._max_batch_tokens = max_batch_tokens

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = self.figures()
        self._trainer.log(dict(figures))
        if metrics is not None:
            metrics.update(figures)

    def figures(self) -> dict[str, float]:
        """The benchmark's figures on the model as it is."""
        with Journal(":memory:") as journal:
            scores = self._benchmark.run(self._candidate(), journal, math.inf, False)
        found: dict[str, Any] = {}
        for name, value in scores.figures.items():
            if value.mean is not None:
                key = f"eval_{self._prefix}_{name}"
                found |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high}
        return found

    def _candidate(self) -> Candidate:
        from ..clients.local import TransformersSampler

        trainer: Any = self._trainer
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        template = getattr(self._benchmark, "template", "chat")
        sampler = TransformersSampler(
            model, tokenizer_for(tokenizer, template), name="student", max_batch_tokens=self._max_batch_tokens
        )
        return Candidate("student", sampler, {}, model, tokenizer)
