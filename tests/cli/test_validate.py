"""`tuna-trl validate`: exit code 0, 1 or 2, a report for people or for programs, and the next command."""

from __future__ import annotations

import gzip
import json

import pytest
from ranked_rows import dataset_of, simple_row

from tuna_trl import save_ranked


VERB = "validate"  # of every `call`


@pytest.fixture
def folder(tmp_path):
    return save_ranked(dataset_of([simple_row(i) for i in range(3)]), tmp_path / "ranked")


def test_a_sound_folder_exits_with_0_and_names_the_next_command(call, folder, tiny_folder):
    code, out, _ = call(folder, "--model", tiny_folder, "--max-length", 64)
    assert code == 0 and "3 rows (train 3): sound" in out and "<- max_length" in out
    known = f"--dataset_name {folder} --model_name_or_path {tiny_folder} --max_length 64 --output_dir runs/ranked"
    assert out.rstrip().splitlines()[-1] == f"Next: tuna-trl train {known}"


def test_errors_exit_with_1_and_name_row_and_mend(call, tmp_path):
    good, bad = simple_row(0), simple_row(1) | {"status": "fine"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad)))
    code, out, _ = call(path)
    assert code == 1 and "error: value in `status`, 1 time" in out and "split 'train', row 1: 'fine'" in out
    assert "mend: " in out and out.rstrip().endswith(f"then tuna-trl validate {path}")


def test_warnings_alone_exit_with_0(call, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(simple_row(0)) + "\n") * 2)
    code, out, _ = call(path)
    assert code == 0 and "warning: repeated prompt" in out


@pytest.mark.parametrize("where", ["a file", "a folder"])
def test_gzipped_lines_are_read_as_plain_ones(call, tmp_path, where):
    text = "".join(json.dumps(simple_row(i)) + "\n" for i in range(3))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "test.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    code, out, err = call(tmp_path / "in" if where == "a folder" else tmp_path / "in" / "test.jsonl.gz")
    assert code == 0 and f"3 rows ({'test' if where == 'a folder' else 'train'} 3): sound" in out, err


@pytest.mark.parametrize("verb", ["validate", "import", "convert"])
def test_a_revision_and_a_config_of_the_hub_are_asked_for(call, tmp_path, monkeypatch, verb):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return {"train": [simple_row(0)]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    more = {"validate": [], "import": [tmp_path / "out"], "convert": [tmp_path / "out", "--to", "sft"]}[verb]
    code, out, err = call("me/data", *more, "--revision", "v2", "--config", "easy", verb=verb)
    assert code == 0, err
    assert asked == [(("me/data", "easy"), {"revision": "v2", "streaming": True})]


def test_json_is_all_that_is_printed(call, folder):
    code, out, _ = call(folder, "--json")
    report = json.loads(out)
    assert code == 0 and report["sound"] and report["rows"] == {"train": 3} and report["findings"] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.jsonl"], "there is no such file"),
        (["rows.jsonl", "--max-length", "5"], "--max-length needs --model"),
        (["torn.jsonl"], "torn.jsonl row 0 (line 1): no valid JSON"),
        (["rows.jsonl", "--revision", "v1"], "--revision v1: rows.jsonl is a local path"),
        (["rows.jsonl", "--config", "judgments"], "--config judgments: rows.jsonl is a local path"),
        (["cut.jsonl.gz"], "cut.jsonl.gz: no whole gzip file"),
    ],
)
def test_wrong_use_exits_with_2(args, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    (tmp_path / "rows.jsonl").write_text(json.dumps(simple_row(0)))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(simple_row(0)).encode())[:-12])
    code, _, err = call(*args)
    assert code == 2 and message in err and "Traceback" not in err
