"""Laws of the trainer: its loss and gradient are the formula's, whatever is trained; it is SFTTrainer where N = 1."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import reference
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import SquashedLlama, chatml_tokenizer, random_llama, random_model
from training import config, gradients, losses, parameters, random_rows, ranked_dataset, tokenised_row
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

import tuna_trl.head
from tuna_trl import TunaTrainer


TOKENIZER = chatml_tokenizer()
V = len(TOKENIZER)

# what is trained -> (tied head, adapter)
WAYS = {
    "full": (False, None),
    "full, tied head": (True, None),
    "LoRA": (False, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)),
    "LoRA, tied head": (True, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)),
    "LoRA on the head": (False, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)),
    "LoRA and the head itself": (
        False,
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    ),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(tuna_trl.head, "CHUNK_BYTES", 4 * V * 16)


@pytest.fixture
def trainer_of(tmp_path):
    """`trainer_of(model, **fields)`: a trainer whose own data do not matter, to call `compute_loss` of."""

    def made(model, peft_config=None, **fields):
        return TunaTrainer(
            model,
            config(tmp_path, **fields),
            train_dataset=ranked_dataset(2),
            processing_class=TOKENIZER,
            peft_config=peft_config,
        )

    return made


def test_the_shapes_of_the_oracle_rows_all_differ(trainer_of):
    rows = random_rows(V)
    batch = trainer_of(random_llama(V)).data_collator(rows)
    P = max(len(row["prompt_ids"]) for row in rows)
    R = max(len(ids) for row in rows for ids in row["response_ids"])
    assert len({*batch["input_ids"].shape, P, R, V}) == 6  # B, N, L, P, R, V


@pytest.mark.parametrize("pair_reduction", ["gap_mean", "sum"])
@pytest.mark.parametrize("mle_target", ["all", "best", "reference", "none"])
def test_the_loss_of_a_batch_is_the_formulas(mle_target, pair_reduction, trainer_of):
    model, rows = random_llama(V), random_rows(V)
    fields = dict(mle_target=mle_target, pair_reduction=pair_reduction)
    trainer = trainer_of(model, **fields)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected = reference.total_loss(random_llama(V), rows, **fields)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"margin": 0.0},
        {"margin": 2.5},
        {"length_exponent": 0.0},
        {"length_exponent": 0.5},
        {"mle_weight": 0.0},
        {"mle_weight": 0.3},
        {"ranking_weight": 0.0},
        {"ranking_weight": 2.5, "mle_weight": 0.5},
        {"loss_type": "dft"},
    ],
    ids=str,
)
def test_every_setting_of_the_loss_means_what_the_formula_says(fields, trainer_of):
    rows = random_rows(V, seed=1)
    trainer = trainer_of(random_llama(V), **fields)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    torch.testing.assert_close(loss, reference.total_loss(random_llama(V), rows, **fields), rtol=1e-6, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("layout", ["rows", "shared_prompt"])
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_every_parameter_is_the_formulas(way, layout, checkpointing, trainer_of):
    tied, lora = WAYS[way]
    rows = random_rows(V)
    fields = dict(activation_checkpointing=checkpointing, batch_layout=layout)
    trainer = trainer_of(random_llama(V, tie_word_embeddings=tied), lora, **fields)
    model = trainer.model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()  # what Trainer.train does
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    expected = reference.total_loss(model, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    expected.backward()
    assert found.keys() == gradients(model).keys() == parameters(model).keys()
    for name, gradient in gradients(model).items():
        assert (found[name] - gradient).abs().max() <= 1e-4, name
        assert gradient.abs().max() > 1e-4, name  # a gradient of nothing would pass above


@pytest.mark.parametrize("layout", ["rows", "shared_prompt"])
@pytest.mark.parametrize("way", WAYS)
def test_in_float64_loss_and_gradient_equal_the_formula_to_1e_12(way, layout, trainer_of):
    tied, lora = WAYS[way]
    rows = random_rows(V)
    trainer = trainer_of(random_model("phi-tied" if tied else "phi", V), lora, batch_layout=layout)
    model = trainer.model.double()
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    assert loss.dtype == torch.float64
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    expected = reference.total_loss(model, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert found.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        assert (found[name] - gradient).abs().max() <= 1e-12 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "cohere", "granite", "qwen3", "unknown"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_other_families_train_by_the_formula_too(family, adapter, trainer_of):
    rows = random_rows(V)
    model = SquashedLlama(random_llama(V).config) if family == "unknown" else random_model(family, V)
    trainer = trainer_of(model.eval(), WAYS["LoRA"][1] if adapter else None)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    expected = reference.total_loss(trainer.model, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for name, gradient in gradients(trainer.model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_training_is_as_near_to_float32_as_its_eight_bits_allow(trainer_of, tmp_path):
    exact = losses_of_a_run(trainer_of(random_llama(V), max_steps=3, learning_rate=0.01))
    rough = losses_of_a_run(trainer_of(random_llama(V), max_steps=3, learning_rate=0.01, bf16=True))
    assert rough == pytest.approx(exact, rel=2**-6) and rough != exact


def losses_of_a_run(trainer):
    trainer.train()
    return losses(trainer)


# ---- A user's own loss ----


def squared_gap(logps, lengths, ranks, mask, *, targets=None, ref_logps=None, **loss_kwargs):
    assert logps.shape == lengths.shape == ranks.shape == mask.shape == targets.shape and ref_logps is None
    return loss_kwargs["weight"] * torch.where(mask, logps / lengths.clamp(min=1), 0.0).square().sum(1)


def test_a_callable_is_a_loss_and_a_local_one_can_be_saved(trainer_of, tmp_path):
    def local(*args, **kwargs):
        return squared_gap(*args, **kwargs)

    rows = random_rows(V)
    trainer = trainer_of(random_llama(V), ranking_loss=local, loss_kwargs={"weight": 3.0}, mle_weight=0.0, max_steps=1)
    batch = trainer.data_collator(rows)
    scores = trainer.compute_loss(trainer.model, batch, return_outputs=True)[1]["scores"]
    expected = 3.0 * torch.where(batch["rank_mask"], scores, 0.0).square().sum() / 3
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert trainer.args.ranking_loss is local
    saved = torch.load(tmp_path / "saved" / "training_args.bin", weights_only=False)
    assert saved.ranking_loss == "local" and saved.loss_kwargs == {"weight": 3.0}


def test_a_loss_on_rows_without_pairs_shows_in_the_metrics(trainer_of):
    rows = Dataset.from_list([{"prompt": "q", "completion": "the end"}])
    trainer = trainer_of(random_llama(V), ranking_loss=squared_gap, loss_kwargs={"weight": 1.0}, mle_weight=0.5)
    metrics = trainer.evaluate(rows)
    s = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer._prepared(rows, trainer.args, "e"))))
    assert metrics["eval_loss"] == pytest.approx(s.item(), rel=1e-6)
    assert metrics["eval_loss/rank"] > 0


# ---- SFTTrainer ----


def test_the_arguments_are_sft_trainers_in_its_order():
    ours, theirs = (list(inspect.signature(t.__init__).parameters) for t in (TunaTrainer, SFTTrainer))
    assert ours[: len(theirs)] == theirs and len(theirs) == 16  # self and 15


def test_public_methods_keep_the_signature_of_their_base():
    for name in ("evaluate", "predict", "compute_loss", "prediction_step", "log", "training_step"):
        ours = inspect.signature(getattr(TunaTrainer, name)).parameters
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        if not any(p.kind is p.VAR_POSITIONAL for p in ours.values()):
            assert list(ours) == list(theirs), name
    card = inspect.signature(TunaTrainer.create_model_card).parameters
    assert list(card) == list(inspect.signature(SFTTrainer.create_model_card).parameters)


SFT_DATA = {
    "prompt-completion": [{"prompt": f"question {i} ", "completion": "the answer " * (i + 1)} for i in range(6)],
    "messages": [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "the " * i}]}
        for i in range(6)
    ],
    "text": [{"text": "in the end " * (i + 1)} for i in range(6)],
}


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", SFT_DATA)
def test_sft_data_train_as_with_sft_trainer(name, adapter, loss_type, tmp_path):
    """The same arguments, losses and weights: three micro-batches of 2 an epoch, the third one alone in its step."""
    fields = dict(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        loss_type=loss_type,
        bf16=False,
        learning_rate=0.01,
    )
    ours = {f.name: getattr(config(tmp_path, **fields), f.name) for f in dataclasses.fields(SFTConfig) if f.init}
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        ours.pop(old)
    args = SFTConfig(**ours)
    lora = LoraConfig(target_modules=["q_proj"]) if adapter else None
    found = []
    for kind in (SFTTrainer, TunaTrainer):
        trainer = kind(
            model=random_llama(V),
            args=copy.copy(args),
            train_dataset=Dataset.from_list(SFT_DATA[name]),
            processing_class=copy.deepcopy(TOKENIZER),
            peft_config=copy.deepcopy(lora),
        )
        trainer.train()
        found.append((losses(trainer), losses(trainer, "num_tokens"), parameters(trainer.model)))
    theirs, ours = found
    assert len(theirs[0]) == 4
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1] == theirs[1]
    assert ours[2].keys() == theirs[2].keys()
    for key, value in theirs[2].items():
        torch.testing.assert_close(ours[2][key], value, rtol=1e-4, atol=1e-5)


def test_a_row_of_one_response_has_no_ranking_loss(trainer_of):
    row = tokenised_row([5, 6, 7], [[8, 9, 10]], [1])
    trainer = trainer_of(random_llama(V))
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
    logps = reference.sequence_logps(random_llama(V), [5, 6, 7, 8, 9, 10], [3, 4, 5])
    torch.testing.assert_close(loss, -sum(logps) / 3)


def test_a_loss_that_sums_over_the_batch_itself_is_named(trainer_of):
    def summed(logps, lengths, ranks, mask, **kwargs):
        return logps.sum()

    trainer = trainer_of(random_llama(V), ranking_loss=summed)
    with pytest.raises(
        TypeError, match=r"`ranking_loss` returned the shape \(\), expected one loss an instruct.*\(3,\)"
    ):
        trainer.compute_loss(trainer.model, trainer.data_collator(random_rows(V)))
