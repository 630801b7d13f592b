"""Questions and a protocol without a template, for tests of asking; and a run that can be killed at a stage."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tuna_trl.build import batch_report, batches, submissions
from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.build.judging import Question, ask_all
from tuna_trl.clients import retry
from tuna_trl.clients.anthropic_messages import AnthropicJudge
from tuna_trl.clients.base import JudgeRequest, Verdict


KEY = "sk-ant-planted-5e6f7a8b"
GOOD = json.dumps({"scores": [2.0, 1.0]})


class PlainProtocol:
    """Asks for `{"scores": [...]}`."""

    name = "plain"

    def fingerprint(self) -> dict[str, Any]:
        return {"protocol": "plain"}

    def orders(self, order):
        return [tuple(order)]

    def render(self, request):
        return "Score the candidates.", f"{request.prompt[-1]['content']}\n" + "\n".join(request.candidates)

    def schema(self, n):
        return {"type": "object", "properties": {"scores": {"type": "array", "items": {"type": "number"}}}}

    def parse(self, request, reply):
        n = len(request.candidates)
        status = {"refusal": "refused", "max_tokens": "truncated", "length": "truncated"}.get(reply.stop_reason)
        if status:
            return Verdict(status, (None,) * n, None, status)
        try:
            return Verdict("ok", tuple(json.loads(reply.raw)["scores"]))
        except (ValueError, TypeError, KeyError):
            return Verdict("malformed", (None,) * n, None, "no scores")


def questions(count: int) -> list[Question]:
    return [
        Question(
            f"train[{i}]",
            JudgeRequest([{"role": "user", "content": f"question {i}."}], (f"one {i}", f"two {i}"), None, 0, "5f3a"),
            (0, 1),
        )
        for i in range(count)
    ]


def claude(url: str, **options: Any) -> AnthropicJudge:
    return AnthropicJudge(base_url=url, api_key=KEY, protocol=PlainProtocol(), **options)


def judge_all(url: str, path: Path, log: Path, *, count: int, batch: bool, die: tuple[str, int] | None = None) -> None:
    """Ask in this process; `die` names a place in the code, and how often it is passed before."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    retry.pause = batches.pause = lambda tried, retry_after: 0.01
    batches.SETTLE = 0.3
    if die is not None:
        place, passed = die
        where = {
            "begin": (submissions.Submissions, "begin", "after"),
            "name": (submissions.Submissions, "name", "before"),
            "named": (submissions.Submissions, "name", "after"),
            "receive": (submissions.Submissions, "receive", "after"),
            "receiving": (submissions.Submissions, "receive", "before"),
            "end": (submissions.Submissions, "end", "after"),
            "ending": (submissions.Submissions, "end", "before"),
            "collected": (batch_report.BatchReport, "collected", "after"),
        }[place]
        _kill_at(*where, passed)
    judge = claude(url, concurrency=3)
    with Journal(path) as journal:
        transport = judge.batch(max_requests=5) if batch else None
        ask_all(questions(count), judge, journal=journal, budget=Budget(50.0), batch=transport, poll=0.02)


def _kill_at(owner: type, name: str, when: str, passed: int) -> None:
    original, calls = getattr(owner, name), []

    def wrapped(self, *args, **kwargs):
        calls.append(1)
        last = len(calls) > passed
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)
