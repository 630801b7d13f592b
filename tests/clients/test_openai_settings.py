"""The teacher's keys, addresses, arguments and prices: what is sent where, and what is never shown."""

from __future__ import annotations

import math
import sys

import pytest
from doubles.openai_server import (
    html,
    plain,
    reset,
    status,
    torn,
)
from planted import everything_logged, traceback_with_values

from tuna_trl.clients.base import Sampling, Usage
from tuna_trl.clients.openai_compatible import NO_ANTHROPIC_TEACHER, OpenAICompatibleSampler
from tuna_trl.errors import BuildError, InputError


KEY = "sk-planted-1f2e3d4c5b6a"
PROMPT = [{"role": "user", "content": "Name a colour."}]
PLAIN = Sampling(max_new_tokens=12)
WARM = Sampling(temperature=0.7, max_new_tokens=12)


def sampler_at(server, **options):
    return OpenAICompatibleSampler("m", server.url, **options)


# ---- Keys, addresses, arguments ----


def test_the_key_is_in_no_log_error_traceback_or_fingerprint(server, pauses):
    written = []
    with everything_logged() as stream:
        sampler = sampler_at(server, api_key=KEY, max_retries=1)
        sampler.check(WARM, 2)
        written.append(repr(sampler.request(PROMPT, 2, PLAIN, seed=1)))
        for faults in (
            [status(401, f"bad key {KEY}")],
            [status(400, "x" * 485 + KEY)],
            [status(529, f"{KEY} is in a hurry")] * 2,
            [torn()] * 2,
            [reset()] * 2,
            [html()] * 2,
            [plain(KEY.encode())] * 2,
        ):
            server.script(*faults)
            try:
                sampler.request(PROMPT, 1, PLAIN, seed=1)
            except (InputError, BuildError) as caught:
                assert caught.__context__ is None
                written += [traceback_with_values(caught), str(caught)]
        written += [repr(sampler), repr(vars(sampler)), repr(sampler.fingerprint())]
    assert sum("Traceback" in text for text in written) == 7 and "<key>" in "".join(written)
    assert server.requests[0][0]["authorization"] == f"Bearer {KEY}"
    assert stream.getvalue()
    everything = stream.getvalue() + "".join(written)
    assert KEY not in everything and KEY[:12] not in everything


def test_the_fingerprint_names_what_changes_a_reply_and_no_address():
    base = {"base_url": "http://127.0.0.1:1/v1"}
    first = OpenAICompatibleSampler("m", **base, api_key=KEY)
    same = OpenAICompatibleSampler(
        "m", endpoints=["https://a.test/v1", "https://b.test/v1"], api_key="other", concurrency=3, max_retries=0
    )
    assert first.fingerprint() == same.fingerprint()
    assert "127.0.0.1" not in str(first.fingerprint()) and KEY not in str(first.fingerprint())
    for change in ({"system": "s"}, {"extra_body": {"min_p": 0}}, {"include_eos": False}):
        assert OpenAICompatibleSampler("m", **base, **change).fingerprint() != first.fingerprint()
    assert OpenAICompatibleSampler("m2", **base).fingerprint() != first.fingerprint()


