"""openbmb/UltraFeedback: four responses a prompt, rated by GPT-4 in four aspects.

Source: `source`, `instruction`, `models`, `completions` (objects with `model`, `response`, `annotations` by aspect
with a `Rating`, `fine-grained_score`, `overall_score`, `critique`, `custom_system_prompt`, `principle`),
`correct_answers`, `incorrect_answers`.
Score and rank: `fine-grained_score`, the mean of the four aspects' ratings, 1 to 5; where a file has none, that
mean, if all aspects are rated. Equal scores tie. `overall_score` is not used: in files of before December 2023 a
critique's rating of 1 was read as 10 in some 2,000 rows (OpenBMB/UltraFeedback#8), and nothing in a row tells
which.
Oddities: ratings are strings, "N/A" among them (then the response is unranked); the fields of an aspect differ;
each completion had a system prompt of its own, which is no part of the prompt here but kept. Licence: MIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import Row, Shape, by_index, imported, is_list_of, objects, optional_number, optional_text, shown, text


def _score(completion: Mapping[str, Any]) -> float | None:
    """`fine-grained_score`, or the mean of all aspects; None if one of them has no number."""
    given = optional_number(completion, "fine-grained_score")
    if given is not None or not completion.get("annotations"):
        return given
    aspects = completion["annotations"]
    if not isinstance(aspects, Mapping):
        raise SchemaError(f"column 'completions': 'annotations' is {shown(aspects)}, expected an object.")
    ratings = [_rating(aspect) for aspect in aspects.values() if aspect is not None]
    known = [rating for rating in ratings if rating is not None]
    return sum(known) / len(known) if known and len(known) == len(ratings) else None


def _rating(aspect: Any) -> float | None:
    value: Any = aspect.get("Rating") if isinstance(aspect, Mapping) else None
    try:
        return float(value)
    except (TypeError, ValueError):  # "N/A", or nothing
        return None


def _read(row: Mapping[str, Any]) -> Row:
    responses = [
        {"content": text(c, "response"), "model": optional_text(c, "model"), "score": _score(c)}
        for c in objects(row, "completions")
    ]
    prompt, source = text(row, "instruction"), optional_text(row, "source")
    return imported(prompt, responses, method="judge", ranker="gpt-4", source=source)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    completions = [
        {"model": r["model"], "response": r["content"], "fine-grained_score": r["score"]} for r in by_index(row)
    ]
    return {
        "source": row["source"],
        "instruction": row["prompt"][0]["content"],
        "models": [completion["model"] for completion in completions],
        "completions": completions,
    }


ULTRAFEEDBACK = Shape(
    "ultrafeedback",
    ("instruction", "completions"),
    _read,
    _write,
    fits=lambda row: is_list_of(row["completions"], "response"),
)
