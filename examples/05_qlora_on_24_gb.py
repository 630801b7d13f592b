"""QLoRA on a card of 24 GB: an 8B model in 4 bits, an adapter on it, then one plain model again.

python examples/05_qlora_on_24_gb.py Qwen/Qwen3-8B      # `tuna-trl estimate` says what fits: docs/estimate.md
python examples/05_qlora_on_24_gb.py                    # the embedded model, also without a card

examples/recipes/qlora_8b_24gb.yaml says the same to `tuna-trl run`; docs/memory.md explains each setting.
"""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from tuna_trl import TunaConfig, TunaTrainer
from tuna_trl.adapters import merge_adapter


gpu = torch.cuda.is_available()
rows = [
    {
        "prompt": "Name a colour.",
        "responses": ["Blue is a colour.", "A colour is blue or so.", "I do not know."],
        "scores": [2, 1, 0],
    },
    {
        "prompt": "What do bees make?",
        "responses": ["Bees make honey.", "Bees are insects.", "Milk."],
        "scores": [2, 1, 0],
    },
]

# 1. Weights in half a byte each (nf4, their scales in 8 bits); products are computed in bfloat16.
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16 if gpu else torch.float32,
)

# 2. What else takes little memory: Adam in 8 bits that moves to the computer's memory when the card is full, layers
#    computed again in the backward pass, one instruction a forward. Logits are never whole here, whatever the length.
args = TunaConfig(
    output_dir="runs/05_qlora",
    optim="paged_adamw_8bit",
    activation_checkpointing=True,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,  # 16 on real data: the step is that of 16 instructions at once
    num_train_epochs=3,
    learning_rate=2e-4,
    max_length=1024,
    logging_steps=1,
    report_to="none",
)
trainer = TunaTrainer(
    model=sys.argv[1] if len(sys.argv) > 1 else "embedded",
    args=args,
    train_dataset=Dataset.from_list(rows),
    quantization_config=quantization,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
if gpu:
    print(f"most memory at once: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

# 3. Merge into the base that is not quantised: 4-bit weights would round the adapter away. The report says how far
#    log-probabilities of merged weights are from those of base and adapter side by side.
report = merge_adapter("runs/05_qlora", "runs/05_merged")
print(f"adapter -> {report.path.name}: log-probs moved by {report.mean:.4f} nats a token")