def test_nothing_in_the_fingerprint_is_shared_with_the_caller():
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    sampler = OpenAICompatibleSampler("m", "http://localhost:1/v1", extra_body=extra)
    extra["chat_template_kwargs"]["enable_thinking"] = True
    sampler.fingerprint()["extra_body"].clear()
    assert sampler.fingerprint()["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}


def test_over_https_a_key_is_needed_and_the_environments_is_used(monkeypatch):
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set.*http://localhost"):
        OpenAICompatibleSampler("gpt-4o")
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    sampler = OpenAICompatibleSampler("gpt-4o")
    assert sampler._endpoints.clients[0].api_key == KEY and sampler.paid and not sampler.include_eos


def test_the_key_of_the_environment_is_not_sent_in_the_clear(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sampler_at(server).request(PROMPT, 1, PLAIN, seed=1)
    assert KEY not in str(server.requests[0][0])


def test_the_address_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert OpenAICompatibleSampler("m").request(PROMPT, 1, PLAIN, seed=1) and server.requests


@pytest.mark.parametrize("key", ["sk two words", "sk\nline", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key):
    with pytest.raises(InputError, match="no API key") as caught:
        OpenAICompatibleSampler("m", "http://localhost:1/v1", api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"base_url": "http://h:port"}, "base_url"),
        ({"base_url": "http://user:secret@h/v1"}, "api_key"),
        ({"base_url": "http://h/v1?key=secret"}, "api_key"),
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": "http://h/v1"}, "endpoints"),
        ({"endpoints": ["http://h/v1", "http://h/v1/"]}, "twice"),
        ({"endpoints": ["http://h/v1"], "base_url": "http://h/v1"}, "not both"),
        ({"endpoints": ["http://h/v1", "https://h/v1"]}, "mixes"),
        ({"extra_body": {"temperature": 2}}, "temperature"),
        ({"extra_body": {"stream": True, "post_sampling_probs": True}}, "post_sampling_probs, stream"),
        ({"extra_body": {"provider": {"api_key": "secret"}}}, "api_key"),
        ({"extra_body": {"a": {1, 2}}}, "JSON"),
    ],
)
def test_arguments_out_of_range_are_named(options, says):
    given = {"model": "m", "base_url": None if "endpoints" in options else "http://localhost:1/v1"} | options
    with pytest.raises(InputError, match=says) as caught:
        OpenAICompatibleSampler(**given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "n", "says"),
    [
        (Sampling(temperature=-1.0), 1, "temperature"),
        (Sampling(temperature=math.nan), 1, "temperature"),
        (Sampling(top_p=0.0), 1, "top_p"),
        (Sampling(top_k=-1), 1, "top_k"),
        (Sampling(max_new_tokens=0), 1, "max_new_tokens"),
        (PLAIN, 0, "n is 0"),
    ],
)
def test_a_sampling_out_of_range_is_named_before_anything_is_sent(server, sampling, n, says):
    with pytest.raises(InputError, match=says):
        sampler_at(server).request(PROMPT, n, sampling, seed=1)
    assert server.requests == []


def test_top_k_is_given_once_and_not_to_openai(server):
    with pytest.raises(InputError, match="Give it once"):
        sampler_at(server, extra_body={"top_k": 0}).request(PROMPT, 1, Sampling(top_k=5), seed=1)
    with pytest.raises(InputError, match="no top_k"):
        OpenAICompatibleSampler("gpt-4o", api_key=KEY).check(Sampling(top_k=5), 1)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"tuna-trl\[openai\]"):
        OpenAICompatibleSampler("m", "http://localhost:1/v1")


def test_claude_is_refused_with_the_reason():
    assert "returns no log-probabilities" in NO_ANTHROPIC_TEACHER and "judge" in NO_ANTHROPIC_TEACHER


# ---- Price ----


def test_a_server_of_ones_own_is_free_and_an_unknown_price_is_unknown(tmp_path):
    usage = Usage(input=1000, output=1000)
    own = OpenAICompatibleSampler("gpt-4o", "http://gpu-box:8000/v1")
    assert not own.paid and own.cost(usage) == own.worst_case_cost(PROMPT, 4, PLAIN) == 0.0
    elsewhere = OpenAICompatibleSampler("gpt-4o", "https://host.test/v1", api_key=KEY)
    assert elsewhere.paid and elsewhere.cost(usage) is None and elsewhere.worst_case_cost(PROMPT, 4, PLAIN) is None
    unknown = OpenAICompatibleSampler("gpt-of-2030", api_key=KEY)
    assert unknown.cost(usage) is None
    table = tmp_path / "prices.yaml"
    table.write_text("date: 2026-11-01\nmodels: {mine: {input: 1.0, output: 2.0}}")
    named = OpenAICompatibleSampler("mine", "https://host.test/v1", api_key=KEY, prices=table)
    assert named.cost(usage) == pytest.approx(0.003)
    assert OpenAICompatibleSampler("mine", "https://host.test/v1", api_key=KEY, paid=False).cost(usage) == 0.0


def test_the_worst_case_is_above_the_price_of_a_reply_at_its_limit():
    sampler = OpenAICompatibleSampler("gpt-4o-2024-08-06", api_key=KEY, system="Be brief.")
    worst = sampler.worst_case_cost(PROMPT, 4, Sampling(max_new_tokens=100))
    sent = len("Be brief." + PROMPT[0]["content"])  # a token a byte, and all four samples at their limit
    assert worst > sampler.cost(Usage(input=sent, output=400)) > 0
    assert sampler.worst_case_cost(PROMPT, 8, PLAIN) > sampler.worst_case_cost(PROMPT, 4, PLAIN)
