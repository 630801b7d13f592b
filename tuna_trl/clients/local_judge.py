"""A language model in this process as the judge: any transformers (or PEFT) causal model with a chat template.

With xgrammar (the extra `local-judge`) the model can write nothing but a verdict of the protocol's schema; without it
the schema stands in its system prompt, and what is no verdict is malformed. Touches the model only to run it: eval
mode inside, every module's mode restored after, `generation_config` left alone. What is asked and how a verdict is
read is the protocol's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.schema import digest
from ..errors import InputError
from .base import JudgeProtocol, JudgeRequest, Reply, Usage, Verdict
from .chat_ids import chat_ids, shows_messages
from .contextual import ContextualProtocol
from .grammar import Grammars, grammar_is_installed
from .json_prompt import with_schema
from .local import default_name, inference, left_pad
from .too_long import TOO_LONG
from .weights import weights_digest


logger = logging.getLogger(__name__)

_GET_XGRAMMAR = (
    "%s judges without a grammar, because the package xgrammar is not installed, so whatever it writes that is no "
    "verdict is malformed. To hold it to the schema: pip install 'tuna-trl[local-judge]'."
)


@dataclass(frozen=True)
class _Job:
    """A request as token ids. `room`: tokens that its reply may have: the limit, or what the context leaves."""

    place: int  # in the call
    ids: list[int]
    room: int
    schema: dict[str, Any]
    seed: int


class TransformersJudge:
    """Scores candidates with a causal language model in this process; greedy unless a temperature is given.

    Control tokens that a candidate writes stay text ([`tuna_trl.clients.chat_ids`]). A request that does not fit the
    model's context is `truncated`, as is a verdict that it does not end. The weights are hashed once: a judge is not
    trained while it judges.

    A greedy judge asked again says the same again, so `max_malformed=0` saves time with it.

    Args:
        model: a loaded causal model; PEFT adapters are used as they are active.
        tokenizer: with a chat template. A template without system messages gets the instructions in the user turn.
        name: the model id that goes into rows; default: the last part of the path or the Hub id it was loaded from.
        protocol: how verdicts are asked for and read; default [`ContextualProtocol`].
        max_new_tokens: limit of a verdict in tokens.
        batch_size: requests in one `generate`. Not in the fingerprint: another value changes logits by rounding only.
        grammar: hold the model to the schema with xgrammar; False, or without the package, it writes freely.
        max_rationale: characters of a `rationale` under the grammar, which small models never end; None: no limit.
        temperature: 0 is greedy; above, every request draws from a generator of its own, so that no verdict depends
            on what else is in the batch.
        seed: of these generators.
        template_kwargs: for the chat template, as `{"enable_thinking": False}` (Qwen3).

    Raises:
        InputError: no chat template, an encoder-decoder model, or an argument out of range.
    """

    method = "judge"
    paid = False
    concurrency = 1
    gives_room = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        protocol: JudgeProtocol | None = None,
        max_new_tokens: int = 1024,
        batch_size: int = 4,
        grammar: bool = True,
        max_rationale: int | None = 400,
        temperature: float = 0.0,
        seed: int = 0,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                "TransformersJudge: `tokenizer` has no chat template, so a judge cannot be asked. Pass an "
                "instruction-tuned model and its tokenizer."
            )
        if model.config.is_encoder_decoder:
            raise InputError(
                f"TransformersJudge: `model` is an encoder-decoder ({model.config.model_type}); a causal model is "
                "needed."
            )
        least = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "max_rationale": max_rationale}
        for argument, value in least.items():
            if value is not None and value < 1:
                raise InputError(f"TransformersJudge: {argument} is {value}, expected 1 or more.")
        if not 0 <= temperature < np.inf:
            raise InputError(f"TransformersJudge: temperature is {temperature}, expected 0 (greedy) or more.")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or default_name(model)
        self.protocol = protocol or ContextualProtocol()
        self.max_batch = batch_size
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self._max_rationale = max_rationale
        self._template_kwargs = dict(template_kwargs or {})
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._knows_system = shows_messages(tokenizer, ("system", "user"), self._template_kwargs)
        self._ends = _end_tokens(model, tokenizer)
        self._grammars: Grammars | None = None
        self._fingerprint: dict[str, Any] | None = None
        if grammar and grammar_is_installed():
            width = model.get_output_embeddings().weight.shape[0]
            self._grammars = Grammars(tokenizer, width, sorted(self._ends), max_rationale)
        elif grammar:
            logger.warning(_GET_XGRAMMAR, self.name)

    def fingerprint(self) -> dict[str, Any]:
        """Name, weights (every bit, adapters included), tokenizer, template, drawing and protocol; computed once."""
        if self._fingerprint is None:
            self._fingerprint = {
                "judge": "transformers",
                "model": self.name,
                **model_fingerprint(self.model, self.tokenizer),
                "template_kwargs": digest(self._template_kwargs),
                "max_new_tokens": self.max_new_tokens,
                "grammar": None if self._grammars is None else {"max_rationale": self._max_rationale},
                "temperature": self.temperature,
                "seed": self.seed if self.temperature else None,
            }
        return {**self._fingerprint, **self.protocol.fingerprint()}

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return self.protocol.orders(order)

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """A verdict to each request, the requests of a call in batches of `batch_size`.

        Returns:
            replies with the stop reason `stop`, `length` (cut), or `model_context_window_exceeded` (not asked: `raw`
            says why).

        Raises:
            InputError: the chat template does not take the request.
        """
        replies: dict[int, Reply] = {}
        whole: list[_Job] = []
        short: list[_Job] = []
        for place, request in enumerate(requests):
            job = self._job(place, request)
            if job.room < 1:
                why = f"the request has {len(job.ids)} tokens, the context of {self.name} is {self._context}"
                replies[place] = Reply(why, TOO_LONG, None, self.name)
            else:
                (whole if job.room == self.max_new_tokens else short).append(job)
        # One near the end of the context is run by itself: its limit is not to cut the others.
        parts = [whole[i : i + self.max_batch] for i in range(0, len(whole), self.max_batch)]
        for jobs in [*parts, *([job] for job in short)]:
            replies |= self._generate(jobs)
        return [replies[place] for place in range(len(requests))]

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        verdict = self.protocol.parse(request, reply)
        return replace(verdict, detail=reply.raw) if reply.stop_reason == TOO_LONG and reply.raw else verdict

    def count_tokens(self, request: JudgeRequest) -> int:
        """Tokens of a request in this model's own tokenizer, the chat template included."""
        return len(self._job(0, request).ids)

    def worst_case_cost(self, request: JudgeRequest) -> float:
        return 0.0

    def cost(self, usage: Usage) -> float:
        return 0.0

    def _job(self, place: int, request: JudgeRequest) -> _Job:
        system, user = self.protocol.render(request)
        schema = self.protocol.schema(len(request.candidates))
        if self._grammars is None:
            system = with_schema(system, schema)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        if not self._knows_system:
            messages = [{"role": "user", "content": f"{system}\n\n{user}"}]
        ids = chat_ids(self.tokenizer, messages, add_generation_prompt=True, template_kwargs=self._template_kwargs)
        limit = self.max_new_tokens * request.room
        room = limit if self._context is None else min(limit, self._context - len(ids))
        return _Job(place, ids, room, schema, int(digest([self.seed, request.repeat, user])[:16], 16))

    def _generate(self, jobs: Sequence[_Job]) -> dict[int, Reply]:
        """Replies by place. All jobs have the same room."""
        from transformers import GenerationConfig, LogitsProcessorList

        ids, mask = left_pad([job.ids for job in jobs], self.tokenizer)
        processors = LogitsProcessorList()
        if self._grammars is not None:
            processors.append(self._grammars.processor([job.schema for job in jobs]))
        if self.temperature:
            processors.append(_SeededNoise(self.temperature, [job.seed for job in jobs]))
        pad = self.tokenizer.pad_token_id
        # Spelt out, because what is None here would be taken from the model's own configuration. A verdict repeats its
        # field names, so a penalty on repetition would garble it.
        config = GenerationConfig(
            max_new_tokens=jobs[0].room,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=sorted(self._ends),
            pad_token_id=pad if pad is not None else min(self._ends),
        )
        device = self.model.device
        with inference(self.model):
            output = self.model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config, logits_processor=processors
            )
        return {
            job.place: self._reply(job, row) for job, row in zip(jobs, output[:, ids.shape[1] :].tolist(), strict=True)
        }

    def _reply(self, job: _Job, drawn: list[int]) -> Reply:
        end = next((k for k, token in enumerate(drawn) if token in self._ends), None)
        text = self.tokenizer.decode(drawn[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        used = len(drawn) if end is None else end + 1
        usage = Usage(input=len(job.ids), output=used)
        return Reply(text, "length" if end is None else "stop", None, self.name, usage)


class _SeededNoise:
    """Draws by taking the largest of logits / temperature + Gumbel noise, each row from a generator of its own."""

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self._generators])
        return scores.double() / self._temperature + torch.from_numpy(noise).to(scores.device)


def model_fingerprint(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What of a loaded model decides its output: configuration, weights, dtype, attention, tokenizer, template."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for volatile in ("_name_or_path", "transformers_version", "use_cache"):
        config.pop(volatile, None)
    return {
        "config": digest(config),
        "attention": str(model.config._attn_implementation).removeprefix("tuna_"),
        "weights": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": digest(tokenizer.get_vocab()),
        "chat_template": digest(tokenizer.chat_template),
    }


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = configured if isinstance(configured, (list, tuple)) else [configured]
    ends = {int(token) for token in (tokenizer.eos_token_id, *found) if token is not None}
    if not ends:
        raise InputError("TransformersJudge: neither `model` nor `tokenizer` says which token ends a reply.")
    return ends
