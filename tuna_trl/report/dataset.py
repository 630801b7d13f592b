"""The report of one ranked dataset, and of a training on it: what `tuna-trl report` writes.

The rows are gone through once, as they come. Reads the dataset, a run's JSON files and a tokenizer; writes one file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..data.card_merge import split_card
from ..data.ranked_source import RankedSource, open_ranked
from ..errors import InputError
from .html import render_report, write_report


def report_page(source: RankedSource, *, tokenizer: Any = None, run: str | Path | None = None) -> str:
    """The report as the text of a page; see [`write_dataset_report`]."""
    return render_report(**_parts(source, tokenizer, run))


def write_dataset_report(
    path_or_id: str | Path,
    output: str | Path | None = None,
    *,
    model: str | None = None,
    run: str | Path | None = None,
    revision: str | None = None,
) -> Path:
    """Write the report of a ranked dataset as one HTML file that needs nothing else.

    Args:
        path_or_id: a folder of [`tuna_trl.save_ranked`], files of your own rows, or a Hub id.
        output: the file; by default `report.html` in the dataset's folder, or here for other datasets.
        model: whose tokenizer counts the tokens (a Hub id, a folder or "embedded").
        run: the folder of a training (its trainer_state.json, or that of its last checkpoint), or of a whole run with
            a summary.json; adds the curves and what was before and after.
        revision: branch, tag or commit of a Hub dataset.

    Returns:
        the absolute path of the file.

    Raises:
        InputError: there is no such dataset, model or run; or `output` is a folder.
        SchemaError: a row is wrong; the message names it.
        BuildError: the file could not be written; an old one is left as it was.
    """
    source = open_ranked(path_or_id, revision)
    if output is None:
        folder = Path(path_or_id).expanduser()
        output = folder / "report.html" if folder.is_dir() and source.card is not None else Path("report.html")
    tokenizer = None
    if model is not None:
        from ..loading import load_tokenizer

        tokenizer = load_tokenizer(model)
    return write_report(output, **_parts(source, tokenizer, run))


def _parts(source: RankedSource, tokenizer: Any, run: str | Path | None) -> dict[str, Any]:
    titled = split_card(source.card)[0].get("pretty_name") if source.card else None
    parts = {
        "title": str(titled or source.name),
        "datasets": {"": source.splits},
        "judgments": {"": source.judgments} if source.judgments else None,
        "tokenizer": tokenizer,
    }
    return parts if run is None else parts | read_run(run)


def read_run(folder: str | Path) -> dict[str, Any]:
    """`runs`, `summary` and `examples` for the report, from what a training left in its folder.

    Raises:
        InputError: there is no such folder, nothing of a training in it, or a file that is no JSON.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"--run {folder}: there is no such folder.")
    runs = {}
    for place in [folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())]:
        name = place.name or place.resolve().name
        if not re.fullmatch(r"checkpoint-\d+", name) and (state := _trainer_state(place)) is not None:
            runs[name] = _json(state).get("log_history") or []
    summary = _json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    compared = _json(folder / "comparison.json") if (folder / "comparison.json").is_file() else {}
    if not runs and not summary:
        raise InputError(
            f"--run {folder}: nothing of a training there (trainer_state.json, checkpoint-*/trainer_state.json or "
            "summary.json)."
        )
    return {"runs": runs, "summary": summary, "examples": summary.get("examples") or compared.get("examples")}


def _trainer_state(folder: Path) -> Path | None:
    """The state of a training, else that of its last checkpoint."""
    if (folder / "trainer_state.json").is_file():
        return folder / "trainer_state.json"
    found = {}
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        if number := re.fullmatch(r"checkpoint-(\d+)", state.parent.name):
            found[int(number[1])] = state
    return found[max(found)] if found else None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} holds a {type(value).__name__}, expected an object.")
    return value
