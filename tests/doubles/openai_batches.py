"""A loopback server that speaks OpenAI's Files and Batches, for the real SDK to talk to; batches stand on a shelf."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from doubles.batch_shelf import BatchShelf, Kept
from doubles.loopback import Canned, Loopback
from doubles.openai_server import status


class OpenAIBatchServer(Loopback):
    """The server. `refuses` says why a whole batch fails validation; `faults` are answers to the next requests."""

    root = "/v1"

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self.answer = answer
        self.shelf = BatchShelf()
        self.files: dict[str, bytes] = {}
        self.headers: list[dict[str, str]] = []
        self.refuses: Callable[[Kept], str | None] = lambda kept: None
        self.faults: deque[Canned] = deque()

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        self.headers.append(headers)
        if self.faults:
            return self.faults.popleft()
        parts = urlsplit(path)
        names = parts.path.strip("/").split("/")[1:]
        if names == ["files"] and method == "POST":
            return self._upload(raw)
        if names[0] == "files" and names[-1] == "content":
            return self._content(names[1])
        if names == ["batches"] and method == "POST":
            return self._create(json.loads(raw))
        if names == ["batches"]:
            return self._page({name: values[0] for name, values in parse_qs(parts.query).items()})
        kept = self.shelf.look(names[1]) if names[0] == "batches" else None
        return status(404, path) if kept is None else self._described(kept)

    def _upload(self, raw: bytes) -> Canned:
        content = re.search(rb'filename="[^"]+\.jsonl".*?\r\n\r\n(.*?)\r\n--', raw, re.DOTALL)[1]
        assert b'name="purpose"\r\n\r\nbatch' in raw
        name = f"file_{len(self.files)}"
        self.files[name] = content
        record = {"id": name, "object": "file", "bytes": len(content), "filename": "x", "purpose": "batch"}
        return _json(record | {"created_at": 1, "status": "processed"})

    def _create(self, body: dict[str, Any]) -> Canned:
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
        items = [(line["custom_id"], line["body"]) for line in lines]
        kept = self.shelf.create(items, body["metadata"].get("tuna_trl"))
        return self._described(kept)

    def _page(self, options: dict[str, str]) -> Canned:
        kept = self.shelf.newest_first()
        if after := options.get("after"):
            kept = kept[[each.id for each in kept].index(after) + 1 :]
        size = min(int(options.get("limit", 20)), self.shelf.page)
        return _json({"object": "list", "data": [self._record(k) for k in kept[:size]], "has_more": len(kept) > size})

    def _described(self, kept: Kept) -> Canned:
        return _json(self._record(kept))

    def _record(self, kept: Kept) -> dict[str, Any]:
        reason = self.refuses(kept)
        errors = {"object": "list", "data": [{"code": reason, "message": "no", "line": 1, "param": None}]}
        good = sum(fate == "succeeded" for fate in kept.fates.values())
        expired = "expired" in kept.fates.values()
        ended = "failed" if reason else "expired" if expired else "completed"
        counts = {"total": len(kept.items), "completed": good, "failed": len(kept.items) - good}
        return {
            "id": kept.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "input_file_id": "file_0",
            "created_at": int(kept.created),
            "status": ended if kept.ended else "validating",
            "request_counts": counts if kept.ended and not reason else {"total": 0, "completed": 0, "failed": 0},
            "metadata": {} if kept.tag is None else {"tuna_trl": kept.tag},
            "output_file_id": f"{kept.id}-output" if kept.ended and good and not reason else None,
            "error_file_id": f"{kept.id}-errors" if kept.ended and good < len(kept.items) and not reason else None,
            "errors": errors if reason else None,
        }

    def _content(self, name: str) -> Canned:
        batch, _, kind = name.partition("-")
        items, tear = self.shelf.results(self.shelf.batches[batch])
        wanted = [item for item in items if (item[2] == "succeeded") == (kind == "output")]
        records = [self._line(*item) + b"\n" for item in wanted]
        whole = b"".join(records)
        cut = 0 if tear is None else len(whole) - len(b"".join(records[:tear])) - 20
        return Canned(body=whole, content_type="application/octet-stream", cut=max(0, cut))

    def _line(self, key: str, body: dict[str, Any], fate: str) -> bytes:
        response, error = None, None
        if fate == "succeeded":
            message = {"role": "assistant", "content": self.answer(body)}
            usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
            choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
            reply = {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"]}
            response = {"status_code": 200, "request_id": "r", "body": reply | {"choices": choices, "usage": usage}}
        elif fate == "expired":
            error = {"code": "batch_expired", "message": "not in time"}
        else:
            code = int(fate)
            response = {"status_code": code, "request_id": "r", "body": {"error": {"message": "no", "type": "x"}}}
        line = {"id": f"r-{key}", "custom_id": key, "response": response, "error": error}
        return json.dumps(line, ensure_ascii=False).encode()


def _json(record: dict[str, Any]) -> Canned:
    return Canned(body=json.dumps(record).encode())
