"""What a user adds to a request of his own, for a server's own options: checked, because it is stored and sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..data.schema import canonical_json
from ..errors import InputError


RESERVED = (  # what the clients set themselves, or what would change the replies behind their back
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages", "model", "n",
    "post_sampling_probs", "presence_penalty", "prompt_logprobs", "return_tokens_as_token_ids", "seed", "stop",
    "stream", "temperature", "top_logprobs", "top_p",
)  # fmt: skip
_SECRET = re.compile(r"(^|[_-])(api_?key|auth|authorization|bearer|credentials?|password|secret)($|[_-])", re.I)


def checked_extra_body(extra_body: Mapping[str, Any] | None) -> dict[str, Any]:
    """A deep copy of `extra_body`.

    Raises:
        InputError: it holds what the sampler sets itself, a name of a secret, or what JSON cannot hold.
    """
    extra = dict(extra_body or {})
    if ours := sorted(set(extra) & set(RESERVED)):
        raise InputError(
            f"`extra_body` holds {', '.join(ours)}, which would change what is drawn or scored behind the sampling's "
            "back. Set temperature, top_p, top_k and max_new_tokens in the sampling; the others cannot be set."
        )
    if secret := sorted(_secrets(extra)):
        raise InputError(f"`extra_body` holds {', '.join(secret)}: it is stored with the dataset. Use `api_key`.")
    try:
        return json.loads(canonical_json(extra))  # nothing shared with the caller, who may change his later
    except (TypeError, ValueError):
        raise InputError("`extra_body` holds what JSON cannot; it is sent and stored as JSON.") from None


def _secrets(value: Any) -> set[str]:
    """Names inside `value` that look like those of secrets."""
    if isinstance(value, Mapping):
        own = {str(key) for key in value if _SECRET.search(str(key))}
        return own.union(*(_secrets(inner) for inner in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*(_secrets(inner) for inner in value))
    return set()
