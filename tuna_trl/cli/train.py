"""`tuna-trl train --config x.yaml`: TunaTrainer from a YAML file with the keys of `trl sft`, and flags over it.

With `--accelerate_config` or any flag of `accelerate launch` it runs in the processes that these name ([`.launch`]).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import launch
from .generate import ask


if TYPE_CHECKING:
    from datasets import DatasetDict

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file; keys as in `trl sft`, and TunaConfig's own.")] = None,
    restart: Annotated[bool, typer.Option(help="Start anew where output_dir holds a checkpoint.")] = False,
    accelerate_config: Annotated[
        str | None,
        typer.Option(
            "--accelerate_config",
            help="Run through `accelerate launch`: single_gpu, multi_gpu, multi_cpu, fsdp2, zero2, zero3, or a file.",
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option("--num_processes", help="Processes to launch; any other flag of it passes through.")
    ] = None,
) -> None:
    """Train on ranked (or any SFT or preference) data. Further flags, such as --learning_rate 1e-4 or --margin 0.2,
    are the fields of TunaConfig, trl.ModelConfig and trl.ScriptArguments, and override the file. A run whose
    output_dir holds a checkpoint goes on from it."""
    launch_flags, flags = _split(config, context.args)
    if accelerate_config is not None:
        launch_flags += ["--accelerate_config", accelerate_config]
    if num_processes is not None:
        launch_flags += ["--num_processes", str(num_processes)]
    if launch_flags:
        if config is not None and isinstance(environment := _read(config).get("env"), dict):
            os.environ.update({name: str(value) for name, value in environment.items()})
        given = [*(["--config", str(config)] if config else []), *(["--restart"] if restart else []), *flags]
        return launch.launch(launch_flags, given)
    script, training, model_config = _parse(config, flags)

    from trl import get_peft_config, get_quantization_config

    from ..errors import InputError
    from ..trainer import TunaTrainer

    if not model_config.model_name_or_path:
        raise InputError("`model_name_or_path` is missing: name a Hub id, a folder, or 'embedded'.")
    quantization = get_quantization_config(model_config)
    training.model_init_kwargs = {
        **(training.model_init_kwargs or {}),
        **_model_kwargs(model_config, quantised=quantization is not None),
    }
    dataset = _load(script)
    evaluation = dataset.get(script.dataset_test_split) if training.eval_strategy != "no" else None
    trainer = TunaTrainer(
        model=model_config.model_name_or_path,
        args=training,
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=evaluation,
        quantization_config=quantization,
        peft_config=get_peft_config(model_config),
    )
    checkpoint = _checkpoint(training, restart)
    if checkpoint:
        typer.echo(f"Going on from {checkpoint} (--restart starts anew).")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_fsdp_enabled:
        # checkpoints hold shards; what is saved here is to load anywhere
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(training.output_dir)
    trainer.create_model_card(dataset_name=None if Path(script.dataset_name).exists() else script.dataset_name)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    if trainer.is_world_process_zero():
        typer.echo(f"Saved to {training.output_dir}.")
        typer.echo(f"Next, ask it: {ask(training.output_dir)}")
        typer.echo(f"Next, did it help: {_next(model_config.model_name_or_path, Path(training.output_dir))}")
    _leave(trainer)


def _next(start: str, output: Path) -> str:
    """Whether it helped: start and result side by side."""
    adapter = (output / "adapter_config.json").is_file() and not Path(start, "adapter_config.json").is_file()
    return (
        f"tuna-trl evaluate ranking --model {start} --{'adapter' if adapter else 'model'} {output} "
        f"--data <held-out ranked dataset> --output {output}-ranking"
    )


def _split(config: Path | None, flags: list[str]) -> tuple[list[str], list[str]]:
    """(what is for `accelerate launch`, from file and flags; the other flags); unknown names are refused here, once,
    before any process starts."""
    from ..errors import InputError, did_you_mean

    training = training_names()
    values = {} if config is None else _read(config)
    unlaunched = [key for key in values if key not in training]
    if not unlaunched and all(_name(flag) in training for flag in flags if flag.startswith("--")):
        return [], flags
    known = training | set(launch.launch_options())
    for key in unlaunched:
        if key not in known:
            raise InputError(f"--config {config}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    launch_flags, flags = launch.split_flags(flags, training)
    for flag in flags:
        if flag.startswith("--") and _name(flag) not in training:
            raise InputError(f"unknown flag {flag.split('=')[0]}.{did_you_mean(_name(flag), known)}")
    if not launch.launched():
        launch_flags = [*launch.flags_of_yaml(values, training), *launch_flags]
    return launch_flags, flags


def _name(flag: str) -> str:
    """`--no_packing=1` -> `packing`."""
    name = flag.removeprefix("--").split("=")[0].replace("-", "_")
    return name.removeprefix("no_") if name.removeprefix("no_") in training_names() else name


@functools.cache
def training_names() -> frozenset[str]:
    import dataclasses

    return frozenset({f.name for kind in _kinds() for f in dataclasses.fields(kind)} | {"env", "datasets"})


def _kinds() -> tuple[Any, ...]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import TunaConfig

    return ScriptArguments, TunaConfig, ModelConfig, DatasetMixtureConfig


def _read(config: Path) -> dict[str, Any]:
    """The keys and values of the file."""
    import yaml

    from ..errors import InputError

    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(f"--config {config} could not be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {config} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {config} must hold `key: value` lines, got a {type(values).__name__}.")
    return values


def _parse(config: Path | None, flags: list[str]) -> tuple[Any, Any, Any]:
    """The three dataclasses from file and flags; what is unknown is named with a suggestion."""
    from trl import TrlParser

    from ..errors import InputError

    _split(config, flags)

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:  # argparse prints 120 lines of usage first
            raise InputError(message)

    arguments = [*(["--config", str(config)] if config else []), *flags]
    try:
        # keys for `accelerate launch` are left over here; nothing else is, by _split
        script, training, model, mixture, *_ = Parser(_kinds()).parse_args_and_config(
            arguments, fail_with_unknown_args=False
        )
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    if mixture.datasets:
        raise InputError("`datasets` (a mixture) is not supported yet; concatenate them and give `dataset_name`.")
    if not script.dataset_name:
        raise InputError("`dataset_name` is missing: name a folder, a .jsonl or .parquet file, or a Hub id.")
    return script, training, model


def _model_kwargs(model_config: Any, quantised: bool) -> dict[str, Any]:
    """What `trl sft` makes of a ModelConfig."""
    kwargs: dict[str, Any] = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
    }
    if quantised:
        from accelerate import PartialState

        state = PartialState()
        if state.device.type not in ("cpu", "mps"):
            # a quantised model cannot be moved once it is loaded: each process loads a whole one onto its own device
            kwargs["device_map"] = {"": state.local_process_index}
    return {name: value for name, value in kwargs.items() if value is not None}


def _load(script: Any) -> DatasetDict:
    """A dataset by path or Hub id, with the split that trains."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    from ..data.files import data_suffix
    from ..data.hub_access import check_dataset_name
    from ..data.row_streams import read_jsonl_stream
    from ..errors import InputError, did_you_mean

    name = script.dataset_name
    path = Path(name)
    if path.is_file():
        kinds = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
        kind = kinds.get(data_suffix(path))
        if kind is None:
            raise InputError(f"`dataset_name` {name}: expected a .jsonl(.gz), .json, .parquet or .csv file.")
        try:
            dataset = load_dataset(kind, data_files=str(path))
        except (DatasetGenerationError, ValueError) as error:
            if data_suffix(path).startswith(".jsonl"):  # read again, row by row, for the line that is broken
                for _ in read_jsonl_stream(path):
                    pass
            reason = error.__cause__ or error
            raise InputError(f"`dataset_name` {name}: {str(reason).strip().splitlines()[0]}") from error
    else:
        check_dataset_name(name, "`dataset_name`")
        try:
            dataset = load_dataset(str(path) if path.is_dir() else name, name=script.dataset_config)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"`dataset_name` {name!r} could not be loaded: {reason}") from error
    if script.dataset_train_split not in dataset:
        raise InputError(
            f"`dataset_train_split` is {script.dataset_train_split!r}, but {name} has {', '.join(dataset)}."
            f"{did_you_mean(script.dataset_train_split, dataset)}"
        )
    return dataset


def _checkpoint(training: Any, restart: bool) -> str | None:
    """The checkpoint to go on from: the one asked for, else the last in output_dir."""
    from transformers.trainer_utils import get_last_checkpoint

    from ..checkpoints import set_checkpoints_aside

    if restart:
        with training.main_process_first(desc="setting checkpoints aside"):  # the others find none left
            aside = set_checkpoints_aside(Path(training.output_dir))
        if aside is not None:
            typer.echo(f"The checkpoints of the run before are kept in {aside}.")
        return None
    if training.resume_from_checkpoint:
        return training.resume_from_checkpoint
    return get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None


def _leave(trainer: Any) -> None:
    """End trackers and the process group; processes joined by gloo end here."""
    import atexit
    import sys

    import torch

    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo"):
        return trainer.end()
    distributed.barrier()
    # torch 2.13's gloo group may deadlock when it is taken apart, here or by the interpreter: the main thread joins
    # gloo's while it holds the interpreter lock that the other waits for (seen in 2 of 5 launches)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
