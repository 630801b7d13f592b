"""Preference pairs as TRL's trainers read them.

Source: `chosen` and `rejected`, both strings or both lists of messages; `prompt` is a column of its own (explicit),
the beginning that both share (implicit), or `instruction` with an optional `input` (as LLaMA-Factory has it). A
prompt that is repeated at the head of both lists is taken off.
Score and rank: no score; `chosen` is 1, `rejected` 2, no ties. Scores beside them make it another shape.
Oddities: rows that mix a string prompt with lists (TRL reads them at random, by the hash seed). An implicit prompt
is cut where the texts part, which may be in the middle of a word they begin with, as TRL does. A pair of several
turns, or with tool calls, is no single response and is refused. Licence: the data's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SchemaError
from ..schema import as_messages
from .shape import Row, Shape, by_index, imported, shown, with_input, without_input
from .transcript import START


SCORED = ("score_chosen", "chosen-rating", "chosen_rating")


def fits_pair(row: Mapping[str, Any]) -> bool:
    """No scores, and no transcripts of hh-rlhf."""
    transcript = isinstance(row["chosen"], str) and row["chosen"].startswith(START) and row.get("prompt") is None
    return not any(column in row for column in SCORED) and not transcript


def read_pair(row: Mapping[str, Any]) -> tuple[Any, list[str], Row]:
    """Prompt, the two responses and a hint of a pair in any of these forms.

    Raises:
        SchemaError: naming the column that is none of them.
    """
    pair = [row["chosen"], row["rejected"]]
    if isinstance(pair[0], str) != isinstance(pair[1], str):
        raise SchemaError("columns 'chosen' and 'rejected' must both be strings or both be lists of messages.")
    prompt, hint = row.get("prompt"), {}
    if prompt is None and row.get("instruction") is not None:
        prompt, more = with_input(row)
        hint = {"instruction": True, **more}
    if isinstance(pair[0], str):
        return _read_texts(prompt, pair, hint)
    turns = [as_messages(side) for side in pair]
    hint["chat"] = True
    if prompt is None:
        shared = _shared(*turns)
        hint["implicit"] = True
        prompt, turns = turns[0][:shared], [side[shared:] for side in turns]
    else:
        hint["text_prompt"] = isinstance(prompt, str)
        prompt = as_messages(prompt)
        if all(side[: len(prompt)] == prompt for side in turns):
            hint["repeated"] = True
            turns = [side[len(prompt) :] for side in turns]
    for column, side in zip(("chosen", "rejected"), turns, strict=True):
        if [message["role"] for message in side] != ["assistant"]:
            roles = ", ".join(message["role"] for message in side) or "none"
            raise SchemaError(
                f"column {column!r} has, behind the prompt, messages of {roles}; a ranked response is one message of "
                "the assistant."
            )
    if not prompt:
        raise SchemaError("columns 'chosen' and 'rejected' share no prompt.")
    return prompt, [side[0]["content"] for side in turns], hint


def _read_texts(prompt: Any, pair: list[str], hint: Row) -> tuple[Any, list[str], Row]:
    if prompt is None:
        shared = _shared(*pair)
        if shared and pair[0][shared - 1] == " ":  # the space begins a response, for the tokenizer's sake
            shared -= 1
        prompt, pair = pair[0][:shared], [side[shared:] for side in pair]
        hint = {"implicit": True}
        if not prompt.strip() or not all(pair):
            raise SchemaError("columns 'chosen' and 'rejected' share no prompt with an answer each behind it.")
    if not isinstance(prompt, str):
        raise SchemaError(f"column 'prompt' is {shown(prompt)}, but 'chosen' is a string; make both messages.")
    return prompt, pair, hint


def write_pair(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    """The columns `prompt` (or `instruction` and `input`), `chosen` and `rejected` again."""
    prompt, texts = row["prompt"], [response["content"] for response in by_index(row)]
    if hint.get("chat"):
        head = prompt if hint.get("implicit") or hint.get("repeated") else []
        pair = [[*head, {"role": "assistant", "content": words}] for words in texts]
        prompt = prompt[0]["content"] if hint.get("text_prompt") else prompt
    else:
        prompt = prompt[0]["content"]
        pair = [(prompt if hint.get("implicit") else "") + words for words in texts]
    result = {"chosen": pair[0], "rejected": pair[1]}
    if hint.get("instruction"):
        plain = row["prompt"][0]["content"]
        return without_input(plain, hint) | result
    return result if hint.get("implicit") else {"prompt": prompt, **result}


def _read(row: Mapping[str, Any]) -> Row:
    prompt, texts, hint = read_pair(row)
    return imported(prompt, [{"content": words, "rank": rank} for rank, words in enumerate(texts, 1)], hint=hint)


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first entries two sequences share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


PREFERENCE = Shape("preference", ("chosen", "rejected"), _read, write_pair, fits=fits_pair)
