"""Laws of packing: every token once, at its own position, and the plan says who sees whom as the definition does."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import random_rows, tokenised_row, tokenised_rows

from tuna_trl import RankedCollator
from tuna_trl.packing import AttentionPlan, Group, pack


COLLATOR = RankedCollator(pad_token_id=0)
SHAPES = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4)), max_size=3)


def plan_of(shapes) -> AttentionPlan:
    """The plan of instructions given as `(prompt length, [response lengths])`."""
    groups, end = [], 0
    for prompt, (first, *others) in shapes:
        start, end, branches = end, end + prompt + first, []
        for length in others:
            branches.append((end, length))
            end += length
        groups.append(Group(start, prompt, prompt + first, tuple(branches)))
    return AttentionPlan(tuple(groups), end)


def as_mask(seen) -> torch.Tensor:
    mask = torch.zeros(len(seen), len(seen), dtype=torch.bool)
    for t, keys in enumerate(seen):
        mask[t, keys] = True
    return mask


@given(st.lists(tokenised_rows(), min_size=1, max_size=4))
def test_every_token_stands_in_the_row_at_its_own_position(rows):
    batch = COLLATOR(rows)
    packed = pack(batch)
    flat, mask = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
    row, place = mask.nonzero(as_tuple=True)
    found = packed.place(row, place)
    assert torch.equal(packed.input_ids[0, found], flat[row, place])
    assert torch.equal(packed.position_ids[0, found], place)


@given(st.lists(tokenised_rows(), min_size=1, max_size=4))
def test_a_row_has_every_prompt_once_and_no_padding(rows):
    packed = pack(COLLATOR(rows))
    tokens = sum(len(row["prompt_ids"]) + sum(map(len, row["response_ids"])) for row in rows)
    assert packed.input_ids.shape == packed.position_ids.shape == (1, max(tokens, 1))
    assert packed.plan.length == packed.input_ids.shape[1]


def test_the_plan_of_a_batch_is_its_prompts_and_responses():
    rows = random_rows(50)
    packed = pack(COLLATOR(rows))
    shapes = [(len(row["prompt_ids"]), [len(ids) for ids in row["response_ids"]]) for row in rows]
    assert packed.plan.groups == plan_of(shapes).groups
    assert sum(packed.plan.lengths()[0]) == packed.plan.length


def test_one_response_is_an_ordinary_causal_sequence():
    (group,) = pack(COLLATOR([tokenised_row([1, 2, 3], [[4, 5]], [1])])).plan.groups
    assert group == Group(start=0, prompt=3, trunk=5, branches=())


def test_an_empty_batch_has_one_token():
    packed = pack(COLLATOR([tokenised_row([], [[]], [0]), tokenised_row([], [[], []], [0, 0])]))
    assert packed.input_ids.shape == (1, 1) and packed.plan.groups == (Group(0, 0, 1, ()),)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@given(SHAPES.filter(len))
def test_the_block_mask_is_the_definition(window, shapes):
    mask = plan_of(shapes).dense_mask(window, torch.device("cpu"))
    assert torch.equal(mask[0, 0], as_mask(reference.visible_keys(shapes, window)))


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@given(prompt=st.integers(0, 6), lengths=st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_the_mask_of_a_branch_is_its_part_of_the_block_mask(window, prompt, lengths):
    plan = plan_of([(prompt, lengths)])
    whole = as_mask(reference.visible_keys([(prompt, lengths)], window))
    for start, length in plan.groups[0].branches:
        keys = [*range(prompt), *range(start, start + length)]
        own = plan.branch_mask(prompt, length, window, torch.device("cpu"))
        assert torch.equal(own, whole[start : start + length][:, keys])


@given(SHAPES.filter(len))
def test_gathered_keys_are_what_the_last_token_of_each_segment_sees(shapes):
    plan = plan_of(shapes)
    index, cu_q, cu_k, max_q, max_k = plan.gathered_keys(torch.device("cpu"))
    seen = reference.visible_keys(shapes)
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q[-1] == plan.length and cu_k[-1] == len(index)
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    for s in range(len(cu_q) - 1):
        assert index[cu_k[s] : cu_k[s + 1]].tolist() == seen[int(cu_q[s + 1]) - 1]


def test_a_prompt_that_its_responses_do_not_share_is_named():
    batch = COLLATOR([tokenised_row([1, 2], [[3], [4, 5]], [1, 2]), tokenised_row([1, 2, 3], [[3], [4]], [1, 2])])
    longer = {**batch, "prompt_lengths": torch.tensor([2, 4])}
    with pytest.raises(ValueError, match="`prompt_lengths` is 4 for instruction 1 .*do not begin with the same"):
        pack(longer)
    with pytest.raises(ValueError, match='`prompt_lengths` is 9 for instruction 0.*`batch_layout="rows"`'):
        pack({**batch, "prompt_lengths": torch.tensor([9, 3])})
