"""A loopback server that speaks Anthropic's Messages API, well or badly, for the real SDK to talk to.

`with AnthropicServer() as server:` serves on a free port of 127.0.0.1. What it answers is a queue of canned responses
(`server.script(overloaded(), message("..."))`); when the queue is empty, `server.answer(body)` makes the text of a
good one. Every request is kept in `server.requests`.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Canned:
    """A response as it goes over the wire. `cut` bytes of the promised body are withheld and the connection closed."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: int = 0


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


class AnthropicServer:
    """The server; `requests` holds (headers, decoded body) in the order of arrival."""

    def __init__(self, answer: Callable[[dict[str, Any]], str] | None = None) -> None:
        self.answer = answer
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self._queue: deque[Canned] = deque()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def script(self, *responses: Canned) -> None:
        self._queue.extend(responses)

    def __enter__(self) -> AnthropicServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _respond(self, headers: dict[str, str], body: dict[str, Any]) -> Canned:
        with self._lock:
            self.requests.append((headers, body))
            if self._queue:
                return self._queue.popleft()
        if self.answer is None:
            return error(500, "api_error", "the script of the test is at its end", x_should_retry="false")
        return message(self.answer(body))

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's, below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                canned = server._respond({k.lower(): v for k, v in self.headers.items()}, body)
                if self.path != "/v1/messages":
                    canned = error(404, "not_found_error", self.path)
                self.send_response(canned.status)
                self.send_header("Content-Type", canned.content_type)
                self.send_header("Content-Length", str(len(canned.body)))
                for name, value in canned.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(canned.body[: len(canned.body) - canned.cut])
                if canned.cut:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        return Handler
