"""A Claude model as the judge, over Anthropic's Messages API: one request, not streamed, with structured output.

Owns the transport and nothing else: retries of transport faults, the reading of the reply's envelope, its price. What
is asked and how a verdict is read is `contextual.py`. The key stays inside the SDK's client: it is in no attribute, no
fingerprint, no message of an error. The API returns no log-probabilities, so Claude can judge but not be the teacher
of a probabilistic ranking; it has no temperature and no seed, so repeats differ by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .base import JudgeRequest, Reply, Usage, Verdict
from .contextual import ContextualProtocol
from .keys import checked_key, key_hider
from .prices import load_prices, price
from .retry import MAX_TRIES, Fault, Refused, with_retries
from .too_long import too_long


if TYPE_CHECKING:
    from .anthropic_batches import AnthropicBatches

# The API adds text of its own to a request with a schema; the bound on input tokens leaves room for it.
_OVERHEAD_TOKENS = 2000
WAYS_OUT = {
    400: "Check the model's id and that it knows structured output and this `effort` (effort=None leaves it out).",
    401: "The API key was refused: check ANTHROPIC_API_KEY.",
    402: "The account cannot pay: check its credit.",
    403: "The key may not use this model: check the workspace's permissions.",
    404: "Check the model's id (and `base_url`, if you set one).",
    413: "The row is too large for the API: shorten its prompt or lower max_new_tokens.",
}


class AnthropicJudge:
    """Scores candidates with a Claude model.

    A request that is refused is a reply like any other (status `refused`, with the category): the category
    `frontier_llm` means that the provider took the request for the making of a competing model, which its terms
    restrict; read them before you build training data with this judge. One `AnthropicJudge` may be used by many
    threads.

    Args:
        model: a model id, such as `claude-opus-5-5`.
        effort: `low` to `max`, or None to leave it to the API.
        max_tokens: limit of a reply in tokens, thinking included; a reply that hits it has status `truncated`.
        concurrency: requests in flight at once.
        max_retries: how often a request is repeated after a transport fault (connection, 408, 409, 429, 5xx, a body
            that is no message). A repeated request may be billed twice; the API has no way to tell.
        base_url: another server that speaks the Messages API.
        api_key: default: the environment variable ANTHROPIC_API_KEY.
        timeout: seconds a request may take.
        protocol: how verdicts are asked for and read.
        cache_system: mark the system prompt for the provider's prompt cache. It pays only where that prompt is longer
            than the model's least cacheable length, 512 to 1024 tokens on current models: the built-in ones are about
            as long or shorter, and what is shorter is not cached. The first use writes the cache at 1.25 times the
            price of input, later ones within five minutes read it at a twentieth to a tenth; both are priced.
        prices: a YAML file of prices to lay over the built-in table ([`tuna_trl.clients.prices`]).

    Raises:
        InputError: no API key, or an argument out of range; before anything is sent.
    """

    method = "judge"
    paid = True
    max_batch = 1
    gives_room = True

    def __init__(
        self,
        model: str = "claude-opus-5-5",
        *,
        effort: str | None = "low",
        max_tokens: int = 4096,
        concurrency: int = 4,
        max_retries: int = MAX_TRIES - 1,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        protocol: ContextualProtocol | None = None,
        cache_system: bool = False,
        prices: str | Path | None = None,
    ) -> None:
        least = {"max_tokens": (max_tokens, 1), "concurrency": (concurrency, 1), "max_retries": (max_retries, 0)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise InputError(f"AnthropicJudge: {name} is {value}, expected {minimum} or more.")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InputError(f"AnthropicJudge: base_url is {base_url!r}, expected http://... or https://...")
        self.name = model
        self.concurrency = concurrency
        self.protocol = protocol or ContextualProtocol()
        self._effort = effort
        self._max_tokens = max_tokens
        self._max_retries = max_retries
        self._cache_system = cache_system
        self._prices = load_prices(prices)
        key = _required_key(api_key)
        self._hide_key = key_hider(key)
        self._client = _client(key, base_url, timeout)

    def fingerprint(self) -> dict[str, Any]:
        """Model, effort, token limit and protocol; neither URL nor key."""
        return {
            "judge": "anthropic",
            "model": self.name,
            "effort": self._effort,
            "max_tokens": self._max_tokens,
            **self.protocol.fingerprint(),
        }

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return self.protocol.orders(order)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """One exchange a request, one after the other.

        Raises:
            InputError: the server says that the request or the key is wrong (400 to 404, 413, 422).
            BuildError: no reply after `max_retries` repeats.
        """
        return [self._exchange(request) for request in requests]

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        return self.protocol.parse(request, reply)

    def count_tokens(self, request: JudgeRequest) -> int | None:
        """Input tokens of a request as the API counts them, which costs nothing; None where a server has no count.

        Raises:
            InputError: the key or the model is refused.
            BuildError: no answer after `max_retries` repeats.
        """
        import anthropic

        body = {name: value for name, value in self.body(request).items() if name != "max_tokens"}
        try:
            raw = with_retries(
                lambda tried: self._client.messages.with_raw_response.count_tokens(**body),
                sdk=anthropic,
                name=self.name,
                max_retries=self._max_retries,
                ways_out=WAYS_OUT,
                hide=self._hide_key,
            )
        except Refused as error:
            if error.status == 404:  # a server that speaks the Messages API and no more
                return None
            raise
        try:
            return int(json.loads(raw.text())["input_tokens"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        """Price in USD if every byte sent were a token and the reply ran to `max_tokens`; None: price not known."""
        system, user = self.protocol.render(request)
        fresh = len((user + json.dumps(self.protocol.schema(len(request.candidates)))).encode("utf-8", "replace"))
        cached = len(system.encode("utf-8", "replace"))
        usage = Usage(input=fresh + cached + _OVERHEAD_TOKENS, output=self._max_tokens * request.room)
        if self._cache_system:
            usage = replace(usage, input=fresh + _OVERHEAD_TOKENS, cache_write=cached)
        return self.cost(usage)

    def cost(self, usage: Usage) -> float | None:
        return price(self.name, usage, self._prices)

    def batch(self, *, max_requests: int | None = None, max_bytes: int | None = None) -> AnthropicBatches:
        """The same judge by Message Batches: half the price, an answer within a day.

        Args:
            max_requests, max_bytes: limits of one batch below the API's own.
        """
        from .anthropic_batches import AnthropicBatches

        return AnthropicBatches(
            self,
            self._client,
            share=self._prices.batch_share(self.name),
            hide=self._hide_key,
            max_retries=self._max_retries,
            max_requests=max_requests,
            max_bytes=max_bytes,
        )

    def body(self, request: JudgeRequest) -> dict[str, Any]:
        """The request as the Messages API takes it."""
        system, user = self.protocol.render(request)
        config: dict[str, Any] = {
            "format": {"type": "json_schema", "schema": self.protocol.schema(len(request.candidates))}
        }
        if self._effort is not None:
            config["effort"] = self._effort
        blocks = [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
        return {
            "model": self.name,
            "max_tokens": self._max_tokens * request.room,
            "system": blocks if self._cache_system else system,
            "messages": [{"role": "user", "content": user}],
            "output_config": config,
        }

    def read_body(self, message: Any, request_id: str | None = None) -> Reply:
        """A message of the Messages API, as decoded from JSON.

        Raises:
            Fault: it is no message.
        """
        return _read_message(message, request_id)

    def _exchange(self, request: JudgeRequest) -> Reply:
        """One reply; transport faults are repeated with growing pauses, everything else is returned or raised."""
        import anthropic

        body = self.body(request)

        def attempt(tried: int) -> Reply:
            try:
                return _read_reply(self._client.messages.with_raw_response.create(**body))
            except anthropic.BadRequestError as error:
                if (reply := too_long(error.body, self._hide_key, error.request_id)) is None:
                    raise
                return reply

        return with_retries(
            attempt,
            sdk=anthropic,
            name=self.name,
            max_retries=self._max_retries,
            ways_out=WAYS_OUT,
            hide=self._hide_key,
        )


def _required_key(api_key: str | None) -> str:
    key = checked_key(api_key, "ANTHROPIC_API_KEY")
    if not key:
        raise InputError(
            "The Claude judge needs an API key, and the environment variable ANTHROPIC_API_KEY is not set. Set it, or "
            "rank offline and free of charge with the reference judge (judge='reference', ReferenceJudge()), which "
            "compares responses with each row's `reference` answer."
        )
    return key


def _client(api_key: str, base_url: str | None, timeout: float) -> Any:
    """The SDK's client: no retries of its own (ours are bounded and know a broken body), no tracing."""
    import anthropic

    return anthropic.Anthropic(
        api_key=api_key,
        base_url=base_url,
        timeout=timeout,
        max_retries=0,
        open_telemetry=False,
    )


