"""QLoRA's gradients are those of the dequantised model: bitsandbytes' weights against plain float32 ones, on a CPU.

Train mode throughout: on CPUs with AVX512-BF16, bitsandbytes (0.50.2) repacks a 4-bit weight at its first eval-mode
forward, and no gradient behind it is right. That a trainer's model is kept from that is tested at the end.
"""

from __future__ import annotations

import copy

import bitsandbytes as bnb
import pytest
import reference
import torch
from peft import LoraConfig
from tiny import chatml_tokenizer, random_llama
from training import config, gradients, losses, parameters, random_rows, ranked_dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tuna_trl import InputError, TunaTrainer


TOKENIZER = chatml_tokenizer()
V = len(TOKENIZER)
WIDTH = 64  # bitsandbytes' smallest block: narrower rows share one, and its eval-mode kernel cannot unpack them

FOUR_BIT = {
    f"{kind}{', double quantisation' if double else ''}": dict(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    for kind in ("nf4", "fp4")
    for double in (False, True)
}
EIGHT_BIT = dict(load_in_8bit=True)
ADAPTERS = {
    "LoRA": dict(),
    "DoRA": dict(use_dora=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide-model")
    random_llama(V, hidden_size=WIDTH, intermediate_size=2 * WIDTH).save_pretrained(path)
    return str(path)


@pytest.fixture
def trainer_of(folder, tmp_path):
    def made(quantisation, adapter="LoRA", **fields):
        return TunaTrainer(
            folder,
            config(tmp_path, **fields),
            train_dataset=ranked_dataset(4),
            eval_dataset=ranked_dataset(3, seed=1),
            processing_class=TOKENIZER,
            quantization_config=BitsAndBytesConfig(**quantisation),
            peft_config=LoraConfig(
                r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0, **ADAPTERS[adapter]
            ),
        )

    return made


def dequantised(layer):
    """The float32 weight that a quantised layer computes with."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    state = layer.weight if layer.weight.CB is not None else layer.state  # moved at the first forward
    return state.CB.float() * state.SCB.float().unsqueeze(1) / 127


def plain_twin(model):
    """A copy of a PEFT model whose quantised layers are `nn.Linear`s of the dequantised weights."""
    twin = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            weight = dequantised(layer)
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
            linear.weight = torch.nn.Parameter(weight.float().clone(), requires_grad=False)
            parent, _, own = name.rpartition(".")
            setattr(twin.get_submodule(parent), own, linear)
    assert not any(isinstance(m, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) for m in twin.modules())
    return twin.train()


def worst_relative_error(found, expected):
    """max over parameters of max |a - b| / max |b|."""
    assert found.keys() == expected.keys() and found
    errors = {}
    for name, value in expected.items():
        scale = value.float().abs().max()
        assert scale > 0, name
        errors[name] = ((found[name].float() - value.float()).abs().max() / scale).item()
    return max(errors.values())


def loss_and_gradients(trainer, model, batch):
    model.zero_grad()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return loss.detach(), gradients(model)


def errors_of(trainer):
    """(relative error of the loss, of the worst gradient) against the dequantised twin, and the twin's gradients."""
    model, batch = trainer.model.train(), trainer.data_collator(random_rows(V))
    twin = plain_twin(model)
    loss, found = loss_and_gradients(trainer, model, batch)
    expected_loss, expected = loss_and_gradients(trainer, twin, batch)
    return abs(loss / expected_loss - 1).item(), worst_relative_error(found, expected)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("quantisation", FOUR_BIT)
def test_loss_and_every_gradient_of_a_4_bit_model_are_those_of_the_dequantised_one(quantisation, adapter, trainer_of):
    trainer = trainer_of(FOUR_BIT[quantisation], adapter)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert len(parameters(trainer.model)) == 2 * 7 * (3 if adapter == "DoRA" else 2)  # layers, linears, parts
    loss_error, gradient_error = errors_of(trainer)
    print(f"{quantisation}, {adapter}: loss {loss_error:.1e}, gradient {gradient_error:.1e}")
    assert loss_error <= 1e-6 and gradient_error <= 1e-6  # measured: 0, the same products in the same order


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_bf16_adapters_as_they_are_trained_give_the_same_on_both_bases(adapter, trainer_of):
    trainer = trainer_of(FOUR_BIT["nf4, double quantisation"], adapter)
    assert torch.bfloat16 in {p.dtype for p in parameters(trainer.model).values()}
    loss_error, gradient_error = errors_of(trainer)
    assert loss_error <= 1e-6 and gradient_error <= 2**-7  # measured: 0; a gradient has bf16's eight bits


@pytest.mark.parametrize("quantisation", FOUR_BIT)
def test_the_comparison_sees_the_rounding_of_four_bits(quantisation, trainer_of, folder):
    """Against the weights before quantisation loss and gradients are visibly others: the twin's weights do count."""
    trainer = trainer_of(FOUR_BIT[quantisation])
    model, batch = trainer.model.train(), trainer.data_collator(random_rows(V))
    original = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    twin = plain_twin(model)
    for name, layer in twin.named_modules():
        if name.endswith(".base_layer"):
            layer.weight.data = original[name.removeprefix("base_model.model.").removesuffix("base_layer") + "weight"]
    loss, found = loss_and_gradients(trainer, model, batch)
    expected_loss, expected = loss_and_gradients(trainer, twin, batch)
    assert abs(loss / expected_loss - 1) > 1e-4
    assert worst_relative_error(found, expected) > 1e-2


def test_the_loss_of_the_dequantised_twin_is_the_formulas(trainer_of):
    trainer, rows = trainer_of(FOUR_BIT["nf4"]), random_rows(V)
    twin = plain_twin(trainer.model.train())
    expected = reference.total_loss(twin, rows)
    torch.testing.assert_close(
        trainer.compute_loss(trainer.model, trainer.data_collator(rows)), expected, rtol=1e-3, atol=0
    )  # bf16 adapters


def test_loss_and_every_gradient_of_an_8_bit_model_are_those_of_the_dequantised_one(trainer_of):
    # rows: in eval mode, where a layout is tried, LLM.int8 rounds each activation by its neighbours' largest
    trainer = trainer_of(EIGHT_BIT, batch_layout="rows")
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    loss_error, gradient_error = errors_of(trainer)
    print(f"8 bit: loss {loss_error:.1e}, gradient {gradient_error:.1e}")
    assert loss_error <= 1e-6 and gradient_error <= 2e-5  # measured: 0 and 3.3e-6


# ---- Evaluating a 4-bit model ----


def test_evaluating_before_and_during_training_changes_nothing(trainer_of):
    found = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        fields = dict(eval_strategy="steps", eval_steps=1) if evaluated else {}
        trainer = trainer_of(FOUR_BIT["nf4"], max_steps=3, eval_on_start=evaluated, **fields)
        if evaluated:
            trainer.evaluate()
        trainer.train()
        found.append((losses(trainer), parameters(trainer.model)))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 3
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_a_gradient_behind_an_evaluation_is_still_that_of_the_dequantised_model(trainer_of):
    trainer = trainer_of(FOUR_BIT["nf4"])
    trainer.evaluate()
    assert errors_of(trainer) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_making_a_trainer_packs_no_4_bit_weight_whatever_the_reference_and_the_layout(trainer_of):
    trainer = trainer_of(FOUR_BIT["nf4"], ranking_loss="dpo_pl", precompute_ref_log_probs=True)
    layers = [m for m in trainer.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 14
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


def test_a_model_that_was_packed_before_is_refused(folder, tmp_path):
    given = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**FOUR_BIT["nf4"]), dtype=torch.float32
    )
    layer = given.model.layers[1].self_attn.q_proj
    layer.weight.quant_state.packing_format_for_cpu = True  # what an eval-mode forward leaves, on some CPUs
    with pytest.raises(
        InputError, match="`model` was run in eval mode.*layers.1.self_attn.q_proj.*Load the model anew"
    ):
        TunaTrainer(
            given,
            config(tmp_path),
            train_dataset=ranked_dataset(2),
            processing_class=TOKENIZER,
            peft_config=LoraConfig(target_modules=["q_proj"]),
        )
