"""What SFTTrainer's arguments mean here: each is honoured, or refused by name with the way out.

Nothing that is passed is changed, but for the model: a config is copied before a field is set, a tokenizer before a
token or a template is.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from .config import TunaConfig, upgrade_config
from .data.prepare import TOKENISED_COLUMNS
from .errors import InputError
from .loading import load_model, load_tokenizer


logger = logging.get_logger(__name__)


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
    if formatting_func is not None and getattr(args, "completion_only_loss", None):
        raise InputError(
            "`formatting_func` makes one text of a row, so `completion_only_loss=True` finds no completion in it. "
            "Leave one of the two out, or map the rows to `prompt` and `completion` yourself."
        )


def copied_config(args: TrainingArguments | None, model: Any, train_dataset: Any) -> TunaConfig:
    """The config to train with: a copy, so that what the trainer sets does not show in the user's object."""
    from datasets import IterableDataset

    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "") or "model"
    config = copy.copy(upgrade_config(args, f"{Path(name).name}-Tuna"))
    if config.device.type == "cpu":
        config.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns at every loader
    if isinstance(train_dataset, IterableDataset):
        # the dispatcher cuts batches by rows and pads them across processes; each process reads its own shard instead
        config.accelerator_config = copy.copy(config.accelerator_config)
        config.accelerator_config.dispatch_batches = False
    return config


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


def load_if_named(model: Any, args: TunaConfig, quantization_config: Any) -> Any:
    """The model, loaded if it is given by name; seeded first, as adapters are drawn at random."""
    from torch import nn
    from transformers import set_seed

    set_seed(args.seed)
    kwargs = dict(args.model_init_kwargs or {})
    if isinstance(model, str):
        if quantization_config is not None:
            if "quantization_config" in kwargs:
                raise InputError(
                    "`quantization_config` is given twice, as an argument of the trainer and in "
                    "`args.model_init_kwargs`. Keep the argument."
                )
            kwargs["quantization_config"] = quantization_config
        if args.distributed_state is not None and args.distributed_state.distributed_type in (
            "MULTI_GPU",
            "DEEPSPEED",
        ):
            kwargs["device_map"] = None
        kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        return load_model(model, trainable=True, **kwargs)
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"`model` must be a transformers or PEFT model, or the name of one (a string), got {type(model).__name__}."
        )
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value is not None:
            logger.warning(f"`{name}` is ignored: the model is loaded already. Pass its name to have it loaded so.")
    return model


def limit_length(model: Any, args: TunaConfig) -> None:
    """Lower `args.max_length` (of our copy) to the positions that the model has; longer rows then are too long."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and (args.max_length is None or args.max_length > positions):
        given = "unlimited" if args.max_length is None else args.max_length
        logger.warning(f"`max_length` is {given}, but the model has {positions} positions; {positions} is used.")
        args.max_length = positions


def settle_tokenizer(
    model: Any, processing_class: Any, args: TunaConfig
) -> tuple[Any, PreTrainedTokenizerBase, list[int]]:
    """The model and a tokenizer of its own that agree on template, end and pad token, as TRL aligns them; and the ids
    of the tokens that a cloned template has added."""
    if processing_class is None:
        name = getattr(model.config, "_name_or_path", "")
        if not name:
            raise InputError("`processing_class` is required: the model does not say where it came from.")
        revision = (args.model_init_kwargs or {}).get("revision")
        processing_class = load_tokenizer(name, trust_remote_code=args.trust_remote_code, revision=revision)
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(
            "`processing_class` must be a tokenizer (PreTrainedTokenizerBase), got "
            f"{type(processing_class).__name__}. Of a vision-language processor pass `processor.tokenizer` and "
            "text-only rows."
        )
    tokenizer = copy.deepcopy(processing_class)
    added_tokens: list[int] = []
    if args.chat_template_path is not None:
        model, added_tokens = _set_chat_template(model, tokenizer, args.chat_template_path)
    if args.eos_token is not None:
        tokenizer.eos_token = _in_vocabulary(tokenizer, args.eos_token, "eos_token")
        _mirror_eos(model, tokenizer.eos_token_id)
    pad_token = args.pad_token or tokenizer.pad_token or tokenizer.eos_token
    if pad_token is None:
        raise InputError(
            "`processing_class` has neither a pad token nor an end token; set `tokenizer.pad_token` to a token of its "
            "vocabulary."
        )
    tokenizer.pad_token = _in_vocabulary(tokenizer, pad_token, "pad_token")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, added_tokens


def training_template(tokenizer: PreTrainedTokenizerBase, args: TunaConfig) -> str | None:
    """For `assistant_only_loss`: TRL's twin of the tokenizer's template, which marks the assistant's words, where the
    template itself does not; else None."""
    if not args.assistant_only_loss or not tokenizer.chat_template:
        return None
    if re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()):
        return None
    from trl import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:  # TRL has no twin of it; the first row then says that nothing is marked
        return None


def _set_chat_template(model: Any, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[Any, list[int]]:
    """A .jinja file, or a tokenizer whose template (and added tokens, whose ids are returned) are taken over."""
    if path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"`chat_template_path` {path!r} could not be read: {error}.") from error
        return model, []
    from trl import clone_chat_template

    try:
        model, _, added_tokens = clone_chat_template(model, tokenizer, path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"`chat_template_path` {path!r} is neither a .jinja file nor a tokenizer that loads: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return model, added_tokens


def _in_vocabulary(tokenizer: PreTrainedTokenizerBase, token: str, name: str) -> str:
    if token not in tokenizer.get_vocab():
        raise InputError(
            f"`{name}` is {token!r}, which is not in the vocabulary of {type(tokenizer).__name__}; name a token that "
            "is, or add it to the tokenizer first."
        )
    return token


def _mirror_eos(model: Any, eos_token_id: int) -> None:
    """Model and generation config follow the tokenizer; generation keeps the end tokens that it had."""
    model.config.get_text_config().eos_token_id = eos_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        had = generation.eos_token_id
        had = [] if had is None else [had] if isinstance(had, int) else list(had)
        if eos_token_id not in had:
            generation.eos_token_id = [eos_token_id, *had]
