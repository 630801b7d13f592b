"""`tuna-trl demo`: the whole of Tuna on the embedded model, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    model: Annotated[
        str, typer.Option(help="A Hub id, a folder, or 'embedded' (SmolLM2-135M-Instruct).")
    ] = "embedded",
    judge: Annotated[str, typer.Option(help="reference (offline), claude, or a Claude model id.")] = "reference",
    max_cost: Annotated[float, typer.Option(help="Most that a Claude judge may cost, USD.")] = 5.0,
    train_rows: Annotated[int | None, typer.Option(help="The first so many training instructions only.")] = None,
    heldout_rows: Annotated[int | None, typer.Option(help="The first so many held-out instructions only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a response may have.")] = 40,
) -> None:
    """Rank with a teacher, train, rank with a judge, train, compare; then open the report that it names. A second run
    resumes what is finished."""
    from ..pipelines.demo import DemoConfig, run_demo

    config = DemoConfig(
        output=output,
        model=model,
        judge=judge,
        max_cost=max_cost,
        train_rows=train_rows,
        heldout_rows=heldout_rows,
        max_new_tokens=max_new_tokens,
    )
    run_demo(config)
    typer.echo("Next, the same on your own prompts: tuna-trl init --model <model> --prompts <file or Hub id>")
