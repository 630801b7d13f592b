"""Refusing what a caller of `TunaTrainer` passes wrongly, before anything is loaded: the argument, the value seen, the
way out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from .config import TunaConfig
from .data.prepare import TOKENISED_COLUMNS
from .errors import InputError


def check_arguments(
    compute_loss_func: Any, preprocess_logits_for_metrics: Any, formatting_func: Any, args: Any
) -> None:
    """Refuse what a ranking loss cannot honour, and what contradicts itself."""
    if compute_loss_func is not None:
        raise InputError(
            "`compute_loss_func` is not supported: it is given logits, which are never built here. Pass your loss as "
            "`TunaConfig(ranking_loss=...)`, a callable with the signature of `tuna_trl.losses`."
        )
    if preprocess_logits_for_metrics is not None:
        raise InputError(
            "`preprocess_logits_for_metrics` is not supported: there are no logits. `compute_metrics` gets the scores "
            "and ranks of each row, both (rows, N)."
        )
    if formatting_func is not None and not callable(formatting_func):
        kind = type(formatting_func).__name__
        raise TypeError(f"`formatting_func` must be a function of a row that returns its text, got {kind}.")
    if formatting_func is not None and getattr(args, "completion_only_loss", None):
        raise InputError(
            "`formatting_func` makes one text of a row, so `completion_only_loss=True` finds no completion in it. "
            "Leave one of the two out, or map the rows to `prompt` and `completion` yourself."
        )


def check_hooks(
    data_collator: Any = None,
    compute_metrics: Any = None,
    callbacks: Any = None,
    optimizers: Any = (None, None),
    optimizer_cls_and_kwargs: Any = None,
    eval_dataset: Any = None,
) -> None:
    """Refuse what transformers would stumble over later, under another name."""
    for name, value, what in (
        ("data_collator", data_collator, "a function of a list of tokenised rows"),
        ("compute_metrics", compute_metrics, "a function of an EvalPrediction that returns a dict"),
    ):
        if value is not None and not callable(value):
            raise TypeError(f"`{name}` must be {what}, got {type(value).__name__}. Leave it out for the default.")
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise TypeError(f"`callbacks` must be a list, got {type(callbacks).__name__}. Pass [callback].")
    for callback in callbacks or ():
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            raise TypeError(f"`callbacks` has {callback!r:.60}; each must be a transformers.TrainerCallback.")
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        raise TypeError(
            f"`optimizers` must be a pair (optimizer, scheduler), got {type(optimizers).__name__}. Pass "
            "(optimizer, None) to have the scheduler made."
        )
    given = optimizer_cls_and_kwargs
    if given is not None:
        if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], dict):
            raise TypeError(
                "`optimizer_cls_and_kwargs` must be a pair (class, dict of its arguments), got "
                f"{type(given).__name__}. Pass (torch.optim.SGD, {{'lr': 0.1}}), say."
            )
        if optimizers[0] is not None:
            raise InputError("`optimizers` and `optimizer_cls_and_kwargs` both name an optimizer. Keep one of them.")
    _check_eval_dataset(eval_dataset)


def _check_eval_dataset(eval_dataset: Any) -> None:
    from datasets import Dataset, IterableDataset

    sets = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    if eval_dataset is not None and not sets:
        raise InputError("`eval_dataset` is an empty dict; name at least one dataset in it, or leave it out.")
    hints: dict[type, str] = {
        list: " Pass Dataset.from_list(rows).",
        str: " Load it with datasets.load_dataset(name, split=...).",
    }
    for name, value in sets.items():
        if not isinstance(value, Dataset | IterableDataset) and (name, value) != (None, None):
            where = "`eval_dataset`" if name is None else f"`eval_dataset[{name!r}]`"
            kind, hint = type(value).__name__, hints.get(type(value), "")
            raise TypeError(f"{where} must be a datasets.Dataset or IterableDataset, got {kind}.{hint}")


COLLATED = {"input_ids": 3, "attention_mask": 3, "labels": 3, "score_mask": 3, "ranks": 2, "scores": 2, "rank_mask": 2}


def check_collator(data_collator: Any, dataset: Any) -> None:
    """Ask a user's collator for the first rows of a prepared set, to name a wrong one before the first step."""
    rows = list(itertools.islice(iter(dataset), 2))
    wanted = "Return what tuna_trl.RankedCollator returns, say by calling it and changing its batch, or leave it out."
    try:
        batch = data_collator(rows)
    except Exception as error:
        seen = f"{type(error).__name__}: {error}"
        raise InputError(f"`data_collator` fails on tokenised rows ({seen}). {wanted}") from error
    for name, dimensions in COLLATED.items():
        value = batch.get(name) if isinstance(batch, Mapping) else None
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != dimensions or shape[0] != len(rows):
            seen = "is missing" if shape is None else f"has shape {tuple(shape)}"
            expected = "(B, N, L)" if dimensions == 3 else "(B, N)"
            raise InputError(f"`data_collator`: {name!r} {seen} for {len(rows)} rows, not {expected}. {wanted}")


def check_datasets(args: TunaConfig, train_dataset: Any) -> None:
    """Refuse what is no dataset, and parallelism that would train something else than asked."""
    from datasets import Dataset, IterableDataset

    if train_dataset is None:
        raise InputError("`train_dataset` is required.")
    if not isinstance(train_dataset, (Dataset, IterableDataset)):
        hint = ""
        if isinstance(train_dataset, dict):
            hint = f" Pass one split: train_dataset[{next(iter(train_dataset), 'train')!r}]."
        elif isinstance(train_dataset, list):
            hint = " Pass Dataset.from_list(rows)."
        raise TypeError(
            f"`train_dataset` must be a datasets.Dataset or IterableDataset, got {type(train_dataset).__name__}.{hint}"
        )
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
        raise InputError(
            f"`train_dataset` is streamed, so its length is unknown, and `max_steps` is {args.max_steps}. Set "
            "`max_steps`; `num_train_epochs` alone cannot end the training."
        )
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process, and transformers would use nn.DataParallel, which cuts "
            "batches. Start with `accelerate launch`, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
        )


def check_tokenised(dataset: Any, name: str) -> None:
    """Refuse a dataset that skips preparation without being prepared."""
    have = set(next(iter(dataset), {}))
    if "prompt_ids" in have and (missing := sorted(set(TOKENISED_COLUMNS) - {"reference_ids", "length"} - have)):
        wanted = f"its column {missing[0]!r} is missing"
    elif not have & {"prompt_ids", "input_ids"}:
        wanted = "it has neither 'prompt_ids' (a prepared dataset) nor 'input_ids' (tokens with 'labels')"
    else:
        return
    raise InputError(
        f"`dataset_kwargs={{'skip_prepare_dataset': True}}` takes the {name} dataset as it is, but {wanted}. Leave it "
        "out to have the rows prepared."
    )
