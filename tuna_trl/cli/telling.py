"""What a command says: words on stdout, or with `--json` one object there and the words on stderr.

Also the flags of earlier versions, which still work and say what they are called now.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer


def tell(text: str, as_json: bool = False) -> None:
    """A line for people, out of the way of the JSON."""
    typer.echo(text, err=as_json)


def print_json(record: Any) -> None:
    """The one object on stdout: numbers that JSON has no word for (inf, NaN) as null, paths as text."""
    typer.echo(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False, indent=1))


def renamed(old: bool, new: bool, was: str, now: str) -> bool:
    """A switch under its old or its new name; the old one says, on stderr, what it is called now.

    Args:
        old, new: whether each was given.
        was, now: `--force`, `--overwrite`.
    """
    if old:
        typer.echo(f"{was} is deprecated and will be gone in version 0.2; it is called {now} now.", err=True)
    return old or new


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
