"""What the builders' commands have in common: prompts, teachers and students by name, journals, the last line."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from .options import Engine
from .telling import print_json, tell


def load_data(name: str, argument: str) -> Any:
    """Rows by split, of a file, a folder or a Hub id; read row by row as they are needed, so that files may be larger
    than memory.

    Args:
        argument: how errors name where it came from ("--data").
    """
    from ..data.convert.reading import stream_source

    return stream_source(name, argument)


def load_prompts(name: str) -> Any:
    """Rows with a `prompt` column: see [`load_data`], or the instructions of the demo (`demo:heldout`)."""
    from datasets import Dataset

    from ..data.demo import load_instructions

    if name.startswith("demo:"):
        return Dataset.from_list(load_instructions(name.removeprefix("demo:")))
    return load_data(name, "--prompts")


def server_flags(
    urls: list[str] | None, engine: Engine, flags: Mapping[str, Any], *, alone: Mapping[str, bool]
) -> dict[str, Any] | None:
    """The options of a teacher behind servers, None for one that runs here; flags that contradict are refused.

    Args:
        urls: of the servers, if any were named.
        flags: what is for servers alone, by option name; None: not given.
        alone: flag -> whether it was given, of those that only one process may have.
    """
    from ..build.processes import my_share
    from ..errors import InputError

    world = my_share().world
    alone = {**alone, "--base-url": bool(urls), "--engine ray": engine is Engine.ray}
    if world > 1 and (given := [flag for flag, is_given in alone.items() if is_given]):
        raise InputError(f"{given[0]} is for one process, and {world} were launched: run it without the launcher.")
    if not urls:
        if given := [name for name, value in flags.items() if value is not None]:
            flag = given[0].replace("_", "-")
            raise InputError(f"--{flag} is for a teacher behind a server; name it with --base-url.")
        return None
    if engine is Engine.ray:
        raise InputError("--engine ray is for a local teacher; servers are named by repeating --base-url.")
    return {"urls": urls, **flags}


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


def set_journal_aside(journal: str | Path | None) -> None:
    """For --no-resume: begin a new journal, and say where the old one is."""
    from ..build.journal import set_aside

    if journal is not None and (aside := set_aside(Path(journal))) is not None:
        typer.echo(f"The journal of earlier builds is kept as {aside}.", err=True)


def looked(found: Any, as_json: bool) -> None:
    """The last lines of a dry run."""
    tell(found.table(), as_json)
    if as_json:
        print_json({"dry_run": True, **asdict(found)})
    tell("Next: the same command without --dry-run.", as_json)


def done(path: Path, as_json: bool = False, *, model: str = "<model>", **more: Any) -> None:
    """The last lines: where the dataset is, and what comes next.

    Args:
        as_json: print one object on stdout: folder, rows by split, counts, and `more`.
        model: what is trained on it, where that is known.
    """
    tell(f"Ranked dataset written to {path}.", as_json)
    following = f"tuna-trl train --dataset_name {path} --model_name_or_path {model} --output_dir <folder>"
    tell(f"Next: {following}", as_json)
    if as_json:
        print_json({"output": path, **_counts(path), **more, "next": following})


def _counts(path: Path) -> dict[str, Any]:
    """Rows by split and by status, responses, and responses that share a rank, of a folder that was just written."""
    from collections import Counter

    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from ..data.ranked_source import shard_files

    rows: Counter[str] = Counter()
    status: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for split, files in shard_files(path / "data").items():
        for file in files:
            table = pq.read_table(file, columns=["status", "num_responses", "num_ties"])
            rows[split] += table.num_rows
            status.update(table["status"].to_pylist())
            for name in ("num_responses", "num_ties"):
                sums[name] += pc.sum(table[name]).as_py() or 0
    return {"rows": rows, "status": status, **sums}
