"""Going through an input window by window, bucket by bucket, with a journal: a killed run goes on where it stood.

What a local model does in one go is a bucket, the unit that is journalled. Buckets are cut inside a window, and only
the window at hand is in memory. Several processes on one journal share the buckets out by leases. What a bucket is
and what is made of it is for subclasses to say.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .journal import Journal
from .processes import Share
from .progress import progress


_LOOK = 0.05  # seconds between two looks at what other processes are at work on


@dataclass(frozen=True)
class Bucket:
    """A bucket of the window at hand: its places there, its key."""

    places: list[int]
    key: str


class Windows(ABC):
    """Works through window after window; keeps the counts that are said at the end.

    Args:
        journal: buckets found there are not worked on again; each new one is committed before the next is begun.
        share: this process and how many there are; all but the first work, and have no results.
    """

    verb = "done"

    def __init__(self, journal: Journal, share: Share) -> None:
        self.journal, self.share = journal, share
        self.advance: Callable[[int], None] = lambda count: None
        self.buckets = self.known = 0

    @abstractmethod
    def cut(self, items: Sequence[Any]) -> list[Bucket]:
        """A window in buckets, each place in one of them."""

    @abstractmethod
    def write(self, bucket: Bucket, items: Sequence[Any]) -> None:
        """Make the record of a bucket and put it in the journal; the lease on its key is held."""

    @abstractmethod
    def read(self, bucket: Bucket, items: Sequence[Any], record: Mapping[str, Any]) -> Iterable[Any]:
        """The results in the record of a bucket, one for each of its places."""

    def each(
        self, items: Iterable[Any], size: int, title: str, total: int | None, *, unit: str = "", show: bool = True
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with its result, in order, read in windows of `size`; nothing for a process that only helps.

        Args:
            title, total, unit, show: see [`tuna_trl.build.progress.progress`].
        """
        show = show and self.share.first
        with progress(title, total, unit=unit, closing=self.said, show=show) as self.advance:
            source = iter(items)
            while window := list(islice(source, size)):
                # not strict: a helper has no results; and no name for them, which would keep them through the next one
                yield from zip(window, self.work(window), strict=False)

    def said(self) -> str:
        """What is said at the end."""
        words = f"{self.known} of {self.buckets} buckets were already in the journal"
        again, verb = self.journal.sent_again(), self.verb
        return words + (f"; {again} were being {verb} when an earlier run ended, and were {verb} again" * bool(again))

    def survey(self, items: Sequence[Any]) -> tuple[list[Bucket], list[Any]]:
        """The buckets of a window that are not in the journal, and the results of the others at their places."""
        buckets, missing, results = self.cut(items), [], [None] * len(items)
        for bucket in buckets:
            record = self.journal.get(bucket.key)
            if record is None:
                missing.append(bucket)
            else:
                self._take(bucket, items, record, results)
        self.buckets += len(buckets)
        self.known += len(buckets) - len(missing)
        return missing, results

    def work(self, items: Sequence[Any]) -> list[Any]:
        """The results of one window, in its order; nothing for a process that only helps."""
        missing, results = self.survey(items)
        # Each process begins with its own, so that they rarely reach for the same one, then helps the others.
        own = missing[self.share.rank :: self.share.world]
        due = own + [bucket for bucket in missing if bucket not in own] if self.share.world > 1 else missing
        while due:
            taken = [bucket for bucket in due if not self.work_on(bucket, items, results)]
            if not self.share.first:
                return []
            if len(taken) == len(due):  # others are at work on all that is left
                time.sleep(_LOOK)
            due = taken
        return results if self.share.first else []

    def work_on(self, bucket: Bucket, items: Sequence[Any], results: list[Any]) -> bool:
        """Put the results of one bucket at their places, unless another process is about to; False if it is."""
        claim = self.journal.claim([bucket.key])
        if claim.state == "taken":
            return False
        if claim.state == "mine":
            try:
                self.write(bucket, items)
            except BaseException:
                self.journal.release([bucket.key])
                raise
        # Read back: if another process was first, its record stands, here as in every later run.
        self._take(bucket, items, self.journal.kept(bucket.key), results)
        return True

    def _take(self, bucket: Bucket, items: Sequence[Any], record: Mapping[str, Any], results: list[Any]) -> None:
        self.advance(len(bucket.places))
        if not self.share.first:
            return
        for i, result in zip(bucket.places, self.read(bucket, items, record), strict=True):
            results[i] = result
