"""A model sharded over two gloo processes has the unsharded model's log-probs, losses and gradients, or is refused.

Log-probs and loss are each rank's own; gradients are gathered, and the mean over ranks is what FSDP makes.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


WORKER = Path(__file__).with_name("fsdp_worker.py")
TOLERANCE = 2e-5  # float32: sums over two processes are taken in another order


def run(folder: Path, cases: list[dict]) -> list[list[dict]]:
    """Every case in one pair of processes; for each case what either rank found."""
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in ("0", "1"):
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = (folder / f"rank{rank}.log").open("w")
        running.append(subprocess.Popen([sys.executable, str(WORKER), str(folder)], env=env, stdout=log, stderr=log))
    codes = [process.wait(timeout=300) for process in running]
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in (0, 1))
    return json.loads((folder / "out.json").read_text())


def crossed(**choices) -> list[dict]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


ADAPTED = ["q_proj,v_proj,down_proj", "q_proj,lm_head"]
COMMON = dict(family="llama", batches="other")

# the law -> where it has to hold. All run in one pair of processes: to load torch costs more than to run them
AGREE = {
    # gemma2 has a softcap, phi a bias
    "trained and frozen, tied and untied heads": [
        *crossed(
            family=["llama", "llama-tied", "gemma2", "qwen3", "phi"],
            layout=["root", "accelerate"],
            batches=["other"],
            frozen=[False, True],
        ),
        *crossed(family=["llama"], layout=["root", "accelerate"], batches=["same"]),
    ],
    "shared prompts": [
        *crossed(
            family=["llama", "gemma2", "qwen3", "mistral"],
            layout=["root", "accelerate"],
            batches=["other"],
            batch_layout=["shared_prompt"],
        ),
        *crossed(
            family=["llama"],
            layout=["root", "own"],
            batches=["other", "empty"],
            batch_layout=["shared_prompt"],
            installed=["before", "after"],
        ),
    ],
    # one rank works through five chunks, the other through one, or has no token at all: called a chunk at a time, the
    # head would be gathered five times here and once there, and the ranks would wait for each other for ever
    "a head sharded by itself is gathered as often on every rank": [
        *crossed(
            family=["llama"],
            layout=["own"],
            batches=["same", "other", "empty"],
            frozen=[False, True],
            reshard=[True, False],
        ),
        *crossed(family=["gemma2", "phi"], layout=["own"], batches=["other"], frozen=[False, True]),
    ],
    "a rank without a token, and layers that stay gathered": crossed(
        family=["llama", "llama-tied"],
        layout=["root", "accelerate"],
        batches=["empty"],
        frozen=[False, True],
        reshard=[True, False],
    ),
    "install before and after sharding, other losses": crossed(
        family=["llama"],
        layout=["root", "own", "accelerate"],
        batches=["other"],
        installed=["before", "after"],
        loss=["simpo", "listmle"],
    ),
    "LoRA on a frozen base and on the head": [
        *crossed(family=["llama", "gemma2"], layout=["root", "accelerate"], batches=["other"], lora=ADAPTED),
        *crossed(family=["llama-tied"], layout=["root"], batches=["other"], lora=ADAPTED),
        *crossed(family=["llama"], layout=["own"], batches=["other", "empty"], lora=ADAPTED),
    ],
}
# case -> (error, what it says); the last is torch's own
REFUSED = {
    "InputError: is sharded inside (FSDPLinear)": dict(COMMON, layout="inside", lora="q_proj,lm_head"),
    "InputError: rounds log-probabilities to torch.bfloat16": dict(COMMON, layout="own", output_dtype="bfloat16"),
    "InputError: has a hook": dict(COMMON, layout="own", extra_hook=True),
    "ValueError: is shared with": dict(COMMON, family="llama-tied", layout="own"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[tuple[dict, list[dict]]]:
    """(case, what each rank found) of all cases."""
    cases = [case for group in AGREE.values() for case in group] + list(REFUSED.values())
    return list(zip(cases, run(tmp_path_factory.mktemp("fsdp2"), cases), strict=True))


@pytest.mark.parametrize("law", AGREE)
def test_sharded_is_unsharded(found, law):
    for case in AGREE[law]:
        for rank in next(ranks for other, ranks in found if other == case):
            assert rank.keys() == {"logps", "loss", "gradient"}, (case, rank)
            assert all(value < TOLERANCE for value in rank.values()), (case, rank)


@pytest.mark.parametrize("error", REFUSED)
def test_what_cannot_be_right_is_refused_on_every_rank(found, error):
    kind, message = error.split(": ")
    for rank in next(ranks for other, ranks in found if other == REFUSED[error]):
        assert rank["error"] == kind and message in rank["message"], rank
