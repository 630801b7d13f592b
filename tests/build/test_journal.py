"""The journal: what was put is there after anything, and what could not be written is said."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuna_trl.build.journal import Journal
from tuna_trl.errors import BuildError


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.text(), json_values, max_size=4)


def python(script: str, *args, **kwargs) -> subprocess.Popen:
    """A process of its own, that can be killed without harm to this one."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, **pipes, **kwargs)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(puts=st.lists(st.tuples(st.sampled_from("abc"), records, st.sampled_from(["samples", "judgment"])), max_size=8))
def test_it_is_a_dictionary_whose_first_record_wins_and_that_survives_reopening(puts):
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "new" / "journal.sqlite", {}
        for key, record, kind in puts:
            with Journal(path) as journal:
                assert journal.get(key) == (model[key][0] if key in model else None)
                journal.put(key, record, kind=kind)
            model.setdefault(key, (record, kind))
        with Journal(path) as journal:
            assert {key: journal.get(key) for key in model} == {key: record for key, (record, _) in model.items()}
            assert journal.count() == len(model)
            for kind in ("samples", "judgment"):
                assert journal.count(kind) == sum(k == kind for _, k in model.values())


def test_a_journal_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal(":memory:") as journal:
        journal.put("key", {"a": 1}, kind="samples")
        assert journal.get("key") == {"a": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_kill_loses_nothing_that_put_returned_for(tmp_path):
    script = """
        import sys
        from tuna_trl.build.journal import Journal
        journal = Journal(sys.argv[1])
        for i in range(100_000):
            journal.put(f"key-{i}", {"text": "x" * 2000, "i": i}, kind="samples")
            print(i, flush=True)
    """
    path = tmp_path / "journal.sqlite"
    process = python(script, path)
    committed = [int(process.stdout.readline()) for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    committed += [int(line) for line in process.stdout.read().split()]
    assert process.wait() == -signal.SIGKILL
    with Journal(path) as journal:
        assert [journal.get(f"key-{i}")["i"] for i in committed] == committed
        assert journal.count() - len(committed) in (0, 1)  # the one put whose return was not heard
        journal.put("after", {}, kind="samples")
        assert journal.get("after") == {}


def test_two_processes_write_at_once_and_agree(tmp_path):
    script = """
        import json, sys
        from tuna_trl.build.journal import Journal
        with Journal(sys.argv[1]) as journal:
            for i in range(150):
                journal.put(f"key-{i}", {"by": sys.argv[2]}, kind="samples")
            print(json.dumps([journal.get(f"key-{i}")["by"] for i in range(150)]))
    """
    path = tmp_path / "journal.sqlite"
    processes = [python(script, path, name) for name in ("one", "two")]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out) for out, _ in outputs)
    assert first == second and set(first) <= {"one", "two"}
    with Journal(path) as journal:
        assert journal.count() == 150


def test_threads_share_one_journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:

        def work(name):
            for i in range(40):
                journal.put(f"{name}-{i}", {"i": i}, kind="samples")
                assert journal.get(f"{name}-{i}") == {"i": i}

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.count() == 240


def test_a_full_disk_is_a_build_error_and_what_was_put_before_stays(tmp_path):
    script = """
        import resource, sys
        from tuna_trl.build.journal import Journal
        from tuna_trl.errors import BuildError
        journal = Journal(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # no file may grow beyond: a disk that is full
        done = 0
        try:
            while True:
                journal.put(f"key-{done}", {"text": "x" * 5000}, kind="samples")
                done += 1
        except BuildError as error:
            print(done)
            print(error)
    """
    path = tmp_path / "journal.sqlite"
    process = python(script, path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    done, message = out.split("\n", 1)
    assert int(done) > 3
    assert "could not be written to the journal" in message and "free some space" in message
    with Journal(path) as journal:
        assert all(journal.get(f"key-{i}") for i in range(int(done)))


def test_a_folder_without_write_permission_is_a_build_error():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:  # root may write anywhere, so it becomes nobody for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(BuildError, match=r"The journal .*journal.sqlite could not be opened"):
                Journal(Path(folder) / "journal.sqlite")
            with pytest.raises(BuildError, match="could not be opened"):
                Journal(Path(folder) / "new" / "journal.sqlite")
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


@pytest.mark.parametrize("kind", ["text", "folder", "under a file"])
def test_something_else_in_its_place_is_a_build_error_and_left_alone(tmp_path, kind):
    path = tmp_path / "journal.sqlite"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("not a database, but long enough to be read as one: " * 100)
        path = path / "below" if kind == "under a file" else path
    with pytest.raises(BuildError, match="could not be opened"):
        Journal(path)
    assert kind == "folder" or "not a database" in (tmp_path / "journal.sqlite").read_text()


def test_a_journal_locked_by_another_is_a_build_error_not_a_loss(tmp_path):
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.put("first", {"a": 1}, kind="samples")
        journal._db.execute("PRAGMA busy_timeout = 50")  # the 60 seconds, shortened
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BuildError, match="could not be written"):
            journal.put("second", {"a": 2}, kind="samples")
        other.rollback()
        other.close()
        journal.put("second", {"a": 2}, kind="samples")
        assert journal.get("first") == {"a": 1} and journal.get("second") == {"a": 2}
