"""Drawing N responses to every prompt from a local sampler, journalled bucket by bucket: a killed build goes on.

The input is gone through in windows (`windows.py`); what is drawn of a bucket is `buckets.py`. Knows neither ranks nor
datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..clients.base import Sampler, Sampling
from ..errors import InputError
from .buckets import Ask, Diversity, Drawn, bucket_key, cut, draw_bucket, drawn_from, place_keys, sample_seed
from .diversity import RougeDiversity
from .items import PromptItem, as_splits, prompt_items
from .journal import Journal
from .processes import Share
from .windows import Bucket, Windows


__all__ = ["Ask", "Diversity", "Drawn", "PromptItem", "as_splits", "draw", "draw_each", "prompt_items", "sample_seed"]

WINDOW = 4096  # prompts; sorted by length inside, 256 buckets of 16 differ little in length and the tail is < 0.4 %


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
    """`n` responses to every item, in the order of `items`; see [`draw_each`]."""
    ask = Ask(n, sampling, seed, bucket_size, diversity)
    return list(draw_each(items, sampler, ask, journal=journal, total=len(items), show_progress=show_progress))


def draw_each(
    items: Iterable[PromptItem],
    sampler: Sampler,
    ask: Ask,
    *,
    journal: Journal,
    finish: Callable[[Drawn], Any] = lambda drawn: drawn,
    failed: Callable[[Drawn], bool] = lambda drawn: False,
    retry: bool = False,
    split: str = "train",
    total: int | None = None,
    window_size: int = WINDOW,
    share: Share = Share(),  # noqa: B008 - frozen
    show_progress: bool = True,
) -> Iterator[Any]:
    """What `finish` makes of the responses to each item, in the order of `items`, which are read as they are needed.

    Args:
        items: what [`tuna_trl.build.items.read_items`] yields.
        journal: buckets found there are not drawn again; each new one is committed before the next is begun. Prompts
            that an earlier build with other neighbours (a shorter one, say) has answered keep that answer.
        finish: called once a prompt; what it leaves out (log-probs) does not stay in memory.
        failed: with `retry`, prompts for which it is true are drawn once more, with new seeds; what such a retry of an
            earlier run gave counts in every run.
        total: number of items, for the progress bar.
        window_size: items among which buckets are cut, the shortest first, and which are in memory at once.
        share: this process and how many there are; all but the first draw, and yield nothing.

    Raises:
        BuildError: the sampler returned another number of responses than asked for, or the journal cannot be written.
    """
    if window_size < 1:
        raise InputError(f"`window_size` must be at least 1, got {window_size}.")
    windows = SampleWindows(sampler, ask, journal, finish, failed, retry and share.first, split, share)
    title = f"Sampling from {sampler.name}"
    for _, result in windows.each(items, window_size, title, total, unit="prompts", show=show_progress):
        yield result


@dataclass
class Begun:
    """The record of a bucket in the making: `rest` are the prompts that are still to be drawn."""

    key: str
    entries: list[Any]
    keys: list[str]
    rest: list[PromptItem]

    def fill(self, record: Mapping[str, Any]) -> None:
        """Put the entries drawn for `rest` in their places."""
        drawn = iter(record["prompts"])
        self.entries = [next(drawn) if entry is None else entry for entry in self.entries]

    def keep(self, journal: Journal) -> None:
        """Journal the record, whole, under the keys of its prompts too."""
        journal.put(self.key, {"prompts": self.entries}, kind="samples", places=self.keys)


class SampleWindows(Windows):
    """Draws the responses to window after window of prompts."""

    verb = "drawn"

    def __init__(
        self,
        sampler: Sampler,
        ask: Ask,
        journal: Journal,
        finish: Callable[[Drawn], Any],
        failed: Callable[[Drawn], bool],
        retry: bool,
        split: str,
        share: Share,
    ) -> None:
        super().__init__(journal, share)
        self.sampler, self.ask = sampler, ask
        self.finish, self.failed, self.retry, self.split = finish, failed, retry, split
        self.fingerprint = sampler.fingerprint()  # once: it reads every weight
        self.judge = RougeDiversity(ask.diversity.tokenizer if ask.diversity else "rouge")

    def cut(self, items: Sequence[PromptItem]) -> list[Bucket]:
        """Prompts of like length, the shortest first."""
        lengths = self.sampler.prompt_lengths([item.prompt for item in items])
        return [
            Bucket(places, bucket_key(self.fingerprint, [items[i] for i in places], self.ask))
            for places in cut(lengths, self.ask.bucket_size)
        ]

    def write(self, bucket: Bucket, items: Sequence[PromptItem]) -> None:
        """Draw what other buckets have not answered of this one."""
        begun = self.begun(bucket, items)
        if begun.rest:
            begun.fill(draw_bucket(begun.rest, self.sampler, self.ask, self.judge))
        begun.keep(self.journal)

    def read(self, bucket: Bucket, items: Sequence[PromptItem], record: Mapping[str, Any]) -> Iterator[Any]:
        """What `finish` makes of the responses to each prompt."""
        drawn = [drawn_from(items[i], entry) for i, entry in zip(bucket.places, record["prompts"], strict=True)]
        self._mend(drawn)
        return map(self.finish, drawn)

    def begun(self, bucket: Bucket, items: Sequence[PromptItem]) -> Begun:
        """A bucket with what other buckets, of a build with other neighbours, have answered of it before."""
        chosen = [items[i] for i in bucket.places]
        keys = place_keys(self.fingerprint, chosen, self.ask, self.split)
        entries: list[Any] = [None] * len(chosen)
        for k, key in enumerate(keys):
            if (found := self.journal.place(key)) is not None:
                entries[k] = self.journal.kept(found[0])["prompts"][found[1]]
        return Begun(bucket.key, entries, keys, [item for item, e in zip(chosen, entries, strict=True) if e is None])

    def _mend(self, drawn: list[Drawn]) -> None:
        """Put what retries gave in the place of what failed; draw another one, once, where that is wanted."""
        fresh, number = False, 1
        while bad := [k for k, each in enumerate(drawn) if self.failed(each)]:
            chosen = [drawn[k].item for k in bad]
            key = bucket_key(self.fingerprint, chosen, self.ask, number)
            record = self.journal.get(key)
            if record is None:
                if fresh or not self.retry:
                    return
                fresh = True
                record = draw_bucket(chosen, self.sampler, self.ask, self.judge, retry=number)
                self.journal.put(key, record, kind="samples")
                record = self.journal.kept(key)
            for k, entry in zip(bad, record["prompts"], strict=True):
                drawn[k] = drawn_from(drawn[k].item, entry)
            number += 1
