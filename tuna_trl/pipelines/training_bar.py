"""One line of progress for a training inside a longer run: a bar on a terminal, a start and an end elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..build.progress import progress


class TrainingBar(TrainerCallback):
    """Shows optimiser steps; the trainer's own lines of metrics go to its log history, and from there to the report.

    Args:
        title: what is trained, as a person would say it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._stack = ExitStack()
        self._advance: Callable[[int], None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            note = f"{state.global_step} of {state.max_steps} steps were done before" if state.global_step else ""
            left = state.max_steps - state.global_step
            self._advance = self._stack.enter_context(progress(self._title, left, note))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._advance is not None:
            self._advance(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stack.close()
