"""`tuna-trl validate`: exit code 0, 1 or 2, a report for people or for programs, and the next command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ranked_rows import dataset_of, simple_row

from tuna_trl import save_ranked


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*args):
        from tuna_trl.cli import main

        monkeypatch.setattr(sys, "argv", ["tuna-trl", "validate", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    return save_ranked(dataset_of([simple_row(i) for i in range(3)]), tmp_path / "ranked")


def test_a_sound_folder_exits_with_0_and_names_the_next_command(call, folder, tiny_folder):
    code, out, _ = call(folder, "--model", tiny_folder, "--max-length", 64)
    assert code == 0 and "3 rows (train 3): sound" in out and "<- max_length" in out
    assert out.rstrip().splitlines()[-1].startswith(f"Next: tuna-trl train --dataset_name {folder}")


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
    ],
)
def test_wrong_use_exits_with_2(args, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    (tmp_path / "rows.jsonl").write_text(json.dumps(simple_row(0)))
    code, _, err = call(*args)
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize("verb", ["import", "convert", "validate"])
def test_help_loads_nothing_heavy(verb):
    code = (
        "import sys\n"
        f"sys.argv = ['tuna-trl', {verb!r}, '--help']\n"
        "from tuna_trl.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
