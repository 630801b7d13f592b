"""`tuna-trl estimate --config x.yaml`: what a step of `tuna-trl train` takes, before it is run; no weights are loaded.

Exit code 0: it fits the card; 1: it does not; 2: wrong input.
"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import train


if TYPE_CHECKING:
    from ..estimate.levers import Lever
    from ..estimate.plan import Plan
    from ..estimate.workload import Workload


def estimate(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The YAML file of `tuna-trl train`.")] = None,
    measure: Annotated[bool, typer.Option(help="Also run two real steps here, on the longest rows.")] = False,
    json: Annotated[bool, typer.Option(help="Print JSON.")] = False,
    card: Annotated[float | None, typer.Option(help="GiB of the card asked about; by default here, or 24.")] = None,
    num_responses: Annotated[
        int | None, typer.Option("--num_responses", min=1, help="Assume, instead of reading the data.")
    ] = None,
    prompt_length: Annotated[int | None, typer.Option("--prompt_length", min=1, help="Assume, tokens.")] = None,
    response_length: Annotated[int | None, typer.Option("--response_length", min=1, help="Assume, tokens.")] = None,
) -> None:
    """Memory of one training step on cards of 8 to 80 GB: whether it fits, the largest max_length that does, and which
    flag changes the verdict. Further flags are those of `tuna-trl train` and override the file."""
    from ..errors import InputError
    from ..estimate.levers import levers, together
    from ..estimate.memory import CARDS, GIB
    from ..estimate.plan import plan_of

    if card is not None and card <= 0:
        raise InputError(f"--card is {card:g}; give the card's memory in GiB, such as 24.")
    launch_flags, flags = train._split(config, context.args)
    mixed, flags = _mixed_precision(config, flags)
    script, training, model_config = train._parse(config, flags)
    assumed = (num_responses, prompt_length, response_length)
    dataset = None if any(assumed) and not measure else _dataset(script, tell=not json)
    workload = _workload(dataset, training, model_config, assumed)
    size = (card if card is not None else _this_card()) * GIB
    mixed = not (training.fp16 or training.use_cpu) if mixed is None else mixed
    plan = plan_of(training, model_config, workload, device="cuda", bf16=mixed)
    memory = plan.memory()
    fits = memory.fits(size)
    found = levers(plan, size)
    verdict = {
        "card_gib": size / GIB,
        "fits": fits,
        "levers": found,
        "together": None if fits or any(lever.fits for lever in found) else together(plan, size),
    }
    cards = [{"card_gib": gib, "fits": memory.fits(gib * GIB), "max_length": plan.longest(gib * GIB)} for gib in CARDS]
    measured = _measured(plan, script, training, model_config, dataset) if measure else None
    if json:
        typer.echo(json_module.dumps(_as_dict(plan, cards, verdict, measured), indent=2))
    else:
        _print(plan, cards, verdict, measured, launched=bool(launch_flags))
        file = f" --config {config}" if config else ""
        ready = "" if fits else ", with a flag from above"
        typer.echo(f"Next: tuna-trl train{file}{'' if config else ' with the same flags'}{ready}")
    raise typer.Exit(0 if fits else 1)


def _mixed_precision(config: Path | None, flags: list[str]) -> tuple[bool | None, list[str]]:
    """(`bf16` as asked for, None = not said; the flags to parse). Without a CUDA device here a config refuses it, but
    what is estimated is a run on a card: there it is the default."""
    import torch

    wanted = train._read(config).get("bf16") if config is not None else None
    for i, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name == "--no_bf16":
            wanted = False
        elif name == "--bf16":
            value = value or (flags[i + 1] if i + 1 < len(flags) and not flags[i + 1].startswith("--") else "true")
            wanted = value.lower() in ("true", "1", "yes", "t", "y")
    wanted = None if wanted is None else bool(wanted)
    return wanted, flags if torch.cuda.is_available() else [*flags, "--bf16", "false"]


def _this_card() -> float:
    """GiB of the CUDA device, or 24."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 24.0


def _dataset(script: Any, tell: bool) -> Any:
    """The train split, or None where it does not load (said)."""
    from ..errors import InputError

    try:
        return train._load(script)[script.dataset_train_split]
    except InputError as error:
        if tell:
            typer.echo(f"{error}\nLengths are assumed instead.\n", err=True)
        return None


def _workload(dataset: Any, training: Any, model_config: Any, assumed: tuple[int | None, ...]) -> Workload:
    """Token counts of the prepared data, or the assumed ones."""
    from ..estimate.plan import where
    from ..estimate.workload import assumed_workload, workload_of

    responses, prompt, response = assumed
    if dataset is None or any(assumed):
        length = training.max_length or 1024
        if prompt is None:
            prompt = length // 2 if response is None else max(length - response, 1)
        response = response if response is not None else max(length - prompt, 1)
        return assumed_workload(prompt, response, responses or training.max_responses or 4)
    from ..data.prepare import Preparation, prepare_dataset
    from ..loading import load_tokenizer
    from ..tokens import Template

    path, extra = where(model_config.model_name_or_path or "")
    tokenizer = load_tokenizer(path, **extra)
    rows = prepare_dataset(dataset, Template(tokenizer), Preparation.of(training), name="train")
    wanted = [name for name in ("prompt_ids", "response_ids", "reference_ids") if name in rows.column_names]
    reference = training.mle_target == "reference" and training.mle_weight > 0
    return workload_of(rows.select_columns(wanted), "the data", reference=reference)


