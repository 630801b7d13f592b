"""Tokens, seconds and steps of one training; checkpoints carry them, and a budget of tokens ends it.

Counted tokens are those whose likelihood (or, of a reward model, whose score) is in a loss with a gradient:

    ranked       response tokens, the end token included, of every response that is ranked or is a likelihood target
    labels       label tokens of SFT: the completion and its end token
    completions  of DPO chosen and rejected, of GRPO and RLOO every sample
    sequences    of a reward model prompt and response, chosen and rejected: its score is read at their end

once for each time that they are trained on; padding never. Prompts are not counted but of reward models.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from ..build.progress import progress
from ..errors import InputError
from .stages import write_json


FILE = "tuna_trl_meter.json"
_SHARES = 100_000  # steps that a schedule over a budget of tokens is read at


@dataclass
class Totals:
    """`tokens`: see above. `processed`: all tokens that went through the model with a gradient, prompts and all, one
    prompt a response, padding left out. Seconds are those of training: wall-clock, and of all threads of the
    process. What was trained after the last checkpoint of a run that was killed is not in them."""

    tokens: int = 0
    processed: int = 0
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class TokenMeter(TrainerCallback):
    """Counts the batches that a [`metered`] trainer is given, and stops it behind the budget.

    Args:
        counts: "ranked", "labels", "completions" or "sequences".
        budget: tokens after which training ends, at the end of the optimiser step that reaches them; None: never.
        ranking: of "ranked": whether the ranking loss has a weight, so that ranked responses count.
    """

    def __init__(self, counts: str, budget: int | None = None, *, ranking: bool = True) -> None:
        self.counts, self.budget, self.ranking = counts, budget, ranking
        self.totals = Totals()
        self._started: tuple[float, float] | None = None

    @property
    def share(self) -> float:
        """Of the budget, 0 to 1."""
        return min(self.totals.tokens / self.budget, 1.0) if self.budget else 0.0

    def add(self, inputs: Mapping[str, Tensor]) -> None:
        """Count one batch."""
        tokens, processed = count(inputs, self.counts, ranking=self.ranking)
        self.totals.tokens += tokens
        self.totals.processed += processed

    def save(self, checkpoint: Path) -> None:
        """The last file of a checkpoint: one that lacks it is not whole."""
        self._clock()
        write_json(checkpoint / FILE, asdict(self.totals))

    def load(self, checkpoint: Path) -> None:
        self.totals = Totals(**json.loads((checkpoint / FILE).read_text(encoding="utf-8")))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.monotonic(), time.process_time()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.totals.steps = state.global_step
        if self.budget is not None and self.totals.tokens >= self.budget:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._clock()

    def _clock(self) -> None:
        if self._started is not None:
            now = time.monotonic(), time.process_time()
            self.totals.seconds += now[0] - self._started[0]
            self.totals.cpu_seconds += now[1] - self._started[1]
            self._started = now


class TokenBar(TrainerCallback):
    """As [`.training_bar.TrainingBar`], in tokens of a budget."""

    def __init__(self, title: str, meter: TokenMeter) -> None:
        self._title, self._meter = title, meter
        self._stack = ExitStack()
        self._shown = 0
        self._advance: Callable[[int], None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._shown = self._meter.totals.tokens
        note = f"{self._shown} tokens were trained on before" if self._shown else ""
        left = max((self._meter.budget or 0) - self._shown, 0)
        self._advance = self._stack.enter_context(progress(self._title, left, note, unit="tokens"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._advance is not None:
            self._advance(self._meter.totals.tokens - self._shown)
        self._shown = self._meter.totals.tokens

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stack.close()


def count(inputs: Mapping[str, Tensor], counts: str, *, ranking: bool = True) -> tuple[int, int]:
    """(tokens, processed tokens) of a batch as a trainer's `compute_loss` gets it."""
    if counts == "ranked":
        trained = inputs["labels"] != -100
        if ranking:
            trained = trained | (inputs["score_mask"].bool() & inputs["rank_mask"].bool().unsqueeze(-1))
        return int(trained[..., 1:].sum()), int(inputs["attention_mask"].sum())
    if counts == "sequences":
        return (int(inputs["attention_mask"].sum()),) * 2
    if counts == "labels":
        mask = inputs.get("attention_mask")
        processed = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return int((inputs["labels"][..., 1:] != -100).sum()), processed
    tokens = int(inputs["completion_mask"].sum())
    mask = inputs.get("attention_mask")
    return tokens, int(inputs["prompt_mask"].sum()) + tokens if mask is None else int(mask.sum())


def metered(trainer: Any, meter: TokenMeter) -> type:
    """The trainer's class, telling `meter` of every training batch; under a budget its learning rate follows the
    share of the budget that is used up, so that a schedule ends where training does."""

    class Metered(trainer):
        def __init__(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[meter, *(callbacks or [])], **kwargs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.model.training:
                meter.add(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if meter.budget is None or self.lr_scheduler is not None:
                return super().create_scheduler(num_training_steps, optimizer)
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler: Any = LambdaLR(optimizer, _by_budget(self.args, optimizer, meter))
            self._created_lr_scheduler = True
            return self.lr_scheduler

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            meter.save(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    Metered.__name__ = Metered.__qualname__ = trainer.__name__  # model cards name it
    return Metered


def _by_budget(args: Any, optimizer: Any, meter: TokenMeter) -> Any:
    """Factor of the learning rate by optimiser step: the schedule at the share of the budget, warm-up by steps (by
    the share, where `warmup_steps` is below 1)."""
    steps = args.warmup_steps if args.warmup_steps >= 1 else 0
    shares = 0 if steps else math.ceil(args.warmup_steps * _SHARES)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer=_twin(optimizer),
        num_warmup_steps=shares,
        num_training_steps=_SHARES,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(schedule, LambdaLR):
        raise InputError(
            f"`lr_scheduler_type` is {args.lr_scheduler_type!r}, which is no function of progress; under a budget of "
            "`tokens` use linear, cosine or constant."
        )
    shape = schedule.lr_lambdas[0]

    def factor(step: int) -> float:
        return (min(step / steps, 1.0) if steps else 1.0) * shape(round(meter.share * _SHARES))

    return factor


def _twin(optimizer: Any) -> Any:
    """An optimiser that nobody steps: a schedule sets the rates of the one it is made with."""
    import torch

    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates], lr=0.0)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a [`metered`] trainer that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if (path / FILE).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
