"""`tuna-trl validate`: everything that is wrong with a ranked dataset, before a model is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import HubConfig, Json, Revision
from .telling import print_json


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
    revision: Revision = None,
    config: HubConfig = None,
    as_json: Json = False,
) -> None:
    """Check every row: columns and types, ranks against scores, empty and identical responses, template marks inside
    texts, prompts in two splits; with --model end tokens, BOS and lengths. Exit code 0 if sound, 1 if there are
    errors, 2 if it was called wrongly."""
    from ..data.convert.reading import open_rows
    from ..data.validate import validate as check
    from ..errors import InputError

    if max_length is not None and not model:
        raise InputError("--max-length needs --model: lengths are counted in a model's tokens.")
    splits = open_rows(source, "PATH_OR_ID", revision=revision, config=config)
    tokenizers = None
    if model:
        from ..loading import load_tokenizer

        tokenizers = {name: load_tokenizer(name) for name in model}
    report = check(splits, tokenizers, max_length)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.render())
        typer.echo(f"Next: {_next(source, report.sound, model, max_length, config)}")
    if not report.sound:
        raise typer.Exit(1)


def _next(source: str, sound: bool, models: list[str] | None, max_length: int | None, config: str | None) -> str:
    """The training, with what is known of it; or the same check again."""
    if not sound:
        return f"mend the errors above, then tuna-trl validate {source}"
    subset = f" --dataset_config {config}" if config else ""
    length = f" --max_length {max_length}" if max_length is not None else ""
    name = source.rstrip("/").split("/")[-1].split(".")[0] or "model"
    return (
        f"tuna-trl train --dataset_name {source}{subset} --model_name_or_path {models[0] if models else '<model>'}"
        f"{length} --output_dir runs/{name}"
    )
