"""What a server's first replies say about it: whether it does what it was asked for. Reads replies, sends nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import BuildError
from .base import Sampling
from .openai_replies import NO_LOGPROB, ChatReply, Choice


def check_reply(reply: ChatReply, name: str, include_eos: bool) -> None:
    """Whether the choices of a reply can be scored.

    Raises:
        BuildError: no log-probs, placeholders, log-probs of another text, or another rule for the end token.
    """
    for choice in reply.choices:
        if choice.tokens is None or (choice.text and not choice.tokens):
            raise BuildError(
                f"The server of {name} gave no log-probs: it ignores `logprobs` for this model, so it cannot be a "
                "teacher. Servers that give them: vLLM, llama.cpp, TGI, OpenAI's API (not its reasoning models)."
            )
        if not all(NO_LOGPROB < token.logprob < math.inf for token in choice.tokens):
            raise BuildError(
                f"The server of {name} gave log-probs that are no numbers or placeholders ({_first_bad(choice)}) for "
                "tokens that it drew itself, so its responses cannot be scored."
            )
        end = choice.end_token()
        if end == "mismatch":
            said = b"".join(token.piece for token in choice.tokens).decode("utf-8", "replace")
            raise BuildError(
                f"The log-probs that the server of {name} gave are not those of its text: their tokens spell "
                f"{said[:80]!r}, the text is {choice.text[:80]!r}. A parser on the server takes reasoning or tool "
                "calls out of the text: turn it off (vLLM: no --reasoning-parser, or "
                'extra_body={"chat_template_kwargs": {"enable_thinking": False}}).'
            )
        if choice.finish_reason == "stop" and include_eos and end == "absent":
            raise BuildError(
                f"The server of {name} gives no log-prob for the end token. Pass include_eos=False: scores are then "
                "without it, for the whole dataset, and are not to be mixed with scores that have it."
            )


def _first_bad(choice: Choice) -> float:
    return next(token.logprob for token in choice.tokens or () if not NO_LOGPROB < token.logprob < math.inf)


def draws_are_equal(reply: ChatReply, sampling: Sampling) -> bool:
    """Whether all choices are one text: a server that gives `n` copies of one draw does that, at any temperature."""
    return sampling.temperature > 0 and len({choice.text for choice in reply.choices}) == 1


def top_of_first(reply: ChatReply) -> dict[bytes, float]:
    """The most probable first tokens and their log-probs; what is not a number (cut away) is left out."""
    tokens = reply.choices[0].tokens
    if not tokens:
        return {}
    top = {**tokens[0].top, tokens[0].piece: tokens[0].logprob}
    return {piece: value for piece, value in top.items() if NO_LOGPROB < value < math.inf}


def same_distribution(a: Mapping[bytes, float], b: Mapping[bytes, float], tolerance: float) -> bool:
    """Whether two lists of the most probable tokens are of one distribution, to `tolerance` nats a token on average.

    Each list also holds the token that was drawn, and two equally probable tokens may change places at its end, so
    the three most probable of each are looked for in the other. Fewer than two say nothing, and that is a no.
    """
    best = {piece for top in (a, b) for piece in sorted(top, key=lambda key: -top[key])[:3]}
    if min(len(a), len(b)) < 2 or not all(piece in a and piece in b for piece in best):
        return False
    return sum(abs(a[piece] - b[piece]) for piece in best) / len(best) <= tolerance
