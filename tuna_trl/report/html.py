"""The report: one HTML file that stands by itself. No script, no request, nothing a response text could break out of.

Autoescape is on and every foreign text goes through [`tuna_trl.report.text.shown`]; a content security policy in the
file forbids what should not be there anyway. Touches only the file it writes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import BuildError, InputError
from . import sections
from .examples import before_after
from .ranked import ranked_sections
from .text import first_line
from .verdict import statements


_SHOWN_EXAMPLES = 24


def write_report(path: str | Path, *, title: str, **parts: Any) -> Path:
    """Write the report; a part that is not given, or has nothing in it, is left out.

    Args:
        path: the `.html` file; its folder is created. It is replaced only once the new one is complete.
        title, parts: see [`render_report`].

    Returns:
        the absolute path of the file.

    Raises:
        InputError: a dataset has no ranked rows, or `path` is a folder.
        BuildError: the file could not be written; an old one is left as it was.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write, as in {path / 'report.html'}.")
    _replace_file(path, render_report(title=title, **parts))
    return path


def render_report(
    *,
    title: str,
    summary: Mapping[str, Any] | None = None,
    datasets: Mapping[str, Any] | None = None,
    judgments: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    runs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    examples: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The page as text.

    Args:
        title: the heading.
        summary: `models` (name -> metric -> mean, low, high), `differences` (the same, paired to the start model),
            `length_baseline` (`longer_wins`, `shorter_wins`), `copy_baseline` (the judge's score of the prompt as an
            answer), `rows`, `seconds` (stage -> seconds), `judge`; what a demo run writes to `summary.json`.
        datasets: ranked datasets by name: a `Dataset`, its splits, or rows that are read as they come.
        judgments: judge replies by the name of their dataset.
        tokenizer: of the model to be trained on the datasets; adds token lengths.
        runs: by name the `log_history` of each run's trainer state.
        examples: held-out prompts with the answers before and after; see [`examples.before_after`].

    Raises:
        InputError: a dataset has no ranked rows.
    """
    summary = summary or {}
    shown = list(examples or [])[:_SHOWN_EXAMPLES]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=first_line(title, 200),
            version=__version__,
            judge=first_line(str(summary.get("judge") or ""), 200),
            measured=sections.counted_rows(summary.get("rows"), "evaluation "),
            statements=statements(summary),
            table=sections.model_table(summary),
            differences=sections.difference_plots(summary),
            time=sections.time_table(summary),
            runs=sections.curves(runs or {}),
            datasets=ranked_sections(datasets or {}, judgments, tokenizer),
            examples=before_after(shown),
            left_out=len(examples or []) - len(shown),
        )
    )


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("tuna_trl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _replace_file(path: Path, page: str) -> None:
    """Write beside the target and rename, so that a full disk leaves no half report."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # labels of charts and names come from outside too: a lone surrogate in one must not stop the report
            staging.write_text(page, encoding="utf-8", errors="replace", newline="\n")
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"The report {path} could not be written: {error}.") from error
