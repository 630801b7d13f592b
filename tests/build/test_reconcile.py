"""Whatever breaks, whenever: a provider in memory that loses, delays and drops, and runs that end at any call."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from doubles.killed_judging import PlainProtocol, questions
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build import batches
from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.build.judging import ask_all
from tuna_trl.clients.base import BatchFault, BatchState, Reply, Usage
from tuna_trl.clients.batch_calls import NotTaken, Torn
from tuna_trl.errors import BuildError


GOOD = '{"scores": [2.0, 1.0]}'
# what a call may meet: nothing, a fault before it does anything, a fault after, or the end of the process
HAPPENINGS = ("", "", "", "", "before", "after", "die before", "die after")


class Died(BaseException):
    """The process is gone: nothing of it runs on but what an exit of SQLite's transactions needs."""


class Provider:
    """Batches in memory, a day's events in a few calls; `happenings` is what the calls meet, one after the other."""

    max_requests, max_bytes = 4, 10_000

    def __init__(self, happenings, keeps_tags: bool, fates) -> None:
        self.happenings, self.keeps_tags = itertools.chain(happenings, itertools.repeat("")), keeps_tags
        self.fates = itertools.chain(fates, itertools.repeat("ok"))
        self.kept: list[dict] = []
        self.asked: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        for size in (4, 1):  # of another program, and as large as ours
            self._create([f"foreign-{size}-{i}" for i in range(size)], "foreign")

    def size(self, request):
        return 100

    def submit(self, requests, *, tag):
        with self._meeting():
            self.asked.update(requests.keys())
            return self._create(list(requests), tag)

    def list(self, *, since):
        with self._meeting():
            for kept in self.kept:
                kept["looks"] -= 1
            return [self._state(kept) for kept in self.kept[::-1] if kept["created"] >= since]

    def state(self, batch_id):
        with self._meeting():
            kept = self._kept(batch_id)
            kept["looks"] -= 1
            return self._state(kept)

    def results(self, batch_id):
        for key, fate in reversed(self._kept(batch_id)["fates"].items()):
            happening = next(self.happenings)
            if happening.startswith("die"):
                raise Died
            if happening:
                raise Torn("the stream broke off")
            yield key, Reply(GOOD, "stop", usage=Usage(output=1)) if fate == "ok" else BatchFault(fate, again=True)

    def worst_case_cost(self, request):
        return 0.02

    def cost(self, usage):
        return 0.01

    def _meeting(self):
        return _Meeting(next(self.happenings))

    def _create(self, keys, tag):
        fates = {key: "ok" if tag == "foreign" else next(self.fates) for key in keys}
        self.billed.update(key for key, fate in fates.items() if fate == "ok")
        kept = {"id": f"b{len(self.kept)}", "fates": fates, "tag": tag, "looks": 2, "created": time.time()}
        self.kept.append(kept)
        return self._state(kept)

    def _kept(self, batch_id):
        return next(kept for kept in self.kept if kept["id"] == batch_id)

    def _state(self, kept):
        tag = kept["tag"] if self.keeps_tags else None
        return BatchState(kept["id"], kept["looks"] <= 0, len(kept["fates"]), kept["created"], tag)


class _Meeting:
    def __init__(self, happening: str) -> None:
        self.happening = happening

    def __enter__(self):
        if self.happening == "before":
            raise NotTaken("no connection")
        if self.happening == "die before":
            raise Died

    def __exit__(self, kind, error, trace):
        if kind is None and self.happening == "after":
            raise BuildError("the answer was lost")
        if kind is None and self.happening == "die after":
            raise Died


class Judge(PlainProtocol):
    name, method, paid, concurrency, max_batch = "judge", "judge", True, 1, 1

    def __init__(self) -> None:
        self.singles: list = []

    def ask(self, requests):
        self.singles += requests
        return [Reply(GOOD, "stop", usage=Usage(output=1)) for _ in requests]

    def worst_case_cost(self, request):
        return 0.04

    def cost(self, usage):
        return 0.02


@settings(max_examples=60, deadline=None)
@given(
    happenings=st.lists(st.sampled_from(HAPPENINGS), max_size=60),
    fates=st.lists(st.sampled_from(["ok", "ok", "expired"]), max_size=20),
    keeps_tags=st.booleans(),
    count=st.integers(1, 14),
    cap=st.sampled_from([0.25, 5.0]),
)
def test_nothing_received_or_taken_is_asked_again_whatever_breaks(happenings, fates, keeps_tags, count, cap):
    provider, judge = Provider(happenings, keeps_tags, fates), Judge()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(batches.time, "sleep", lambda seconds: None)
        patch.setattr(batches, "SETTLE", 0.0)
        path = Path(folder) / "j"
        for _ in range(200):
            asked = questions(count)
            options = {"batch": provider, "poll": 0.01, "show_progress": False}
            with Journal(path) as journal:
                try:
                    ask_all(asked, judge, journal=journal, budget=Budget(cap), **options)
                    break
                except (Died, BuildError):
                    assert journal.spent() <= cap + 1e-9
        with Journal(path) as journal:
            assert journal.count("judgment") == count
            assert journal.spent() == pytest.approx(0.02 + 0.01 * (count - 1))
            assert journal.batches(lambda known: known.open_batches()) == []
            assert journal.sent_again() <= 4 * len(happenings)
    assert [question.answers[-1].verdict.status for question in asked] == ["ok"] * count
    assert len(judge.singles) == 1
    ours = {key: times for key, times in provider.billed.items() if not key.startswith("foreign")}
    assert len(ours) == count - 1 and set(ours.values()) <= {1}
    expired = Counter(key for kept in provider.kept for key, fate in kept["fates"].items() if fate == "expired")
    assert provider.asked == Counter(ours) + expired
