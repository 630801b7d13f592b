"""The teacher behind a server, against a loopback one, through the real SDK: what is asked and what comes back."""

from __future__ import annotations

import math
import threading

import pytest
from doubles.openai_server import (
    END,
    Habits,
    OpenAIServer,
    choice,
    completion,
    token,
)

from tuna_trl.build.teacher import sum_logprob
from tuna_trl.clients.base import RemoteSampler, Sampling, Usage
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.errors import BuildError, InputError


PROMPT = [{"role": "user", "content": "Name a colour."}]
PLAIN = Sampling(max_new_tokens=12)
WARM = Sampling(temperature=0.7, max_new_tokens=12)


def sampler_at(server, **options):
    return OpenAICompatibleSampler("m", server.url, **options)


# ---- What is asked for and what comes back ----


def test_it_is_a_remote_sampler_and_a_local_server_needs_no_key(server):
    sampler = sampler_at(server)
    assert isinstance(sampler, RemoteSampler)
    assert (sampler.name, sampler.paid, sampler.include_eos) == ("m", False, True)
    assert sampler.check(PLAIN, 4) == 4
    assert len(server.requests) == 1 and server.requests[0][0]["authorization"] == "Bearer none"


def test_the_request_asks_for_the_models_own_distribution(server):
    sampler_at(server).request(PROMPT, 3, PLAIN, seed=2**62 + 17)
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": PROMPT,
        "n": 3,
        "seed": 17,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 1,
    }


