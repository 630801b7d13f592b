"""Given responses scored by a server that scores its prompt, and how one that does it wrongly is found out."""

from __future__ import annotations

import math

import pytest
from doubles.openai_server import LOGITS, WORDS, Habits, OpenAIServer

from tuna_trl.clients import retry
from tuna_trl.clients.base import Sampling
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.openai_replies import PromptToken
from tuna_trl.clients.prompt_logprobs import check_scores, response_logprobs
from tuna_trl.errors import BuildError


PROMPT = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)


def sampler_at(server, **options):
    return OpenAICompatibleSampler("m", server.url, **options)


def logprob(word: str) -> float:
    return LOGITS[WORDS.index(word)] - math.log(sum(map(math.exp, LOGITS)))


def test_a_given_response_has_the_log_probs_of_its_tokens_and_of_its_end():
    with OpenAIServer() as server:
        (scored, empty) = sampler_at(server).score(PROMPT, ["red blue", ""])
        assert len(server.requests) == 3
        (without,) = sampler_at(server, include_eos=False).score(PROMPT, ["red blue"])
    assert scored == pytest.approx((logprob(" red"), logprob(" blue"), logprob(WORDS[-1])))
    assert without == scored[:-1] and empty == scored[-1:]


def test_a_drawn_text_scores_as_it_did_when_it_was_drawn():
    with OpenAIServer() as server:
        sampler = sampler_at(server)
        compared = 0
        for seed in range(12):
            (drawn,) = sampler.request(PROMPT, 1, Sampling(max_new_tokens=20), seed=seed)
            if drawn.finish_reason == "stop" and "\n" not in drawn.text and len(drawn.text.split()) > 1:
                (scored,) = sampler.score(PROMPT, [drawn.text])
                assert sum(scored) == pytest.approx(sum(drawn.token_logprobs))
                compared += 1
        assert compared >= 3


def test_blanks_that_the_template_keeps_are_tokens_of_the_response():
    with OpenAIServer(Habits(trims=False)) as server:
        (scored,) = sampler_at(server).score(PROMPT, ["red\n"])
    assert scored == pytest.approx((logprob(" red"), logprob("\n"), logprob(WORDS[-1])))


def test_a_server_that_scores_as_it_draws_passes_the_check():
    with OpenAIServer() as server:
        sampler_at(server).check_scoring()
        assert 4 <= len(server.requests) <= 12


def test_a_server_that_scores_no_prompts_is_found_out():
    with OpenAIServer(Habits(scores_prompts=False)) as server:
        with pytest.raises(BuildError, match="does not score prompts.*local teacher"):
            sampler_at(server).check_scoring()


def test_a_server_that_scores_the_wrong_places_is_found_out():
    with OpenAIServer(Habits(wrong_prompts=True)) as server:
        with pytest.raises(BuildError, match="are wrong"):
            sampler_at(server).check_scoring()


def test_a_template_that_rewrites_the_response_is_found_out():
    with OpenAIServer(Habits(thinks=True)) as server:
        with pytest.raises(BuildError, match="renders the response 'red' as '<think>"):
            sampler_at(server).score(PROMPT, ["red"])


def tokens(*pieces, logprob=-1.0):
    return [PromptToken(hash(piece) & 0xFFFF, piece.encode(), logprob) for piece in pieces]


def score(prompt, full, text="a"):
    return response_logprobs(prompt, full, text, include_eos=True, name="m")


def test_a_response_that_does_not_follow_the_generation_prompt_is_refused():
    with pytest.raises(BuildError, match="generation prompt"):
        score(tokens("<s>", "x"), tokens("<s>", "y", "a", "</s>"))


def test_a_response_without_an_end_is_refused():
    assert score(tokens("<s>"), tokens("<s>", "a", "</s>", "\n")) == (-1.0, -1.0)
    with pytest.raises(BuildError, match="has no end"):
        score(tokens("<s>"), tokens("<s>", "a"))


@pytest.mark.parametrize("bad", [-9999.0, -math.inf, math.nan])
def test_a_place_without_a_number_is_refused(bad):
    with pytest.raises(BuildError, match="no number"):
        score(tokens("<s>"), tokens("<s>", "a", logprob=bad) + tokens("</s>"))


@pytest.mark.parametrize(
    ("scored", "garbled", "fine"), [(-1.1, -3.0, True), (-1.3, -3.0, False), (-1.0, -1.0, False), (-1.0, -0.5, False)]
)
def test_the_self_check_wants_the_same_score_and_a_better_one_than_backwards(scored, garbled, fine):
    if fine:
        return check_scores([-1.0, -1.0], [scored] * 2, [garbled] * 2, "m")
    with pytest.raises(BuildError, match="are wrong"):
        check_scores([-1.0, -1.0], [scored] * 2, [garbled] * 2, "m")
