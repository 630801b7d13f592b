"""Rows whose responses are given: ranked rows of ours, AlpacaEval-like lists, one's own logs, read into plain records.

Pure: reads the rows it is given, changes none of them, and knows neither models nor journals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..data.schema import SOURCES, Messages, as_messages
from ..errors import InputError, SchemaError, did_you_mean


PROMPT_COLUMNS = ("prompt", "instruction")
RESPONSE_COLUMNS = ("responses", "outputs")
TEXT_FIELDS = ("content", "text", "output")
MODEL_FIELDS = ("model", "generator")


@dataclass(frozen=True)
class GivenRow:
    """One prompt with its responses, in the order in which they were given.

    `responses`: dicts with `index`, `model`, `content`, `finish_reason`, `source` of the ranked row. `teacher`: the
    teacher that has ranked the row, (ranker, digest of its weights or None), None if none has. `origin`: the
    provenance of the responses, None if unknown.
    """

    prompt: Messages
    responses: tuple[dict[str, Any], ...]
    reference: str | None
    source: str | None
    teacher: tuple[str | None, str | None] | None
    origin: dict[str, Any] | None

    @property
    def size(self) -> int:
        """Characters of the row, by which rows of like length are put together."""
        return sum(len(m["content"]) for m in self.prompt) + sum(len(r["content"]) for r in self.responses)


def given_splits(dataset: Any) -> dict[str, Iterable[Any]]:
    """A dataset as named splits: a DatasetDict (or a dict of row lists) by its names, anything else as `train`.

    Raises:
        InputError: something else, or nothing.
    """
    splits = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    for rows in splits.values():
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
            raise InputError(
                f"`dataset` must be a Dataset, a DatasetDict or a list of rows, got {type(dataset).__name__}. A "
                "single row is passed as a list of one row."
            )
    if not splits:
        raise InputError("`dataset` has no splits.")
    return splits


def read_given(rows: Iterable[Any], where: str = "", limit: int | None = None) -> Iterator[GivenRow]:
    """The rows of one split, one at a time, at most the first `limit`.

    A row has `prompt` (a string or messages), or `instruction` (a string) with an optional `input`, which follows it
    after a blank line; and `responses` or `outputs`: a list of strings or of dicts with `content`, `text` or `output`
    and, if known, `model` or `generator`, `finish_reason`, `source`. `reference` and `source` are kept; other columns
    are ignored.

    Args:
        where: how errors name the split ("split 'train'"), in front of "row 17".

    Raises:
        SchemaError: naming the row, the column, what was found and what mends it.
        InputError: there are no rows.
    """
    i = -1
    for i, row in enumerate(islice(rows, limit)):
        yield _given(row, f"{where}{where and ', '}row {i}")
    if i < 0:
        raise InputError(f"`dataset`{where and f' ({where})'} has no rows, so there is nothing to rank.")


def given_rows(rows: Iterable[Any], where: str = "", limit: int | None = None) -> list[GivenRow]:
    """The rows of [`read_given`] as a list."""
    return list(read_given(rows, where, limit))


def _given(row: Any, where: str) -> GivenRow:
    if not isinstance(row, Mapping):
        raise SchemaError(f"{where}: expected a dict with a prompt and responses, got {type(row).__name__}.")
    texts = {}
    for name in ("reference", "source"):
        texts[name] = row.get(name)
        if texts[name] is not None and not isinstance(texts[name], str):
            raise SchemaError(f"{where}: column {name!r} must be a string or None, got {type(texts[name]).__name__}.")
    column = _column(row, RESPONSE_COLUMNS, where)
    given = row[column]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise SchemaError(
            f"{where}: column {column!r} must be a list of strings or dicts, got {type(given).__name__}. "
            "A file with one response a line is first grouped by its prompt."
        )
    if not given:
        raise SchemaError(
            f"{where}: column {column!r} is an empty list. Mend it with dataset.filter(lambda row: row[{column!r}])."
        )
    responses = tuple(_response(each, i, f"{where}: column '{column}[{i}]'") for i, each in enumerate(given))
    if len({response["index"] for response in responses}) < len(responses):
        raise SchemaError(f"{where}: column {column!r} has two responses with the same 'index'.")
    # the order in which they were sampled decides which of two equal ones is the first
    responses = tuple(sorted(responses, key=lambda response: response["index"]))
    provenance = row.get("provenance") or {}
    return GivenRow(
        _prompt(row, where), responses, **texts, teacher=_teacher(row, provenance), origin=_origin(provenance)
    )


def _column(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return name
    columns = ", ".join(map(repr, row)) or "none"
    raise SchemaError(
        f"{where}: there is neither {' nor '.join(map(repr, names))} (columns: {columns})."
        f"{did_you_mean(names[0], map(str, row))} Mend it with dataset.rename_column(<yours>, {names[0]!r})."
    )


def _prompt(row: Mapping[str, Any], where: str) -> Messages:
    column = _column(row, PROMPT_COLUMNS, where)
    prompt = row[column]
    if column == "instruction":
        parts = [prompt, row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise SchemaError(f"{where}: columns 'instruction' and 'input' must be strings.")
        prompt = "\n\n".join(part for part in parts if part.strip())
    try:
        messages = as_messages(prompt)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    if not any(message["content"].strip() for message in messages):
        raise SchemaError(f"{where}: column {column!r} is empty.")
    if messages[-1]["role"] == "assistant":
        raise SchemaError(
            f"{where}: column {column!r} ends with an assistant message, so the responses answer nothing. Mend it "
            f"with dataset.map(lambda row: {{{column!r}: row[{column!r}][:-1]}})."
        )
    return messages


def _response(given: Any, i: int, where: str) -> dict[str, Any]:
    if isinstance(given, str):
        given = {"content": given}
    if not isinstance(given, Mapping):
        raise SchemaError(f"{where} must be a string or a dict, got {type(given).__name__}.")
    field = next((name for name in TEXT_FIELDS if given.get(name) is not None), None)
    if field is None:
        raise SchemaError(f"{where} has none of {', '.join(TEXT_FIELDS)} (fields: {', '.join(map(str, given))}).")
    response = {
        "index": i if given.get("index") is None else given["index"],
        "model": next((given[name] for name in MODEL_FIELDS if given.get(name) is not None), None),
        "content": given[field],
        "finish_reason": given.get("finish_reason"),
        "source": given.get("source") if given.get("source") in SOURCES else "dataset",
    }
    for name in ("content", "model", "finish_reason"):
        if response[name] is not None and not isinstance(response[name], str):
            raise SchemaError(f"{where}: {name!r} must be a string, got {type(response[name]).__name__}.")
    if isinstance(response["index"], bool) or not isinstance(response["index"], int):
        raise SchemaError(f"{where}: 'index' must be an integer, got {type(response['index']).__name__}.")
    return response


def _teacher(row: Mapping[str, Any], provenance: Mapping[str, Any]) -> tuple[str | None, str | None] | None:
    if row.get("ranking_method") != "teacher_logprob":
        return None
    # a build's teacher is its generator
    fingerprint = provenance.get("ranker") or provenance.get("generator") or {}
    return row.get("ranker"), fingerprint.get("weights") if isinstance(fingerprint, Mapping) else None


def _origin(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the responses came from; a row that was ranked here before says it one level down."""
    if "unranked" in provenance and "responses" in provenance:
        return provenance["responses"]
    return dict(provenance) or None
