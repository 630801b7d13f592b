"""Anthropic/hh-rlhf: two transcripts that differ in the assistant's last turn.

Source: `chosen` and `rejected`, `\\n\\nHuman: …\\n\\nAssistant: …` each; everything but the last turn is the
prompt.
Score and rank: a crowd worker's choice: `chosen` 1, `rejected` 2; no score, no ties.
Oddities: in a few rows (3 of 1,154 of harmless-base's test split) the transcripts part before the last turn or end
with a human's: no list of answers to one prompt, so they are refused (`on_error="skip"` leaves them out and counts
them). Some last turns are empty. Offensive text, on purpose. Licence: MIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import Row, Shape, by_index, imported
from .transcript import START, parse, render


def _read(row: Mapping[str, Any]) -> Row:
    sides = {column: parse(row[column], column) for column in ("chosen", "rejected")}
    prompts = [turns[:-1] for turns in sides.values()]
    if prompts[0] != prompts[1] or not prompts[0]:
        raise SchemaError("columns 'chosen' and 'rejected' part before their last turn: two different prompts.")
    for column, turns in sides.items():
        if turns[-1]["role"] != "assistant":
            raise SchemaError(f"column {column!r} ends with the human's turn, so there is no answer.")
    responses = [{"content": turns[-1]["content"], "rank": rank} for rank, turns in enumerate(sides.values(), 1)]
    return imported(prompts[0], responses, method="human")


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    texts = [render([*row["prompt"], {"role": "assistant", "content": r["content"]}]) for r in by_index(row)]
    return {"chosen": texts[0], "rejected": texts[1]}


def _fits(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row[c], str) and row[c].startswith(START) for c in ("chosen", "rejected")) and (
        row.get("prompt") is None
    )


HH_RLHF = Shape("hh_rlhf", ("chosen", "rejected"), _read, _write, fits=_fits)
