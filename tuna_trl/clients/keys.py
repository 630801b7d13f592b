"""An API key: where it is taken from, whether it can be one, and how it is kept out of what is shown."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..errors import InputError


def checked_key(api_key: str | None, variable: str) -> str:
    """The key passed, else that of the environment variable, stripped; "" if there is none.

    Raises:
        InputError: it holds what no HTTP header can, so that no later error could quote it.
    """
    key = (api_key or os.environ.get(variable) or "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise InputError(
            f"{variable} (or api_key) holds a space, a line break or a character outside ASCII, so it is no API key: "
            "copy it again."
        )
    return key


def key_hider(key: str) -> Callable[[str], str]:
    """A function that puts `<key>` in place of the key, should a server echo it; without a key it changes nothing."""
    return (lambda text: text.replace(key, "<key>")) if key else str
