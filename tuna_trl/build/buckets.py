"""One bucket of prompts: how it is cut, what its journal key is, how its responses are drawn and written as JSON.

A bucket is what a local sampler draws in one call. It is cut from a fixed window of the full input and every sample
has a seed of its own, so that what is in one forward pass is the same in every run, and so is every float. Knows
samplers by their protocol; touches no journal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..clients.base import Sample, Sampler, Sampling
from ..clients.rouge import TOKENIZERS
from ..data.schema import canonical_json, digest
from ..errors import BuildError, InputError, did_you_mean
from .diversity import RougeDiversity
from .items import PromptItem


_TRIES = 1000  # more than any `max_tries`: the seeds of a retry begin here


@dataclass(frozen=True)
class Diversity:
    """Draw a prompt again while its responses are too alike (the Tuna paper's sampler and its released defaults).

    After each try, prompts whose largest pairwise ROUGE-L is at or above `threshold` are drawn again with the
    temperature raised by `temperature_step`, up to `max_tries` tries in all. The first set below the threshold is
    kept; if there is none, the set with the lowest mean pairwise ROUGE-L. (The released code, LMOps/tuna, stops there
    too, but keeps the lowest mean of all tries, which may be that of a set that failed.)

    `tokenizer`: "rouge" is rouge_score's (a-z and 0-9, stemmed); "unicode" knows every script.
    """

    threshold: float = 0.8
    temperature_step: float = 0.1
    max_tries: int = 3
    tokenizer: str = "rouge"

    def key(self) -> dict[str, Any]:
        """What stands in a journal's key; the default tokenizer is left out, as it was before there was another."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("tokenizer", "rouge")}

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise InputError(
                f"`diversity.tokenizer` is {self.tokenizer!r}, expected one of {', '.join(TOKENIZERS)}."
                f"{did_you_mean(self.tokenizer, TOKENIZERS)}"
            )
        if not 0 < self.threshold <= 1:
            raise InputError(f"`diversity.threshold` must be in (0, 1], got {self.threshold}.")
        if not self.temperature_step >= 0:
            raise InputError(f"`diversity.temperature_step` must be 0 or more, got {self.temperature_step}.")
        if not 1 <= self.max_tries < _TRIES:
            raise InputError(f"`diversity.max_tries` must be at least 1 and below {_TRIES}, got {self.max_tries}.")


@dataclass(frozen=True)
class Drawn:
    """The responses kept for one prompt.

    `temperature` is the one they were drawn at, `tries` how often the prompt was drawn, `max_rouge` their largest
    pairwise ROUGE-L (None without a diversity check). `failures` says why responses are missing (servers only).
    """

    item: PromptItem
    samples: tuple[Sample, ...]
    temperature: float
    tries: int
    max_rouge: float | None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What is asked of every prompt: `n` responses, drawn like this."""

    n: int
    sampling: Sampling
    seed: int
    bucket_size: int = 16
    diversity: Diversity | None = None


def sample_seed(seed: int, item: PromptItem, attempt: int, sample: int) -> int:
    """The seed of one sample: 63 bits of a sha256, so that it fits the signed integers of every server.

    Args:
        attempt: 1, 2, ... (with a diversity check); 1001, ... the first time that a failed row is asked again.
        sample: 0, 1, ... n - 1.
    """
    text = canonical_json([seed, item.prompt_id, item.occurrence, attempt, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def cut(lengths: Sequence[int], bucket_size: int) -> list[list[int]]:
    """Places sorted by prompt length (tokens) then place, in groups of `bucket_size`."""
    if bucket_size < 1:
        raise InputError(f"`bucket_size` must be at least 1, got {bucket_size}.")
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + bucket_size] for start in range(0, len(order), bucket_size)]


def bucket_key(fingerprint: Mapping[str, Any], bucket: Sequence[PromptItem], ask: Ask, retry: int = 0) -> str:
    """The journal key of a bucket: everything that its responses depend on."""
    return digest(
        {
            "kind": "samples",
            "sampler": fingerprint,
            "bucket": [[item.prompt_id, item.occurrence] for item in bucket],
            "n": ask.n,
            "sampling": asdict(ask.sampling),
            "seed": ask.seed,
            "diversity": ask.diversity.key() if ask.diversity else None,
            **({"retry": retry} if retry else {}),
        }
    )


def place_keys(fingerprint: Mapping[str, Any], bucket: Sequence[PromptItem], ask: Ask, split: str) -> list[str]:
    """One key a prompt, without the others of its bucket: a longer build finds there what a limited one has drawn.

    The split is part of it, so that within one build a prompt's key belongs to one bucket, whoever draws first.
    """
    whole = digest(["place", fingerprint, asdict(ask), split])
    return [digest([whole, item.prompt_id, item.occurrence]) for item in bucket]


def draw_bucket(
    bucket: Sequence[PromptItem], sampler: Sampler, ask: Ask, judge: RougeDiversity, retry: int = 0
) -> dict[str, Any]:
    """The journal record of a bucket: one entry per prompt, with the best set of its tries.

    Raises:
        BuildError: the sampler returned another number of responses than asked for.
    """
    best: list[dict[str, Any]] = [{} for _ in bucket]
    lowest = [math.inf] * len(bucket)
    again = list(range(len(bucket)))
    diversity = ask.diversity
    for attempt in range(1, (diversity.max_tries if diversity else 1) + 1):
        # Rounded, because 1 + 2 * 0.1 is not 1.2, and temperatures are shown to people.
        raised = round((attempt - 1) * diversity.temperature_step, 9) if diversity else 0.0
        hotter = replace(ask.sampling, temperature=round(ask.sampling.temperature + raised, 9))
        asked = [bucket[k] for k in again]
        number = attempt + retry * _TRIES
        seeds = [[sample_seed(ask.seed, item, number, s) for s in range(ask.n)] for item in asked]
        sets = _sample(sampler, asked, ask.n, hotter, seeds)
        still = []
        for k, samples in zip(again, sets, strict=True):
            if diversity is None:
                largest, mean, accepted = None, 0.0, True
            else:
                largest, mean = judge.max_mean([s.text for s in samples])
                accepted = largest < diversity.threshold
            if accepted or mean < lowest[k]:
                lowest[k] = mean
                best[k] = {
                    "samples": [sample_to_json(sample) for sample in samples],
                    "temperature": hotter.temperature,
                    "max_rouge": largest,
                }
            best[k]["tries"] = attempt
            if not accepted:
                still.append(k)
        again = still
        if not again:
            break
    return {"prompts": best}


def drawn_from(item: PromptItem, entry: Mapping[str, Any]) -> Drawn:
    """One entry of a bucket's record as what was drawn."""
    samples = tuple(sample_from_json(sample) for sample in entry["samples"])
    return Drawn(item, samples, entry["temperature"], entry["tries"], entry["max_rouge"])


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON can hold it: a log-prob that is no number becomes null, half a surrogate pair U+FFFD."""
    record = {**vars(sample), "usage": dict(vars(sample.usage))}  # `asdict` copies every log-prob, one by one
    record["text"] = sample.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    record["token_logprobs"] = [
        value if value is not None and math.isfinite(value) else None for value in sample.token_logprobs
    ]
    return record


def sample_from_json(record: Mapping[str, Any]) -> Sample:
    """What [`sample_to_json`] wrote; null log-probs come back as NaN."""
    logprobs = [math.nan if value is None else value for value in record["token_logprobs"]]
    return Sample.from_json({**record, "token_logprobs": logprobs})


def _sample(
    sampler: Sampler, items: Sequence[PromptItem], n: int, sampling: Sampling, seeds: list[list[int]]
) -> list[list[Sample]]:
    sets = sampler.sample([item.prompt for item in items], n, sampling, seeds=seeds)
    counts = [len(samples) for samples in sets]
    if counts != [n] * len(items):
        raise BuildError(
            f"The sampler {sampler.name} was asked for {n} responses to each of {len(items)} prompts and returned "
            f"{counts}. A server that ignores `n` does that; nothing of this bucket was kept."
        )
    return sets
