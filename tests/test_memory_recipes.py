"""The ways to save memory work together: 8-bit and paged optimizers, checkpointing, adapters on a 4-bit base."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from peft import LoraConfig
from tiny import chatml_tokenizer, random_llama
from training import config, gradients, largest_difference, losses, random_rows, ranked_dataset
from transformers import BitsAndBytesConfig

from tuna_trl import TunaTrainer
from tuna_trl.adapters import wrap_with_adapter
from tuna_trl.errors import InputError


NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WEIGHTS = ["all", "lora", "nf4"]


def trainer_of(folder, model, weights: str, **changes) -> TunaTrainer:
    return TunaTrainer(
        str(model),
        config(folder, **{"max_steps": 4, "learning_rate": 1e-2, **changes}),
        train_dataset=ranked_dataset(4),
        peft_config=None if weights == "all" else LoraConfig(r=16, target_modules="all-linear"),
        quantization_config=BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.float32)
        if weights == "nf4"
        else None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide enough for tensors of 4096 numbers, below which bitsandbytes keeps its states in float32."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = chatml_tokenizer()
    random_llama(len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _fresh_overrides():
    """bitsandbytes remembers "parameter 0 in 32 bits" (transformers, of an embedding) for the next optimizer too."""
    import bitsandbytes

    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_train_with_checkpointing(tmp_path, folder, optim, weights):
    trainer = trainer_of(tmp_path, folder, weights, optim=optim, activation_checkpointing=True)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert optimizer.is_paged is optim.startswith("paged")
    # transformers keeps the states of an embedding in float32
    embedding = trainer.model.get_input_embeddings().weight
    states = [(p, s["state1"].dtype) for p, s in optimizer.state.items() if p is not embedding]
    assert {dtype for p, dtype in states if p.numel() >= 4096} == {torch.uint8}
    found = losses(trainer)
    assert all(map(math.isfinite, found)) and found[-1] < found[0]
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {torch.bfloat16 if weights == "nf4" else torch.float32}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_checkpointing_changes_no_gradient(tmp_path, folder, weights):
    found = []
    for checkpointing in (False, True):
        trainer = trainer_of(tmp_path, folder, weights, activation_checkpointing=checkpointing)
        model = trainer.model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        trainer.compute_loss(model, trainer.data_collator(random_rows(97))).backward()
        found.append(gradients(model))
    assert largest_difference(*found) <= 1e-6 * max(g.abs().max().item() for g in found[0].values())


def test_our_config_uses_the_new_name_and_does_not_warn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert config(tmp_path, activation_checkpointing=True).activation_checkpointing is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without an accelerator refuses it")
def test_offloading_without_an_accelerator_is_refused_before_training(tmp_path):
    args = config(tmp_path, activation_offloading=True)
    with pytest.raises(InputError, match="`activation_offloading` = True.*no accelerator.*activation_checkpointing"):
        wrap_with_adapter(random_llama(97), None, args)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("weights", WEIGHTS)
def test_offloading_changes_no_loss(tmp_path, folder, weights):
    found = []
    for offloading in (False, True):
        options = dict(use_cpu=False, optim="paged_adamw_8bit", activation_checkpointing=True)
        trainer = trainer_of(tmp_path, folder, weights, activation_offloading=offloading, **options)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-3)
