"""The model card of a training run: what data, what settings, what came out, with which versions."""

from __future__ import annotations

import importlib.metadata
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset


if TYPE_CHECKING:
    from .trainer import TunaTrainer

_SETTINGS = (
    "ranking_loss",
    "margin",
    "pair_reduction",
    "length_exponent",
    "mle_weight",
    "mle_target",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "seed",
)
_METRICS = ("rank/accuracy", "rank/kendall_tau", "rank/margin", "loss/rank", "loss/mle", "logps/best")
_PACKAGES = ("tuna-trl", "trl", "transformers", "peft", "datasets", "torch")


def write_model_card(
    trainer: TunaTrainer, *, model_name: str | None, dataset_name: str | None, tags: str | list[str] | None
) -> Path:
    """Write `README.md` into the run's `output_dir`; a local base model is called local, not linked."""
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment, StrictUndefined

    config = trainer.model.config
    model_name = model_name or Path(trainer.args.output_dir).name
    name = getattr(config, "_name_or_path", "") or ""
    base_model = name if name and not Path(name).exists() and name.count("/") == 1 else None
    tags = {tags} if isinstance(tags, str) else set(tags or ())
    data = ModelCardData(
        base_model=base_model,
        library_name="peft" if hasattr(trainer.model, "peft_config") else "transformers",
        model_name=model_name,
        datasets=dataset_name,
        tags=sorted(tags | set(trainer._tag_names) | {"arxiv:2310.13385"}),
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
            settings={key: _setting(getattr(trainer.args, key)) for key in _SETTINGS},
            metrics=_last_metrics(trainer.state.log_history),
            versions={package: _version(package) for package in _PACKAGES},
        )
    )
    path = Path(trainer.args.output_dir, "README.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def _architecture(trainer: TunaTrainer) -> str:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__


def _data_statistics(dataset: Any) -> dict[str, str]:
    """Counts of the tokenised training set; a streamed one is not counted."""
    unknown = {"rows": "streamed", "responses": "not counted", "per_row": "any number", "tokens": "not counted"}
    if not isinstance(dataset, Dataset):
        return unknown
    if not {"ranks", "length"} <= set(dataset.column_names):  # rows that skipped preparation
        return {**unknown, "rows": f"{len(dataset):,}"}
    counts = [len(ranks) for ranks in dataset["ranks"]]
    per_row = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return {
        "rows": f"{len(counts):,}",
        "responses": f"{sum(counts):,}",
        "per_row": per_row,
        "tokens": f"{sum(dataset['length']):,}",
    }


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, str]:
    """The last logged value of each rank metric, of training and of every eval set."""
    last: dict[str, str] = {}
    for entry in history:
        for key, value in entry.items():
            if key in _METRICS or any(key.endswith(f"_{metric}") for metric in _METRICS):
                last[key] = f"{value:.4f}"
    return last


def _setting(value: Any) -> str:
    return getattr(value, "value", None) or getattr(value, "__name__", None) or str(value)


def _version(package: str) -> str:
    if package == "tuna-trl":
        from ._version import __version__

        return __version__
    return importlib.metadata.version(package)
