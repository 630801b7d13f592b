"""Scoring given responses with a local teacher, journalled bucket by bucket: a killed run goes on.

The input is read in windows, buckets of like length are cut inside each, and only the window at hand is in memory.
Several processes on one journal share the buckets out by leases. Knows neither ranks nor datasets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..clients.local_scorer import GivenScorer
from ..data.schema import digest
from .given import GivenRow
from .journal import Journal
from .processes import Share
from .progress import progress


Found = list[dict[str, Any]]  # what was found for the responses of one row


@dataclass(frozen=True)
class ScoreAsk:
    """How rows are scored: rows in a forward pass, tokens a prompt with one response may have, rows journalled as
    one, rows in memory."""

    batch_size: int = 8
    max_length: int | None = None
    bucket_size: int = 64
    window_size: int = 4096


@dataclass(frozen=True)
class ScoreBucket:
    """A bucket of the window at hand: its places there, its key."""

    places: list[int]
    key: str


def score_each(
    rows: Iterable[GivenRow],
    scorer: GivenScorer,
    ask: ScoreAsk,
    *,
    journal: Journal,
    fingerprint: Mapping[str, Any],
    total: int | None = None,
    share: Share = Share(),  # noqa: B008 - frozen
    show_progress: bool = True,
) -> Iterator[tuple[GivenRow, Found]]:
    """Each row with its scores, in order; rows are read as they are needed. All but the first process yield nothing.

    Args:
        fingerprint: the scorer's, which reads every weight and is asked for once.
        total: number of rows, for the progress bar.

    Raises:
        BuildError: the journal cannot be written.
    """
    windows = ScoreWindows(scorer, ask, journal, fingerprint, share)
    show = show_progress and share.first
    with progress("Scoring rows", total, closing=windows.said, show=show) as windows.advance:
        source = iter(rows)
        while window := list(islice(source, ask.window_size)):
            if found := windows.scores(window):
                yield from zip(window, found, strict=True)


class ScoreWindows:
    """Scores window after window; keeps the counts that are said at the end."""

    def __init__(
        self, scorer: GivenScorer, ask: ScoreAsk, journal: Journal, fingerprint: Mapping[str, Any], share: Share
    ) -> None:
        self.scorer, self.ask, self.journal, self.share = scorer, ask, journal, share
        self.fingerprint = fingerprint
        self.advance = lambda count: None
        self.buckets = self.known = 0

    def said(self) -> str:
        """What is said at the end."""
        words = f"{self.known} of {self.buckets} buckets were already in the journal"
        again = self.journal.sent_again()
        return words + (f"; {again} were being scored when an earlier run ended, and were scored again" * bool(again))

    def survey(self, rows: Sequence[GivenRow]) -> tuple[list[ScoreBucket], list[Found]]:
        """The buckets of a window that are not in the journal, and the scores of the others at their places."""
        # longest first, and cut from the whole window: what is in one forward pass is the same in a resumed run
        order = sorted(range(len(rows)), key=lambda i: (-rows[i].size, i))
        size = self.ask.bucket_size
        missing, result = [], [[] for _ in rows]
        for start in range(0, len(order), size):
            places = order[start : start + size]
            bucket = ScoreBucket(places, self._key([rows[i] for i in places]))
            self.buckets += 1
            if not self._take(bucket, result):
                missing.append(bucket)
        self.known += -(-len(order) // size) - len(missing)
        return missing, result

    def scores(self, rows: Sequence[GivenRow]) -> list[Found]:
        """One window, in its order; nothing for a process that only helps."""
        missing, result = self.survey(rows)
        # Each process begins with its own, so that they rarely reach for the same one, then helps the others.
        own = missing[self.share.rank :: self.share.world]
        due = own + [bucket for bucket in missing if bucket not in own] if self.share.world > 1 else missing
        while due:
            taken = [bucket for bucket in due if not self.score(bucket, rows, result)]
            if not self.share.first:
                return []
            if len(taken) == len(due):  # others are at work on all that is left
                time.sleep(0.05)
            due = taken
        return result if self.share.first else []

    def score(self, bucket: ScoreBucket, rows: Sequence[GivenRow], result: list[Found]) -> bool:
        """Score one bucket, unless another process is about to; False if it is."""
        claim = self.journal.claim([bucket.key])
        if claim.state == "taken":
            return False
        if claim.state == "mine":
            asked = plain_rows([rows[i] for i in bucket.places])
            try:
                found = self.scorer.score_given(asked, batch_size=self.ask.batch_size, max_length=self.ask.max_length)
                self.journal.put(bucket.key, {"rows": found}, kind="scores")
            except BaseException:
                self.journal.release([bucket.key])
                raise
        # Read back: if another process was first, its record stands, here as in every later run.
        return self._take(bucket, result)

    def _take(self, bucket: ScoreBucket, result: list[Found]) -> bool:
        record = self.journal.get(bucket.key)
        if record is None:
            return False
        for i, found in zip(bucket.places, record["rows"], strict=True):
            result[i] = found
        self.advance(len(bucket.places))
        return True

    def _key(self, bucket: Sequence[GivenRow]) -> str:
        return digest(
            {
                "kind": "scores",
                "teacher": self.fingerprint,
                "rows": [[r.prompt, [[x["content"], x["finish_reason"]] for x in r.responses]] for r in bucket],
                "max_length": self.ask.max_length,
                "batch_size": self.ask.batch_size,
            }
        )


def plain_rows(rows: Sequence[GivenRow]) -> list[dict[str, Any]]:
    """Rows as a scorer takes them."""
    return [{"prompt": row.prompt, "responses": list(row.responses)} for row in rows]
