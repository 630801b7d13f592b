"""Laws of the loss under what must not matter: padding, order, empty slots, how a batch is cut into micro-batches."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from ranked_rows import dataset_of, simple_row
from tiny import chatml_tokenizer, random_llama, random_model
from training import (
    config,
    gradients,
    largest_difference,
    losses,
    parameters,
    random_rows,
    ranked_dataset,
    tokenised_row,
)

from tuna_trl import RankedCollator, TunaTrainer


TOKENIZER = chatml_tokenizer()
V = len(TOKENIZER)


@pytest.fixture
def trainer_of(tmp_path):
    def made(model=None, peft_config=None, data=None, **fields):
        return TunaTrainer(
            model or random_llama(V),
            config(tmp_path, **fields),
            train_dataset=ranked_dataset(2) if data is None else data,
            processing_class=TOKENIZER,
            peft_config=peft_config,
        )

    return made


def loss_and_gradient(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), gradients(trainer.model)


def assert_same(trainer, first, second, tolerance=2e-5):
    (loss, gradient), (other, other_gradient) = loss_and_gradient(trainer, first), loss_and_gradient(trainer, second)
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
    assert largest_difference(gradient, other_gradient) < tolerance


@pytest.mark.parametrize("multiple, pad", [(64, 0), (None, 99), (32, 3)])
def test_padding_of_tokens_changes_nothing(multiple, pad, trainer_of):
    rows = random_rows(V)
    trainer = trainer_of()
    assert_same(trainer, trainer.data_collator(rows), RankedCollator(pad, pad_to_multiple_of=multiple)(rows))


def test_a_row_costs_the_same_beside_longer_and_wider_ones(trainer_of):
    rows, trainer = random_rows(V), trainer_of(mle_target="none")
    alone = [trainer.compute_loss(trainer.model, trainer.data_collator([row])) for row in rows]
    together = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    torch.testing.assert_close(together, sum(alone) / 3, rtol=1e-6, atol=0)


def test_the_order_of_responses_and_rows_changes_nothing(trainer_of):
    rows, trainer = random_rows(V), trainer_of()
    moved = []
    for row, order in zip(rows, ([4, 2, 0, 1, 3], [3, 1, 0, 2], [1, 0]), strict=True):
        lists = ("response_ids", "response_labels", "score_lengths", "ranks", "scores")
        moved.append({name: [v[k] for k in order] if name in lists else v for name, v in row.items()})
    assert_same(trainer, trainer.data_collator(rows), trainer.data_collator(moved[::-1]))


def test_empty_slots_hold_what_they_like(trainer_of):
    trainer = trainer_of()
    batch = trainer.data_collator(random_rows(V))
    garbage = {name: tensor.clone() for name, tensor in batch.items()}
    empty = ~batch["attention_mask"].any(2)
    assert empty.sum() == 4
    garbage["input_ids"][empty] = 7
    garbage["ranks"][empty] = 1
    garbage["scores"][empty] = 1e9
    garbage["groups"][empty] = 0
    assert_same(trainer, batch, garbage)


def test_unranked_responses_and_rows_without_a_pair_count_as_instructions_alone(trainer_of):
    trainer = trainer_of(mle_target="none")
    row = random_rows(V)[0]
    single = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
    tied = tokenised_row([3, 4], [[5, 6], [7, 8]], [1, 1])
    unranked = tokenised_row([3, 4], [[5, 6], [7, 8]], [0, 0])
    empty = tokenised_row([3, 4], [[], []], [1, 2])
    for other in (tied, unranked, empty):
        batch = trainer.data_collator([row, other])
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), single / 2)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("why", ["weight 0", "nothing to score"])
def test_a_batch_that_counts_nothing_is_a_connected_zero(why, adapter, trainer_of):
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False) if adapter else None
    trainer = trainer_of(peft_config=lora)
    rows = random_rows(V) if why == "weight 0" else [tokenised_row([3, 4], [[], []], [1, 2])]
    batch = trainer.data_collator(rows)
    if why == "weight 0":
        batch["instruction_weights"] = torch.zeros(len(rows))
    loss, found = loss_and_gradient(trainer, batch)
    assert loss == 0 and found.keys() == parameters(trainer.model).keys()
    assert all((gradient == 0).all() for gradient in found.values())
    counted = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor([5.0, 70.0]))
    assert counted == 0


def test_rows_of_weight_0_leave_the_others_as_they_are(trainer_of):
    trainer, rows = trainer_of(), random_rows(V)
    batch = trainer.data_collator(rows)
    batch["instruction_weights"] = torch.tensor([1.0, 0.0, 1.0])
    assert_same(trainer, batch, trainer.data_collator([rows[0], rows[2]]))


# ---- Accumulation ----


CUTS = {"1 x 8": (8, 1), "8 x 1": (1, 8), "2 x 4": (4, 2), "4 x 2": (2, 4), "3 + 3 + 2": (3, 3), "5 + 3": (5, 2)}


@pytest.mark.parametrize("way", ["full", "LoRA", "best response, sum over pairs", "float64"])
def test_however_eight_instructions_are_cut_loss_step_and_metrics_agree(way, trainer_of):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False) if way == "LoRA" else None
    fields = {"mle_target": "best", "pair_reduction": "sum"} if way.startswith("best") else {}
    found = {}
    for cut, (rows, steps) in CUTS.items():
        model = random_model("phi", V).double() if way == "float64" else random_llama(V)
        trainer = trainer_of(
            model,
            lora,
            ranked_dataset(8),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            num_train_epochs=2,
            **fields,
        )
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(log) == 2, cut  # one step an epoch, whatever the cut
        found[cut] = log, parameters(trainer.model)
    log, weights = found.pop("1 x 8")
    for cut, (other_log, other_weights) in found.items():
        for entry, other in zip(log, other_log, strict=True):
            assert other.keys() == entry.keys()
            for name, value in entry.items():
                assert other[name] == pytest.approx(value, rel=2e-6, abs=1e-6), (cut, name)
        assert largest_difference(weights, other_weights) < (1e-12 if way == "float64" else 2e-6), cut


def test_the_loss_logged_is_that_of_the_whole_batch(trainer_of):
    trainer = trainer_of(data=ranked_dataset(7), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    rows = list(trainer.train_dataset)
    whole = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).item()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(whole, rel=1e-6)


def test_a_last_step_of_fewer_rows_weighs_each_row_as_much(trainer_of):
    # 5 rows in steps of 4: the fifth is a batch of its own, with its own mean
    trainer = trainer_of(
        data=ranked_dataset(5),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
    )
    rows = list(trainer.train_dataset)
    expected = [
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(part)).item() for part in (rows[:4], rows[4:])
    ]
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, rel=1e-6)


def test_rows_grouped_by_length_train_too(trainer_of):
    trainer = trainer_of(
        data=ranked_dataset(8), train_sampling_strategy="group_by_length", per_device_train_batch_size=2, max_steps=3
    )
    trainer.train()
    assert len(losses(trainer)) == 3


def test_a_stream_trains_as_its_dataset(trainer_of):
    fields = dict(per_device_train_batch_size=2, max_steps=4, train_sampling_strategy="sequential")
    first = trainer_of(data=ranked_dataset(8), **fields)
    second = trainer_of(data=ranked_dataset(8).to_iterable_dataset(), **fields)
    first.train()
    second.train()
    assert losses(second) == pytest.approx(losses(first), rel=1e-6)
    assert largest_difference(parameters(first.model), parameters(second.model)) < 1e-6


def test_full_rows_and_a_users_rows_train_alike(trainer_of):
    full = [simple_row(i) for i in range(4)]
    own = [
        {
            "prompt": row["prompt"],
            "responses": [{"content": r["content"], "rank": r["rank"]} for r in row["responses"]],
        }
        for row in full
    ]
    from datasets import Dataset

    found = []
    for data in (dataset_of(full), Dataset.from_list(own)):
        trainer = trainer_of(data=data, max_steps=2)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]
