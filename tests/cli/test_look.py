"""`tuna-trl preview`, `report` and `push`: what they print, and what they say when something is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from doubles.hub_server import HubServer
from ranked_rows import dataset_of, simple_row

from tuna_trl.data.hub import save_ranked


@pytest.fixture
def folder(tmp_path):
    return save_ranked(dataset_of([simple_row(i) for i in range(3)]), tmp_path / "ds")


def test_a_row_and_its_tokens(call, folder, tiny_folder):
    code, out, _ = call("preview", folder, "--row", 1)
    assert code == 0 and "question 1" in out and "rank 1; score 3.00" in out and "\x1b" not in out
    code, out, _ = call("preview", folder, "--model", tiny_folder, "--mle-target", "best")
    assert code == 0 and "[masked, " in out and "[scored and trained, " in out and "[scored, " in out


def test_a_report_names_its_file(call, folder, tmp_path, tiny_folder):
    code, out, _ = call("report", folder, "--model", tiny_folder)
    assert code == 0 and out.startswith(f"Report: {folder / 'report.html'}\nNext: tuna-trl push {folder} ")
    assert "max_length" in (folder / "report.html").read_text("utf-8")
    assert call("report", folder, "--output", tmp_path / "r.html")[0] == 0 and (tmp_path / "r.html").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["preview", "absent.jsonl"], "DATASET absent.jsonl: there is no such file or folder"),
        (["preview", "ds", "--row", "3"], "has 3 rows"),
        (["preview", "ds", "--model", "no/such-model"], "could not be loaded"),
        (["report", "ds", "--output", "."], "is a folder; name the file"),
        (["report", "ds", "--run", "ds"], "nothing of a training there"),
        (["push", "absent", "me/data"], "is no folder"),
        (["push", "ds", "data"], "owner/name"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(call, folder, monkeypatch, args, words):
    monkeypatch.chdir(folder.parent)
    code, _, err = call(*args)
    assert code == 2 and words in err and "Traceback" not in err


def test_a_push_says_what_loads_exactly_these_rows_and_no_token(folder, tmp_path):
    with HubServer() as hub:
        env = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tuna_trl", "push", str(folder), "tester/data", "--license", "mit"]
        command += ["--language", "en", "--pretty-name", "My data"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        sha = hub.repos["dataset", "tester/data"].heads["main"]
        card = hub.files("dataset", "tester/data")["README.md"].decode()
    assert f'load_dataset("tester/data", revision="{sha}")' in done.stdout
    assert "license: mit" in card and "# My data" in card and "language:\n- en" in card
    assert hub.token not in done.stdout + done.stderr
