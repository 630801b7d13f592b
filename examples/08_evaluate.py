"""Did it help? Rank accuracy before and after on rows that were not trained on, and judged answers, with intervals.

python examples/08_evaluate.py                              # the embedded model and the offline judge
python examples/08_evaluate.py Qwen/Qwen3-0.6B claude       # Claude judges (ANTHROPIC_API_KEY), for 1 USD at most

`tuna-trl evaluate` does this from the command line, and Super-NI, LMentry and Vicuna QA besides (docs/evaluation.md).
"""

import sys

from datasets import Dataset
from peft import LoraConfig

from tuna_trl import TunaConfig, TunaTrainer, judge_by_name, normalise_row, ranked_features
from tuna_trl.loading import load_model, load_tokenizer
from tuna_trl.pipelines.comparison import compare


def ranked(*rows: tuple[str, str, str, str]) -> Dataset:
    """Rows of (prompt, best, second, worst); the best is the reference of the offline judge too."""
    full = [
        normalise_row({"prompt": prompt, "responses": texts, "ranks": [1, 2, 3], "reference": texts[0]})
        for prompt, *texts in rows
    ]
    return Dataset.from_list(full, features=ranked_features())


# 1. Two sets of prompts that share nothing; `tuna-trl validate` finds prompts that stand in two splits.
train = ranked(
    ("Name a colour.", "Blue is a colour.", "A colour is blue or so.", "I do not know."),
    ("What do bees make?", "Bees make honey.", "Bees are insects.", "Milk."),
    ("How many legs has an ant?", "An ant has six legs.", "Six or so.", "An ant has nine legs."),
    ("Where do fish live?", "Fish live in water.", "In water, I think.", "Fish live in trees."),
)
held_out = ranked(
    ("Name a fish.", "The salmon is a fish.", "Salmon or so.", "I do not know."),
    ("What do cows eat?", "Cows eat grass.", "Cows are animals.", "Cows eat stones."),
    ("How many legs has a dog?", "A dog has four legs.", "Four or so.", "A dog has ten legs."),
)

# 2. Train.
name = sys.argv[1] if len(sys.argv) > 1 else "embedded"
trainer = TunaTrainer(
    model=name,
    args=TunaConfig(
        output_dir="runs/08_evaluate",
        per_device_train_batch_size=4,
        num_train_epochs=4,
        learning_rate=4e-4,
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=train,
    peft_config=LoraConfig(target_modules="all-linear"),
)
trainer.train()

# 3. Compare with the start model, row by row. Answers and verdicts are journalled; differences are paired.
judge = judge_by_name(sys.argv[2] if len(sys.argv) > 2 else "reference")
tokenizer = load_tokenizer(name)
result = compare(
    held_out,
    {"start": (load_model(name), tokenizer), "tuned": (trainer.model.eval(), tokenizer)},
    judge,
    journal="runs/08_evaluate.journal.sqlite",
    max_cost=1.0 if judge.paid else None,
    max_new_tokens=32,
)
for metric in ("rank_accuracy", "judge_score"):
    start, tuned = (result["models"][model][metric]["mean"] for model in ("start", "tuned"))
    moved = result["differences"]["tuned"][metric]
    print(f"{metric}: {start:.3f} -> {tuned:.3f}, difference [{moved['low']:+.3f}, {moved['high']:+.3f}]")
print(f"rank_accuracy of 'longer wins': {result['length_baseline']['longer_wins']['mean']:.3f}")
for example in result["examples"]:
    print(example["prompt"], {model: answer["content"] for model, answer in example["answers"].items()})
