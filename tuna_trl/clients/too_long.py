"""A request that does not fit the model: how servers say so, and the reply that it comes to. Reads, sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .base import Reply


TOO_LONG = "model_context_window_exceeded"  # the stop reason of such a reply; `raw` says why
# In the words, the code or the type of an error: OpenAI's code, llama.cpp's type, vLLM's words, Anthropic's ("prompt
# is too long: 213462 tokens > 200000 maximum"), TGI's two (status 422), which were
# not tried on a server.
_SIGNS = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "maximum context length",
    "prompt is too long",
    "`inputs` must have less than",
    "`inputs` tokens + `max_new_tokens` must be",
)


def error_of(body: Any) -> Mapping[str, Any]:
    """The error inside the decoded body of a refusal; the body itself where it holds none."""
    body = body if isinstance(body, Mapping) else {}
    return body["error"] if isinstance(body.get("error"), Mapping) else body


def says_too_long(body: Any) -> bool:
    """Whether the decoded body of a refusal says that the request does not fit the model."""
    parts = [body, *map(error_of(body).get, ("message", "code", "type", "error"))]  # TGI's error is a string
    said = " ".join(part for part in parts if isinstance(part, str))
    return any(sign in said for sign in _SIGNS)


def too_long(body: Any, hide: Callable[[str], str], request_id: str | None = None) -> Reply | None:
    """The reply that such a refusal comes to: one row that is too long is no reason to end a build. None for any
    other refusal.

    Args:
        body: of the refusal, decoded.
        hide: takes secrets out of the server's words.
    """
    if not says_too_long(body):
        return None
    return Reply(hide(str(error_of(body).get("message") or ""))[:500], TOO_LONG, request_id)
