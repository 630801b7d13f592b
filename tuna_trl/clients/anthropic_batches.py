"""Anthropic's Message Batches: many questions in one upload, at half the price, answered within a day in any order.

The transport of [`tuna_trl.clients.base.BatchTransport`] for an `AnthropicJudge`; what is sent when, and what is kept,
is `tuna_trl.build.batches`. Batches carry no mark of the sender, so a lost submission is known by its results alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .anthropic_messages import WAYS_OUT
from .base import BatchFault, BatchState, JudgeRequest, Reply
from .batch_calls import Caller, JudgeBatches, decoded
from .retry import Fault
from .too_long import error_of, too_long


if TYPE_CHECKING:
    from .anthropic_messages import AnthropicJudge

# https://platform.claude.com/docs/en/build-with-claude/batch-processing
MAX_REQUESTS = 100_000
MAX_BYTES = 256_000_000
# Kinds of an item's error that asking again does not mend; all others (api_error, overloaded_error, ...) it may.
_FINAL = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "billing_error",
)
_BATCH_WAYS_OUT = WAYS_OUT | {
    404: "The batch is not there: it was deleted, or sent with the key of another workspace, whose key can read it.",
    413: "The batch is too large for the API: make batches smaller (`max_requests`, `max_bytes`).",
}


class AnthropicBatches(JudgeBatches):
    """Message Batches of one judge (100,000 requests, 256 MB at most); made by [`AnthropicJudge.batch`].

    Args:
        limits: `share`, `max_requests`, `max_bytes`; see [`JudgeBatches`].
    """

    keeps_tags = False
    after = "after_id"

    def __init__(
        self,
        judge: AnthropicJudge,
        client: Any,
        *,
        hide: Callable[[str], str],
        max_retries: int,
        **limits: Any,
    ) -> None:
        import anthropic

        call = Caller(anthropic, judge.name, _BATCH_WAYS_OUT, hide, max_retries)
        super().__init__(call, judge, (MAX_REQUESTS, MAX_BYTES), **limits)
        self._batches = client.messages.batches

    def size(self, request: JudgeRequest) -> int:
        """Bytes of a request in a batch; what is not ASCII counts escaped, which is never less than what is sent."""
        return len(json.dumps({"custom_id": "0" * 64, "params": self._judge.body(request)})) + 2

    def submit(self, requests: Mapping[str, JudgeRequest], *, tag: str) -> BatchState:
        """Send one batch, once; `tag` cannot be kept.

        Raises:
            Refused: (an InputError) the batch or the key is wrong.
            NotTaken: it certainly did not arrive.
            BuildError: it may have arrived.
        """
        items = [{"custom_id": key, "params": self._judge.body(request)} for key, request in requests.items()]
        create = self._batches.with_raw_response.create
        return self._call.once(lambda: self._batch(decoded(create(requests=items).text())))

    def _listed(self, **options: Any) -> str:
        return self._batches.with_raw_response.list(**options).text()

    def _retrieved(self, batch_id: str) -> str:
        return self._batches.with_raw_response.retrieve(batch_id).text()

    def _described(self, record: Mapping[str, Any]) -> BatchState:
        counts = record["request_counts"]
        size = sum(counts.values())
        return BatchState(
            id=str(record["id"]),
            ended=record["processing_status"] == "ended",
            size=size,
            created=datetime.fromisoformat(record["created_at"]).timestamp(),
            done=size - counts["processing"],
        )

    def results(self, batch_id: str) -> Iterator[tuple[str, Reply | BatchFault]]:
        """See [`tuna_trl.clients.base.BatchTransport.results`].

        Raises:
            Refused: the results are not there (any more).
            Torn: they broke off.
        """
        for record in self._call.records(lambda: self._batches.with_streaming_response.results(batch_id)):
            yield str(record.get("custom_id")), self._item(record.get("result"))

    def _item(self, result: Any) -> Reply | BatchFault:
        kind = result.get("type") if isinstance(result, Mapping) else None
        if kind == "succeeded":
            try:
                return self._judge.read_body(result.get("message"))
            except Fault as fault:
                return BatchFault(str(fault), again=True)
        if kind != "errored":
            return BatchFault(str(kind), again=True)  # canceled, expired
        error = result.get("error")
        if (reply := too_long(error, self._call.hide)) is not None:
            return reply
        inner = error_of(error)
        name = str(inner.get("type"))
        said = self._call.hide(f"{name}: {inner.get('message')}")[:500]
        return BatchFault(said, again=name not in _FINAL)
