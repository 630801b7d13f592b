"""The share of a TunaTrainer's step that is spent outside the model: collation, metrics, logging, the loop itself.

A training runs as a user's would; clocks stand at the model's forward, the backward and the optimiser, and what is
left of the step is the overhead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from .measure import spread
from .sides import Row


class _Clock(TrainerCallback):
    """Seconds of each step, and of each step inside the model and the optimiser."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inside = 0.0
        self._last: float | None = None
        self._started = 0.0
        self.steps: list[tuple[float, float]] = []

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def enter(self, *_: Any) -> None:
        self._started = self.now()

    def leave(self, *_: Any) -> None:
        self._inside += self.now() - self._started

    def around(self, function: Callable) -> Callable:
        def run(*args, **kwargs):
            self.enter()
            result = function(*args, **kwargs)
            self.leave()
            return result

        return run

    def on_step_end(self, args, state, control, **kwargs):
        # from the end of one step to the end of the next: loading, collating and logging lie between steps
        now = self.now()
        if self._last is not None:
            self.steps.append((now - self._last, self._inside))
        self._last, self._inside = now, 0.0


def step_overhead(
    model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, Any]:
    """Train `model` (PEFT) on `rows`, one a step, logging every step.

    Returns:
        The row: `time_ratio` is the median share of a step outside forward, backward and optimiser.
    """
    from tuna_trl import TunaConfig, TunaTrainer

    device = next(model.parameters()).device
    clock = _Clock(device)
    args = TunaConfig(
        output_dir=str(folder),
        use_cpu=device.type == "cpu",
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        gradient_checkpointing=False,
        per_device_train_batch_size=1,
        max_steps=len(rows),
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    dataset = Dataset.from_list([dict(row) for row in rows])
    trainer = TunaTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
    trainer.model.register_forward_pre_hook(clock.enter)
    trainer.model.register_forward_hook(clock.leave)
    trainer.accelerator.backward = clock.around(trainer.accelerator.backward)
    trainer.accelerator.clip_grad_norm_ = clock.around(trainer.accelerator.clip_grad_norm_)
    trainer.create_optimizer()
    # hooks: the scheduler wants the bound method that it finds
    trainer.optimizer.register_step_pre_hook(clock.enter)
    trainer.optimizer.register_step_post_hook(clock.leave)
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shares = [(whole - inside) / whole for whole, inside in clock.steps]
    return {
        "name": "step_overhead",
        "time_ratio": statistics.median(shares),
        "memory_ratio": None,
        "spread": spread(shares),
        "time_ratio_is": "outside the model / whole step",
        "repeats": len(shares),
        "step_seconds": statistics.median(whole for whole, _ in clock.steps),
        "outside_seconds": statistics.median(whole - inside for whole, inside in clock.steps),
    }
