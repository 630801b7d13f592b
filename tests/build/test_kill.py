"""kill -9 at ten random instants of a build of 200 instructions: a local teacher's dataset is the same to the byte, a
server's is complete, and nothing that was received is asked for again."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import killed_builds
from doubles.remote import CountingServer, draw

from tuna_trl.data.hub import load_ranked


KILLS = 10


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported everything: ten kills are not to cost ten imports of torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "datasets", "tuna_trl.clients.local", "tuna_trl.loading"])
    return context


def killed_when(process, reached: Callable[[], bool], wait: float) -> None:
    """Let it begin, wait until it has come so far and so much longer, kill it."""
    process.start()
    deadline = time.monotonic() + 120
    while not reached():
        assert process.is_alive() and time.monotonic() < deadline, process.exitcode
        time.sleep(0.001)
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run(process) -> None:
    process.start()
    process.join(120)
    assert process.exitcode == 0


def replies(journal: Path) -> dict[str, str]:
    """Key -> record of all that is in a journal, read from outside."""
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
            return dict(db.execute("SELECT key, record FROM replies"))
    except sqlite3.OperationalError:  # not there yet
        return {}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_local_build_killed_ten_times_is_the_same_to_the_byte(processes, tiny_folder, tmp_path, capsys):
    whole, output, journal, log = (tmp_path / name for name in ("whole", "output", "journal", "log"))
    run(processes.Process(target=killed_builds.local_build, args=(tiny_folder, whole, tmp_path / "j", log)))
    chance, table = random.Random(5), []
    for bucket in sorted(chance.sample(range(25), KILLS)):
        process = processes.Process(target=killed_builds.local_build, args=(tiny_folder, output, journal, log))
        killed_when(process, lambda bucket=bucket: len(replies(journal)) >= bucket, chance.uniform(0, 0.02))
        table.append((bucket, len(replies(journal))))
        assert not output.exists()
    run(processes.Process(target=killed_builds.local_build, args=(tiny_folder, output, journal, log)))
    assert tree(output) == tree(whole) and len(load_ranked(output, "train")) == 200
    again = re.search(r"done \((\d+) of 25 buckets .*?(?:; (\d+) were being drawn .* drawn again)?\)", log.read_text())
    assert int(again[1]) == table[-1][1]
    assert int(again[2] or 0) <= KILLS
    with capsys.disabled():
        print(f"\nlocal, killed at bucket (journalled): {table}; drawn again: {again[2] or 0}")


@pytest.mark.slow
def test_a_server_is_never_asked_again_for_what_was_received(processes, tmp_path, capsys):
    output, journal, log = (tmp_path / name for name in ("output", "journal", "log"))
    server = CountingServer(delay=0.002)
    chance, table, received = random.Random(11), [], []
    for count in sorted(chance.sample(range(780), KILLS)):
        process = processes.Process(target=killed_builds.server_build, args=(server.port, output, journal, log))
        killed_when(process, lambda count=count: server.total() >= count, chance.uniform(0, 0.01))
        time.sleep(0.2)  # what was sent before the kill has arrived
        with server.lock:
            asked = dict(server.asked)
        journalled = {json.loads(record)["sample"]["text"] for record in replies(journal).values()}
        received.append({unit: times for unit, times in asked.items() if draw(*unit, 0).text in journalled})
        assert len(received[-1]) == len(journalled)
        table.append((server.total(), len(journalled)))
    run(processes.Process(target=killed_builds.server_build, args=(server.port, output, journal, log)))
    server.close()
    rows = load_ranked(output, "train")
    assert [row["prompt"][0]["content"] for row in rows] == [row["prompt"] for row in killed_builds.rows(200)]
    assert all(row["num_responses"] == 4 and row["status"] == "ok" for row in rows)
    for units in received:
        assert all(server.asked[unit] == times for unit, times in units.items())
    repeats = server.total() - 800
    said = re.search(r"; (\d+) requests were in flight when an earlier run ended", log.read_text())
    assert 0 <= repeats <= int(said[1] if said else 0) <= 4 * KILLS
    with capsys.disabled():
        print(f"\nserver, killed at request (journalled): {table}; repeats: {repeats}, said: {said and said[1]}")
