"""Other people's ranked data: import UltraFeedback, Nectar or another known shape, check it, train on it.

python examples/04_import_and_train.py                                          # rows of both shapes, written below
python examples/04_import_and_train.py Qwen/Qwen3-0.6B openbmb/UltraFeedback    # the first 1,000 rows of a Hub dataset
"""

import sys
from itertools import islice

from datasets import Dataset, concatenate_datasets, load_dataset
from peft import LoraConfig

from tuna_trl import TunaConfig, TunaTrainer, import_ranked, ranked_features, validate


# 1. Rows as they are published. UltraFeedback: four models' answers with GPT-4's ratings.
ultrafeedback = [
    {
        "source": "flan_v2",
        "instruction": "Name the largest ocean.",
        "completions": [
            {"model": "a", "response": "The Pacific Ocean.", "fine-grained_score": 4.75},
            {"model": "b", "response": "The Atlantic.", "fine-grained_score": 1.5},
            {"model": "c", "response": "It is the Pacific, I believe, or so.", "fine-grained_score": 3.25},
            {"model": "d", "response": "Oceans are large.", "fine-grained_score": 1.5},  # a tie makes no pair
        ],
    }
]
# Nectar: seven answers, ranked; here three.
nectar = [
    {
        "prompt": "\n\nHuman: Name a sea.\n\nAssistant: ",
        "answers": [
            {"answer": "Water", "model": "a", "rank": 3},
            {"answer": "The Baltic Sea.", "model": "b", "rank": 1},
            {"answer": "The Baltic.", "model": "c", "rank": 2},
        ],
        "num_responses": 3,
    }
]

# 2. Import. The shape is found by the columns; nothing is guessed, a response without a rating has no rank.
if len(sys.argv) > 2:
    rows = islice(import_ranked(load_dataset(sys.argv[2], split="train", streaming=True)), 1000)
    data = Dataset.from_list(list(rows), features=ranked_features())
else:
    parts = [list(import_ranked(source)) for source in (ultrafeedback, nectar)]
    data = concatenate_datasets([Dataset.from_list(part, features=ranked_features()) for part in parts])
for row in data.select(range(2)):
    print(row["prompt"][-1]["content"], "->", [(r["rank"], r["content"]) for r in row["responses"]])

# 3. Check it before a model is loaded: ranks against scores, empty or equal responses, marks of chat templates, ...
report = validate(data)
print(report.render())
if not report.sound:
    sys.exit(1)

# 4. Train. Rows may have different numbers of responses; `max_responses` would take the best so many of each.
trainer = TunaTrainer(
    model=sys.argv[1] if len(sys.argv) > 1 else "embedded",
    args=TunaConfig(
        output_dir="runs/04_import_and_train",
        per_device_train_batch_size=2,
        num_train_epochs=3,
        learning_rate=2e-4,
        max_length=1024,
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=data,
    peft_config=LoraConfig(target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
