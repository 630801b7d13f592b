"""Rows of one's own, and ranked rows of this package.

Source: `prompt` (a string or messages) and `responses`: dicts with `content` and, if known, `rank` or `score`, or
strings beside a list `ranks` or `scores` (docs/data_format.md). A full ranked row goes through as it is.
Score and rank: as given, higher scores and lower ranks are better; equal ones are ties. Oddities: none of ours; a
response without either is unranked here, where [`tuna_trl.normalise_row`] asks for a mend.
Licence: the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from ..schema import ROW_COLUMNS, check_row, normalise_row
from .shape import Row, Shape, by_index, is_list_of


def _is_full(row: Mapping[str, Any]) -> bool:
    return all(column in row for column in ROW_COLUMNS)


def _read_full(row: Mapping[str, Any]) -> Row:
    full = {column: row[column] for column in ROW_COLUMNS}
    check_row(full)
    return full


def _write_full(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    return {column: row[column] for column in ROW_COLUMNS}


def _fits(row: Mapping[str, Any]) -> bool:
    responses = row["responses"]
    texts = isinstance(responses, list) and all(isinstance(response, str) for response in responses)
    return not _is_full(row) and (texts or is_list_of(responses, "content"))


def _read(row: Mapping[str, Any]) -> Row:
    responses = row["responses"]
    if not responses:
        raise SchemaError("column 'responses' is an empty list.")
    texts = isinstance(responses[0], str)
    columns = [name for name in ("scores", "ranks") if texts and row.get(name) is not None]
    known = columns or not texts and any(r.get(n) is not None for r in responses for n in ("rank", "score"))
    result = normalise_row(row if known else {**row, "status": row.get("status") or "failed"})
    hint = {"text_prompt": isinstance(row["prompt"], str), "columns": columns, "texts": texts}
    return {**result, "provenance": {"hint": hint}}


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = by_index(row)
    prompt = row["prompt"][0]["content"] if hint["text_prompt"] else row["prompt"]
    if hint["texts"]:
        lists = {name: [response[name[:-1]] for response in responses] for name in hint["columns"]}
        return {"prompt": prompt, "responses": [response["content"] for response in responses], **lists}
    kept = [{name: value for name, value in response.items() if value is not None} for response in responses]
    return {"prompt": prompt, "responses": kept}


RANKED = Shape("ranked", ROW_COLUMNS, _read_full, _write_full)
OWN = Shape("own", ("prompt", "responses"), _read, _write, fits=_fits)
