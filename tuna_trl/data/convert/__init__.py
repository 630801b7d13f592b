"""Ranked rows out of other projects' data, and back: one importer or exporter a file.

[`import_ranked`] finds out by itself which known shape rows have; `to_sft`, `to_preference`, `to_kto` and
`to_lmops` are its way back, into what trainers read, and `to_source` into what the rows were imported from. All of
them stream.
"""

from __future__ import annotations

from .importing import import_ranked
from .kto import to_kto
from .lmops import to_lmops
from .preference_export import to_preference
from .sft import to_sft
from .shapes import SHAPES, detect_shape
from .source import to_source


__all__ = [
    "SHAPES",
    "detect_shape",
    "import_ranked",
    "to_kto",
    "to_lmops",
    "to_preference",
    "to_sft",
    "to_source",
]