def _measured(plan: Plan, script: Any, training: Any, model_config: Any, dataset: Any) -> Any:
    """(two real steps, the estimate for the same batch on the same device)."""
    import copy

    import torch
    from trl import get_peft_config, get_quantization_config

    from ..errors import InputError
    from ..estimate.measured import measure
    from ..estimate.memory import step_memory
    from ..estimate.plan import execution_of

    if dataset is None:
        raise InputError(f"--measure needs the data, and `dataset_name` {script.dataset_name!r} does not load.")
    quantisation = get_quantization_config(model_config)
    training = copy.copy(training)
    training.model_init_kwargs = {
        **(training.model_init_kwargs or {}),
        **train._model_kwargs(model_config, quantised=quantisation is not None),
    }
    typer.echo("Running two steps on the longest rows.", err=True)
    found = measure(
        model_config.model_name_or_path,
        training,
        dataset,
        quantisation=quantisation,
        peft_config=get_peft_config(model_config),
    )
    device = "cuda" if torch.cuda.is_available() and not training.use_cpu else "cpu"
    execution = execution_of(training, device, bf16=training.bf16)
    expected = step_memory(plan.shape(), found.tokens, execution, optim=plan.optim, accumulation=plan.accumulation)
    return found, expected


def _as_dict(plan: Plan, cards: list[dict[str, Any]], verdict: dict[str, Any], measured: Any) -> dict[str, Any]:
    import dataclasses

    shape, tokens, memory = plan.shape(), plan.tokens(), plan.memory()
    result = {
        "model": shape.name,
        "parameters": shape.parameters,
        "trained_parameters": shape.trained_parameters,
        "lengths_from": plan.workload.source,
        "layout": plan.layout,
        "batch": {"instructions": tokens.instructions, "tokens": tokens.tokens, "scored_tokens": tokens.scored},
        "bytes": memory.as_dict(),
        "cards": cards,
        "verdict": {
            **verdict,
            "levers": [dataclasses.asdict(lever) for lever in verdict["levers"]],
            "together": verdict["together"] and dataclasses.asdict(verdict["together"]),
        },
        "rough": shape.rough,
    }
    if measured is not None:
        found, expected = measured
        result["measured"] = {
            "device": found.device,
            "layout": found.layout,
            "tokens": found.tokens.tokens,
            "peak": found.peak,
            "estimated_peak": expected.peak,
        }
    return result


def _print(plan: Plan, cards: list[dict[str, Any]], verdict: dict[str, Any], measured: Any, launched: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    shape, tokens, memory = plan.shape(), plan.tokens(), plan.memory()
    console.print(
        f"{shape.name}, {shape.parameters / 1e6:,.0f} M parameters, {shape.trained_parameters / 1e6:,.1f} M trained; "
        f"lengths: {plan.workload.source}."
    )
    if not plan.workload.assumed:
        quantiles = ", ".join(f"p{q * 100:.0f} {plan.workload.typical(q).unique:,}" for q in (0.5, 0.95, 1.0))
        console.print(f"Tokens of an instruction, its prompt once: {quantiles}.")
    plural = "s" * (tokens.instructions != 1)
    console.print(
        f"The heaviest batch: {tokens.instructions} instruction{plural}, {tokens.tokens:,} tokens, layout "
        f'"{plan.layout}".'
    )
    for reason in [shape.rough] if shape.rough else []:
        console.print(f"Rough: {reason}.")
    if launched:
        console.print("One process is estimated; sharding over several divides weights, gradients and optimizer.")
    table = Table(title="One step, GiB", title_justify="left", show_header=False)
    names = {"weights": "weights", "optimizer": f"optimizer state ({plan.optim})", "gradients": "gradients"}
    names |= {"activations": "activations kept", "head": "one chunk of the head", "working": "one layer's work"}
    for name, label in names.items():
        table.add_row(label, _gib(getattr(memory, name)))
    table.add_row("peak (not all at once)", _gib(memory.peak))
    table.add_row("card needed", _gib(memory.on_card()))
    console.print(table)
    table = Table("card", "fits", "largest max_length", title_justify="left")
    for row in cards:
        length = f"{row['max_length']:,}" if row["max_length"] else "none"
        table.add_row(f"{row['card_gib']} GB", "yes" if row["fits"] else "no", length)
    console.print(table)
    _print_verdict(console, verdict)
    if measured is not None:
        found, expected = measured
        console.print(
            f"Measured in two steps on {found.device} ({found.tokens.tokens:,} tokens, {found.layout}): "
            f"{_gib(found.peak)} GiB; estimated for the same: {_gib(expected.peak)} GiB "
            f"({100 * (expected.peak / found.peak - 1):+.0f} %)."
        )


def _print_verdict(console: Any, verdict: dict[str, Any]) -> None:
    card, found = verdict["card_gib"], verdict["levers"]
    console.print(f"On {card:.3g} GiB it {'fits' if verdict['fits'] else 'does not fit'}.")
    if verdict["fits"]:
        return
    winners = [lever for lever in found if lever.fits]
    for lever in winners or found[:6]:
        console.print(f"  {_row(lever)}", soft_wrap=True)
    if winners:
        return
    if verdict["together"] is None:
        console.print("No set of these flags makes it fit; use a smaller model or a shorter max_length.")
    else:
        console.print(f"None alone is enough; together:\n  {_row(verdict['together'])}", soft_wrap=True)


def _row(lever: Lever) -> str:
    return f"{lever.flag}: saves {_gib(lever.saved)} GiB{', and fits' if lever.fits else ''}"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f}"
