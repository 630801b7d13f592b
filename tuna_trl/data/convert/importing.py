"""`import_ranked`: rows of any known shape in, ranked rows out, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

from ...errors import InputError, SchemaError
from ..schema import ranked_features
from .conversion import NamedRow, converted
from .grouping import grouped
from .rest import difference
from .shape import Shape
from .shapes import detect_shape, find_shape


_FIRST = 100  # rows that are looked at for their shape


def import_ranked(
    dataset: Any,
    shape: str | None = None,
    *,
    on_error: str = "raise",
    keep_rest: bool = True,
    tally: Counter[str] | None = None,
) -> Any:
    """Rows of a known shape as ranked rows. Nothing is guessed: a response without a score or rank is unranked.

    Args:
        dataset: a `Dataset`, an `IterableDataset`, a `DatasetDict`, or any iterable of rows. Of an iterable the first
            hundred rows are read at once, the others as the result is.
        shape: a name of [`tuna_trl.data.convert.SHAPES`]; by default found by columns and first rows.
        on_error: "raise", or "skip": rows that cannot be read are left out and counted.
        keep_rest: keep in `provenance["rest"]` what a ranked row has no place for, so that [`to_source`] gives the
            source rows back.
        tally: counts the rows read by shape, and those skipped, by reason.

    Returns:
        ranked rows with the columns of [`tuna_trl.ranked_features`] (explicit in a `Dataset` or `IterableDataset`): a
        `Dataset` for a `Dataset`, and so on; an iterator for any other iterable. `provenance["imported_from"]` names
        the shape.

    Raises:
        SchemaError: no shape fits or several do (the message lists the known ones), or a row is wrong (row and column
            are named).
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"`on_error` is {on_error!r}, expected 'raise' or 'skip'.")
    known = None if shape is None else find_shape(shape)
    tally = Counter() if tally is None else tally

    def convert(rows: Iterator[NamedRow]) -> Iterator[dict[str, Any]]:
        return imported_rows(rows, known, skip=on_error == "skip", keep_rest=keep_rest, tally=tally)

    return converted(dataset, convert, ranked_features)


def imported_rows(
    rows: Iterator[NamedRow], shape: Shape | None, *, skip: bool, keep_rest: bool, tally: Counter[str]
) -> Iterator[dict[str, Any]]:
    """As [`import_ranked`], of rows with names; the shape is found before anything is returned."""
    rows = iter(rows)
    first = list(islice(rows, _FIRST))
    for where, row in first:
        _require_object(row, where)
    if shape is None and first:
        shape = detect_shape([row for _, row in first], f"{first[0][0]} and those behind it")
    return _read_all(chain(first, rows), shape, skip, keep_rest, tally)


def _read_all(
    rows: Iterator[NamedRow], shape: Shape | None, skip: bool, keep_rest: bool, tally: Counter[str]
) -> Iterator[dict[str, Any]]:
    if shape is None:  # no rows
        return
    units = grouped(_keyed(rows, shape), shape.key) if shape.key else rows
    for where, source in units:
        try:
            row = _read(source, shape, where, keep_rest)
        except SchemaError as error:
            if not skip:
                raise
            tally[f"skipped: {str(error).removeprefix(f'{where}: ')}"] += 1
            continue
        tally[shape.name] += 1
        yield row


def _keyed(rows: Iterator[NamedRow], shape: Shape) -> Iterator[NamedRow]:
    """Rows that have the columns that a key is made of."""
    for where, row in rows:
        _require_columns(row, shape, where)
        yield where, row


def _read(source: Any, shape: Shape, where: str, keep_rest: bool) -> dict[str, Any]:
    if not shape.key:
        _require_columns(source, shape, where)
    try:
        row = shape.read(source)
        if shape.name == "ranked":
            return row
        hint = row["provenance"].get("hint", {})
        provenance = {"imported_from": shape.name} | ({"hint": hint} if hint else {})
        if keep_rest and (rest := difference(source, shape.write(row, hint))) is not None:
            provenance["rest"] = rest
    except SchemaError as error:
        message = str(error).removeprefix("row: ").removeprefix("row 0: ")
        raise SchemaError(f"{where}: {message} (read as the shape {shape.name!r})") from None
    return {**row, "provenance": provenance}


def _require_object(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise SchemaError(f"{where}: a row must be an object, got {type(row).__name__} {row!r:.60}.")


def _require_columns(row: Any, shape: Shape, where: str) -> None:
    _require_object(row, where)
    if not shape.matches(row):
        missing = [column for column in shape.columns if column not in row]
        what = f"column {missing[0]!r} is missing" if missing else "the columns hold something else than in the others"
        raise SchemaError(f"{where}: {what}; it is not of the shape {shape.name!r}.")
