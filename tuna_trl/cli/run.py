"""`tuna-trl run recipe.yaml`: a whole pipeline, stage by stage, each a command of its own; resumable."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ..pipelines.recipe import Step

_PATIENCE = 5.0  # seconds that a stage has to end by itself after Ctrl-C


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
            if step.verb == "train":
                typer.echo(f"    {step.config_file.name} is written when the stage starts, and holds:")
                typer.echo(textwrap.indent(step.config_text.rstrip(), " " * 6))
        typer.echo(f"Next: tuna-trl run {recipe}")
        return
    code = run_recipe(steps, Path(str(content["output"])), _call, typer.echo)
    if code:
        typer.echo(f"Stopped. When it is mended, `tuna-trl run {recipe}` goes on from there.", err=True)
        raise typer.Exit(code)
    typer.echo(f"All {len(steps)} stages are done; the last one wrote {steps[-1].output}.")
    typer.echo(f"Next: {_next(steps)}")


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


def _next(steps: Sequence[Step]) -> str:
    """What to do with the last model, or without one with the last dataset."""
    from ..pipelines.recipe import WIRING

    made = {WIRING[step.verb].makes: step for step in steps}
    data = made["data"].output if "data" in made else "<ranked dataset>"
    if (model := made.get("model")) is None:
        return f"tuna-trl train --dataset_name {data} --model_name_or_path <model> --output_dir <folder>"
    if (model.output / "adapter_config.json").is_file():
        return f"tuna-trl merge {model.output} --output {model.output}-merged"
    held_out = "--data <held-out ranked dataset>"
    return f"tuna-trl evaluate ranking --model {model.output} {held_out} --output {model.output}-ranking"


def _call(step: Step, words: list[str]) -> int:
    """Run one command in a process of its own, on this terminal. After Ctrl-C it may end by itself, saying what it
    keeps: `subprocess.run` would kill it a quarter of a second later."""
    process = subprocess.Popen([sys.executable, "-m", "tuna_trl", *words])
    try:
        return process.wait()
    except KeyboardInterrupt:  # from a terminal the stage got it too
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # only this process was told
            process.wait()
        raise
    finally:
        if process.poll() is None:  # a second Ctrl-C
            process.kill()
