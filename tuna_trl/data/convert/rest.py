"""What a ranked row has no place for: the difference between a source row and what `write` makes of the ranked row.

It is kept as JSON in `provenance["rest"]`, so that an import can be undone to the last column and no text is stored
twice. `restored(made, difference(source, made)) == source` for all JSON values.

    null                          equal
    {"is": value}                 another value
    {"of": {key: difference}, "gone": [key]}     an object with other entries, and entries that the source lacks
    {"at": {"3": difference}}     a list of the same length with other entries
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SchemaError


# JSON knows no NaN, which pandas writes for null; and the decoder of `datasets.Json` reads 0.7 as 0.7000000000000001
_FLOAT = "$float"


def difference(source: Any, made: Any, where: str = "the row") -> dict[str, Any] | None:
    """What has to be put over `made` to have `source`; None where nothing has to.

    Raises:
        SchemaError: the difference holds a value that JSON cannot hold, such as a date.
    """
    if isinstance(source, Mapping) and isinstance(made, Mapping):
        of = {}
        for key, value in source.items():
            if not isinstance(key, str):
                raise SchemaError(f"{where} has the key {key!r}, which is no string.")
            if key not in made:
                of[key] = {"is": _encoded(value, key)}
            elif (below := difference(value, made[key], key)) is not None:
                of[key] = below
        gone = [key for key in made if key not in source]
        result = {"of": of} | ({"gone": gone} if gone else {})
        return result if of or gone else None
    if _is_list(source) and _is_list(made) and len(source) == len(made):
        found = [difference(a, b, where) for a, b in zip(source, made, strict=True)]
        at = {str(i): below for i, below in enumerate(found) if below is not None}
        return {"at": at} if at else None
    if source == made and isinstance(source, bool) == isinstance(made, bool):
        return None
    return {"is": _encoded(source, where)}


def restored(made: Any, rest: Mapping[str, Any] | None) -> Any:
    """`made` with a [`difference`] put over it; changes neither."""
    if rest is None:
        return made
    if "is" in rest:
        return _decoded(rest["is"])
    if "at" in rest:
        return [restored(value, rest["at"].get(str(i))) for i, value in enumerate(made)]
    result = {key: value for key, value in made.items() if key not in rest.get("gone", ())}
    for key, below in rest["of"].items():
        result[key] = restored(result.get(key), below)
    return result


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _encoded(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encoded(below, where) for key, below in value.items()}
    if _is_list(value):
        return [_encoded(below, where) for below in value]
    if isinstance(value, float):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    raise SchemaError(
        f"column {where!r} holds a {type(value).__name__}, which has no place in a ranked row. Mend it with "
        f"dataset.remove_columns({where!r}), or import with keep_rest=False."
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {_FLOAT}:
            return float(value[_FLOAT])
        return {key: _decoded(below) for key, below in value.items()}
    return [_decoded(below) for below in value] if _is_list(value) else value
