"""Branches that share their prompt's keys: against plain softmax loops, a repeated cache, models that do not fit."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, random_model
from transformers.cache_utils import DynamicLayer

from tuna_trl.clients import kv_cache, local
from tuna_trl.clients.base import Sampling
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.layouts import choose_layout


PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("Hi", "the weather in the north, then in the south", "a", "Why is the sea salt?")
]


def seeds_for(prompts, n, start=0):
    return [[start + 1000 * i + k for k in range(n)] for i in range(len(prompts))]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attention_over_prompt_and_branch_is_one_softmax_over_both(data):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), label="tokens of each prompt")
    repeats, groups = data.draw(st.integers(1, 3), label="branches"), data.draw(st.integers(1, 3), label="G")
    longest, kv_heads, size = max(lengths), 2, 4
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="seed"))
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64) * 2  # noqa: E731
    layer = DynamicLayer()
    layer.update(draw(len(lengths), kv_heads, longest, size), draw(len(lengths), kv_heads, longest, size))
    keys, values = layer.keys, layer.values
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    branches = kv_cache.Branches(SimpleNamespace(layers=[layer]), mask, repeats, room=3)
    own = {row: [] for row in range(len(lengths) * repeats)}  # (key, value) of every token of a branch
    rows = list(own)
    for _ in range(3):
        new_keys, new_values = draw(len(rows), kv_heads, 1, size), draw(len(rows), kv_heads, 1, size)
        query = draw(len(rows), kv_heads * groups, size)
        branches.layers[0].update(new_keys, new_values)
        found = branches.attend(branches.layers[0], query)
        for k, row in enumerate(rows):
            own[row].append((new_keys[k, :, 0], new_values[k, :, 0]))
            prompt, real = row // repeats, mask[row // repeats].bool()
            for head in range(kv_heads * groups):
                kv = head // groups
                seen = torch.cat([keys[prompt, kv, real], torch.stack([key[kv] for key, _ in own[row]])])
                said = torch.cat([values[prompt, kv, real], torch.stack([value[kv] for _, value in own[row]])])
                expected = (seen @ query[k, head]).softmax(0) @ said
                torch.testing.assert_close(found[k, head], expected, atol=1e-12, rtol=1e-9)
        kept = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True), label="kept")
        branches.keep(torch.tensor(sorted(kept)))
        rows = [rows[k] for k in sorted(kept)]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_share_whose_layers_see_all_and_add_no_terms(family, tiny_tokenizer):
    follows = kv_cache.follows_branches(random_model(family, len(tiny_tokenizer)))
    assert follows == (family in ("phi", "cohere", "granite", "qwen3"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_llama_shares_in_every_precision(dtype, tiny_llama):
    assert kv_cache.follows_branches(tiny_llama.to(dtype))


@pytest.mark.parametrize("fault", ["no prompt", "padding seen", "another branch's keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_would_attend_to_something_else_is_found_out(fault, dtype, tiny_llama, monkeypatch):
    attend = kv_cache.Branches.attend

    def faulty(self, layer, query):
        if fault == "no prompt":
            grouped = query.view(len(query), layer.keys.shape[1], -1, query.shape[-1])
            result, _ = kv_cache._softmax_product(grouped, layer.keys, layer.values, None)
            return result.reshape(query.shape)
        self, layer = copy.copy(), copy.copy(layer)
        if fault == "padding seen":
            self._hidden = None
        else:
            layer.keys = layer.keys.flip(0)
        return attend(layer, query)

    monkeypatch.setattr(kv_cache.Branches, "attend", faulty)
    assert not kv_cache.follows_branches(tiny_llama.to(dtype))


def test_samples_are_those_of_a_cache_that_repeats_the_prompt(tiny_llama, tiny_tokenizer):
    model = tiny_llama.double()
    model.generation_config.eos_token_id = list(range(40, 60))
    results = []
    for shares in (None, False):
        sampler = TransformersSampler(model, tiny_tokenizer)
        sampler._shares = shares
        results.append(sampler.sample(PROMPTS, 5, Sampling(max_new_tokens=40), seeds=seeds_for(PROMPTS, 5, start=7)))
        assert sampler._shares is (shares is None)
    for shared, repeated in zip(sum(results[0], []), sum(results[1], []), strict=True):
        assert (shared.text, shared.finish_reason) == (repeated.text, repeated.finish_reason)
        assert shared.token_logprobs == pytest.approx(repeated.token_logprobs, abs=1e-10)


def test_the_attention_is_as_before_also_after_an_error(tiny_llama, tiny_tokenizer, monkeypatch):
    sampler = TransformersSampler(tiny_llama, tiny_tokenizer)
    own = sampler.model.config._attn_implementation
    seen = []
    monkeypatch.setattr(
        local, "_append", lambda *args: seen.append(sampler.model.config._attn_implementation) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=3), seeds=seeds_for(PROMPTS, 2))
    assert seen == [kv_cache.IMPLEMENTATION]
    assert sampler.model.config._attn_implementation == own


def test_a_model_taught_to_score_shares_and_has_the_same_fingerprint(tiny_llama, tiny_tokenizer):
    sampler = TransformersSampler(tiny_llama, tiny_tokenizer)
    before = sampler.fingerprint()
    assert choose_layout(tiny_llama) == "shared_prompt"
    assert sampler.fingerprint() == before
    drawn = sampler.sample(PROMPTS, 2, Sampling(max_new_tokens=4), seeds=seeds_for(PROMPTS, 2))
    assert sampler._shares and len(drawn) == len(PROMPTS)
    assert tiny_llama.config._attn_implementation == "tuna_sdpa"
