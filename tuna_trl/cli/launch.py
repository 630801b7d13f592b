"""`tuna-trl train` in several processes: the flags of `accelerate launch` among those of the training, and the launch.

As with `trl sft`, every flag that the training does not know and `accelerate launch` does goes to the latter, from the
command line or from the YAML; `--accelerate_config` names a file, or one that comes with the package.
"""

from __future__ import annotations

import functools
import os
from argparse import ArgumentParser
from collections.abc import Collection, Mapping, Sequence
from importlib import resources, util
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError, did_you_mean


LAUNCHED = "TUNA_TRL_LAUNCHED"  # set for the processes that a launch starts: the YAML they read names the launch too


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the accelerate configurations in the package."""
    folder = Path(str(resources.files("tuna_trl") / "accelerate_configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def launch_options() -> dict[str, bool]:
    """Name -> whether it takes a value, of every option of `accelerate launch`, and `accelerate_config`."""
    options = {
        option.removeprefix("--").replace("-", "_"): action.nargs != 0
        for action in _accelerate_parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    return {**options, "accelerate_config": True}


def split_flags(flags: Sequence[str], training: Collection[str]) -> tuple[list[str], list[str]]:
    """(flags for `accelerate launch`, the others); a flag that both know is the training's.

    Args:
        flags: `["--num_processes", "2", "--margin", "0.2"]`.
        training: the names that the training knows.
    """
    options = launch_options()
    launch: list[str] = []
    rest: list[str] = []
    taken = rest
    values = 0  # how many tokens still belong to the last flag; a flag of the training takes all up to the next
    for token in flags:
        if token.startswith("--"):
            name, equals, _ = token[2:].partition("=")
            name = name.replace("-", "_")
            ours = name in training or name.removeprefix("no_") in training
            taken = launch if name in options and not ours else rest
            values = int(options.get(name, False) and not equals)
        elif taken is launch:
            if not values:
                taken = rest
            values -= 1
        taken.append(token)
    return launch, rest


def flags_of_yaml(values: Mapping[str, Any], training: Collection[str]) -> list[str]:
    """The keys of a training's YAML that are for `accelerate launch`, as flags."""
    flags: list[str] = []
    options = launch_options()
    for key, value in values.items():
        if key in training or key not in options:
            continue
        if options[key]:
            flags += [f"--{key}", str(value)]
        elif not isinstance(value, bool):
            raise InputError(f"`{key}` is {value!r}; it is a switch of `accelerate launch`: true or false.")
        elif value:
            flags.append(f"--{key}")
    return flags


def launch(flags: Sequence[str], training_arguments: Sequence[str]) -> None:
    """Start `tuna-trl train` with `training_arguments` through `accelerate launch` with `flags`; returns when all
    processes have ended well.

    Raises:
        InputError: an unknown configuration or value, DeepSpeed that is not installed, sharding on a CPU.
        typer.Exit: a process failed, with its exit code; it has said why.
    """
    import subprocess

    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = _accelerate_parser().parse_args(
        [*_resolved(flags), "--module", "tuna_trl", "train", *training_arguments]
    )
    _check(arguments)
    os.environ[LAUNCHED] = "1"
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        raise typer.Exit(max(error.returncode, 1)) from None
    except SignalException as error:  # from accelerate's agent, which has ended its processes
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise typer.Exit(max(error.get_first_failure()[1].exitcode, 1)) from None
    except ValueError as error:
        raise InputError(f"accelerate launch: {error}") from error
    finally:
        del os.environ[LAUNCHED]


def launched() -> bool:
    """Whether this process is one of a launch."""
    return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ


def _resolved(flags: Sequence[str]) -> list[str]:
    """`--accelerate_config NAME` -> `--config_file PATH`; the last one counts, as with other flags."""
    kept: list[str] = []
    name = None
    tokens = iter(flags)
    for token in tokens:
        option, equals, value = token.partition("=")
        if option.replace("-", "_") == "__accelerate_config":
            name = value if equals else next(tokens, None)
            if not name:
                raise InputError(f"--accelerate_config needs a name ({', '.join(shipped_configs())}) or a file.")
        else:
            kept.append(token)
    if name is None:
        return kept
    if any(token.split("=")[0].replace("-", "_") == "__config_file" for token in kept):
        raise InputError("--accelerate_config and --config_file both name a configuration; give one of them.")
    shipped = shipped_configs()
    if not Path(name).is_file() and name not in shipped:
        raise InputError(
            f"--accelerate_config {name!r} is neither a file nor one of {', '.join(shipped)}."
            f"{did_you_mean(name, shipped)}"
        )
    return ["--config_file", str(name if Path(name).is_file() else shipped[name]), *kept]


def _check(arguments: Any) -> None:
    """Refuse what accelerate would do otherwise than asked, or only refuse after minutes."""
    from accelerate.commands.config.config_args import load_config_from_file

    kind, on_cpu, processes = "", arguments.cpu, arguments.num_processes
    if arguments.config_file is not None:
        try:
            file = load_config_from_file(arguments.config_file)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"--accelerate_config {arguments.config_file} could not be read: {error}") from error
        kind, on_cpu = str(getattr(file.distributed_type, "value", file.distributed_type)), on_cpu or file.use_cpu
        if processes is None:
            processes = file.num_processes
        if processes == -1:
            raise InputError(f"How many processes? {arguments.config_file} leaves it open: say --num_processes.")
    sharded = arguments.use_deepspeed or arguments.use_fsdp or kind in ("DEEPSPEED", "FSDP")
    if sharded and on_cpu:
        raise InputError(
            "On a CPU accelerate trains plain DDP whatever the sharding; use --accelerate_config multi_cpu."
        )
    if arguments.cpu and (processes or 1) > 1:
        raise InputError(
            f"`accelerate launch --cpu` starts one process, not {processes}; use --accelerate_config multi_cpu."
        )
    if (arguments.use_deepspeed or kind == "DEEPSPEED") and util.find_spec("deepspeed") is None:
        raise InputError("DeepSpeed is not installed; `pip install deepspeed`, or use --accelerate_config fsdp2.")


def _accelerate_parser() -> ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    parser = launch_command_parser()

    def error(message: str) -> None:  # argparse prints its usage first
        raise InputError(f"accelerate launch: {message}")

    parser.error = error
    return parser
