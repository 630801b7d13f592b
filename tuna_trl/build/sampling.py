"""Drawing N responses to every prompt, journalled bucket by bucket, so that a killed build goes on where it stood.

The journalled unit is a fixed bucket of prompts cut from the full input, and every sample has a seed of its own. What
is in one forward pass is thus the same in a resumed build, and so is every float: the dataset is byte-identical. Knows
samplers by their protocol only, and neither ranks nor datasets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..clients.base import Sample, Sampler, Sampling
from ..data.schema import canonical_json, digest
from ..errors import BuildError, InputError
from .diversity import RougeDiversity
from .items import PromptItem, as_splits, prompt_items
from .journal import Journal
from .progress import progress


__all__ = ["Diversity", "Drawn", "PromptItem", "as_splits", "draw", "prompt_items", "sample_seed"]


@dataclass(frozen=True)
class Diversity:
    """Draw a prompt again while its responses are too alike (the Tuna paper's sampler and its released defaults).

    After each try, prompts whose largest pairwise ROUGE-L is at or above `threshold` are drawn again with the
    temperature raised by `temperature_step`, up to `max_tries` tries in all. The first set below the threshold is
    kept; if there is none, the set with the lowest mean pairwise ROUGE-L. (The released code, LMOps/tuna, stops there
    too, but keeps the lowest mean of all tries, which may be that of a set that failed.)
    """

    threshold: float = 0.8
    temperature_step: float = 0.1
    max_tries: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"`diversity.threshold` must be in (0, 1], got {self.threshold}.")
        if not self.temperature_step >= 0:
            raise InputError(f"`diversity.temperature_step` must be 0 or more, got {self.temperature_step}.")
        if self.max_tries < 1:
            raise InputError(f"`diversity.max_tries` must be at least 1, got {self.max_tries}.")


@dataclass(frozen=True)
class Drawn:
    """The responses kept for one prompt.

    `temperature` is the one they were drawn at, `tries` how often the prompt was drawn, `max_rouge` their largest
    pairwise ROUGE-L (None without a diversity check).
    """

    item: PromptItem
    samples: tuple[Sample, ...]
    temperature: float
    tries: int
    max_rouge: float | None


def draw(
    items: Sequence[PromptItem],
    sampler: Sampler,
    *,
    n: int,
    sampling: Sampling,
    seed: int,
    journal: Journal,
    bucket_size: int = 16,
    diversity: Diversity | None = None,
    show_progress: bool = True,
) -> list[Drawn]:
    """`n` responses to every item, in the order of `items`.

    Args:
        items: what [`tuna_trl.build.items.prompt_items`] returns.
        seed: every sample's own seed is derived from this, the prompt, its occurrence, the try and its number.
        journal: buckets found there are not drawn again; each new one is committed before the next is begun.
        bucket_size: prompts drawn together, the shortest first. Part of the key: another value draws everything anew.

    Raises:
        BuildError: the sampler returned another number of responses than asked for, or the journal cannot be written.
    """
    buckets = _buckets(items, sampler, bucket_size)
    fingerprint = sampler.fingerprint()
    keys = [_key(fingerprint, [items[i] for i in b], n, sampling, seed, diversity) for b in buckets]
    records = [journal.get(key) for key in keys]
    missing = [b for b, record in enumerate(records) if record is None]
    note = f"{len(buckets) - len(missing)} of {len(buckets)} buckets were already in the journal"
    judge = RougeDiversity()
    with progress(f"Sampling from {sampler.name}", len(missing), note, show=show_progress) as advance:
        for b in missing:
            bucket = [items[i] for i in buckets[b]]
            record = _draw_bucket(bucket, sampler, n, sampling, seed, diversity, judge)
            journal.put(keys[b], record, kind="samples")
            # Read back: if another process was first, its record stands, here as in every later build.
            records[b] = journal.get(keys[b])
            advance(1)
    drawn: list[Drawn | None] = [None] * len(items)
    for bucket, record in zip(buckets, records, strict=True):
        for i, entry in zip(bucket, record["prompts"], strict=True):
            samples = tuple(_sample_from_json(sample) for sample in entry["samples"])
            drawn[i] = Drawn(items[i], samples, entry["temperature"], entry["tries"], entry["max_rouge"])
    return drawn


def sample_seed(seed: int, item: PromptItem, attempt: int, sample: int) -> int:
    """The seed of one sample: 63 bits of a sha256, so that it fits the signed integers of every server.

    Args:
        attempt: 1, 2, ... (with a diversity check).
        sample: 0, 1, ... n - 1.
    """
    text = canonical_json([seed, item.prompt_id, item.occurrence, attempt, sample])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _buckets(items: Sequence[PromptItem], sampler: Sampler, bucket_size: int) -> list[list[int]]:
    """Places in `items`, sorted by prompt length then place, in groups of `bucket_size`."""
    if bucket_size < 1:
        raise InputError(f"`bucket_size` must be at least 1, got {bucket_size}.")
    lengths = sampler.prompt_lengths([item.prompt for item in items])
    order = sorted(range(len(items)), key=lambda i: (lengths[i], i))
    return [order[start : start + bucket_size] for start in range(0, len(order), bucket_size)]


def _key(
    fingerprint: Mapping[str, Any],
    bucket: Sequence[PromptItem],
    n: int,
    sampling: Sampling,
    seed: int,
    diversity: Diversity | None,
) -> str:
    return digest(
        {
            "kind": "samples",
            "sampler": fingerprint,
            "bucket": [[item.prompt_id, item.occurrence] for item in bucket],
            "n": n,
            "sampling": asdict(sampling),
            "seed": seed,
            "diversity": asdict(diversity) if diversity else None,
        }
    )


def _draw_bucket(
    bucket: Sequence[PromptItem],
    sampler: Sampler,
    n: int,
    sampling: Sampling,
    seed: int,
    diversity: Diversity | None,
    judge: RougeDiversity,
) -> dict[str, Any]:
    """The journal record of a bucket: one entry per prompt, with the best set of its tries."""
    best: list[dict[str, Any] | None] = [None] * len(bucket)
    lowest = [math.inf] * len(bucket)
    again = list(range(len(bucket)))
    for attempt in range(1, (diversity.max_tries if diversity else 1) + 1):
        # Rounded, because 1 + 2 * 0.1 is not 1.2, and temperatures are shown to people.
        raised = round((attempt - 1) * diversity.temperature_step, 9) if attempt > 1 else 0.0
        hotter = replace(sampling, temperature=round(sampling.temperature + raised, 9))
        asked = [bucket[k] for k in again]
        seeds = [[sample_seed(seed, item, attempt, s) for s in range(n)] for item in asked]
        sets = _ask(sampler, asked, n, hotter, seeds)
        still = []
        for k, samples in zip(again, sets, strict=True):
            largest, mean = judge.max_mean([s.text for s in samples]) if diversity else (None, 0.0)
            accepted = diversity is None or largest < diversity.threshold
            if accepted or mean < lowest[k]:
                lowest[k] = mean
                best[k] = {
                    "samples": [_sample_to_json(sample) for sample in samples],
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


def _ask(
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


def _sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON can hold it: a log-prob that is no number becomes null, half a surrogate pair U+FFFD."""
    record = sample.to_json()
    record["text"] = sample.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    record["token_logprobs"] = [
        value if value is not None and math.isfinite(value) else None for value in sample.token_logprobs
    ]
    return record


def _sample_from_json(record: Mapping[str, Any]) -> Sample:
    logprobs = [math.nan if value is None else value for value in record["token_logprobs"]]
    return Sample.from_json({**record, "token_logprobs": logprobs})
