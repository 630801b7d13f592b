"""Log-probs of given responses from servers that score their prompt (vLLM's `prompt_logprobs`).

The response stands in the prompt as the assistant's message, so the chat template renders it; where it renders it
otherwise than it was given, that is said and is not another number. Asks over the sampler it is given; reads replies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.schema import Messages
from ..errors import BuildError, InputError
from .base import Sampling, Usage
from .openai_replies import NO_LOGPROB, ChatReply, PromptToken, spells


if TYPE_CHECKING:
    from .openai_compatible import OpenAICompatibleSampler

WAYS_OUT = (
    "Ways out: serve the model with vLLM, which scores its prompt (`prompt_logprobs`), or score with a local teacher "
    "(leave --base-url out). llama.cpp's server and OpenAI's API cannot score a given text through "
    "chat.completions."
)
CHECK_PROMPT: Messages = [{"role": "user", "content": "Name three things you can find in a kitchen, in one line."}]
CHECK_TOKENS = 48
_CHECK_DRAWS = 3
_TOLERANCE = 0.2  # nats a token: bf16 and other batches stay below, other weights and places do not


class Unscored(BuildError):
    """A reply came, and it holds no score of this response. `reason` is that of the row: `rewritten` (the chat
    template puts it otherwise than it was given) or `not_finite`; `usage` is what the reply took."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason, self.usage = reason, Usage()


class PromptScorer:
    """Scores given responses on the servers of a sampler, at temperature 1: one request for a prompt, one for each
    response. May be used by many threads.

    Args:
        sampler: knows the servers; its `system`, `extra_body`, `include_eos`, concurrency and prices hold here too.

    Raises:
        InputError: a server is OpenAI's own, which scores no given text.
    """

    def __init__(self, sampler: OpenAICompatibleSampler) -> None:
        if sampler.openai_itself:
            raise InputError(f"OpenAI's API cannot score given responses ({sampler.name}). {WAYS_OUT}")
        self._sampler = sampler
        self.name, self.concurrency, self.paid = sampler.name, sampler.concurrency, sampler.paid
        self.include_eos = sampler.include_eos

    def fingerprint(self) -> dict[str, Any]:
        """That of the sampler, and how it scores; no address and no key."""
        return {**self._sampler.fingerprint(), "scores": "prompt_logprobs"}

    @property
    def check_usage(self) -> Usage:
        """What [`check`] has used so far."""
        return self._sampler.check_usage

    def check(self) -> None:
        """Hold, on every server, the score of a text against that of the same text when the server drew it, and the
        servers' scores of one text against each other. Eleven requests a server at most, but mostly four or five.

        Raises:
            BuildError: a server does not score prompts, or scores them wrongly, or serves another model.
        """
        first: tuple[str, tuple[float, ...]] | None = None
        for server in range(self._sampler.servers):
            ids, _ = self.start(CHECK_PROMPT, server=server)  # first of all: whether it scores at all
            drawn = self._check_server(ids, server)
            first = first or drawn
            if server:
                mine = self._given(ids, first[0], server)
                apart = [abs(a - b) for a, b in zip(mine, first[1], strict=False)]
                if len(mine) != len(first[1]) or _mean(apart) > _TOLERANCE:
                    raise BuildError(
                        f"endpoints[0] and endpoints[{server}] score one text differently under {self.name}: they do "
                        "not serve the same model. Scores of two teachers are never mixed."
                    )

    def start(self, prompt: Messages, *, server: int | None = None) -> tuple[tuple[int, ...], Usage]:
        """Token ids of a prompt with its generation prompt, but for the very first, and what it took to learn them.

        Raises:
            BuildError: no reply, or the server scores no prompts.
            InputError: the request is refused.
        """
        tokens, usage = self._scored(prompt, None, server)
        return tuple(token.id for token in tokens), usage

    def response(
        self, prompt: Messages, ids: Sequence[int], text: str, *, cut: bool = False
    ) -> tuple[tuple[float, ...], int, Usage]:
        """Log-probs of the tokens of one response and (by `include_eos`, unless it was `cut`) of its end.

        Args:
            ids: what [`start`] returned for `prompt`.

        Returns:
            the log-probs in nats; the tokens of prompt and response together; what was used.

        Raises:
            Unscored: the reply holds no score of this text.
            BuildError: no reply, or the server scores no prompts.
            InputError: the request is refused.
        """
        tokens, usage = self._scored(prompt, text, None)
        try:
            include_eos = self.include_eos and not cut
            logprobs = response_logprobs(ids, tokens, text, include_eos=include_eos, name=self.name)
        except Unscored as error:
            error.usage = usage
            raise
        return logprobs, len(tokens) + 1, usage

    def worst_case_cost(self, prompt: Messages, text: str | None = None) -> float | None:
        """Price in USD of one request if every byte sent were a token; None where the price is not known."""
        messages = prompt if text is None else [*prompt, {"role": "assistant", "content": text}]
        return self._sampler.worst_case_cost(messages, 1, Sampling(max_new_tokens=1))

    def worst_check_cost(self) -> float | None:
        """An upper bound of what [`check`] costs, in USD."""
        one = self._sampler.worst_case_cost(CHECK_PROMPT, 1, Sampling(max_new_tokens=20 * CHECK_TOKENS))
        return None if one is None else self._sampler.servers * (2 + 3 * _CHECK_DRAWS) * one

    def cost(self, usage: Usage) -> float | None:
        """Price in USD of what was used; None where it is not known."""
        return self._sampler.cost(usage)

    def _check_server(self, ids: Sequence[int], server: int) -> tuple[str, tuple[float, ...]]:
        """A text and its scores, which passed."""
        for seed in range(_CHECK_DRAWS):
            reply = self._sampler.exchange(CHECK_PROMPT, Sampling(max_new_tokens=CHECK_TOKENS), seed, server)
            (drawn,) = reply.samples(self.include_eos)
            if drawn.finish_reason != "stop" or len(drawn.text) < 8 or not drawn.token_logprobs:
                continue  # cut, so without the end token that a given text gets; or nothing to reverse
            scored = self._given(ids, drawn.text, server)
            try:
                garbled = self._given(ids, drawn.text[::-1], server)
            except Unscored:  # a tokenizer that cannot spell it; the comparison with what was drawn stands
                garbled = (-math.inf,)
            if len(scored) == len(drawn.token_logprobs):  # else its text has another tokenisation
                check_scores(drawn.token_logprobs, scored, garbled, self.name)
                return drawn.text, scored
        raise BuildError(f"{self.name} drew no text in {_CHECK_DRAWS} tries that its scoring could be checked on.")

    def _given(self, ids: Sequence[int], text: str, server: int) -> tuple[float, ...]:
        tokens, _ = self._scored(CHECK_PROMPT, text, server)
        return response_logprobs(ids, tokens, text, include_eos=self.include_eos, name=self.name)

    def _scored(self, prompt: Messages, text: str | None, server: int | None) -> tuple[Sequence[PromptToken], Usage]:
        """The scored tokens of a prompt, with a response in it or with the generation prompt behind it."""
        messages = prompt if text is None else [*prompt, {"role": "assistant", "content": text}]
        more = {"prompt_logprobs": 0, "add_generation_prompt": text is None}
        reply = self._sampler.exchange(messages, Sampling(max_new_tokens=1), 0, server, more)
        return _prompt_tokens(reply, self.name), reply.usage


