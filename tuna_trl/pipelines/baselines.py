"""What an arm can be trained with: TunaTrainer, or TRL's own trainers as baselines, all from the same ranked rows.

One place for what each kind is called, which options it takes, what rows it reads, which trainer it is and which of
its tokens count. Trainers are made here and run in [`.ablation_run`].
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import InputError, did_you_mean


if TYPE_CHECKING:
    from datasets import Dataset

    from .token_meter import TokenMeter


@dataclass(frozen=True)
class Kind:
    """A kind of training. `config` and `trainer` are names in `trl` (of `tuna_trl` where `ours`); `rows` is what it
    reads ([`training_rows`]), `counts` how its tokens are counted ([`.token_meter`]), `preset` what it fixes."""

    config: str
    trainer: str
    rows: str
    counts: str
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.trainer == "TunaTrainer"


KINDS: dict[str, Kind] = {
    "start": Kind("", "", "", ""),
    "tuna": Kind("TunaConfig", "TunaTrainer", "ranked", "ranked"),
    # arXiv 2304.05302, eq. 1-3: ranking by length-normalised likelihood, cross-entropy on the best response
    "rrhf": Kind("TunaConfig", "TunaTrainer", "ranked", "ranked", {"ranking_loss": "rrhf", "mle_target": "best"}),
    "sft_best": Kind("SFTConfig", "SFTTrainer", "best", "labels"),
    "sft_all": Kind("SFTConfig", "SFTTrainer", "all", "labels"),
    "sft_reference": Kind("SFTConfig", "SFTTrainer", "reference", "labels"),
    "dpo": Kind("DPOConfig", "DPOTrainer", "pairs", "completions"),
    "grpo": Kind("GRPOConfig", "GRPOTrainer", "prompts", "completions"),
    "rloo": Kind("RLOOConfig", "RLOOTrainer", "prompts", "completions"),
    "reward_judge": Kind("RewardConfig", "RewardTrainer", "pairs", "sequences"),
}
# of every arm, where neither the file nor the arm says otherwise
_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_steps": 50,
    # two: while the newest is being written there is a whole one
    "save_total_limit": 2,
}
# fields that the sweep itself sets, with what to write instead
_OWN = {
    "output_dir": "it is the arm's folder under `output`",
    "seed": "write `seeds: [...]` at the top",
    "model_name_or_path": "write `model` at the top",
    "model_init_kwargs": "use the options of trl.ModelConfig (dtype, attn_implementation, load_in_4bit, ...)",
    "resume_from_checkpoint": "a sweep goes on by itself when it is run again",
    "push_to_hub": "push the folder of a finished arm",
    "eval_strategy": "every arm is measured on `heldout` once it is trained",
    "do_eval": "every arm is measured on `heldout` once it is trained",
    "load_best_model_at_end": "every arm is measured as training left it",
    "save_only_model": "a killed sweep goes on from whole checkpoints",
    "env": "set environment variables before the command",
    "packing": "tokens and rows are compared row by row",
}


def reaches(kind: str, option: str) -> bool:
    """Whether an option of `base` is meant for this kind: those that TunaConfig adds to TRL's are for ours alone."""
    return KINDS[kind].ours or option not in _tuna_only()


def check_option(kind: str, option: str, where: str, *, way_out: str = "") -> None:
    """Refuse an option that this kind does not take.

    Raises:
        InputError: it is no field of the trainer's config nor of `trl.ModelConfig`, or the sweep itself sets it.
    """
    if option in _OWN:
        raise InputError(f"{where}: `{option}` is not for an arm: {_OWN[option]}.")
    if option in KINDS[kind].preset:
        raise InputError(f"{where}: `{option}` is what makes a training {kind!r}; use `trainer: tuna` to change it.")
    known = option_names(kind)
    if option not in known:
        end = f" {way_out}" if way_out else ""
        raise InputError(f"{where}: {KINDS[kind].config} has no `{option}`.{did_you_mean(option, known)}{end}")


@functools.cache
def option_names(kind: str) -> frozenset[str]:
    """The fields of the trainer's config and of `trl.ModelConfig`."""
    from trl import ModelConfig

    return frozenset(f.name for owner in (_config_class(kind), ModelConfig) for f in dataclasses.fields(owner))


@functools.cache
def _tuna_only() -> frozenset[str]:
    from trl import SFTConfig

    from ..config import TunaConfig

    theirs = {f.name for f in dataclasses.fields(SFTConfig)}
    return frozenset(f.name for f in dataclasses.fields(TunaConfig)) - theirs


def _config_class(kind: str) -> type:
    import trl

    from ..config import TunaConfig

    return TunaConfig if KINDS[kind].ours else getattr(trl, KINDS[kind].config)


