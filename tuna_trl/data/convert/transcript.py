"""Dialogues written as one text, `\\n\\nHuman: …\\n\\nAssistant: …`, as messages and back (hh-rlhf, Nectar)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...errors import SchemaError
from .shape import shown


START = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_NAMES = {role: name for name, role in _ROLES.items()}


def parse(text: str, column: str) -> list[dict[str, str]]:
    """The turns of a transcript, each without the space behind its colon; a last turn may be empty.

    A turn that itself contains `\\n\\nHuman:` cannot be told from two turns.

    Raises:
        SchemaError: it does not begin with `\\n\\nHuman:`.
    """
    if not isinstance(text, str) or not text.startswith((START, "\n\nAssistant:")):
        raise SchemaError(f"column {column!r} is {shown(text)}, expected a text that begins with '\\n\\nHuman:'.")
    _, *parts = _TURN.split(text)
    return [
        {"role": _ROLES[name], "content": words.removeprefix(" ")}
        for name, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """The transcript of messages; a role that it has no name for is written as it is called."""
    return "".join(f"\n\n{_NAMES.get(m['role'], m['role'])}: {m['content']}" for m in messages)
