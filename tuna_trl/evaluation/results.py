"""What an evaluation found, for machines (JSON) and people (Markdown): figures with intervals, tables, differences.

Files are written beside their place and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from .ranking import Interval, paired_interval


@dataclass(frozen=True)
class Table:
    """Rows under a header; a cell is text, a number or None (shown as a dash)."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Scores:
    """One model on one benchmark.

    Args:
        figures: name -> mean and interval, the ones to look at first.
        values: name -> one value a row (None: left out), for paired differences between models.
        tables: breakdowns.
        details: more, as JSON.
        records: one a row, for the predictions file.
    """

    figures: dict[str, Interval]
    values: dict[str, list[float | None]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ModelScores:
    """A model, what identifies it, and its scores."""

    name: str
    model: Mapping[str, Any]
    scores: Scores


@dataclass
class Evaluation:
    """All models on one benchmark; the first is the one that the others are held against.

    `units`: name of a figure -> what it is in ("%"); `baselines`: figures that need no model.
    """

    benchmark: str
    settings: dict[str, Any]
    models: list[ModelScores]
    baselines: dict[str, dict[str, float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def differences(self) -> dict[str, dict[str, Interval]]:
        """Model -> figure -> paired difference to the first model, over the rows that both have."""
        first, *others = self.models
        return {
            other.name: {
                name: paired_interval(other.scores.values[name], values)
                for name, values in first.scores.values.items()
                if name in other.scores.values
            }
            for other in others
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "tuna_trl": __version__,
            "settings": self.settings,
            "models": [
                {
                    "name": one.name,
                    "model": dict(one.model),
                    "figures": {name: value.to_json() for name, value in one.scores.figures.items()},
                    "tables": [
                        {"title": t.title, "header": list(t.header), "rows": [list(row) for row in t.rows]}
                        for t in one.scores.tables
                    ],
                    **one.scores.details,
                }
                for one in self.models
            ],
            "differences_to_first": {
                name: {figure: value.to_json() for figure, value in of.items()}
                for name, of in self.differences().items()
            },
            "baselines": self.baselines,
            "notes": self.notes,
        }

    def to_markdown(self) -> str:
        """The figures of all models side by side, differences to the first, then each model's tables."""
        parts = [f"# {self.benchmark}\n", _markdown_table(_overview(self))]
        if differences := self.differences():
            rows = tuple(
                (name, *(_with_interval(of.get(figure), sign=True) for figure in _names(differences.values())))
                for name, of in differences.items()
            )
            title = f"Difference to {self.models[0].name}, row by row"
            parts.append(_markdown_table(Table(title, ("model", *_names(differences.values())), rows)))
        parts += [f"- {note}" for note in self.notes]
        if self.notes:
            parts.append("")
        for one in self.models:
            if one.scores.tables:
                parts.append(f"## {_cell(one.name)}\n")
                parts += [_markdown_table(table) for table in one.scores.tables]
        settings = tuple((name, _plain(value)) for name, value in self.settings.items())
        parts.append(_markdown_table(Table("Settings", ("setting", "value"), settings)))
        return "\n".join(parts)


def write_results(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write `results.json`, `results.md` and `predictions/<model>.jsonl`.

    Returns:
        the folder.
    """
    target = Path(folder)
    (target / "predictions").mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for one in evaluation.models:
        if one.scores.records:
            name = file_name(one.name.removesuffix(".jsonl"))
            while name in taken:  # "a/b" and "a-b"
                name += "+"
            taken.add(name)
            write_jsonl(target / "predictions" / f"{name}.jsonl", one.scores.records)
    write_text(target / "results.json", json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_text(target / "results.md", evaluation.to_markdown())
    return target


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """The whole file or none of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_name(name: str) -> str:
    """A model's name as the name of a file.

    >>> file_name("org/model + runs/one")
    'org-model-+-runs-one'
    """
    kept = "".join(c if c.isalnum() or c in "._+" else "-" for c in name).strip("-.")
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept[-120:] or "model"


def _overview(evaluation: Evaluation) -> Table:
    names = _names(one.scores.figures for one in evaluation.models)
    rows: list[tuple[Any, ...]]
    rows = [(one.name, *(_with_interval(one.scores.figures.get(name)) for name in names)) for one in evaluation.models]
    rows += [
        (f"{name} (no model)", *(values.get(figure) for figure in names))
        for name, values in evaluation.baselines.items()
    ]
    return Table("Figures, with 95 % intervals", ("model", *names), tuple(rows))


def _names(columns: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for column in columns for name in column))


def _with_interval(value: Interval | None, sign: bool = False) -> str | None:
    if value is None or value.mean is None:
        return None
    plus = "+" if sign else ""
    return f"{value.mean:{plus}.3f} [{value.low:{plus}.3f}, {value.high:{plus}.3f}]"


def _markdown_table(table: Table) -> str:
    lines = [f"**{table.title}**\n", _line(table.header), _line(["---"] * len(table.header))]
    return "\n".join([*lines, *(_line([_cell(cell) for cell in row]) for row in table.rows), ""])


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
