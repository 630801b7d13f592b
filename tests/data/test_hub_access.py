"""Laws of asking for the Hub: an id that cannot be had is refused at once; what is in the cache loads without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tuna_trl import InputError
from tuna_trl.data.hub_access import check_dataset_name, is_path_only, reach_options


# a port of this machine at which nobody listens
NOWHERE = "http://127.0.0.1:1"


def offline(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process whose Hub does not answer: its address is read when the libraries are imported. A retry
    would sleep, which is an error here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    patient = "import time\ndef sleep(s): raise SystemExit(f'slept {s}')\ntime.sleep = sleep\n"
    return subprocess.run([sys.executable, "-c", patient + code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("./x", True), ("../x/y", True), ("/x/y", True), ("~/x", True), ("a/b/c", True), ("rows.jsonl", True),
        ("rows.jsonl.gz", True), ("not an id", True), ("", True), ("gpt2", False), ("Qwen/Qwen3-0.6B", False),
    ],
)  # fmt: skip
def test_a_name_that_can_be_no_id_is_told_from_one_that_can(name, alone):
    assert is_path_only(name) is alone


@pytest.mark.parametrize("name", ["./x", "a/b/c", "rows.jsonl.gz"])
def test_a_path_that_is_not_there_needs_no_network_to_be_refused(name, monkeypatch):
    monkeypatch.setattr("tuna_trl.data.hub_access.hub_answers", lambda: pytest.fail("asked the Hub"))
    with pytest.raises(InputError, match="there is no such"):
        check_dataset_name(name, "--data")
    with pytest.raises(InputError, match="there is no such folder"):
        reach_options(name)


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tuna_trl.data.hub_access.hub_answers", lambda: pytest.fail("asked the Hub"))
    assert reach_options(str(tmp_path)) == {}
    check_dataset_name(str(tmp_path), "--data")


def test_an_id_is_refused_without_a_retry_where_the_hub_does_not_answer(tmp_path):
    done = offline(
        "from tuna_trl import InputError\n"
        "from tuna_trl.data.convert.reading import open_rows\n"
        "from tuna_trl.data.hub import load_ranked\n"
        "from tuna_trl.loading import load_model, load_tokenizer\n"
        "loads = (load_model, load_tokenizer, load_ranked, lambda name: open_rows(name, 'SRC'))\n"
        "for load in loads:\n"
        "    try:\n        load('ownr/nam')\n"
        "    except InputError as error:\n        print(error)\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 4 and all("'ownr/nam' could not be loaded" in line and NOWHERE in line for line in said)
    assert "Retrying" not in done.stderr


def test_a_model_in_the_cache_loads_where_the_hub_does_not_answer(tmp_path, tiny_folder):
    cached, commit = tmp_path / "hub" / "models--me--tiny", "a" * 40
    shutil.copytree(tiny_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    done = offline(
        "from tuna_trl.loading import load_model, load_tokenizer\n"
        "assert load_tokenizer('me/tiny').chat_template\n"
        "print(load_model('me/tiny').config._name_or_path)\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "me/tiny" and "Retrying" not in done.stderr


def test_offline_mode_is_left_to_the_libraries_which_look_into_their_caches(monkeypatch):
    monkeypatch.setattr("tuna_trl.data.hub_access.hub_answers", lambda: pytest.fail("asked the Hub"))
    assert reach_options("ownr/nam") == {}  # the tests run with HF_HUB_OFFLINE=1
    check_dataset_name("ownr/nam", "--data")
