"""`tuna-trl ablate sweep.yaml`: arms against baselines on the same data, a table and a figure; resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from ..pipelines.ablation_config import Sweep


def ablate(
    sweep: Annotated[Path, typer.Argument(help="A YAML file; see docs/ablation.md and examples/ablations.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the arms and train none.")] = False,
) -> None:
    """Train every arm of a sweep with every seed, measure all on held-out prompts, compare. Run the same command again
    after an interruption or a change: finished runs are skipped, a killed one goes on from its checkpoint."""
    from ..pipelines.ablation_config import read_sweep

    content = read_sweep(sweep)
    if dry_run:
        _show(content)
        return
    from ..pipelines.ablation import run_ablation
    from ..pipelines.ablation_results import markdown

    result, code = run_ablation(sweep, say=typer.echo)
    if result is None:
        typer.echo(f"Stopped. When it is mended, `tuna-trl ablate {sweep}` goes on from there.", err=True)
        raise typer.Exit(code)
    typer.echo("\n" + markdown(result))
    typer.echo(f"Results in {content.output}: results.json, results.md, results.svg; models under runs/.")
    typer.echo(_next(content, result))


def _show(content: Sweep) -> None:
    seeds = ", ".join(map(str, content.seeds))
    typer.echo(f"{len(content.arms)} arms, seeds {seeds}; everything goes to {content.output}.")
    trained = content.arms[1:]
    shared = {
        name: value
        for name, value in trained[0].options.items()
        if all(name in arm.options and arm.options[name] == value for arm in trained)
    }
    typer.echo(f"all: {_written(shared)}")
    for arm in trained:
        stages = " -> ".join(" + ".join(stage) for stage in arm.source.stages)
        own = {name: value for name, value in arm.options.items() if name not in shared}
        own = {**arm.data, **own, **({"second_stage": dict(arm.second)} if arm.second else {})}
        typer.echo(f"{arm.name}: {arm.trainer} on {stages}: {_written(own)}")


def _written(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "nothing more"


def _next(content: Sweep, result: dict[str, Any]) -> str:
    """The best arm by judged score, looked at further."""
    from ..evaluation.results import file_name
    from ..pipelines.ablation_config import START
    from ..pipelines.ablation_run import model_folder

    scores = {
        name: arm["figures"]["judge_score"]["mean"]
        for name, arm in result["arms"].items()
        if name != START and arm["figures"].get("judge_score", {}).get("mean") is not None
    }
    if not scores:
        return f"Next: look at {content.output / 'results.md'}."
    best = max(scores, key=lambda name: scores[name])
    folder = content.output / "runs" / file_name(best) / f"seed_{content.seeds[0]}"
    model = model_folder(folder, len(content.arm(best).source.stages))
    adapter = (model / "adapter_config.json").is_file()
    named = f"--model {content.model} --adapter {model}" if adapter else f"--model {content.model} --model {model}"
    return (
        f"Next, the arm with the highest judge score ({best}): tuna-trl evaluate super-ni {named} "
        f"--data <clone of allenai/natural-instructions> --output {content.output / 'super_ni'}"
    )
