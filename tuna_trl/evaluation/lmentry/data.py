"""LMentry's files, read from the user's own clone; its canary string forbids their going into training data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .tasks import ALL, CORE


@dataclass(frozen=True)
class Example:
    """One question. `metadata` holds what its scorer needs."""

    task: str
    id: str
    prompt: str
    metadata: Mapping[str, Any]

    @property
    def template(self) -> int:
        return self.metadata["template_id"]

    @property
    def answer_index(self) -> int | None:
        return self.metadata.get("answer_index")


def load_lmentry(folder: str | Path, *, limit: int | None = None, core_only: bool = False) -> list[Example]:
    """The examples of all 41 files (25 with `core_only`), as far as they are there.

    Args:
        folder: holds `<task>.json`, or a folder `data` that does.
        limit: examples of a task and template, the first ones; None: all (110,703 in 41 files).

    Raises:
        InputError: no such file there, or one that cannot be read.
    """
    root = Path(folder)
    root = root / "data" if (root / "data").is_dir() else root
    names = [name for name in (CORE if core_only else ALL) if (root / f"{name}.json").is_file()]
    if not names:
        raise InputError(
            f"No LMentry task in {root}: expected sentence_containing.json and others, as in the folder `data` of a "
            "clone of https://github.com/aviaefrat/lmentry."
        )
    return [example for name in names for example in _read(root / f"{name}.json", name, limit)]


def _read(path: Path, task: str, limit: int | None) -> list[Example]:
    kept: list[Example] = []
    seen: dict[int, int] = {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["examples"]
        for key, record in records.items():
            template = int(record["metadata"]["template_id"])
            seen[template] = seen.get(template, 0) + 1
            if limit is None or seen[template] <= limit:
                kept.append(Example(task, key, record["input"], record["metadata"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no LMentry task: {type(error).__name__}: {error}.") from None
    return kept
