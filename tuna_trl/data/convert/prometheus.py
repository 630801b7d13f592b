"""Lists of Prometheus' Vicuna benchmark: four models' answers with three GPT-4 scores each.

Source: `instruction`, `input`, `reference`, `rubric`, `category`, `responses` (objects with `model`, `text`,
`gpt4_scores`, `mean_score`).
Score and rank: `mean_score`, the mean of the three scores of 1 to 5 by the row's rubric; equal means tie, and many do.
`reference` (GPT-4's answer of score 5) is the reference, never ranked. Licence: Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shape import (
    Row,
    Shape,
    by_index,
    imported,
    is_list_of,
    objects,
    optional_number,
    optional_text,
    text,
    with_input,
    without_input,
)


def _read(row: Mapping[str, Any]) -> Row:
    responses = [
        {"content": text(r, "text"), "model": optional_text(r, "model"), "score": optional_number(r, "mean_score")}
        for r in objects(row, "responses")
    ]
    prompt, hint = with_input(row)
    known: dict[str, Any] = {"method": "judge", "ranker": "gpt-4", "source": optional_text(row, "category")}
    return imported(prompt, responses, **known, reference=optional_text(row, "reference") or None, hint=hint)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = [{"model": r["model"], "text": r["content"], "mean_score": r["score"]} for r in by_index(row)]
    prompt = without_input(row["prompt"][0]["content"], hint)
    return {**prompt, "reference": row["reference"], "category": row["source"], "responses": responses}


PROMETHEUS = Shape(
    "prometheus",
    ("instruction", "responses"),
    _read,
    _write,
    fits=lambda row: is_list_of(row["responses"], "text", "mean_score"),
)
