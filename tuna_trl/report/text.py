"""How a value is written in the report: numbers, intervals, durations, and texts cut to a length that can be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..data.card import printable


SHOWN_CHARACTERS = 4000  # of one text; a 2 MB response is shown by its beginning


class Shown(NamedTuple):
    """A text as shown, and a note on what is not."""

    text: str
    note: str


def shown(text: Any, limit: int = SHOWN_CHARACTERS) -> Shown:
    """A foreign text made printable, and cut at `limit` characters."""
    text = "" if text is None else str(text)
    note = "" if len(text) <= limit else f"cut here; {len(text):,} characters in all"
    return Shown(printable(text[:limit]), note)


def first_line(text: str, limit: int = 110) -> str:
    """The beginning of a text on one line.

    >>> first_line("one\\n two  three", 8)
    'one two…'
    """
    line = " ".join(printable(text[: 20 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def number(value: Any, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for what is none.

    >>> number(-0.25), number(0.0, sign=True), number(None), number(float("nan"))
    ('−0.250', '0.000', '–', '–')
    """
    if not is_number(value):
        return "–"
    text = f"{value:,.{digits}f}".replace("-", "−")
    if not any(digit in text for digit in "123456789"):
        return text.lstrip("−")
    return f"+{text}" if sign and value > 0 else text


def interval(entry: Any, digits: int = 3, *, sign: bool = False) -> str:
    """The two ends of an interval, on one line (the space does not break).

    >>> interval({"mean": 0.1, "low": -0.1, "high": 0.3}, 1, sign=True)
    '[−0.1,\\xa0+0.3]'
    """
    if not is_interval(entry):
        return ""
    return f"[{number(entry['low'], digits, sign=sign)},\u00a0{number(entry['high'], digits, sign=sign)}]"


def duration(seconds: Any) -> str:
    """Seconds as people say them.

    >>> duration(3.14), duration(65), duration(7384)
    ('3.1 s', '1 min 05 s', '2 h 03 min')
    """
    if not is_number(seconds) or seconds < 0:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(entry: Any) -> bool:
    """Whether an entry has a finite mean, low and high."""
    return isinstance(entry, Mapping) and all(is_number(entry.get(name)) for name in ("mean", "low", "high"))
