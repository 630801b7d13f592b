"""What an importer is: a `Shape`, and the few things that all of them need to read a row and to write it back.

Pure: rows in, rows out. A reader says what is wrong in a [`SchemaError`] that names the column; whoever knows which
row it was adds that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import SchemaError
from ..schema import competition_ranks, dense_to_competition, make_row, mark_duplicates


Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A known form of ranked (or rankable) data.

    `read` makes one ranked row of one source row, or, where `key` is given, of the list of source rows that share a
    key. `write` is its inverse: it makes the source row (or rows) again of what the ranked row says, and what it
    cannot know is kept beside the row ([`tuna_trl.data.convert.rest`]). `columns` are those that each row has; `fits`
    tells shapes with the same columns apart.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Any], Row]
    write: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    fits: Callable[[Mapping[str, Any]], bool] = lambda row: True
    key: Callable[[Mapping[str, Any]], Any] | None = None

    def matches(self, row: Mapping[str, Any]) -> bool:
        return all(column in row for column in self.columns) and self.fits(row)


def imported(
    prompt: Any,
    responses: Sequence[Mapping[str, Any]],
    *,
    method: str = "import",
    ranker: str | None = None,
    reference: str | None = None,
    source: str | None = None,
    status: str | None = None,
    hint: Mapping[str, Any] | None = None,
) -> Row:
    """A ranked row of an importer; nothing is guessed.

    Responses with a `rank` are ranked by it, else those with a `score` by that; a response with neither has no rank.
    The status is `ok` where all are ranked, `partial` where two or more are, else `failed`.

    Args:
        hint: what `write` needs beside the row; goes into its provenance.
    """
    full = [{"index": i, "source": "dataset", **response} for i, response in enumerate(responses)]
    if not full:
        raise SchemaError("there is no response.")
    if any(response.get("rank") is not None for response in full):
        known = [response for response in full if response.get("rank") is not None]
        ranks = dense_to_competition([response["rank"] for response in known])
    else:
        known = [response for response in full if response.get("score") is not None]
        ranks = competition_ranks([response["score"] for response in known])
    for response, rank in zip(known, ranks, strict=True):
        response["rank"] = rank
    for response, first in zip(full, mark_duplicates([response["content"] for response in full]), strict=True):
        response["duplicate_of"] = first
    if status is None:
        status = "ok" if len(known) == len(full) else "partial" if len(known) > 1 else "failed"
    return make_row(
        prompt,
        full,
        ranking_method=method,
        ranker=ranker,
        reference=reference,
        source=source,
        status=status,
        provenance={"hint": dict(hint)} if hint else {},
    )


def by_index(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The responses of a row in the order of their source."""
    return sorted(row["responses"], key=lambda response: response["index"])


def text(row: Mapping[str, Any], column: str) -> str:
    """A column that must hold a string."""
    value = row.get(column)
    if not isinstance(value, str):
        raise SchemaError(f"column {column!r} is {shown(value)}, expected a string.")
    return value


def optional_text(row: Mapping[str, Any], column: str) -> str | None:
    """A column that may hold a string; absent, null and NaN (pandas' null) are None."""
    value = row.get(column)
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    return text(row, column)


def optional_number(row: Mapping[str, Any], column: str) -> float | None:
    """A column that may hold a finite number; absent, null and NaN are None."""
    value = row.get(column)
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SchemaError(f"column {column!r} is {shown(value)}, expected a finite number or null.")
    return float(value)


def items(row: Mapping[str, Any], column: str, length: int | None = None) -> list[Any]:
    """A column that must hold a list, of `length` entries where one is asked for."""
    value = row.get(column)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise SchemaError(f"column {column!r} is {shown(value)}, expected a list.")
    if length is not None and len(value) != length:
        raise SchemaError(f"column {column!r} has {len(value)} entries, expected {length}: one a response.")
    return list(value)


def objects(row: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    """A column that must hold a list of objects."""
    value = items(row, column)
    if wrong := [entry for entry in value if not isinstance(entry, Mapping)]:
        raise SchemaError(f"column {column!r} holds {shown(wrong[0])}, expected objects.")
    return value


def with_input(row: Mapping[str, Any]) -> tuple[str, Row]:
    """`instruction` and the `input` that follows it after a blank line, as the prompt of an Alpaca-like row; and the
    hint by which [`without_input`] parts them."""
    instruction, more = text(row, "instruction"), optional_text(row, "input")
    if not more:
        return instruction, {}
    return f"{instruction}\n\n{more}", {"instruction_chars": len(instruction)}


def without_input(prompt: str, hint: Mapping[str, Any]) -> Row:
    """The columns `instruction` and `input` of a prompt that [`with_input`] made."""
    end = hint.get("instruction_chars")
    if end is None:
        return {"instruction": prompt, "input": ""}
    return {"instruction": prompt[:end], "input": prompt[end + 2 :]}


def is_list_of(value: Any, *fields: str) -> bool:
    """Whether a value is a non-empty list of objects that have these fields; for [`Shape.fits`]."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(entry, Mapping) and all(name in entry for name in fields) for entry in value)
    )


def shown(value: Any) -> str:
    """A value as an error shows it: its type and at most 60 characters."""
    seen = repr(value)
    return f"{type(value).__name__} {seen if len(seen) <= 60 else seen[:57] + '...'}"
