"""kill -9 at every stage of asking a judge, singly and in batches: what was received is kept and not asked for again,
batches are found again, and what may have been asked twice is no more than was in flight, and is said."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest
from doubles import killed_judging
from doubles.anthropic_server import AnthropicServer
from doubles.killed_judging import GOOD


COUNT = 14  # one asked singly, then batches of 5, 5 and 3
IN_FLIGHT = 3  # single requests at once


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anthropic", "doubles.killed_judging"])
    return context


@pytest.fixture
def server():
    with AnthropicServer(lambda body: GOOD) as server:
        yield server


def journalled(path: Path) -> set[str]:
    """Keys of the judgments in a journal, read from outside."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return {key for (key,) in db.execute("SELECT key FROM replies WHERE kind = 'judgment'")}


class Runs:
    """Runs of the same command, some of them killed."""

    def __init__(self, processes, server: AnthropicServer, folder: Path) -> None:
        self.processes, self.server, self.folder = processes, server, folder
        self.journal, self.log = folder / "journal.sqlite", folder / "log"
        self.process = None

    def start(self, *, batch: bool = True, die: tuple[str, int] | None = None) -> None:
        options = {"count": COUNT, "batch": batch, "die": die}
        self.process = self.processes.Process(
            target=killed_judging.judge_all, args=(self.server.url, self.journal, self.log), kwargs=options
        )
        self.process.start()

    def killed(self, **options) -> set[str]:
        """A run that is killed; what it received."""
        self.start(**options)
        self.process.join(60)
        assert self.process.exitcode == -signal.SIGKILL, self.log.read_text()
        return journalled(self.journal)

    def whole(self, *, batch: bool = True) -> str:
        """A run that ends well; what it said."""
        self.start(batch=batch)
        self.process.join(60)
        assert self.process.exitcode == 0, self.log.read_text()
        said = " ".join(self.log.read_text().split())
        assert f"{COUNT} judgments ({COUNT} ok)" in said
        return said

    def kill(self, stage: str, passed: int) -> None:
        """Have the server kill the process that asks, at a stage of its own."""
        lock, calls = threading.Lock(), []

        def at(now: str) -> None:
            with lock:
                calls.extend([1] if now == stage else [])
                if len(calls) == passed + 1 and now == stage:
                    calls.append(1)
                    os.kill(self.process.pid, signal.SIGKILL)
                    if stage == "arriving":
                        raise ConnectionAbortedError("the upload broke off")

        self.server.shelf.at = at


@pytest.fixture
def runs(processes, server, tmp_path):
    return Runs(processes, server, tmp_path)


def said_again(said: str) -> int:
    found = re.search(r"(\d+) requests were in flight when an earlier run ended and were sent again", said)
    return int(found[1]) if found else 0


def asked(server: AnthropicServer) -> Counter[str]:
    """How often each question was asked, singly or in batches."""
    counts: Counter[str] = Counter()
    bodies = [body for _, body in server.requests]
    bodies += [body for kept in server.shelf.batches.values() for _, body in kept.items]
    for body in bodies:
        counts[re.search(r"question (\d+)\.", json.dumps(body))[1]] += 1
    return counts


@pytest.mark.parametrize("passed", [0, 4, 9])
def test_a_kill_during_single_calls_repeats_only_what_was_in_flight(runs, server, passed):
    runs.kill("message", passed)
    received = runs.killed(batch=False)
    server.shelf.at = lambda now: None
    said = runs.whole(batch=False)
    after = asked(server)
    assert f"{len(received)} of {COUNT} judgments were already in the journal" in said
    repeats = after.total() - COUNT
    assert len(after) == COUNT and max(after.values()) <= 2
    assert 0 <= repeats <= said_again(said) <= IN_FLIGHT


STAGES = {
    "before the provider has it": ("server", "arriving", 1),
    "when the provider has it and has not answered": ("server", "taken", 1),
    "written down and not sent": ("client", "begin", 1),
    "answered and its id not written down": ("client", "name", 0),
    "its id written down": ("client", "named", 1),
    "while it is looked at": ("server", "looking", 4),
    "at the first result": ("client", "receiving", 0),
    "half-way through its results": ("client", "receive", 2),
    "half-way through another's": ("client", "receive", 8),
    "after its results, before its end is written down": ("client", "ending", 0),
    "after its end is written down": ("client", "end", 1),
    "after its results, before the next batch": ("client", "collected", 0),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_kill_at_any_stage_of_a_batch_asks_nothing_again(runs, server, stage):
    where, name, passed = stage
    server.shelf.looks = 3
    if where == "server":
        runs.kill(name, passed)
    received = runs.killed(die=(name, passed) if where == "client" else None)
    if where == "server":
        server.shelf.at = lambda now: None
    taken = set(server.shelf.asked)
    said = runs.whole()
    assert received <= journalled(runs.journal) and len(journalled(runs.journal)) == COUNT
    assert set(server.shelf.asked.values()) == {1} and taken <= set(server.shelf.asked)
    assert asked(server).total() == COUNT and len(server.requests) == 1
    assert said_again(said) == (5 if name in ("arriving", "begin") else 0)  # those that nobody can know about


def test_kills_at_one_stage_after_another_ask_nothing_again(runs, server):
    server.shelf.looks = 2
    for name, passed in (("begin", 0), ("name", 0), ("receive", 1), ("receive", 2), ("ending", 0)):
        runs.killed(die=(name, passed))
    runs.whole()
    assert set(server.shelf.asked.values()) == {1} and asked(server).total() == COUNT


def test_what_expired_before_a_kill_is_asked_again_once(runs, server):
    server.shelf.fate = lambda key, body, times: "expired" if times == 0 and int(key, 16) % 2 else "succeeded"
    runs.killed(die=("receive", 3))
    runs.whole()
    for key, count in server.shelf.asked.items():
        assert count == 1 + int(key, 16) % 2
    assert set(server.shelf.answered.values()) == {1}


def test_foreign_batches_of_the_same_size_are_told_apart(runs, server):
    server.shelf.looks = 2
    for number in range(3):
        server.shelf.create([(f"foreign-{number}-{i}", {"max_tokens": 1}) for i in range(5)])
    runs.killed(die=("name", 0))
    server.shelf.create([(f"later-{i}", {"max_tokens": 1}) for i in range(5)])
    said = runs.whole()
    assert "was found: 5 requests" in said
    assert set(server.shelf.asked.values()) == {1}


def test_two_processes_on_one_journal_ask_every_question_once(runs, server):
    server.shelf.looks = 6
    runs.start()
    first, runs.log = runs.process, runs.folder / "log-2"
    runs.start()
    for process in (first, runs.process):
        process.join(60)
        assert process.exitcode == 0
    assert asked(server).total() == len(asked(server)) == COUNT
    assert len(journalled(runs.journal)) == COUNT


def test_a_process_goes_on_with_the_batches_of_one_that_dies_beside_it(runs, server):
    server.shelf.looks = 30
    runs.kill("looking", 9)
    runs.start()
    doomed, runs.log = runs.process, runs.folder / "log-2"
    other = Runs(runs.processes, server, runs.folder)
    other.log = runs.log
    other.start()
    doomed.join(60)
    other.process.join(60)
    assert {doomed.exitcode, other.process.exitcode} in ({-signal.SIGKILL, 0}, {0})
    assert asked(server).total() == len(asked(server)) == COUNT
