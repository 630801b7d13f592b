"""`tuna-trl rank`: responses that are there already in, the same responses ranked by a teacher or a judge out."""

from __future__ import annotations

import functools
from pathlib import Path
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
    NoResume,
    OnEngine,
    Paid,
    Prices,
    RankTruncated,
    RetryFailed,
    System,
    Workers,
)
from .sources import done, journal_beside, load_data, looked, server_flags, set_journal_aside
from .telling import tell


# options by who ranks; what is in none of them is for all
_OF = {
    "--teacher": {
        "base_url", "extra_body", "system", "include_eos", "paid", "concurrency", "length_exponent", "rank_truncated",
        "max_length", "dtype", "batch_size", "overwrite_ranks", "dry_run", "retry_failed", "engine", "workers",
        "gpus_per_worker", "data", "prices", "max_cost", "limit", "journal", "no_resume",
    },
    "--judge": {
        "protocol", "judge_option", "repeats", "min_agreement", "mark_disagreement", "max_malformed", "canary",
        "batch", "batch_requests", "batch_poll", "forget_batch", "skip_over_budget", "seed", "data", "prices",
        "max_cost", "limit", "journal", "no_resume",
    },
    "--from-judgments": {"repeats_used", "min_agreement", "mark_disagreement"},
}  # fmt: skip


