"""The local sampler: N responses to each prompt from a loaded transformers (or PEFT) causal model, with log-probs.

The prompts of a call are prefilled once, N branches grow from their key-value cache, and a bare loop draws from there;
the log-probs cost no second pass (docs/ranking.md has the measured gain). Touches the model only to run it: eval mode
and no gradients inside, every module's mode and the attention restored after, `generation_config` left alone.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.schema import Messages, digest
from ..errors import InputError
from .base import Sample, Sampling, Usage
from .drawing import draw_tokens
from .kv_cache import Branches, all_plain, attending_branches, can_expand, expand, follows_branches
from .weights import weights_digest


@dataclass
class _Branch:
    """One response in the making."""

    prompt: int  # its place in the call
    seed: int
    prompt_len: int  # tokens
    limit: int  # tokens it may still get: `max_new_tokens`, or what the model's context leaves
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""  # while it grows


class TransformersSampler:
    """Draws responses from a causal language model in this process.

    Sample k of prompt i depends on `seeds[i][k]` and its own logits alone: the numbers come from a generator of its
    own (PCG64), one per token, through the inverse of the cumulative distribution in float64. What else is in the call
    changes its logits by rounding only; the same call on the same machine returns the same floats.

    Text is decoded without special tokens and without the end token, and is otherwise as the model wrote it: nothing
    is stripped. The end tokens are the tokenizer's and those of the model's `generation_config`; the one produced is
    counted in the log-probs, and the finish reason is then `stop`. A response cut by `max_new_tokens` or by the end
    of the model's context (`max_position_embeddings`) has `length`, as has one whose logits turned to NaN: its last
    log-prob is NaN, for the builder to fail.

    Args:
        model: a loaded causal model; PEFT adapters are used as they are active.
        tokenizer: with a chat template.
        name: the model id that goes into rows; default: the last part of the path or the Hub id it was loaded from.
        max_batch_tokens: upper bound of rows x (longest prompt + new tokens) in one forward pass; a call beyond it is
            run in parts. Bounds memory (SmolLM2-135M in float32: 46 kB of cache a token); a single branch is never
            split. Not in the fingerprint: another value changes log-probs by rounding.
        device: where the token ids go; default: the model's device.

    Raises:
        InputError: no chat template, an encoder-decoder model, or a prompt-learning adapter.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        max_batch_tokens: int = 32_768,
        device: str | torch.device | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                "`tokenizer` has no chat template, so prompts cannot be rendered. Set `tokenizer.chat_template`, or "
                "pass the tokenizer of an instruction-tuned model of the same family."
            )
        if model.config.is_encoder_decoder:
            raise InputError(f"`model` is an encoder-decoder ({model.config.model_type}); a causal model is needed.")
        adapter = getattr(model, "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:
            raise InputError(
                f"`model` has a prompt-learning adapter ({adapter.peft_type.value}), which this sampler cannot run. "
                "Use a LoRA-like adapter or merge it."
            )
        if max_batch_tokens < 1:
            raise InputError(f"`max_batch_tokens` must be at least 1, got {max_batch_tokens}.")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or default_name(model)
        self.max_batch_tokens = max_batch_tokens
        self.device = torch.device(device) if device is not None else model.device
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = set(inspect.signature(self._base.forward).parameters)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # Learned at the first prefill: a cache with recurrent state has no branches to expand to.
        self._expandable = True
        self._shares: bool | None = None  # whether branches share their prompt's keys; asked at the first prefill

    def fingerprint(self) -> dict[str, Any]:
        """What decides the samples: name, config, weights (every bit of them, adapters included), tokenizer, template.

        Computed at every call, because a student is trained between calls; one pass over the weights (0.3 s for
        SmolLM2-135M). Hardware, thread count and library versions are not part of it.
        """
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        for volatile in ("_name_or_path", "transformers_version", "use_cache"):
            config.pop(volatile, None)
        return {
            "sampler": "transformers",
            "model": self.name,
            "config": digest(config),
            # a model that has been taught to score runs the same attention under another name
            "attention": self.model.config._attn_implementation.removeprefix("tuna_"),
            "weights": weights_digest(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "tokenizer": digest(self.tokenizer.get_vocab()),
            "chat_template": digest(self.tokenizer.chat_template),
            "end_tokens": sorted(self._end_tokens()),
            "include_eos": True,
        }

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt, generation prompt included.

        Args: as [`Sampler.prompt_lengths`].

        Raises:
            InputError: a prompt that fills the model's context, so that nothing can be drawn.
        """
        return [len(ids) for ids in self._encode(prompts)]

    def sample(
        self, prompts: Sequence[Messages], n: int, sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """`n` responses to each prompt.

        The prompt's tokens are counted in the usage of its first sample only: they are computed once.

        Args: as [`Sampler.sample`].

        Raises:
            InputError: a sampling value out of range, a prompt too long, seeds that are not one for each sample.
        """
        _check(prompts, n, sampling, seeds)
        encoded = self._encode(prompts)
        branches = [
            _Branch(i, seed, len(ids), self._room(len(ids), sampling.max_new_tokens))
            for i, ids in enumerate(encoded)
            for seed in seeds[i]
        ]
        with inference(self.model):
            for part in self._parts(branches, n, sampling.max_new_tokens):
                self._grow(part, encoded, sampling)
        samples = [self._finished(branch, first=k % n == 0) for k, branch in enumerate(branches)]
        return [samples[k : k + n] for k in range(0, len(samples), n)]

    def greedy(self, prompts: Sequence[Messages], max_new_tokens: int = 256) -> list[str]:
        """The most probable continuation of each prompt, token by token, as text.

        Args:
            prompts: messages.
            max_new_tokens: tokens of a continuation at most, the end token included.
        """
        sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        drawn = self.sample(prompts, 1, sampling, seeds=[[0]] * len(prompts))
        return [samples[0].text for samples in drawn]

    def _encode(self, prompts: Sequence[Messages]) -> list[list[int]]:
        encoded = []
        for i, prompt in enumerate(prompts):
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            if not ids or (self._context is not None and len(ids) >= self._context):
                raise InputError(
                    f"`prompts[{i}]` has {len(ids)} tokens, the model's context is {self._context}: nothing can be "
                    f"drawn. Leave it out or shorten it. It begins {prompt[-1]['content'][:60]!r}."
                )
            encoded.append(ids)
        return encoded

    def _room(self, prompt_len: int, max_new_tokens: int) -> int:
        return max_new_tokens if self._context is None else min(max_new_tokens, self._context - prompt_len)

    def _end_tokens(self) -> set[int]:
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        found = configured if isinstance(configured, (list, tuple)) else [configured]
        return {int(token) for token in (self.tokenizer.eos_token_id, *found) if token is not None}

    def _parts(self, branches: list[_Branch], n: int, max_new_tokens: int) -> Iterator[list[_Branch]]:
        """Parts of a call that fit `max_batch_tokens`: whole prompts where they fit, else some branches of one."""
        if not branches:
            return
        longest = max(branch.prompt_len for branch in branches) + max_new_tokens
        rows = max(1, self.max_batch_tokens // longest)
        if rows >= n:
            size = rows // n * n
            yield from (branches[start : start + size] for start in range(0, len(branches), size))
        else:
            for first in range(0, len(branches), n):
                one = branches[first : first + n]
                yield from (one[start : start + rows] for start in range(0, n, rows))

    def _grow(self, branches: list[_Branch], encoded: list[list[int]], sampling: Sampling) -> None:
        """Prefill, expand, then draw token after token until every branch has ended."""
        logits, cache, seen = self._prefill(branches, encoded)
        slots = list(branches)  # the branch in each row of the batch
        uniforms = _uniforms(branches, sampling)
        ends = self._end_tokens()
        with attending_branches(self._base) if isinstance(seen, Branches) else nullcontext():
            for step in range(sampling.max_new_tokens):
                tokens, logprobs = draw_tokens(logits, uniforms[:, step], sampling)
                for branch, token, logprob in zip(slots, tokens.tolist(), logprobs.tolist(), strict=True):
                    if not branch.finish_reason:
                        _append(branch, token, logprob, ends)
                live = [k for k, branch in enumerate(slots) if not branch.finish_reason]
                if not live:
                    return
                if self._expandable and 2 * len(live) <= len(slots):
                    keep = torch.tensor(live, device=self.device)
                    seen = _keep(keep, cache, seen)
                    tokens, uniforms = tokens[keep.to(tokens.device)], uniforms[live]
                    slots = [slots[k] for k in live]
                # The position of a finished row stays where it ended, so that no table of positions is overrun.
                positions = torch.tensor([[b.prompt_len + len(b.ids) - 1] for b in slots], device=self.device)
                if isinstance(seen, Tensor):
                    seen = torch.cat([seen, seen.new_ones(len(slots), 1)], dim=1)
                logits, cache = self._forward(tokens.to(self.device)[:, None], seen, positions, cache)

    def _prefill(self, branches: list[_Branch], encoded: list[list[int]]) -> tuple[Tensor, Any, Tensor | Branches]:
        """One forward pass over the prompts, then one row per branch: logits `(rows, V)`, cache, and what the rows
        see of it: a mask `(rows, P)`, or the branches of shared prompts."""
        prompts = list(dict.fromkeys(branch.prompt for branch in branches))
        repeats = len(branches) // len(prompts)
        copies = 1 if self._expandable else repeats
        ids, mask = left_pad([encoded[i] for i in prompts for _ in range(copies)], self.tokenizer)
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits, cache = self._forward(ids, mask, positions, None)
        if not self._expandable:
            return logits, cache, mask
        if not can_expand(cache):
            self._expandable = False
            return self._prefill(branches, encoded)
        logits = logits.repeat_interleave(repeats, 0)
        room = max(branch.limit for branch in branches)
        if self._shares is None:
            self._shares = all_plain(cache) and follows_branches(self._base)
        if self._shares:
            return logits, cache, Branches(cache, mask, repeats, room)
        expand(cache, repeats, room)
        return logits, cache, mask.repeat_interleave(repeats, 0)

    def _forward(self, ids: Tensor, seen: Tensor | Branches, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last position `(rows, V)` and the cache."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        kwargs = {key: value for key, value in optional.items() if key in self._accepts}
        kwargs |= {"tuna_branches": seen} if isinstance(seen, Branches) else {"attention_mask": seen}
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **kwargs)
        if getattr(output, "past_key_values", None) is None:
            raise InputError(
                f"`model` ({self.model.config.model_type}) returns no `past_key_values`, which this sampler needs. "
                "Sample from it through an OpenAI-compatible server instead."
            )
        return output.logits[:, -1], output.past_key_values

    def _finished(self, branch: _Branch, first: bool) -> Sample:
        ids = branch.ids[:-1] if branch.finish_reason == "stop" else branch.ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        usage = Usage(input=branch.prompt_len if first else 0, output=len(branch.ids))
        return Sample(text, tuple(branch.logprobs), branch.finish_reason, usage)


def _keep(rows: Tensor, cache: Any, seen: Tensor | Branches) -> Tensor | Branches:
    """Drop every row of the cache but `rows`; returns what those see."""
    if isinstance(seen, Branches):
        seen.keep(rows)
        return seen
    cache.batch_select_indices(rows)
    return seen[rows]


def _append(branch: _Branch, token: int, logprob: float, ends: set[int]) -> None:
    branch.ids.append(token)
    branch.logprobs.append(logprob)
    if not np.isfinite(logprob):  # the logits are NaN: nothing after this token means anything
        branch.finish_reason = "length"
    elif token in ends:
        branch.finish_reason = "stop"
    elif len(branch.ids) == branch.limit:
        branch.finish_reason = "length"


def _uniforms(branches: list[_Branch], sampling: Sampling) -> Tensor:
    """`(rows, max_new_tokens)` float64 in [0, 1) on the CPU, each row from its branch's own generator.

    NumPy's PCG64, not torch's generator: torch seeds with 32 bits, where the 208,000 seeds of 52,000 prompts collide.
    """
    if sampling.temperature == 0:
        return torch.zeros(len(branches), sampling.max_new_tokens, dtype=torch.float64)
    rows = [np.random.default_rng(branch.seed).random(sampling.max_new_tokens) for branch in branches]
    return torch.from_numpy(np.stack(rows))


def left_pad(rows: list[list[int]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """`(rows, P)` ids padded on the left and their mask, 1 = real."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked, so that any id will do
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for k, row in enumerate(rows):
        ids[k, longest - len(row) :] = torch.tensor(row)
        mask[k, longest - len(row) :] = 1
    return ids, mask


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a rotary table grown inside it could never take part in training again.
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def default_name(model: Any) -> str:
    path = model.config._name_or_path
    name = os.path.basename(os.path.normpath(path)) if os.path.isdir(path) else path
    name = name or model.config.model_type
    adapter = getattr(model, "active_peft_config", None)
    return name if adapter is None else f"{name}+{adapter.peft_type.value.lower()}"


def _check(prompts: Sequence[Messages], n: int, sampling: Sampling, seeds: Sequence[Sequence[int]]) -> None:
    if n < 1:
        raise InputError(f"`n` must be at least 1, got {n}.")
    if not sampling.temperature >= 0:
        raise InputError(f"`sampling.temperature` must be 0 (greedy) or more, got {sampling.temperature}.")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"`sampling.top_p` must be in (0, 1], got {sampling.top_p}; 1 cuts nothing.")
    if sampling.top_k < 0:
        raise InputError(f"`sampling.top_k` must be 0 (no cut) or more, got {sampling.top_k}.")
    if sampling.max_new_tokens < 1:
        raise InputError(f"`sampling.max_new_tokens` must be at least 1, got {sampling.max_new_tokens}.")
    if [len(row) for row in seeds] != [n] * len(prompts):
        raise InputError(f"`seeds` must hold {n} seeds for each of the {len(prompts)} prompts.")
