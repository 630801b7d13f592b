"""A local sampler on the machines of a Ray cluster: Ray Data hands buckets to actors, this process keeps the journal.

The scheduling is Ray's (`ray_cluster.py`); here stand the sampler that stands for it, and the pass that fills a
journal. Rows are those of the local sampler: the same buckets, the same seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from ..clients.base import Sample, Sampler, Sampling
from ..data.schema import Messages, canonical_json
from .buckets import Ask, draw_bucket
from .diversity import RougeDiversity
from .items import PromptItem
from .journal import Journal
from .processes import Share
from .progress import progress
from .ray_cluster import WINDOWS, OnRay
from .sampling import Begun, SampleWindows


class RaySampler(OnRay):
    """Stands for a local sampler that lives on a Ray cluster; see [`tuna_trl.clients.base.Sampler`]. Its arguments are
    those of [`tuna_trl.build.ray_cluster.OnRay`]; `make` makes a sampler.
    """

    def prompt_lengths(self, prompts: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt, by a sampler on the cluster."""
        return self.ask("prompt_lengths", list(prompts))

    def sample(
        self, prompts: Sequence[Messages], n: int, sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """One call on one actor: for what [`fill`] leaves over (retries, buckets of another process that died)."""
        return self.ask("sample", list(prompts), n, sampling, seeds=[list(row) for row in seeds])

    def fill(
        self,
        items: Iterable[PromptItem],
        ask: Ask,
        journal: Journal,
        split: str,
        window_size: int,
        show_progress: bool = True,
    ) -> None:
        """Draw every bucket that the journal lacks, on all actors at once; each is journalled as it arrives.

        Raises:
            BuildError: an actor failed, or the cluster did.
        """
        windows = SampleWindows(self, ask, journal, lambda drawn: None, lambda drawn: False, False, split, Share())
        source = iter(items)
        while due := list(self._due(source, windows, window_size)):
            open_buckets = {begun.key: begun for begun in due if begun.rest}
            self.let_go()  # its resources are wanted
            with progress(f"{self.name} on Ray", len(open_buckets), unit="buckets", show=show_progress) as advance:
                try:
                    for begun in due:
                        if not begun.rest:
                            begun.keep(journal)
                    for key, record in self._run(list(open_buckets.values()), ask):
                        begun = open_buckets.pop(key)
                        begun.fill(record)
                        begun.keep(journal)
                        advance(1)
                finally:
                    journal.release(list(open_buckets))

    def _due(self, source: Iterator[PromptItem], windows: SampleWindows, size: int) -> Iterator[Begun]:
        """The buckets of the next windows that nobody has drawn or is drawing; passes windows without any."""
        seen = 0
        while seen < WINDOWS and (items := list(islice(source, size))):
            missing, _ = windows.survey(items)
            seen += bool(missing)
            for bucket in missing:
                if windows.journal.claim([bucket.key]).state == "mine":
                    yield windows.begun(bucket, items)

    def _run(self, buckets: list[Begun], ask: Ask) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, record) of each bucket as it is done."""
        rows = [
            {"key": begun.key, "bucket": canonical_json([asdict(item) for item in begun.rest])} for begun in buckets
        ]
        for row in self.map(rows, _Worker, (self.make, ask)):
            yield row["key"], json.loads(row["record"])


class _Worker:
    """An actor of the pool: draws buckets."""

    def __init__(self, make: Callable[[], Sampler], ask: Ask) -> None:
        self.sampler, self.ask = make(), ask
        self.judge = RougeDiversity(ask.diversity.tokenizer if ask.diversity else "rouge")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        records = []
        for text in batch["bucket"]:
            items = [PromptItem(**item) for item in json.loads(text)]
            records.append(canonical_json(draw_bucket(items, self.sampler, self.ask, self.judge)))
        return {"key": list(batch["key"]), "record": records}
