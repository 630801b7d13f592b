"""A judge by name, for the command line and for YAML."""

from __future__ import annotations

from ..errors import InputError, did_you_mean
from .base import Judge


KNOWN = ("reference", "claude")


def judge_by_name(name: str) -> Judge:
    """`reference`, `claude` (the default Claude model) or a Claude model id such as `claude-haiku-5-5`.

    Raises:
        InputError: the name is not known, or Claude is asked for and no key is set.
    """
    if name == "reference":
        from .reference import ReferenceJudge

        return ReferenceJudge()
    if name.startswith("claude"):
        from .anthropic_messages import AnthropicJudge

        return AnthropicJudge() if name == "claude" else AnthropicJudge(name)
    raise InputError(
        f"`judge` is {name!r}, expected 'reference', 'claude' or a Claude model id.{did_you_mean(name, KNOWN)}"
    )
