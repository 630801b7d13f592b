"""The teacher's fault matrix: what is repeated, what fails alone, what is said once."""

from __future__ import annotations

import json
import math
import threading

import pytest
from doubles.openai_server import (
    END,
    OpenAIServer,
    choice,
    completion,
    html,
    plain,
    reset,
    status,
    token,
    torn,
)

from tuna_trl.build.teacher import sum_logprob
from tuna_trl.clients.base import Sampling
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.errors import BuildError, InputError


PROMPT = [{"role": "user", "content": "Name a colour."}]
PLAIN = Sampling(max_new_tokens=12)
GOOD = completion(choice([token("red", -1.0), token(".", -0.25), token(END, -0.5)], "red."))


@pytest.fixture(scope="module")
def _shared():
    """A server and its client (a client reads the certificates anew: 0.3 s)."""
    with OpenAIServer() as server:
        yield server, OpenAICompatibleSampler("m", server.url)


@pytest.fixture
def shared(_shared):
    server, sampler = _shared
    server.requests.clear()
    server.clear()
    return server, sampler


def sampler_at(server, **options):
    return OpenAICompatibleSampler("m", server.url, **options)


# ---- Log-probs that are missing or wrong: the response fails, whatever else is in the reply ----


BAD_CHOICES = {
    "no logprobs": choice(None, "a"),
    "logprobs without content": {**choice(None, "a"), "logprobs": {"content": None}},
    "empty logprobs": choice([], "a"),
    "a list of numbers": {**choice(None, "a"), "logprobs": {"content": [-1.0]}},
    "a token without log-prob": choice([{"token": "a"}, token(END, -1.0)], "a"),
    "null": choice([token("a", None), token(END, -1.0)], "a"),
    "a string": choice([token("a", "-1.0"), token(END, -1.0)], "a"),
    "true": choice([token("a", True), token(END, -1.0)], "a"),
    "NaN": choice([token("a", math.nan), token(END, -1.0)], "a"),
    "-inf": choice([token("a", -math.inf), token(END, -1.0)], "a"),
    "-9999": choice([token("a", -9999.0), token(END, -1.0)], "a"),
    "no end token": choice([token("a", -1.0)], "a"),
    "another text": choice([token("b", -1.0), token(END, -1.0)], "a"),
    "reasoning that the text lacks": choice([token("<think>", -1.0), token("a", -1.0), token(END, -1.0)], "a"),
    "a token too few": choice([token("a", -1.0), token(END, -1.0)], "a b"),
    "no text": choice([token("a", -1.0), token(END, -1.0)], None),
    "a filtered text": choice([token("a", -1.0)], "a", "content_filter"),
    "a tool call": choice([token("a", -1.0), token(END, -1.0)], None, "tool_calls"),
    "no finish reason": choice([token("a", -1.0), token(END, -1.0)], "a", None),
}


@pytest.mark.parametrize("bad", BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_a_response_that_cannot_be_scored_fails_alone_and_is_not_asked_for_again(shared, pauses, bad):
    server, sampler = shared
    good = choice([token("a", -1.0), token(END, -2.0)], "a", index=1)
    server.script(completion(bad, good))
    failed, sample = sampler.request(PROMPT, 2, PLAIN, seed=1)
    assert sum_logprob(failed) is None
    assert sum_logprob(sample) == -3.0
    assert len(server.requests) == 1


def test_placeholders_come_back_as_they_are(server):
    tokens = [token("a", -9999.0), token("b", -math.inf), token("c", None), token(END, -1.0)]
    server.script(completion(choice(tokens, "abc")))
    (sample,) = sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
    assert sample.token_logprobs[:2] == (-9999.0, -math.inf) and math.isnan(sample.token_logprobs[2])


@pytest.mark.parametrize(
    ("reason", "kept"), [("stop", "stop"), ("length", "length"), ("eos_token", "stop"), ("content_filter",) * 2]
)
def test_finish_reasons_are_mapped_and_unknown_ones_kept(server, reason, kept):
    server.script(completion(choice([token("a", -1.0), token(END, -1.0)], "a", reason)))
    assert sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)[0].finish_reason == kept


def test_a_response_cut_in_the_middle_of_a_character_is_scored(server):
    half = {"token": "\ufffd", "bytes": [0xF0, 0x9F], "logprob": -2.0}
    for text in ("a", "a\ufffd"):
        server.script(completion(choice([token("a", -1.0), half], text, "length")))
        (sample,) = sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
        assert sample.token_logprobs == (-1.0, -2.0)


