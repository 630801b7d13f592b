"""What becomes of each field of `SFTConfig`: the table of docs/sft_config.md, made from the code.

python -m tuna_trl.config_table > docs/sft_config.md
"""

from __future__ import annotations

import dataclasses
import sys

from transformers import TrainingArguments
from trl import SFTConfig

from .config import REFUSED_FIELDS, TunaConfig


# SFTConfig's own fields that are honoured, and where; the others are refused by name (config.REFUSED_FIELDS).
HONOURED_FIELDS = {
    "model_init_kwargs": "given to `from_pretrained` when the model is a name",
    "trust_remote_code": "when model and tokenizer are loaded by name",
    "chat_template_path": "a .jinja file, or a tokenizer whose template is taken over",
    "dataset_text_field": "the column of plain-text language modelling",
    "dataset_kwargs": "`skip_prepare_dataset`, for rows that are tokenised already",
    "dataset_num_proc": "processes that tokenise",
    "eos_token": "set on a copy of the tokenizer, and on model and generation config",
    "max_length": "tokens of a prompt with one response; see `excess_length_strategy`",
    "shuffle_dataset": "before training",
    "packing_strategy": "without packing there is nothing for it to choose",
    "pad_to_multiple_of": "of the padded length",
    "completion_only_loss": "False trains the prompt too (prompt-completion data)",
    "assistant_only_loss": "`messages` data, with a template that marks assistant turns",
    "loss_type": "the likelihood term: `nll` or `dft`; the ranking loss is `ranking_loss`",
    "activation_offloading": "TRL's context around each step",
    "pad_token": "set on a copy of the tokenizer, and on model and generation config",
}

# TrainingArguments fields that mean something else here.
OTHERWISE_FIELDS = {
    "average_tokens_across_devices": "always on | the loss is normalised over all processes, whatever this says",
    "gradient_checkpointing": "renamed | `activation_checkpointing`, which transformers 5.23 does not warn about",
    "bf16": "resolved | not set means: where the hardware has it",
    "dataloader_pin_memory": "off on a CPU | there is nothing to pin for",
}


def sft_config_table() -> str:
    """The page as Markdown."""
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    own = [f.name for f in dataclasses.fields(SFTConfig) if f.name not in inherited]
    lines = [
        "# Every field of SFTConfig",
        "",
        "`TunaConfig` has all of them. Made by `python -m tuna_trl.config_table`; a test keeps it true.",
        "",
        "| field | here | |",
        "|---|---|---|",
    ]
    for name in own:
        refused = name in REFUSED_FIELDS
        reason = REFUSED_FIELDS[name] if refused else HONOURED_FIELDS[name]
        lines.append(f"| `{name}` | {'refused' if refused else 'honoured'} | {reason} |")
    lines += [
        "",
        f"The {len(inherited)} fields of `transformers.TrainingArguments` reach the Trainer as they are, but for:",
        "",
        "| field | here | |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | refused | {reason} |" for name, reason in REFUSED_FIELDS.items() if name in inherited]
    lines += [f"| `{name}` | {what} |" for name, what in OTHERWISE_FIELDS.items()]
    new = [f.name for f in dataclasses.fields(TunaConfig) if f.name not in inherited and f.name not in own]
    lines += [
        "",
        f"New in `TunaConfig`: {', '.join(f'`{name}`' for name in new)}; see [training.md](training.md).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(sft_config_table())
