"""Laws of the chunked head: the numbers of a plain log-softmax, value and gradient, in bounded memory."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny import FAMILIES, random_model
from torch import nn

import tuna_trl.head
from tuna_trl.head import LogitTransform, token_logps


T, D, V = 53, 16, 307  # 53 tokens in chunks of 16: three full ones and a ragged last

TRANSFORMS = {
    "plain": LogitTransform(),
    "scale": LogitTransform(scale=0.25),
    "softcap": LogitTransform(softcap=3.0),
    "scale and softcap": LogitTransform(scale=1.7, softcap=5.0),
}


class Doubled(nn.Linear):
    """A head that is no plain linear layer, as an adapter on it is none."""

    def forward(self, hidden):
        return 2.0 * super().forward(hidden)


def inputs(dtype=torch.float64, *, bias=True, head_class=nn.Linear, frozen=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    head = head_class(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    head.requires_grad_(not frozen)
    hidden = torch.randn(T, D, generator=g).to(dtype).requires_grad_()
    return hidden, torch.randint(0, V, (T,), generator=g), head


def plain(hidden, targets, head, transform):
    """The oracle: all logits at once, in float32 or better."""
    logits = head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if transform.scale != 1.0:
        logits = logits * transform.scale
    if transform.softcap:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return torch.log_softmax(logits, 1)[torch.arange(len(targets)), targets]


def compare(case, transform, *, rtol, atol=0.0, weights=None):
    """Value and every gradient of the chunked head against the oracle, under random weights a token."""
    hidden, targets, head = case
    other_hidden, other_head = hidden.detach().clone().requires_grad_(), copy.deepcopy(head)
    value, expected = (
        token_logps(hidden, targets, head, transform),
        plain(other_hidden, targets, other_head, transform),
    )
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)
    weights = torch.randn(T, dtype=value.dtype)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, other_hidden.grad, rtol=rtol, atol=atol)
    for parameter, other in zip(head.parameters(), other_head.parameters(), strict=True):
        assert (parameter.grad is None) is (other.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=rtol, atol=atol)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(tuna_trl.head, "CHUNK_BYTES", 4 * V * 16)
    monkeypatch.setattr(tuna_trl.head, "KEPT_BYTES", 0)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_value_and_gradient_equal_a_plain_log_softmax(transform, bias, frozen):
    compare(inputs(bias=bias, frozen=frozen), transform, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_fits_the_budget_is_kept_and_gives_what_is_made_again(dtype, transform, bias, monkeypatch):
    made_again, kept = inputs(dtype, bias=bias), inputs(dtype, bias=bias)
    found = []
    for case, budget in ((made_again, 0), (kept, T * V * 8)):
        monkeypatch.setattr(tuna_trl.head, "KEPT_BYTES", budget)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            value = token_logps(case[0], case[1], case[2], transform)
        assert (sum(saved) > T * V) == bool(budget)
        (value * torch.linspace(-1, 1, T)).sum().backward()
        found.append([value, case[0].grad, *(p.grad for p in case[2].parameters())])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-5}[dtype]
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_head_that_is_more_than_its_weight_is_called_not_read(frozen):
    compare(inputs(head_class=Doubled, frozen=frozen), LogitTransform(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["torch", "accelerate"])
def test_a_hook_on_a_frozen_head_counts(kind):
    hidden, targets, head = inputs(frozen=True)
    if kind == "torch":
        head.register_forward_hook(lambda module, args, output: output + torch.arange(V, dtype=output.dtype))
    else:

        class Shift(ModelHook):
            def post_forward(self, module, output):
                return output + torch.arange(V, dtype=output.dtype)

        add_hook_to_module(head, Shift())
    torch.testing.assert_close(
        token_logps(hidden, targets, head, LogitTransform()), plain(hidden, targets, head, LogitTransform())
    )


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_the_size_of_a_chunk_changes_nothing(frozen, monkeypatch):
    values, slopes = [], []
    for tokens in (16, 17, 52, 53, 1000):
        monkeypatch.setattr(tuna_trl.head, "CHUNK_BYTES", 4 * V * tokens)
        hidden, targets, head = inputs(frozen=frozen)
        values.append(token_logps(hidden, targets, head, LogitTransform(softcap=4.0)))
        values[-1].square().sum().backward()
        slopes.append(hidden.grad)
    for value, slope in zip(values, slopes, strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(slope, slopes[0], rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_fp32_equals_the_oracle_to_rounding(frozen):
    compare(inputs(torch.float32, frozen=frozen), LogitTransform(scale=0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_bf16_is_as_near_to_fp32_as_its_eight_bits_allow(frozen):
    # Logits here are below 32, so the bf16 product rounds each by at most 2^-4: the target's, and those in the sum.
    # The log-sum-exp and what follows is float32.
    hidden, targets, head = inputs(torch.bfloat16, frozen=frozen)
    value = token_logps(hidden, targets, head, LogitTransform())
    exact_hidden = hidden.detach().float().requires_grad_()
    exact = plain(exact_hidden, targets, copy.deepcopy(head).float(), LogitTransform())
    assert value.dtype == torch.float32
    assert (value - exact).abs().max() < 2**-3
    value.sum().backward()
    exact.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert (hidden.grad.float() - exact_hidden.grad).abs().max() < 2**-5 * exact_hidden.grad.abs().max()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_under_autocast_the_product_is_bf16_and_the_sum_is_float32(frozen):
    hidden, targets, head = inputs(torch.float32, frozen=frozen)
    other_hidden, other_head = hidden.detach().clone().requires_grad_(), copy.deepcopy(head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            value = token_logps(hidden, targets, head, LogitTransform())
        assert not frozen or {t.dtype for t in kept} == {torch.bfloat16}
        expected = plain(other_hidden, targets, other_head, LogitTransform())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    value.sum().backward()
    expected.sum().backward()
    assert hidden.grad.dtype == torch.float32
    assert (hidden.grad - other_hidden.grad).abs().max() < 2**-6 * other_hidden.grad.abs().max()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("scale", [1e4, 1e-4], ids=["huge", "vanishing"])
def test_extreme_logits_stay_finite(frozen, scale):
    hidden, targets, head = inputs(torch.float32, frozen=frozen)
    value = token_logps(hidden, targets, head, LogitTransform(scale=scale))
    value.sum().backward()
    assert value.isfinite().all() and hidden.grad.isfinite().all() and (value <= 0).all()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_no_tokens_give_an_empty_connected_result(frozen):
    hidden, targets, head = inputs(frozen=frozen)
    value = token_logps(hidden[:0], targets[:0], head, LogitTransform())
    assert value.shape == (0,)
    value.sum().backward()
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("head_class", [nn.Linear, Doubled])
def test_nothing_of_the_size_of_the_logits_is_kept_for_the_backward(frozen, head_class):
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    hidden, targets, head = inputs(torch.float32, frozen=frozen, head_class=head_class)
    own = {parameter.data_ptr() for parameter in head.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logps(hidden, targets, head, LogitTransform(softcap=5.0)).sum()
        assert all(tensor.numel() <= T * D for tensor in kept if tensor.data_ptr() not in own)
        kept.clear()
        plain(hidden, targets, head, LogitTransform(softcap=5.0)).sum()
    assert any(tensor.numel() >= T * V for tensor in kept)  # the oracle keeps them: the hook sees what it should


@pytest.mark.parametrize("family", [*FAMILIES, "phi-tied"])
def test_a_models_config_says_what_it_does_behind_its_head(family):
    model = random_model(family, V)
    ids = torch.randint(0, V, (1, 20))
    hidden = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
    ours = token_logps(hidden, ids[0, 1:], model.get_output_embeddings(), LogitTransform.of(model.config))
    theirs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), 1).gather(1, ids[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scales_are_read_as_each_family_means_them():
    assert LogitTransform.of(random_model("cohere", V).config) == LogitTransform(scale=0.25)
    assert LogitTransform.of(random_model("granite", V).config) == LogitTransform(scale=0.25)  # divides by 4
    assert LogitTransform.of(random_model("gemma2", V).config) == LogitTransform(softcap=5.0)
    assert LogitTransform.of(random_model("qwen3", V).config) == LogitTransform()
