"""`tuna-trl validate`: everything that is wrong with a ranked dataset, before a model is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def validate(
    source: Annotated[
        str, typer.Argument(metavar="PATH_OR_ID", help="A ranked dataset's folder, a file of rows, or a Hub id.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Check under this model's tokenizer and chat template too; may be given several times."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a prompt with one response; needs --model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
) -> None:
    """Check every row: columns and types, ranks against scores, empty and identical responses, template marks inside
    texts, prompts in two splits; with --model end tokens, BOS and lengths. Exit code 0 if sound, 1 if there are
    errors, 2 if it was called wrongly."""
    from ..data.convert.reading import open_rows
    from ..data.validate import validate as check
    from ..errors import InputError

    if max_length is not None and not model:
        raise InputError("--max-length needs --model: lengths are counted in a model's tokens.")
    splits = open_rows(source, "PATH_OR_ID")
    tokenizers = None
    if model:
        from ..loading import load_tokenizer

        tokenizers = {name: load_tokenizer(name) for name in model}
    report = check(splits, tokenizers, max_length)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        typer.echo(report.render())
        if report.sound:
            typer.echo(
                f"Next: tuna-trl train --dataset_name {source} --model_name_or_path <model> --output_dir <folder>"
            )
        else:
            typer.echo(f"Next: mend the errors above, then tuna-trl validate {source}")
    if not report.sound:
        raise typer.Exit(1)
