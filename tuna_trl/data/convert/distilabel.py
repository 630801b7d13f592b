"""distilabel's datasets with several generations a row and a judge's ratings.

Source: `instruction`, `generations` (texts), `ratings` (numbers), `generation_models` or `model_names` (ids),
`rationales`, `model_name` (the judge), `distilabel_metadata`, in parallel lists.
Score and rank: `ratings`, higher is better, equal ones tie. A generation without a rating is unranked.
Oddities: where judging failed, `ratings` is null or holds nulls (and the column's type may be `null`); a failed
generation is null, and stands here as an empty response without a rank. distilabel splits a judge's reply at blank
lines, so that a rationale with one shifts the ratings behind it: rows with another number of ratings than of
generations are refused. Licence: the data's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import Row, Shape, by_index, imported, items, optional_number, optional_text, shown, text


_MODELS = ("generation_models", "model_names")


def _read(row: Mapping[str, Any]) -> Row:
    texts = items(row, "generations")
    if wrong := [entry for entry in texts if not isinstance(entry, str | None)]:
        raise SchemaError(f"column 'generations' holds {shown(wrong[0])}, expected strings or nulls.")
    ratings = [None] * len(texts) if row.get("ratings") is None else items(row, "ratings", len(texts))
    column = next((name for name in _MODELS if row.get(name) is not None), None)
    models = items(row, column, len(texts)) if column else [None] * len(texts)
    responses = []
    for words, rating, model in zip(texts, ratings, models, strict=True):
        score = None if words is None else optional_number({"ratings": rating}, "ratings")
        model = optional_text({column: model}, column) if column else None
        responses.append({"content": words or "", "score": score, "model": model})
    known: dict[str, Any] = {"method": "judge", "ranker": optional_text(row, "model_name")}
    return imported(text(row, "instruction"), responses, **known, hint={"models": column} if column else None)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = by_index(row)
    result = {
        "instruction": row["prompt"][0]["content"],
        "generations": [r["content"] for r in responses],
        "ratings": [r["score"] for r in responses],
        "model_name": row["ranker"],
    }
    if hint.get("models"):
        result[hint["models"]] = [r["model"] for r in responses]
    return result


DISTILABEL = Shape("distilabel", ("instruction", "generations", "ratings"), _read, _write)
