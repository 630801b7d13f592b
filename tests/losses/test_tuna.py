"""Laws of Tuna's ranking loss, against the loop oracle."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.errors import InputError
from tuna_trl.losses import bind, ranking_loss, register_ranking_loss
from tuna_trl.losses.tuna import tuna_loss


@st.composite
def batches(draw, dtype=torch.float64):
    B, N = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    logps = -20 * torch.rand(B, N, generator=g, dtype=dtype)
    lengths = torch.randint(1, 30, (B, N), generator=g)
    ranks = torch.randint(1, N + 1, (B, N), generator=g)
    mask = torch.rand(B, N, generator=g) < 0.8
    groups = torch.randint(0, N, (B, N), generator=g) if draw(st.booleans()) else None
    return logps, lengths, ranks, mask, groups


@pytest.mark.parametrize("pair_reduction", ["gap_mean", "sum"])
@settings(max_examples=80, deadline=None)
@given(batch=batches(), margin=st.sampled_from([0.0, 0.1, 1.5]), exponent=st.sampled_from([0.0, 1.0, 2.0]))
def test_value_and_gradient_equal_the_loop_oracle(pair_reduction, batch, margin, exponent):
    logps, lengths, ranks, mask, groups = batch
    kwargs = dict(margin=margin, pair_reduction=pair_reduction, length_exponent=exponent, groups=groups)
    fast, slow = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    values = tuna_loss(fast, lengths, ranks, mask, **kwargs)
    expected = torch.stack(reference.tuna(slow, lengths, ranks, mask, **kwargs))
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    values.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pair_reduction", ["gap_mean", "sum"])
def test_fp32_equals_the_oracle_to_1e_6_where_no_two_dimensions_agree(pair_reduction):
    logps = -10 * torch.rand(3, 5)
    lengths = torch.randint(4, 20, (3, 5))
    ranks = torch.tensor([[1, 2, 3, 4, 5], [1, 1, 3, 4, 4], [2, 1, 3, 3, 5]])
    mask = torch.ones(3, 5, dtype=torch.bool)
    fast, slow = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    tuna_loss(fast, lengths, ranks, mask, pair_reduction=pair_reduction).sum().backward()
    torch.stack(reference.tuna(slow, lengths, ranks, mask, pair_reduction=pair_reduction)).sum().backward()
    assert (fast.grad - slow.grad).abs().max() <= 1e-6
    assert fast.grad.abs().max() > 0


@settings(max_examples=50, deadline=None)
@given(batch=batches(), extra=st.integers(1, 4), garbage=st.sampled_from([0.0, 1e4, float("inf"), float("nan")]))
def test_loss_is_invariant_to_padding_whatever_the_empty_slots_hold(batch, extra, garbage):
    logps, lengths, ranks, mask, groups = batch
    B = len(logps)
    padded = [
        torch.cat([logps, torch.full((B, extra), garbage, dtype=logps.dtype)], 1).requires_grad_(),
        torch.cat([lengths, torch.zeros(B, extra, dtype=lengths.dtype)], 1),
        torch.cat([ranks, torch.ones(B, extra, dtype=ranks.dtype)], 1),
        torch.cat([mask, torch.zeros(B, extra, dtype=torch.bool)], 1),
    ]
    padded_groups = None if groups is None else torch.cat([groups, torch.zeros(B, extra, dtype=groups.dtype)], 1)
    plain = tuna_loss(logps, lengths, ranks, mask, groups=groups)
    values = tuna_loss(*padded, groups=padded_groups)
    torch.testing.assert_close(values, plain)
    values.sum().backward()
    assert torch.isfinite(padded[0].grad).all()
    assert (padded[0].grad[:, logps.shape[1] :] == 0).all()


@settings(max_examples=50, deadline=None)
@given(batch=batches(), seed=st.integers(0, 2**31))
def test_loss_is_invariant_to_the_order_of_the_responses(batch, seed):
    logps, lengths, ranks, mask, groups = batch
    order = torch.randperm(logps.shape[1], generator=torch.Generator().manual_seed(seed))
    shuffled = tuna_loss(
        logps[:, order],
        lengths[:, order],
        ranks[:, order],
        mask[:, order],
        groups=None if groups is None else groups[:, order],
    )
    torch.testing.assert_close(shuffled, tuna_loss(logps, lengths, ranks, mask, groups=groups))


@settings(max_examples=50, deadline=None)
@given(batch=batches())
def test_only_the_order_of_the_ranks_matters_not_their_numbers(batch):
    logps, lengths, ranks, mask, groups = batch
    torch.testing.assert_close(
        tuna_loss(logps, lengths, ranks * 7 + 3, mask, groups=groups),
        tuna_loss(logps, lengths, ranks, mask, groups=groups),
    )


def test_a_shift_of_all_scores_changes_nothing():
    logps, lengths = -10 * torch.rand(3, 5, dtype=torch.float64), torch.randint(4, 20, (3, 5))
    ranks, mask = torch.arange(1, 6).expand(3, 5), torch.ones(3, 5, dtype=torch.bool)
    shifted = logps + 2.5 * lengths
    torch.testing.assert_close(tuna_loss(shifted, lengths, ranks, mask), tuna_loss(logps, lengths, ranks, mask))


def test_gap_means_weigh_pairs_as_the_released_code_does():
    # four untied responses with equal scores: every hinge is margin * gap, each gap's mean is margin * gap
    ranks, mask = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.bool)
    logps, lengths = torch.full((1, 4), -3.0), torch.full((1, 4), 3)
    assert tuna_loss(logps, lengths, ranks, mask, margin=0.1).item() == pytest.approx(0.1 * (1 + 2 + 3))
    by_sum = tuna_loss(logps, lengths, ranks, mask, margin=0.1, pair_reduction="sum").item()
    assert by_sum == pytest.approx(0.1 * (3 * 1 + 2 * 2 + 1 * 3))


@pytest.mark.parametrize(
    "ranks, mask",
    [([1, 1, 1], [True] * 3), ([1, 2, 3], [True, False, False]), ([1, 2, 3], [False] * 3), ([1], [True])],
    ids=["all tied", "one usable", "none usable", "N = 1"],
)
def test_a_row_without_a_pair_is_a_graph_connected_zero(ranks, mask):
    logps = torch.full((1, len(ranks)), -4.0, requires_grad=True)
    loss = tuna_loss(logps, torch.full((1, len(ranks)), 2), torch.tensor([ranks]), torch.tensor([mask]))
    assert loss.tolist() == [0.0]
    loss.sum().backward()
    assert (logps.grad == 0).all()


def test_identical_token_sequences_make_no_pair():
    logps, lengths = torch.tensor([[-4.0, -4.0]]), torch.tensor([[2, 2]])
    ranks, mask = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool)
    assert tuna_loss(logps, lengths, ranks, mask).item() > 0
    assert tuna_loss(logps, lengths, ranks, mask, groups=torch.tensor([[0, 0]])).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_of_1e4_stay_finite_in_every_dtype(dtype):
    logps = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = tuna_loss(logps, torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool())
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logps.grad).all()


def test_an_unknown_loss_or_reduction_or_keyword_is_named_with_a_suggestion():
    with pytest.raises(InputError, match="'tunaa'.*Did you mean 'tuna'"):
        ranking_loss("tunaa")
    with pytest.raises(InputError, match="takes no 'margn'.*Did you mean 'margin'"):
        bind("tuna", {"margn": 1.0}, {})
    with pytest.raises(InputError, match="`pair_reduction` is 'mean'"):
        tuna_loss(
            torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2).bool(), pair_reduction="mean"
        )


def test_a_users_callable_is_bound_and_a_taken_name_is_refused():
    def mine(logps, lengths, ranks, mask, *, targets=None, ref_logps=None, **loss_kwargs):
        return logps.sum(1) * loss_kwargs["weight"]

    assert bind(mine, {"weight": 2.0}, {"margin": 0.1})(torch.ones(1, 3), None, None, None).item() == 6.0
    with pytest.raises(InputError, match="registered already"):
        register_ranking_loss("tuna", mine)
