"""`tuna-trl ablate`: a table and files out; a kill -9 leaves no process behind and costs no finished run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from sweeps import BASE, InThisProcess, sweep_content, write_sweep


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*args):
        from tuna_trl.cli import main
        from tuna_trl.pipelines import ablation

        monkeypatch.setattr(ablation, "_call", InThisProcess())
        monkeypatch.setattr(sys, "argv", ["tuna-trl", "ablate", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def test_a_sweep_ends_with_a_table_and_the_next_command(call, tmp_path, tiny_folder):
    path = write_sweep(tmp_path, sweep_content(tmp_path, tiny_folder, {"sft": {"trainer": "sft_best"}}))
    code, out, _ = call(path)
    assert code == 0
    assert "| sft |" in out and "longer wins" in out and "## Difference to start" in out
    assert "Next" in out and "--adapter" in out and str(tmp_path / "out" / "runs" / "sft") in out
    assert (tmp_path / "out" / "results.md").read_text() in out


def test_a_dry_run_names_the_arms_and_trains_none(call, tmp_path, tiny_folder):
    content = sweep_content(tmp_path, tiny_folder, {"sft": {"trainer": "sft_best"}}, vary={"margin": [0, 1]})
    code, out, _ = call(write_sweep(tmp_path, content), "--dry-run")
    assert code == 0 and "4 arms" in out and "margin=1: tuna" in out and not (tmp_path / "out").exists()


def test_a_wrong_file_is_exit_code_two(call, tmp_path, tiny_folder):
    content = sweep_content(tmp_path, tiny_folder, {"sft": {"trainer": "sft_bst"}})
    code, _, err = call(write_sweep(tmp_path, content))
    assert code == 2 and "Did you mean 'sft_best'?" in err
    assert call(tmp_path / "absent.yaml")[0] == 2


def test_a_kill_leaves_no_process_and_repeats_nothing_finished(tmp_path, tiny_folder):
    from tuna_trl.pipelines.ablation import run_ablation

    base = {**BASE, "max_steps": 20, "save_steps": 1}
    path = write_sweep(tmp_path, sweep_content(tmp_path, tiny_folder, {"one": {}, "two": {"margin": 0}}, base=base))
    folder = tmp_path / "out" / "runs"
    command = [sys.executable, "-m", "tuna_trl", "ablate", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as sweep:
        wait_for(lambda: any((folder / "one").rglob("tuna_trl_meter.json")), sweep)
        children = [pid for pid in processes() if parent(pid) == sweep.pid]
        assert children
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
    wait_for(lambda: not any(alive(pid) for pid in children))
    started = (folder / "start" / "seed_0" / "measured.json").stat().st_mtime_ns
    calls = InThisProcess()
    result, code = run_ablation(path, call=calls, say=lambda text: None)
    assert code == 0 and ("start", 0) not in calls.asked and calls.asked[-1] == ("two", 0)
    assert (folder / "start" / "seed_0" / "measured.json").stat().st_mtime_ns == started
    assert result["arms"]["one"]["cost"]["0"]["steps"] == 20


def wait_for(condition, process=None, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.stderr.read().decode())
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)


def processes():
    if not os.path.isdir("/proc/self"):
        pytest.skip("processes are looked up in /proc")
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pid):
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
