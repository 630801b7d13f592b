"""Samplers without a model for the tests of drawing and of the teacher's ranking."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from tuna_trl.clients.base import Sample, Usage


class SeedSampler:
    """Text and log-probs are a function of prompt, temperature and seed; `calls` records what each call was asked.

    Args:
        make: `(prompt text, temperature, seed, place) -> Sample`, instead of the built-in function.
        before: called with the number of each call (0, 1, ...) before it is answered.
    """

    name = "seed-sampler"

    def __init__(
        self,
        make: Callable[[str, float, int, int], Sample] | None = None,
        before: Callable[[int], Any] = lambda call: None,
    ) -> None:
        self.make = make or self._sample
        self.before = before
        self.calls: list[tuple[tuple[str, ...], int, float, tuple[tuple[int, ...], ...]]] = []

    def fingerprint(self) -> dict[str, Any]:
        return {"sampler": "seed", "version": 1}

    def prompt_lengths(self, prompts):
        return [len(prompt[-1]["content"]) for prompt in prompts]

    def sample(self, prompts, n, sampling, *, seeds):
        texts = tuple(prompt[-1]["content"] for prompt in prompts)
        self.before(len(self.calls))
        self.calls.append((texts, n, sampling.temperature, tuple(map(tuple, seeds))))
        return [
            [self.make(text, sampling.temperature, seed, k) for k, seed in enumerate(row)]
            for text, row in zip(texts, seeds, strict=True)
        ]

    @staticmethod
    def _sample(text: str, temperature: float, seed: int, place: int) -> Sample:
        noise = hashlib.sha256(f"{text}|{temperature}|{seed}".encode()).digest()
        logprobs = tuple(-(byte + 1) / 37 for byte in noise[: 1 + noise[0] % 6])
        return Sample(noise.hex()[:12], logprobs, "stop" if noise[1] % 5 else "length", Usage(3, output=len(logprobs)))
