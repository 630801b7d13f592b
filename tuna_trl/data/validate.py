"""`validate`: everything that is wrong with a ranked dataset, found in one pass before a model is loaded.

Holds one row, the first few examples of each kind of finding, and sixteen bytes' worth of hash and place for each
prompt; never a text of a row that has gone by. Reads the dataset it is given and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SchemaError
from .schema import ROW_COLUMNS, normalise_row, prompt_id, ranked_features
from .validate_findings import Finding, Findings, Seen, ValidationReport, shown
from .validate_row import row_findings, well_formed
from .validate_tokens import TokenChecks


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Finding", "ValidationReport", "validate"]
_COLUMN = re.compile(r"column '([\w.\[\]]+)'")


def validate(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
    max_length: int | None = None,
) -> ValidationReport:
    """Check every row of a ranked dataset, or of rows of one's own.

    Columns and types, prompts and their ids, ranks (competition ranks, best first, against the scores), the flat
    figures, status against ranks, empty and identical responses, marks of chat templates inside texts, prompts that
    come back (in another split: a leak). With a tokenizer also: its special tokens inside texts, what its template
    refuses, end tokens, a BOS twice, and how many tokens there are. Rows of one's own are checked as
    [`tuna_trl.normalise_row`] reads them.

    Args:
        dataset: a `Dataset`, an `IterableDataset`, any iterable of rows, or a mapping of split names to those; read
            once, one row at a time.
        tokenizer: a tokenizer with a chat template, or several by name.
        max_length: tokens of a prompt with one response, as in `TunaConfig`; only with a tokenizer.

    Returns:
        the report: findings, errors first, each with its number and first rows; a table of lengths per model.

    Raises:
        InputError: `dataset` is none of these, a tokenizer has no chat template, or `max_length` is of no use.
    """
    if max_length is not None and (tokenizer is None or max_length < 1):
        raise InputError(f"`max_length` is {max_length}: it is a positive number of tokens, and needs a tokenizer.")
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    for split, rows in splits.items():
        if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
            name = f"split {split!r} of `dataset`" if split else "`dataset`"
            raise InputError(
                f"{name} must be a Dataset or an iterable of rows, got {type(rows).__name__}. A path or Hub id is "
                "checked by `tuna-trl validate`."
            )
    models = [TokenChecks(name, each, max_length) for name, each in _tokenizers(tokenizer).items()]
    findings, prompts, counts = Findings(), _Prompts(list(splits)), {}
    for model in models:
        for seen in model.model_findings():
            findings.add(seen, "", None)
    for number, (split, rows) in enumerate(splits.items()):
        for seen in _feature_findings(rows):
            findings.add(seen, _named(split), None)
        count = 0
        for row in _with_progress(rows, split):
            for seen in _check(row, models, prompts, number, count):
                findings.add(seen, _named(split), count)
            count += 1
        counts[split or "rows"] = count
    tables = {model.name: model.table() for model in models}
    return ValidationReport(counts, findings.sorted(), tables, max_length)


def _check(row: Any, models: list[TokenChecks], prompts: _Prompts, split: int, index: int) -> Iterator[Seen]:
    """Everything seen in one row."""
    if not isinstance(row, Mapping):
        yield Seen("row", "row", shown(row), "an object")
        return
    if missing := [column for column in ROW_COLUMNS if column not in row]:
        if "prompt" not in row or "responses" not in row:
            yield Seen("columns", "columns", _known_shape(row) + (", ".join(map(str, row)) or "none"))
            return
        if "num_responses" in row:  # a ranked row that has lost some, rather than one of the user's own
            yield Seen("columns", missing[0], "missing", "all columns of tuna_trl.ranked_features()")
        try:
            row = normalise_row(row)
        except SchemaError as error:
            message = str(error).removeprefix("row 0: ")
            column = _COLUMN.search(message)
            yield Seen("row", re.sub(r"\[\d+\]", "", column[1]) if column else "row", message)
            return
    elif wrong := well_formed(row):
        yield from wrong
        return
    row_id = prompt_id(row["prompt"])
    yield from row_findings(row, row_id)
    yield from prompts.add(row_id, split, index)
    if row["prompt"] and row["responses"]:
        for model in models:
            yield from model.row_findings(row)


class _Prompts:
    """Where each prompt was first seen: 64 bits of its hash, and split and row in one number."""

    def __init__(self, splits: list[str]) -> None:
        self.splits = splits
        self._first: dict[int, int] = {}

    def add(self, row_id: str, split: int, index: int) -> Iterator[Seen]:
        place = split << 40 | index
        first = self._first.setdefault(int(row_id[:16], 16), place)
        if first != place:
            other, row = first >> 40, first & (1 << 40) - 1
            where = f"{_named(self.splits[other])}, " if self.splits[other] else ""
            kind = "repeated prompt" if other == split else "leak"
            yield Seen(kind, "prompt", f"the prompt of {where}row {row}")


def _feature_findings(rows: Any) -> Iterator[Seen]:
    """Columns of a dataset whose type is not the schema's; of a ranked dataset only: one's own rows may differ."""
    features = getattr(rows, "features", None)
    if not features or not all(column in features for column in ROW_COLUMNS):
        return
    for column, expected in ranked_features().items():
        if features[column] != expected:
            yield Seen("features", column, str(features[column]), str(expected))


def _known_shape(row: Mapping[str, Any]) -> str:
    from .convert import detect_shape

    try:
        return f"the shape {detect_shape([row]).name!r} of tuna-trl import: "
    except SchemaError:
        return ""


def _tokenizers(tokenizer: Any) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, Mapping) and not hasattr(tokenizer, "apply_chat_template"):
        return dict(tokenizer)
    return {tokenizer.name_or_path or "the tokenizer": tokenizer}


def _named(split: str) -> str:
    return f"split {split!r}" if split else ""


def _with_progress(rows: Iterable[Any], split: str) -> Iterator[Any]:
    from tqdm import tqdm

    return tqdm(rows, desc=f"validating {split}".strip(), disable=None, delay=3.0, unit=" rows")
