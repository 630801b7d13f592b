"""What a sampler and a judge are: two small protocols and the plain records that pass between them and the builders.

A sampler turns prompts into responses with their own token log-probabilities; a judge turns candidates into scores.
Clients know nothing of journals, retries of malformed verdicts, ranks or datasets: the builders own those. Nothing
here imports torch or an SDK.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..data.schema import Messages


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. `temperature=1, top_p=1, top_k=0` draws from the model's own distribution.

    Args:
        temperature: divides the logits; 0 draws the most probable token.
        top_p: the least probability that the tokens drawn from have together; 1 = no cut.
        top_k: how many tokens are drawn from; 0 = no cut.
        max_new_tokens: tokens of a response at most, the end token included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256


@dataclass(frozen=True)
class Usage:
    """Tokens billed for one reply, by kind.

    Args:
        input: not cached.
        cached, cache_write: read from the provider's prompt cache, written to it.
        output, thinking: what came back, thinking included; the thinking alone.
    """

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    thinking: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Args:
        text: as it was drawn, without the end token.
        token_logprobs: natural logs in nats, at temperature 1, from raw logits, whatever temperature it was drawn at;
            the end token counts when the model produced it.
        finish_reason: "stop" (the model ended it) or "length" (it was cut).
        usage: tokens billed for it.
    """

    text: str
    token_logprobs: tuple[float, ...]
    finish_reason: str
    usage: Usage = field(default_factory=Usage)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sample:
        return cls(
            text=record["text"],
            token_logprobs=tuple(record["token_logprobs"]),
            finish_reason=record["finish_reason"],
            usage=Usage(**record["usage"]),
        )


