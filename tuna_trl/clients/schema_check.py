"""Does a server hold its model to a JSON schema? One small question whose answer stands in the schema alone."""

from __future__ import annotations

import json

from ..errors import BuildError
from .base import Reply


# The word is in the schema alone: who answers with it was held to the schema.
CHECK_WORD = "verdict-7f3a91"
CHECK_SCHEMA = {
    "type": "object",
    "properties": {"status": {"type": "string", "enum": [CHECK_WORD]}},
    "required": ["status"],
    "additionalProperties": False,
}
CHECK_PROMPT = "Say in one word that you are ready."


def check_kept(reply: Reply, name: str, max_tokens: int) -> None:
    """Whether the reply to the check is what the schema demands.

    Raises:
        BuildError: it is not; the message has the way out.
    """
    try:
        kept = json.loads(reply.raw) == {"status": CHECK_WORD}
    except (ValueError, RecursionError):
        kept = False
    if kept:
        return
    if reply.stop_reason == "length" and not reply.raw.strip():
        raise BuildError(f"{name} reasoned through all of max_tokens={max_tokens} before it said a word. Raise it.")
    raise BuildError(
        f"The server of {name} does not keep to a JSON schema: asked for one word that its schema holds, it wrote "
        f"{reply.raw[:80]!r} (finish reason {reply.stop_reason}). Pass schema='prompt', which puts the schema into "
        "the prompt and calls malformed what is no such JSON; or use a server that has structured output (vLLM, "
        "llama.cpp, TGI, OpenAI's API)."
    )
