"""Scoring given responses with a local teacher, journalled bucket by bucket: a killed run goes on.

The input is gone through in windows (`windows.py`), in buckets of like length. Knows neither ranks nor datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..clients.local_scorer import GivenScorer
from ..data.schema import digest
from .given import GivenRow
from .journal import Journal
from .processes import Share
from .windows import Bucket, Windows


Found = list[dict[str, Any]]  # what was found for the responses of one row


@dataclass(frozen=True)
class ScoreAsk:
    """How rows are scored: rows in a forward pass, tokens a prompt with one response may have, rows journalled as
    one, rows in memory."""

    batch_size: int = 8
    max_length: int | None = None
    bucket_size: int = 64
    window_size: int = 4096


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
    yield from windows.each(rows, ask.window_size, "Scoring rows", total, show=show_progress)


class ScoreWindows(Windows):
    """Scores the responses of window after window of rows."""

    verb = "scored"

    def __init__(
        self, scorer: GivenScorer, ask: ScoreAsk, journal: Journal, fingerprint: Mapping[str, Any], share: Share
    ) -> None:
        super().__init__(journal, share)
        self.scorer, self.ask, self.fingerprint = scorer, ask, fingerprint

    def cut(self, items: Sequence[GivenRow]) -> list[Bucket]:
        """Rows of like length, the longest first."""
        # cut from the whole window: what is in one forward pass is the same in a resumed run
        order = sorted(range(len(items)), key=lambda i: (-items[i].size, i))
        parts = [order[start : start + self.ask.bucket_size] for start in range(0, len(order), self.ask.bucket_size)]
        return [Bucket(places, self._key([items[i] for i in places])) for places in parts]

    def write(self, bucket: Bucket, items: Sequence[GivenRow]) -> None:
        """Score every response of its rows."""
        asked = plain_rows([items[i] for i in bucket.places])
        found = self.scorer.score_given(asked, batch_size=self.ask.batch_size, max_length=self.ask.max_length)
        self.journal.put(bucket.key, {"rows": found}, kind="scores")

    def read(self, bucket: Bucket, items: Sequence[GivenRow], record: Mapping[str, Any]) -> list[Found]:
        """What was found for each row."""
        return record["rows"]

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
