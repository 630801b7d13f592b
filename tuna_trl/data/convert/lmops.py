"""The training files of the Tuna paper's code (microsoft/LMOps, `tuna/src/train_tuna.py`): read, and written.

Source: a JSON list of `id`, `instruction` (in Alpaca's template already), `output` (texts), `score` (numbers).
Score and rank: `score` ranks, higher is better; that code sorts by it and by nothing else. Equal scores tie.
Oddities: every row must have the same number of outputs ("All instructions must have N outputs"), and equal scores
keep the order they stand in, where its loss does count them as a pair: it takes the order for the ranking.
Licence: code Apache-2.0, the released data CC BY-NC 4.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError, SchemaError
from ..fitting import TRAINED_STATUSES
from . import alpaca_template
from .conversion import NamedRow, converted
from .pairs import ranked_rows
from .shape import Row, Shape, by_index, imported, items, optional_number, text
from .tuna_paper import read_instruction, templated


if TYPE_CHECKING:
    from datasets import Features


def _read(row: Mapping[str, Any]) -> Row:
    prompt, hint = read_instruction(row["instruction"])
    texts = items(row, "output")
    scores = items(row, "score", len(texts))
    responses = [
        {"content": text({"output": words}, "output"), "score": optional_number({"score": score}, "score")}
        for words, score in zip(texts, scores, strict=True)
    ]
    return imported(prompt, responses, hint=hint)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = by_index(row)
    return {
        "instruction": templated(row["prompt"][0]["content"], hint),
        "output": [r["content"] for r in responses],
        "score": [r["score"] for r in responses],
    }


LMOPS = Shape(
    "lmops", ("instruction", "output", "score"), _read, _write, fits=lambda row: isinstance(row["output"], list)
)


def lmops_features() -> Features:
    """The columns of [`to_lmops`]."""
    from datasets import Features, List, Value

    string, number = Value("string"), Value("float64")
    return Features({"id": string, "instruction": string, "output": List(string), "score": List(number)})


def to_lmops(
    dataset: Any,
    *,
    num_responses: int | None = None,
    prompt_format: Callable[[list[dict[str, str]]], str] | None = None,
    statuses: Collection[str] = TRAINED_STATUSES,
    tally: Counter[str] | None = None,
) -> Any:
    """Ranked rows as the paper's training code reads them.

    `score` is the responses' own where all ranked responses of a row have one, strictly falling with the rank; else
    minus the rank. Ranked responses are written best first. Ties come out as equal scores, and that code takes their
    order for a ranking: `tally` counts such rows.

    Args:
        dataset: ranked rows, in any form that [`import_ranked`] returns.
        num_responses: how many outputs each row has: the best so many; rows with fewer ranked responses are left out.
            Default: what the first row has, and another number in a later row is an error, because that code stops
            there ("All instructions must have N outputs").
        prompt_format: makes the `instruction` of the messages of a prompt; default: Alpaca's template, which takes
            one user message.
        statuses: rows of other statuses are left out.
        tally: counts what was left out, by reason.

    Returns:
        `id` (the prompt_id), `instruction`, `output`, `score`; in the form of `dataset`.

    Raises:
        SchemaError: a row is wrong, has several messages and no `prompt_format` was given, or another number of
            ranked responses than the first.
    """
    if num_responses is not None and num_responses < 2:
        raise InputError(f"`num_responses` is {num_responses}; a ranking has at least 2.")
    tally = Counter() if tally is None else tally

    def convert(rows: Iterator[NamedRow]) -> Iterator[Row]:
        wanted = num_responses
        for where, row in ranked_rows(rows, statuses, tally):
            ranked = [r for r in row["responses"] if r["rank"] is not None]
            if len(ranked) < 2 or num_responses is not None and len(ranked) < num_responses:
                tally["too few ranked responses"] += 1
                continue
            wanted = wanted or len(ranked)
            if num_responses is None and len(ranked) != wanted:
                raise SchemaError(
                    f"{where}: {len(ranked)} ranked responses, where the first row has {wanted}; LMOps' code wants "
                    "the same number in every row. Mend it with to_lmops(..., num_responses=2) or another number."
                )
            ranked = ranked[:wanted]
            tied = len({r["rank"] for r in ranked}) < wanted
            tally["rows with ties"] += tied
            instruction = prompt_format(row["prompt"]) if prompt_format else _alpaca(row["prompt"], where)
            yield {
                "id": row["prompt_id"],
                "instruction": instruction,
                "output": [r["content"] for r in ranked],
                "score": _scores(ranked),
            }

    return converted(dataset, convert, lmops_features)


def _scores(ranked: list[Mapping[str, Any]]) -> list[float]:
    scores, ranks = [r["score"] for r in ranked], [r["rank"] for r in ranked]
    if None not in scores:
        steps = zip(scores, scores[1:], ranks, ranks[1:], strict=False)
        if all((a == b) == (i == j) and a >= b for a, b, i, j in steps):
            return scores
    return [-float(rank) for rank in ranks]


def _alpaca(prompt: list[dict[str, str]], where: str) -> str:
    if [message["role"] for message in prompt] != ["user"]:
        roles = ", ".join(message["role"] for message in prompt)
        raise SchemaError(
            f"{where}: column 'prompt' has messages of {roles}; Alpaca's template takes one user message. Pass "
            "to_lmops(..., prompt_format=a function that makes a text of the messages)."
        )
    return alpaca_template.put_on(prompt[0]["content"])
