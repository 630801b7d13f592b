"""What each section of the report shows, as plain records for the template: tables, charts, rows, answers.

Reads JSON; a part that is missing is a section that is not there. Nothing here is HTML but the charts. Datasets:
[`tuna_trl.report.ranked`]; rows and answers: [`tuna_trl.report.examples`].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from .plots import Line, interval_plot, line_chart
from .text import duration, first_line, interval, is_interval, is_number, number
from .verdict import BASELINE_NAMES, METRIC_NAMES, START, compare, metric_name, model_name


_NOTES = {
    "start": "before training",
    "tuna_p": "after probabilistic ranking",
    "tuna": "after contextual ranking as well",
}
# key in the log history, title of the chart, value of chance
_CURVES = (
    ("loss", "Loss", None),
    ("rank/accuracy", "Rank accuracy", 0.5),
    ("logps/best", "Log-prob of best response, nats/token", None),
)


@dataclass(frozen=True)
class Chart:
    """An SVG with its title; `legend` names the lines where there are several, `broken` counts values not drawn."""

    title: str
    svg: Markup
    legend: list[str] = field(default_factory=list)
    broken: int = 0


def model_table(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The comparison table: columns are metrics, rows are models, then the rules that need no model."""
    models = {name: metrics for name, metrics in (summary.get("models") or {}).items() if metrics}
    found = {metric for metrics in models.values() for metric, entry in metrics.items() if is_interval(entry)}
    if not found:
        return None
    metrics = [m for m in METRIC_NAMES if m in found] + sorted(found - set(METRIC_NAMES))
    rows = []
    for name, values in models.items():
        cells = []
        for metric in metrics:
            kind = "" if name == START else compare(summary, name, metric)[0]
            cells.append(_cell(values.get(metric)) | {"kind": kind})
        rows.append({"name": model_name(name), "note": _NOTES.get(name, ""), "cells": cells, "rule": False})
    for name, of, entry in _rules(summary):
        if of in metrics:
            cells = [_cell(entry if metric == of else None) | {"kind": ""} for metric in metrics]
            rows.append({"name": name, "note": "a rule, no model", "cells": cells, "rule": True})
    heads = [(metric_name(m), _row_count([values.get(m) for values in models.values()])) for m in metrics]
    return {"metrics": heads, "known": found & set(METRIC_NAMES), "rows": rows}


def _rules(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """What needs no model: name, the metric it has a figure in, the figure."""
    for key, entry in (summary.get("length_baseline") or {}).items():
        if is_interval(entry):
            yield f"Prefer {BASELINE_NAMES.get(key, key)}", "rank_accuracy", entry
    if is_interval(summary.get("copy_baseline")):
        yield "Copy the prompt", "judge_score", summary["copy_baseline"]


def difference_plots(summary: Mapping[str, Any]) -> list[Chart]:
    """For each metric the paired differences to the start model, as intervals around 0."""
    differences = summary.get("differences") or {}
    metrics = dict.fromkeys([*METRIC_NAMES, *(m for of_model in differences.values() for m in of_model or {})])
    result = []
    for metric in metrics:
        entries: list[tuple[str, Any]]
        entries = [(model_name(model), (of_model or {}).get(metric)) for model, of_model in differences.items()]
        rows = [(name, e["mean"], e["low"], e["high"]) for name, e in entries if is_interval(e)]
        if rows:
            title = f"Difference in {metric_name(metric)}"
            result.append(Chart(title, interval_plot(rows, label=title, reference=0.0)))
    return result


def time_table(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """How long each stage took, with its share of the whole for a bar."""
    seconds = {stage: s for stage, s in (summary.get("seconds") or {}).items() if is_number(s) and s >= 0}
    if not seconds:
        return None
    longest = max(seconds.values()) or 1.0
    rows = [(stage.replace("_", " "), duration(s), round(100 * s / longest, 1)) for stage, s in seconds.items()]
    return {"rows": rows, "total": duration(sum(seconds.values()))}


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The training curves of each run, from its log history."""
    result = []
    for name, history in runs.items():
        charts = []
        for key, title, chance in _CURVES:
            lines = _lines(history, key)
            svg = line_chart(lines, label=f"{name}: {title}", reference=chance)
            if svg:
                legend = [line.name for line in lines] if len(lines) > 1 else []
                charts.append(Chart(title, svg, legend, _broken(history, key)))
        if charts:
            result.append({"name": first_line(name, 120), "charts": charts})
    return result


def _lines(history: Sequence[Mapping[str, Any]], key: str) -> list[Line]:
    """The training line of a metric, then one for each evaluation set that logged it (`eval_test_rank/accuracy`)."""
    names = dict.fromkeys(k for entry in history for k in entry if k.startswith("eval_") and k.endswith(f"_{key}"))
    lines = []
    for logged in (key, *names):
        points = [(e.get("step", e.get("epoch")), e[logged]) for e in history if logged in e]
        points = [(float(x), float(y)) for x, y in points if is_number(x) and is_number(y)]
        if points:
            name = "training" if logged == key else logged.removesuffix(f"_{key}").replace("_", " ", 1)
            lines.append(Line("evaluation" if name == "eval" else name, points, dots=logged != key))
    return lines


def _broken(history: Sequence[Mapping[str, Any]], key: str) -> int:
    """Logged values that are not finite, and therefore not drawn."""
    return sum(1 for entry in history if key in entry and not is_number(entry[key]))


def _cell(entry: Any) -> dict[str, str]:
    return {"mean": number(entry["mean"]) if is_interval(entry) else "", "interval": interval(entry)}


def _row_count(entries: Sequence[Any]) -> str:
    """Over how many rows a metric was measured, where the intervals say so and agree."""
    counts = {entry.get("rows") for entry in entries if is_interval(entry)}
    return counted_rows(*counts) if len(counts) == 1 else ""


def counted_rows(count: Any, kind: str = "") -> str:
    """A number of rows in words; empty when it is none.

    >>> counted_rows(1200, "evaluation "), counted_rows(1), counted_rows(None)
    ('1,200 evaluation rows', '1 row', '')
    """
    return f"{count:,} {kind}row{'s' if count != 1 else ''}" if is_number(count) else ""
