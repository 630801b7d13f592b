"""Rounds: the student samples, a judge ranks, the student trains on that; then again with the better student.

python examples/06_iterate_rounds.py                              # the embedded model and the offline judge
python examples/06_iterate_rounds.py Qwen/Qwen3-0.6B claude       # Claude judges (ANTHROPIC_API_KEY)

`tuna-trl run` does the same from a recipe, each stage a process of its own that may be interrupted (docs/recipes.md).
"""

import sys

from peft import LoraConfig

from tuna_trl import JudgeBuildConfig, TunaConfig, TunaTrainer, build_judge_ranked, judge_by_name
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.loading import load_model, load_tokenizer


ROUNDS = 2
name = sys.argv[1] if len(sys.argv) > 1 else "embedded"
judge = judge_by_name(sys.argv[2] if len(sys.argv) > 2 else "reference")  # `reference`: likeness to the column below
prompts = [
    {"prompt": "Name a colour.", "reference": "Blue is a colour."},
    {"prompt": "What do bees make?", "reference": "Bees make honey."},
    {"prompt": "How many legs has a spider?", "reference": "A spider has eight legs."},
    {"prompt": "What is the capital of Italy?", "reference": "Rome is the capital of Italy."},
]

model, tokenizer = load_model(name), load_tokenizer(name)
for round_ in range(ROUNDS):
    # 1. Sample and judge. One journal for all rounds: its keys hold a digest of the student's weights, so a student
    #    that has trained is asked anew, and a script that was interrupted is not.
    build = JudgeBuildConfig(
        num_responses=4,
        max_new_tokens=24,
        seed=round_,
        max_cost=1.0 if judge.paid else None,
        journal="runs/06_rounds.journal.sqlite",
    )
    ranked = build_judge_ranked(prompts, TransformersSampler(model, tokenizer, name=name), judge, build)["train"]

    # 2. Train: a new adapter in the first round, the same one in the next. `mle_target="reference"` is the paper's
    #    objective: rank the samples, and learn the given answer; use "best" where there is none.
    trainer = TunaTrainer(
        model=model,
        args=TunaConfig(
            output_dir=f"runs/06_round_{round_ + 1}",
            per_device_train_batch_size=4,
            num_train_epochs=3,
            learning_rate=4e-4,
            mle_target="reference",
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=ranked,
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear") if round_ == 0 else None,
    )
    trainer.train()
    trainer.save_model()
    model = trainer.model

    # 3. The loss says that it learned something. Whether its answers got better is measured on other prompts, and on
    #    more than four: 08_evaluate.py. (All responses of a row tied: no pair, and the reference alone teaches.)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    ties = sum(row["num_ties"] for row in ranked)
    print(f"round {round_ + 1}: loss {losses[0]:.2f} -> {losses[-1]:.2f}; {ties} tied responses")
