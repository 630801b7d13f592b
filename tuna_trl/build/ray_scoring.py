"""A local scorer on the machines of a Ray cluster: Ray Data hands buckets to actors, this process keeps the journal.

The scores are those of the local scorer: the same buckets. The scheduling is Ray's (`ray_cluster.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..clients.local_scorer import GivenScorer
from ..data.schema import canonical_json
from .given import GivenRow
from .journal import Journal
from .processes import Share
from .progress import progress
from .ray_cluster import WINDOWS, OnRay
from .score_buckets import ScoreAsk, ScoreWindows, plain_rows


class RayScorer(OnRay):
    """Stands for a [`tuna_trl.clients.local_scorer.TransformersScorer`] that lives on a Ray cluster. Its arguments are
    those of [`tuna_trl.build.ray_cluster.OnRay`]; `make` makes a scorer."""

    def score_given(
        self, rows: Sequence[Mapping[str, Any]], *, batch_size: int, max_length: int | None
    ) -> list[list[dict[str, Any]]]:
        """One call on one actor: for what [`fill`] leaves over (buckets of another process that died)."""
        return self.ask("score_given", list(rows), batch_size=batch_size, max_length=max_length)

    def fill(
        self,
        rows: Iterable[GivenRow],
        ask: ScoreAsk,
        *,
        journal: Journal,
        fingerprint: Mapping[str, Any],
        total: int | None = None,
        show_progress: bool = True,
    ) -> None:
        """Score every bucket that the journal lacks, on all actors at once; each is journalled as it arrives.

        Raises:
            BuildError: an actor failed, or the cluster did.
        """
        windows = ScoreWindows(self, ask, journal, fingerprint, Share())
        source = iter(rows)
        while due := list(self._due(source, windows)):
            mine = {key for key, _ in due}
            self.let_go()  # its resources are wanted
            with progress(f"{self.name} on Ray", len(due), unit="buckets", show=show_progress) as advance:
                try:
                    asked = [{"key": key, "bucket": bucket} for key, bucket in due]
                    for row in self.map(asked, _Worker, (self.make, ask)):
                        journal.put(row["key"], {"rows": json.loads(row["record"])}, kind="scores")
                        mine.discard(row["key"])
                        advance(1)
                finally:
                    journal.release(sorted(mine))

    def _due(self, source: Iterator[GivenRow], windows: ScoreWindows) -> Iterator[tuple[str, str]]:
        """(key, rows) of the buckets of the next windows that nobody has scored or is scoring; passes windows without
        any."""
        seen, keys = 0, set()
        while seen < WINDOWS and (rows := list(islice(source, windows.ask.window_size))):
            missing, _ = windows.survey(rows)
            seen += bool(missing)
            for bucket in missing:
                if bucket.key not in keys and windows.journal.claim([bucket.key]).state == "mine":
                    keys.add(bucket.key)
                    yield bucket.key, canonical_json(plain_rows([rows[i] for i in bucket.places]))


class _Worker:
    """An actor of the pool: scores buckets."""

    def __init__(self, make: Callable[[], GivenScorer], ask: ScoreAsk) -> None:
        self.scorer, self.ask = make(), ask

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        records = []
        for text in batch["bucket"]:
            found = self.scorer.score_given(
                json.loads(text), batch_size=self.ask.batch_size, max_length=self.ask.max_length
            )
            records.append(canonical_json(found))
        return {"key": list(batch["key"]), "record": records}
