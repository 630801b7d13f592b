"""Greedy answers to a benchmark's prompts, batched and journalled: a run that was stopped goes on where it was.

Owns the prompt templates of the benchmarks and the two ways to an answer, a model in this process and a server.
Scores nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..build.buckets import Ask, Drawn
from ..build.cost import Budget
from ..build.items import prompt_items
from ..build.journal import Journal
from ..build.remote import ask_each
from ..build.sampling import draw_each
from ..clients.base import RemoteSampler, Sample, Sampling, Usage
from ..data.schema import Messages
from ..errors import BuildError, InputError, did_you_mean


TEMPLATES = ("chat", "raw", "alpaca")
# a chat template that adds nothing: the text of the one message, behind the begin token of models that were trained so
_PLAIN = "{{ messages[0]['content'] }}"
_ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n{}### Response:"
)
_ALPACA_INPUT = ", paired with an input that provides further context"


@dataclass(frozen=True)
class Task:
    """One question of a benchmark: `text` is the whole prompt in the benchmark's own format; `instruction` and `input`
    are its parts, for templates that have places for both."""

    text: str
    instruction: str
    input: str = ""


@dataclass(frozen=True)
class GreedyAnswer:
    """The answer to one prompt. `text` is None where there is none, and `failure` says why."""

    text: str | None
    finish_reason: str | None = None  # "stop" | "length"
    tokens: int = 0  # generated, the end token included
    failure: str | None = None


def render(task: Task, template: str) -> Messages:
    """The message that a task becomes.

    Args:
        template: "chat": the benchmark's own prompt as the user's turn of the model's chat template. "raw": the same
            text and nothing around it. "alpaca": the instruction and the input in the Alpaca template.

    Raises:
        InputError: another template.
    """
    check_template(template)
    if template != "alpaca":
        return [{"role": "user", "content": task.text}]
    given = f"### Input:\n{task.input}\n\n" if task.input else ""
    text = _ALPACA.format(_ALPACA_INPUT if given else "", task.instruction, given)
    return [{"role": "user", "content": text}]


def check_template(template: str) -> None:
    if template not in TEMPLATES:
        raise InputError(
            f"`template` is {template!r}, expected one of {', '.join(TEMPLATES)}.{did_you_mean(template, TEMPLATES)}"
        )


def tokenizer_for(tokenizer: Any, template: str) -> Any:
    """The tokenizer to sample with: itself for "chat", else a copy whose chat template is the bare text, behind the
    begin token where the tokenizer itself puts one."""
    check_template(template)
    if template == "chat":
        return tokenizer
    plain = copy.deepcopy(tokenizer)
    begins = plain.bos_token_id is not None and plain("a")["input_ids"][:1] == [plain.bos_token_id]
    plain.chat_template = ("{{ bos_token }}" if begins else "") + _PLAIN
    return plain


class AnyServer:
    """A server as [`tuna_trl.clients.base.RemoteSampler`] that needs no log-probs: answers are only read.

    Args:
        sampler: an [`tuna_trl.clients.openai_compatible.OpenAICompatibleSampler`].
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.name, self.concurrency, self.paid = sampler.name, sampler.concurrency, sampler.paid

    def fingerprint(self) -> dict[str, Any]:
        return {**self._sampler.fingerprint(), "read": "text"}

    def check(self, sampling: Sampling, n: int) -> int:
        return 1

    def request(self, prompt: Messages, n: int, sampling: Sampling, *, seed: int) -> list[Sample]:
        reply = self._sampler.exchange(prompt, sampling, seed)
        if not reply.choices:
            raise BuildError(f"{self.name} sent a reply without a choice.")
        choice = reply.choices[0]
        return [Sample(choice.text, (), choice.finish_reason, reply.usage)]

    def worst_case_cost(self, prompt: Messages, n: int, sampling: Sampling) -> float | None:
        return self._sampler.worst_case_cost(prompt, n, sampling)

    def cost(self, usage: Usage) -> float | None:
        return self._sampler.cost(usage)


def greedy_answers(
    prompts: Sequence[Messages],
    sampler: Any,
    *,
    max_new_tokens: int,
    journal: Journal,
    max_cost: float = math.inf,
    bucket_size: int = 16,
    show_progress: bool = True,
) -> list[GreedyAnswer]:
    """The most probable continuation of each prompt, in the order of `prompts`.

    Args:
        sampler: a [`tuna_trl.clients.base.Sampler`] or `RemoteSampler`; temperature 0, one answer a prompt.
        max_new_tokens: tokens of an answer at most.
        journal: what is there is not generated again. Local answers are journalled bucket by bucket.
        max_cost: cap in USD on a paid server, with what the journal holds.
        bucket_size: prompts in one forward pass.

    Raises:
        BuildError: the server stays down, the journal cannot be written.
        BudgetExceeded: the next request could cost more than what is left of `max_cost`.
    """
    if not prompts:
        return []
    items = prompt_items([{"prompt": prompt} for prompt in prompts])
    ask = Ask(1, Sampling(temperature=0.0, max_new_tokens=max_new_tokens), 0, bucket_size)
    shared: dict[str, Any] = dict(journal=journal, finish=_answer, total=len(items), show_progress=show_progress)
    drawn: Iterator[GreedyAnswer]
    if isinstance(sampler, RemoteSampler):
        drawn = ask_each(items, sampler, ask, budget=Budget(max_cost), **shared)
    else:
        drawn = draw_each(items, sampler, ask, **shared)
    return list(drawn)


def _answer(drawn: Drawn) -> GreedyAnswer:
    if not drawn.samples:
        return GreedyAnswer(None, failure="; ".join(drawn.failures) or "no sample")
    sample = drawn.samples[0]
    return GreedyAnswer(sample.text, sample.finish_reason, sample.usage.output)


def answer_record(answer: GreedyAnswer) -> Mapping[str, Any]:
    """An answer as the predictions file holds it."""
    record: dict[str, Any] = {"prediction": answer.text, "finish_reason": answer.finish_reason}
    return record if answer.failure is None else {**record, "failure": answer.failure}
