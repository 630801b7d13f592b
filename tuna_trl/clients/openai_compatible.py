"""A teacher behind any OpenAI-compatible server (vLLM, llama.cpp, TGI, OpenAI): samples with their log-probs.

Owns the request, the check of what a server really gives, and the choice of the server; retries are `retry.py`, the
reading of a reply is `openai_replies.py`. The key stays inside the SDK's clients: it is in no attribute, no
fingerprint, no message of an error. What each server does is docs/servers.md.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.schema import Messages, canonical_json
from ..errors import BuildError, InputError
from .base import Sample, Sampling, Usage
from .endpoints import Endpoints, is_openai, server_urls
from .extra_body import checked_extra_body
from .keys import key_hider
from .openai_client import key_for, openai_client
from .openai_replies import ChatReply, read_chat_reply
from .prices import load_prices, price
from .prompt_logprobs import CHECK_PROMPT, CHECK_TOKENS, PromptScorer
from .retry import MAX_TRIES, Fault, Refused, with_retries
from .server_check import check_reply, draws_are_equal, same_distribution, top_of_first


logger = logging.getLogger(__name__)

NO_ANTHROPIC_TEACHER = (
    "A Claude model cannot be the teacher of a probabilistic ranking: Anthropic's API returns no log-probabilities. "
    "Let Claude judge instead (`tuna-trl build judge --judge claude`), or take a teacher behind an OpenAI-compatible "
    "server or a local model."
)
_OVERHEAD_TOKENS = (200, 16)  # of a request, of a message: what a chat template adds, generously
_WAYS_OUT = {
    400: "Check the model's id, the length of the prompt and `extra_body`; some servers know neither logprobs nor n.",
    401: "The server wants another API key: check OPENAI_API_KEY, or pass `api_key` (over http:// only that is sent).",
    402: "The account cannot pay: check its credit.",
    403: "The key may not use this model.",
    404: "Check the model's id and the address, which mostly ends in /v1.",
    413: "The row is too large for the server: shorten its prompt or lower max_new_tokens.",
    429: "The account's quota is used up: check its plan and credit.",
}


class OpenAICompatibleSampler:
    """Draws responses over `chat.completions` with `logprobs` and `n`; see [`tuna_trl.clients.base.RemoteSampler`].

    Scores are at temperature 1, so with any sampling but `temperature=1, top_p=1, top_k=0` the server must give
    log-probs of the model's own distribution whatever it draws from; one that does not is refused. One sampler may be
    used by many threads.

    Args:
        model: the id under which the servers know the model.
        base_url: a server's address, as `http://localhost:8000/v1`; default: OPENAI_BASE_URL, else OpenAI's API.
        api_key: default: the environment variable OPENAI_API_KEY, which is sent over https only. Needed over https.
        concurrency: requests in flight at once, over all servers together; more callers wait.
        timeout: seconds a request may take.
        endpoints: addresses of several servers of the same model, instead of `base_url`.
        extra_body: more of the request, for what a server has of its own: `{"top_k": 0, "min_p": 0}` (llama.cpp, which
            cuts the distribution otherwise), `{"chat_template_kwargs": {"enable_thinking": False}}` (vLLM).
        system: a system message for prompts that bring none.
        include_eos: whether the end token counts in log-probs and length, one rule for a whole dataset. Default: True,
            but False for OpenAI's API, which leaves it out.
        max_retries: how often a request is repeated after a transport fault; it may then be billed twice.
        paid: whether requests cost money. Default: https does, http (one's own server) does not.
        prices: a YAML file of prices to lay over the built-in table. That one is used for OpenAI's API alone: what
            another server charges for a model of the same name is not known.

    Raises:
        InputError: an argument out of range, no key where one is needed, or the package `openai` is not installed;
            before anything is sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 600.0,
        endpoints: Sequence[str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        system: str | None = None,
        include_eos: bool | None = None,
        max_retries: int = MAX_TRIES - 1,
        paid: bool | None = None,
        prices: str | Path | None = None,
    ) -> None:
        if not isinstance(model, str) or not model.strip():
            raise InputError("OpenAICompatibleSampler: `model` is empty; pass the id under which the server knows it.")
        _in_range("concurrency", concurrency, 1)
        _in_range("max_retries", max_retries, 0)
        if not 0 < timeout < math.inf:
            raise InputError(f"OpenAICompatibleSampler: timeout is {timeout}, expected seconds above 0.")
        urls = server_urls(base_url, endpoints)
        openai_itself = any(is_openai(url) for url in urls)
        self.name = model
        self.concurrency = concurrency
        self.paid = any(url.startswith("https:") for url in urls) if paid is None else paid
        self.include_eos = not openai_itself if include_eos is None else include_eos
        self._system = system
        self._extra_body = checked_extra_body(extra_body)
        self._max_retries = max_retries
        self.openai_itself = openai_itself
        self._prices = load_prices(prices) if openai_itself or prices is not None else None
        key = key_for(urls, api_key)
        self._hide_key = key_hider(key)
        self._endpoints = Endpoints([openai_client(url, key, timeout) for url in urls])
        self._slots = threading.BoundedSemaphore(concurrency)
        self._raw: bool | None = None  # whether log-probs are the model's own at any sampling; None: not asked yet
        self._raw_lock = threading.Lock()
        self.check_usage = Usage()  # of what was asked of single servers to know them, `check` above all

    def fingerprint(self) -> dict[str, Any]:
        """Model, system message, further request and the rule for the end token; neither address nor key."""
        return {
            "sampler": "openai-compatible",
            "model": self.name,
            "system": self._system,
            "extra_body": copy.deepcopy(self._extra_body),
            "include_eos": self.include_eos,
        }

    def check(self, sampling: Sampling, n: int) -> int:
        """Ask every server once for `n` short samples: log-probs there, of the text's own tokens, `n` of them.

        Servers are also held against each other, and, for a sampling that is not the model's own, log-probs at two
        temperatures: three more one-token requests at most per server.

        Args: as [`RemoteSampler.check`].

        Returns:
            samples that one request can give: `n`, or 1 where any server ignores or refuses `n`.

        Raises:
            InputError: the request or the sampling is refused.
            BuildError: no log-probs, or none that can be scored; servers of different models; no reply.
        """
        self._check_sampling(sampling, n)
        if not (self.openai_itself or sampling.top_k or "top_k" in self._extra_body):
            logger.warning(
                "%s: servers cut what is drawn by defaults of their own (llama.cpp: top_k 40, min_p 0.05; vLLM: the "
                "model's generation_config.json). To draw from the model's own distribution, say otherwise: "
                'extra_body={"top_k": 0, "min_p": 0} (docs/servers.md).',
                self.name,
            )
        gives = [self._check_server(client, sampling, n) for client in self._endpoints.clients]
        if len(gives) > 1:
            tops = [self._first_token(client, 1.0) for client in self._endpoints.clients]
            for place, top in enumerate(tops):
                if not same_distribution(tops[0], top, tolerance=0.5):  # quantised or bf16 replicas stay below
                    raise BuildError(
                        f"endpoints[0] and endpoints[{place}] give {self.name} different log-probs for the same "
                        "token: they do not serve the same model. Scores of two teachers are never mixed."
                    )
        self._require_raw(sampling)
        return min(gives)

    def request(self, prompt: Messages, n: int, sampling: Sampling, *, seed: int) -> list[Sample]:
        """One exchange: `n` samples of `prompt`.

        A server that gives fewer is not asked again: what it gave is returned, the rest is the builder's to ask for.
        Log-probs that the server did not give are NaN, its placeholders (-9999, -inf) stay. All of them are left out,
        as `()`, where the response cannot be scored: no log-probs, log-probs of another text than the one returned, no
        end token where it counts, or a finish reason that is neither `stop` nor `length` (it is kept as it came).

        Args: as [`RemoteSampler.request`].

        Raises:
            InputError: the sampling, the request or the key is refused.
            BuildError: no reply after `max_retries` repeats.
        """
        self._check_sampling(sampling, n)
        self._require_raw(sampling)
        return self._exchange(self._body(prompt, n, sampling, seed), n).samples(self.include_eos)

    def check_scoring(self) -> None:
        """Hold the score of a given text against that of the same text when the server drew it; see
        [`tuna_trl.clients.prompt_logprobs.PromptScorer.check`]."""
        PromptScorer(self).check()

    def score(self, prompt: Messages, responses: Sequence[str]) -> list[tuple[float, ...]]:
        """Token log-probs of given responses under the server's model, at temperature 1; vLLM's `prompt_logprobs`.

        One request for the prompt and one for each response. The end token counts by `include_eos`. Call
        [`OpenAICompatibleSampler.check_scoring`] first.

        Args:
            prompt: messages.
            responses: their texts.

        Raises:
            BuildError: the server scores no prompts, or its chat template changes a response.
        """
        scorer = PromptScorer(self)
        ids, _ = scorer.start(prompt)
        return [scorer.response(prompt, ids, text)[0] for text in responses]

    def exchange(
        self,
        messages: Messages,
        sampling: Sampling,
        seed: int,
        server: int | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        """One reply with one sample, as it came.

        Args:
            messages: the prompt.
            sampling: see [`Sampling`].
            seed: of the sample.
            server: which of the `servers` is asked; None: whichever is free.
            more: of the request, beside `extra_body`.
        """
        body = self._body(messages, 1, sampling, seed)
        body["extra_body"] = {**body["extra_body"], **(more or {})}
        return self._exchange(body, 1, None if server is None else self._endpoints.clients[server])

    @property
    def servers(self) -> int:
        """How many servers there are."""
        return len(self._endpoints.clients)

    def worst_case_cost(self, prompt: Messages, n: int, sampling: Sampling) -> float | None:
        """Price in USD of one request if every byte sent were a token and every sample ran to `max_new_tokens`.

        Args: as [`RemoteSampler.worst_case_cost`].
        """
        messages = self._messages(prompt)
        sent = sum(len(m["content"].encode("utf-8", "replace")) + _OVERHEAD_TOKENS[1] for m in messages)
        sent += len(canonical_json(self._extra_body)) + _OVERHEAD_TOKENS[0]
        return self.cost(Usage(input=sent, output=n * sampling.max_new_tokens))

    def cost(self, usage: Usage) -> float | None:
        """Price in USD; 0.0 where `paid` is False, None where the model's price is not known.

        Args: as [`RemoteSampler.cost`].
        """
        if not self.paid:
            return 0.0
        return None if self._prices is None else price(self.name, usage, self._prices)

    def _messages(self, prompt: Messages) -> list[dict[str, str]]:
        messages = [{"role": message["role"], "content": message["content"]} for message in prompt]
        if self._system is not None and not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self._system})
        return messages

    def _body(self, prompt: Messages, n: int, sampling: Sampling, seed: int, top: int = 1) -> dict[str, Any]:
        """A request. `top_logprobs` is never 0: llama.cpp then gives no log-probs (and 20 a token without it)."""
        limit = "max_completion_tokens" if self.openai_itself else "max_tokens"
        extra = dict(self._extra_body)
        if sampling.top_k:
            extra["top_k"] = sampling.top_k
        return {
            "model": self.name,
            "messages": self._messages(prompt),
            "n": n,
            "seed": seed & 0x7FFFFFFF,  # seeds are 32 bits in llama.cpp, and a float's 53 behind some gateways
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            limit: sampling.max_new_tokens,
            "logprobs": True,
            "top_logprobs": top,
            "extra_body": extra,
        }

    def _exchange(self, body: dict[str, Any], n: int, client: Any = None) -> ChatReply:
        """One reply with `n` choices or fewer, from `client` or from whichever server is free.

        Whoever waits for a server's retry-after keeps the slot: a server that is full gets no other request meanwhile.
        """
        import openai

        endpoints = self._endpoints if client is None else Endpoints([client])

        def attempt(tried: int) -> ChatReply:
            with endpoints.lend() as server:
                raw = server.chat.completions.with_raw_response.create(**body)
                reply = read_chat_reply(raw.text)
                if len(reply.choices) > n:  # fewer were paid for and are kept
                    raise Fault(f"the reply has {len(reply.choices)} samples, {n} were asked for")
            return reply

        with self._slots:
            reply = with_retries(
                attempt,
                sdk=openai,
                name=self.name,
                max_retries=self._max_retries,
                ways_out=_WAYS_OUT,
                hide=self._hide_key,
            )
        if client is not None:
            self.check_usage += reply.usage
        return reply

    def _check_server(self, client: Any, sampling: Sampling, n: int) -> int:
        short = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, CHECK_TOKENS)
        try:
            reply = self._exchange(self._body(CHECK_PROMPT, n, short, seed=1), n, client)
        except Refused as refused:
            if n == 1 or refused.status not in (400, 422):
                raise
            reply = self._exchange(self._body(CHECK_PROMPT, 1, short, seed=1), 1, client)  # llama.cpp: n > its slots
        check_reply(reply, self.name, self.include_eos)
        if len(reply.choices) != n or (n > 1 and draws_are_equal(reply, sampling)):
            logger.info(
                "%s gives one sample a request; each is asked for by itself, with a seed of its own.", self.name
            )
            return 1
        return n

    def _first_token(self, client: Any, temperature: float) -> dict[bytes, float]:
        sampling = Sampling(temperature=temperature, max_new_tokens=1)
        return top_of_first(self._exchange(self._body(CHECK_PROMPT, 1, sampling, seed=1, top=5), 1, client))

    def _require_raw(self, sampling: Sampling) -> None:
        """Hold log-probs at temperatures 1 and 0.5 against each other, once, if the sampling needs them equal."""
        if (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0):
            return
        with self._raw_lock:
            if self._raw is None:
                self._raw = all(
                    same_distribution(self._first_token(client, 1.0), self._first_token(client, 0.5), tolerance=0.2)
                    for client in self._endpoints.clients
                )
        if not self._raw:
            raise InputError(
                f"The server of {self.name} gives log-probs of the distribution it draws from (they change with the "
                f"temperature), and scores need those of the model itself: with temperature={sampling.temperature}, "
                f"top_p={sampling.top_p}, top_k={sampling.top_k} they cannot be had from it. Draw with temperature=1, "
                "top_p=1, top_k=0, or let the server give raw ones (vLLM: --logprobs-mode raw_logprobs)."
            )

    def _check_sampling(self, sampling: Sampling, n: int) -> None:
        _in_range("n", n, 1)
        _in_range("sampling.max_new_tokens", sampling.max_new_tokens, 1)
        if not 0 <= sampling.temperature < math.inf:
            raise InputError(f"`sampling.temperature` is {sampling.temperature}, expected 0 (greedy) or more.")
        if not 0 < sampling.top_p <= 1:
            raise InputError(f"`sampling.top_p` is {sampling.top_p}, expected (0, 1]; 1 cuts nothing.")
        _in_range("sampling.top_k", sampling.top_k, 0)
        if sampling.top_k and self.openai_itself:
            raise InputError(f"`sampling.top_k` is {sampling.top_k}, and OpenAI's API has no top_k. Leave it at 0.")
        if sampling.top_k and "top_k" in self._extra_body:
            raise InputError("`top_k` is both in `sampling` and in `extra_body`. Give it once.")


def _in_range(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"OpenAICompatibleSampler: {name} is {value!r}, expected a whole number from {least} on.")
