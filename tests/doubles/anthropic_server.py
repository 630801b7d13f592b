"""A loopback server that speaks Anthropic's Messages API, well or badly, for the real SDK to talk to.

`with AnthropicServer() as server:` serves on a free port of 127.0.0.1. What it answers is a queue of canned responses
(`server.script(overloaded(), message("..."))`); when the queue is empty, `server.answer(body)` makes the text of a
good one. Every request for a message is kept in `server.requests`. Batches stand on `server.shelf`, which counts what
was asked in them; their answers are made by `server.answer` too.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from doubles.batch_shelf import BatchShelf, Kept
from doubles.loopback import Canned, Loopback


def message(text: str | None, *, stop_reason: str = "end_turn", thinking: bool = True, **extra: Any) -> Canned:
    """A good reply; as real ones do, it has a thinking block before the text."""
    content: list[dict[str, Any]] = []
    if thinking:
        content.append({"type": "thinking", "thinking": "", "signature": "c2lnbmVk"})
    if text is not None:
        content.append({"type": "text", "text": text})
    envelope = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 1200,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 300,
            "output_tokens_details": {"thinking_tokens": 100},
        },
    }
    return Canned(body=json.dumps(envelope | extra).encode(), headers={"request-id": "req_01"})


def refusal(category: str | None) -> Canned:
    """HTTP 200 with no content at all: what a refusal looks like."""
    details = {"type": "refusal", "category": category, "explanation": None}
    return message(None, thinking=False, stop_reason="refusal", stop_details=details)


def error(status: int, kind: str, text: str = "no", **headers: str) -> Canned:
    body = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_02"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Canned(status=status, body=json.dumps(body).encode(), headers=named)


def rate_limited(retry_after: str) -> Canned:
    return error(429, "rate_limit_error", retry_after=retry_after)


def overloaded(**headers: str) -> Canned:
    return error(529, "overloaded_error", **headers)


def torn() -> Canned:
    """A good reply whose connection breaks before its end."""
    return Canned(body=message("{}").body, cut=40)


def html(status: int = 200) -> Canned:
    return Canned(status=status, body=b"<html><body>Sign in to the Wi-Fi</body></html>", content_type="text/html")


def plain(body: bytes) -> Canned:
    """HTTP 200 with this body, said to be JSON."""
    return Canned(body=body)


class AnthropicServer(Loopback):
    """The server; `requests` holds (headers, decoded body) in the order of arrival."""

    def __init__(self, answer: Callable[[dict[str, Any]], str] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []  # of every request
        self.counts: int | None = None  # what count_tokens says; None: the server has no such route
        self.shelf = BatchShelf()
        self.batch_faults: deque[Canned] = deque()  # answers to the next requests about batches
        self._queue: deque[Canned] = deque()

    def script(self, *responses: Canned) -> None:
        self._queue.extend(responses)

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        body = json.loads(raw or b"{}")
        with self._lock:
            self.headers.append(headers)
        if path.startswith("/v1/messages/batches"):
            return self._about_batches(method, path, body)
        if path == "/v1/messages/count_tokens" and self.counts is not None:
            if "max_tokens" in body:
                return error(400, "invalid_request_error", "max_tokens: Extra inputs are not permitted")
            return Canned(body=json.dumps({"input_tokens": self.counts}).encode())
        if path != "/v1/messages":
            return error(404, "not_found_error", path)
        with self._lock:
            self.requests.append((headers, body))
            if self._queue:
                return self._queue.popleft()
        self.shelf.at("message")
        if self.answer is None:
            return error(500, "api_error", "the script of the test is at its end", x_should_retry="false")
        return message(self.answer(body))

    def _about_batches(self, method: str, path: str, body: dict[str, Any]) -> Canned:
        with self._lock:
            fault = self.batch_faults.popleft() if self.batch_faults else None
        if fault is not None:
            return fault
        parts = urlsplit(path)
        found = re.fullmatch(r"/v1/messages/batches(?:/(\w+))?(?:/(results|cancel))?", parts.path)
        if found is None:
            return error(404, "not_found_error", path)
        if found[1] is None:
            if method == "GET":
                return self._page({name: values[0] for name, values in parse_qs(parts.query).items()})
            return self._described(
                self.shelf.create([(each["custom_id"], each["params"]) for each in body["requests"]])
            )
        kept = self.shelf.look(found[1]) if found[2] is None else self.shelf.batches.get(found[1])
        if kept is None:
            return error(404, "not_found_error", path)
        if found[2] == "cancel":
            kept.canceled = True
        return self._results(kept) if found[2] == "results" else self._described(kept)

    def _page(self, options: dict[str, str]) -> Canned:
        kept = self.shelf.newest_first()
        if after := options.get("after_id"):
            kept = kept[[each.id for each in kept].index(after) + 1 :]
        size = min(int(options.get("limit", 20)), self.shelf.page)
        page = [self._record(each) for each in kept[:size]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return Canned(body=json.dumps({"data": page, "has_more": len(kept) > size, **ends}).encode())

    def _described(self, kept: Kept) -> Canned:
        return Canned(body=json.dumps(self._record(kept)).encode())

    def _record(self, kept: Kept) -> dict[str, Any]:
        def when(seconds: float) -> str:
            return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for key, _ in kept.items:
            fate = kept.fates.get(key, "processing")
            counts[fate if fate in counts else "errored"] += 1
        running = "canceling" if kept.canceled else "in_progress"
        return {
            "id": kept.id,
            "type": "message_batch",
            "processing_status": "ended" if kept.ended else running,
            "request_counts": counts,
            "created_at": when(kept.created),
            "expires_at": when(kept.created + 86400),
            "ended_at": when(kept.created + 60) if kept.ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{kept.id}/results" if kept.ended else None,
        }

    def _results(self, kept: Kept) -> Canned:
        items, tear = self.shelf.results(kept)
        records = []
        for key, body, fate in items:
            if fate == "succeeded":
                result = {"type": fate, "message": json.loads(message(self.answer(body)).body)}
            elif fate in ("canceled", "expired"):
                result = {"type": fate}
            else:
                result = {"type": "errored", "error": json.loads(error(400, fate, f"{fate}!").body)}
            records.append(json.dumps({"custom_id": key, "result": result}).encode() + b"\n")
        whole = b"".join(records)
        cut = 0 if tear is None else len(whole) - len(b"".join(records[:tear])) - 30
        return Canned(body=whole, content_type="application/binary", cut=max(0, cut))