def rank(
    context: typer.Context,
    output: DatasetFolder,
    data: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl, .json, .parquet or .csv file, a ranked dataset's folder or a Hub id: rows with `prompt` "
            "or `instruction` and a list `responses` or `outputs`."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            "--model",
            help="Ranks by likelihood: a Hub id, a model's or adapter's folder, or 'embedded'; with --base-url a "
            "server's id.",
        ),
    ] = None,
    judge: Annotated[str | None, typer.Option(help=f"Ranks by reading: {judging.JUDGES}.")] = None,
    from_judgments: Annotated[
        Path | None, typer.Option(help="A folder with a judge's replies: compute the ranks again, ask nobody.")
    ] = None,
    base_url: BaseUrls = None,
    extra_body: ExtraBody = None,
    system: System = None,
    include_eos: IncludeEos = None,
    paid: Paid = None,
    prices: Prices = None,
    concurrency: Concurrency = None,
    max_cost: MaxCost = None,
    length_exponent: LengthExponent = 1.0,
    tie_delta: Annotated[
        float | None,
        typer.Option(help="Scores this close are ties (nats a token; a judge's points); default: 0, or as judged."),
    ] = None,
    rank_truncated: RankTruncated = False,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a prompt with one response; default: the teacher's context.")
    ] = None,
    dtype: Dtype = "float32",
    batch_size: Annotated[int, typer.Option(help="Rows in one forward pass.")] = 8,
    limit: Limit = None,
    overwrite_ranks: Annotated[bool, typer.Option(help="Drop the ranks that another teacher has given.")] = False,
    journal: JournalFile = None,
    dry_run: DryRun = False,
    retry_failed: RetryFailed = False,
    no_resume: NoResume = False,
    engine: OnEngine = Engine.local,
    workers: Workers = 1,
    gpus_per_worker: GpusPerWorker = 0.0,
    protocol: judging.Protocol = None,
    judge_option: judging.Options = None,
    repeats: judging.Repeats = 1,
    repeats_used: Annotated[
        list[int] | None, typer.Option(help="With --from-judgments: this repeat (from 0) only; may be repeated.")
    ] = None,
    min_agreement: judging.MinAgreement = None,
    mark_disagreement: judging.MarkDisagreement = False,
    max_malformed: judging.MaxMalformed = 2,
    canary: judging.Canary = 0,
    batch: judging.Batch = False,
    batch_requests: judging.BatchRequests = None,
    batch_poll: judging.BatchPoll = 60.0,
    forget_batch: judging.ForgetBatch = None,
    skip_over_budget: judging.SkipOverBudget = False,
    seed: Annotated[int, typer.Option(help="With --judge: of the order in which candidates are shown.")] = 0,
    as_json: Json = False,
) -> None:
    """Rank given responses; nothing is sampled. A teacher ranks by their length-normalised log-likelihood: here, on a
    Ray cluster, or behind a vLLM server with --base-url. A judge reads them. Run the same command again after an
    interruption: nothing that was scored is scored again. `accelerate launch -m tuna_trl rank ...` shares a local
    teacher's work among processes."""
    from ..errors import InputError

    _check_mode(context, {"--teacher": teacher, "--judge": judge, "--from-judgments": from_judgments})
    afterwards = judging.Afterwards(min_agreement, mark_disagreement, canary)
    if from_judgments is not None:
        return _again(from_judgments, output, tie_delta, repeats_used, afterwards, as_json)
    if data is None:
        raise InputError("--data is missing: the file, folder or Hub id with the responses to rank.")
    if judge is not None:
        from ..build.judge import JudgeBuildConfig

        settings = JudgeBuildConfig(
            repeats=repeats,
            tie_delta=tie_delta or 0.0,
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
        afterwards.check(repeats)
        reader = judging.judge_from_flags(judge, protocol, judge_option, prices=prices)
        judging.forget_batches(settings.journal, forget_batch)
        return _by_judge(data, reader, settings, afterwards, output, no_resume, as_json)
    from ..build.processes import my_share
    from ..build.rank import RankConfig, rank_folder, refuse_anthropic

    name = str(teacher)  # one ranker was given, and no other is left
    refuse_anthropic(name)  # before anything is loaded
    config = RankConfig(
        length_exponent=length_exponent,
        tie_delta=tie_delta or 0.0,
        rank_truncated=rank_truncated,
        max_length=max_length,
        batch_size=batch_size,
        limit=limit,
        overwrite_ranks=overwrite_ranks,
        journal=journal or journal_beside(output),
        retry_failed=retry_failed,
        max_cost=max_cost,
    )
    server: dict[str, Any] = {"extra_body": extra_body, "system": system, "concurrency": concurrency}
    server |= {"include_eos": include_eos, "paid": paid, "prices": prices}
    behind = server_flags(base_url, engine, server, alone={"--dry-run": dry_run, "--no-resume": no_resume})
    rows = load_data(data, "--data")
    scorer = _scorer(name, dtype, rows, behind, engine, workers, gpus_per_worker)
    if dry_run:
        from ..build.rank_dry_run import rank_dry_run

        return looked(rank_dry_run(rows, scorer, config), as_json)
    if no_resume:
        set_journal_aside(config.journal)
    path = rank_folder(rows, scorer, output, config)
    if my_share().first:
        done(path, as_json)


def _check_mode(context: typer.Context, rankers: dict[str, Any]) -> None:
    """One ranker, and no flag that is another's: a flag that does nothing would be believed to do something."""
    from ..errors import InputError

    chosen = [flag for flag, value in rankers.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"Say who ranks, by one of {', '.join(rankers)}; got {', '.join(chosen) or 'none'}.")
    allowed = _OF[chosen[0]]
    for name in set().union(*_OF.values()) - allowed:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":  # the enum is typer's own copy of click's
            owners = [flag for flag, names in _OF.items() if name in names]
            raise InputError(
                f"--{name.replace('_', '-')} is for {' and '.join(owners)}, and does nothing with {chosen[0]}."
            )


def _by_judge(
    data: str,
    judge: Any,
    config: Any,
    afterwards: judging.Afterwards,
    output: Path,
    no_resume: bool,
    as_json: bool,
) -> None:
    from ..build.judge_given import rank_by_judge

    if no_resume:
        set_journal_aside(config.journal)
    ranked, judgments = rank_by_judge(load_data(data, "--data"), judge, config)
    path, found = judging.finish(ranked, judgments, judge, config, afterwards, output, as_json)
    done(path, as_json, **found)


def _again(
    folder: Path,
    output: Path,
    tie_delta: float | None,
    repeats: list[int] | None,
    afterwards: judging.Afterwards,
    as_json: bool,
) -> None:
    """The ranks of judged rows, computed again from what the judge said."""
    from datasets import load_dataset

    from ..build.from_judgments import rank_from_judgments
    from ..build.min_agreement import filter_agreement
    from ..data.hub import load_ranked, save_ranked
    from ..errors import InputError

    if not (folder / "judgments").is_dir():
        raise InputError(
            f"--from-judgments {folder}: there are no judgments; name a folder that a judge's build wrote."
        )
    judgments = load_dataset(str(folder), "judgments")
    ranked = rank_from_judgments(load_ranked(folder), judgments, tie_delta=tie_delta, repeats=repeats)
    found: dict[str, Any] = {}
    if afterwards.min_agreement is not None:
        ranked, filtered = filter_agreement(ranked, afterwards.min_agreement, mark=afterwards.mark_disagreement)
        tell(filtered.told(), as_json)
        found["agreement"] = filtered.to_json()
    done(save_ranked(ranked, output, judgments=judgments), as_json, **found)


def _scorer(
    name: str,
    dtype: str,
    rows: Any,
    server: dict[str, Any] | None,
    engine: Engine,
    workers: int,
    gpus_per_worker: float,
) -> Any:
    """What scores: behind servers, on a Ray cluster, or here."""
    if server is not None:
        from ..clients.prompt_logprobs import PromptScorer
        from .sources import server_sampler

        return PromptScorer(server_sampler(name, **server))
    if engine is Engine.ray:
        from ..build.ray_scoring import RayScorer

        make = functools.partial(_local_scorer, name, dtype)
        return RayScorer(make, name=name, workers=workers, gpus=gpus_per_worker)
    for split in rows.values():  # a file that is broken at its first row is to be said before a model is loaded
        next(iter(split), None)
    return _local_scorer(name, dtype)


def _local_scorer(name: str, dtype: str) -> Any:
    from ..clients.local_scorer import TransformersScorer
    from .sources import local_sampler

    sampler = local_sampler(name, dtype)
    return TransformersScorer(sampler.model, sampler.tokenizer, name=name)
