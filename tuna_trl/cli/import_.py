"""`tuna-trl import`: data of any known shape in, a ranked dataset out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import HubConfig, Revision
from .sources import one_output


def import_(
    source: Annotated[
        str, typer.Argument(help="A .jsonl(.gz), .json, .parquet or .csv file, a folder, or a dataset's Hub id.")
    ],
    output: Annotated[Path | None, typer.Argument(help="Folder of the ranked dataset.")] = None,
    output_option: Annotated[Path | None, typer.Option("--output", help="The same, by its flag.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="What the rows are (nectar, ultrafeedback, …); found by itself by default.")
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out rows that cannot be read, and count them.")] = False,
    drop_rest: Annotated[bool, typer.Option(help="Keep no columns that a ranked row has no place for.")] = False,
    revision: Revision = None,
    config: HubConfig = None,
) -> None:
    """Read other projects' data as ranked rows: preference pairs, Nectar, UltraFeedback, SHP, hh-rlhf, AlpacaEval and
    others. Nothing is guessed: a response without a score or rank stays unranked."""
    from collections import Counter

    from ..data.convert.conversion import named
    from ..data.convert.importing import imported_rows
    from ..data.convert.reading import open_rows
    from ..data.convert.shapes import find_shape
    from ..data.hub import stream_ranked
    from ..errors import InputError

    output = one_output(output, output_option)
    known = None if shape is None else find_shape(shape)
    tally: Counter[str] = Counter()
    ranks: Counter[str] = Counter()
    splits = []
    for split, rows in open_rows(source, "SRC", revision=revision, config=config).items():
        ranked = imported_rows(named(rows, split), known, skip=skip_unreadable, keep_rest=not drop_rest, tally=tally)
        first = next(ranked, None)  # a split without rows cannot be loaded again
        if first is not None:
            splits.append((split, _counted(first, ranked, ranks, split)))
    if not splits:
        raise InputError(f"SRC {source} has no row that could be read.{_skipped(tally)}")
    path = stream_ranked(splits, output)
    shapes = ", ".join(name for name in tally if not name.startswith("skipped: "))
    statuses = ", ".join(f"{name.removeprefix('status ')} {count:,}" for name, count in ranks.items() if " " in name)
    typer.echo(f"Read as {shapes}: rows by status: {statuses}; {ranks['unranked']:,} responses have no rank.")
    if skipped := _skipped(tally):
        typer.echo(skipped.strip())
    typer.echo(f"Ranked dataset written to {path}.")
    if ranks["status ok"] or ranks["status partial"]:
        typer.echo(f"Next: tuna-trl validate {path}")
    else:
        typer.echo(f"Nothing in it is ranked. Next: tuna-trl rank --teacher <model> --data {path} --output <folder>")


def _counted(
    first: dict[str, Any], rows: Iterator[dict[str, Any]], counts: Any, split: str
) -> Iterator[dict[str, Any]]:
    from itertools import chain

    from tqdm import tqdm

    for row in tqdm(chain([first], rows), desc=f"importing {split}", disable=None, delay=3.0, unit=" rows"):
        counts[f"status {row['status']}"] += 1
        counts["unranked"] += sum(response["rank"] is None for response in row["responses"])
        yield row


def _skipped(tally: Any) -> str:
    """How many rows were left out, and why, the three most frequent reasons."""
    reasons = [(name.removeprefix("skipped: "), n) for name, n in tally.most_common() if name.startswith("skipped: ")]
    if not reasons:
        return ""
    total = sum(count for _, count in reasons)
    shown = "; ".join(f"{count:,}: {reason}" for reason, count in reasons[:3])
    return f" {total:,} rows were left out. {shown}"
