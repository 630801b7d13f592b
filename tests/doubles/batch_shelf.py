"""Batches as a provider keeps them, whatever its protocol: what was asked, when a batch ends, how it answers.

Counts everything that was ever asked. A test says what becomes of an item (`fate`), how often a batch is looked at
before it ends (`looks`), and what happens at the stages of its life (`at`).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from doubles.loopback import without_proxies
from tuna_trl.build import batches
from tuna_trl.clients import retry


@dataclass
class Kept:
    """One batch. `items` are (custom id, body); `fates` says what became of each once it has ended."""

    id: str
    items: list[tuple[str, dict[str, Any]]]
    created: float
    tag: str | None = None
    looks: int = 0  # that it has left before it ends
    canceled: bool = False
    fates: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return bool(self.fates)


class BatchShelf:
    """All batches of an account.

    Args:
        fate: `(custom id, body, number of times it was asked before) -> fate` of an item: `succeeded`, `expired`,
            `canceled`, or the kind of an error.
        looks: how often a batch is looked at, alone or in the list, before it ends.
    """

    def __init__(self) -> None:
        self.fate: Callable[[str, dict[str, Any], int], str] = lambda key, body, times: "succeeded"
        self.looks = 1
        self.batches: dict[str, Kept] = {}
        self.asked: Counter[str] = Counter()  # by custom id, in every batch that was ever taken
        self.answered: Counter[str] = Counter()  # those that were billed
        self.tears: list[int] = []  # results cut off after so many items, one entry a download
        self.page = 100  # batches in a page of the list, at most
        self.at: Callable[[str], None] = lambda stage: None
        self._lock = threading.Lock()

    def create(self, items: list[tuple[str, dict[str, Any]]], tag: str | None = None) -> Kept:
        self.at("arriving")
        keys = [key for key, _ in items]
        assert len(set(keys)) == len(keys)
        with self._lock:
            number = len(self.batches)
            kept = Kept(f"batch_{number:04d}", items, time.time(), tag, self.looks)
            self.batches[kept.id] = kept
            for key, _ in items:
                self.asked[key] += 1
        self.at("taken")
        return kept

    def look(self, batch_id: str) -> Kept | None:
        self.at("looking")
        with self._lock:
            kept = self.batches.get(batch_id)
            if kept is not None:
                self._tick(kept)
        return kept

    def newest_first(self) -> list[Kept]:
        with self._lock:
            for kept in self.batches.values():
                self._tick(kept)
            return list(self.batches.values())[::-1]

    def results(self, kept: Kept) -> tuple[list[tuple[str, dict[str, Any], str]], int | None]:
        """Items in another order at each download, and after how many of them the stream breaks off."""
        items = [(key, body, kept.fates[key]) for key, body in kept.items]
        random.Random(len(items)).shuffle(items)
        with self._lock:
            return items, self.tears.pop(0) if self.tears else None

    def _tick(self, kept: Kept) -> None:
        kept.looks -= 1
        if kept.looks <= 0 and not kept.ended:
            self._end(kept)

    def _end(self, kept: Kept) -> None:
        for key, body in kept.items:
            fate = "canceled" if kept.canceled else self.fate(key, body, self.asked[key] - 1)
            kept.fates[key] = fate
            self.answered[key] += fate == "succeeded"


def without_waiting(monkeypatch: Any) -> None:
    """Ask a shelf on this machine again and again, with no proxy between and no patience."""
    without_proxies(monkeypatch)
    monkeypatch.setattr(retry, "pause", lambda tried, retry_after: 0.001)
    monkeypatch.setattr(batches, "pause", lambda tried, retry_after: 0.001)
    monkeypatch.setattr(batches, "SETTLE", 0.1)
