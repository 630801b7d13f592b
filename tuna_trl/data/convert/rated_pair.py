"""Pairs with a rating on each side: what ultrafeedback_binarized, argilla's and distilabel's
have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .preference import read_pair, write_pair
from .shape import Row, Shape, imported, optional_number, optional_text


SIDES = ("chosen", "rejected")


def rated_pair(name: str, rating: str, model: str | None, *, messages: bool = False, **known: Any) -> Shape:
    """The shape of pairs whose columns `rating` (and `model`), with the side put into `{}`, stand beside them.

    The ratings rank, so equal ones tie; where a rating is missing, `chosen` is 1 and `rejected` 2.

    Args:
        messages: whether the rows repeat `chosen` as `messages`.
        known: `method` and `ranker` of [`imported`].
    """
    ratings = [rating.format(side) for side in SIDES]
    models = [model.format(side) for side in SIDES] if model else []

    def read(row: Mapping[str, Any]) -> Row:
        prompt, texts, hint = read_pair(row)
        scores = [optional_number(row, column) for column in ratings]
        responses: list[Row] = [{"content": words, "score": s} for words, s in zip(texts, scores, strict=True)]
        for response, column in zip(responses, models, strict=False):
            response["model"] = optional_text(row, column)
        chosen, rejected = scores
        if chosen is None or rejected is None:
            responses = [{**response, "rank": rank} for rank, response in enumerate(responses, 1)]
        elif chosen < rejected:
            raise SchemaError(
                f"columns {ratings[0]!r} ({chosen}) and {ratings[1]!r} ({rejected}) say the opposite of 'chosen' "
                "and 'rejected'; nothing here says which is right."
            )
        return imported(prompt, responses, hint=hint, **known)

    def write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
        result = write_pair(row, hint)
        responses = sorted(row["responses"], key=lambda response: response["index"])
        for names, field in ((ratings, "score"), (models, "model")):
            result |= {column: r[field] for column, r in zip(names, responses, strict=False)}
        return result | ({"messages": result["chosen"]} if messages else {})

    columns = (*SIDES, *ratings)
    return Shape(name, columns, read, write)
