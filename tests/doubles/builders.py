"""A sampler and a judge for the builders' tests (no model, no network, everything counted), and rows to feed them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from tuna_trl.build.judge import JudgeBuildConfig
from tuna_trl.clients.base import JudgeRequest, Reply, Sample, Usage, Verdict


WORDS = ["alpha one", "beta two", "gamma three", "delta four"]


def four(prompt: str) -> list[str]:
    """Four different answers to a prompt, one for each of [`WORDS`]."""
    return [f"{word} about {prompt}" for word in WORDS]


def config(**options: Any) -> JudgeBuildConfig:
    return JudgeBuildConfig(**({"show_progress": False, "rouge_threshold": None} | options))


def prompts(n: int = 3) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "reference": f"answer {i}"} for i in range(n)]


def prefers(word: str) -> Callable[[JudgeRequest], list[float]]:
    """Scores 9 for the candidate that holds `word`, else its length modulo 5."""
    return lambda request: [9.0 if word in text else float(len(text) % 5) for text in request.candidates]


def by_index(row: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(row["responses"], key=lambda response: response["index"])


class ListSampler:
    """Returns the texts that `texts(prompt)` lists, in order, the same for every seed; `calls` counts prompts."""

    name = "student-1"

    def __init__(self, texts: Callable[[str], Sequence[str]], finish_reason: str = "stop") -> None:
        self.texts = texts
        self.finish_reason = finish_reason
        self.calls = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"sampler": "list"}

    def prompt_lengths(self, prompts):
        return [len(prompt[-1]["content"]) for prompt in prompts]

    def sample(self, prompts, n, sampling, *, seeds):
        self.calls += len(prompts)
        result = []
        for prompt in prompts:
            texts = list(self.texts(prompt[-1]["content"]))
            assert len(texts) == n
            result.append([Sample(text, (-0.5, -0.25), self.finish_reason) for text in texts])
        return result


class FunctionJudge:
    """A judge whose raw replies `reply(request)` makes: a list of scores by shown place, or a string as it comes.

    A raw reply is JSON `{"scores": [...], "order": [...] or null}`; everything else is malformed. `requests` keeps
    what was asked.
    """

    name = "judge-1"
    method = "judge"

    def __init__(
        self,
        reply: Callable[[JudgeRequest], Any],
        *,
        paid: bool = False,
        price: float = 0.0,
        worst: float | None = None,
        concurrency: int = 3,
        max_batch: int = 1,
    ) -> None:
        self.reply = reply
        self.paid = paid
        self.price = price
        self.worst = price if worst is None else worst
        self.concurrency = concurrency
        self.max_batch = max_batch
        self.requests: list[JudgeRequest] = []
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def fingerprint(self) -> dict[str, Any]:
        return {"judge": "function"}

    def orders(self, order):
        return [tuple(order)]

    def ask(self, requests):
        with self._lock:
            self.requests.extend(requests)
            self.batches.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: JudgeRequest) -> Reply:
        answer = self.reply(request)
        if isinstance(answer, Reply):
            return answer
        raw = answer if isinstance(answer, str) else json.dumps({"scores": list(answer), "order": None})
        return Reply(raw, "stop", "req", self.name, Usage(input=10, output=1))

    def parse(self, request, reply):
        n = len(request.candidates)
        if reply.stop_reason in ("refused", "truncated", "inconsistent"):
            return Verdict(reply.stop_reason, (None,) * n, None, reply.stop_reason)
        try:
            content = json.loads(reply.raw)
            order = content["order"]
            return Verdict("ok", tuple(content["scores"]), None if order is None else tuple(order))
        except (ValueError, TypeError, KeyError) as error:
            return Verdict("malformed", (None,) * n, None, str(error))

    def worst_case_cost(self, request):
        return self.worst

    def cost(self, usage):
        return self.price
