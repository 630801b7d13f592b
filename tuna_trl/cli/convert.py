"""`tuna-trl convert`: ranked rows in, what another trainer reads out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import HubConfig, Revision
from .sources import one_output


TARGETS = ("sft", "preference", "kto", "lmops", "source")
_NEXT = {
    "sft": "trl sft --dataset_name {path} --model_name_or_path <model>",
    "preference": "trl dpo --dataset_name {path} --model_name_or_path <model>   (or: trl reward)",
    "kto": "trl kto --dataset_name {path} --model_name_or_path <model>",
    "lmops": "bash src/train_tuna.sh {path} 1e-5   (in microsoft/LMOps, folder tuna)",
    "source": "tuna-trl import {path} <folder>",
}


def convert(
    source: Annotated[
        str, typer.Argument(help="Ranked rows (or any known shape): a file, a folder or a dataset's Hub id.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="sft (the best response), preference (pairs), kto (good or not), lmops (the paper's code), source "
            "(what the rows were imported from)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Argument(help="A folder, or for one split a .jsonl, .json or .parquet file.")
    ] = None,
    output_option: Annotated[Path | None, typer.Option("--output", help="The same, by its flag.")] = None,
    pairs: Annotated[str, typer.Option(help="preference: best-worst, adjacent or all.")] = "best-worst",
    min_gap: Annotated[
        float | None, typer.Option(help="preference: pairs whose scores are at least so far apart.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="kto: good from this score on; default: the best rank is good, the worst is not."),
    ] = None,
    num_responses: Annotated[
        int | None, typer.Option(help="lmops: the best so many of each row; default: all, the same number in each.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="This split only.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what stands at OUTPUT.")] = False,
    revision: Revision = None,
    config: HubConfig = None,
) -> None:
    """Write ranked rows as TRL's trainers or the paper's code read them. Ties never make a pair, and only rows whose
    status is ok or partial are written."""
    from collections import Counter

    from ..data.convert.writing import write_splits
    from ..errors import InputError, did_you_mean

    if to not in TARGETS:
        raise InputError(f"--to is {to!r}, expected one of {', '.join(TARGETS)}.{did_you_mean(to, TARGETS)}")
    output = one_output(output, output_option)
    options = {"pairs": pairs, "min_gap": min_gap, "threshold": threshold, "num_responses": num_responses}
    _refuse_options_of_others(to, options)
    tally: Counter[str] = Counter()
    splits = _ranked_splits(source, split, revision, config)
    made, features = _exported(splits, to, options, tally)
    suffix = {"lmops": ".json", "source": ".jsonl"}.get(to, ".parquet")
    path, counts = write_splits(made.items(), output, features, folder_suffix=suffix, overwrite=overwrite)
    for reason, count in tally.most_common():
        if count:
            typer.echo(f"{count:,}: {reason}", err=True)
    written = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    typer.echo(f"{sum(counts.values()):,} rows ({written}) written to {path}.")
    shown = path if path.is_file() or to not in ("lmops",) else path / f"{next(iter(counts))}.json"
    typer.echo("Next: " + _NEXT[to].format(path=shown))


def _ranked_splits(source: str, split: str | None, revision: str | None, config: str | None) -> dict[str, Any]:
    """The rows by split, read as ranked ones."""
    from collections import Counter

    from ..data.convert.conversion import named
    from ..data.convert.importing import imported_rows
    from ..data.convert.reading import open_rows
    from ..errors import InputError, did_you_mean

    splits = open_rows(source, "SRC", revision=revision, config=config)
    if split is not None and split not in splits:
        known = ", ".join(map(repr, splits))
        raise InputError(f"--split {split!r}: {source} has {known}.{did_you_mean(split, splits)}")
    chosen = splits if split is None else {split: splits[split]}
    return {
        name: imported_rows(named(rows, name), None, skip=False, keep_rest=True, tally=Counter())
        for name, rows in chosen.items()
    }


def _exported(splits: dict[str, Any], to: str, options: dict[str, Any], tally: Any) -> tuple[dict[str, Any], Any]:
    """The exported rows by split, and their features (None where the rows have none of their own)."""
    from ..data import convert as exporters
    from ..data.convert import kto, lmops, preference_export, sft

    if to == "source":
        return {name: exporters.to_source(rows) for name, rows in splits.items()}, None
    if to == "sft":
        return exporters.to_sft(splits, tally=tally), sft.sft_features()
    if to == "kto":
        return exporters.to_kto(splits, threshold=options["threshold"], tally=tally), kto.kto_features()
    if to == "lmops":
        made = exporters.to_lmops(splits, num_responses=options["num_responses"], tally=tally)
        return made, lmops.lmops_features()
    made = exporters.to_preference(splits, pairs=options["pairs"], min_gap=options["min_gap"], tally=tally)
    return made, preference_export.preference_features()


def _refuse_options_of_others(to: str, options: dict[str, Any]) -> None:
    """An option that this target does not read would be thought to have worked."""
    from ..errors import InputError

    owners = {"pairs": "preference", "min_gap": "preference", "threshold": "kto", "num_responses": "lmops"}
    for name, owner in owners.items():
        if to != owner and options[name] not in (None, "best-worst"):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is for --to {owner}, and --to is {to}; leave it out.")
