"""All known shapes, and which of them some rows have: by their columns and by what stands in the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SchemaError, did_you_mean
from .alpaca_eval import ALPACA_EVAL_ANNOTATIONS, ALPACA_EVAL_LISTS, ALPACA_EVAL_OUTPUTS
from .argilla import ARGILLA, DISTILABEL_PAIRS
from .distilabel import DISTILABEL
from .hh_rlhf import HH_RLHF
from .lmops import LMOPS
from .mix_instruct import MIX_INSTRUCT
from .nectar import NECTAR
from .own import OWN, RANKED
from .pandalm import PANDALM, PANDALM_LISTS, PANDALM_TRAIN
from .preference import PREFERENCE
from .prometheus import PROMETHEUS
from .shape import Shape
from .shp import SHP
from .tuna_paper import TUNA_CONTEXTUAL, TUNA_PROBABILISTIC
from .ultrafeedback import ULTRAFEEDBACK
from .ultrafeedback_binarized import ULTRAFEEDBACK_BINARIZED


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        RANKED,
        OWN,
        PREFERENCE,
        ULTRAFEEDBACK_BINARIZED,
        ARGILLA,
        DISTILABEL_PAIRS,
        HH_RLHF,
        SHP,
        NECTAR,
        ULTRAFEEDBACK,
        MIX_INSTRUCT,
        DISTILABEL,
        TUNA_PROBABILISTIC,
        TUNA_CONTEXTUAL,
        LMOPS,
        ALPACA_EVAL_OUTPUTS,
        ALPACA_EVAL_ANNOTATIONS,
        ALPACA_EVAL_LISTS,
        PANDALM,
        PANDALM_TRAIN,
        PANDALM_LISTS,
        PROMETHEUS,
    )
}


def find_shape(name: str) -> Shape:
    """A shape by its name.

    Raises:
        SchemaError: there is none of that name.
    """
    if name not in SHAPES:
        raise SchemaError(f"`shape` is {name!r}.{did_you_mean(str(name), SHAPES)} Known shapes: {', '.join(SHAPES)}.")
    return SHAPES[name]


def detect_shape(rows: Sequence[Mapping[str, Any]], where: str = "the dataset") -> Shape:
    """The one shape that all of some first rows have.

    Args:
        where: how errors call the data.

    Raises:
        SchemaError: none or several fit; lists the known shapes and, where none does, the nearest.
    """
    found = [shape for shape in SHAPES.values() if all(shape.matches(row) for row in rows)]
    if len(found) == 1 and rows:
        return found[0]
    if len(found) > 1 and rows:
        names = ", ".join(repr(shape.name) for shape in found)
        raise SchemaError(f"{where}: the rows fit the shapes {names}; say which it is with shape=... (--shape).")
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    raise SchemaError(
        f"{where}: the columns ({', '.join(map(repr, columns)) or 'none'}) are of no known shape.{_nearest(columns)} "
        f"Known shapes: {', '.join(SHAPES)}; docs/converting.md says what each looks like. Data of another form is "
        "given `prompt` and `responses` with `scores` or `ranks`, by dataset.map."
    )


def _nearest(columns: Sequence[str]) -> str:
    """The shape that shares the largest part of its columns, a like name counting half, and what it lacks."""
    have = set(columns)

    def likeness(shape: Shape) -> float:
        missing = set(shape.columns) - have
        like = sum(bool(did_you_mean(column, have)) for column in missing)
        return 1 - (len(missing) - like / 2) / len(shape.columns)

    best = max(SHAPES.values(), key=likeness)
    if not likeness(best):
        return ""
    missing = [column for column in best.columns if column not in have]
    if not missing:
        return f" The nearest is {best.name!r}, whose columns hold something else."
    hints = [(column, did_you_mean(column, missing)) for column in columns if column not in best.columns]
    hint = next((f" For {column!r}:{text}" for column, text in hints if text), "")
    return f" The nearest is {best.name!r}, which also has {', '.join(map(repr, missing))}.{hint}"
