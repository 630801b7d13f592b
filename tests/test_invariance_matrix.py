"""The matrix: eight instructions give the same loss, gradient norm and parameters however they are cut into
micro-batches, spread over processes and laid out.

Batch split x accumulation x processes x layout, each against one process with one batch of padded rows. How one
process with two more data sets, eval metrics, checkpoints and adapters fares against two is in test_two_processes.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matrix_worker import EPOCHS, predict, run_case


LAYOUTS = ("rows", "shared_prompt")
# instructions a micro-batch, micro-batches a step
ONE_PROCESS = {"8 x 1": (8, 1), "4 x 2": (4, 2), "2 x 4": (2, 4), "1 x 8": (1, 8), "3 + 3 + 2": (3, 3)}
# of each of two processes; in the second one micro-batch is 6 rows and the next 2, and one row that is repeated
TWO_PROCESSES = {"2 x 2": (2, 2), "3 + 1": (3, 2)}
WORKER = Path(__file__).with_name("matrix_worker.py")
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    return run_case(tmp_path_factory.mktemp("one"), "rows", *ONE_PROCESS["8 x 1"])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """(layout, cut) -> what two gloo processes made of it, and their "predictions"; all in one start."""
    folder = tmp_path_factory.mktemp("two")
    cases = [(layout, cut) for layout in LAYOUTS for cut in [*TWO_PROCESSES, "stream"]]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    known |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    cuts = {**TWO_PROCESSES, "stream": (2, 2, True)}
    asked = json.dumps([(layout, *cuts[cut]) for layout, cut in cases])
    running = []
    for rank in ("0", "1"):
        log = (folder / f"rank{rank}.log").open("w")
        env = {**os.environ, **known, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, str(WORKER), str(folder), asked]
        running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0, 0], "\n".join((folder / f"rank{r}.log").read_text()[-3000:] for r in (0, 1))
    found = torch.load(folder / "out.pt", weights_only=True)
    return dict(zip(cases, found["cases"], strict=True)) | {"predictions": found["predictions"]}


def assert_same(found, expected):
    assert len(found["log"]) == len(expected["log"]) == EPOCHS  # one step an epoch, whatever the cut
    for entry, other in zip(found["log"], expected["log"], strict=True):
        assert entry.keys() == other.keys() and {"loss", "grad_norm", "rank/margin_gap1", "num_tokens"} <= entry.keys()
        for name, value in other.items():
            assert entry[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-6), name
    assert found["parameters"].keys() == expected["parameters"].keys()
    for name, value in expected["parameters"].items():
        assert (found["parameters"][name] - value).abs().max() <= TOLERANCE * value.abs().max(), name
    largest = max(
        abs(entry[name] / other[name] - 1)
        for entry, other in zip(found["log"], expected["log"], strict=True)
        for name in ("loss", "grad_norm")
    )
    apart = max(
        ((found["parameters"][name] - value).abs().max() / value.abs().max()).item()
        for name, value in expected["parameters"].items()
    )
    print(f"largest relative difference: loss and gradient norm {largest:.1e}, parameters {apart:.1e}")


@pytest.mark.parametrize("cut", ONE_PROCESS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_gives_the_same_step_however_its_batch_is_cut(layout, cut, reference_run, tmp_path):
    assert_same(run_case(tmp_path, layout, *ONE_PROCESS[cut]), reference_run)


@pytest.mark.parametrize("cut", TWO_PROCESSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_give_the_step_of_one(layout, cut, reference_run, two_processes):
    assert_same(two_processes[layout, cut], reference_run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_read_by_two_processes_splits_no_instruction_and_loses_none(layout, reference_run, two_processes):
    # accelerate's dispatcher cuts dimension 0 of a streamed batch over the processes, and pads it, without a word
    assert_same(two_processes[layout, "stream"], reference_run)


def test_the_last_ragged_batch_of_two_processes_reaches_compute_metrics_whole(two_processes, tmp_path):
    # 5 rows over 2 processes: `gather_for_metrics` keeps 5 % 2 = 1 row of the last batch, of dimension 0
    one, two = predict(tmp_path, 5), two_processes["predictions"]
    assert one["ranks"].shape == two["ranks"].shape == (5, 4)
    assert torch.equal(one["ranks"], two["ranks"]) and set(one["ranks"][:, 0].tolist()) == {1}
    torch.testing.assert_close(two["scores"], one["scores"], rtol=1e-5, atol=1e-6)


def test_the_matrix_sees_a_row_that_is_missing_and_one_that_counts_twice(reference_run, tmp_path, monkeypatch):
    import matrix_worker

    for rows in (7, 9):
        monkeypatch.setattr(matrix_worker, "INSTRUCTIONS", rows)
        other = run_case(tmp_path, "rows", 9, 1)
        for name in ("loss", "grad_norm"):
            assert abs(other["log"][0][name] / reference_run["log"][0][name] - 1) > 100 * TOLERANCE
