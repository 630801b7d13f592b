"""Laws of the order of training: everything once, the longest first, the same for the same seed and epoch."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import chatml_tokenizer, random_llama
from training import config, losses, ranked_dataset

import tuna_trl.sampler
from tuna_trl import TunaTrainer
from tuna_trl.sampler import GroupedByLength


LENGTHS = st.lists(st.integers(1, 500), max_size=60)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5))
def test_every_instruction_comes_once_and_the_longest_first(lengths, batch, epoch):
    sampler = GroupedByLength(lengths, batch, seed=7)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)
    assert not order or lengths[order[0]] == max(lengths)


def test_an_epochs_order_is_its_own_and_always_the_same():
    lengths = [(7 * i) % 31 + 1 for i in range(64)]
    orders = []
    for epoch in (0, 1, 2):
        sampler, again = GroupedByLength(lengths, 4, seed=3), GroupedByLength(lengths, 4, seed=3)
        for s in (sampler, again):
            s.set_epoch(epoch)
        assert list(sampler) == list(again)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2]
    assert list(GroupedByLength(lengths, 4, seed=4)) != orders[0]


def test_neighbours_have_like_lengths():
    lengths = [(37 * i) % 211 + 1 for i in range(400)]

    def padding(order):
        batches = [order[i : i + 4] for i in range(0, len(order), 4)]
        return sum(4 * max(lengths[i] for i in b) - sum(lengths[i] for i in b) for b in batches) / sum(lengths)

    assert padding(list(GroupedByLength(lengths, 4, seed=0))) < 0.1 < padding(list(range(400)))


def test_the_worked_example_is_true():
    assert doctest.testmod(tuna_trl.sampler).failed == 0


def trainer(folder, **fields):
    tokenizer = chatml_tokenizer()
    return TunaTrainer(
        random_llama(len(tokenizer)),
        config(
            folder,
            per_device_train_batch_size=2,
            num_train_epochs=3,
            train_sampling_strategy="group_by_length",
            **fields,
        ),
        train_dataset=ranked_dataset(12),
        processing_class=tokenizer,
    )


def test_the_first_batch_of_a_training_holds_the_longest_instruction(tmp_path):
    run = trainer(tmp_path)
    first = next(iter(run.get_train_dataloader()))
    longest = max(run.train_dataset, key=lambda row: row["length"])
    assert first["input_ids"].shape[0] == 2
    assert first["input_ids"][0, 0].tolist()[: len(longest["prompt_ids"])] == longest["prompt_ids"]
    assert first["attention_mask"].sum((1, 2)).tolist()[0] >= longest["length"]


def test_a_resumed_run_sees_the_order_of_the_uninterrupted_one(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    cut = trainer(tmp_path / "cut", save_strategy="steps", save_steps=8)  # in the middle of the second epoch
    cut.train()
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)
    assert len(set(losses(whole))) == 18


def test_rows_without_a_length_are_drawn_at_random(tmp_path):
    run = trainer(tmp_path)
    run.train_dataset = run.train_dataset.remove_columns("length")
    assert len(list(run._get_train_sampler())) == 12
