"""`TunaConfig`: TRL's `SFTConfig` and what a ranking loss adds. Reading a config loads no model."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from .collator import MLE_TARGETS
from .data.fitting import EXCESS_LENGTH_STRATEGIES
from .errors import InputError, did_you_mean
from .losses.tuna import PAIR_REDUCTIONS


BATCH_LAYOUTS = ("auto", "shared_prompt", "rows")


@dataclass
class TunaConfig(SFTConfig):
    r"""
    Configuration of [`TunaTrainer`]: every field of [`trl.SFTConfig`], and the ones below. Where `bf16` is not set it
    becomes True on hardware that has it and False elsewhere (`SFTConfig()` raises on a CPU);
    `activation_checkpointing` is on as in TRL, under the name that transformers 5.23 does not warn about.

    > Parameters that control the loss: total = ranking_weight * mean ranking loss an instruction
    > + mle_weight * mean NLL a target token

    Parameters:
        ranking_loss (`str` or callable, *optional*, defaults to `"tuna"`):
            Name of a registered ranking loss, or a callable with the signature of `tuna_trl.losses`.
        loss_kwargs (`dict` or `str`, *optional*):
            More keyword arguments of the ranking loss.
        margin (`float`, *optional*):
            Margin per rank, in nats a token. `None` is the loss's own: 0.1 for `tuna` (arXiv 2310.13385), 0.001 for
            `brio`. `0` disables it.
        pair_reduction (`str`, *optional*, defaults to `"gap_mean"`):
            `"gap_mean"` (the released code) or `"sum"` (the paper's objective); see `tuna_trl.losses.tuna`.
        length_exponent (`float`, *optional*, defaults to `1.0`):
            s = logp / tokens ** length_exponent. `0` ranks by the sum of log-probabilities.
        ranking_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the ranking loss. `0` leaves the likelihood term alone: what a comparison needs.
        mle_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the likelihood term. `0` disables it.
        mle_target (`str`, *optional*, defaults to `"all"`):
            Which responses the likelihood term trains: `"all"` (the released code), `"best"` (all at rank 1),
            `"reference"` (the row's reference answer; the paper) or `"none"`.

        precompute_ref_log_probs (`bool`, *optional*, defaults to `False`):
            For losses that compare with a reference model (`dpo_pl`, `lipo`): score the data once before training. By
            default the reference is the model with its adapter off (LoRA), else a frozen copy.

    > Parameters that control the batch

    Parameters:
        batch_layout (`str`, *optional*, defaults to `"auto"`):
            `"shared_prompt"`: the batch in one row without padding, every prompt once, its responses behind it; a
            response sees the prompt and itself. Exact, and less work the longer the prompt. `"rows"`: one padded row a
            response; works with every model. `"auto"` shares where the model can and else says why not.
            `per_device_train_batch_size` counts instructions.
        max_responses (`int`, *optional*):
            Train on the best so many responses of each row. `None` = all.
        excess_length_strategy (`str`, *optional*):
            What to do with a response that is longer than `max_length` tokens with its prompt: `"drop"`, `"truncate"`
            or `"raise"`. `None` drops in ranked and preference data (a cut response has another score) and truncates
            in SFT data, as TRL does.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "loss_kwargs", "model_init_kwargs", "dataset_kwargs"]

    # typed `str` for the command line's parser; in Python a callable is accepted too
    ranking_loss: str = field(default="tuna", metadata={"help": "Ranking loss: a registered name (or a callable)."})
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "More keyword arguments of the ranking loss, as JSON."}
    )
    margin: float | None = field(
        default=None,
        metadata={"help": "Margin per rank, nats a token. None = the loss's own (tuna: 0.1). 0 disables it."},
    )
    pair_reduction: str = field(
        default="gap_mean",
        metadata={
            "help": "gap_mean = mean over the pairs of each rank gap (released code); sum = the paper's objective.",
            "choices": list(PAIR_REDUCTIONS),
        },
    )
    length_exponent: float = field(
        default=1.0, metadata={"help": "s = logp / tokens ** length_exponent. 0 ranks by the sum of log-probs."}
    )
    ranking_weight: float = field(
        default=1.0, metadata={"help": "Weight of the ranking loss. 0 leaves the likelihood term alone."}
    )
    mle_weight: float = field(default=1.0, metadata={"help": "Weight of the likelihood term. 0 disables it."})
    mle_target: str = field(
        default="all",
        metadata={"help": "Responses that the likelihood term trains.", "choices": list(MLE_TARGETS)},
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Score the data with the reference model once, before training (losses that need one)."},
    )
    batch_layout: str = field(
        default="auto",
        metadata={
            "help": "shared_prompt = no padding, every prompt once; rows = one padded row a response; auto = "
            "shared_prompt where the model can.",
            "choices": list(BATCH_LAYOUTS),
        },
    )
    max_responses: int | None = field(
        default=None, metadata={"help": "Train on the best so many responses of each row. None = all."}
    )
    excess_length_strategy: str | None = field(
        default=None,
        metadata={
            "help": "What to do with responses longer than max_length: drop, truncate or raise. "
            "None = drop for ranked data, truncate for SFT data.",
            "choices": list(EXCESS_LENGTH_STRATEGIES),
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _has_bf16()
        # TRL's default arrives under a deprecated name and warns at every construction; the new name says the same.
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        self.gradient_checkpointing_kwargs = None
        self.gradient_checkpointing = None  # type: ignore[assignment]  # "not said", which its declaration lacks
        self._check_selective_checkpointing()
        # transformers knows a loss by the end of its name, and ours are called loss/rank and loss/mle
        if self.greater_is_better is None and "loss/" in (self.metric_for_best_model or ""):
            self.greater_is_better = False
        super().__post_init__()
        self._check()

    def __getstate__(self) -> dict[str, Any]:
        """What transformers pickles beside the weights and pushes: no token, a callable loss by its name."""
        state = {**self.__dict__, "hub_token": None}
        if callable(state["ranking_loss"]):
            state["ranking_loss"] = self.to_dict()["ranking_loss"]
        return state

    def __copy__(self) -> TunaConfig:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> TunaConfig:
        new = object.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, for logs and JSON: a loss that is a callable becomes its name."""
        values = super().to_dict()
        if callable(values["ranking_loss"]):
            values["ranking_loss"] = getattr(self.ranking_loss, "__name__", type(self.ranking_loss).__name__)
        return values

    def _check_selective_checkpointing(self) -> None:
        """`selective` is a key of TRL's alone, which `torch.utils.checkpoint` does not know."""
        kwargs = self.activation_checkpointing_kwargs
        if isinstance(kwargs, dict) and "selective" in kwargs:
            if kwargs["selective"]:
                raise InputError(
                    "`activation_checkpointing_kwargs` has 'selective', which TunaTrainer does not support; leave it "
                    "out for full checkpointing, or set `activation_checkpointing=False`."
                )
            self.activation_checkpointing_kwargs = {k: v for k, v in kwargs.items() if k != "selective"}

    def _check(self) -> None:
        if not isinstance(self.ranking_loss, str) and not callable(self.ranking_loss):
            raise InputError(f"`ranking_loss` is {self.ranking_loss!r}; give the name of a loss, or a callable.")
        if not isinstance(self.loss_kwargs, dict | None):
            raise InputError(f"`loss_kwargs` is {self.loss_kwargs!r}; give a dict of keyword arguments of the loss.")
        choices = {
            "pair_reduction": PAIR_REDUCTIONS,
            "mle_target": MLE_TARGETS,
            "batch_layout": BATCH_LAYOUTS,
            "excess_length_strategy": (None, *EXCESS_LENGTH_STRATEGIES),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                known = [a for a in allowed if a]
                raise InputError(
                    f"`{name}` is {value!r}, expected one of {', '.join(known)}.{did_you_mean(str(value), known)}"
                )
        self._check_numbers()
        if self.loss_type not in ("nll", "dft"):
            raise InputError(
                f"`loss_type` is {self.loss_type!r}; it chooses the likelihood term, 'nll' or 'dft'. "
                "The ranking loss is chosen by `ranking_loss`."
            )
        metric = (self.metric_for_best_model or "").split("_", 1)[-1]
        if metric.endswith(("mean_token_accuracy", "entropy")):
            raise InputError(
                f"`metric_for_best_model` is {self.metric_for_best_model!r}, which needs logits, and there are none. "
                "Use 'eval_loss', 'eval_rank/accuracy', or what your `compute_metrics` returns."
            )
        for name, reason in REFUSED_FIELDS.items():
            default = next(f for f in dataclasses.fields(self) if f.name == name).default
            value = getattr(self, name)
            if value and value != default:  # a field that is switched off is no request
                raise InputError(f"`{name}` = {value!r} is not supported by TunaTrainer: {reason}")

    def _check_numbers(self) -> None:
        for name in ("margin", "ranking_weight", "mle_weight", "length_exponent"):
            value = getattr(self, name)
            if name == "margin" and value is None:
                continue
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise InputError(f"`{name}` is {value!r}; it must be a finite number >= 0 (0 disables it).")
        for name, least, way_out in (
            ("max_responses", 1, "use at least 1, or None for all."),
            ("max_length", 2, "a prompt and a response need at least 2 tokens; None is no limit."),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < least):
                raise InputError(f"`{name}` is {value!r}; {way_out}")


# SFTConfig fields that a ranked batch cannot honour, with the reason a user is told.
REFUSED_FIELDS = {
    "packing": "a row already holds one instruction with all its responses; it is never split or joined with another.",
    "eval_packing": "as `packing`.",
    "padding_free": "the batch layout is chosen by `batch_layout`.",
    "truncation_mode": "a response is scored from its start; 'keep_start' is the only mode (and TRL's from v2.0).",
    "use_liger_kernel": "it replaces the forward that scores responses; use model_init_kwargs={'use_kernels': True}.",
    "router_aux_loss_coef": "the load-balancing loss of a mixture of experts is not computed.",
    "label_smoothing_factor": "a smoothed likelihood is no log-probability, and the ranking loss compares those.",
}


def upgrade_config(args: TrainingArguments | None, output_dir: str) -> TunaConfig:
    """A `TunaConfig` from what a user of SFTTrainer passes: None, `TrainingArguments`, `SFTConfig` or `TunaConfig`.

    Fields are copied one by one: `to_dict()` replaces every `*_token` by a placeholder, so that `eos_token` would come
    out as "<EOS_TOKEN>" (transformers 5.23, training_args.py).

    Args:
        output_dir: used when `args` is None.
    """
    if args is None:
        return TunaConfig(output_dir=output_dir)
    if isinstance(args, TunaConfig):
        return args
    if not isinstance(args, TrainingArguments):
        raise TypeError(f"`args` must be a TunaConfig, SFTConfig or TrainingArguments, got {type(args).__name__}.")
    known = {f.name for f in dataclasses.fields(TunaConfig) if f.init}
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init and f.name in known}
    # the two old names mirror the new ones after construction; passing both would only warn
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        values.pop(old, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # said once already, when `args` was made
        return TunaConfig(**values)


def _has_bf16() -> bool:
    from transformers.utils import is_torch_bf16_gpu_available

    return is_torch_bf16_gpu_available()
