"""`to_source`: imported rows back in the form they were imported from, to the last column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import SchemaError
from .conversion import named
from .rest import restored
from .shapes import SHAPES


def to_source(dataset: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows that [`import_ranked`] has read, equal to what they were.

    Texts, models, scores and ranks are those of the ranked row; what it has no place for comes from its
    `provenance["rest"]` (with `keep_rest=False` it is lost). Rows whose responses have been changed since are written
    with what they now hold. Rows that were grouped (AlpacaEval's) come out group by group.

    Args:
        dataset: one split of ranked rows.

    Raises:
        SchemaError: a row was not imported, or was ranked anew since.
    """
    for where, row in named(dataset):
        provenance = row.get("provenance") or {}
        name: Any = provenance.get("imported_from")
        shape = SHAPES.get(name)
        if shape is None:
            raise SchemaError(
                f"{where}: column 'provenance' names no shape ('imported_from'), so the row was not imported or was "
                "ranked anew since. Export it with to_preference, to_sft, to_kto or to_lmops."
            )
        made = restored(shape.write(row, provenance.get("hint", {})), provenance.get("rest"))
        yield from made if shape.key else [made]