def parse(kind: str, options: Mapping[str, Any], output_dir: Path, seed: int) -> tuple[Any, Any]:
    """(training arguments, `trl.ModelConfig`) of an arm, by the same parser as `tuna-trl train --config`.

    Raises:
        InputError: a value that the configs refuse.
    """
    import yaml
    from transformers.utils import is_torch_bf16_gpu_available
    from trl import ModelConfig, TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:  # argparse prints 120 lines of usage first
            raise InputError(message)

    values = {**_DEFAULTS, **KINDS[kind].preset, **options, "output_dir": str(output_dir), "seed": seed}
    if values.get("bf16") is None and not values.get("fp16"):
        values["bf16"] = is_torch_bf16_gpu_available()  # TRL's own default raises on a CPU
    if "gradient_checkpointing" in values:  # TRL's default comes under this name, and would win over the new one
        values.setdefault("activation_checkpointing", values["gradient_checkpointing"])
    elif "activation_checkpointing" in values:
        values["gradient_checkpointing"] = values["activation_checkpointing"]
    with tempfile.TemporaryDirectory(prefix="tuna_trl-") as folder:
        file = Path(folder, "options.yaml")
        file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TRL's own default has the old name
                classes: Any = (_config_class(kind), ModelConfig)
                parsed = Parser(classes).parse_args_and_config(["--config", str(file)])
        except InputError as error:
            raise InputError(f"trainer {kind}: {error}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"trainer {kind}: {error}") from error
    return parsed[0], parsed[1]


def generation_defaults(kind: str, options: Mapping[str, Any], responses: int, max_new_tokens: int) -> dict[str, Any]:
    """The options of an on-policy trainer where the arm names none: as many samples a prompt as the ranked rows have
    responses, as long as the answers that are judged, and as many prompts a step as the other trainers take."""
    if KINDS[kind].rows != "prompts":
        return {}
    samples = int(options.get("num_generations") or max(responses, 2))
    found = {"num_generations": samples, "max_completion_length": max_new_tokens}
    if not {"steps_per_generation", "generation_batch_size"} & set(options):
        found["gradient_accumulation_steps"] = int(options.get("gradient_accumulation_steps") or 1) * samples
    return {**found, **{k: v for k, v in options.items() if k in ("num_generations", "max_completion_length")}}


def training_rows(kind: str, rows: Dataset, pairs: str | None = None) -> Dataset:
    """Ranked rows as this kind reads them: as they are, or through the exporters that users have.

    Raises:
        InputError: nothing is left.
    """
    from datasets import Dataset

    from ..data.convert import to_preference, to_sft
    from ..data.fitting import TRAINED_STATUSES

    what = KINDS[kind].rows
    if what == "ranked":
        return rows
    if what == "pairs":
        found = to_preference(rows, pairs=pairs or "best-worst")
        found = found.select_columns(["prompt", "chosen", "rejected"])
    elif what == "best":
        found = to_sft(rows).select_columns(["prompt", "completion"])
    else:
        trained = [row for row in rows if row["status"] in TRAINED_STATUSES]
        found = Dataset.from_list([example for row in trained for example in _examples(what, row)])
    if len(found) == 0:
        raise InputError(f"trainer {kind}: none of {len(rows)} rows has what it trains on ({what}).")
    return found


def _examples(what: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    if what == "prompts":
        return [{"prompt": row["prompt"], "reference": row["reference"]}]
    if what == "reference":
        texts = [] if row["reference"] is None else [row["reference"]]
    else:  # "all": every ranked response by itself
        texts = [response["content"] for response in row["responses"] if response["rank"] is not None]
    return [{"prompt": row["prompt"], "completion": [{"role": "assistant", "content": text}]} for text in texts]


def make_trainer(
    kind: str,
    model: Any,
    tokenizer: Any,
    args: Any,
    rows: Dataset,
    *,
    meter: TokenMeter,
    peft_config: Any = None,
    reward: Callable[..., list[float | None]] | None = None,
    callbacks: list[Any] | None = None,
) -> Any:
    """The trainer of a kind, which counts the tokens it trains on.

    Args:
        rows: what [`training_rows`] gave.
        peft_config: of a new adapter; None trains the model (or the adapter on it) as it is.
        reward: what on-policy trainers reward by.
    """
    import trl

    from .token_meter import metered

    more: dict[str, Any] = {}
    if KINDS[kind].ours:
        from ..trainer import TunaTrainer

        trainer_class: Any = TunaTrainer
    else:
        trainer_class = getattr(trl, KINDS[kind].trainer)
    if KINDS[kind].rows == "prompts":
        more["reward_funcs"] = reward
    return metered(trainer_class, meter)(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks,
        **more,
    )


def judge_reward(judge: Any) -> Callable[..., list[float | None]]:
    """A reward function of TRL's on-policy trainers: the judge's scores, all samples of a prompt judged together.

    Raises (when it is called):
        InputError: the judge needs a reference and the row has none.
    """
    from ..clients.base import JudgeRequest
    from ..data.schema import digest

    def reward(
        prompts: list[Any], completions: list[Any], reference: list[str | None] | None = None, **_: Any
    ) -> list[float | None]:
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        answers = reference or [None] * len(prompts)
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(digest([prompt, answers[i]]), []).append(i)
        requests = []
        for key, members in groups.items():
            distinct = tuple(dict.fromkeys(texts[i] for i in members))  # equal samples are shown once
            requests.append(JudgeRequest(prompts[members[0]], distinct, answers[members[0]], 0, key[:16]))
        found: list[float | None] = [None] * len(texts)
        for request, members in zip(requests, groups.values(), strict=True):
            verdict = judge.parse(request, judge.ask([request])[0])
            if verdict.status != "ok":
                continue  # no reward, which TRL leaves out of the group's mean
            scores = dict(zip(request.candidates, verdict.scores, strict=False))
            for i in members:
                found[i] = scores[texts[i]]
        return found

    reward.__name__ = "judge"
    return reward
