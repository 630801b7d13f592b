"""What each section of the report shows, as plain records for the template: tables, charts, rows, answers.

Reads datasets and JSON; a part that is missing is a section that is not there. Nothing here is HTML but the charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ..data.summary import RankedSummary, summarise
from ..errors import InputError
from .plots import Line, histogram, interval_plot, line_chart, range_plot
from .text import Shown, duration, first_line, interval, is_interval, is_number, number, shown
from .verdict import BASELINE_NAMES, METRIC_NAMES, START, compare, metric_name, model_name


if TYPE_CHECKING:
    from datasets import Dataset

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
_SHOWN_RESPONSES = 12  # of one row


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
            result.append({"name": name, "charts": charts})
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


def ranked_sections(datasets: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """For each ranked dataset its figures, charts and example rows."""
    return [_ranked_section(name, dataset) for name, dataset in _flat(datasets)]


def _flat(datasets: Mapping[str, Any]) -> Iterator[tuple[str, Dataset]]:
    for name, dataset in datasets.items():
        splits = dataset.items() if isinstance(dataset, Mapping) else [("", dataset)]
        for split, part in splits:
            if "responses" not in getattr(part, "column_names", ()):
                raise InputError(f"`datasets[{name!r}]` is no ranked dataset; load it with tuna_trl.load_ranked.")
            yield f"{name} {split}".strip(), part


def _ranked_section(name: str, dataset: Dataset) -> dict[str, Any]:
    s = summarise(dataset)
    facts = [f"{s.rows:,} rows", f"{s.responses:,} responses"]
    facts += [f"ranked by {ranker} ({method})" if ranker else method for method, ranker in list(s.rankers)[:3]]
    charts = [
        ("Scores", histogram(s.scores, label=f"{name}: scores", x_label="score")),
        (
            "Score gap, best to worst of a row",
            histogram(s.score_gaps, label=f"{name}: score gaps", x_label="score gap of a row"),
        ),
        (
            "Length against rank",
            range_plot(
                [(f"rank {rank}", lengths) for rank, lengths in list(s.lengths.items())[:10]],
                label=f"{name}: length against rank",
                x_label=s.length_unit,
            ),
        ),
    ]
    return {
        "name": name,
        "facts": facts,
        "charts": [Chart(title, svg) for title, svg in charts if svg],
        "length": _length_sentence(s),
        "tables": [
            _share_table("Status", s.status, s.rows),
            _share_table("Responses a row", s.num_responses, s.rows),
            _share_table("Tied responses a row", s.num_ties, s.rows),
        ],
        "examples": [_example(dataset[i], why) for i, why in _telling_rows(dataset)],
    }


def _length_sentence(s: RankedSummary) -> str:
    if s.length_rho.value is None:
        return ""
    rows = counted_rows(s.length_rho.rows)
    value = number(s.length_rho.value, 2, sign=True)
    return f"Spearman’s ρ of length and rank quality is {value} on average over {rows}; above 0, longer ranks better."


def _share_table(title: str, counts: Mapping[Any, int], total: int) -> dict[str, Any]:
    rows = [(str(value), f"{n:,}", round(100 * n / total, 1)) for value, n in counts.items()]
    return {"title": title, "rows": rows}


def _telling_rows(dataset: Dataset) -> list[tuple[int, str]]:
    """Rows worth a look, and why: the clearest and the closest ranking, the most ties, one that did not come off."""
    if not len(dataset):
        return []
    gaps = [(gap, i) for i, gap in enumerate(dataset["score_gap"]) if is_number(gap)]
    ties = list(dataset["num_ties"])
    failed = [i for i, status in enumerate(dataset["status"]) if status != "ok"]
    chosen: dict[int, str] = {}
    if gaps:
        chosen.setdefault(max(gaps, key=lambda g: g[0])[1], "largest score gap")
        if positive := [gap for gap in gaps if gap[0] > 0]:
            chosen.setdefault(min(positive)[1], "smallest score gap")
    if max(ties) > 0:
        chosen.setdefault(ties.index(max(ties)), "most ties")
    if failed:
        chosen.setdefault(failed[0], "not ranked well")
    for i in range(min(2, len(dataset))):
        chosen.setdefault(i, "from the top")
    return list(chosen.items())


def _example(row: Mapping[str, Any], why: str) -> dict[str, Any]:
    """One ranked row as it is shown: prompt, reference, responses best first."""
    responses = row["responses"]
    return {
        "title": _title(row["prompt"]),
        "why": why if row["status"] == "ok" else f"status {row['status']}",
        "prompt": _messages(row["prompt"]),
        "reference": None if row.get("reference") is None else shown(row["reference"]),
        "responses": [_response(response) for response in responses[:_SHOWN_RESPONSES]],
        "more": max(0, len(responses) - _SHOWN_RESPONSES),
    }


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    logprob, tokens = response.get("logprob"), response.get("num_tokens")
    facts = []
    if is_number(response.get("score")):
        facts.append(f"score {number(response['score'], 2)}")
    if is_number(logprob):
        mean = f"{number(logprob / tokens, 2)} nats/token" if tokens else f"{number(logprob, 1)} nats"
        facts.append(f"log-prob {mean}")
    if tokens is not None:
        facts.append(f"{tokens:,} token{'s' if tokens != 1 else ''}")
    if response.get("finish_reason") == "length":
        facts.append("cut by the sampler")
    if response.get("duplicate_of") is not None:
        facts.append("duplicate")
    rank = response.get("rank")
    return {
        "rank": "–" if rank is None else str(rank),
        "best": rank == 1,
        "model": response.get("model") or "",
        "facts": facts,
        "text": shown(response.get("content")),
    }


def before_after(examples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out prompts with the answers of the models, and ranked responses where an example has them.

    An example has `prompt` (string or messages), and any of `reference`; `answers` (model -> text, or -> a dict with
    `content` and `score`), or `before` and `after` for two answers; `responses` as in a ranked row.
    """
    result = []
    for example in examples:
        prompt = example.get("prompt", "")
        answers = dict(example.get("answers") or {})
        answers |= {name: example[name] for name in ("before", "after") if example.get(name) is not None}
        shown_answers = []
        for name, answer in answers.items():
            record = answer if isinstance(answer, Mapping) else {"content": answer}
            facts = [f"score {number(record['score'], 2)}"] if is_number(record.get("score")) else []
            shown_answers.append({"name": model_name(name), "facts": facts, "text": shown(record.get("content"))})
        result.append(
            {
                "title": _title(prompt),
                "why": "",
                "prompt": _messages(prompt),
                "reference": None if example.get("reference") is None else shown(example["reference"]),
                "answers": shown_answers,
                "responses": [_response(r) for r in (example.get("responses") or [])[:_SHOWN_RESPONSES]],
                "more": max(0, len(example.get("responses") or []) - _SHOWN_RESPONSES),
            }
        )
    return result


def _messages(prompt: Any) -> list[tuple[str, Shown]]:
    if isinstance(prompt, str):
        return [("user", shown(prompt))]
    return [(first_line(str(m.get("role", "")), 40), shown(m.get("content"))) for m in prompt]


def _title(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""
    return first_line(text) or "(empty prompt)"


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
