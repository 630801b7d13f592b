"""Adapters: wrapping a model with LoRA as TRL's trainers do, and merging one back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import BuildError, InputError


if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


def wrap_with_adapter(
    model: nn.Module, peft_config: Any, args: TrainingArguments, added_tokens: Sequence[int] = ()
) -> nn.Module:
    """`model` with a fresh adapter, or as it is when `peft_config` is None; then made ready for training.

    As TRL's trainers: input gradients for activation checkpointing (transformers#42489), adapter weights of a 4- or
    8-bit base in bf16 (QLoRA, arXiv 2305.14314 §3) but for DoRA magnitudes, whose updates bf16 would swallow; under
    DeepSpeed ZeRO-3 adapter weights in the base's dtype (trl#6089) and reentrant checkpointing (trl#2514).

    Args:
        args: the trainer's own copy; ZeRO-3 sets `use_reentrant` of its `activation_checkpointing_kwargs`.
        peft_config: not changed (peft writes the base model's name and the chosen modules into its copy).
        added_tokens: ids that a cloned chat template added to the vocabulary; their embeddings are trained.

    Raises:
        TypeError: `peft_config` is no `PeftConfig`.
        InputError: `model` has an adapter already, one that no ranking can be trained with, or nothing to train; or
            `activation_offloading` is asked for on a CPU.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    _check_offloading(args)
    if peft_config is not None:
        if not isinstance(peft_config, PeftConfig):
            raise TypeError(
                f"`peft_config` must be a peft.PeftConfig (peft.LoraConfig, say), got {type(peft_config).__name__}."
            )
        if isinstance(model, PeftModel):
            raise InputError(
                "`model` is a PeftModel and `peft_config` is given too. To train the adapter that is there, leave "
                "`peft_config` out; to start a new one, pass `model.merge_and_unload()`."
            )
        peft_config = _with_tokens(copy.deepcopy(peft_config), added_tokens)
        _refuse_virtual_tokens(peft_config, "peft_config")
        # ZeRO-3 gathers parameters into buffers of the first one's dtype: float32 adapters in a bf16 model would stop
        # at the first step with a TypeError (DeepSpeed#8072; peft cannot do this for a quantised base)
        upcast = _is_quantised(model) or not _is_zero3(args)
        model = get_peft_model(model, peft_config, autocast_adapter_dtype=upcast)
    if isinstance(model, PeftModel):
        _refuse_virtual_tokens(model.active_peft_config, "model")
        if args.activation_checkpointing:
            if _is_zero3(args):
                _checkpoint_reentrantly(args)
            model.enable_input_require_grads()
        if _is_quantised(model):
            import torch

            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_magnitude_vector" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "`model` has nothing to train: no parameter requires a gradient. Load an adapter with "
            "`PeftModel.from_pretrained(..., is_trainable=True)`, or start one with `peft_config`."
        )
    return model


def _with_tokens(peft_config: Any, added_tokens: Sequence[int]) -> Any:
    """An adapter that also trains the embeddings of new tokens, and the head that is to write them."""
    if added_tokens and hasattr(peft_config, "trainable_token_indices"):
        indices = dict(peft_config.trainable_token_indices or {})
        indices["embed_tokens"] = [*indices.get("embed_tokens", []), *added_tokens]
        peft_config.trainable_token_indices = indices
        if "lm_head" not in (peft_config.modules_to_save or []):
            peft_config.modules_to_save = [*(peft_config.modules_to_save or []), "lm_head"]
    return peft_config


def _refuse_virtual_tokens(peft_config: Any, argument: str) -> None:
    if peft_config.is_prompt_learning:
        raise InputError(
            f"`{argument}`: {type(peft_config).__name__} puts virtual tokens in front of every sequence, and the "
            "scored positions would shift. Use LoRA or another adapter that changes weights."
        )


def _check_offloading(args: TrainingArguments) -> None:
    if getattr(args, "activation_offloading", False) and args.device.type == "cpu":
        raise InputError(
            "`activation_offloading` = True moves activations from an accelerator's memory to the computer's, and "
            "there is no accelerator here. Leave it out; `activation_checkpointing` saves memory on a CPU too."
        )


def _is_zero3(args: TrainingArguments) -> bool:
    plugin = getattr(args, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def _checkpoint_reentrantly(args: TrainingArguments) -> None:
    """Adapters under ZeRO-3 need it, until DeepSpeed#8130 is released: parameters that are gathered again do not look
    as they did to non-reentrant checkpointing."""
    kwargs = cast("dict[str, Any]", args.activation_checkpointing_kwargs or {})  # a str is JSON on a command line
    if kwargs.get("use_reentrant") is False:
        from transformers.utils import logging

        logging.get_logger(__name__).warning(
            "`activation_checkpointing_kwargs` has use_reentrant=False, which an adapter under DeepSpeed ZeRO-3 "
            "cannot train with; True is used."
        )
    args.activation_checkpointing_kwargs = {**kwargs, "use_reentrant": True}


def _is_quantised(model: nn.Module) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


@dataclass(frozen=True)
class MergeReport:
    """What a merge did to the model: differences of summed log-probs of the same answers, nats, merged minus adapted.

    Args:
        path: the merged model's folder.
        answers: how many were compared.
        mean: of the absolute differences, a token.
        largest: of the absolute differences, a token.
    """

    path: Path
    answers: int
    mean: float
    largest: float


def merge_adapter(adapter: str, output: str | Path, *, dtype: str = "bfloat16", force: bool = False) -> MergeReport:
    """Merge an adapter into its base model and save a plain model that needs no peft.

    The base is loaded anew, unquantised, on the CPU: merging into 4-bit weights rounds the adapter away
    (huggingface/peft#2321). Eight answers are scored before and after, so that a wrong merge shows.

    Args:
        adapter: the adapter's folder or Hub id.
        output: a new folder; appears whole or not at all.
        dtype: of base and merged model.
        force: merge into a base that is itself stored quantised.

    Raises:
        InputError: there is no adapter, the output exists, or the base is quantised and `force` is not set.
        BuildError: the output cannot be written.
    """
    import shutil
    import tempfile

    from .data.demo import load_instructions
    from .loading import load_model, load_tokenizer
    from .scoring import score_rows

    output = Path(output)
    if output.exists():
        raise InputError(f"`output` {output} exists already; name a new folder.")
    model = load_model(adapter, dtype=dtype, device_map="cpu")
    if not hasattr(model, "peft_config"):
        raise InputError(
            f"`adapter` {adapter!r} holds no adapter (no adapter_config.json); there is nothing to merge."
        )
    if getattr(model.config, "quantization_config", None) is not None and not force:
        raise InputError(
            f"The base model of {adapter!r} is stored quantised, and merging rounds the adapter to its grid. Merge "
            "into the original base, or pass force=True (--allow-quantised)."
        )
    tokenizer = load_tokenizer(adapter)
    rows = [
        {"prompt": row["prompt"], "responses": [{"content": row["reference"]}]}
        for row in load_instructions("heldout")[:8]
    ]
    before = score_rows(model, tokenizer, rows)
    model = model.merge_and_unload(safe_merge=True)
    after = score_rows(model, tokenizer, rows)
    differences = [
        abs(b["logprob"] - a["logprob"]) / a["num_tokens"]
        for (a,), (b,) in zip(before, after, strict=True)
        if a["logprob"] is not None
    ]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            work.chmod(0o755)
            work.rename(output)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise BuildError(f"The merged model could not be written to {output}: {error}.") from error
    return MergeReport(output, len(differences), sum(differences) / len(differences), max(differences))
