"""What watches a training run: the alarm for collapsing likelihood."""

from __future__ import annotations

from collections import deque
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

FALL = 1.0  # nats a token
WINDOW = 5  # log entries


class CollapseAlarm(TrainerCallback):
    """Warns once when the best responses lose likelihood: a ranking loss is content with pushing all of them down.

    It speaks when the mean of the last five logged `logps/best` lies one nat a token below the first. Seen in SimPO
    and RRHF runs as endless repetition (princeton-nlp/SimPO#12, #42).
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._said = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        value = (logs or {}).get("logps/best")
        if value is None or self._said:
            return
        if self._began is None:
            # a resumed run began where its first log entry says
            earlier = [entry["logps/best"] for entry in state.log_history if "logps/best" in entry]
            self._began = earlier[0] if earlier else value
        self._last.append(value)
        now = sum(self._last) / len(self._last)
        if len(self._last) == WINDOW and now < self._began - FALL:
            self._said = True
            if not state.is_world_process_zero:
                return
            logger.warning(
                f"Likelihood collapse at step {state.global_step}: the best responses' mean log-probability fell from "
                f"{self._began:.2f} to {now:.2f} nats a token. The model is unlearning all responses, not only the "
                f"worse ones. Lower `learning_rate` (now {args.learning_rate:g}), raise `mle_weight` (now "
                f"{getattr(args, 'mle_weight', 'unset')}), or train fewer epochs."
            )
