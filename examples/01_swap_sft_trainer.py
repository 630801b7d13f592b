"""From SFTTrainer to TunaTrainer: the same script, several ranked answers a prompt instead of one.

python examples/01_swap_sft_trainer.py                      # the embedded model, no download
python examples/01_swap_sft_trainer.py Qwen/Qwen3-0.6B      # any model
"""

import sys

from datasets import Dataset
from peft import LoraConfig

from tuna_trl import TunaConfig, TunaTrainer


# 1. Data: a prompt and its answers, with scores (higher is better). N may differ from row to row.
rows = [
    {
        "prompt": "Name a colour.",
        "responses": ["Blue is a colour.", "A colour is blue or so.", "I do not know."],
        "scores": [3, 2, 0],
    },
    {
        "prompt": "What do bees make?",
        "responses": ["Bees make honey.", "Bees are insects."],
        "scores": [1, 0],
    },
    {
        "prompt": "How many legs has a spider?",
        "responses": ["A spider has eight legs.", "Eight.", "A spider has six legs.", "Many."],
        "scores": [3, 2, 0, 0],  # a tie makes no pair
    },
]

# 2. The trainer: SFTTrainer's arguments; TunaConfig is SFTConfig and the fields of the ranking loss.
trainer = TunaTrainer(
    model=sys.argv[1] if len(sys.argv) > 1 else "embedded",
    args=TunaConfig(
        output_dir="runs/01_swap_sft_trainer",
        per_device_train_batch_size=3,
        num_train_epochs=3,
        learning_rate=2e-4,
        margin=0.1,
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=Dataset.from_list(rows),
    peft_config=LoraConfig(target_modules="all-linear"),
)

# 3. Train; `rank/accuracy` is how often the model's likelihood orders two answers as the scores do.
trainer.train()
trainer.save_model()
history = [log for log in trainer.state.log_history if "rank/accuracy" in log]
print(f"rank accuracy {history[0]['rank/accuracy']:.2f} -> {history[-1]['rank/accuracy']:.2f}")
