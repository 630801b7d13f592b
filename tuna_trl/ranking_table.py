"""A table of a few ranked prompts while training: each response's rank and what the model makes of it now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .losses.pairs import length_normalised
from .scoring import evaluating, response_logps


if TYPE_CHECKING:
    from .trainer import TunaTrainer


class RankingTable(TrainerCallback):
    """Prints, every so many steps, some rows as the model orders them: green where its score agrees with the rank.

    Add it when the trainer is made: `trainer.add_callback(RankingTable(trainer))`.

    Args:
        trainer: whose model, tokenizer and data it shows (the eval set's first rows if there is one, else the
            training set's).
        num_prompts: rows shown.
        every: steps between two tables; also printed before the first step.
    """

    def __init__(self, trainer: TunaTrainer, *, num_prompts: int = 4, every: int = 50) -> None:
        self._trainer = trainer
        self._every = max(every, 1)
        dataset: Any = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        self._rows = [row for row, _ in zip(dataset, range(num_prompts), strict=False)]
        self._last = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._show(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self._every == 0:
            self._show(state.global_step)

    def _show(self, step: int) -> None:
        if step == self._last:
            return
        self._last = step
        scores = self._scores()  # every process runs it, so that sharded models gather alike; one prints
        if self._trainer.is_world_process_zero():
            from rich.console import Console

            Console().print(ranking_table(self._rows, scores, self._trainer.processing_class, step))

    def _scores(self) -> list[list[float]]:
        trainer = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        batch = {key: value.to(model.device) for key, value in trainer.data_collator(self._rows).items()}
        with torch.no_grad(), evaluating(model):
            result = response_logps(model, batch)
        scores = length_normalised(result.logps, result.lengths, trainer.args.length_exponent)
        return [row[: len(own["ranks"])].tolist() for row, own in zip(scores, self._rows, strict=True)]


def ranking_table(rows: list[Mapping[str, Any]], scores: list[list[float]], tokenizer: Any, step: int) -> Any:
    """A rich table of tokenised rows.

    Args:
        scores: s_k of each response (nats a token), in the rows' order.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Step {step}: how the model ranks", title_justify="left", show_lines=True)
    table.add_column("prompt", max_width=36)
    table.add_column("rank", justify="right")
    table.add_column("response", max_width=60)
    table.add_column("score", justify="right")
    table.add_column("model's rank", justify="right")
    for row, row_scores in zip(rows, scores, strict=True):
        order = sorted(range(len(row_scores)), key=lambda k: -row_scores[k])
        cells: tuple[list[str], ...] = ([], [], [], [])
        for k, rank in enumerate(row["ranks"]):
            place = order.index(k) + 1
            # with ties several places are right: those that the tied responses share
            right = rank <= place < rank + row["ranks"].count(rank)
            text = tokenizer.decode(row["response_ids"][k], skip_special_tokens=True)
            cells[0].append(str(rank))
            cells[1].append(escape(_line(text, 58)))
            cells[2].append(f"{row_scores[k]:.3f}")
            cells[3].append(f"[{'green' if right else 'red'}]{place}[/]")
        prompt = tokenizer.decode(row["prompt_ids"], skip_special_tokens=True)
        table.add_row(escape(_line(prompt, 140, end=True)), *("\n".join(column) for column in cells))
    return table


def _line(text: str, limit: int, end: bool = False) -> str:
    """One line of at most `limit` characters: of what is longer the beginning, or the end (a prompt's question)."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return "…" + text[-limit + 1 :] if end else text[: limit - 1] + "…"
