"""Laws of the collator: every token in its place, what is scored, what is trained, what is empty."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import random_rows, tokenised_row, tokenised_rows

import tuna_trl.collator
from tuna_trl import InputError, RankedCollator


PAD = 0

batches = st.lists(tokenised_rows(), min_size=1, max_size=4)


@settings(deadline=None, max_examples=100)
@given(rows=batches, multiple=st.sampled_from([None, 1, 4, 7]))
def test_every_token_is_in_its_place_and_the_rest_is_padding(rows, multiple):
    batch = RankedCollator(PAD, pad_to_multiple_of=multiple)(rows)
    B, N, L = batch["input_ids"].shape
    assert (B, N) == (len(rows), max(len(row["ranks"]) for row in rows))
    assert L % (multiple or 1) == 0
    for b, row in enumerate(rows):
        for k in range(N):
            present = k < len(row["ranks"])
            ids = row["prompt_ids"] + row["response_ids"][k] if present else []
            assert batch["input_ids"][b, k].tolist() == ids + [PAD] * (L - len(ids))
            assert batch["attention_mask"][b, k].tolist() == [1] * len(ids) + [0] * (L - len(ids))


@settings(deadline=None, max_examples=100)
@given(rows=batches)
def test_the_score_mask_covers_the_scored_tokens_of_every_response_and_nothing_else(rows):
    batch = RankedCollator(PAD)(rows)
    for b, row in enumerate(rows):
        P = len(row["prompt_ids"])
        for k in range(batch["ranks"].shape[1]):
            end = P + row["score_lengths"][k] if k < len(row["ranks"]) else 0
            scored = [place for place in range(P, end) if place > 0]  # nothing predicts position 0
            assert batch["score_mask"][b, k].nonzero().flatten().tolist() == scored
            ranked = k < len(row["ranks"]) and row["ranks"][k] > 0 and bool(scored)
            assert batch["rank_mask"][b, k].item() is ranked


@settings(deadline=None, max_examples=100)
@given(rows=batches, mle_target=st.sampled_from(["all", "best", "none"]))
def test_labels_train_exactly_the_chosen_responses(rows, mle_target):
    batch = RankedCollator(PAD, mle_target=mle_target)(rows)
    for b, row in enumerate(rows):
        P, best = len(row["prompt_ids"]), min([r for r in row["ranks"] if r > 0], default=None)
        for k in range(batch["ranks"].shape[1]):
            rank = row["ranks"][k] if k < len(row["ranks"]) else 0
            trained = rank > 0 and (mle_target == "all" or (mle_target == "best" and rank == best))
            labels = row["response_labels"][k] if trained else []
            expected = [-100] * P + labels if trained else []
            assert batch["labels"][b, k].tolist() == expected + [-100] * (batch["labels"].shape[2] - len(expected))


@settings(deadline=None, max_examples=100)
@given(rows=batches)
def test_ranks_scores_and_groups_belong_to_their_responses(rows):
    batch = RankedCollator(PAD)(rows)
    for b, row in enumerate(rows):
        n = len(row["ranks"])
        assert batch["ranks"][b].tolist() == row["ranks"] + [0] * (batch["ranks"].shape[1] - n)
        for k, score in enumerate(row["scores"]):
            value = batch["scores"][b, k].item()
            assert math.isnan(value) if score is None or math.isnan(score) else value == score
        assert batch["scores"][b, n:].isnan().all()
        scored = [ids[:length] for ids, length in zip(row["response_ids"], row["score_lengths"], strict=True)]
        for i in range(n):
            for j in range(n):
                assert (batch["groups"][b, i] == batch["groups"][b, j]).item() is (scored[i] == scored[j])


def test_a_reference_is_trained_in_a_slot_of_its_own_and_never_ranked():
    rows = random_rows(50)
    batch = RankedCollator(PAD, mle_target="reference")(rows)
    assert batch["input_ids"].shape[1] == 6
    for b, row in enumerate(rows):
        n, P = len(row["ranks"]), len(row["prompt_ids"])
        assert batch["labels"][b, n][P:][batch["labels"][b, n][P:] != -100].tolist() == row["reference_ids"]
        others = [k for k in range(6) if k != n]
        assert (batch["labels"][b, others] == -100).all()
        assert batch["ranks"][b, n] == 0 and not batch["rank_mask"][b, n] and not batch["score_mask"][b, n].any()


def test_masks_and_types_are_those_the_docstring_names():
    batch = RankedCollator(PAD)(random_rows(50))
    types = {name: tensor.dtype for name, tensor in batch.items()}
    assert types == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "score_mask": torch.bool,
        "ranks": torch.int64,
        "scores": torch.float32,
        "rank_mask": torch.bool,
        "groups": torch.int64,
        "prompt_lengths": torch.int64,
    }
    assert batch.pop("prompt_lengths").tolist() == [7, 4, 5]
    assert all(tensor.shape[:2] == (3, 5) for tensor in batch.values())


def test_rows_are_read_only():
    rows = [tokenised_row([1, 2], [[3, 4, 5], [6, 7]], [1, 2], [8])]
    before = repr(rows)
    RankedCollator(PAD, mle_target="reference")(rows)
    assert repr(rows) == before


def test_a_missing_reference_and_an_unknown_target_are_named():
    with pytest.raises(InputError, match="mle_target='reference'.*no `reference`.*mle_target='best'"):
        RankedCollator(PAD, mle_target="reference")([tokenised_row([1], [[2, 3]], [1])])
    with pytest.raises(InputError, match="`mle_target` is 'worst', expected one of all, best"):
        RankedCollator(PAD, mle_target="worst")


def test_the_worked_example_is_true():
    assert doctest.testmod(tuna_trl.collator).failed == 0
