"""Drawing one token: against a Python loop over the distribution, transformers' warpers, and a chi-square test."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tuna_trl.clients.base import Sampling
from tuna_trl.clients.drawing import draw_tokens


def warped(logits, sampling):
    """The distribution `generate` draws from, by transformers' own processors."""
    scores = logits.clone()
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


@settings(max_examples=200, deadline=None)
@given(
    vocab=st.integers(1, 900),
    seed=st.integers(0, 2**32),
    u=st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_the_token_is_where_the_cumulative_distribution_passes_u(vocab, seed, u, scale):
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    tokens, logprobs = draw_tokens(logits, torch.tensor([u], dtype=torch.float64), Sampling())
    token, below = int(tokens), 0.0
    probs = logits[0].softmax(-1).tolist()
    below = math.fsum(probs[:token])
    assert below - 1e-12 <= u <= below + probs[token] + 1e-12
    assert probs[token] > 0
    assert float(logprobs) == pytest.approx(math.log(probs[token]), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    vocab=st.integers(2, 600),
    seed=st.integers(0, 2**32),
    u=st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_a_token_the_model_forbids_is_never_drawn(vocab, seed, u):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, vocab, generator=generator)
    forbidden = torch.rand(4, vocab, generator=generator) < 0.9
    forbidden[:, seed % vocab] = False
    tokens, logprobs = draw_tokens(logits.masked_fill(forbidden, -torch.inf), torch.full((4,), u).double(), Sampling())
    assert not forbidden.gather(1, tokens[:, None]).any() and logprobs.isfinite().all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.6), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(1.4, 0.85, 6)],
    ids=str,
)
@pytest.mark.parametrize("vocab", [9, 300])
def test_frequencies_are_those_of_transformers_warpers(sampling, vocab):
    n = 20_000
    torch.manual_seed(7)
    logits = torch.randn(1, vocab) * 1.5
    probs = warped(logits, sampling)[0].double()
    tokens, _ = draw_tokens(logits.expand(n, -1), torch.rand(n, dtype=torch.float64), sampling)
    counts = torch.bincount(tokens, minlength=vocab)
    assert not counts[probs == 0].any()
    common = probs * n >= 5
    rest = torch.stack([counts[~common].sum().double(), probs[~common].sum() * n])
    cells = torch.stack([counts[common].double(), probs[common] * n])
    if rest[1] > 0:
        cells = torch.cat([cells, rest[:, None]], 1)
    assert chisquare(cells[0], cells[1] * cells[0].sum() / cells[1].sum()).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_what_can_be_drawn_is_what_transformers_would_draw(seed, temperature, top_k, top_p):
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sampling = Sampling(temperature, top_p, top_k)
    allowed = set(warped(logits, sampling)[0].nonzero()[:, 0].tolist())
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    found, logprobs = draw_tokens(logits.expand(4000, -1), grid, sampling)
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[found])  # the model's own, whatever was drawn from
    assert set(found.tolist()) <= allowed
    probs = warped(logits, sampling)[0]
    assert {k for k in allowed if probs[k] > 1e-3} <= set(found.tolist())


def test_temperature_zero_takes_the_most_probable():
    logits = torch.randn(5, 700)
    tokens, logprobs = draw_tokens(logits, torch.zeros(5).double(), Sampling(temperature=0.0, top_p=0.5))
    assert tokens.equal(logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).max(-1).values)


@pytest.mark.parametrize("vocab", [5, 256, 300])
def test_a_row_of_nan_has_a_nan_log_prob_and_harms_no_other(vocab):
    logits = torch.randn(3, vocab)
    uniforms = torch.tensor([0.2, 0.5, 0.8]).double()
    clean = draw_tokens(logits, uniforms, Sampling())
    logits[1] = torch.nan
    tokens, logprobs = draw_tokens(logits, uniforms, Sampling())
    assert 0 <= int(tokens[1]) < vocab and logprobs[1].isnan()
    assert tokens[[0, 2]].equal(clean[0][[0, 2]]) and logprobs[[0, 2]].equal(clean[1][[0, 2]])


def test_the_arguments_are_left_alone():
    logits, uniforms = torch.randn(3, 300), torch.rand(3).double()
    copies = logits.clone(), uniforms.clone()
    draw_tokens(logits, uniforms, Sampling(0.7, 0.9, 5))
    draw_tokens(logits, uniforms, Sampling())
    assert logits.equal(copies[0]) and uniforms.equal(copies[1])
