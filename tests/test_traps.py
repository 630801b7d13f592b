"""Ten traps of building on trl 1.16 and transformers 5.23: each was run into, gives no error, and is held by a test.

| trap | test that holds it |
|---|---|
| 1. A batch with `labels` and `loss_is_scaled_for_ga` unset: gradients too large by the accumulation | test_traps.py::test_the_gradient_of_a_step_does_not_grow_with_its_accumulation, test_trainer_invariance.py::test_however_eight_instructions_are_cut_loss_step_and_metrics_agree |
| 2. `gather_for_metrics` and the dispatcher cut dimension 0, which must be the instruction | test_invariance_matrix.py::test_the_last_ragged_batch_of_two_processes_reaches_compute_metrics_whole, test_invariance_matrix.py::test_a_stream_read_by_two_processes_splits_no_instruction_and_loses_none, test_two_processes.py::test_rows_repeated_to_even_out_the_last_batch_count_nothing |
| 3. `prediction_step` without `labels` gives no `eval_loss` | test_trainer_evaluation.py::test_the_eval_loss_is_the_formulas_whatever_the_batch_size, test_traps.py::test_there_is_an_eval_loss_where_nothing_is_trained_on |
| 4. `to_dict()` of a config hides `eos_token` | test_traps.py::test_the_end_token_survives_every_way_into_the_trainer, test_config.py::test_an_upgrade_keeps_every_value |
| 5. A bool 4D mask is added as 0 and 1 by eager attention | test_traps.py::test_eager_attention_never_sees_a_bool_mask_and_trains_by_the_formula |
| 6. A plain 4D mask drops a sliding window | test_traps.py::test_a_sliding_window_slides_over_each_response_as_if_it_were_alone |
| 7. A shared key-value cache breaks under activation checkpointing | test_traps.py::test_activation_checkpointing_changes_no_number_of_a_whole_run, test_trainer.py::test_the_gradient_of_every_parameter_is_the_formulas |
| 8. LoRA on `lm_head` is invisible to a fused head | test_traps.py::test_lora_on_the_head_counts_in_a_whole_run, test_trainer.py::test_the_gradient_of_every_parameter_is_the_formulas |
| 9. An eval-mode forward repacks 4-bit weights on some CPUs, and no later gradient is right | test_qlora.py::test_a_gradient_behind_an_evaluation_is_still_that_of_the_dequantised_model, test_qlora.py::test_evaluating_before_and_during_training_changes_nothing, test_qlora.py::test_a_model_that_was_packed_before_is_refused, test_traps.py::test_no_4_bit_layer_runs_in_eval_mode_while_a_trainer_is_made |
| 10. trl's `is_conversational` looks at an arbitrary key | test_traps.py::test_a_row_keeps_its_kind_and_its_tokens_whatever_the_order_of_its_columns, data/test_prepare.py::test_the_richest_type_wins |
"""  # noqa: E501 - a table has one line a row

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import reference
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import FAMILIES, SIZES, chatml_tokenizer, random_llama
from training import config, gradients, largest_difference, losses, parameters, random_rows, ranked_dataset
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTConfig
from trl_rows import assistant, prepared, user

from tuna_trl import TunaConfig, TunaTrainer


TOKENIZER = chatml_tokenizer()
V = len(TOKENIZER)
LAYOUTS = ("rows", "auto")
WINDOWED = {
    "mistral": dict(sliding_window=4),  # every layer
    "gemma2": FAMILIES["gemma2"],  # every other layer
    "gemma3_text": dict(FAMILIES["gemma2"], layer_types=["sliding_attention", "full_attention"]),
}


