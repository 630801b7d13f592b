"""`tuna-trl build teacher` and `tuna-trl build judge`: prompts in, a ranked dataset on disk out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import judging
from .sources import (
    LOOKED,
    Engine,
    done,
    journal_beside,
    load_prompts,
    local_sampler,
    set_journal_aside,
    teacher_by_name,
)


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
        journal=journal or journal_beside(output),
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
    source = teacher_by_name(model, dtype, server if base_url else None, engine, workers, gpus_per_worker)
    if dry_run:
        typer.echo(look_ahead(rows, source, config).table())
        typer.echo(LOOKED)
        return
    if no_resume:
        set_journal_aside(config.journal)
    path = build_teacher_folder(rows, source, output, config)
    if share.first:
        done(path)


@app.command("judge")
def judge(
    prompts: Prompts,
    output: Output,
    student: Annotated[
        str,
        typer.Option(
            "--student", "--model", help="Who answers: a Hub id, a model's or adapter's folder, or 'embedded'."
        ),
    ],
    judge: Annotated[str, typer.Option(help=f"{judging.JUDGES}.")] = "reference",
    protocol: judging.Protocol = None,
    judge_option: judging.Options = None,
    prices: judging.Prices = None,
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    rouge_tokenizer: Annotated[
        str, typer.Option(help="What tells too similar samples apart: rouge (a-z, 0-9) or unicode (every script).")
    ] = "rouge",
    repeats: judging.Repeats = 1,
    tie_delta: judging.TieDelta = 0.0,
    min_agreement: judging.MinAgreement = None,
    mark_disagreement: judging.MarkDisagreement = False,
    max_malformed: judging.MaxMalformed = 2,
    canary: judging.Canary = 0,
    batch: judging.Batch = False,
    batch_requests: judging.BatchRequests = None,
    batch_poll: judging.BatchPoll = 60.0,
    forget_batch: judging.ForgetBatch = None,
    max_cost: judging.MaxCost = None,
    skip_over_budget: judging.SkipOverBudget = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it takes and costs; build nothing.")] = False,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Begin anew; the journal is set aside.")] = False,
) -> None:
    """Contextual ranking: the student samples diverse responses, a judge reads and ranks them. `reference` compares
    them with the `reference` column (ROUGE-L, offline, free); a Claude judge needs ANTHROPIC_API_KEY and --max-cost.
    Run the same command again after an interruption: no reply that was received is asked for again."""
    from ..build.judge import JudgeBuildConfig, judge_builds
    from ..build.judge_dry_run import judge_dry_run

    config = JudgeBuildConfig(
        num_responses=num_responses,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        rouge_tokenizer=rouge_tokenizer,
        repeats=repeats,
        tie_delta=tie_delta,
        max_malformed=max_malformed,
        max_cost=max_cost,
        stop_over_budget=not skip_over_budget,
        batch=batch,
        batch_requests=batch_requests,
        batch_poll=batch_poll,
        seed=seed,
        limit=limit,
        journal=journal or journal_beside(output),
    )
    afterwards = judging.Afterwards(min_agreement, mark_disagreement, canary)
    afterwards.check(repeats)
    # before the model is loaded: a missing key is to be said at once
    reader = judging.judge_from_flags(judge, protocol, judge_option, prices=prices)
    rows = load_prompts(prompts)
    if dry_run:
        typer.echo(judge_dry_run(rows, local_sampler(student, dtype), reader, config).table())
        typer.echo(LOOKED)
        return
    judging.forget_batches(config.journal, forget_batch)
    if no_resume:
        set_journal_aside(config.journal)
    ranked, judgments = judge_builds(rows, local_sampler(student, dtype), reader, config)
    done(judging.finish(ranked, judgments, reader, config, afterwards, output))
