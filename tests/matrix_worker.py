"""One process of the invariance matrix: trains the same eight instructions, cut as asked, and says what came out.

Usage: matrix_worker.py FOLDER CASES, with CASES a JSON list of [layout, instructions a micro-batch, micro-batches a
step, whether the data are streamed]. Run as one of several gloo ranks (ranks come from the environment, as torchrun
sets them); rank 0 writes `out.pt`: the cases, and what `predict` gives. All in one start: importing costs more than
training.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).parent))

from tiny import chatml_tokenizer, random_llama  # noqa: E402
from training import config, parameters, ranked_dataset  # noqa: E402

from tuna_trl import TunaTrainer  # noqa: E402


INSTRUCTIONS, EPOCHS = 8, 2
NOT_COMPARED = {"epoch", "learning_rate", "step"}


def run_case(folder: Path | str, layout: str, batch: int, accumulation: int, streamed: bool = False) -> dict[str, Any]:
    """Train one cut: what each step logged, and the parameters behind the last one."""
    trainer = _trainer(
        folder,
        streamed,
        batch_layout=layout,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=EPOCHS,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "log": [{k: v for k, v in entry.items() if k not in NOT_COMPARED} for entry in log],
        "parameters": parameters(trainer.accelerator.unwrap_model(trainer.model)),
    }


def predict(folder: Path | str, size: int) -> dict[str, torch.Tensor]:
    """What `predict` gives for five rows in batches of `size`: scores and ranks, both `(5, N)`."""
    found = _trainer(folder, per_device_eval_batch_size=size).predict(ranked_dataset(5, seed=1))
    return {"scores": torch.from_numpy(found.predictions), "ranks": torch.from_numpy(found.label_ids)}


def _trainer(folder: Path | str, streamed: bool = False, **fields: Any) -> TunaTrainer:
    tokenizer, data = chatml_tokenizer(), ranked_dataset(INSTRUCTIONS)
    backend = "gloo" if "WORLD_SIZE" in os.environ else None
    return TunaTrainer(
        random_llama(len(tokenizer)),
        config(folder, ddp_backend=backend, **fields),
        train_dataset=data.to_iterable_dataset() if streamed else data,
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {
        "cases": [run_case(sys.argv[1], *case) for case in json.loads(sys.argv[2])],
        "predictions": predict(sys.argv[1], 1),
    }
    if os.environ.get("RANK", "0") == "0":
        torch.save(found, Path(sys.argv[1]) / "out.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # torch 2.13's gloo may deadlock when the interpreter takes it apart (see two_process_worker.py)