def test_tokens_written_the_sentencepiece_way_are_those_of_the_text(server):
    tokens = [{"token": t, "bytes": None, "logprob": -1.0} for t in ("▁two", "▁words", "\u010a", "", "</s>")]
    server.script(completion(choice(tokens, " two words\n")))
    assert len(sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)[0].token_logprobs) == 5


# ---- The fault matrix of transport ----


WRONG_SHAPES = {
    "{}": b"{}",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"completion"',
    "an error with 200": status(529, "overloaded").body,
    "no choices": b'{"choices": []}',
    "choices null": b'{"choices": null}',
    "choices of numbers": b'{"choices": [1]}',
    "a choice without message": b'{"choices": [{"index": 0}]}',
    "message null": b'{"choices": [{"message": null}]}',
}
FAULTS = {
    "429": status(429, retry_after="2"),
    "429 without a word on when": status(429),
    "500": status(500),
    "502 with HTML": html(502),
    "503": status(503),
    "529": status(529),
    "408": status(408),
    "409": status(409),
    "reset": reset(),
    "torn body": torn(),
    "200 with HTML": html(),
    "200 and nothing": plain(b""),
    "200 and half of JSON": plain(GOOD.body[:80]),
    "200 and no text": plain(b"\xff\xfe\x00"),
    "200 and JSON nested without end": plain(b"[" * 200_000),
    "too many samples": completion(*json.loads(GOOD.body)["choices"] * 2),
    **{f"200 and {name}": plain(body) for name, body in WRONG_SHAPES.items()},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_transport_fault_is_repeated_until_a_reply_comes(shared, pauses, fault):
    server, sampler = shared
    server.script(fault, fault, GOOD)
    (sample,) = sampler.request(PROMPT, 1, PLAIN, seed=1)
    assert (sample.text, sample.token_logprobs) == ("red.", (-1.0, -0.25, -0.5))
    assert len(server.requests) == 3 and len(pauses) == 2
    assert server.bodies[0] == server.bodies[2]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_transport_fault_that_stays_is_an_error_after_six_tries(shared, pauses, fault):
    server, sampler = shared
    server.script(*[fault] * 6)
    with pytest.raises(BuildError, match=r"m gave no reply in 6 tries \(last: .+\)"):
        sampler.request(PROMPT, 1, PLAIN, seed=1)
    assert len(server.requests) == 6 and len(pauses) == 5


def test_a_server_that_is_slow_is_asked_again_after_the_timeout(pauses):
    hold = threading.Event()
    with OpenAIServer(hold=hold) as server:
        sampler = sampler_at(server, timeout=0.3, max_retries=2)
        with pytest.raises(BuildError, match="3 tries.*APITimeoutError"):
            sampler.request(PROMPT, 1, PLAIN, seed=1)
        assert len(server.requests) == 3
        hold.set()
        assert len(OpenAICompatibleSampler("m", server.url).request(PROMPT, 2, PLAIN, seed=1)) == 2


def test_a_closed_port_is_a_fault(pauses):
    with OpenAIServer() as server:
        url = server.url
    with pytest.raises(BuildError, match="2 tries.*APIConnectionError"):
        OpenAICompatibleSampler("m", url, max_retries=1).request(PROMPT, 1, PLAIN, seed=1)


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [("7", 7.0, 8.0), ("4294967", 60.0, 61.0), ("Wed, 01 Jan 2120 00:00:00 GMT", 60.0, 61.0), ("soon", 0.0, 1.0)],
)
def test_retry_after_is_waited_out_up_to_a_minute(server, pauses, after, least, most):
    server.script(status(429, retry_after=after), GOOD)
    sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
    assert len(pauses) == 1 and least <= pauses[0] <= most


@pytest.mark.parametrize(("code", "says"), [(400, "length of the prompt"), (401, "OPENAI_API_KEY"), (404, "/v1")])
def test_what_the_user_must_mend_is_said_once(server, pauses, code, says):
    server.script(status(code, "the words of the server"))
    with pytest.raises(InputError, match="the words of the server") as caught:
        sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
    assert says in str(caught.value) and len(server.requests) == 1


def test_a_wrong_address_says_what_addresses_end_in(server):
    with pytest.raises(InputError, match="/v1"):
        OpenAICompatibleSampler("m", server.url.removesuffix("/v1")).request(PROMPT, 1, PLAIN, seed=1)
