"""`tuna-trl merge`: an adapter and its base as one plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .generate import ask
from .telling import renamed


def merge(
    adapter: Annotated[str, typer.Argument(help="The adapter's folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float32 or float16.")] = "bfloat16",
    allow_quantised: Annotated[
        bool, typer.Option("--allow-quantised", help="Merge into a base that is stored quantised.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", hidden=True)] = False,
) -> None:
    """Merge an adapter into its base model (loaded anew, unquantised) and say what that did to log-probabilities."""
    from ..adapters import merge_adapter

    anyway = renamed(force, allow_quantised, "--force", "--allow-quantised")
    report = merge_adapter(adapter, output, dtype=dtype, force=anyway)
    typer.echo(
        f"Log-probabilities of {report.answers} answers, merged against adapted: mean difference {report.mean:.4f}, "
        f"largest {report.largest:.4f} nats a token."
    )
    typer.echo(f"Saved to {report.path}.")
    typer.echo(f"Next, ask it: {ask(report.path)}")
    typer.echo(
        f"Next, a round on its own answers: tuna-trl build judge --model {report.path} --prompts <file or Hub id> "
        "--output <folder>"
    )
