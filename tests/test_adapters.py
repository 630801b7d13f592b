"""Laws of adapters: wrapped as TRL wraps them, trained by the formula on 4-bit weights too, loaded by plain peft."""

from __future__ import annotations

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import reference
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tiny import chatml_tokenizer, random_llama
from training import config, gradients, largest_difference, losses, parameters, random_rows, ranked_dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tuna_trl import InputError, TunaTrainer
from tuna_trl.adapters import wrap_with_adapter


V = len(chatml_tokenizer())
ARGS = SimpleNamespace(activation_checkpointing=False)


def lora(**changes):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **changes})


def test_without_a_config_the_model_is_the_model(tiny_llama):
    assert wrap_with_adapter(tiny_llama, None, ARGS) is tiny_llama


def test_an_adapter_trains_its_own_weights_and_leaves_its_config_alone(tiny_llama):
    given = lora(target_modules=None)  # peft fills the modules in
    before = {f.name: copy.deepcopy(getattr(given, f.name)) for f in dataclasses.fields(given)}
    model = wrap_with_adapter(tiny_llama, given, ARGS)
    assert isinstance(model, PeftModel)
    assert all("lora_" in name for name in parameters(model))
    assert {f.name: getattr(given, f.name) for f in dataclasses.fields(given)} == before


def test_activation_checkpointing_gets_gradients_through_a_frozen_embedding(tiny_llama):
    model = wrap_with_adapter(tiny_llama, lora(), SimpleNamespace(activation_checkpointing=True))
    assert model.get_input_embeddings()(torch.tensor([1])).requires_grad
    plain = wrap_with_adapter(random_llama(V), lora(), ARGS)
    assert not plain.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_a_second_adapter_is_refused_and_the_first_one_trains_on(tiny_llama):
    model = get_peft_model(tiny_llama, lora())
    with pytest.raises(InputError, match="`model` is a PeftModel and `peft_config` is given too.*merge_and_unload"):
        wrap_with_adapter(model, lora(), ARGS)
    assert wrap_with_adapter(model, None, ARGS) is model


def test_virtual_tokens_are_refused_however_they_come(tiny_llama):
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="`peft_config`: PrefixTuningConfig puts virtual tokens"):
        wrap_with_adapter(tiny_llama, prefix, ARGS)
    with pytest.raises(InputError, match="`model`: PrefixTuningConfig puts virtual tokens"):
        wrap_with_adapter(get_peft_model(tiny_llama, prefix), None, ARGS)


def test_a_model_with_nothing_to_train_is_named(tiny_llama, tmp_path):
    get_peft_model(tiny_llama, lora()).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(random_llama(V), tmp_path)
    with pytest.raises(InputError, match="`model` has nothing to train.*is_trainable=True"):
        wrap_with_adapter(frozen, None, ARGS)
    with pytest.raises(InputError, match="`model` has nothing to train"):
        wrap_with_adapter(random_llama(V).requires_grad_(False), None, ARGS)


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_trained_adapter_loads_in_plain_peft_and_has_no_trace_of_us(folder, tmp_path):
    trainer = TunaTrainer(folder, config(tmp_path, max_steps=2), train_dataset=ranked_dataset(4), peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert "tuna" not in json.dumps(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())).lower()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ids = torch.randint(1, V, (2, 9))
    torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert (loaded(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 1e-3


def test_a_peft_model_trains_as_its_config_does(folder, tmp_path):
    found = []
    for given in ("config", "model"):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(folder)
        if given == "model":
            torch.manual_seed(42)  # the trainer's seed, which it sets before it draws an adapter
            model = get_peft_model(model, lora())
        trainer = TunaTrainer(
            model,
            config(tmp_path, max_steps=3, seed=42),
            train_dataset=ranked_dataset(4),
            processing_class=chatml_tokenizer(),
            peft_config=lora() if given == "config" else None,
        )
        trainer.train()
        found.append((losses(trainer), parameters(trainer.model)))
    assert found[0][0] == found[1][0]
    assert largest_difference(found[0][1], found[1][1]) == 0


# ---- 4 bit ----

FOUR_BIT = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@pytest.fixture
def four_bit(folder, tmp_path):
    def made(**changes):
        return TunaTrainer(
            folder,
            config(tmp_path, max_steps=3, **changes),
            train_dataset=ranked_dataset(4),
            quantization_config=BitsAndBytesConfig(**FOUR_BIT),
            peft_config=lora(init_lora_weights=False, use_dora=True),
        )

    return made


def test_adapters_of_a_4_bit_model_are_bf16_but_for_dora_magnitudes(four_bit):
    dtypes = {name: p.dtype for name, p in parameters(four_bit().model).items()}
    magnitudes = {name for name in dtypes if "lora_magnitude_vector" in name}
    assert magnitudes and magnitudes != dtypes.keys()
    assert all(dtypes[name] == torch.float32 for name in magnitudes)
    assert all(dtypes[name] == torch.bfloat16 for name in dtypes.keys() - magnitudes)


def test_a_4_bit_model_trains_by_the_formula(four_bit):
    # bitsandbytes repacks 4-bit weights at an eval-mode forward on some CPUs, and gradients behind it are wrong
    # (0.50.2): everything here runs in train mode, and making the trainer must not have run one either
    trainer, rows = four_bit(), random_rows(V)
    model = trainer.model.train()
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    expected = reference.total_loss(model, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)  # bf16 adapters
    for name, gradient in gradients(model).items():
        scale = gradient.float().abs().max()
        assert scale > 0 and (found[name].float() - gradient.float()).abs().max() <= 0.03 * scale, name
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
