"""Push ranked data and a trained adapter to the Hub, and load exactly these rows again.

hf auth login                                                  # or HF_TOKEN; the token is never printed
python examples/07_push_to_the_hub.py                          # private repos under your name
python examples/07_push_to_the_hub.py Qwen/Qwen3-0.6B my-org   # another model, an organisation
"""

import sys

from datasets import Dataset, load_dataset
from huggingface_hub import whoami
from peft import LoraConfig

from tuna_trl import TunaConfig, TunaTrainer, normalise_row, push_to_hub, ranked_features
from tuna_trl.data.convert import to_preference


owner = sys.argv[2] if len(sys.argv) > 2 else whoami()["name"]
rows = [
    {"prompt": "Name a colour.", "responses": ["Blue is a colour.", "Blue or so.", "No."], "scores": [2, 1, 0]},
    {"prompt": "What do bees make?", "responses": ["Bees make honey.", "Bees fly."], "scores": [1, 0]},
]
ranked = Dataset.from_list([normalise_row(row) for row in rows], features=ranked_features())

# 1. The data: one commit with the rows, a card, a report, and a view that `trl dpo` reads without code. Nobody guesses
#    a licence; pushing the same rows again makes no second commit.
pushed = push_to_hub(
    ranked,
    f"{owner}/tuna-example-ranked",
    configs={"preference": to_preference(ranked)},
    license="cc0-1.0",
    private=True,
)
print("data ->", pushed.load_line)

# 2. The commit's id pins these rows, whatever is pushed later.
again = load_dataset(f"{owner}/tuna-example-ranked", revision=pushed.revision, split="train")
assert again.num_rows == len(rows)

# 3. A model: TunaConfig has SFTConfig's hub settings; the card says which loss, which data and what came out.
trainer = TunaTrainer(
    model=sys.argv[1] if len(sys.argv) > 1 else "embedded",
    args=TunaConfig(
        output_dir="runs/07_adapter",
        hub_model_id=f"{owner}/tuna-example-adapter",
        hub_private_repo=True,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        learning_rate=2e-4,
        report_to="none",
    ),
    train_dataset=again,
    peft_config=LoraConfig(target_modules="all-linear"),
)
trainer.train()
commit = trainer.push_to_hub(dataset_name=f"{owner}/tuna-example-ranked")
print("model ->", commit.commit_url if hasattr(commit, "commit_url") else commit)
