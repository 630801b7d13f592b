"""Anthropic's Message Batches: many questions in one upload, at half the price, answered within a day in any order.

The transport of [`tuna_trl.clients.base.BatchTransport`] for an `AnthropicJudge`; what is sent when, and what is kept,
is `tuna_trl.build.batches`. Batches carry no mark of the sender, so a lost submission is known by its results alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from .anthropic_messages import WAYS_OUT, too_long
from .base import BatchFault, BatchState, JudgeRequest, Reply, Usage
from .batch_calls import Caller, decoded, limit
from .retry import Fault


if TYPE_CHECKING:
    from .anthropic_messages import AnthropicJudge

# https://platform.claude.com/docs/en/build-with-claude/batch-processing
MAX_REQUESTS = 100_000
MAX_BYTES = 256_000_000
_PAGE = 100
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


class AnthropicBatches:
    """Message Batches of one judge; made by [`AnthropicJudge.batch`].

    Args:
        share: of its price that a request pays in a batch.
        max_requests, max_bytes: limits of one batch below the API's own (100,000 requests, 256 MB).
    """

    keeps_tags = False

    def __init__(
        self,
        judge: AnthropicJudge,
        client: Any,
        *,
        share: float,
        hide: Callable[[str], str],
        max_retries: int,
        max_requests: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        import anthropic

        self.max_requests = limit("max_requests", max_requests, MAX_REQUESTS)
        self.max_bytes = limit("max_bytes", max_bytes, MAX_BYTES)
        self._judge, self._share = judge, share
        self._batches = client.messages.batches
        self._call = Caller(anthropic, judge.name, _BATCH_WAYS_OUT, hide, max_retries)

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
        return self._call.once(lambda: _state(self._batches.with_raw_response.create(requests=items)))

    def list(self, *, since: float) -> list[BatchState]:
        """The workspace's batches created after `since`, newest first."""
        states: list[BatchState] = []
        options: dict[str, Any] = {}
        while True:
            page = self._call.read(partial(self._page, options))
            states += [_batch(record) for record in page["data"]]
            if not page["data"] or not page.get("has_more") or states[-1].created < since:
                return [state for state in states if state.created >= since]
            options = {"after_id": states[-1].id}

    def _page(self, options: dict[str, Any]) -> dict[str, Any]:
        return _page(self._batches.with_raw_response.list(limit=_PAGE, **options))

    def state(self, batch_id: str) -> BatchState:
        return self._call.read(lambda: _state(self._batches.with_raw_response.retrieve(batch_id)))

    def results(self, batch_id: str) -> Iterator[tuple[str, Reply | BatchFault]]:
        """See [`tuna_trl.clients.base.BatchTransport.results`].

        Raises:
            Refused: the results are not there (any more).
            Torn: they broke off.
        """
        for record in self._call.records(lambda: self._batches.with_streaming_response.results(batch_id)):
            yield str(record.get("custom_id")), self._item(record.get("result"))

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        worst = self._judge.worst_case_cost(request)
        return None if worst is None else worst * self._share

    def cost(self, usage: Usage) -> float | None:
        cost = self._judge.cost(usage)
        return None if cost is None else cost * self._share

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
        inner = error.get("error") if isinstance(error, Mapping) else None
        inner = inner if isinstance(inner, Mapping) else {}
        name = str(inner.get("type"))
        said = self._call.hide(f"{name}: {inner.get('message')}")[:500]
        return BatchFault(said, again=name not in _FINAL)


def _state(raw: Any) -> BatchState:
    return _batch(decoded(raw.text()))


def _page(raw: Any) -> dict[str, Any]:
    page = decoded(raw.text())
    if not isinstance(page.get("data"), list):
        raise Fault("the body is no list")
    for record in page["data"]:
        _batch(record)
    return page


def _batch(record: Mapping[str, Any]) -> BatchState:
    try:
        counts = record["request_counts"]
        size = sum(counts.values())
        return BatchState(
            id=str(record["id"]),
            ended=record["processing_status"] == "ended",
            size=size,
            created=datetime.fromisoformat(record["created_at"]).timestamp(),
            done=size - counts["processing"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Fault("the body is no batch") from None
