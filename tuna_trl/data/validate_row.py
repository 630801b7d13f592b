"""What can be wrong in one ranked row, whatever model it is for. Pure: a row in, what was seen in it out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .fitting import TRAINED_STATUSES
from .schema import RANKING_METHODS, RESPONSE_FIELDS, SOURCES, STATUSES, dense_to_competition, prompt_id
from .validate_findings import Seen, plural_roles, shown


# Marks of chat templates and transcripts that have no business inside a text, of the families in use
MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "</s>",
    "\n\nHuman:",
    "\n\nAssistant:",
    "### Instruction:",
    "### Response:",
)


def any_of(words: Collection[str]) -> re.Pattern[str]:
    """A pattern of some words as they stand, the longer one first where one begins with another."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))


_MARKER = any_of(MARKERS)
_SCALARS = {
    "prompt_id": str,
    "reference": str | None,
    "ranking_method": str,
    "ranker": str | None,
    "status": str,
    "agreement_w": int | float | None,
    "agreement_tau": int | float | None,
    "num_responses": int,
    "num_ties": int,
    "score_gap": int | float | None,
    "source": str | None,
    "provenance": Mapping | None,
}
_FIELDS = {"int32": int | None, "float64": int | float | None, "string": str | None}


def texts_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Column and text of everything that a chat template puts between its marks."""
    for message in row["prompt"]:
        yield "prompt", message["content"]
    for response in row["responses"]:
        yield "responses.content", response["content"]
    if row["reference"] is not None:
        yield "reference", row["reference"]


def well_formed(row: Mapping[str, Any]) -> list[Seen]:
    """What is of a wrong type; the other checks are for rows where nothing is."""
    seen = [
        Seen("type", column, shown(row[column]))
        for column, kind in _SCALARS.items()
        if not isinstance(row[column], kind) or isinstance(row[column], bool)
    ]
    prompt, responses = row["prompt"], row["responses"]
    if not isinstance(prompt, list) or not all(_is_message(message) for message in prompt):
        seen.append(Seen("type", "prompt", shown(prompt), "a list of objects with `role` and `content`, both strings"))
    if not isinstance(responses, list) or not all(isinstance(response, Mapping) for response in responses):
        return [*seen, Seen("type", "responses", shown(responses), "a list of objects")]
    for k, response in enumerate(responses):
        for name, dtype in RESPONSE_FIELDS.items():
            value = response.get(name)
            wrong = not isinstance(value, _FIELDS[dtype]) or isinstance(value, bool)
            if wrong or value is None and name in ("content", "index"):
                seen.append(Seen("type", f"responses.{name}", f"[{k}] is {shown(value)}", dtype))
            elif name == "score" and value is not None and not math.isfinite(value):
                seen.append(Seen("type", "responses.score", f"[{k}] is {value!r}", "a finite number or null"))
    return seen


def row_findings(row: Mapping[str, Any], row_id: str | None = None) -> Iterator[Seen]:
    """What is wrong in a [`well_formed`] row.

    Args:
        row_id: [`prompt_id`] of its prompt, where the caller has it already.
    """
    for column, known in (("ranking_method", RANKING_METHODS), ("status", STATUSES)):
        if row[column] not in known:
            yield Seen("value", column, repr(row[column]), f"one of {', '.join(known)}")
    yield from _prompt(row, row_id or prompt_id(row["prompt"]))
    responses = row["responses"]
    if not responses:
        yield Seen("no responses", "responses", "an empty list")
        return
    yield from _indices(responses)
    yield from _ranks(responses)
    yield from _figures(row)
    yield from _status(row)
    yield from _contents(responses)
    for column, text in texts_of(row):
        if found := _MARKER.search(text):
            yield Seen("marker", column, _around(text, found))


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(n), str) for n in ("role", "content"))


def _prompt(row: Mapping[str, Any], expected: str) -> Iterator[Seen]:
    prompt = row["prompt"]
    if not any(message["content"].strip() for message in prompt):
        yield Seen("prompt", "prompt", f"no words (messages of: {plural_roles(prompt)})")
    elif prompt[-1]["role"] == "assistant":
        yield Seen("prompt", "prompt", f"messages of {plural_roles(prompt)}: the responses answer nothing")
    if row["prompt_id"] != expected:
        yield Seen("prompt_id", "prompt_id", repr(row["prompt_id"])[:20], expected[:16] + "…")


def _indices(responses: list[Mapping[str, Any]]) -> Iterator[Seen]:
    indices = [response["index"] for response in responses]
    if repeated := [index for index, count in Counter(indices).items() if count > 1]:
        yield Seen("index", "responses.index", f"{indices}: {repeated[0]} stands there twice")
    for k, response in enumerate(responses):
        first, source = response.get("duplicate_of"), response.get("source")
        if first is not None and (first not in indices or first == response["index"]):
            yield Seen("index", "responses.duplicate_of", f"[{k}] is {first}, the indices are {indices}")
        if source is not None and source not in SOURCES:
            yield Seen("value", "responses.source", f"[{k}] is {source!r}", f"one of {', '.join(SOURCES)} or null")


def _ranks(responses: list[Mapping[str, Any]]) -> Iterator[Seen]:
    ranks = [response["rank"] for response in responses]
    ranked = [rank for rank in ranks if rank is not None]
    expected = sorted(dense_to_competition(ranked)) + [None] * (len(ranks) - len(ranked))
    if ranks != expected:
        yield Seen("ranks", "responses.rank", str(ranks), str(expected))
    both = [r for r in responses if r["rank"] is not None and r["score"] is not None]
    both.sort(key=lambda response: response["rank"])
    for better, worse in zip(both, both[1:], strict=False):
        if better["rank"] == worse["rank"]:
            continue
        pair = f"rank {better['rank']} has score {better['score']:g}, rank {worse['rank']} has {worse['score']:g}"
        if better["score"] < worse["score"]:
            yield Seen("order", "responses.rank", pair)
            break
        if better["score"] == worse["score"]:
            yield Seen("equal scores", "responses.rank", pair)
            break
    scored = sum(response["score"] is not None for response in responses)
    if scored and (len(both) < scored or len(both) < len(ranked)):
        found = f"of {len(responses)} responses {scored} have a score, {len(ranked)} a rank, {len(both)} both"
        yield Seen("half scored", "responses.score", found)


def _figures(row: Mapping[str, Any]) -> Iterator[Seen]:
    ranked = [response for response in row["responses"] if response["rank"] is not None]
    scores = [response["score"] for response in ranked if response["score"] is not None]
    expected = {
        "num_responses": len(row["responses"]),
        "num_ties": len(ranked) - len({response["rank"] for response in ranked}),
        "score_gap": max(scores) - min(scores) if scores else None,
    }
    for column, value in expected.items():
        found = row[column]
        if found is None or value is None:
            equal = found is value
        else:
            equal = math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12)
        if not equal:
            yield Seen("figures", column, repr(found), repr(value))


def _status(row: Mapping[str, Any]) -> Iterator[Seen]:
    status, responses = row["status"], row["responses"]
    ranked = sum(response["rank"] is not None for response in responses)
    found = f"{status!r} with {ranked} of {len(responses)} responses ranked"
    if status in TRAINED_STATUSES:
        if ranked < min(2, len(responses)):
            yield Seen("status", "status", found)
        elif (status == "ok") != (ranked == len(responses)) and status == "ok":
            yield Seen("status and ranks", "status", found)
    elif status in STATUSES and ranked > 1:
        yield Seen("status and ranks", "status", found + ": the row does not train")


def _contents(responses: list[Mapping[str, Any]]) -> Iterator[Seen]:
    for k, response in enumerate(responses):
        blank = response["rank"] is not None and not response["content"].strip()
        if blank and response.get("finish_reason") != "stop":
            kind = "empty best" if response["rank"] == 1 else "empty"
            yield Seen(kind, "responses.content", f"[{k}] is {response['content'][:20]!r}, of rank {response['rank']}")
    first: dict[str, Mapping[str, Any]] = {}
    for k, response in enumerate(responses):
        words = " ".join(response["content"].split())
        other = first.setdefault(words, response)
        marked = response.get("duplicate_of") is not None or other.get("duplicate_of") is not None
        if other is not response and (not marked or other["rank"] != response["rank"]):
            ranks = f"ranks {other['rank']} and {response['rank']}"
            yield Seen("identical", "responses.content", f"[{k}] has the words of another ({ranks}): {words[:60]!r}")
            break


def _around(text: str, found: re.Match[str]) -> str:
    """The mark with a little of what stands around it."""
    start, end = max(found.start() - 20, 0), found.end() + 20
    return f"{found.group()!r} in {'…' if start else ''}{text[start:end]!r}{'…' if end < len(text) else ''}"