def test_top_k_goes_into_the_extra_body_only_when_it_cuts(server):
    sampler = sampler_at(server, extra_body={"min_p": 0, "chat_template_kwargs": {"enable_thinking": False}})
    sampler.request(PROMPT, 1, PLAIN, seed=1)
    sampler.request(PROMPT, 1, Sampling(top_k=20), seed=1)
    first, last = server.bodies[0], server.bodies[-1]
    assert "top_k" not in first and last["top_k"] == 20
    assert first["min_p"] == last["min_p"] == 0 and first["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_system_message_is_for_prompts_without_their_own(server):
    sampler = sampler_at(server, system="Be brief.")
    own = [{"role": "system", "content": "Be long."}, *PROMPT]
    sampler.request(PROMPT, 1, PLAIN, seed=1)
    sampler.request(own, 1, PLAIN, seed=1)
    assert [body["messages"][0]["content"] for body in server.bodies] == ["Be brief.", "Be long."]
    assert PROMPT == [{"role": "user", "content": "Name a colour."}]


@pytest.mark.parametrize("end_token", ["named", "empty"])
@pytest.mark.parametrize("knows_bytes", [True, False])
def test_every_token_is_scored_once_whatever_way_the_server_writes_it(end_token, knows_bytes):
    with OpenAIServer(Habits(end_token=end_token, knows_bytes=knows_bytes)) as server:
        with_end, without = sampler_at(server), sampler_at(server, include_eos=False)
        seen = set()
        for seed in range(20):
            for a, b in zip(
                with_end.request(PROMPT, 2, PLAIN, seed=seed),
                without.request(PROMPT, 2, PLAIN, seed=seed),
                strict=True,
            ):
                assert a.text == b.text and a.finish_reason == b.finish_reason
                stopped = a.finish_reason == "stop"
                assert len(a.token_logprobs) == len(b.token_logprobs) + stopped
                assert a.token_logprobs[: len(b.token_logprobs)] == b.token_logprobs
                assert sum_logprob(a) is not None and all(value < 0 for value in a.token_logprobs)
                assert stopped or a.usage.output >= PLAIN.max_new_tokens
                seen.add((a.finish_reason, "🙂" in a.text))
        assert {("stop", True), ("stop", False)} <= seen


def test_the_rule_for_the_end_token_gives_two_servers_the_same_scores():
    scores = []
    for end_token in ("named", "empty", "absent"):
        with OpenAIServer(Habits(end_token=end_token)) as server:
            sampler = sampler_at(server, include_eos=False)
            scores.append(
                [s.token_logprobs for seed in range(9) for s in sampler.request(PROMPT, 2, PLAIN, seed=seed)]
            )
    assert scores[0] == scores[1] == scores[2]


def test_the_same_seed_gives_the_same_samples_and_another_others(server):
    sampler = sampler_at(server)
    long = Sampling(max_new_tokens=40)
    sets = [[s.text for s in sampler.request(PROMPT, 3, long, seed=seed)] for seed in (1, 2, 1)]
    assert sets[0] == sets[2] != sets[1] and len(set(sets[0])) > 1


def test_samples_stand_in_the_servers_numbering(server):
    server.script(
        completion(*[choice([token(t, -1.0), token(END, -1.0)], t, index=k) for k, t in ((1, "b"), (0, "a"))])
    )
    assert [s.text for s in sampler_at(server).request(PROMPT, 2, PLAIN, seed=1)] == ["a", "b"]


@pytest.mark.parametrize("habits", [Habits(), Habits(usage_of_one=True)], ids=["all", "of one choice"])
def test_usage_adds_up_to_what_was_used(habits):
    with OpenAIServer(habits) as server:
        samples = sampler_at(server).request(PROMPT, 4, PLAIN, seed=3)
    total = sum((sample.usage for sample in samples), Usage())
    assert (total.input, total.cached) == (7, 4)
    assert total.output == sum(len(sample.token_logprobs) for sample in samples)


def test_hidden_reasoning_is_billed_in_full(server):
    used = {"prompt_tokens": 5, "completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 80}}
    server.script(completion(choice([token("a", -1.0), token(END, -1.0)], "a"), usage=used))
    (sample,) = sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
    assert sample.usage == Usage(input=5, output=90, thinking=80)


# ---- The check before the run ----


def test_a_server_that_ignores_logprobs_is_found_out_in_one_request():
    with OpenAIServer(Habits(knows_logprobs=False)) as server:
        with pytest.raises(BuildError, match="gave no log-probs"):
            sampler_at(server).check(PLAIN, 4)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("habits", "requests"),
    [(Habits(knows_n=False), 1), (Habits(most_n=3), 2), (Habits(copies=True), 1)],
    ids=["ignores n", "refuses n", "copies"],
)
def test_a_server_without_n_is_asked_for_one_sample_at_a_time(habits, requests):
    with OpenAIServer(habits) as server:
        sampler = sampler_at(server)
        assert sampler.check(PLAIN, 4) == 1
        assert len(server.requests) == requests
        assert sampler.check(PLAIN, 1) == 1
        texts = {sampler.request(PROMPT, 1, Sampling(max_new_tokens=40), seed=seed)[0].text for seed in range(4)}
        assert len(texts) > 1


def test_fewer_samples_than_asked_for_are_kept_and_not_asked_for_again():
    with OpenAIServer(Habits(knows_n=False)) as server:
        samples = sampler_at(server).request(PROMPT, 3, PLAIN, seed=1)
        assert len(samples) == 1 and sum_logprob(samples[0]) is not None
        assert len(server.requests) == 1


def test_a_server_without_the_end_token_needs_the_other_rule():
    with OpenAIServer(Habits(end_token="absent")) as server:
        with pytest.raises(BuildError, match="include_eos=False"):
            sampler_at(server).check(PLAIN, 4)
        assert sampler_at(server, include_eos=False).check(PLAIN, 4) == 4


def test_log_probs_of_a_text_that_is_hidden_are_found_out():
    with OpenAIServer(Habits(reasoning="<think>")) as server:
        with pytest.raises(BuildError, match="not those of its text.*<think>.*enable_thinking"):
            sampler_at(server).check(PLAIN, 2)


@pytest.mark.parametrize("bad", [-9999.0, -math.inf, None])
def test_placeholders_are_found_out(server, bad):
    server.script(completion(choice([token("a", bad), token(END, -1.0)], "a")))
    with pytest.raises(BuildError, match="placeholders"):
        sampler_at(server).check(PLAIN, 1)


@pytest.mark.parametrize("sampling", [WARM, Sampling(top_p=0.9), Sampling(top_k=4), Sampling(temperature=0.0)])
def test_log_probs_of_the_distribution_drawn_from_are_refused_unless_it_is_the_models_own(sampling):
    with OpenAIServer(Habits(processed=True)) as server:
        sampler = sampler_at(server)
        assert sampler.check(PLAIN, 2) == 2
        with pytest.raises(InputError, match="raw_logprobs"):
            sampler.check(sampling, 2)
        with pytest.raises(InputError, match="temperature=1"):
            sampler_at(server).request(PROMPT, 1, sampling, seed=1)  # without a check before it


def test_raw_log_probs_are_taken_at_any_sampling_and_proved_once(server):
    sampler = sampler_at(server)
    assert sampler.check(WARM, 2) == 2
    asked = len(server.requests)
    for seed in range(3):
        sampler.request(PROMPT, 2, WARM, seed=seed)
    assert asked == 3 and len(server.requests) == 6


def test_servers_that_cut_by_default_are_warned_of_unless_top_k_is_given(server, caplog):
    sampler_at(server).check(PLAIN, 1)
    assert "top_k 40" in caplog.text
    caplog.clear()
    sampler_at(server, extra_body={"top_k": 0}).check(PLAIN, 1)
    assert not caplog.text


# ---- Several servers, several threads ----


def test_requests_are_spread_over_the_servers():
    with OpenAIServer() as one, OpenAIServer() as two, OpenAIServer() as three:
        servers = [one, two, three]
        sampler = OpenAICompatibleSampler("m", endpoints=[server.url for server in servers])
        for seed in range(9):
            sampler.request(PROMPT, 1, PLAIN, seed=seed)
        assert [len(server.requests) for server in servers] == [3, 3, 3]


def test_a_server_that_is_down_costs_one_try_and_then_rests(pauses):
    with OpenAIServer() as down:
        gone = down.url
    with OpenAIServer() as server:
        sampler = OpenAICompatibleSampler("m", endpoints=[gone, server.url])
        for seed in range(8):
            assert len(sampler.request(PROMPT, 2, PLAIN, seed=seed)) == 2
        assert len(pauses) == 1 and len(server.requests) == 8


def test_every_server_is_checked(pauses):
    with OpenAIServer() as good, OpenAIServer(Habits(knows_logprobs=False)) as bad:
        with pytest.raises(BuildError, match="no log-probs"):
            OpenAICompatibleSampler("m", endpoints=[good.url, bad.url]).check(PLAIN, 2)
    with OpenAIServer() as good, OpenAIServer(Habits(knows_n=False)) as poor:
        assert OpenAICompatibleSampler("m", endpoints=[good.url, poor.url]).check(PLAIN, 4) == 1


def test_servers_of_different_models_are_found_out():
    with OpenAIServer() as one, OpenAIServer(Habits(shift=0.01)) as replica, OpenAIServer(Habits(shift=2.0)) as other:
        OpenAICompatibleSampler("m", endpoints=[one.url, replica.url]).check(PLAIN, 2)
        with pytest.raises(BuildError, match=r"endpoints\[0\] and endpoints\[1\].*same model"):
            OpenAICompatibleSampler("m", endpoints=[one.url, other.url]).check(PLAIN, 2)


def test_no_more_requests_are_in_flight_than_allowed():
    hold = threading.Event()
    with OpenAIServer(hold=hold) as server:
        sampler = sampler_at(server, concurrency=3)
        samples: list = []
        threads = [
            threading.Thread(target=lambda seed=seed: samples.extend(sampler.request(PROMPT, 1, PLAIN, seed=seed)))
            for seed in range(12)
        ]
        for thread in threads:
            thread.start()
        while len(server.requests) < 3:
            threading.Event().wait(0.01)
        threading.Event().wait(0.2)  # time in which a fourth would have come
        assert len(server.requests) == 3
        hold.set()
        for thread in threads:
            thread.join()
        assert len(samples) == 12 and len(server.requests) == 12 and server.busiest <= 3
