"""AlpacaEval: models' outputs, a judge's annotations of them against a baseline, and lists made of both.

Outputs. Source: `instruction`, `output`, `generator`, `dataset`; one answer a row. The answers to one instruction,
of one file or of several put together, become one row; nothing ranks them (status `failed`: let a teacher or judge
do it).

Annotations. Source: `instruction`, `output_1` (the baseline's), `output_2`, `generator_1`, `generator_2`,
`annotator`, `preference`: 1 the first is better, 2 the second, 1.5 (older files: 0) a draw, between them in
AlpacaEval 2, null where the judge's reply could not be read. Rows with the same instruction, baseline and annotator
become one row. Score: `preference` - 1, the probability that the response beats the baseline, which itself has 0.5;
equal scores tie. It orders models by how they fare against the baseline, never against each other. Oddities: where
every model loses to a strong baseline, scores are tiny and near each other: prefer pairs with a gap. The baseline's
output is that of the first row of a group. A released file may hold another model's annotations (falcon-7b's is
falcon-40b's).

Lists (`responses` with `model`, `text`, `gpt4turbo_pref`). Score: `gpt4turbo_pref`, as above.
Licence: code Apache-2.0, data CC BY-NC 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import (
    Row,
    Shape,
    by_index,
    imported,
    is_list_of,
    objects,
    optional_number,
    optional_text,
    shown,
    text,
    with_input,
    without_input,
)


def _question(row: Mapping[str, Any]) -> list[Any]:
    return [row["instruction"], optional_text(row, "input") or ""]


def _read_outputs(rows: list[Mapping[str, Any]]) -> Row:
    responses = [{"content": text(row, "output"), "model": optional_text(row, "generator")} for row in rows]
    prompt, hint = with_input(rows[0])
    return imported(prompt, responses, source=optional_text(rows[0], "dataset"), hint=hint)


def _write_outputs(row: Mapping[str, Any], hint: Mapping[str, Any]) -> list[Row]:
    prompt = without_input(row["prompt"][0]["content"], hint)
    return [
        {**prompt, "output": r["content"], "generator": r["model"], "dataset": row["source"]} for r in by_index(row)
    ]


def _preference(row: Mapping[str, Any]) -> float | None:
    """How probable it is that the second output is better; None if the judge did not say."""
    value = optional_number(row, "preference")
    if value is None:
        return None
    if value != 0 and not 1 <= value <= 2:
        raise SchemaError(f"column 'preference' is {shown(value)}, expected a number from 1 to 2, 0 or null.")
    return 0.5 if value == 0 else value - 1


def _read_annotations(rows: list[Mapping[str, Any]]) -> Row:
    first = rows[0]
    responses = [{"content": text(first, "output_1"), "model": optional_text(first, "generator_1"), "score": 0.5}]
    for row in rows:
        model = optional_text(row, "generator_2")
        responses.append({"content": text(row, "output_2"), "model": model, "score": _preference(row)})
    prompt, hint = with_input(first)
    known: dict[str, Any] = {
        "method": "judge",
        "ranker": optional_text(first, "annotator"),
        "source": optional_text(first, "dataset"),
    }
    return imported(prompt, responses, **known, hint=hint)


def _write_annotations(row: Mapping[str, Any], hint: Mapping[str, Any]) -> list[Row]:
    baseline, *others = by_index(row)
    shared = {
        **without_input(row["prompt"][0]["content"], hint),
        "output_1": baseline["content"],
        "generator_1": baseline["model"],
        "annotator": row["ranker"],
        "dataset": row["source"],
    }
    return [
        {
            **shared,
            "output_2": other["content"],
            "generator_2": other["model"],
            "preference": None if other["score"] is None else 1 + other["score"],
        }
        for other in others
    ]


def _read_list(row: Mapping[str, Any]) -> Row:
    responses = [
        {"content": text(r, "text"), "model": optional_text(r, "model"), "score": optional_number(r, "gpt4turbo_pref")}
        for r in objects(row, "responses")
    ]
    prompt, hint = with_input(row)
    known: dict[str, Any] = {
        "method": "judge",
        "ranker": "weighted_alpaca_eval_gpt4_turbo",
        "source": optional_text(row, "dataset"),
    }
    return imported(prompt, responses, **known, hint=hint)


def _write_list(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = [{"model": r["model"], "text": r["content"], "gpt4turbo_pref": r["score"]} for r in by_index(row)]
    return {**without_input(row["prompt"][0]["content"], hint), "dataset": row["source"], "responses": responses}


ALPACA_EVAL_OUTPUTS = Shape(
    "alpaca_eval_outputs",
    ("instruction", "output", "generator"),
    _read_outputs,
    _write_outputs,
    fits=lambda row: isinstance(row["output"], str),
    key=_question,
)
ALPACA_EVAL_ANNOTATIONS = Shape(
    "alpaca_eval_annotations",
    ("instruction", "output_1", "output_2", "preference"),
    _read_annotations,
    _write_annotations,
    key=lambda row: [*_question(row), row.get("generator_1"), row.get("annotator")],
)
ALPACA_EVAL_LISTS = Shape(
    "alpaca_eval_lists",
    ("instruction", "responses"),
    _read_list,
    _write_list,
    fits=lambda row: is_list_of(row["responses"], "text", "gpt4turbo_pref"),
)
