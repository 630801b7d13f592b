"""A client of the loopback Hub in a process of its own: both libraries read the endpoint when they are imported.

Usage: hub_worker.py push FOLDER, or hub_worker.py load FOLDER. `push` makes a base model, trains it whole and with an
adapter for two steps each, and pushes all three; `load` reads them back with what a user has, transformers alone. Both
write the log-probs that their models give, for the test to compare.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

IDS = torch.arange(20, 40).reshape(2, 10)


@torch.no_grad()
def logps(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.log_softmax(-1)


def push(folder: Path) -> None:
    from peft import LoraConfig
    from tiny import chatml_tokenizer, random_llama
    from training import config, ranked_dataset

    from tuna_trl import TunaTrainer

    tokenizer = chatml_tokenizer()
    random_llama(len(tokenizer)).push_to_hub("tester/base")
    tokenizer.push_to_hub("tester/base")
    found = {}
    for name, lora in (("whole", None), ("adapter", LoraConfig(r=4, target_modules="all-linear"))):
        # one is pushed at every checkpoint with the token as an argument, the other at the end with the login's
        hub = dict(push_to_hub=True, hub_token=os.environ["HF_TOKEN"]) if lora is None else {}
        args = config(
            folder / name,
            max_steps=2,
            margin=0.25,
            hub_model_id=f"tester/{name}",
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            **hub,
        )
        trainer = TunaTrainer(
            "tester/base",
            args,
            train_dataset=ranked_dataset(6),
            eval_dataset={"held": ranked_dataset(3, seed=1)},
            peft_config=lora,
        )
        trainer.train()
        trainer.push_to_hub(dataset_name="org/ranked")
        found[name] = logps(trainer.model)
    torch.save(found, folder / "pushed.pt")


def load(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = {}
    for name in ("whole", "adapter"):
        found[name] = logps(AutoModelForCausalLM.from_pretrained(f"tester/{name}", dtype="float32"))
        assert AutoTokenizer.from_pretrained(f"tester/{name}").chat_template
    found["base"] = logps(AutoModelForCausalLM.from_pretrained("tester/base", dtype="float32"))
    assert "tuna_trl" not in sys.modules
    torch.save(found, folder / "loaded.pt")


if __name__ == "__main__":
    {"push": push, "load": load}[sys.argv[1]](Path(sys.argv[2]))
