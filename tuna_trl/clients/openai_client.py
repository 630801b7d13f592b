"""The SDK's client for a server that speaks OpenAI's protocol, and the key that it is given. Sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .endpoints import is_loopback
from .keys import checked_key


def key_for(urls: Sequence[str], api_key: str | None) -> str:
    """The key passed; else that of the environment, for https alone: it is never sent in the clear unasked."""
    if api_key is not None and api_key.strip():
        return checked_key(api_key, "OPENAI_API_KEY")
    if not all(url.startswith("https:") for url in urls):
        if any(url.startswith("https:") for url in urls):
            raise InputError("`endpoints` mixes http and https. Pass `api_key` if the servers need one.")
        return ""
    key = checked_key(None, "OPENAI_API_KEY")
    if not key and not all(is_loopback(url) for url in urls):
        raise InputError(
            "The server needs an API key, and the environment variable OPENAI_API_KEY is not set. Set it or pass "
            "`api_key`; a server of your own without a key is reached over http://, as http://localhost:8000/v1."
        )
    return key


def openai_client(url: str, key: str, timeout: float) -> Any:
    """The SDK's client: no retries of its own (ours are bounded and know a broken body)."""
    try:
        import openai
    except ImportError:
        raise InputError(
            "A teacher behind a server needs the package `openai`: pip install 'tuna-trl[openai]'."
        ) from None
    # A dead host is found out in 10 s; an answer may take as long as it takes.
    patience = openai.Timeout(timeout, connect=min(timeout, 10.0))
    return openai.OpenAI(api_key=key or "none", base_url=url, timeout=patience, max_retries=0)
