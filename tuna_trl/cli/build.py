"""`tuna-trl build teacher` and `tuna-trl build judge`: prompts in, a ranked dataset on disk out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import judging
from .options import (
    BaseUrls,
    Concurrency,
    DatasetFolder,
    DryRun,
    Dtype,
    Engine,
    ExtraBody,
    GpusPerWorker,
    IncludeEos,
    JournalFile,
    Json,
    LengthExponent,
    Limit,
    MaxCost,
    MaxNewTokens,
    NoResume,
    NumResponses,
    OnEngine,
    Paid,
    Prices,
    Prompts,
    RankTruncated,
    RetryFailed,
    Seed,
    System,
    Temperature,
    Workers,
)
from .sources import (
    done,
    journal_beside,
    load_prompts,
    local_sampler,
    looked,
    server_flags,
    set_journal_aside,
    teacher_by_name,
)


app = typer.Typer(
    name="build",
    help="Sample responses and rank them: by a teacher's own likelihood, or by a judge that reads them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("teacher")
def teacher(
    prompts: Prompts,
    output: DatasetFolder,
    model: Annotated[
        str,
        typer.Option("--model", "--teacher", help="A Hub id, a folder or 'embedded'; with --base-url a server's id."),
    ],
    base_url: BaseUrls = None,
    extra_body: ExtraBody = None,
    system: System = None,
    include_eos: IncludeEos = None,
    paid: Paid = None,
    prices: Prices = None,
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    length_exponent: LengthExponent = 1.0,
    tie_delta: judging.TieDelta = 0.0,
    rank_truncated: RankTruncated = False,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
    dry_run: DryRun = False,
    max_cost: MaxCost = None,
    concurrency: Concurrency = None,
    retry_failed: RetryFailed = False,
    no_resume: NoResume = False,
    engine: OnEngine = Engine.local,
    workers: Workers = 1,
    gpus_per_worker: GpusPerWorker = 0.0,
    as_json: Json = False,
) -> None:
    """Probabilistic ranking: a teacher samples responses, ranked by its own length-normalised log-likelihood. It runs
    here, or behind a server with --base-url. Run the same command again after an interruption: nothing that was
    received is asked for again. `accelerate launch -m tuna_trl build teacher ...` shares the work among processes."""
    from ..build.dry_run import dry_run as look_ahead
    from ..build.processes import my_share
    from ..build.teacher import TeacherBuildConfig, build_teacher_folder

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
    server: dict[str, Any] = {"system": system, "include_eos": include_eos, "paid": paid, "prices": prices}
    server |= {"extra_body": extra_body, "concurrency": concurrency}
    behind = server_flags(base_url, engine, server, alone={"--dry-run": dry_run, "--no-resume": no_resume})
    rows = load_prompts(prompts)
    source = teacher_by_name(model, dtype, behind, engine, workers, gpus_per_worker)
    if dry_run:
        return looked(look_ahead(rows, source, config), as_json)
    if no_resume:
        set_journal_aside(config.journal)
    path = build_teacher_folder(rows, source, output, config)
    if my_share().first:
        done(path, as_json)


@app.command("judge")
def judge(
    prompts: Prompts,
    output: DatasetFolder,
    student: Annotated[
        str,
        typer.Option(
            "--student", "--model", help="Who answers: a Hub id, a model's or adapter's folder, or 'embedded'."
        ),
    ],
    judge: Annotated[str, typer.Option(help=f"{judging.JUDGES}.")] = "reference",
    protocol: judging.Protocol = None,
    judge_option: judging.Options = None,
    prices: Prices = None,
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
    max_cost: MaxCost = None,
    skip_over_budget: judging.SkipOverBudget = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
    no_resume: NoResume = False,
    as_json: Json = False,
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
        return looked(judge_dry_run(rows, local_sampler(student, dtype), reader, config), as_json)
    judging.forget_batches(config.journal, forget_batch)
    if no_resume:
        set_journal_aside(config.journal)
    ranked, judgments = judge_builds(rows, local_sampler(student, dtype), reader, config)
    path, found = judging.finish(ranked, judgments, reader, config, afterwards, output, as_json)
    done(path, as_json, model=student, **found)
