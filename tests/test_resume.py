"""Laws of a checkpoint: a run that is interrupted and goes on is the run that was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny import chatml_tokenizer, random_llama
from training import config, largest_difference, losses, parameters, ranked_dataset
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tuna_trl import TunaTrainer


TOKENIZER = chatml_tokenizer()
LORA = LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], lora_dropout=0.2)


class Cut(TrainerCallback):
    """A power cut: raises in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(folder, *, adapter=False, callbacks=(), rows=11, dropout=0.2, **fields):
    fields = {
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,  # 3 steps an epoch, the last of two ragged micro-batches
        "save_strategy": "steps",
        "save_steps": 4,  # within the second epoch
        "shuffle_dataset": True,
        "max_grad_norm": 1.0,
        **fields,
    }
    return TunaTrainer(
        random_llama(len(TOKENIZER), attention_dropout=dropout),
        config(folder, **fields),
        train_dataset=ranked_dataset(rows),
        eval_dataset=ranked_dataset(3, seed=1),
        processing_class=TOKENIZER,
        peft_config=LORA if adapter else None,
        callbacks=list(callbacks),
    )


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_an_interrupted_run_goes_on_as_the_uninterrupted_one(adapter, tmp_path):
    whole = trainer_of(tmp_path / "whole", adapter=adapter)
    whole.train()
    cut = trainer_of(tmp_path / "cut", adapter=adapter, callbacks=[Cut(6)])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    torch.manual_seed(12345)  # the new process knows nothing of the old one's state
    resumed = trainer_of(tmp_path / "cut", adapter=adapter)
    resumed.train(resume_from_checkpoint=True)
    assert len(entries(whole)) == 9 and get_last_checkpoint(str(tmp_path / "cut")).endswith("-9")
    assert len(set(losses(whole))) == 9
    for entry, other in zip(entries(whole), entries(resumed), strict=True):
        assert other == pytest.approx(entry, rel=1e-6)  # loss, metrics, gradient norm, learning rate, tokens
    assert largest_difference(parameters(whole.model), parameters(resumed.model)) < 1e-7


def test_tokens_are_counted_on_where_no_log_fell_on_the_checkpoint(tmp_path):
    fields = dict(logging_steps=3, save_steps=4)  # logs at 3, 6, 9; the checkpoint has one step that no log has
    whole = trainer_of(tmp_path / "whole", **fields)
    whole.train()
    cut = trainer_of(tmp_path / "cut", callbacks=[Cut(5)], **fields)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = trainer_of(tmp_path / "cut", **fields)
    resumed.train(resume_from_checkpoint=True)
    assert losses(whole, "num_tokens") == losses(resumed, "num_tokens")
    assert losses(whole, "num_tokens")[-1] == tokens_of(whole) * 3


def tokens_of(trainer):
    """Tokens of all sequences of an epoch, prompts counted as often as they are forwarded."""
    return sum(len(row["prompt_ids"]) + len(ids) for row in trainer.train_dataset for ids in row["response_ids"])


@pytest.mark.parametrize("counting", ["no", "all", "non_padding"])
def test_tokens_are_counted_once_whoever_counts_them(counting, tmp_path):
    trainer = trainer_of(tmp_path, include_num_input_tokens_seen=counting, num_train_epochs=1, save_steps=2)
    trainer.train()
    last = losses(trainer, "num_tokens")[-1]
    assert last == trainer.state.num_input_tokens_seen
    if counting == "all":  # with padding, as transformers documents it
        assert last > tokens_of(trainer)
    else:
        assert last == tokens_of(trainer)


def test_a_second_run_of_the_same_trainer_counts_anew(tmp_path):
    trainer = trainer_of(tmp_path, num_train_epochs=1, save_strategy="no")
    trainer.train()
    first = losses(trainer, "num_tokens")
    trainer.train()
    assert losses(trainer, "num_tokens") == first


def test_evaluating_on_the_way_changes_nothing(tmp_path):
    # without dropout: a data loader draws its seed from the generator that dropout draws from
    fields = dict(logging_steps=2, save_strategy="no", dropout=0.0)
    plain = trainer_of(tmp_path / "plain", **fields)
    plain.train()
    watched = trainer_of(tmp_path / "watched", eval_strategy="steps", eval_steps=3, **fields)
    watched.train()
    assert len([e for e in watched.state.log_history if "eval_loss" in e]) == 3
    for entry, other in zip(entries(plain), entries(watched), strict=True):
        assert other == pytest.approx(entry, rel=1e-6)
    for entry in watched.state.log_history:  # what training has summed up never shows in an eval entry
        if "eval_loss" in entry:
            assert {name for name in entry if not name.startswith("eval_")} == {"epoch", "step"}


def test_a_checkpoint_says_what_it_is_and_has_no_trace_in_its_config(tmp_path):
    trainer = trainer_of(tmp_path, num_train_epochs=1, save_steps=3)
    trainer.train()
    folder = Path(get_last_checkpoint(str(tmp_path)))
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "trainer_state.json", "optimizer.pt"} <= names
    config_values = json.loads((folder / "config.json").read_text())
    assert not any("tuna" in str(item).lower() for item in config_values.items())
    assert "tuna" in (tmp_path / "README.md").read_text()
