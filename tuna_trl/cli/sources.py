"""What the builders' commands have in common: prompts, teachers and students by name, journals, the last line."""

from __future__ import annotations

import functools
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer


LOOKED = "Next: the same command without --dry-run."


class Engine(StrEnum):
    """Where a local teacher works."""

    local = "local"
    ray = "ray"


def load_prompts(name: str) -> Any:
    """Rows with a `prompt` column: a file, a folder or Hub id, or the instructions of the demo (`demo:heldout`).

    Files are read row by row as they are needed, so that they may be larger than memory.
    """
    from datasets import Dataset

    from ..data.demo import load_instructions
    from ..data.row_streams import stream_rows

    if name.startswith("demo:"):
        return Dataset.from_list(load_instructions(name.removeprefix("demo:")))
    return stream_rows(name, "--prompts")


def teacher_by_name(
    model: str, dtype: str, server: dict[str, Any] | None, engine: Engine, workers: int, gpus_per_worker: float
) -> Any:
    """The teacher by its name: on servers, on a Ray cluster, or here."""
    from ..clients.openai_compatible import NO_ANTHROPIC_TEACHER
    from ..errors import InputError

    if model.lower().split("/")[-1].startswith("claude") and not Path(model).exists():
        raise InputError(f"--teacher {model}: {NO_ANTHROPIC_TEACHER}")
    if server is not None:
        return server_sampler(model, **server)
    if engine is Engine.ray:
        from ..build.ray_engine import RaySampler

        make = functools.partial(local_sampler, model, dtype)
        return RaySampler(make, name=model, workers=workers, gpus=gpus_per_worker)
    return local_sampler(model, dtype)


def server_sampler(model: str, urls: list[str], extra_body: str | None, **options: Any) -> Any:
    """A sampler behind one or several OpenAI-compatible servers; options that are None are left out."""
    from ..clients.openai_compatible import OpenAICompatibleSampler
    from ..errors import InputError

    try:
        more = None if extra_body is None else json.loads(extra_body)
    except json.JSONDecodeError as error:
        raise InputError(f"--extra-body {extra_body!r} is no JSON: {error}.") from None
    one, several = (urls[0], None) if len(urls) == 1 else (None, urls)
    options = {name: value for name, value in options.items() if value is not None}
    return OpenAICompatibleSampler(model, one, endpoints=several, extra_body=more, **options)


def local_sampler(name: str, dtype: str) -> Any:
    """A model in this process."""
    from ..build.processes import my_share
    from ..clients.local import TransformersSampler
    from ..loading import load_model, load_tokenizer

    options: dict[str, Any] = {}
    if my_share().world > 1:
        import torch

        if torch.cuda.is_available():  # one whole model a process, not one model over all devices
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return TransformersSampler(load_model(name, dtype=dtype, **options), load_tokenizer(name), name=name)


def one_output(argument: Path | None, option: Path | None) -> Path:
    """Where to write, said behind the source or by --output."""
    from ..errors import InputError

    if (argument is None) == (option is None):
        found = "neither was" if argument is None else f"both were ({argument} and {option})"
        raise InputError(f"Say where to write, as a second argument or by --output; {found} given.")
    return argument or Path(str(option))


def journal_beside(output: Path) -> Path:
    """Beside the dataset, not in it: the folder is replaced as a whole when the build is done."""
    return output.with_name(f"{output.name}.journal.sqlite")


def set_journal_aside(journal: Path) -> None:
    """For --no-resume: begin a new journal, and say where the old one is."""
    from ..build.journal import set_aside

    if (aside := set_aside(journal)) is not None:
        typer.echo(f"The journal of earlier builds is kept as {aside}.", err=True)


def done(path: Path) -> None:
    """The last lines: where the dataset is, and what comes next."""
    typer.echo(f"Ranked dataset written to {path}.")
    typer.echo(f"Next: tuna-trl train --dataset_name {path} --model_name_or_path <model> --output_dir <folder>")
