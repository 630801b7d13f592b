"""A model behind any OpenAI-compatible server as the judge: chat.completions held to the protocol's JSON schema.

Owns the request, the check that a server keeps to a schema, and the reading of a reply's envelope; retries are
`retry.py`, the choice among servers is `endpoints.py`, what is asked and how a verdict is read is the protocol's. The
key stays inside the SDK's clients: it is in no attribute, no fingerprint, no message of an error.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.schema import canonical_json
from ..errors import BuildError, InputError, did_you_mean
from .base import JudgeProtocol, JudgeRequest, Reply, Usage, Verdict
from .contextual import ContextualProtocol
from .endpoints import Endpoints, is_openai, server_urls
from .extra_body import RESERVED, checked_extra_body
from .grammar import tightened
from .json_prompt import with_schema
from .keys import key_hider
from .openai_client import key_for, openai_client
from .openai_completion import declined, decoded, read_completion
from .prices import load_prices, price
from .retry import MAX_TRIES, with_retries
from .schema_check import CHECK_PROMPT, CHECK_SCHEMA, check_kept
from .too_long import TOO_LONG


if TYPE_CHECKING:
    from .openai_batches import OpenAIBatches

SCHEMAS = ("strict", "prompt")
_OVERHEAD_TOKENS = 500  # what a chat template and the provider's own words about a schema add, generously
_WAYS_OUT = {
    400: "Check the model's id; a server without JSON schemas needs schema='prompt', one without effort, None.",
    401: "The server wants another API key: check OPENAI_API_KEY, or pass `api_key` (over http:// only that is sent).",
    402: "The account cannot pay: check its credit.",
    403: "The key may not use this model.",
    404: "Check the model's id and the address, which mostly ends in /v1.",
    413: "The row is too large for the server: shorten its prompt or its responses.",
    429: "The account's quota is used up: check its plan and credit.",
}


class OpenAICompatibleJudge:
    """Scores candidates with a model behind OpenAI's API or a server that speaks its protocol (vLLM, llama.cpp, TGI).

    Before the first request every server is asked once for a word that stands only in a schema; one that ignores the
    schema is refused, because what it writes would be malformed at full price. What that check used is in the usage of
    the first reply. A request that does not fit the model's context is `truncated`, one that a filter declines is
    `refused`: replies like any other. One judge may be used by many threads.

    Args:
        model: the id under which the servers know the model.
        base_url: a server's address, as `http://localhost:8000/v1`; default: OPENAI_BASE_URL, else OpenAI's API.
        endpoints: addresses of several servers of the same model, instead of `base_url`.
        protocol: how verdicts are asked for and read; default [`ContextualProtocol`].
        schema: "strict" (the server holds the model to the JSON schema) or "prompt" (the schema stands in the system
            prompt, and a reply that is not exactly such JSON is malformed).
        max_rationale: characters of a `rationale`, for small models on a server of one's own (llama.cpp, vLLM), which
            write on until their limit otherwise; also keeps a ranking to one mention of each label. Not for OpenAI's
            API, whose subset of JSON Schema lacks what that takes. See [`tuna_trl.clients.grammar.tightened`].
        effort: sent as `reasoning_effort`; None leaves it out.
        max_tokens: limit of a reply in tokens, reasoning included; a reply that hits it is `truncated`.
        temperature: None leaves it to the server, as reasoning models demand.
        seed: sent as seed + repeat; None sends none.
        extra_body: more of the request, for what a server has of its own.
        concurrency: requests in flight at once, over all servers together.
        max_retries: how often a request is repeated after a transport fault; it may then be billed twice.
        api_key: default: the environment variable OPENAI_API_KEY, which is sent over https only. Needed over https.
        timeout: seconds a request may take.
        prices: a YAML file of prices to lay over the built-in table. That one is used for OpenAI's API alone.
        paid: whether requests cost money. Default: https does, http (one's own server) does not.

    Raises:
        InputError: an argument out of range, no key where one is needed, or the package `openai` is not installed;
            before anything is sent.
    """

    method = "judge"
    max_batch = 1
    gives_room = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        endpoints: Sequence[str] | None = None,
        protocol: JudgeProtocol | None = None,
        schema: str = "strict",
        max_rationale: int | None = None,
        effort: str | None = None,
        max_tokens: int = 4096,
        temperature: float | None = None,
        seed: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        max_retries: int = MAX_TRIES - 1,
        api_key: str | None = None,
        timeout: float = 600.0,
        prices: str | Path | None = None,
        paid: bool | None = None,
    ) -> None:
        _check_arguments(model, schema, temperature, timeout)
        if max_rationale is not None and (max_rationale < 1 or schema != "strict"):
            raise InputError(
                f"OpenAICompatibleJudge: max_rationale is {max_rationale} with schema={schema!r}, expected 1 or more "
                "and schema='strict'."
            )
        least = {"max_tokens": (max_tokens, 1), "concurrency": (concurrency, 1), "max_retries": (max_retries, 0)}
        for argument, (value, minimum) in least.items():
            if value < minimum:
                raise InputError(f"OpenAICompatibleJudge: {argument} is {value}, expected {minimum} or more.")
        if importlib.util.find_spec("openai") is None:
            raise InputError("A judge behind a server needs the package `openai`: pip install 'tuna-trl[openai]'.")
        urls = server_urls(base_url, endpoints)
        self.name = model
        self.concurrency = concurrency
        self.protocol = protocol or ContextualProtocol()
        self.paid = any(url.startswith("https:") for url in urls) if paid is None else paid
        self.at_openai = all(is_openai(url) for url in urls)
        self._schema = schema
        self._max_rationale = max_rationale
        self._effort = effort
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed
        self._extra_body = _checked_extra(extra_body, schema)
        self._max_retries = max_retries
        self._prices = load_prices(prices) if self.at_openai or prices is not None else None
        key = key_for(urls, api_key)
        self._hide_key = key_hider(key)
        self._endpoints = Endpoints([openai_client(url, key, timeout) for url in urls])
        self._check_lock = threading.Lock()
        self._checked = schema != "strict"
        self._failures = 0
        self._failure: Exception | None = None  # the last one of the check
        self._unbilled = Usage()  # what the check used, until a reply takes it

    def fingerprint(self) -> dict[str, Any]:
        """Model, settings and protocol; neither address nor key."""
        return {
            "judge": "openai-compatible",
            "model": self.name,
            "structured": self._schema,
            "max_rationale": self._max_rationale,
            "effort": self._effort,
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            "seed": self._seed,
            "extra_body": copy.deepcopy(self._extra_body),
            **self.protocol.fingerprint(),
        }

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return self.protocol.orders(order)

    def check(self) -> None:
        """Ask every server once for a word that stands only in a schema, unless that is done or not needed.

        Threads that wait while it fails get the same error, instead of asking one after the other.

        Raises:
            InputError: the server refuses the request or the key.
            BuildError: the server ignores the schema, or gives no reply.
        """
        failures = self._failures
        with self._check_lock:
            if self._checked:
                return
            if self._failure is not None and self._failures != failures:
                raise self._failure
            try:
                for client in self._endpoints.clients:
                    reply = self._exchange(self._request("", CHECK_PROMPT, CHECK_SCHEMA), client)
                    self._unbilled += reply.usage
                    check_kept(reply, self.name, self._max_tokens)
            except (InputError, BuildError) as error:
                self._failure, self._failures = error, self._failures + 1
                raise
            self._checked = True

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """One exchange a request, one after the other.

        Raises:
            InputError: the server says that the request or the key is wrong.
            BuildError: the server ignores the schema, or gave no reply after `max_retries` repeats.
        """
        self.check()
        replies = []
        for request in requests:
            reply = self._exchange(self.body(request))
            with self._check_lock:
                replies.append(replace(reply, usage=reply.usage + self._unbilled))
                self._unbilled = Usage()
        return replies

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        verdict = self.protocol.parse(request, reply)
        return replace(verdict, detail=reply.raw) if reply.stop_reason == TOO_LONG and reply.raw else verdict

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        """Price in USD if every byte sent were a token and the reply ran to `max_tokens`, the check included while it
        is still to come; 0.0 where `paid` is False, None where the price is not known."""
        sent = len(canonical_json(self.body(request)).encode("utf-8", "replace")) + _OVERHEAD_TOKENS
        usage = Usage(input=sent, output=self._max_tokens * request.room)
        if not self._checked:
            servers = len(self._endpoints.clients)
            usage += Usage(input=servers * 2 * _OVERHEAD_TOKENS, output=servers * self._max_tokens)
        return self.cost(usage)

    def cost(self, usage: Usage) -> float | None:
        """Price in USD; 0.0 where `paid` is False, None where the model's price is not known."""
        if not self.paid:
            return 0.0
        return None if self._prices is None else price(self.name, usage, self._prices)

    def body(self, request: JudgeRequest) -> dict[str, Any]:
        """The body of a request to `/chat/completions`, as JSON; a batch has one in each line."""
        system, user = self.protocol.render(request)
        schema = self.protocol.schema(len(request.candidates))
        if self._max_rationale is not None:
            schema = tightened(schema, self._max_rationale)
        body = self._request(system, user, schema, request.room)
        if self._seed is not None:
            body["seed"] = (self._seed + request.repeat) & 0x7FFFFFFF
        return body

    def read_body(self, body: Mapping[str, Any], request_id: str | None = None) -> Reply:
        """The envelope of a decoded reply.

        Raises:
            Fault: it is no reply: an error with status 200, no choice, a choice without a message.
        """
        return read_completion(body, request_id)

    def batch(self, *, max_requests: int | None = None, max_bytes: int | None = None) -> OpenAIBatches:
        """The same judge by OpenAI's Batch API: half the price, an answer within a day. Nothing is checked first.

        Args:
            max_requests, max_bytes: limits of one batch below the API's own.

        Raises:
            InputError: the judge has several servers.
        """
        from .openai_batches import OpenAIBatches

        if len(self._endpoints.clients) != 1:
            raise InputError("OpenAICompatibleJudge: a batch goes to one server. Pass `base_url`, not `endpoints`.")
        judge = copy.copy(self)
        judge._checked = True  # so that no worst case holds the price of a check
        return OpenAIBatches(
            judge,
            self._endpoints.clients[0],
            share=0.5 if self._prices is None else self._prices.batch_share(self.name),
            hide=self._hide_key,
            max_retries=self._max_retries,
            max_requests=max_requests,
            max_bytes=max_bytes,
        )

    def _request(self, system: str, user: str, schema: dict[str, Any], room: int = 1) -> dict[str, Any]:
        if self._schema == "prompt":
            system = with_schema(system, schema)
        messages = [{"role": role, "content": text} for role, text in (("system", system), ("user", user)) if text]
        body: dict[str, Any] = {"model": self.name, "messages": _sendable(messages)}
        # OpenAI's reasoning models know the new name only, most other servers the old one
        body["max_completion_tokens" if self.at_openai else "max_tokens"] = self._max_tokens * room
        if self._schema == "strict":
            form = {"name": "verdict", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if self._effort is not None:
            body["reasoning_effort"] = self._effort
        if self._temperature is not None:
            body["temperature"] = self._temperature
        return body | copy.deepcopy(self._extra_body)

    def _exchange(self, body: dict[str, Any], client: Any = None) -> Reply:
        """One reply, from `client` or from whichever server is free; transport faults are repeated with pauses."""
        import openai

        endpoints = self._endpoints if client is None else Endpoints([client])
        known = {key: body[key] for key in ("model", "messages")}
        # `extra_body` takes whatever is in a request, known to this SDK or not
        rest = {key: value for key, value in body.items() if key not in known}

        def attempt(tried: int) -> Reply:
            with endpoints.lend() as server:
                try:
                    raw = server.chat.completions.with_raw_response.create(**known, extra_body=rest)
                except openai.BadRequestError as error:
                    if (reply := declined(error, self._hide_key)) is None:
                        raise
                    return reply
                return self.read_body(decoded(raw.text), raw.headers.get("x-request-id"))

        return with_retries(
            attempt,
            sdk=openai,
            name=self.name,
            max_retries=self._max_retries,
            ways_out=_WAYS_OUT,
            hide=self._hide_key,
        )


def _check_arguments(model: Any, schema: str, temperature: float | None, timeout: float) -> None:
    if not isinstance(model, str) or not model.strip():
        raise InputError("OpenAICompatibleJudge: `model` is empty; pass the id under which the server knows it.")
    if schema not in SCHEMAS:
        hint = did_you_mean(str(schema), SCHEMAS)
        raise InputError(f"OpenAICompatibleJudge: schema is {schema!r}, expected one of {', '.join(SCHEMAS)}.{hint}")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise InputError(f"OpenAICompatibleJudge: temperature is {temperature}, expected 0 or more, or None.")
    if not 0 < timeout < math.inf:
        raise InputError(f"OpenAICompatibleJudge: timeout is {timeout}, expected seconds above 0.")


def _checked_extra(extra_body: Mapping[str, Any] | None, schema: str) -> dict[str, Any]:
    """`extra_body`, with nothing in it that has an argument of its own or that would give more than one answer."""
    ours = {*RESERVED, "reasoning_effort"} - {"top_p", "frequency_penalty", "presence_penalty"}
    if schema == "strict":  # with schema="prompt", {"type": "json_object"} is a help where a server knows it
        ours.add("response_format")
    extra = dict(extra_body or {})
    if found := sorted(ours & set(extra)):
        raise InputError(
            f"OpenAICompatibleJudge: `extra_body` holds {', '.join(found)}. Set model, schema, effort, max_tokens, "
            "temperature and seed by their arguments; the others cannot be set."
        )
    kept = {key: extra.pop(key) for key in ("top_p", "frequency_penalty", "presence_penalty") if key in extra}
    return checked_extra_body(extra) | kept


def _sendable(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Half of a surrogate pair, which a response may hold, is no UTF-8: it becomes a question mark."""
    return [{**message, "content": message["content"].encode("utf-8", "replace").decode()} for message in messages]