def _prompt_tokens(reply: ChatReply, name: str) -> Sequence[PromptToken]:
    if reply.prompt is None:
        raise BuildError(
            f"The server of {name} does not score prompts, so it cannot score given responses. {WAYS_OUT}"
        )
    sent = reply.usage.input + reply.usage.cached
    if sent and sent != len(reply.prompt) + 1:  # the first token has no log-prob; some gateways give no usage
        raise BuildError(
            f"The server of {name} scored {len(reply.prompt) + 1} tokens of a prompt that it counts as {sent}, so its "
            f"prompt log-probs are not those of the whole prompt. {WAYS_OUT}"
        )
    return reply.prompt


def response_logprobs(
    prompt_ids: Sequence[int], full: Sequence[PromptToken], text: str, *, include_eos: bool, name: str
) -> tuple[float, ...]:
    """The log-probs of `text` and, with `include_eos`, of the token that ends it, in nats.

    Args:
        prompt_ids: the tokens of the messages, generation prompt included.
        full: the scored tokens of the same messages and the response.

    Raises:
        Unscored: the template renders the response otherwise than after the generation prompt, adds to it or takes
            from it, ends it with nothing, or a log-prob is missing, infinite or a placeholder.
    """
    ids = list(prompt_ids)
    if [token.id for token in full[: len(ids)]] != ids:
        raise Unscored(
            f"The chat template of {name} does not put a given response after its generation prompt (reasoning models "
            "rewrite earlier turns), so the server cannot score it. Score with a local teacher.",
            "rewritten",
        )
    rest = full[len(ids) :]
    pieces = [token.piece for token in rest]
    # The longest match: blanks at the end of a text are tokens of it, and the end token is no blank.
    length = next((k for k in range(len(pieces), -1, -1) if spells(pieces[:k], text)), None)
    if length is None or length == len(rest):
        said = b"".join(pieces).decode("utf-8", "replace")
        raise Unscored(
            f"The chat template of {name} renders the response {text[:60]!r} as {said[:60]!r}, which is another text "
            "or has no end, so its score would be another text's. Score with a local teacher.",
            "rewritten",
        )
    logprobs = tuple(token.logprob for token in rest[: length + include_eos])
    if not all(NO_LOGPROB < value < math.inf for value in logprobs):
        raise Unscored(f"The server of {name} gave no number for a token of the response {text[:60]!r}.", "not_finite")
    return logprobs


def check_scores(sampled: Sequence[float], scored: Sequence[float], garbled: Sequence[float], name: str) -> None:
    """Whether a text that the server drew scores as it did when it was drawn, and better than itself backwards.

    A server whose prompt log-probs are wrong gives plausible numbers that rank at chance level (llama.cpp#27174).

    Raises:
        BuildError: it does not: more than 0.2 nats a token apart, or not better.
    """
    mean, expected, garbled_mean = _mean(scored), _mean(sampled), _mean(garbled)
    if abs(mean - expected) > _TOLERANCE or not mean > garbled_mean:
        raise BuildError(
            f"The prompt log-probs of the server of {name} are wrong: a text that it drew at {expected:.3f} nats a "
            f"token scores {mean:.3f} when it is given, and {garbled_mean:.3f} backwards. Score with a "
            "local teacher."
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