def windowed(family, **changes):
    """A tiny model of a family with a sliding window of 4 tokens; the rows below are up to 19 long."""
    torch.manual_seed(0)
    settings = {**SIZES, "vocab_size": V, **WINDOWED[family], **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()


def test_the_table_names_ten_traps_and_every_test_in_it_exists():
    rows = re.findall(r"^\| (\d+)\. .* \| (.+) \|$", __doc__, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    for number, tests in rows:
        for name in tests.split(", "):
            file, _, test = name.partition("::")
            tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
            assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, f"trap {number}: {name}"


@pytest.fixture
def trainer_of(tmp_path):
    def made(model=None, *, peft_config=None, train=None, evaluation=None, args=None, **fields):
        return TunaTrainer(
            random_llama(V) if model is None else model,
            args or config(tmp_path, **fields),
            train_dataset=ranked_dataset(8) if train is None else train,
            eval_dataset=evaluation,
            processing_class=TOKENIZER,
            peft_config=peft_config,
        )

    return made


# ---- 1 ----


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_the_gradient_of_a_step_does_not_grow_with_its_accumulation(adapter, trainer_of):
    norms = {}
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = trainer_of(
            peft_config=LoraConfig(target_modules=["q_proj"], init_lora_weights=False) if adapter else None,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        assert "labels" in next(iter(trainer.get_train_dataloader()))
        trainer.train()
        (norms[batch],) = losses(trainer, "grad_norm")
    assert norms[4] == pytest.approx(norms[8], rel=2e-5) and norms[1] == pytest.approx(norms[8], rel=2e-5)
    rows = list(trainer_of().train_dataset)
    fresh = trainer_of()  # and it is the gradient of the formula, not all of them too large alike
    if not adapter:
        fresh.compute_loss(fresh.model, fresh.data_collator(rows)).backward()
        assert torch.stack([g.norm() for g in gradients(fresh.model).values()]).norm().item() == pytest.approx(
            norms[8], rel=2e-5
        )


# ---- 3 ----


@pytest.mark.parametrize("mle_target", ["none", "best"])
def test_there_is_an_eval_loss_where_nothing_is_trained_on(mle_target, trainer_of):
    trainer = trainer_of(evaluation={"a": ranked_dataset(3), "b": ranked_dataset(2)}, mle_target=mle_target)
    metrics = trainer.evaluate()
    for name, rows in trainer.eval_dataset.items():
        expected = reference.total_loss(random_llama(V), list(rows), mle_target=mle_target).item()
        assert metrics[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-5)


# ---- 4 ----


@pytest.mark.parametrize("kind", [TunaConfig, SFTConfig, TrainingArguments])
def test_the_end_token_survives_every_way_into_the_trainer(kind, trainer_of, tmp_path):
    fields = config(tmp_path, max_steps=1, hub_token="a-token")
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    args = kind(**{f.name: getattr(fields, f.name) for f in dataclasses.fields(fields) if f.name in known})
    if kind is not TrainingArguments:
        args.eos_token = "<|im_start|>"
    trainer = trainer_of(args=args)
    expected = "<|im_end|>" if kind is TrainingArguments else "<|im_start|>"
    assert trainer.processing_class.eos_token == expected
    assert trainer.args.eos_token == (None if kind is TrainingArguments else expected)
    assert trainer.args.hub_token == "a-token"
    if kind is not TrainingArguments:
        assert trainer.model.config.eos_token_id == TOKENIZER.convert_tokens_to_ids(expected)


# ---- 5, 6 ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", *WINDOWED])
def test_eager_attention_never_sees_a_bool_mask_and_trains_by_the_formula(family, layout, trainer_of):
    def made():
        model = random_llama(V) if family == "llama" else windowed(family)
        model.set_attn_implementation("eager")
        return model

    model, masks = made(), []
    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
            )
    trainer = trainer_of(model, batch_layout=layout)
    rows = random_rows(V)
    masks.clear()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    given = [mask for mask in masks if isinstance(mask, torch.Tensor)]
    assert len(masks) >= 2 and all(mask.is_floating_point() for mask in given)
    assert given or layout == "auto"  # padded rows do have one
    plain = made()
    expected = reference.total_loss(plain, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert largest_difference(gradients(trainer.model), gradients(plain)) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", WINDOWED)
def test_a_sliding_window_slides_over_each_response_as_if_it_were_alone(family, layout, trainer_of):
    rows = random_rows(V)
    trainer = trainer_of(windowed(family), batch_layout=layout)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    torch.testing.assert_close(loss, reference.total_loss(windowed(family), rows), rtol=1e-5, atol=0)
    # without the window the loss is another
    assert abs(reference.total_loss(windowed(family, sliding_window=512), rows) / loss - 1) > 1e-3


# ---- 7, 8 ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_activation_checkpointing_changes_no_number_of_a_whole_run(adapter, layout, trainer_of):
    found = []
    for checkpointing in (False, True):
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False) if adapter else None
        trainer = trainer_of(
            peft_config=lora, batch_layout=layout, activation_checkpointing=checkpointing, max_steps=3
        )
        trainer.train()
        assert getattr(trainer.model, "is_activation_checkpointing", checkpointing) is checkpointing
        found.append(([losses(trainer, key) for key in ("loss", "grad_norm")], parameters(trainer.model)))
    assert found[0][0] == [pytest.approx(values, rel=2e-6) for values in found[1][0]]
    assert largest_difference(found[0][1], found[1][1]) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_on_the_head_counts_in_a_whole_run(layout, trainer_of):
    lora = LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    trainer = trainer_of(peft_config=lora, batch_layout=layout, max_steps=3)
    rows = list(trainer.train_dataset)
    twin = trainer_of(peft_config=lora)  # the same seed draws the same adapter
    names = parameters(twin.model)
    assert names and all("lm_head" in name for name in names)
    for _ in range(3):
        twin.model.zero_grad()
        reference.total_loss(twin.model, rows).backward()
        with torch.no_grad():
            for parameter in twin.model.parameters():
                if parameter.requires_grad:
                    parameter -= twin.args.learning_rate * parameter.grad
    before = parameters(trainer.model)
    trainer.train()
    after = parameters(trainer.model)
    assert largest_difference(after, before) > 1e-2
    assert largest_difference(after, parameters(twin.model)) < 2e-5


# ---- 9 ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", ["tuna", "dpo_pl"])
def test_no_4_bit_layer_runs_in_eval_mode_while_a_trainer_is_made(loss, layout, tmp_path, monkeypatch):
    import bitsandbytes as bnb

    random_llama(V, hidden_size=64).save_pretrained(tmp_path / "model")
    modes, forward = [], bnb.nn.Linear4bit.forward

    def watched(self, x):
        modes.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", watched)
    TunaTrainer(
        str(tmp_path / "model"),
        config(tmp_path, ranking_loss=loss, precompute_ref_log_probs=loss != "tuna", batch_layout=layout),
        train_dataset=ranked_dataset(2),
        processing_class=TOKENIZER,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        peft_config=LoraConfig(target_modules=["q_proj"]),
    )
    assert modes and all(modes)


# ---- 10 ----


ROWS = {
    "prompt-completion": {"prompt": [user("q")], "completion": [assistant("the end")]},
    "preference": {"prompt": [user("q")], "chosen": [assistant("the end")], "rejected": [assistant("no")]},
    "preference in text": {"prompt": "q ", "chosen": "the end", "rejected": "no"},
    "ranked": {"prompt": [user("q")], "responses": ["the end", "no"], "ranks": [1, 2], "messages": "not a list"},
    "ranked, text prompt": {"prompt": "q", "responses": ["the end", "no"], "ranks": [1, 2], "chosen": "no"},
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_keeps_its_kind_and_its_tokens_whatever_the_order_of_its_columns(kind):
    found = []
    for order in itertools.permutations(ROWS[kind]):
        row = prepared(Dataset.from_list([{name: ROWS[kind][name] for name in order}]))[0]
        found.append((row["prompt_ids"], row["response_ids"], row["ranks"]))
    assert len(found) >= 2 and all(other == found[0] for other in found)
    assert len(found[0][1]) == (1 if kind == "prompt-completion" else 2)
