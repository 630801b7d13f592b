"""`tuna-trl preview`: one row with its ranked responses, or what of it is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Revision


def preview(
    dataset: Annotated[str, typer.Argument(help="A ranked dataset's folder, a file of rows, or a Hub id.")],
    row: Annotated[int, typer.Option(help="Which row, from 0.")] = 0,
    split: Annotated[str | None, typer.Option(help="Default: the first.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Show the tokens of this model's tokenizer, trained and masked.")
    ] = None,
    mle_target: Annotated[str, typer.Option(help="With --model: all, best, reference or none.")] = "all",
    revision: Revision = None,
) -> None:
    """Look at one row: the prompt, its responses best first. With --model: each token as training sees it, in colours
    on a terminal and in words through a pipe."""
    from rich.console import Console

    from ..data.hub_access import check_dataset_name
    from ..report.preview import preview as show

    check_dataset_name(dataset, "DATASET")
    console = Console(highlight=False, markup=False, emoji=False)
    show(dataset, console, row=row, split=split, model=model, mle_target=mle_target, revision=revision)
    typer.echo(f"Next: tuna-trl validate {dataset}{f' --model {model}' if model else ''}")
