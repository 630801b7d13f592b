"""OpenAI's Batch API: a file of requests is uploaded, a batch made of it; the answers come in a file, at half price.

The transport of [`tuna_trl.clients.base.BatchTransport`] for a judge behind chat.completions that has `body(request)`
and `read_body(body)`; what is sent when, and what is kept, is `tuna_trl.build.batches`. A batch carries our tag in its
metadata, so a submission whose answer was lost is found by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from .base import BatchFault, BatchState, JudgeRequest, Reply
from .batch_calls import BatchRefused, Caller, JudgeBatches, decoded
from .retry import Fault


# https://developers.openai.com/api/docs/guides/batch
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
_ENDPOINT = "/v1/chat/completions"
_ENDED = ("completed", "failed", "expired", "cancelled")
_WAYS_OUT = {
    400: "Check the model's id, and whether it can be used in batches.",
    401: "The API key was refused: check OPENAI_API_KEY.",
    402: "The account cannot pay: check its credit.",
    403: "The key may not use this model or batches.",
    404: "The batch or its file is not there: it was deleted, or sent with the key of another project.",
    413: "The batch is too large for the API: make batches smaller (`max_requests`, `max_bytes`).",
}


class OpenAIBatches(JudgeBatches):
    """Batches of one judge behind OpenAI's API (50,000 requests, 200 MB at most).

    Args:
        judge: has `name`, `body(request)` for chat.completions, `read_body(body)`, `worst_case_cost` and `cost`.
        client: the SDK's client, without retries of its own.
        limits: `share`, `max_requests`, `max_bytes`; see [`JudgeBatches`]. An account's limit of queued tokens may ask
            for smaller batches.
    """

    keeps_tags = True
    after = "after"

    def __init__(
        self,
        judge: Any,
        client: Any,
        *,
        hide: Callable[[str], str],
        max_retries: int,
        **limits: Any,
    ) -> None:
        import openai

        call = Caller(openai, judge.name, _WAYS_OUT, hide, max_retries)
        super().__init__(call, judge, (MAX_REQUESTS, MAX_BYTES), **limits)
        self._client = client

    def size(self, request: JudgeRequest) -> int:
        return len(self._line("0" * 64, request))

    def submit(self, requests: Mapping[str, JudgeRequest], *, tag: str) -> BatchState:
        """Upload the requests (again if need be: a file alone costs nothing), then make a batch of them, once.

        Raises:
            Refused: (an InputError) the batch or the key is wrong.
            NotTaken: it certainly did not arrive.
            BuildError: it may have arrived.
        """
        content = b"".join(self._line(key, request) for key, request in requests.items())
        files, batches = self._client.files.with_raw_response, self._client.batches.with_raw_response

        def upload() -> str:
            uploaded = decoded(files.create(file=(f"{tag}.jsonl", content), purpose="batch").text)
            if not uploaded.get("id"):
                raise Fault("the body is no file")
            return uploaded["id"]

        file = self._call.read(upload)
        options = dict(endpoint=_ENDPOINT, completion_window="24h", metadata={"tuna_trl": tag})
        return self._call.once(lambda: self._batch(decoded(batches.create(input_file_id=file, **options).text)))

    def _listed(self, **options: Any) -> str:
        return self._client.batches.with_raw_response.list(**options).text

    def _retrieved(self, batch_id: str) -> str:
        return self._client.batches.with_raw_response.retrieve(batch_id).text

    def _described(self, record: Mapping[str, Any]) -> BatchState:
        counts = record.get("request_counts") or {}  # absent or zero until the file has been read
        return BatchState(
            id=str(record["id"]),
            ended=record["status"] in _ENDED,
            size=int(counts.get("total") or 0),
            created=float(record["created_at"]),
            tag=(record.get("metadata") or {}).get("tuna_trl"),
            done=int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
        )

    def results(self, batch_id: str) -> Iterator[tuple[str, Reply | BatchFault]]:
        """See [`tuna_trl.clients.base.BatchTransport.results`]; answers first, then the file of errors.

        Raises:
            BatchRefused: the whole batch was refused.
            Refused: its files are not there (any more).
            Torn: a file broke off.
        """
        record = self._record(batch_id)
        names = [record.get("output_file_id"), record.get("error_file_id")]
        if record.get("status") == "failed" and not any(names):
            raise BatchRefused(f"{self._judge.name} refused the batch {batch_id} ({self._errors(record)}).")
        for name in filter(None, names):
            stream = self._client.files.with_streaming_response.content
            for line in self._call.records(partial(stream, name)):
                yield str(line.get("custom_id")), self._item(line)

    def _line(self, key: str, request: JudgeRequest) -> bytes:
        body = dict(self._judge.body(request))
        body |= body.pop("extra_body", None) or {}  # the SDK would put it beside the rest
        record = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(record, ensure_ascii=True).encode() + b"\n"

    def _item(self, line: Mapping[str, Any]) -> Reply | BatchFault:
        response, error = line.get("response"), line.get("error")
        status = response.get("status_code") if isinstance(response, Mapping) else None
        body = response.get("body") if isinstance(response, Mapping) else None
        if status == 200:
            try:
                return self._judge.read_body(body)
            except Fault as fault:
                return BatchFault(str(fault), again=True)
        inner = body.get("error") if isinstance(body, Mapping) else error
        said = inner if isinstance(inner, Mapping) else {}
        final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 429)
        words = f"{status or said.get('code')}: {said.get('message')}"
        return BatchFault(self._call.hide(words)[:500], again=not final)  # expired and cancelled have no status

    def _errors(self, record: Mapping[str, Any]) -> str:
        data = (record.get("errors") or {}).get("data") or []
        said = "; ".join(f"{each.get('code')}: {each.get('message')}" for each in data[:3])
        hint = " Make batches smaller (`max_requests`)." if "token_limit_exceeded" in said else ""
        return self._call.hide(said)[:500] + hint
