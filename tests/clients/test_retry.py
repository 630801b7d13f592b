"""The retry loop both SDKs share: what is repeated, how long it waits, and what its errors do not carry."""

from __future__ import annotations

import pickle
import time
from email.utils import formatdate

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients import retry
from tuna_trl.clients.retry import (
    MAX_RETRY_AFTER,
    MAX_TRIES,
    Fault,
    Refused,
    pause,
    retry_after_seconds,
    with_retries,
)
from tuna_trl.errors import BuildError, InputError


KEY = "sk-planted-1234567890"
SDKS = pytest.mark.parametrize("sdk", [openai, anthropic], ids=["openai", "anthropic"])


@pytest.fixture
def pauses(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


def status_error(sdk, code, body=None, **headers):
    request = httpx2.Request("POST", "http://127.0.0.1/v1", headers={"Authorization": f"Bearer {KEY}"})
    response = httpx2.Response(code, headers=headers, request=request)
    return sdk.APIStatusError("message", response=response, body=body)


def connection_error(sdk):
    return sdk.APIConnectionError(request=httpx2.Request("POST", "http://127.0.0.1/v1"))


class Exchange:
    """Raises what it is given, in turn, then answers; counts the tries."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.tries: list[int] = []

    def __call__(self, tried):
        self.tries.append(tried)
        if self.faults:
            raise self.faults.pop(0)
        return "answer"


@SDKS
@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504, 529])
def test_statuses_that_pass_are_repeated(sdk, pauses, code):
    exchange = Exchange(status_error(sdk, code), status_error(sdk, code))
    assert with_retries(exchange, sdk=sdk, name="m") == "answer"
    assert exchange.tries == [0, 1, 2] and len(pauses) == 2


@SDKS
def test_connections_and_broken_bodies_are_repeated(sdk, pauses):
    timeout = sdk.APITimeoutError(request=httpx2.Request("POST", "http://127.0.0.1/v1"))
    faults = [connection_error(sdk), timeout, httpx2.RemoteProtocolError("gone"), Fault("the body is no JSON")]
    exchange = Exchange(*faults)
    assert with_retries(exchange, sdk=sdk, name="m") == "answer"
    assert len(exchange.tries) == 5


@SDKS
def test_there_are_six_tries_and_no_pause_after_the_last(sdk, pauses):
    exchange = Exchange(*[Fault("nothing in it")] * 50)
    with pytest.raises(BuildError, match=r"^m gave no reply in 6 tries \(last: Fault: nothing in it\)"):
        with_retries(exchange, sdk=sdk, name="m")
    assert len(exchange.tries) == MAX_TRIES == 6 and len(pauses) == 5


@SDKS
@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_what_the_user_must_mend_is_not_repeated(sdk, pauses, code):
    exchange = Exchange(status_error(sdk, code, {"error": {"message": "words of the server"}}))
    ways_out = {code: "The way out."} if code != 422 else {}
    with pytest.raises(Refused, match="words of the server") as caught:
        with_retries(exchange, sdk=sdk, name="m", ways_out=ways_out)
    assert caught.value.status == code and isinstance(caught.value, InputError)
    assert (code == 422) or str(caught.value).endswith("The way out.")
    assert exchange.tries == [0] and pauses == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # out of a worker process


@SDKS
def test_a_used_up_quota_is_not_waited_for(sdk, pauses):
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    for shape in (body, body["error"]):
        exchange = Exchange(status_error(sdk, 429, shape))
        with pytest.raises(Refused, match="quota"):
            with_retries(exchange, sdk=sdk, name="m", ways_out={429: "Pay."})
        assert exchange.tries == [0]


@SDKS
def test_the_server_has_the_last_word_on_repeating(sdk, pauses):
    no = Exchange(status_error(sdk, 529, **{"x-should-retry": "false"}))
    with pytest.raises(BuildError, match="529"):
        with_retries(no, sdk=sdk, name="m")
    yes = Exchange(status_error(sdk, 400, **{"x-should-retry": "true"}))
    assert with_retries(yes, sdk=sdk, name="m") == "answer"
    assert len(no.tries) == 1 and len(yes.tries) == 2


def test_what_is_no_transport_fault_passes_through(pauses):
    exchange = Exchange(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        with_retries(exchange, sdk=openai, name="m")
    assert exchange.tries == [0]


@SDKS
@pytest.mark.parametrize("code", [400, 418, 529])
def test_an_error_carries_no_request_and_no_key_not_even_as_its_context(sdk, pauses, code):
    long = {"error": {"message": "x" * 490 + f" you sent {KEY}"}}
    exchange = Exchange(*[status_error(sdk, code, long)] * 9)
    with pytest.raises((BuildError, InputError)) as caught:
        with_retries(exchange, sdk=sdk, name="m", ways_out={400: ""}, hide=lambda text: text.replace(KEY, "<key>"))
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert KEY[:8] not in str(caught.value)  # nor the half of it that cutting the message would leave


@given(st.integers(0, 40))
def test_without_a_word_of_the_server_pauses_are_jittered_in_full_up_to_the_cap(tried):
    drawn = [pause(tried, None) for _ in range(200)]
    most = min(2.0**tried, MAX_RETRY_AFTER)
    assert all(0.0 <= seconds <= most for seconds in drawn)
    assert min(drawn) < most / 4 and max(drawn) > most / 2


@given(st.floats(0, 1e9), st.integers(0, 9))
def test_retry_after_is_waited_out_but_not_beyond_the_cap(asked, tried):
    wanted = min(asked, MAX_RETRY_AFTER)
    assert wanted <= pause(tried, asked) <= wanted + 1.0


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), None])
def test_a_retry_after_that_is_no_number_is_as_none(odd):
    assert 0.0 <= pause(2, odd) <= 4.0


@given(st.floats(0, 1e6))
def test_retry_after_is_read_in_both_units(seconds):
    assert retry_after_seconds({"retry-after": str(seconds)}) == seconds
    both = {"retry-after-ms": str(1000 * seconds), "retry-after": "99"}
    assert retry_after_seconds(both) == pytest.approx(seconds)


def test_retry_after_is_read_as_a_date():
    in_half_an_hour = formatdate(time.time() + 1800, usegmt=True)
    assert 1700 < retry_after_seconds({"retry-after": in_half_an_hour}) <= 1800
    assert retry_after_seconds({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}) == 0.0


@given(st.text(max_size=20))
def test_no_header_breaks_the_reading(text):
    seconds = retry_after_seconds({"retry-after": text})
    assert seconds is None or seconds >= 0
