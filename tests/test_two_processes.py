"""Two gloo processes under DDP are one: loss, step, eval metrics, checkpoint and resume, also with uneven rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import largest_difference


WORKER = Path(__file__).with_name("two_process_worker.py")
NOT_COMPARED = ("runtime", "per_second", "epoch", "learning_rate", "step")


def launch(folder: Path, processes: int, *args: int | str) -> dict:
    """Run the worker in so many processes; what rank 0 wrote."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(processes):
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, str(WORKER), str(folder), *map(str, args)]
        log = (folder / f"rank{rank}.log").open("w")
        running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    codes = [process.wait(timeout=300) for process in running]
    logs = "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(processes))
    assert codes == [0] * processes, logs
    return json.loads((folder / "out.json").read_text()) | {
        "parameters": torch.load(folder / "parameters.pt", weights_only=True)
    }


def compare(one: dict, two: dict) -> None:
    """Every loss, gradient norm and metric of every step, and the parameters behind the last one."""
    assert len(one["log"]) == len(two["log"]) > 0
    for a, b in zip([*one["log"], one["metrics"]], [*two["log"], two["metrics"]], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if not any(word in key for word in NOT_COMPARED):
                assert a[key] == pytest.approx(b[key], rel=2e-5, abs=1e-6), key
    # float32: a gradient reduced over two processes is summed in another order
    assert largest_difference(one["parameters"], two["parameters"]) < 2e-6


@pytest.mark.parametrize("peft", ["", "peft"], ids=["full", "lora"])
def test_one_batch_of_8_eight_of_1_and_two_processes_agree(tmp_path, peft):
    one = launch(tmp_path / "1x8", 1, 8, 8, 1, 2, peft)
    accumulated = launch(tmp_path / "8x1", 1, 8, 1, 8, 2, peft)
    two = launch(tmp_path / "2 processes", 2, 8, 2, 2, 2, peft)
    compare(one, accumulated)
    compare(one, two)


def test_rows_repeated_to_even_out_the_last_batch_count_nothing(tmp_path):
    # 7 rows: two processes x batch 2 make steps of 4 and 3 (+ 1 repeated), as one process with batches of 4 does
    one = launch(tmp_path / "one", 1, 7, 4, 1, 2)
    two = launch(tmp_path / "two", 2, 7, 2, 1, 2)
    compare(one, two)
    # 5 rows: the second process has nothing but a repeated row in the last batch
    compare(launch(tmp_path / "one5", 1, 5, 2, 1, 1), launch(tmp_path / "two5", 2, 5, 1, 1, 1))


def test_a_checkpoint_of_two_processes_resumes_in_two_and_in_one(tmp_path):
    whole = launch(tmp_path / "whole", 2, 8, 2, 1, 3)
    for processes, batch in ((2, 2), (1, 4)):
        folder = tmp_path / f"resumed{processes}"
        launch(folder, 2, 8, 2, 1, 1)
        resumed = launch(folder, processes, 8, batch, 1, 3)
        assert [e["loss"] for e in resumed["log"]] == pytest.approx([e["loss"] for e in whole["log"]], rel=2e-5)
        assert largest_difference(whole["parameters"], resumed["parameters"]) < 2e-6
        assert resumed["log"][-1]["num_tokens"] == whole["log"][-1]["num_tokens"]
