"""PandaLM: pairs of five tuned 7B models' responses, by three people (test set) or ChatGPT (training data).

Test set. Source: `idx`, `cmp_key` ("bloom-7b_llama-7b"), `instruction`, `input`, `response1`, `response2`,
`annotator1` to `annotator3` (0 similar, 1 the first is better, 2 the second). Score: the share of the three votes,
a 0 counting half for both; equal shares tie. Oddities: `input` is NaN where there is none; two responses are the
JSON value true (read as "True"); the models' names are what stands on either side of the one underscore of
`cmp_key`.

Training data. Source: `inputs` (`instruction`, `input`, `response1`, `response2`), `outputs` (`evaluation_result`:
"1", "2" or "Tie", `evaluation_reason`, `reference_response`). Rank: by the result; no score.

Lists (`responses` with `model`, `text`, `human_win_rate`). Score: the mean vote over the pairs a model was in;
models of one prompt need not have met the same others.
Licence: Apache-2.0 (test set); none stated for the training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import (
    Row,
    Shape,
    by_index,
    imported,
    is_list_of,
    objects,
    optional_number,
    optional_text,
    shown,
    text,
    with_input,
    without_input,
)


_VOTES = ("annotator1", "annotator2", "annotator3")
_RESULTS = {"1": [1, 2], "2": [2, 1], "tie": [1, 1]}


def _response(row: Mapping[str, Any], column: str) -> str:
    return str(row[column]) if isinstance(row.get(column), bool) else text(row, column)


def _read_test(row: Mapping[str, Any]) -> Row:
    votes = [row[column] for column in _VOTES]
    if wrong := [vote for vote in votes if vote not in (0, 1, 2)]:
        raise SchemaError(f"columns 'annotator1' to 'annotator3' hold {shown(wrong[0])}, expected 0, 1 or 2.")
    first = sum({0: 0.5, 1: 1.0, 2: 0.0}[vote] for vote in votes) / 3
    second = sum({0: 0.5, 1: 0.0, 2: 1.0}[vote] for vote in votes) / 3
    names = str(row.get("cmp_key")).split("_")
    models = names if len(names) == 2 else (None, None)
    responses = [
        {"content": _response(row, f"response{i}"), "score": score, "model": model}
        for i, score, model in zip((1, 2), (first, second), models, strict=True)
    ]
    prompt, hint = with_input(row)
    return imported(prompt, responses, method="human", source=optional_text(row, "motivation_app"), hint=hint)


def _write_test(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    one, other = by_index(row)
    return {
        **without_input(row["prompt"][0]["content"], hint),
        "response1": one["content"],
        "response2": other["content"],
        "cmp_key": f"{one['model']}_{other['model']}",
        "motivation_app": row["source"],
    }


def _read_train(row: Mapping[str, Any]) -> Row:
    inputs, outputs = row["inputs"], row["outputs"]
    result = outputs.get("evaluation_result")
    ranks = _RESULTS.get(str(result).strip().lower(), [None, None])
    responses = [{"content": _response(inputs, f"response{i}"), "rank": ranks[i - 1]} for i in (1, 2)]
    prompt, hint = with_input(inputs)
    reference = optional_text(outputs, "reference_response") or None
    known: dict[str, Any] = {"method": "judge", "ranker": "gpt-3.5-turbo", "status": None if ranks[0] else "malformed"}
    return imported(prompt, responses, **known, reference=reference, hint=hint)


def _write_train(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    ranks = [r["rank"] for r in by_index(row)]
    result = next((name for name, known in _RESULTS.items() if known == ranks), None)
    texts = {f"response{i}": r["content"] for i, r in enumerate(by_index(row), 1)}
    return {
        "inputs": {**without_input(row["prompt"][0]["content"], hint), **texts},
        "outputs": {
            "evaluation_result": "Tie" if result == "tie" else result,
            "reference_response": row["reference"] or "",
        },
    }


def _read_list(row: Mapping[str, Any]) -> Row:
    responses = [
        {"content": text(r, "text"), "model": optional_text(r, "model"), "score": optional_number(r, "human_win_rate")}
        for r in objects(row, "responses")
    ]
    prompt, hint = with_input(row)
    return imported(prompt, responses, method="human", hint=hint)


def _write_list(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    responses = [{"model": r["model"], "text": r["content"], "human_win_rate": r["score"]} for r in by_index(row)]
    return {**without_input(row["prompt"][0]["content"], hint), "responses": responses}


def _fits_train(row: Mapping[str, Any]) -> bool:
    sides = (row["inputs"], ("instruction", "response1", "response2")), (row["outputs"], ("evaluation_result",))
    return all(isinstance(side, Mapping) and all(name in side for name in names) for side, names in sides)


PANDALM = Shape("pandalm", ("instruction", "response1", "response2", *_VOTES), _read_test, _write_test)
PANDALM_TRAIN = Shape("pandalm_train", ("inputs", "outputs"), _read_train, _write_train, fits=_fits_train)
PANDALM_LISTS = Shape(
    "pandalm_lists",
    ("instruction", "responses"),
    _read_list,
    _write_list,
    fits=lambda row: is_list_of(row["responses"], "text", "human_win_rate"),
)
