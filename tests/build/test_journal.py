"""The journal: what was put is there after anything, and what could not be written is said."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_process import started

from tuna_trl.build.journal import Journal, set_aside
from tuna_trl.build.leases import Claim
from tuna_trl.errors import BuildError, InputError


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
PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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
    process = started(script, path, **PIPES)
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
    processes = [started(script, path, name, **PIPES) for name in ("one", "two")]
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
    process = started(script, path, **PIPES)
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


class TestLeases:
    def test_one_owner_at_a_time_all_parts_or_none_and_no_lease_on_what_is_there(self, tmp_path):
        with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
            assert one.claim(["a", "b"]).state == "mine"
            assert one.claim(["a"]).state == "mine"
            assert other.claim(["b", "c"]).state == "taken"
            assert other.claim(["c"]).state == "mine"
            one.put_all({"a": {}}, kind="reply")
            assert other.claim(["a"]).state == "there"
            one.release(["b"])
            assert other.claim(["b"]) == Claim("mine", taken_over=False)

    def test_the_lease_of_a_dead_process_is_taken_over_and_counted(self, tmp_path):
        script = """
            import sys
            from tuna_trl.build.journal import Journal
            journal = Journal(sys.argv[1])
            print(journal.claim(["a", "b"]).state, flush=True)
            sys.stdin.read()
        """
        process = started(script, tmp_path / "j", stdin=subprocess.PIPE, **PIPES)
        assert process.stdout.readline() == "mine\n"
        with Journal(tmp_path / "j") as journal:
            assert journal.claim(["a"]).state == "taken"
            process.kill()
            process.wait()
            assert journal.claim(["a", "b"]) == Claim("mine", taken_over=True)
            assert journal.sent_again() == 1
            assert journal.claim(["c"]) == Claim("mine", taken_over=False)

    def test_a_lease_whose_term_ran_out_is_taken_over_from_whoever_holds_it(self, tmp_path, monkeypatch):
        with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
            monkeypatch.setattr("tuna_trl.build.leases.TERM", -1.0)
            one.claim(["a"])
            assert other.claim(["a"]) == Claim("mine", taken_over=True)

    def test_a_process_id_that_was_given_away_again_does_not_keep_a_lease_alive(self, tmp_path):
        with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
            one.claim(["a"])
            other._db.execute("UPDATE owners SET started = '1'")
            assert other.claim(["a"]).taken_over

    def test_the_term_is_renewed_while_the_owner_lives(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tuna_trl.build.leases._RENEWAL", 0.01)
        with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
            one.claim(["a"])
            other._db.execute("UPDATE owners SET expires = 0")
            deadline = time.monotonic() + 30
            while other._db.execute("SELECT expires FROM owners").fetchone()[0] == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert other.claim(["a"]).state == "taken"

    def test_two_processes_building_at_once_share_the_questions_and_agree(self, tmp_path):
        script = """
            import json, os, sys, time
            from pathlib import Path
            from doubles.remote import CountingRemote
            from doubles.samplers import SeedSampler
            from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked

            def meet(*_):  # nobody is answered before both have asked
                Path(f"{sys.argv[1]}.asking-{os.getpid()}").touch()
                while len(list(Path(sys.argv[1]).parent.glob("*.asking-*"))) < 2:
                    time.sleep(0.001)
                time.sleep(0.002)

            remote = sys.argv[2] == "remote"
            sampler = CountingRemote(before=meet) if remote else SeedSampler(before=meet)
            config = TeacherBuildConfig(bucket_size=2, window_size=30, journal=sys.argv[1], show_progress=False)
            rows = build_teacher_ranked([{"prompt": f"q {i}"} for i in range(60)], sampler, config)["train"].to_list()
            asked = [text for text, _, _ in sampler.requests] if remote else [c[0] for c in sampler.calls]
            print(json.dumps([asked, rows]))
        """
        for kind in ("remote", "local"):
            (tmp_path / kind).mkdir()
            running = [started(script, tmp_path / kind / "j", kind, **PIPES) for _ in range(2)]
            outputs = [process.communicate(timeout=120) for process in running]
            assert [process.returncode for process in running] == [0, 0], outputs
            (one, rows), (other, same) = (json.loads(out) for out, _ in outputs)
            assert one and other
            assert rows == same and len(rows) == 60
            asked = [tuple(each) if kind == "local" else each for each in one + other]
            assert len(asked) == len(set(asked)) == (60 if kind == "remote" else 30)


class TestSetAside:
    def test_it_is_renamed_whole_and_never_deleted(self, tmp_path):
        path = tmp_path / "journal.sqlite"
        assert set_aside(path) is None
        for number in (1, 2):
            with Journal(path) as journal:
                journal.put("key", {"number": number}, kind="samples")
            assert set_aside(path) == tmp_path / f"journal.sqlite.aside-{number}"
        for number in (1, 2):
            with Journal(tmp_path / f"journal.sqlite.aside-{number}") as journal:
                assert journal.get("key") == {"number": number}
        assert not path.exists()

    def test_a_journal_in_use_is_left_where_it_is(self, tmp_path):
        with Journal(tmp_path / "j") as journal:
            journal.claim(["a"])
            with pytest.raises(InputError, match=rf"in use by process {os.getpid()}"):
                set_aside(tmp_path / "j")
        assert set_aside(tmp_path / "j") == tmp_path / "j.aside-1"


def test_what_was_spent_adds_up_over_processes_and_only_for_what_was_kept(tmp_path):
    with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
        one.put_all({"a": {}, "b": {}}, kind="reply", cost=0.5)
        other.put_all({"c": {}}, kind="reply", cost=0.25)
        assert one.spent() == other.spent() == 0.75


def test_a_journal_of_an_older_version_is_read_and_gone_on_with(tmp_path):
    with sqlite3.connect(tmp_path / "j") as db:
        db.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, kind TEXT NOT NULL, record TEXT NOT NULL)")
        db.execute("INSERT INTO replies VALUES ('a', 'samples', '{\"x\":1}')")
    db.close()
    with Journal(tmp_path / "j") as journal:
        assert journal.get("a") == {"x": 1} and journal.place("p") is None
        journal.put("b", {}, kind="samples", places=["p", "q"])
        assert journal.place("q") == ("b", 1)
