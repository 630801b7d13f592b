"""`tuna-trl rank`: a file of given responses in, a ranked dataset out; what is wrong is said before a model loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tuna_trl.data.hub import load_ranked


ROWS = [
    {"instruction": "Name a sea.", "input": "", "outputs": ["The Baltic.", "Water"]},
    {"instruction": "Why?", "input": "", "outputs": ["", "Because."]},
]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*args):
        from tuna_trl.cli import main

        monkeypatch.setattr(sys, "argv", ["tuna-trl", "rank", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_file_of_lists_becomes_a_ranked_dataset_and_a_rerun_scores_nothing(call, data, tmp_path, tiny_folder):
    output = tmp_path / "ranked"
    command = ("--teacher", tiny_folder, "--data", data, "--output", output)
    code, out, err = call(*command)
    assert code == 0 and str(output) in out
    assert "1 of 4 responses have no rank: 1 empty." in err
    rows = load_ranked(output)["train"]
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert {row["ranking_method"] for row in rows} == {"teacher_logprob"}
    written = (output / "data" / "train-00000-of-00001.parquet").read_bytes()
    code, _, err = call(*command)
    assert code == 0 and "1 of 1 buckets were already in the journal" in err
    assert (output / "data" / "train-00000-of-00001.parquet").read_bytes() == written


def test_a_ranked_folder_is_read_and_another_teacher_needs_leave(call, data, tmp_path, tiny_folder):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("--teacher", tiny_folder, "--data", data, "--output", first, "--limit", 1)[0] == 0
    again = ("--teacher", tiny_folder, "--data", first, "--output", second, "--dtype", "float64")
    code, _, err = call(*again)
    assert code == 2 and "--overwrite-ranks" in err and not second.exists()
    assert call(*again, "--overwrite-ranks", "--length-exponent", 0)[0] == 0
    (row,) = load_ranked(second)["train"]
    assert row["provenance"]["length_exponent"] == 0 and row["score_gap"] > 0


@pytest.mark.parametrize(
    ("teacher", "file", "message"),
    [
        ("claude-opus-5-5", "lists.jsonl", "Anthropic's API returns no log-probabilities"),
        ("embedded", "missing.jsonl", "there is no such file"),
        ("embedded", "torn.jsonl", "could not be loaded"),
    ],
)
def test_what_is_wrong_is_said_at_once(teacher, file, message, call, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tuna_trl.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a", "respon')
    code, _, err = call("--teacher", teacher, "--data", tmp_path / file, "--output", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['tuna-trl', 'rank', '--help']\n"
        "from tuna_trl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
