"""Log-probs of a given response from a server that scores its prompt (vLLM's `prompt_logprobs`). Reads, sends nothing.

The response stands in the prompt as the assistant's message, so the chat template renders it; where it renders it
otherwise than it was given, that is an error and not another number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import BuildError
from .openai_replies import NO_LOGPROB, PromptToken, spells


def response_logprobs(
    prompt: Sequence[PromptToken], full: Sequence[PromptToken], text: str, *, include_eos: bool, name: str
) -> tuple[float, ...]:
    """The log-probs of `text` and, with `include_eos`, of the token that ends it, in nats.

    Args:
        prompt: the scored tokens of the messages, generation prompt included.
        full: those of the same messages and the response.

    Raises:
        BuildError: the template renders the response otherwise than after the generation prompt, adds to it or takes
            from it, ends it with nothing, or a log-prob is missing, infinite or a placeholder.
    """
    ids = [token.id for token in prompt]
    if [token.id for token in full[: len(ids)]] != ids:
        raise BuildError(
            f"The chat template of {name} does not put a given response after its generation prompt (reasoning models "
            "rewrite earlier turns), so the server cannot score it. Score with a local teacher."
        )
    rest = full[len(ids) :]
    pieces = [token.piece for token in rest]
    # The longest match: blanks at the end of a text are tokens of it, and the end token is no blank.
    length = next((k for k in range(len(pieces), -1, -1) if spells(pieces[:k], text)), None)
    if length is None or length == len(rest):
        said = b"".join(pieces).decode("utf-8", "replace")
        raise BuildError(
            f"The chat template of {name} renders the response {text[:60]!r} as {said[:60]!r}, which is another text "
            "or has no end, so its score would be another text's. Score with a local teacher."
        )
    logprobs = tuple(token.logprob for token in rest[: length + include_eos])
    if not all(NO_LOGPROB < value < math.inf for value in logprobs):
        raise BuildError(f"The server of {name} gave no number for a token of the response {text[:60]!r}.")
    return logprobs


def check_scores(sampled: Sequence[float], scored: Sequence[float], garbled: Sequence[float], name: str) -> None:
    """Whether a text that the server drew scores as it did when it was drawn, and better than itself backwards.

    A server whose prompt log-probs are wrong gives plausible numbers that rank at chance level (llama.cpp#27174).

    Raises:
        BuildError: it does not: more than 0.2 nats a token apart, or not better.
    """
    mean, expected = (sum(values) / len(values) for values in (scored, sampled))
    garbled_mean = sum(garbled) / len(garbled)
    if abs(mean - expected) > 0.2 or not mean > garbled_mean:
        raise BuildError(
            f"The prompt log-probs of the server of {name} are wrong: a text that it drew at {expected:.3f} nats a "
            f"token scores {mean:.3f} when it is given, and {garbled_mean:.3f} backwards. Score with a "
            "local teacher."
        )
