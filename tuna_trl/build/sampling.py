"""Drawing N responses to every prompt from a local sampler, journalled bucket by bucket: a killed build goes on.

The input is read in windows, buckets are cut inside each (`buckets.py`), and only the window at hand is in memory.
Several processes on one journal share the buckets out by leases. Knows neither ranks nor datasets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from ..clients.base import Sampler, Sampling
from ..errors import InputError
from .buckets import Ask, Diversity, Drawn, bucket_key, cut, draw_bucket, drawn_from, place_keys, sample_seed
from .diversity import RougeDiversity
from .items import PromptItem, as_splits, prompt_items
from .journal import Journal
from .processes import Share
from .progress import progress


__all__ = ["Ask", "Diversity", "Drawn", "PromptItem", "as_splits", "draw", "draw_each", "prompt_items", "sample_seed"]

WINDOW = 4096  # prompts; sorted by length inside, 256 buckets of 16 differ little in length and the tail is < 0.4 %
T = TypeVar("T")


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
    finish: Callable[[Drawn], T] = lambda drawn: drawn,
    failed: Callable[[Drawn], bool] = lambda drawn: False,
    retry: bool = False,
    split: str = "train",
    total: int | None = None,
    window_size: int = WINDOW,
    share: Share = Share(),  # noqa: B008 - frozen
    show_progress: bool = True,
) -> Iterator[T]:
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
    windows = Windows(sampler, ask, journal, finish, failed, retry and share.first, split, share)
    title = f"Sampling from {sampler.name}"
    with progress(
        title, total, unit="prompts", closing=windows.said, show=show_progress and share.first
    ) as windows.advance:
        source = iter(items)
        while window := list(islice(source, window_size)):
            yield from windows.draw(window)


@dataclass
class Bucket:
    """A bucket of the window at hand: its places there, its key."""

    places: list[int]
    key: str


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


class Windows:
    """Draws window after window; keeps the counts that are said at the end."""

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
        self.sampler, self.ask, self.journal = sampler, ask, journal
        self.finish, self.failed, self.retry, self.split, self.share = finish, failed, retry, split, share
        self.fingerprint = sampler.fingerprint()  # once: it reads every weight
        self.judge = RougeDiversity(ask.diversity.tokenizer if ask.diversity else "rouge")
        self.advance: Callable[[int], None] = lambda count: None
        self.buckets = self.known = 0

    def said(self) -> str:
        """What is said at the end."""
        words = f"{self.known} of {self.buckets} buckets were already in the journal"
        again = self.journal.sent_again()
        return words + (f"; {again} were being drawn when an earlier run ended, and were drawn again" if again else "")

    def survey(self, items: list[PromptItem]) -> tuple[list[Bucket], list[Any]]:
        """The buckets of a window that are not in the journal, and the results of the others at their places."""
        lengths = self.sampler.prompt_lengths([item.prompt for item in items])
        buckets = [
            Bucket(places, bucket_key(self.fingerprint, [items[i] for i in places], self.ask))
            for places in cut(lengths, self.ask.bucket_size)
        ]
        result: list[Any] = [None] * len(items)
        missing = []
        for bucket in buckets:
            record = self.journal.get(bucket.key)
            if record is None:
                missing.append(bucket)
            else:
                self._take(bucket, items, record, result)
        self.buckets += len(buckets)
        self.known += len(buckets) - len(missing)
        return missing, result

    def draw(self, items: list[PromptItem]) -> list[Any]:
        """One window, in its order; nothing for a process that only helps."""
        missing, result = self.survey(items)
        # Each process begins with its own, so that they rarely reach for the same one, then helps the others.
        own = missing[self.share.rank :: self.share.world]
        due = own + [bucket for bucket in missing if bucket not in own] if self.share.world > 1 else missing
        while due:
            taken = [bucket for bucket in due if not self.draw_bucket(bucket, items, result)]
            if not self.share.first:
                return []
            if len(taken) == len(due):  # others are at work on all that is left
                time.sleep(0.05)
            due = taken
        return result if self.share.first else []

    def draw_bucket(self, bucket: Bucket, items: list[PromptItem], result: list[Any]) -> bool:
        """Draw one bucket, unless another process is about to; False if it is."""
        claim = self.journal.claim([bucket.key])
        if claim.state == "taken":
            return False
        if claim.state == "mine":
            try:
                begun = self.begun(bucket, items)
                if begun.rest:
                    begun.fill(draw_bucket(begun.rest, self.sampler, self.ask, self.judge))
                self.journal.put(bucket.key, {"prompts": begun.entries}, kind="samples", places=begun.keys)
            except BaseException:
                self.journal.release([bucket.key])
                raise
        # Read back: if another process was first, its record stands, here as in every later build.
        self._take(bucket, items, self.journal.get(bucket.key), result)
        return True

    def begun(self, bucket: Bucket, items: list[PromptItem]) -> Begun:
        """A bucket with what other buckets, of a build with other neighbours, have answered of it before."""
        chosen = [items[i] for i in bucket.places]
        keys = place_keys(self.fingerprint, chosen, self.ask, self.split)
        entries: list[Any] = [None] * len(chosen)
        for k, key in enumerate(keys):
            if (found := self.journal.place(key)) is not None:
                entries[k] = self.journal.get(found[0])["prompts"][found[1]]
        return Begun(bucket.key, entries, keys, [item for item, e in zip(chosen, entries, strict=True) if e is None])

    def _take(self, bucket: Bucket, items: list[PromptItem], record: dict[str, Any], result: list[Any]) -> None:
        self.advance(len(bucket.places))
        if not self.share.first:
            return
        drawn = [drawn_from(items[i], entry) for i, entry in zip(bucket.places, record["prompts"], strict=True)]
        self._mend(drawn)
        for i, each in zip(bucket.places, drawn, strict=True):
            result[i] = self.finish(each)

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
                record = self.journal.get(key)
            for k, entry in zip(bad, record["prompts"], strict=True):
                drawn[k] = drawn_from(drawn[k].item, entry)
            number += 1
