"""The two released files of the Tuna paper (microsoft/LMOps, `tuna/`): what it ranked, before it was made training
data.

Probabilistic (text-davinci-003). Source: `orig` (`instruction`, `input`, `output`), `text` (4 responses),
`avg_token_prob`, `length`, `logprob`, a list each. Score: `avg_token_prob`, which is the mean *log*-probability of
a token, in nats; higher is better, equal ones tie. `output` is the reference; it is not ranked.

Contextual (GPT-4). Source: `prompt` (to GPT-4), `instruct` (the instruction in Alpaca's template), `generation`
(the 4 responses of Tuna_p, numbered 0 to 3), `response_4` (GPT-4's own), `gpt_eval` (its reply), `rank_str`, `rank`
or `ranks` (numbers of responses, best first). Rank: the place in that list, without ties or scores. Oddities: GPT-4
was told to leave duplicates out of the list, so it may be short: a response that is left out shares the rank of one
with the same words, else it is unranked. `response_4` was cut from the reply by a pattern and may be empty; it is
then no response. `rank` holds every number that stood behind "rank:"; a list with a number twice, or one that names
no response, ranks nothing (status `malformed`).
Licence: code Apache-2.0, data CC BY-NC 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from ..schema import mark_duplicates
from . import alpaca_template
from .shape import Row, Shape, by_index, imported, items, optional_number, shown, text, with_input, without_input


def _read_probabilistic(row: Mapping[str, Any]) -> Row:
    orig = row["orig"]
    prompt, hint = with_input(orig)
    texts = items(row, "text")
    lists = {name: items(row, name, len(texts)) for name in ("avg_token_prob", "length", "logprob") if name in row}
    responses = []
    for i, words in enumerate(texts):
        given = {"text": words} | {name: values[i] for name, values in lists.items()}
        length = optional_number(given, "length")
        responses.append(
            {
                "content": text(given, "text"),
                "score": optional_number(given, "avg_token_prob"),
                "logprob": None if isinstance(given.get("logprob"), list) else optional_number(given, "logprob"),
                "num_tokens": None if length is None else int(length),
                "model": "text-davinci-003",
                "source": "teacher",
            }
        )
    known = {"method": "teacher_logprob", "ranker": "text-davinci-003"}
    return imported(prompt, responses, **known, reference=orig.get("output") or None, hint=hint)


def _write_probabilistic(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = by_index(row)
    return {
        "orig": {**without_input(row["prompt"][0]["content"], hint), "output": row["reference"] or ""},
        "text": [r["content"] for r in responses],
        "avg_token_prob": [r["score"] for r in responses],
        "length": [r["num_tokens"] for r in responses],
        "logprob": [r["logprob"] for r in responses],
    }


def _read_contextual(row: Mapping[str, Any]) -> Row:
    texts = items(row, "generation")
    if not all(isinstance(words, str) for words in texts):
        raise SchemaError("column 'generation' must hold strings.")
    number = len(texts)  # of GPT-4's own response
    own = text(row, "response_4") if row.get("response_4") else ""
    if own:
        texts = [*texts, own]
    column = "rank" if "rank" in row else "ranks"
    order = [i for i in items(row, column) if own or i != number]
    ranks: list[int | None] = [None] * len(texts)
    sound = len(set(order)) == len(order) and all(type(i) is int and 0 <= i < len(texts) for i in order)
    if sound:
        for place, i in enumerate(order, 1):
            ranks[i] = place
        _share_with_duplicates(ranks, texts)
    responses: list[Row] = [{"content": w, "rank": r, "source": "student"} for w, r in zip(texts, ranks, strict=True)]
    if own:
        responses[number] |= {"source": "judge", "model": "gpt-4"}
    prompt, hint = _instruction(text(row, "instruct"))
    known: dict[str, Any] = {"method": "judge", "ranker": "gpt-4", "status": None if sound and order else "malformed"}
    return imported(prompt, responses, **known, hint={**hint, "column": column, "own": bool(own)})


def _share_with_duplicates(ranks: list[int | None], texts: list[str]) -> None:
    """A response that was left out of the ranking has the rank of one with the same words."""
    same = [i if first is None else first for i, first in enumerate(mark_duplicates(texts))]
    known = {same[i]: rank for i, rank in enumerate(ranks) if rank is not None}
    for i, rank in enumerate(ranks):
        if rank is None:
            ranks[i] = known.get(same[i])


def _instruction(prompt: str) -> tuple[str, Row]:
    """An instruction without Alpaca's template, if it is in that."""
    parts = alpaca_template.take_off(prompt)
    if parts is None:
        return prompt, {}
    found, hint = with_input({"instruction": parts[0], "input": parts[1]})
    return found, {**hint, "template": "alpaca"}


def templated(prompt: str, hint: Mapping[str, Any]) -> str:
    """The inverse of [`_instruction`]."""
    if hint.get("template") != "alpaca":
        return prompt
    parts = without_input(prompt, hint)
    return alpaca_template.put_on(parts["instruction"], parts["input"])


def _write_contextual(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = by_index(row)
    order = sorted((r for r in responses if r["rank"] is not None), key=lambda r: (r["rank"], r["index"]))
    texts = [r["content"] for r in responses]
    return {
        "instruct": templated(row["prompt"][0]["content"], hint),
        "generation": texts[:-1] if hint["own"] else texts,
        "response_4": texts[-1] if hint["own"] else "",
        hint["column"]: [r["index"] for r in order],
    }


def _fits_contextual(row: Mapping[str, Any]) -> bool:
    return "rank" in row or "ranks" in row


def _fits_probabilistic(row: Mapping[str, Any]) -> bool:
    return isinstance(row["orig"], Mapping) and isinstance(row["text"], list)


def read_instruction(prompt: Any) -> tuple[str, Row]:
    """An instruction that may be in Alpaca's template, and the hint that puts it on again ([`templated`])."""
    if not isinstance(prompt, str):
        raise SchemaError(f"column 'instruction' is {shown(prompt)}, expected a string.")
    return _instruction(prompt)


TUNA_PROBABILISTIC = Shape(
    "tuna_probabilistic",
    ("orig", "text", "avg_token_prob"),
    _read_probabilistic,
    _write_probabilistic,
    fits=_fits_probabilistic,
)
TUNA_CONTEXTUAL = Shape(
    "tuna_contextual", ("instruct", "generation"), _read_contextual, _write_contextual, fits=_fits_contextual
)