def _read_reply(raw: Any) -> Reply:
    """The envelope of a reply, read from the body itself.

    Not through the SDK's types: lenient they take HTML for a string and `{}` for a message of Nones, strict they turn
    a stop reason that they don't know yet into an error, and a reply that was paid for into one to be asked for again.
    """
    try:
        message = json.loads(raw.text())
    except (ValueError, RecursionError) as error:
        raise Fault(f"the body is no JSON ({type(error).__name__})") from None
    return _read_message(message, raw.headers.get("request-id"))


def _read_message(message: Any, request_id: str | None) -> Reply:
    if not isinstance(message, Mapping) or message.get("type") != "message":
        raise Fault("the body is no message")
    content, usage = message.get("content"), message.get("usage")
    if not isinstance(content, list) or not isinstance(usage, Mapping):
        raise Fault("the message has no content or no usage")
    # A thinking block usually comes first; only text is the verdict.
    blocks = [block for block in content if isinstance(block, Mapping) and block.get("type") == "text"]
    text = "".join(str(block.get("text", "")) for block in blocks)
    stop_reason = message.get("stop_reason")
    if stop_reason == "refusal":  # content is empty then; the category is all there is to keep
        text = json.dumps({"stop_details": message.get("stop_details"), "text": text}, ensure_ascii=False)
    return Reply(
        raw=text,
        stop_reason=stop_reason,
        request_id=request_id or message.get("id"),
        model=message.get("model"),
        usage=Usage(
            input=usage.get("input_tokens") or 0,
            cached=usage.get("cache_read_input_tokens") or 0,
            cache_write=usage.get("cache_creation_input_tokens") or 0,
            output=usage.get("output_tokens") or 0,
            thinking=(usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
        ),
    )
