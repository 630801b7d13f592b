"""`tuna-trl report`: a ranked dataset, and a training on it, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Revision


def report(
    dataset: Annotated[str, typer.Argument(help="A ranked dataset's folder, a file of rows, or a Hub id.")],
    output: Annotated[
        Path | None, typer.Option(help="The file; default: report.html in the dataset's folder.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Count tokens as this model does, and what would be cut.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a training on it: adds curves, and before and after.")
    ] = None,
    revision: Revision = None,
) -> None:
    """Write one HTML file that needs nothing else: scores, gaps, length against rank, model against model, judges,
    example rows. It runs no script and asks for nothing."""
    from ..data.hub_access import check_dataset_name
    from ..report.dataset import write_dataset_report

    check_dataset_name(dataset, "DATASET")
    typer.echo(f"Report: {write_dataset_report(dataset, output, model=model, run=run, revision=revision)}")
    if Path(dataset).is_dir():
        typer.echo(f"Next: tuna-trl push {dataset} <owner/name>")
    else:
        typer.echo(f"Next: tuna-trl train --dataset_name {dataset} --model_name_or_path <model> --output_dir <folder>")
