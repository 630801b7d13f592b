"""berkeley-nest/Nectar: seven responses a prompt, ranked by GPT-4.

Source: `prompt` (a transcript `\\n\\nHuman: …\\n\\nAssistant: `), `answers` (objects with `answer`, `model`,
`rank`), `turns`, `num_response` or `num_responses` (the card says one, files have the other), `source` (a list),
`good_natured`.
Score and rank: `rank`, 1 is best, without ties; there is no score. The rubric puts harmlessness before helpfulness.
Oddities: answers in any order; some of the answers are equal texts with ranks of their own.
Licence: Apache-2.0 on the condition that it is not used to compete with OpenAI (earlier: CC BY-NC 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SchemaError
from .shape import Row, Shape, by_index, imported, is_list_of, objects, optional_number, optional_text, text
from .transcript import parse, render


def _read(row: Mapping[str, Any]) -> Row:
    turns = parse(row["prompt"], "prompt")
    if turns[-1] != {"role": "assistant", "content": ""}:
        raise SchemaError("column 'prompt' does not end with '\\n\\nAssistant: ', so there is nothing to answer.")
    responses = []
    for answer in objects(row, "answers"):
        rank = optional_number(answer, "rank")
        responses.append({"content": text(answer, "answer"), "model": optional_text(answer, "model"), "rank": rank})
    sources = row.get("source")
    source = None
    if isinstance(sources, list) and all(isinstance(name, str) for name in sources):
        source = ", ".join(sources)
    return imported(turns[:-1], responses, method="judge", ranker="gpt-4", source=source)


def _write(row: Mapping[str, Any], hint: Mapping[str, Any]) -> Row:
    answers = [{"answer": r["content"], "model": r["model"], "rank": r["rank"]} for r in by_index(row)]
    prompt = render([*row["prompt"], {"role": "assistant", "content": ""}])
    return {"prompt": prompt, "answers": answers, "num_responses": len(answers)}


NECTAR = Shape(
    "nectar", ("prompt", "answers"), _read, _write, fits=lambda row: is_list_of(row["answers"], "answer", "rank")
)
