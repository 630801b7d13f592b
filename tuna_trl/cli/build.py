"""`tuna-trl build teacher` and `tuna-trl build judge`: prompts in, a ranked dataset on disk out."""

from __future__ import annotations

import functools
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from datasets import Dataset

app = typer.Typer(
    name="build",
    help="Sample responses and rank them: by a teacher's own likelihood, or by a judge that reads them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Prompts = Annotated[
    str, typer.Option(help="A .jsonl, .json or .parquet file or a Hub id with a `prompt` column, or demo:train.")
]
Output = Annotated[Path, typer.Option(help="Folder of the ranked dataset.")]
NumResponses = Annotated[int, typer.Option(help="Responses a prompt.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature.")]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens a response may have.")]
Seed = Annotated[int, typer.Option(help="Seed of the samples.")]
Limit = Annotated[int | None, typer.Option(help="The first so many prompts only.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
JournalFile = Annotated[Path | None, typer.Option(help="Where replies are kept; default: OUTPUT.journal.sqlite.")]


class Engine(StrEnum):
    """Where a local teacher samples."""

    local = "local"
    ray = "ray"


@app.command("teacher")
def teacher(
    prompts: Prompts,
    output: Output,
    model: Annotated[
        str,
        typer.Option("--model", "--teacher", help="A Hub id, a folder or 'embedded'; with --base-url a server's id."),
    ],
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            help="An OpenAI-compatible server, as http://host:8000/v1; may be repeated. Key: OPENAI_API_KEY."
        ),
    ] = None,
    extra_body: Annotated[
        str | None, typer.Option(help='More of each request, as JSON: \'{"top_k": 0, "min_p": 0}\' for llama.cpp.')
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --base-url: a system prompt before every prompt.")] = None,
    include_eos: Annotated[
        bool | None, typer.Option(help="With --base-url: whether the end token's log-prob counts; default: see docs.")
    ] = None,
    paid: Annotated[
        bool | None, typer.Option("--paid/--free", help="With --base-url: whether it costs; default: https does.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="With --base-url: a YAML of prices, laid over ours.")] = None,
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    length_exponent: Annotated[
        float, typer.Option(help="Score = log-prob / tokens ** this; 1 = mean, 0 = sum.")
    ] = 1.0,
    tie_delta: Annotated[float, typer.Option(help="Scores this close are ties.")] = 0.0,
    rank_truncated: Annotated[bool, typer.Option(help="Rank responses that were cut too.")] = False,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes and costs; build nothing.")] = False,
    max_cost: Annotated[float | None, typer.Option(help="Most that a paid teacher may cost, USD; inf: any.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests to servers at once.")] = 8,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for rows that failed.")] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Begin anew; the journal is set aside.")] = False,
    engine: Annotated[Engine, typer.Option(help="ray: a local teacher on the machines of a Ray cluster.")] = (
        Engine.local
    ),
    workers: Annotated[int, typer.Option(help="With --engine ray: teachers at once.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="With --engine ray: GPUs of each.")] = 0.0,
) -> None:
    """Probabilistic ranking: a teacher samples responses, ranked by its own length-normalised log-likelihood. It runs
    here, or behind a server with --base-url. Run the same command again after an interruption: nothing that was
    received is asked for again. `accelerate launch -m tuna_trl build teacher ...` shares the work among processes."""
    from ..build.dry_run import dry_run as look_ahead
    from ..build.journal import set_aside
    from ..build.processes import my_share
    from ..build.teacher import TeacherBuildConfig, build_teacher_folder
    from ..errors import InputError

    config = TeacherBuildConfig(
        num_responses=num_responses,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        length_exponent=length_exponent,
        tie_delta=tie_delta,
        rank_truncated=rank_truncated,
        seed=seed,
        limit=limit,
        journal=journal or _journal(output),
        retry_failed=retry_failed,
        max_cost=max_cost,
    )
    share = my_share()
    if share.world > 1 and (dry_run or no_resume or base_url or engine is Engine.ray):
        flag = "--dry-run" if dry_run else "--no-resume" if no_resume else "--base-url" if base_url else "--engine ray"
        raise InputError(f"{flag} is for one process, and {share.world} were launched: run it without the launcher.")
    rows = load_prompts(prompts)
    server = {"system": system, "include_eos": include_eos, "paid": paid, "prices": prices}
    if not base_url and (given := [name for name, value in server.items() if value is not None]):
        raise InputError(f"--{given[0].replace('_', '-')} is for a teacher behind a server; name it with --base-url.")
    if base_url:
        server |= {"urls": base_url, "extra_body": extra_body, "concurrency": concurrency}
        if engine is Engine.ray:
            raise InputError("--engine ray is for a local teacher; servers are named by repeating --base-url.")
    source = _teacher(model, dtype, server if base_url else None, engine, workers, gpus_per_worker)
    if dry_run:
        typer.echo(look_ahead(rows, source, config).table())
        return
    if no_resume and (aside := set_aside(config.journal)) is not None:
        typer.echo(f"The journal of earlier builds is kept as {aside}.", err=True)
    path = build_teacher_folder(rows, source, output, config)
    if share.first:
        _done(path)


@app.command("judge")
def judge(
    prompts: Prompts,
    output: Output,
    student: Annotated[str, typer.Option(help="Who answers: a Hub id, a model's or adapter's folder, or 'embedded'.")],
    judge: Annotated[str, typer.Option(help="reference, claude, or a Claude model id.")] = "reference",
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    rouge_tokenizer: Annotated[
        str, typer.Option(help="What tells too similar samples apart: rouge (a-z, 0-9) or unicode (every script).")
    ] = "rouge",
    repeats: Annotated[int, typer.Option(help="Judgments a row, each in another order of the candidates.")] = 1,
    tie_delta: Annotated[float, typer.Option(help="Scores this close are ties.")] = 0.0,
    max_cost: Annotated[float | None, typer.Option(help="Most that a paid judge may cost, USD.")] = None,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
) -> None:
    """Contextual ranking: the student samples diverse responses, a judge reads and ranks them. `reference` compares
    them with the `reference` column (ROUGE-L, offline, free); a Claude judge needs ANTHROPIC_API_KEY and --max-cost.
    Run the same command again after an interruption: no reply that was received is asked for again."""
    from ..build.judge import JudgeBuildConfig, judge_builds
    from ..clients.judges import judge_by_name
    from ..data.hub import save_ranked

    config = JudgeBuildConfig(
        num_responses=num_responses,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        rouge_tokenizer=rouge_tokenizer,
        repeats=repeats,
        tie_delta=tie_delta,
        max_cost=max_cost,
        seed=seed,
        limit=limit,
        journal=journal or _journal(output),
    )
    reader = judge_by_name(judge)  # before the model is loaded: a missing key is to be said at once
    rows = load_prompts(prompts)
    ranked, judgments = judge_builds(rows, _sampler(student, dtype), reader, config)
    _done(save_ranked(ranked, output, judgments=judgments))


def load_prompts(name: str) -> Dataset | Any:
    """Rows with a `prompt` column: a file, a folder or Hub id, or the instructions of the demo (`demo:heldout`).

    Files are read row by row as they are needed, so that they may be larger than memory.
    """
    from datasets import Dataset, load_dataset

    from ..data.demo import load_instructions
    from ..errors import InputError

    if name.startswith("demo:"):
        return Dataset.from_list(load_instructions(name.removeprefix("demo:")))
    path = Path(name)
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if path.suffix in kinds:
        if not path.is_file():
            raise InputError(f"--prompts {name}: there is no such file.")
        return load_dataset(kinds[path.suffix], data_files=str(path), streaming=True)["train"]
    try:
        return load_dataset(str(path) if path.is_dir() else name, streaming=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {name!r} could not be loaded: {str(error).strip().splitlines()[0]}") from error


def _teacher(
    model: str, dtype: str, server: dict[str, Any] | None, engine: Engine, workers: int, gpus_per_worker: float
) -> Any:
    """The teacher by its name: on servers, on a Ray cluster, or here."""
    from ..clients.openai_compatible import NO_ANTHROPIC_TEACHER
    from ..errors import InputError

    if model.lower().split("/")[-1].startswith("claude") and not Path(model).exists():
        raise InputError(f"--teacher {model}: {NO_ANTHROPIC_TEACHER}")
    if server is not None:
        return _server(model, **server)
    if engine is Engine.ray:
        from ..build.ray_engine import RaySampler

        make = functools.partial(_sampler, model, dtype)
        return RaySampler(make, name=model, workers=workers, gpus=gpus_per_worker)
    return _sampler(model, dtype)


def _server(model: str, urls: list[str], extra_body: str | None, **options: Any) -> Any:
    from ..clients.openai_compatible import OpenAICompatibleSampler
    from ..errors import InputError

    try:
        more = None if extra_body is None else json.loads(extra_body)
    except json.JSONDecodeError as error:
        raise InputError(f"--extra-body {extra_body!r} is no JSON: {error}.") from None
    one, several = (urls[0], None) if len(urls) == 1 else (None, urls)
    options = {name: value for name, value in options.items() if value is not None}
    return OpenAICompatibleSampler(model, one, endpoints=several, extra_body=more, **options)


def _sampler(name: str, dtype: str) -> Any:
    from ..build.processes import my_share
    from ..clients.local import TransformersSampler
    from ..loading import load_model, load_tokenizer

    options: dict[str, Any] = {}
    if my_share().world > 1:
        import torch

        if torch.cuda.is_available():  # one whole model a process, not one model over all devices
            options["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    return TransformersSampler(load_model(name, dtype=dtype, **options), load_tokenizer(name), name=name)


def _journal(output: Path) -> Path:
    # beside the dataset, not in it: the folder is replaced as a whole when the build is done
    return output.with_name(f"{output.name}.journal.sqlite")


def _done(path: Path) -> None:
    typer.echo(f"Ranked dataset written to {path}.")
    typer.echo(f"Next: tuna-trl train --dataset_name {path} --model_name_or_path <model> --output_dir <folder>")
