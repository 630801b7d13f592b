"""Which rows the report shows, and how a row is shown: prompt, reference, responses best first, each text cut.

Rows go by once; of each only a few numbers are looked at, and what is kept of a row is what will be shown of it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping
from typing import Any

from .text import Shown, first_line, is_number, number, shown
from .verdict import model_name


SHOWN_RESPONSES = 12  # of one row


class ExamplePicker:
    """Chooses rows worth a look while they go by: the clearest and the closest rankings, ties, rows that judges see
    differently or that did not come off, the longest response, and a random sample of all.

    Args:
        limit: rows shown at most.
    """

    def __init__(self, limit: int) -> None:
        each = max(1, limit // 8)
        self._limit = limit
        self._seen = 0
        self._best = {
            "largest score gap": _Best(each),
            "smallest score gap": _Best(each),
            "most ties": _Best(each),
            "least agreement": _Best(each),
            "not ranked well": _Best(each),
            "longest response": _Best(1),
        }
        self._sample: list[tuple[int, dict[str, Any]]] = []
        self._random = random.Random(0)

    def add(self, row: Mapping[str, Any]) -> None:
        """Look at the next row."""
        i, record = self._seen, None
        self._seen += 1
        for name, key in _keys(row).items():
            if self._best[name].wants(key, i):
                record = record or example(row)
                self._best[name].put(key, i, record)
        place = i if i < self._limit else self._random.randrange(self._seen)
        if place < self._limit:
            entry = (i, record or example(row))
            self._sample[place : place + 1] = [entry]

    def chosen(self) -> list[dict[str, Any]]:
        """The rows to show, each once, with `why` it was chosen."""
        rows: dict[int, dict[str, Any]] = {}
        for name, best in self._best.items():
            for i, record in best.rows():
                rows.setdefault(i, record | {"why": record["why"] or name})
        rows = dict(list(rows.items())[: self._limit])
        for i, record in sorted(self._sample, key=lambda entry: entry[0]):
            if len(rows) == self._limit:
                break
            rows.setdefault(i, record | {"why": record["why"] or f"row {i:,}"})
        return list(rows.values())


class _Best:
    """The few rows with the highest keys; of equal keys the first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, dict[str, Any]]] = []

    def wants(self, key: float, i: int) -> bool:
        return len(self._heap) < self._size or (key, -i) > self._heap[0][:2]

    def put(self, key: float, i: int, record: dict[str, Any]) -> None:
        (heapq.heappush if len(self._heap) < self._size else heapq.heapreplace)(self._heap, (key, -i, record))

    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        return [(-i, record) for _, i, record in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _keys(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row could be shown for, and how much it is that."""
    keys = {"longest response": float(max((len(r["content"]) for r in row["responses"]), default=0))}
    if is_number(gap := row["score_gap"]) and gap > 0:
        keys |= {"largest score gap": gap, "smallest score gap": -gap}
    if row["num_ties"] > 0:
        keys["most ties"] = float(row["num_ties"])
    agreement = row["agreement_w"] if row["agreement_w"] is not None else row["agreement_tau"]
    if is_number(agreement) and agreement < 1:
        keys["least agreement"] = -agreement
    if row["status"] != "ok":
        keys["not ranked well"] = 0.0
    return keys


def example(row: Mapping[str, Any]) -> dict[str, Any]:
    """One ranked row as it is shown."""
    return {
        "title": _title(row["prompt"]),
        "why": "" if row["status"] == "ok" else f"status {row['status']}",
        "prompt": _messages(row["prompt"]),
        "reference": None if row.get("reference") is None else shown(row["reference"]),
        **_responses(row["responses"]),
    }


def before_after(examples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out prompts with the answers of the models, and ranked responses where an example has them.

    An example has `prompt` (string or messages), and any of `reference`; `answers` (model -> text, or -> a dict with
    `content` and `score`), or `before` and `after` for two answers; `responses` as in a ranked row.
    """
    result = []
    for entry in examples:
        prompt = entry.get("prompt", "")
        answers = dict(entry.get("answers") or {})
        answers |= {name: entry[name] for name in ("before", "after") if entry.get(name) is not None}
        shown_answers = []
        for name, answer in answers.items():
            record = answer if isinstance(answer, Mapping) else {"content": answer}
            facts = [f"score {number(record['score'], 2)}"] if is_number(record.get("score")) else []
            shown_answers.append({"name": model_name(name), "facts": facts, "text": shown(record.get("content"))})
        result.append(
            {
                "title": _title(prompt),
                "why": "",
                "prompt": _messages(prompt),
                "reference": None if entry.get("reference") is None else shown(entry["reference"]),
                "answers": shown_answers,
                **_responses(entry.get("responses") or []),
            }
        )
    return result


def _responses(responses: Any) -> dict[str, Any]:
    return {
        "responses": [_response(response) for response in responses[:SHOWN_RESPONSES]],
        "more": max(0, len(responses) - SHOWN_RESPONSES),
    }


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    rank = response.get("rank")
    return {
        "rank": "–" if rank is None else str(rank),
        "best": rank == 1,
        "model": first_line(response.get("model") or "", 200),
        "facts": response_facts(response),
        "text": shown(response.get("content")),
    }


def response_facts(response: Mapping[str, Any]) -> list[str]:
    """What is known of a response beside its rank and text, in words."""
    logprob, tokens = response.get("logprob"), response.get("num_tokens")
    facts = []
    if is_number(response.get("score")):
        facts.append(f"score {number(response['score'], 2)}")
    if is_number(logprob):
        mean = f"{number(logprob / tokens, 2)} nats/token" if tokens else f"{number(logprob, 1)} nats"
        facts.append(f"log-prob {mean}")
    if tokens is not None:
        facts.append(f"{tokens:,} token{'s' if tokens != 1 else ''}")
    if response.get("finish_reason") == "length":
        facts.append("cut by the sampler")
    if response.get("duplicate_of") is not None:
        facts.append("duplicate")
    return facts


def _messages(prompt: Any) -> list[tuple[str, Shown]]:
    if isinstance(prompt, str):
        return [("user", shown(prompt))]
    return [(first_line(str(m.get("role", "")), 40), shown(m.get("content"))) for m in prompt]


def _title(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""
    return first_line(text) or "(empty prompt)"
