"""What ranking given responses would ask for, how long it would take and what it would cost: said before it is done.

A server is asked nothing. A local teacher scores one bucket, under its own journal key, so that the run goes on from
it.
"""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any

from ..clients.base import Usage
from ..clients.prices import load_prices
from ..clients.prompt_logprobs import PromptScorer
from .cost import Budget, total_cost
from .dry_run import DryRun, Range
from .given import GivenRow, given_splits, read_given
from .journal import Journal
from .processes import Share
from .progress import progress
from .rank import RankConfig
from .rank_rows import is_empty
from .score_buckets import ScoreWindows
from .score_remote import ScoreAsking


_BYTES_PER_TOKEN = (6.0, 4.0, 1.0)  # low, expected, high count of tokens


def rank_dry_run(dataset: Any, teacher: Any, config: RankConfig | None = None) -> DryRun:
    """Count, probe and price a run of [`tuna_trl.build.rank.rank_given`] without doing it.

    Args:
        dataset, teacher, config: as there; a paid teacher needs no cap.

    Returns:
        see [`tuna_trl.build.dry_run.DryRun`]; input tokens are taken to be 6, 4 and 1 bytes each. `input_tokens` of a
        server counts a prompt once for itself and once for each of its responses, as it is sent; of a local teacher
        once.

    Raises:
        InputError: the dataset cannot be read.
    """
    config = config or RankConfig()
    splits = given_splits(dataset)
    with Journal(config.journal or ":memory:") as journal:
        find = _remote if isinstance(teacher, PromptScorer) else _local
        return find(splits, teacher, config, journal)


def _rows(splits: Any, config: RankConfig) -> Any:
    for split, rows in splits.items():
        yield read_given(rows, f"split {split!r}", config.limit)


def _local(splits: Any, teacher: Any, config: RankConfig, journal: Journal) -> DryRun:
    windows = ScoreWindows(teacher, config.ask(), journal, teacher.fingerprint(), Share())
    rows = responses = missing = size = 0
    pace: float | None = None  # seconds a byte
    for source in _rows(splits, config):
        while window := list(islice(source, config.window_size)):
            due, result = windows.survey(window)
            rows += len(window)
            responses += sum(len(row.responses) for row in window)
            if due and pace is None:
                probed = due.pop(len(due) // 2)
                with progress("Probing", 1, show=config.show_progress) as advance:
                    began = time.perf_counter()
                    windows.work_on(probed, window, result)
                    pace = (time.perf_counter() - began) / max(1, sum(_bytes(window[i]) for i in probed.places))
                    advance(1)
            left = [window[i] for bucket in due for i in bucket.places]
            missing += sum(len(row.responses) for row in left)
            size += sum(_bytes(row) for row in left)
    time_left = Range(0, 0, 0) if not missing else Range(*((pace or 0.0) * size * f for f in (0.5, 1.0, 2.0)))
    return DryRun(
        teacher.name, rows, responses, responses - missing, _tokens(size), Range(0, 0, 0), time_left, Range(0, 0, 0),
        ("A local teacher costs nothing but time. What was probed is in the journal.",),
    )  # fmt: skip


def _remote(splits: Any, teacher: PromptScorer, config: RankConfig, journal: Journal) -> DryRun:
    asking = ScoreAsking(teacher, journal, Budget(math.inf), config.retry_failed, config.max_length)
    rows = responses = missing = requests = size = 0
    bounds: list[float | None] = []
    asked: set[int] = set()
    for source in _rows(splits, config):
        for row in source:
            rows += 1
            responses += len(row.responses)
            for prompt, text in asking.missing(row, asked):
                requests += 1
                missing += text is not None
                size += sum(len(m["content"].encode("utf-8", "replace")) + 16 for m in prompt)
                size += len((text or "").encode("utf-8", "replace"))
                bounds.append(teacher.worst_case_cost(prompt, text))
    tokens = _tokens(size)
    empty = "Empty responses and equal ones count as known. " if missing < responses else ""
    return DryRun(
        teacher.name,
        rows,
        responses,
        responses - missing,
        tokens,
        Range(requests, requests, requests),
        None if missing else Range(0, 0, 0),
        _price(teacher, requests, tokens, bounds),
        (
            f"{requests:,} requests, and a self-check of a few. {empty}A server is not asked anything before the run, "
            f"so its time is not known. Prices as of {load_prices().date}.",
        ),
    )


def _price(teacher: PromptScorer, requests: int, tokens: Range, bounds: list[float | None]) -> Range | None:
    """By the mean request, because a price may depend on its length; the high end is what the cap would reserve."""
    if not requests:
        return Range(0, 0, 0)
    low = teacher.cost(Usage(input=round(tokens.low / requests), output=1))
    expected = teacher.cost(Usage(input=round(tokens.expected / requests), output=1))
    highest = total_cost(bounds)
    if low is None or expected is None or highest is None:
        return None
    return Range(low * requests, expected * requests, max(highest, expected * requests))


def _tokens(size: int) -> Range:
    return Range(*(size / per for per in _BYTES_PER_TOKEN))


def _bytes(row: GivenRow) -> int:
    texts = [m["content"] for m in row.prompt] + [r["content"] for r in row.responses if not is_empty(r)]
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
