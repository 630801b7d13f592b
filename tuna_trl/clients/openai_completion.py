"""The envelope of a chat completion that is a verdict: its text, why it ended, what it used. Reads, sends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .base import Reply
from .openai_replies import read_usage
from .retry import Fault
from .too_long import error_of, too_long


def read_completion(body: Any, request_id: str | None = None) -> Reply:
    """The envelope of a decoded `chat.completion`; see [`OpenAICompatibleJudge.read_body`].

    `raw` of a refusal is JSON with the model's words under `stop_details`, as Anthropic's is; the stop reason is then
    `refusal` or `content_filter`.
    """
    if not isinstance(body, Mapping):
        raise Fault("the body is no JSON object")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Fault("the body is an error" if body.get("error") else "the body has no choices")
    message = choices[0].get("message") if isinstance(choices[0], Mapping) else None
    if not isinstance(message, Mapping):
        raise Fault("the choice has no message")
    text, refusal, reason = message.get("content"), message.get("refusal"), choices[0].get("finish_reason")
    text = text if isinstance(text, str) else ""
    if refusal or reason == "content_filter":
        details = {"category": None if refusal else "content_filter", "words": refusal or None}
        text = json.dumps({"stop_details": details, "text": text}, ensure_ascii=False)
        reason = "refusal" if refusal else reason
    model, own_id = body.get("model"), body.get("id")
    return Reply(
        raw=text,
        stop_reason=reason if isinstance(reason, str) else None,
        request_id=request_id or (own_id if isinstance(own_id, str) else None),
        model=model if isinstance(model, str) else None,
        usage=read_usage(body.get("usage")),
    )


def decoded(text: str) -> Any:
    """A body as JSON; [`Fault`] if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Fault(f"the body is no JSON ({type(error).__name__})") from None


def declined(error: Any, hide: Callable[[str], str]) -> Reply | None:
    """HTTP 400 that is about the row, not about the request: it is too long, or a filter of the provider's declines
    it. Such a row has a status; it is no reason to end a build."""
    if (reply := too_long(error.body, hide, error.request_id)) is not None:
        return reply
    inner = error_of(error.body)
    if "content_filter" in (inner.get("code"), inner.get("type")):
        words = hide(str(inner.get("message") or ""))[:500]
        raw = {"stop_details": {"category": "content_filter", "words": words}, "text": ""}
        return Reply(json.dumps(raw, ensure_ascii=False), "content_filter", error.request_id)
    return None
