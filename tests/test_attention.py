"""Laws of planned attention: the definition token by token, value and gradient; without a plan, what it was before."""

from __future__ import annotations

import pytest
import reference
import torch
from test_packing import plan_of
from tiny import random_llama, random_model

import tuna_trl.attention
from tuna_trl.attention import ScoreTerms, _by_flash_attn, _by_torch_varlen, planned_attention, segmented


H, KV, D = 6, 2, 5
SHAPES = [(7, [4, 1, 3]), (0, [2, 6]), (2, [1]), (1, [3, 3])]
SEEN = {window: reference.visible_keys(SHAPES, window) for window in (None, 2, 3, 8, 50)}
T = len(SEEN[None])
TERMS = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.randn(H, dtype=torch.float64, generator=torch.Generator().manual_seed(1))},
}


def tensors(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, T, D, generator=g).to(dtype).requires_grad_() for heads in (H, KV, KV)]


def expected(query, key, value, window, **terms):
    return reference.attention(query[0], key[0], value[0], SEEN[window], scale=0.4, **terms).transpose(0, 1)[None]


def compare(found, oracle, inputs, others):
    torch.testing.assert_close(found, oracle, rtol=1e-12, atol=1e-12)
    weights = torch.randn(oracle.shape, dtype=oracle.dtype, generator=torch.Generator().manual_seed(3))
    for loss in ((found * weights).sum(), (oracle * weights).sum()):
        loss.backward()
    for tensor, other in zip(inputs, others, strict=True):
        assert other.grad.abs().max() > 0.1
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", SEEN)
@pytest.mark.parametrize("terms", TERMS)
def test_segments_are_the_definition_in_value_and_gradient(terms, window):
    inputs, others = tensors(), tensors()
    found = segmented(*inputs, plan_of(SHAPES), ScoreTerms(scale=0.4, **TERMS[terms]), window)
    compare(found, expected(*others, window, **TERMS[terms]), inputs, others)


def varlen(query, key, value, cu_q, cu_k, *, scale, left):
    """What a variable-length kernel computes: per segment, causal from the last key backwards, `left` keys at most."""
    pieces = []
    for s in range(len(cu_q) - 1):
        q, k = query[cu_q[s] : cu_q[s + 1]], key[cu_k[s] : cu_k[s + 1]]
        v = value[cu_k[s] : cu_k[s + 1]]
        ahead = len(k) - len(q)
        seen = [[j for j in range(t + ahead + 1) if left < 0 or t + ahead - j <= left] for t in range(len(q))]
        heads_first = [x.transpose(0, 1) for x in (q, k, v)]
        pieces.append(reference.attention(*heads_first, seen, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", SEEN)
@pytest.mark.parametrize("kernel", ["torch", "flash_attn"])
def test_the_call_of_a_varlen_kernel_means_what_the_segments_mean(kernel, window, monkeypatch):
    def torch_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert enable_gqa and window_size[1] == 0 and max_q >= 1 and max_k >= max_q
        return varlen(query, key, value, cu_q, cu_k, scale=scale, left=window_size[0])

    def flash_attn(query, key, value, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, window_size, **kwargs):
        assert causal and kwargs["dropout_p"] == 0.0 and kwargs["softcap"] == 0.0
        left = window_size[0]
        return varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, left=left)

    monkeypatch.setattr(tuna_trl.attention, "_torch_varlen", lambda: torch_varlen)
    monkeypatch.setattr(tuna_trl.attention, "_flash_attn", lambda: flash_attn)
    call = {"torch": _by_torch_varlen, "flash_attn": _by_flash_attn}[kernel]
    inputs, others = tensors(), tensors()
    found = call(*inputs, plan_of(SHAPES), 0.4, 0.0, window, None).unsqueeze(0)
    compare(found, expected(*others, window), inputs, others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length kernels need a CUDA device")
@pytest.mark.parametrize("window", [None, 3])
def test_the_varlen_kernel_of_a_gpu_gives_what_the_segments_give(window):
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, T, 64, generator=g).cuda().bfloat16() for heads in (H, KV, KV))
    plan = plan_of(SHAPES)
    assert tuna_trl.attention._varlen_kernel(query, value, 0.0, None) is not None
    found, _ = planned_attention(torch.nn.Module(), query, key, value, None, plan=plan, sliding_window=window)
    exact = segmented(query.double(), key.double(), value.double(), plan, ScoreTerms(scale=64**-0.5), window)
    slow = segmented(query, key, value, plan, ScoreTerms(scale=64**-0.5), window)
    assert (found - exact).abs().max() <= 2 * (slow - exact).abs().max() + 1e-2


def test_a_term_that_is_not_known_and_a_row_that_is_not_the_plans_are_refused():
    query, key, value = tensors()
    plan = plan_of(SHAPES)
    with pytest.raises(NotImplementedError, match="Module uses position_bias"):
        planned_attention(torch.nn.Module(), query, key, value, None, plan=plan, position_bias=query)
    with pytest.raises(NotImplementedError, match=r"attends over \(1, 6, 20, 5\)"):
        planned_attention(torch.nn.Module(), query[:, :, :20], key, value, None, plan=plan)
    assert plan.calls == 0
    planned_attention(torch.nn.Module(), query, key, value, None, plan=plan, sliding_window=4)
    assert plan.calls == 1 and plan.windows == [4]


@pytest.mark.parametrize("own, planned", [("sdpa", "tuna_sdpa"), ("eager", "tuna_eager")])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_without_a_plan_padded_forwards_and_generation_are_what_they_were(family, own, planned):
    if (family, own) == ("gemma2", "sdpa"):
        pytest.skip("transformers refuses sdpa for a model with softcapping")
    model = random_llama(101) if family == "llama" else random_model(family, 101)
    model.set_attn_implementation(own)
    ids = torch.randint(3, 101, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[2, :9] = 0, 0  # padded on the left, as for generation
    logits = model(input_ids=ids, attention_mask=mask).logits
    words = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    model.set_attn_implementation(planned)
    assert model.config._attn_implementation == planned
    present = mask.bool()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits[present], logits[present])
    again = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(again, words)


def test_under_autocast_the_kernels_get_16_bit_queries():
    query, key, value = tensors(torch.float32)
    exact, _ = planned_attention(torch.nn.Module(), query, key, value, None, plan=plan_of(SHAPES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = planned_attention(torch.nn.Module(), query, key, value, None, plan=plan_of(SHAPES))
    assert found.dtype == torch.bfloat16
    assert 0 < (found - exact).abs().max() < 0.05
