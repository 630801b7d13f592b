"""`tuna-trl init`: four questions, answered on the terminal or by flags, and a commented recipe for `tuna-trl run`.

Reads the first row of a local file of prompts or data, and asks the CUDA driver for the card's memory; loads no model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .telling import renamed


_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".jsonl.gz", ".ndjson.gz")
_DEMO = "demo:train"
_GIVEN = "given"


def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("tuna.yaml"),
    model: Annotated[
        str | None, typer.Option(help="The model to train: a Hub id, a folder or 'embedded' (SmolLM2-135M-Instruct).")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help=f"Prompts to sample on: a file, a folder, a Hub id or {_DEMO} (the default).")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Instead of --prompts: rows that have their responses, of any shape of import.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Who ranks by reading: reference, claude, openai:<model>, local:<model>, ...")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Who ranks by likelihood: a Hub id, a folder or 'embedded'.")
    ] = None,
    card: Annotated[float | None, typer.Option(min=0, help="GiB of the card that trains; 0: none, a CPU.")] = None,
    max_cost: Annotated[float, typer.Option(min=0, help="Most that a paid judge may cost, USD.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of every stage.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of everything; default: runs/ and PATH's name.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: flags and defaults.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace PATH if it is there.")] = False,
    force: Annotated[bool, typer.Option("--force", hidden=True)] = False,
) -> None:
    """Write a recipe to start from, with a comment on each line that you may want to change. Asks for model, data, who
    ranks and the card's memory, what flags do not say; without a terminal or with --yes it takes defaults."""
    from ..errors import InputError
    from .recipe_text import recipe_text

    if path.is_dir():
        raise InputError(f"PATH {path} is a folder; name the file, as {path / 'tuna.yaml'}.")
    overwrite = renamed(force, overwrite, "--force", "--overwrite")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; name another file, or replace it with --overwrite.")
    if prompts is not None and data is not None:
        raise InputError("--prompts and --data were both given: responses are sampled, or they are there already.")
    if judge is not None and teacher is not None:
        raise InputError("--judge and --teacher were both given: say who ranks.")
    ask = not yes and sys.stdin.isatty()
    model = model or (typer.prompt("1. Which model is trained (Hub id, folder)", "embedded") if ask else "embedded")
    source, ranked_as = _source(prompts, data, ask)
    ranker = _ranker(judge, teacher, _default_ranker(source, ranked_as, model), ranked_as, ask)
    if card is None:
        card = _this_card()
        if ask:
            card = typer.prompt("4. GiB of the card that trains (0: none)", f"{card:g}", type=float)
    if not 0 <= card < float("inf"):
        raise InputError(f"--card is {card:g}; give the card's memory in GiB, such as 24, or 0 for none.")
    text = recipe_text(
        path=path,
        output=str(output or Path("runs") / path.stem),
        model=model,
        source=source,
        ranked_as=ranked_as,
        ranker=ranker,
        card=card,
        max_cost=max_cost,
        seed=seed,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if overwrite else "x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"Written: {path}. Look it over; each line says what it is for.")
    typer.echo(f"Next: tuna-trl run {path} --dry-run   (then without --dry-run)")


def _source(prompts: str | None, data: str | None, ask: bool) -> tuple[str, str | None]:
    """(the name of prompts or data, what its rows hold: None for prompts, else "ranked" or "unranked")."""
    name = data or prompts
    if name is None:
        words = "2. Prompts, or rows that have their responses (file, folder, Hub id)"
        name = typer.prompt(words, _DEMO) if ask else _DEMO
    flag = "--data" if data is not None else "--prompts"
    row = _first_row(name, flag)
    responses = row is not None and bool(
        {"responses", "outputs", "answers", "completions", "chosen", "chosen_response", "completion_a"} & set(row)
    )
    if data is None and (prompts is not None or not responses):
        return name, None
    if row is None:
        return name, "ranked"
    ranks = {"scores", "score", "ranks", "rank", "chosen", "rankings", "overall_score", "status"} & set(row)
    inside = next(iter(row.get("responses") or row.get("answers") or row.get("completions") or ()), None)
    if isinstance(inside, dict):
        ranks |= {key for key in ("score", "rank", "overall_score") if inside.get(key) is not None}
    return name, "ranked" if ranks else "unranked"


def _first_row(name: str, flag: str) -> dict[str, Any] | None:
    """The first row of a local file; None of what is not to be read here (a folder, the Hub)."""
    from ..errors import InputError

    path = Path(name).expanduser()
    if name.startswith("demo:") or not name.lower().endswith(_FILES):
        return None
    if not path.is_file():
        raise InputError(f"{flag} {name}: there is no such file.")
    from .sources import load_data

    row = next(iter(next(iter(load_data(name, flag).values()))), None)
    if row is None:
        raise InputError(f"{flag} {name}: the file has no row.")
    return dict(row)


def _default_ranker(source: str, ranked_as: str | None, model: str) -> str:
    """Free of charge and without a key."""
    if ranked_as == "ranked":
        return _GIVEN
    row = _first_row(source, "--prompts")
    if source.startswith("demo:") or (row is not None and row.get("reference")):
        return "reference"
    return f"teacher:{model}"


def _ranker(judge: str | None, teacher: str | None, default: str, ranked_as: str | None, ask: bool) -> str:
    """`given`, `teacher:<model>`, or a judge's name, which is checked."""
    from ..clients.judges import judge_options
    from ..errors import InputError

    if teacher is not None:
        name = f"teacher:{teacher}"
    elif judge is not None:
        name = judge
    elif ask:
        known = "given (the data's own scores), " if ranked_as else ""
        words = f"3. Who ranks: {known}reference, claude, openai:<model>, local:<model>, teacher:<model>"
        name = typer.prompt(words, default)
    else:
        name = default
    if name == _GIVEN:
        if ranked_as is None:
            raise InputError("Who ranks is 'given', and prompts have no responses yet; name a judge or a teacher.")
        return name
    if name.startswith("teacher:"):
        model = name.removeprefix("teacher:").strip()
        if not model:
            raise InputError("--teacher names no model; give a Hub id, a folder or 'embedded'.")
        if model.lower().split("/")[-1].startswith("claude") and not Path(model).exists():
            raise InputError(f"--teacher {model}: Claude's API tells no log-probabilities; use --judge {model}.")
        return name
    judge_options(name)  # an unknown name is refused, with the nearest
    return name


def _this_card() -> float:
    """GiB of the CUDA device, 0 without one."""
    import torch

    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if torch.cuda.is_available() else 0.0
