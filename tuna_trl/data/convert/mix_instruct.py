"""llm-blender/mix-instruct: the responses of a dozen models to one instruction, with automatic metrics.

Source: `id`, `instruction`, `input`, `output` (a given answer), `candidates` (objects with `decoding_method`, `model`,
`text`, `scores`: `bleu`, `rouge1`, …, `bertscore`, `bleurt`, `bartscore`), in some splits `cmp_results` (ChatGPT's
comparisons of pairs, as a text).
Score and rank: `bartscore` against `output`, higher (nearer 0) is better; equal scores tie. A candidate without it is
unranked. The other metrics and `cmp_results` are kept, not ranked by.
Oddities: the order is by likeness to the given answer, not by a judgement. Licence: MIT says the card; the models'
outputs have terms of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shape import (
    Row,
    Shape,
    by_index,
    imported,
    is_list_of,
    objects,
    optional_number,
    optional_text,
    text,
    with_input,
    without_input,
)


def _read(row: Mapping[str, Any]) -> Row:
    responses = []
    for candidate in objects(row, "candidates"):
        scores = candidate.get("scores")
        score = optional_number(scores, "bartscore") if isinstance(scores, Mapping) else None
        model = optional_text(candidate, "model")
        responses.append({"content": text(candidate, "text"), "model": model, "score": score})
    prompt, hint = with_input(row)
    reference = optional_text(row, "output") or None
    return imported(prompt, responses, method="reference", ranker="bartscore", reference=reference, hint=hint)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    candidates = [
        {"model": r["model"], "text": r["content"], "scores": {"bartscore": r["score"]}} for r in by_index(row)
    ]
    prompt = without_input(row["prompt"][0]["content"], hint)
    return {**prompt, "output": row["reference"] or "", "candidates": candidates}


MIX_INSTRUCT = Shape(
    "mix_instruct",
    ("instruction", "candidates"),
    _read,
    _write,
    fits=lambda row: is_list_of(row["candidates"], "text"),
)
