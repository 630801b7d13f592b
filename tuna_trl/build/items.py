"""The prompts of a build: a user's rows read into plain records, each checked before anything is sampled or spent.

Rows are read one at a time; of a prompt that has gone by, eight bytes of its hash are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..data.schema import Messages, as_messages, prompt_id
from ..errors import InputError, SchemaError, did_you_mean


@dataclass(frozen=True)
class PromptItem:
    """One prompt to answer. `occurrence` counts equal prompts (0, 1, ...), so that each gets samples of its own."""

    prompt: Messages
    prompt_id: str
    occurrence: int
    reference: str | None
    source: str | None


def as_splits(prompts: Any) -> dict[str, Iterable[Any]]:
    """Prompts as named splits: a DatasetDict (or a dict of row lists) by its names, anything else as `train`.

    Args:
        prompts: a Dataset, an IterableDataset, a list of rows, or a dict of them.

    Raises:
        InputError: something else, or nothing.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
        raise InputError(
            f"`prompts` must be a Dataset, a DatasetDict or a list of rows with a column 'prompt', got "
            f"{type(prompts).__name__}. One prompt is passed as [{{'prompt': ...}}]."
        )
    splits = dict(prompts) if isinstance(prompts, Mapping) else {"train": prompts}
    if not splits:
        raise InputError("`prompts` has no splits.")
    for name, rows in splits.items():
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise InputError(
                f"`prompts[{name!r}]` must be a Dataset or a list of rows, got {type(rows).__name__}. "
                "A single row is passed as a list of one row."
            )
    return splits


def read_items(rows: Iterable[Any], *, limit: int | None = None) -> Iterator[PromptItem]:
    """The rows of one split as items, one at a time, at most the first `limit`.

    Columns: `prompt` (a string or messages that end with the user's turn), `reference` and `source` (strings or None)
    if there are any; others are ignored.

    Raises:
        SchemaError: naming the row, the column, what was found and what mends it.
        InputError: there are no rows.
    """
    # Memory: a set of 64-bit integers (about 80 bytes an entry), not of prompts. Should two prompts share theirs
    # (2.7e-8 among a million), the second has occurrence 1 instead of 0, in every build alike, which harms nothing.
    seen: set[int] = set()
    again: Counter[int] = Counter()
    i = -1
    for i, row in enumerate(islice(rows, limit)):
        prompt = _prompt(row, f"row {i}")
        key = prompt_id(prompt)
        texts = {name: _optional_text(row, name, f"row {i}") for name in ("reference", "source")}
        short = int(key[:16], 16)
        if short in seen:
            again[short] += 1
        seen.add(short)
        yield PromptItem(prompt, key, again[short] if short in again else 0, **texts)
    if i < 0:
        raise InputError("`prompts` has no rows, so there is nothing to sample.")


def prompt_items(rows: Iterable[Any], *, limit: int | None = None) -> list[PromptItem]:
    """The items of [`read_items`] as a list."""
    return list(read_items(rows, limit=limit))


def check_rows(splits: Mapping[str, Iterable[Any]], *, limit: int | None = None) -> dict[str, int | None]:
    """Read every row once, so that a bad one stops the build before anything is drawn.

    Returns:
        the number of rows of each split; None for an iterator, which can be read only once: its rows are checked as
        they come.
    """
    counts: dict[str, int | None] = {}
    for name, rows in splits.items():
        once = isinstance(rows, Iterator)
        counts[name] = None if once else sum(1 for _ in read_items(rows, limit=limit))
    return counts


def _prompt(row: Any, where: str) -> Messages:
    if not isinstance(row, Mapping):
        raise SchemaError(
            f"{where}: expected a dict with a column 'prompt', got {type(row).__name__}. "
            "Mend it with [{'prompt': text} for text in texts]."
        )
    if "prompt" not in row:
        columns = ", ".join(map(repr, row)) or "none"
        raise SchemaError(
            f"{where}: column 'prompt' is missing (columns: {columns}).{did_you_mean('prompt', map(str, row))} "
            "Mend it with dataset.rename_column(<yours>, 'prompt')."
        )
    try:
        prompt = as_messages(row["prompt"])
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    if prompt[-1]["role"] == "assistant":
        raise SchemaError(
            f"{where}: column 'prompt' ends with an assistant message, so there is nothing left to answer. Mend it "
            "with dataset.map(lambda row: {'prompt': row['prompt'][:-1], 'reference': row['prompt'][-1]['content']})."
        )
    if not any(message["content"].strip() for message in prompt):
        raise SchemaError(
            f"{where}: column 'prompt' is empty. Mend it with dataset.filter(lambda row: row['prompt'].strip())."
        )
    return prompt


def _optional_text(row: Mapping[str, Any], name: str, where: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise SchemaError(f"{where}: column {name!r} must be a string or None, got {type(value).__name__}.")
    return value
