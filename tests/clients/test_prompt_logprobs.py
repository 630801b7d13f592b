"""Given responses scored by a server that scores its prompt, and how one that does it wrongly is found out."""

from __future__ import annotations

import math

import pytest
from doubles.openai_server import LOGITS, WORDS, Habits, OpenAIServer

from tuna_trl.clients import retry
from tuna_trl.clients.base import Sampling
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.openai_replies import PromptToken
from tuna_trl.clients.prompt_logprobs import PromptScorer, Unscored, check_scores, response_logprobs
from tuna_trl.errors import BuildError, InputError


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
    return response_logprobs([token.id for token in prompt], full, text, include_eos=True, name="m")


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


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (Habits(wrong_prompts=True), "are wrong"),
        (Habits(scores_prompts=False), "does not score prompts"),
        (Habits(shift=1.0), "do not serve the same model"),
        (Habits(forgets=1), "scored .* tokens of a prompt that it counts as"),
        (Habits(thinks=True), "generation prompt|renders the response"),
        (Habits(prompt_shift=0.5), "are wrong"),
    ],
    ids=["wrong places", "no scores", "another model", "count mismatch", "rewriting template", "other scores"],
)
def test_every_server_is_checked_not_the_first_alone(odd, message):
    with OpenAIServer() as good, OpenAIServer(odd) as bad:
        for endpoints in ([bad.url, good.url], [good.url, bad.url]):
            with pytest.raises(BuildError, match=message):
                PromptScorer(OpenAICompatibleSampler("m", endpoints=endpoints)).check()
        with OpenAIServer() as other:
            PromptScorer(OpenAICompatibleSampler("m", endpoints=[good.url, other.url])).check()


def test_a_server_without_prompt_scores_is_found_out_by_one_token_and_the_ways_out_are_named():
    with OpenAIServer(Habits(scores_prompts=False)) as server:
        with pytest.raises(BuildError, match="vLLM.*--base-url.*llama.cpp.*OpenAI's API"):
            PromptScorer(sampler_at(server)).check()
        assert [body["max_tokens"] for body in server.bodies] == [1]


def test_openai_itself_is_refused_before_anything_is_sent():
    with pytest.raises(InputError, match="OpenAI's API cannot score given responses"):
        PromptScorer(OpenAICompatibleSampler("gpt-4o", "https://api.openai.com/v1", api_key="k"))


def test_what_the_check_takes_is_what_its_replies_say():
    with OpenAIServer() as server:
        scorer = PromptScorer(sampler_at(server))
        scorer.check()
        used = scorer.check_usage
        assert used.cached == 4 * len(server.requests) and used.input > 0 and used.output >= len(server.requests)


def test_reasons_are_told_apart():
    for full, reason in (
        (tokens("<s>", "b", "</s>"), "rewritten"),
        (tokens("<s>", "a", logprob=-math.inf) + tokens("</s>"), "not_finite"),
    ):
        with pytest.raises(Unscored) as found:
            score(tokens("<s>"), full)
        assert found.value.reason == reason


def test_a_cut_response_is_scored_without_an_end():
    with OpenAIServer() as server:
        scorer = PromptScorer(sampler_at(server))
        ids, _ = scorer.start(PROMPT)
        whole, length, _ = scorer.response(PROMPT, ids, "red blue")
        cut, _, _ = scorer.response(PROMPT, ids, "red blue", cut=True)
    assert cut == whole[:-1] and length > len(ids) + len(whole)


def test_the_fingerprint_names_no_server():
    with OpenAIServer() as server:
        scorer = PromptScorer(sampler_at(server, api_key="sk-secret-123456"))
        assert server.url not in repr(scorer.fingerprint()) and "sk-secret" not in repr(vars(scorer))
