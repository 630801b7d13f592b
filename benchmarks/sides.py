"""The sides that are compared: TunaTrainer, the reference step, and TRL's trainers, each by its own `compute_loss`.

All get the same token ids and share the weights of one base model. A trainer writes nothing but into the folder it is
given.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .measure import Side
from .models import lora_config, sharing_copy, with_lora
from .reference_step import reference_loss


# a row: {"prompt_ids": [...], "response_ids": [[...], ...]}, responses best first
Row = Mapping[str, Any]
PAIRS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "dpo_all_pairs": lambda n: list(itertools.combinations(range(n), 2)),
    "dpo_adjacent_pairs": lambda n: [(k, k + 1) for k in range(n - 1)],
    "dpo_one_pair": lambda n: [(0, n - 1)],
}


def ranked_row(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A tokenised row, ranked in the order of its responses; every response token is scored and trained."""
    n = len(responses)
    return {
        "prompt_ids": list(prompt),
        "response_ids": [list(r) for r in responses],
        "response_labels": [list(r) for r in responses],
        "score_lengths": [len(r) for r in responses],
        "ranks": list(range(1, n + 1)),
        "scores": [0.0] * n,
        "reference_ids": [],
        "length": len(prompt) + sum(map(len, responses)),
    }


class Sides:
    """Makes sides over one base model. Every config is made before the first trainer: a later one would reset the
    process-wide state of accelerate under the trainers that are there.

    Args:
        base: a plain, frozen model; not changed.
        tokenizer: TRL's trainers ask for one; its tokens are not used.
        folder: what trainers take as their output folder.
        checkpointing: activation checkpointing, of all sides.
        trl: whether TRL's trainers are wanted.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        checkpointing: bool = False,
        trl: bool = False,
    ) -> None:
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

        from tuna_trl import TunaConfig, TunaTrainer

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        self._checkpointing = checkpointing
        self._device = base.device
        common = dict(
            output_dir=str(folder),
            use_cpu=base.device.type == "cpu",
            bf16=False,  # weights are in the precision that was asked for; no autocast over them
            report_to="none",
            gradient_checkpointing=False,  # switched on below, where train() would
        )
        ours = TunaConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
        dpo = DPOConfig(**common) if trl else None
        sft = SFTConfig(**common) if trl else None
        row = ranked_row([5, 6, 7], [[8, 9], [10]])
        given = dict(args=ours, processing_class=tokenizer)
        self._ours = TunaTrainer(with_lora(base), train_dataset=Dataset.from_list([row]), **given)
        self._layout = self._ours._layout
        self._reference = self._ready(with_lora(base))
        self._ready(self._ours.model)
        if trl:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # a new adapter: the reference log-probs are then those of the base, with the adapter off
                pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
                self._dpo = DPOTrainer(
                    sharing_copy(base),
                    args=dpo,
                    train_dataset=Dataset.from_list([pair]),
                    processing_class=tokenizer,
                    peft_config=lora_config(),
                )
                self._sft = SFTTrainer(
                    with_lora(base),
                    args=sft,
                    train_dataset=Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, 6]}]),
                    processing_class=tokenizer,
                )
            self._ready(self._dpo.model)
            self._ready(self._sft.model)

    def _ready(self, model: Any) -> Any:
        if self._checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model.train()

    def ours(self, rows: Sequence[Row], *, layout: str = "shared_prompt", name: str = "ours") -> Side:
        """`TunaTrainer.compute_loss` on all responses."""
        batch = self._to_device(self._ours.data_collator(rows))

        def loss() -> Tensor:
            self._ours._layout = layout
            return self._ours.compute_loss(self._ours.model, batch)

        if layout == "shared_prompt" and self._layout != layout:
            raise RuntimeError(f"the model of this run is scored in {self._layout!r}; nothing to compare")
        return Side(name, self._ours.model, loss)

    def reference(self, rows: Sequence[Row]) -> Side:
        """The reference step on all responses, padded."""
        batch = self._to_device(self._ours.data_collator(rows))
        return Side("reference", self._reference, lambda: reference_loss(self._reference, batch))

    def dpo(self, rows: Sequence[Row], pairs: str) -> Side:
        """`DPOTrainer.compute_loss` on pairs of the responses (`PAIRS`), one batch."""
        examples = [
            {"prompt_ids": row["prompt_ids"], "chosen_ids": row["response_ids"][i], "rejected_ids": other}
            for row in rows
            for i, j in PAIRS[pairs](len(row["response_ids"]))
            for other in [row["response_ids"][j]]
        ]
        batch = self._to_device(self._dpo.data_collator(examples))
        return Side(pairs, self._dpo.model, lambda: self._dpo.compute_loss(self._dpo.model, dict(batch)))

    def sft(self, rows: Sequence[Row]) -> Side:
        """`SFTTrainer.compute_loss` on the best response of each row."""
        examples = []
        for row in rows:
            prompt, best = row["prompt_ids"], row["response_ids"][0]
            examples.append({"input_ids": prompt + best, "labels": [-100] * len(prompt) + best})
        batch = self._to_device(self._sft.data_collator(examples))
        return Side("sft_best", self._sft.model, lambda: self._sft.compute_loss(self._sft.model, dict(batch)))

    def _to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.to(self._device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def check_equal(ours: Side, reference: Side, dtype: torch.dtype) -> float:
    """The relative difference of two losses.

    Raises:
        RuntimeError: it is more than rounding, so their times would say nothing.
    """
    with torch.no_grad():
        a, b = float(ours.loss()), float(reference.loss())
    difference = abs(a - b) / max(abs(b), 1e-12)
    bound = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    if not difference < bound:
        raise RuntimeError(f"the losses differ: {a} ours, {b} of the reference step")
    return difference
