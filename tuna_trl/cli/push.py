"""`tuna-trl push`: a ranked dataset with card, build config and report to the Hub, in one commit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that a build wrote.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub; created if it is not there.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see a new repo.")] = True,
    license: Annotated[
        str | None, typer.Option(help="The Hub's id of the licence, as cc-by-4.0; asked for on a terminal.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; created if it is not there.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the rows behind those that are there.")] = False,
    language: Annotated[list[str] | None, typer.Option(help="For the card, as en; may be repeated.")] = None,
    pretty_name: Annotated[str | None, typer.Option(help="For the card: a title.")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave report.html out.")] = False,
) -> None:
    """Push a ranked dataset: data of all configs, card, build config and report. Private unless --public. What a
    person wrote in the card stays. The token is that of `hf auth login` or HF_TOKEN."""
    from ..data.card_merge import split_card
    from ..data.ranked_source import read_card
    from ..pipelines.publish import push_to_hub

    card = read_card(folder) if folder.is_dir() else None
    if license is None and card is not None and not split_card(card)[0].get("license") and sys.stdin.isatty():
        asked = "Licence (the Hub's id, as cc-by-4.0; empty: none, or what the card on the Hub says)"
        license = typer.prompt(asked, default="", show_default=False).strip() or None
    extra = {"language": language, "pretty_name": pretty_name}
    pushed = push_to_hub(
        folder,
        repo_id,
        private=private,
        license=license,
        revision=revision,
        append=append,
        extra={name: value for name, value in extra.items() if value},
        report=not no_report,
    )
    typer.echo(f"Pushed to {pushed.url}")
    if pushed.kept:
        typer.echo(f"Sections of the card that you edited stand as they are: {', '.join(pushed.kept)}.")
    for note in pushed.notes:
        typer.echo(note)
    typer.echo(f"These rows and no others: {pushed.load_line}")
    typer.echo(f"Next: tuna-trl train --dataset_name {repo_id} --model_name_or_path <model> --output_dir <folder>")
