"""`tuna-trl build teacher` and `tuna-trl build judge`: prompts in, a ranked dataset on disk out."""

from __future__ import annotations

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


@app.command("teacher")
def teacher(
    prompts: Prompts,
    output: Output,
    model: Annotated[str, typer.Option(help="The teacher: a Hub id, a folder, or 'embedded'.")],
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    rank_truncated: Annotated[bool, typer.Option(help="Rank responses that were cut too.")] = False,
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "float32",
    journal: JournalFile = None,
) -> None:
    """Probabilistic ranking: a local teacher samples responses, ranked by its own length-normalised log-likelihood.
    Run the same command again after an interruption: nothing that was sampled is sampled again."""
    from ..build.teacher import TeacherBuildConfig, build_teacher_ranked
    from ..data.hub import save_ranked

    config = TeacherBuildConfig(
        num_responses=num_responses,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        rank_truncated=rank_truncated,
        seed=seed,
        limit=limit,
        journal=journal or _journal(output),
    )
    rows = load_prompts(prompts)
    dataset = build_teacher_ranked(rows, _sampler(model, dtype), config)
    _done(save_ranked(dataset, output))


@app.command("judge")
def judge(
    prompts: Prompts,
    output: Output,
    student: Annotated[str, typer.Option(help="Who answers: a Hub id, a model's or adapter's folder, or 'embedded'.")],
    judge: Annotated[str, typer.Option(help="reference, claude, or a Claude model id.")] = "reference",
    num_responses: NumResponses = 4,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 256,
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
    """Rows with a `prompt` column: a file, a folder or Hub id, or the instructions of the demo (`demo:heldout`)."""
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
        return load_dataset(kinds[path.suffix], data_files=str(path))["train"]
    try:
        return load_dataset(str(path) if path.is_dir() else name)
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {name!r} could not be loaded: {str(error).strip().splitlines()[0]}") from error


def _sampler(name: str, dtype: str) -> Any:
    from ..clients.local import TransformersSampler
    from ..loading import load_model, load_tokenizer

    return TransformersSampler(load_model(name, dtype=dtype), load_tokenizer(name), name=name)


def _journal(output: Path) -> Path:
    # beside the dataset, not in it: the folder is replaced as a whole when the build is done
    return output.with_name(f"{output.name}.journal.sqlite")


def _done(path: Path) -> None:
    typer.echo(f"Ranked dataset written to {path}.")
    typer.echo(f"Next: tuna-trl train --dataset_name {path} --model_name_or_path <model> --output_dir <folder>")
