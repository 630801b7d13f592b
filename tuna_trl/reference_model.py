"""The reference of DPO-like losses: what the model gave each response before this training began.

Three places it can come from: the batch (precomputed, [`add_reference_logps`]), the model itself with its adapter
switched off (LoRA; costs a forward, no memory), or a frozen copy (full fine-tuning; costs the memory of the model).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from .errors import InputError
from .losses import needs_reference
from .scoring import evaluating, install, response_logps


if TYPE_CHECKING:
    from .trainer import TunaTrainer

COLUMN = "ref_logps"


class ReferenceModel:
    """Log-probs under the model as it is at construction.

    Args:
        model: the model about to be trained. A PEFT model is used with its adapter off; of another one a frozen copy
            is made, unless `copied` is False: then every batch has to bring its own.
        layout: the batch layout that `model` was found able to ([`tuna_trl.layouts`]).
    """

    def __init__(self, model: nn.Module, *, copied: bool = True, layout: str = "rows") -> None:
        self._layout = layout
        self._adapter_off = hasattr(model, "disable_adapter")
        self._copy: nn.Module | None = None
        if not self._adapter_off and copied:
            self._copy = copy.deepcopy(model).requires_grad_(False)

    def logps(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """`(B, N)` summed log-probs in nats, without gradient and without dropout.

        Args:
            model: the model in training, unwrapped.
            batch: as the collator makes it; its `ref_logps` are taken where it has them.
        """
        if COLUMN in batch:
            return batch[COLUMN]
        if not self._adapter_off and self._copy is None:
            raise InputError(
                "The data has no column `ref_logps`, and with `precompute_ref_log_probs=True` no reference model is "
                "kept: only the train and eval sets given to the constructor were scored. Give this one there too."
            )
        judge = model if self._copy is None else self._copy
        if self._copy is not None and next(judge.parameters()).device != batch["input_ids"].device:
            judge.to(batch["input_ids"].device)
        switch = model.disable_adapter() if self._adapter_off else nullcontext()
        with torch.no_grad(), evaluating(judge), switch:
            return response_logps(judge, batch, layout=self._layout).logps


def reference_of(trainer: TunaTrainer, layout: str) -> ReferenceModel | None:
    """The reference model of a trainer whose loss needs one, made before the first step, from its model as passed.

    With `precompute_ref_log_probs`, the trainer's datasets get a column `ref_logps` instead.

    Raises:
        InputError: the data is streamed and cannot be scored beforehand, or the model is sharded and not copied.
    """
    args, model = trainer.args, trainer.model
    if not needs_reference(args.ranking_loss):
        return None
    if args.precompute_ref_log_probs:
        if _weights_are_elsewhere(trainer):
            raise InputError(
                "`precompute_ref_log_probs` needs the whole model in every process, and DeepSpeed ZeRO-3 or FSDP's "
                "`cpu_ram_efficient_loading` leaves parts of it to others. Use LoRA (`peft_config`) without it, score "
                "the data in one process beforehand, or use ZeRO-2 or DDP."
            )

        def scored(dataset: Any) -> Any:
            if isinstance(dataset, dict):
                return {name: scored(part) for name, part in dataset.items()}
            if dataset is None:
                return None
            if not isinstance(dataset, Dataset):
                raise InputError(
                    "`precompute_ref_log_probs` needs a Dataset; a streamed one cannot be scored beforehand."
                )
            size = args.per_device_eval_batch_size
            return add_reference_logps(dataset, model, trainer.data_collator, size=size, layout=layout)

        trainer.train_dataset, trainer.eval_dataset = scored(trainer.train_dataset), scored(trainer.eval_dataset)
    elif not hasattr(model, "disable_adapter") and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise InputError(
            f"`ranking_loss={args.ranking_loss!r}` needs a reference model, and a frozen copy of a sharded model is "
            "not made. Use LoRA (`peft_config`), or `precompute_ref_log_probs=True`."
        )
    return ReferenceModel(model, copied=not args.precompute_ref_log_probs, layout=layout)


def _weights_are_elsewhere(trainer: TunaTrainer) -> bool:
    if trainer.is_fsdp_enabled:
        return bool(trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading)
    return any(hasattr(parameter, "ds_id") for parameter in trainer.model.parameters())


def add_reference_logps(
    dataset: Dataset,
    model: nn.Module,
    collate: Callable[[list[Any]], dict[str, Any]],
    *,
    size: int,
    layout: str = "rows",
) -> Dataset:
    """The tokenised dataset with a column `ref_logps`: per row one sum in nats a response, under `model` as it is.

    Args:
        collate: the collator that training uses.
        size: rows a forward.
        layout: as in [`ReferenceModel`].
    """
    install(model)
    reference = ReferenceModel(model, copied=False, layout=layout)
    device = next(model.parameters()).device

    def score(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        names = list(rows)
        batch = collate([dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True)])
        batch = {name: value.to(device) for name, value in batch.items()}
        if hasattr(model, "disable_adapter"):
            values = reference.logps(model, batch)
        else:
            with torch.no_grad(), evaluating(model):
                values = response_logps(model, batch, layout=layout).logps
        counts = [len(ids) for ids in rows["response_ids"]]
        return {COLUMN: [row[:n].tolist() for row, n in zip(values, counts, strict=True)]}

    return dataset.map(
        score, batched=True, batch_size=size, load_from_cache_file=False, desc="Reference log-probabilities"
    )
