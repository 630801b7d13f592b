"""What SFTTrainer's arguments mean here: each is honoured, or refused by name with the way out.

Nothing that is passed is changed, but for the model: a config is copied before a field is set, a tokenizer before a
token or a template is.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from .config import TunaConfig, upgrade_config
from .errors import InputError, did_you_mean
from .loading import load_model, load_tokenizer


logger = logging.get_logger(__name__)


def copied_config(args: TrainingArguments | None, model: Any, train_dataset: Any) -> TunaConfig:
    """The config to train with: a copy, so that what the trainer sets does not show in the user's object."""
    from datasets import IterableDataset

    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "") or "model"
    config = copy.copy(upgrade_config(args, f"{Path(name).name}-Tuna"))
    _check_dicts(config)
    if config.device.type == "cpu":
        config.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns at every loader
    if isinstance(train_dataset, IterableDataset):
        # the dispatcher cuts batches by rows and pads them across processes; each process reads its own shard instead
        accelerator_config: Any = copy.copy(config.accelerator_config)
        accelerator_config.dispatch_batches = False
        config.accelerator_config = accelerator_config
    return config


def _check_dicts(args: TunaConfig) -> None:
    for name in ("model_init_kwargs", "dataset_kwargs"):
        value = getattr(args, name)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"`{name}` is {value!r:.60}; give a dict, or JSON of one on the command line.")
    for key in set(args.dataset_kwargs or ()) - {"skip_prepare_dataset"}:
        logger.warning(
            f"`dataset_kwargs` has {key!r}, which is ignored as by TRL; the only key is 'skip_prepare_dataset'."
            f"{did_you_mean(key, ['skip_prepare_dataset'])}"
        )


def as_dict(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A field of a config that is a dict once the config is made: the declared `str` is JSON on a command line."""
    return cast("dict[str, Any]", value or {})


def load_if_named(model: Any, args: TunaConfig, quantization_config: Any) -> Any:
    """The model, loaded if it is given by name; seeded first, as adapters are drawn at random."""
    from torch import nn
    from transformers import set_seed

    set_seed(args.seed)
    kwargs = dict(as_dict(args.model_init_kwargs))
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
        _check_quantisation(kwargs.get("quantization_config"))
        try:
            model = load_model(model, trainable=True, **kwargs)
        except TypeError as error:  # transformers hands what it does not know to the model
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in (args.model_init_kwargs or {}):
                raise
            raise InputError(
                f"`model_init_kwargs` has {unknown[1]!r}, which no loader and no model takes. Leave it out."
            ) from error
        return _keep_4_bit_gradients(_causal(model))
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"`model` must be a transformers or PEFT model, or the name of one (a string), got {type(model).__name__}."
        )
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value is not None:
            logger.warning(f"`{name}` is ignored: the model is loaded already. Pass its name to have it loaded so.")
    return _keep_4_bit_gradients(_causal(model))


def _check_quantisation(given: Any) -> None:
    if not isinstance(given, dict | None) and not hasattr(given, "quant_method"):
        raise TypeError(
            "`quantization_config` must be a quantisation config of transformers (BitsAndBytesConfig(load_in_4bit="
            f"True), say), got {type(given).__name__}."
        )


def _causal(model: Any) -> Any:
    """The model, if it predicts each token from those before it."""
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    encoder = getattr(base.config, "is_encoder_decoder", False)
    if encoder or (hasattr(base, "can_generate") and not base.can_generate()):
        what = "has an encoder" if encoder else "does not generate text"
        raise InputError(
            f"`model`: {type(base).__name__} {what}; a response is scored by a causal language model. Load it with "
            "AutoModelForCausalLM."
        )
    return model


def _keep_4_bit_gradients(model: Any) -> Any:
    """The model, whose 4-bit weights may be run in eval mode (an evaluation on the way) and trained on behind it.

    On CPUs with AVX512-BF16 bitsandbytes repacks a 4-bit weight at its first eval-mode forward, for a kernel that has
    no gradient, and does not pack it back (0.50.2, nn/modules.py:613): training goes on, with gradients that are off
    by as much as they are large. To be removed once bitsandbytes unpacks in train mode.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise InputError(
                f"`model` was run in eval mode on the CPU before training: bitsandbytes has repacked the 4-bit weight "
                f"of {name!r}, and its gradients would be wrong. Load the model anew, or pass its name."
            )
        module.support_avx512bf16_for_cpu = False
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
        revision = as_dict(args.model_init_kwargs).get("revision")
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
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    for name in ("pad_token", "eos_token"):
        index = getattr(tokenizer, f"{name}_id")
        if rows is not None and index is not None and index >= rows:
            raise InputError(
                f"`processing_class`: its {name} {getattr(tokenizer, name)!r} has id {index}, but `model` has "
                f"embeddings for {rows} tokens. Take the model's own tokenizer, or call "
                "model.resize_token_embeddings(len(tokenizer)) first."
            )
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
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"`chat_template_path` {path!r} could not be read: {error}.") from error
        _check_template(tokenizer.chat_template, path)
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


def _check_template(template: str, path: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError

    known = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)  # transformers' own tag
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(known)
    except TemplateSyntaxError as error:
        raise InputError(
            f"`chat_template_path` {path!r} is no Jinja template: line {error.lineno}: {error.message}. Mend the file."
        ) from error


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
