"""`tuna-trl rank`: responses that are there already in, the same responses ranked by a local teacher out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def rank(
    teacher: Annotated[str, typer.Option(help="Who ranks: a Hub id, a model's or adapter's folder, or 'embedded'.")],
    data: Annotated[
        str,
        typer.Option(
            help="A .jsonl, .json, .parquet or .csv file, a ranked dataset's folder or a Hub id: rows with `prompt` "
            "or `instruction` and a list `responses` or `outputs`."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the ranked dataset.")],
    length_exponent: Annotated[
        float, typer.Option(help="Score = summed log-prob / tokens ** this; 1 = mean, 0 = sum.")
    ] = 1.0,
    tie_delta: Annotated[float, typer.Option(help="Scores this close are ties (nats a token).")] = 0.0,
    rank_truncated: Annotated[bool, typer.Option(help="Rank responses that their sampler cut too.")] = False,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a prompt with one response; default: the teacher's context.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Rows in one forward pass.")] = 8,
    limit: Annotated[int | None, typer.Option(help="The first so many rows of each split only.")] = None,
    overwrite_ranks: Annotated[bool, typer.Option(help="Drop the ranks that another teacher has given.")] = False,
    journal: Annotated[
        Path | None, typer.Option(help="Where scores are kept; default: OUTPUT.journal.sqlite.")
    ] = None,
) -> None:
    """Rank given responses by their length-normalised log-likelihood under a local teacher; nothing is sampled.
    Run the same command again after an interruption: nothing that was scored is scored again."""
    from ..build.rank import RankConfig, rank_by_teacher, refuse_anthropic
    from ..data.hub import save_ranked
    from ..loading import load_model, load_tokenizer

    refuse_anthropic(teacher)  # before anything is loaded
    config = RankConfig(
        length_exponent=length_exponent,
        tie_delta=tie_delta,
        rank_truncated=rank_truncated,
        max_length=max_length,
        batch_size=batch_size,
        limit=limit,
        overwrite_ranks=overwrite_ranks,
        journal=journal or output.with_name(f"{output.name}.journal.sqlite"),
    )
    rows = load_rows(data)
    ranked = rank_by_teacher(rows, load_model(teacher, dtype=dtype), load_tokenizer(teacher), config, name=teacher)
    path = save_ranked(ranked, output)
    typer.echo(f"Ranked dataset written to {path}.")
    typer.echo(f"Next: tuna-trl train --dataset_name {path} --model_name_or_path <model> --output_dir <folder>")


def load_rows(name: str) -> Any:
    """The rows of a file, a folder or a Hub id, by split."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    from ..errors import InputError

    path = Path(name)
    kinds = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    try:
        if path.suffix in kinds:
            if not path.is_file():
                raise InputError(f"--data {name}: there is no such file.")
            return load_dataset(kinds[path.suffix], data_files=str(path))
        return load_dataset(str(path) if path.is_dir() else name)
    except InputError:
        raise
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = error.__cause__ or error
        raise InputError(f"--data {name!r} could not be loaded: {str(reason).strip().splitlines()[0]}") from error
