"""What a ranking would take: counted without asking a server, probed on a local teacher, then gone on from."""

from __future__ import annotations

import math

import pytest
from doubles.openai_server import OpenAIServer
from doubles.scorers import HashScorer
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.rank import RankConfig, rank_given
from tuna_trl.build.rank_dry_run import rank_dry_run
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.prompt_logprobs import PromptScorer


ROWS = [{"prompt": f"Question {i}?", "responses": ["red blue", "blue", f"grey {i}", "red blue", ""]} for i in range(9)]


def quiet(**values):
    return RankConfig(**{"show_progress": False, **values})


def test_a_server_is_asked_nothing_and_then_exactly_what_was_said(tmp_path):
    with OpenAIServer() as server:
        scorer = PromptScorer(OpenAICompatibleSampler("m", server.url))
        config = quiet(journal=tmp_path / "j")
        ahead = rank_dry_run(ROWS * 2, scorer, config)
        assert server.requests == []
        assert (ahead.prompts, ahead.responses, ahead.known) == (18, 90, 90 - 27)
        assert ahead.seconds is None and ahead.cost.high == 0
        rank_given(ROWS[:4], scorer, config)
        rest = rank_dry_run(ROWS * 2, scorer, config)
        assert rest.output_tokens.expected == 5 * 4 < ahead.output_tokens.expected == 9 * 4
        before = len(server.requests)
        rank_given(ROWS * 2, PromptScorer(OpenAICompatibleSampler("m", server.url)), config)
        rows = [body for body in server.bodies[before:] if "kitchen" not in body["messages"][0]["content"]]
        assert len(rows) == 20
        done = rank_dry_run(ROWS * 2, scorer, config)
        assert (done.known, done.input_tokens.high, done.seconds.high) == (90, 0, 0)


def test_a_price_that_is_not_known_is_unknown_and_a_known_one_bounds_what_is_spent(tmp_path):
    (tmp_path / "p.yaml").write_text("date: 2026-11-01\nmodels:\n  m: {input: 3.0, output: 9.0}\n")
    with OpenAIServer() as server:
        unknown = PromptScorer(OpenAICompatibleSampler("m", server.url, paid=True))
        assert rank_dry_run(ROWS, unknown, quiet()).cost is None
        assert "price          unknown" in rank_dry_run(ROWS, unknown, quiet()).table()
        known = PromptScorer(OpenAICompatibleSampler("m", server.url, paid=True, prices=tmp_path / "p.yaml"))
        cost = rank_dry_run(ROWS, known, quiet()).cost
        assert 0 < cost.low < cost.expected < cost.high < 1
        rank_given(ROWS, known, quiet(journal=tmp_path / "j", max_cost=cost.high + 0.1))


@settings(max_examples=15, deadline=None)
@given(done=st.integers(0, 9), bucket=st.integers(1, 5))
def test_a_local_teacher_is_probed_once_and_the_run_goes_on_from_it(done, bucket, tmp_path_factory):
    config = quiet(journal=tmp_path_factory.mktemp("j") / "j", bucket_size=bucket, window_size=5)
    if done:
        rank_given(ROWS[:done], HashScorer(), config)
    scorer = HashScorer()
    ahead = rank_dry_run(ROWS, scorer, config)
    assert len(scorer.calls) <= 1 and (ahead.prompts, ahead.responses) == (9, 45)
    assert 0 <= ahead.known <= 45 and math.isfinite(ahead.seconds.high)
    rank_given(ROWS, scorer, config)
    again = rank_dry_run(ROWS, HashScorer(), config)
    assert again.known == 45 and again.seconds.high == 0 and again.input_tokens.expected == 0


def test_the_first_probe_is_the_middle_of_the_lengths():
    scorer = HashScorer()
    rank_dry_run(ROWS, scorer, quiet(bucket_size=3))
    assert len(scorer.calls) == 1 and len(scorer.calls[0]) == 3


@pytest.mark.parametrize("rows", [[{"prompt": "a", "responses": []}], []])
def test_rows_that_cannot_be_read_are_named(rows):
    with pytest.raises(ValueError, match="row 0|no rows"):
        rank_dry_run(rows, HashScorer(), quiet())
