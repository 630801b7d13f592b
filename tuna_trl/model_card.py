"""The model card of a training run: what data, what settings, what came out, with which versions."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from .data.card import code
from .metrics import GAPS


if TYPE_CHECKING:
    from .trainer import TunaTrainer

_SETTINGS = (
    "ranking_loss",
    "loss_kwargs",
    "margin",
    "pair_reduction",
    "length_exponent",
    "ranking_weight",
    "mle_weight",
    "mle_target",
    "loss_type",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "batch_layout",
    "max_length",
    "max_responses",
    "bf16",
    "fp16",
    "seed",
)
_ADAPTER = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "target_modules", "modules_to_save")
_QUANTISATION = ("quant_method", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
_METRICS = (
    "loss",
    "rank/accuracy",
    "rank/kendall_tau",
    "rank/margin",
    *(f"rank/margin_gap{g}{'plus' if g == GAPS else ''}" for g in range(1, GAPS + 1)),
    "loss/rank",
    "loss/mle",
    "logps/best",
    "logps/worst",
)
_PACKAGES = ("tuna-trl", "trl", "transformers", "peft", "datasets", "torch")


def write_model_card(
    trainer: TunaTrainer, *, model_name: str | None, dataset_name: str | None, tags: str | list[str] | None
) -> Path:
    """Write `README.md` into the run's `output_dir`; a local base model is called local, not linked.

    Holds what the training set is (rows, responses an instruction, who ranked them), the settings, the last metrics,
    versions and the paper. No path and no token of the machine that trained goes in.

    Returns:
        the file.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment, StrictUndefined

    config = trainer.model.config
    folder = Path(trainer.args.output_dir or "")
    model_name = model_name or folder.name
    name = getattr(config, "_name_or_path", "") or ""
    base_model = name if name and not Path(name).exists() and name.count("/") == 1 else None
    own_tags = {tags} if isinstance(tags, str) else set(tags or ())
    data = ModelCardData(
        base_model=base_model,
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        pipeline_tag="text-generation",
        model_name=model_name,
        datasets=dataset_name,
        tags=sorted(own_tags | set(trainer._tag_names) | {"arxiv:2310.13385"}),
    )
    template = resources.files("tuna_trl").joinpath("templates/model_card.md.jinja").read_text(encoding="utf-8")
    body = (
        Environment(undefined=StrictUndefined, autoescape=False)  # Markdown; no text of a response goes in
        .from_string(template)
        .render(
            model_name=model_name or "model",
            base_model=base_model,
            architecture=_architecture(trainer),
            dataset_name=dataset_name,
            data=_data_statistics(trainer.train_dataset),
            settings=_settings(trainer.args, _SETTINGS),
            steps=_steps(trainer),
            adapter=_adapter(trainer.model),
            quantisation=_quantisation(config),
            metrics=_last_metrics(trainer.state.log_history),
            versions={package: _version(package) for package in _packages(config)},
        )
    )
    path = folder / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _architecture(trainer: TunaTrainer) -> str:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__


def _data_statistics(dataset: Any) -> dict[str, Any]:
    """Counts of the tokenised training set; a streamed one is not counted.

    `sizes`: (responses an instruction, instructions that have so many), ascending. `rankers`: (who ranked, rows), the
    most frequent first; empty where the rows do not say.
    """
    unknown: dict[str, Any] = {
        "rows": "streamed",
        "responses": "not counted",
        "per_row": "any number",
        "tokens": "not counted",
    }
    unknown |= {"sizes": [], "rankers": [], "tied": 0}
    if not isinstance(dataset, Dataset):
        return unknown
    if not {"ranks", "length"} <= set(dataset.column_names):  # rows that skipped preparation
        return {**unknown, "rows": f"{len(dataset):,}"}
    sizes: Counter[int] = Counter()
    tied = tokens = 0
    for ranks, length in _columns(dataset, "ranks", "length"):
        sizes[len(ranks)] += 1
        tied += len(set(ranks)) < len(ranks)  # preparation left no response without a rank
        tokens += length
    per_row = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return {
        "rows": f"{len(dataset):,}",
        "responses": f"{sum(n * rows for n, rows in sizes.items()):,}",
        "per_row": per_row,
        "tokens": f"{tokens:,}",
        "sizes": sorted(sizes.items()),
        "rankers": _rankers(dataset),
        "tied": tied,
    }


def _rankers(dataset: Dataset) -> list[tuple[str, int]]:
    """How the rows say that they were ranked and by whom, with the number of rows; names are other people's text."""
    names = [name for name in ("ranking_method", "ranker") if name in dataset.column_names]
    if not names:
        return []
    found = Counter(" by ".join(code(str(value)) for value in row if value) for row in _columns(dataset, *names))
    found.pop("", None)
    return found.most_common(5)


def _columns(dataset: Dataset, *names: str) -> Iterable[tuple[Any, ...]]:
    """The rows of some columns, read in pieces."""
    for batch in dataset.select_columns(list(names)).with_format(None).iter(batch_size=1000):
        yield from zip(*(batch[name] for name in names), strict=True)


def _settings(values: Any, names: Iterable[str]) -> dict[str, str]:
    """The settings that are set, by name; `values` is an object or a mapping."""
    read = values.get if isinstance(values, Mapping) else lambda name: getattr(values, name, None)
    found = {name: read(name) for name in names}
    # a nought is a setting (`margin=0`), and equals False
    unset = [name for name, value in found.items() if value is None or value is False or value in ([], {})]
    return {name: _setting(value) for name, value in found.items() if name not in unset}


def _setting(value: Any) -> str:
    if isinstance(value, set | frozenset | list | tuple):
        return ", ".join(sorted(map(str, value)))
    text = getattr(value, "value", None) or getattr(value, "__name__", None) or str(value)
    return " ".join(str(text).split()).replace("|", "\\|")


def _steps(trainer: TunaTrainer) -> dict[str, str]:
    """How far it was trained: nothing before the first step."""
    state, args = trainer.state, trainer.args
    if not state.global_step:
        return {}
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    known = {"optimiser steps": f"{state.global_step:,}", "instructions a step": f"{batch:,}"}
    if state.epoch:
        known["epochs"] = f"{state.epoch:.2f}".rstrip("0").rstrip(".")
    return known


def _adapter(model: Any) -> dict[str, str]:
    """Type and settings of the adapter in training, or nothing."""
    if not hasattr(model, "peft_config"):
        return {}
    config = model.peft_config[model.active_adapters[0] if hasattr(model, "active_adapters") else "default"]
    return {"type": _setting(config.peft_type), **_settings(config, _ADAPTER)}


def _quantisation(config: Any) -> dict[str, str]:
    """How the base model is stored, or nothing."""
    given = getattr(config, "quantization_config", None)
    return {} if given is None else _settings(given, _QUANTISATION)


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, str]:
    """The last logged value of each metric of ours, of training and of every eval set."""
    last: dict[str, str] = {}
    for entry in history:
        for key, value in entry.items():
            # `train_loss` is the mean over the whole run, not where it ended
            if key != "train_loss" and (key in _METRICS or any(key.endswith(f"_{metric}") for metric in _METRICS)):
                last[key] = f"{value:.4f}"
    return last


def _packages(config: Any) -> tuple[str, ...]:
    return (*_PACKAGES, *(["bitsandbytes"] if _quantisation(config) else []), "python")


def _version(package: str) -> str:
    if package == "python":
        return platform.python_version()
    if package == "tuna-trl":
        from ._version import __version__

        return __version__
    return importlib.metadata.version(package)
