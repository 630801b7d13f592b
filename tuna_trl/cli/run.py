"""`tuna-trl run recipe.yaml`: a whole pipeline, stage by stage, each a command of its own; resumable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ..pipelines.recipe import Step


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see docs/recipes.md and examples/recipes.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run none.")] = False,
) -> None:
    """Run the stages of a recipe: build, train, rank, evaluate, as often as it says. Run the same command again after
    an interruption or a change: what is finished is skipped, what a change touches is done again."""
    from ..pipelines.recipe import plan, read_recipe, run_recipe

    content = read_recipe(recipe)
    steps = plan(content, options_of_verbs())
    if dry_run:
        for step in steps:
            typer.echo(f"{step.name}: {step.shown()}")
        return
    code = run_recipe(steps, Path(str(content["output"])), _call, typer.echo)
    if code:
        typer.echo(f"Stopped. When it is mended, `tuna-trl run {recipe}` goes on from there.", err=True)
        raise typer.Exit(code)
    last = steps[-1]
    typer.echo(f"All {len(steps)} stages are done; the last one wrote {last.output}.")


def options_of_verbs() -> Mapping[str, frozenset[str]]:
    """The options of every verb, as YAML keys; of `train` the fields of its dataclasses too."""
    from typer.main import get_command

    from . import app
    from .train import training_names

    found: dict[str, frozenset[str]] = {}

    def visit(command: object, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(child, f"{path} {name}".strip())
        flags = [flag for parameter in getattr(command, "params", ()) for flag in getattr(parameter, "opts", ())]
        names = {flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}
        found[path] = frozenset(names - {"help", "dry_run"})

    visit(get_command(app), "")
    found["train"] = found["train"] | training_names() - {"config", "restart"}
    return found


def _call(step: Step, words: list[str]) -> int:
    """Run one command in a process of its own, on this terminal."""
    try:
        return subprocess.run([sys.executable, "-m", "tuna_trl", *words], check=False).returncode
    except KeyboardInterrupt:  # the stage got it too, and says what it keeps
        return 130
