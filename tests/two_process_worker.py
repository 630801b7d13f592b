"""One process of a training: run alone or as one of several gloo ranks; rank 0 writes what came out.

Usage: two_process_worker.py FOLDER ROWS BATCH ACCUMULATION EPOCHS [PEFT]. Ranks come from the environment, as
torchrun and `accelerate launch` set them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

from tiny import chatml_tokenizer, random_llama  # noqa: E402
from training import config, parameters, ranked_dataset  # noqa: E402

from tuna_trl import TunaTrainer  # noqa: E402


def main(folder: str, rows: int, batch: int, accumulation: int, epochs: int, peft: bool) -> None:
    torch.set_num_threads(1)
    tokenizer = chatml_tokenizer()
    args = config(
        folder,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        train_sampling_strategy="sequential",
        save_strategy="epoch",
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        learning_rate=0.05,
    )
    lora = None
    if peft:
        from peft import LoraConfig

        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    data = ranked_dataset(rows)
    trainer = TunaTrainer(
        random_llama(len(tokenizer)),
        args,
        train_dataset=data,
        eval_dataset={"one": data, "two": ranked_dataset(5, seed=1)},
        processing_class=tokenizer,
        peft_config=lora,
    )
    checkpoints = sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        model = trainer.accelerator.unwrap_model(trainer.model)
        torch.save(parameters(model), Path(folder) / "parameters.pt")
        (Path(folder) / "out.json").write_text(json.dumps({"log": log, "metrics": metrics}))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # torch 2.13's gloo group may deadlock when the interpreter takes it apart: the main thread joins gloo's thread
        # while it holds the interpreter lock that the other waits for (seen in 2 of 5 runs). All is written by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[2:6]]
    main(sys.argv[1], *numbers, peft="peft" in sys.argv[6:])