@runtime_checkable
class Sampler(Protocol):
    """Draws responses. `name` is the model id that goes into the rows."""

    name: str

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the sampler that changes what it returns (model, template hash, dtype); goes into keys."""
        ...

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt with its generation prompt; the builder cuts buckets of similar length from them.

        Args:
            prompts: messages.
        """
        ...

    def sample(
        self, prompts: Sequence[Messages], n: int, sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """`n` responses to each prompt.

        Args:
            prompts: messages.
            n, sampling: responses a prompt, and how they are drawn.
            seeds: `seeds[i][k]` is that of sample k of prompt i, so that no sample depends on what else is drawn in
                the same call.
        """
        ...


@runtime_checkable
class RemoteSampler(Protocol):
    """Draws responses over a network. The journalled unit is one reply, so that nothing received is asked for twice.

    Attributes:
        name: the model id that goes into the rows.
        concurrency: how many requests may be in flight at once; `request` is called from as many threads.
        paid: it needs a cost cap and a yes.
    """

    name: str
    concurrency: int
    paid: bool

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the sampler that changes what it returns (model id, system prompt); no URL and no key, so
        that the same model behind another address goes on from the same journal."""
        ...

    def check(self, sampling: Sampling, n: int) -> int:
        """Ask once for two short samples, before the build.

        Args:
            sampling, n: how the build draws, and how many samples it wants of one request.

        Returns:
            samples that one request can give: `n`, or 1 where the server ignores `n`.

        Raises:
            BuildError: it gives no log-probs.
        """
        ...

    def request(self, prompt: Messages, n: int, sampling: Sampling, *, seed: int) -> list[Sample]:
        """One exchange: `n` samples of a prompt. Transport faults are retried inside. A sample whose log-probs are
        missing or placeholders (-9999, -inf) comes back with them as they are: the builder fails it.

        Args:
            prompt: messages.
            n, sampling, seed: how many samples, how they are drawn, and from which seed.
        """
        ...

    def worst_case_cost(self, prompt: Messages, n: int, sampling: Sampling) -> float | None:
        """Upper bound of the price of one request in USD (0.0 for free servers, None if the price is not known).
        Args: as [`RemoteSampler.request`]."""
        ...

    def cost(self, usage: Usage) -> float | None:
        """Price in USD of what was used.

        Args:
            usage: tokens, by kind.
        """
        ...


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge.

    Args:
        prompt: messages.
        candidates: in the order they are shown.
        reference: an answer to compare with, where the row has one.
        repeat: which judgment of the row, from 0.
        nonce: marks the delimiters around candidate text, so that a candidate cannot forge them; derived by the
            builder from the row, not random, so that the same request has the same journal key.
        room: times the judge's limit that the reply may take; 2 after one was cut (judges with `gives_room`).
    """

    prompt: Messages
    candidates: tuple[str, ...]
    reference: str | None = None
    repeat: int = 0
    nonce: str = ""
    room: int = 1


@dataclass(frozen=True)
class Reply:
    """What came back over the wire, before anybody read a meaning into it.

    Args:
        raw: the text, as it came.
        stop_reason, request_id, model: why it ended, what the exchange is called and who answered, in the provider's
            words.
        usage: tokens billed.
    """

    raw: str
    stop_reason: str | None = None
    request_id: str | None = None
    model: str | None = None
    usage: Usage = field(default_factory=Usage)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Reply:
        return cls(**{**record, "usage": Usage(**record["usage"])})


@dataclass(frozen=True)
class Verdict:
    """A reply, read.

    Args:
        status: `ok`, or why the row cannot be ranked: `malformed`, `refused`, `truncated`, `inconsistent` (the judge's
            ranking contradicts its own scores).
        scores: `scores[i]` belongs to the candidate shown at place i; None: not scored.
        order: the judge's own ranking, shown places best first, which breaks ties between equal scores; None if the
            protocol has none. Where the judge's own answer is scored too, it is place n.
        detail: what was wrong, for people.
        answer: the judge's own answer, where the protocol asks for one.
        answer_score: its score beside those of the candidates; None: a mere yardstick.
    """

    status: str
    scores: tuple[float | None, ...]
    order: tuple[int, ...] | None = None
    detail: str | None = None
    answer: str | None = None
    answer_score: float | None = None


@runtime_checkable
class JudgeProtocol(Protocol):
    """How a language model is asked to judge, and how what it says is read. Knows no SDK and no network."""

    name: str

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a verdict: the switches, the hashes of templates and schema."""
        ...

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """The questions of one repeat, as response indices in shown order: all at once, pair by pair, one by one.

        Args:
            order: the responses to compare, in the order of this repeat.
        """
        ...

    def render(self, request: JudgeRequest) -> tuple[str, str]:
        """System prompt and user turn; no text of the row stands in the system prompt.

        Args:
            request: the question.
        """
        ...

    def schema(self, n: int) -> dict[str, Any]:
        """JSON schema of a verdict.

        Args:
            n: candidates.
        """
        ...

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        """Read a reply; pure. What is not exactly what was asked for is `malformed`, never repaired by guess.

        Args:
            request, reply: the question, and what came back.
        """
        ...


@dataclass(frozen=True)
class BatchState:
    """A batch as the provider reports it. `created` is in seconds since 1970; `size` counts its requests."""

    id: str
    ended: bool
    size: int
    created: float
    tag: str | None = None  # what `submit` was told, where the provider keeps it (OpenAI: metadata; Anthropic: no)
    done: int = 0  # requests that have come to an end, in whatever way


@dataclass(frozen=True)
class BatchFault:
    """An item of a batch that gave no reply. `again`: it expired or broke at the provider's, so it is to be asked for
    again; else the request itself is wrong."""

    reason: str
    again: bool


@runtime_checkable
class BatchTransport(Protocol):
    """Asks many requests in one upload, at the provider's lower price; answers come within a day, in any order."""

    max_requests: int  # of one batch
    max_bytes: int
    keeps_tags: bool  # whether `list` gives back the tag that `submit` was told

    def size(self, request: JudgeRequest) -> int:
        """Bytes that a request takes in a batch."""
        ...

    def submit(self, requests: Mapping[str, JudgeRequest], *, tag: str) -> BatchState:
        """Send one batch; the keys (1 to 64 letters, digits, `-`, `_`) come back with the answers. Never sent twice
        inside: whether a submission whose answer was lost has arrived is found out by [`list`]."""
        ...

    def list(self, *, since: float) -> Sequence[BatchState]:
        """The batches of this account created after `since` (seconds since 1970), those of other programs included."""
        ...

    def state(self, batch_id: str) -> BatchState: ...

    def results(self, batch_id: str) -> Iterator[tuple[str, Reply | BatchFault]]:
        """The answers of a batch that has ended, one by one. The stream may break off with an error at any item."""
        ...

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        """Upper bound of the price of one request in USD, at the price of a batch; None if it is not known."""
        ...

    def cost(self, usage: Usage) -> float | None:
        """Price in USD of what was used, at the price of a batch; None if it is not known."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Scores candidates.

    A judge whose provider has a batch API also has `batch() -> BatchTransport`, one that heeds `JudgeRequest.room`
    says so by `gives_room = True`.

    Attributes:
        name: goes into the rows.
        method: "judge", "reference" or "reward_model"; goes into `ranking_method` of the rows.
        paid: it needs a cost cap and a yes.
        concurrency: requests in flight at once.
        max_batch: requests in one `ask`.
    """

    name: str
    method: str
    paid: bool
    concurrency: int
    max_batch: int

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the judge that changes its reply (model, protocol version, template and schema hash)."""
        ...

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """The questions of one repeat. Args: as [`JudgeProtocol.orders`]."""
        ...

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """One exchange per request; transport faults are retried inside, refusals and bad verdicts are not.

        Args:
            requests: the questions, `max_batch` at most.
        """
        ...

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        """Read a reply; pure, so that a journalled reply can be read again. Never repairs by guess.
        Args: as [`JudgeProtocol.parse`]."""
        ...

    def worst_case_cost(self, request: JudgeRequest) -> float | None:
        """Upper bound of the price of one ask in USD (0.0 for free judges, None if the price is not known).

        Args:
            request: the question.
        """
        ...

    def cost(self, usage: Usage) -> float | None:
        """Price in USD of what was used (0.0 for free judges, None if the price is not known).
        Args: as [`RemoteSampler.cost`]."""
        ...
