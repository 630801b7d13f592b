"""The Claude judge against a loopback server, through the real SDK: faults, refusals, the key, the price."""

from __future__ import annotations

import json
import threading

import pytest
from doubles.anthropic_server import (
    AnthropicServer,
    error,
    html,
    message,
    overloaded,
    plain,
    rate_limited,
    refusal,
    torn,
)
from planted import everything_logged, traceback_with_values

from tuna_trl.clients.anthropic_messages import AnthropicJudge
from tuna_trl.clients.base import Judge, JudgeRequest, Usage
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.retry import MAX_RETRY_AFTER
from tuna_trl.errors import BuildError, InputError


KEY = "sk-ant-planted-9e8d7c6b"
PROMPT = [{"role": "user", "content": "What is 2 + 2?"}]
REQUEST = JudgeRequest(PROMPT, ("4", "5"), None, 0, "5f3a")
SCORES = {"rationale": "ok", "accuracy": 5, "detail": 4, "relevance_or_clarity": 3}
VERDICT = json.dumps({"task": "closed", "A": SCORES, "B": SCORES | {"accuracy": 0}, "ranking": ["A", "B"]})


@pytest.fixture
def server():
    with AnthropicServer() as server:
        yield server


def judge_at(server, **options):
    return AnthropicJudge(base_url=server.url, api_key=KEY, **options)


def test_a_good_reply_is_read_with_its_usage(server, pauses):
    server.script(message(VERDICT))
    judge = judge_at(server)
    assert isinstance(judge, Judge)
    (reply,) = judge.ask([REQUEST])
    assert reply.raw == VERDICT  # the thinking block before it is not part of it
    assert (reply.stop_reason, reply.request_id, reply.model) == ("end_turn", "req_01", "claude-opus-5-5")
    assert reply.usage == Usage(input=1200, output=300, thinking=100)
    verdict = judge.parse(REQUEST, reply)
    assert (verdict.status, verdict.scores, verdict.order) == ("ok", (12.0, 7.0), (0, 1))
    assert pauses == []


def test_the_request_asks_for_the_schema_and_names_no_temperature(server, pauses):
    server.script(message(VERDICT))
    judge_at(server, effort="medium", max_tokens=999).ask([REQUEST])
    ((headers, body),) = server.requests
    assert body["output_config"] == {
        "format": {"type": "json_schema", "schema": ContextualProtocol().schema(2)},
        "effort": "medium",
    }
    assert (body["model"], body["max_tokens"]) == ("claude-opus-5-5", 999)
    assert not {"temperature", "top_p", "top_k", "stream", "tools"} & set(body)
    assert "2 + 2" in body["messages"][0]["content"] and "2 + 2" not in body["system"]
    assert headers["authorization"] == f"Bearer {KEY}"


def test_effort_none_is_left_to_the_api(server, pauses):
    server.script(message(VERDICT))
    judge_at(server, effort=None).ask([REQUEST])
    assert "effort" not in server.requests[0][1]["output_config"]


FAULTS = {
    "429": rate_limited("2"),
    "529": overloaded(),
    "500": error(500, "api_error"),
    "408": error(408, "timeout_error"),
    "409 that says retry": error(409, "conflict_error", x_should_retry="true"),
    "502 with HTML": html(502),
    "torn body": torn(),
    "200 with HTML": html(),
    "200 and nothing": plain(b""),
    "200 and half of JSON": plain(b'{"type": "mess'),
    "200 and {}": plain(b"{}"),
    "200 and null": plain(b"null"),
    "200 and a string": plain(b'"message"'),
    "200 and an error": plain(error(529, "overloaded_error").body),
    "200 and a message without content": plain(b'{"type": "message", "usage": {}}'),
    "200 and bytes that are no text": plain(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_transport_fault_is_repeated_until_a_reply_comes(server, pauses, fault):
    server.script(fault, fault, message(VERDICT))
    (reply,) = judge_at(server).ask([REQUEST])
    assert reply.raw == VERDICT
    assert len(server.requests) == 3 and len(pauses) == 2
    assert server.requests[0][1] == server.requests[2][1]


@pytest.mark.parametrize("fault", [overloaded(), torn(), plain(b"null")], ids=["529", "torn", "null"])
def test_retries_end_and_the_error_names_the_last_fault(server, pauses, fault):
    server.script(*[fault] * 10)
    with pytest.raises(BuildError, match=r"gave no reply in 3 tries \(last: .+\)"):
        judge_at(server, max_retries=2).ask([REQUEST])
    assert len(server.requests) == 3 and len(pauses) == 2


def test_a_closed_port_is_a_fault(pauses):
    with AnthropicServer() as server:
        url = server.url
    with pytest.raises(BuildError, match="APIConnectionError"):
        AnthropicJudge(base_url=url, api_key=KEY, max_retries=1).ask([REQUEST])


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7.0, 8.0),
        ("0", 0.0, 1.0),
        ("4294967", MAX_RETRY_AFTER, MAX_RETRY_AFTER + 1.0),
        ("-3", 0.0, 1.0),
        ("nan", 0.0, 1.0),
        ("inf", 0.0, 1.0),
        ("soon", 0.0, 1.0),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 0.0, 1.0),
        ("Wed, 01 Jan 2120 00:00:00 GMT", MAX_RETRY_AFTER, MAX_RETRY_AFTER + 1.0),
    ],
)
def test_retry_after_is_waited_out_up_to_a_minute(server, pauses, header, least, most):
    server.script(rate_limited(header), message(VERDICT))
    judge_at(server).ask([REQUEST])
    assert len(pauses) == 1 and least <= pauses[0] <= most


def test_retry_after_in_milliseconds_goes_first(server, pauses):
    server.script(error(429, "rate_limit_error", retry_after_ms="3500", retry_after="50"), message(VERDICT))
    judge_at(server).ask([REQUEST])
    assert 3.5 <= pauses[0] <= 4.5


def test_pauses_grow_and_stay_under_the_cap(server, pauses):
    server.script(*[overloaded()] * 9, message(VERDICT))
    judge_at(server, max_retries=9).ask([REQUEST])
    for k, pause in enumerate(pauses):
        assert 0.0 <= pause <= min(2.0**k, MAX_RETRY_AFTER)


def test_a_server_that_says_do_not_retry_is_believed(server, pauses):
    server.script(overloaded(x_should_retry="false"))
    with pytest.raises(BuildError, match="529"):
        judge_at(server).ask([REQUEST])
    assert len(server.requests) == 1 and pauses == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "effort=None"),
        (401, "check ANTHROPIC_API_KEY"),
        (402, "credit"),
        (403, "permissions"),
        (404, "model's id"),
        (413, "too large"),
        (422, "refused the request"),
    ],
)
def test_what_the_user_must_mend_is_said_and_not_repeated(server, pauses, status, says):
    server.script(error(status, "some_error", "the words of the server"))
    with pytest.raises(InputError, match="the words of the server") as caught:
        judge_at(server).ask([REQUEST])
    assert says in str(caught.value)
    assert len(server.requests) == 1 and pauses == []


@pytest.mark.parametrize("category", ["frontier_llm", "bio", None])
def test_a_refusal_is_a_reply_with_its_category_and_is_not_repeated(server, pauses, category):
    server.script(refusal(category))
    judge = judge_at(server)
    (reply,) = judge.ask([REQUEST])
    verdict = judge.parse(REQUEST, reply)
    assert verdict.status == "refused" and verdict.scores == (None, None)
    assert (category or "no category") in verdict.detail
    assert len(server.requests) == 1


def test_a_reply_cut_at_max_tokens_is_truncated_and_not_repeated(server, pauses):
    server.script(message(VERDICT[:60], stop_reason="max_tokens"))
    judge = judge_at(server)
    (reply,) = judge.ask([REQUEST])
    assert judge.parse(REQUEST, reply).status == "truncated"
    assert len(server.requests) == 1


def test_a_prompt_that_does_not_fit_is_a_truncated_row_and_not_the_end_of_a_build(server, pauses):
    server.script(error(400, "invalid_request_error", "prompt is too long: 213462 tokens > 200000 maximum"))
    (reply,) = judge_at(server).ask([REQUEST])
    assert len(server.requests) == 1 and reply.usage == Usage()
    verdict = judge_at(server).parse(REQUEST, reply)
    assert verdict.status == "truncated" and "213462" in reply.raw


def test_tokens_are_counted_by_the_api_and_by_nobody_where_it_does_not_count(server, pauses):
    server.counts = 1234
    assert judge_at(server).count_tokens(REQUEST) == 1234
    server.counts = None
    assert judge_at(server).count_tokens(REQUEST) is None
    assert server.requests == []  # no message was asked for


def test_a_stop_reason_that_nobody_knows_yet_is_still_a_reply(server, pauses):
    server.script(message(VERDICT, stop_reason="a_reason_of_2027"))
    judge = judge_at(server)
    (reply,) = judge.ask([REQUEST])
    assert judge.parse(REQUEST, reply).status == "ok"
    assert len(server.requests) == 1


def test_without_a_key_nothing_is_built_and_the_way_out_is_named(server):
    with pytest.raises(InputError, match="ANTHROPIC_API_KEY.*reference"):
        AnthropicJudge(base_url=server.url)
    assert server.requests == []


def test_the_key_of_the_environment_is_used(server, pauses, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY + "\n")  # a file read whole ends in a line break
    server.script(message(VERDICT))
    AnthropicJudge(base_url=server.url).ask([REQUEST])
    assert server.requests[0][0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk two words", "sk\nline", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key):
    with pytest.raises(InputError, match="no API key") as caught:
        AnthropicJudge(api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"concurrency": 0}, {"max_retries": -1}, {"base_url": "x.y"}])
def test_arguments_out_of_range_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        AnthropicJudge(api_key=KEY, **options)


def test_the_key_is_in_no_log_error_traceback_or_fingerprint(server, pauses):
    written = []
    with everything_logged() as stream:
        judge = judge_at(server, max_retries=1)
        server.script(message(VERDICT))
        written.append(repr(judge.ask([REQUEST])[0].to_json()))
        for faults in ([error(401, "authentication_error", f"bad key {KEY}")], [overloaded()] * 2, [torn()] * 2):
            server.script(*faults)
            try:
                judge.ask([REQUEST])
            except (InputError, BuildError) as caught:
                written += [traceback_with_values(caught), str(caught)]
        written += [repr(judge), repr(vars(judge)), repr(judge.fingerprint())]
    assert any("Traceback" in text for text in written) and "<key>" in "".join(written)
    assert stream.getvalue()
    assert KEY not in stream.getvalue() + "".join(written)


def test_the_fingerprint_names_what_changes_a_reply_and_no_url():
    base = {"api_key": KEY, "base_url": "http://127.0.0.1:1"}
    first = AnthropicJudge(**base)
    same = AnthropicJudge(api_key="other", base_url="http://127.0.0.1:2", concurrency=9, max_retries=0, timeout=1.0)
    assert first.fingerprint() == same.fingerprint()
    for change in (
        {"model": "claude-sonnet-5-5"},
        {"effort": "high"},
        {"max_tokens": 5},
        {"protocol": ContextualProtocol(judge_answer="ranked")},
        {"protocol": ContextualProtocol(show_reference=True)},
    ):
        assert AnthropicJudge(**(base | change)).fingerprint() != first.fingerprint()


def test_the_worst_case_is_above_the_price_of_a_reply_at_its_limit():
    judge = AnthropicJudge(api_key=KEY, max_tokens=1000)
    # 1.4 tokens a byte is impossible, so a reply with as many input tokens as bytes is the dearest there is.
    body = judge.body(REQUEST)
    sent = len(body["system"] + body["messages"][0]["content"])
    assert judge.worst_case_cost(REQUEST) > judge.cost(Usage(input=sent, output=1000)) > 0.02
    longer = JudgeRequest(PROMPT, ("4" * 1000, "5"), None, 0, "5f3a")
    assert judge.worst_case_cost(longer) == pytest.approx(judge.worst_case_cost(REQUEST) + 999 * 4e-6)
    unknown = AnthropicJudge("claude-of-2030", api_key=KEY)
    assert unknown.worst_case_cost(REQUEST) is None and unknown.cost(Usage(input=1)) is None


def test_one_judge_serves_many_threads(server, pauses):
    server.script(*[message(VERDICT)] * 16)
    judge = judge_at(server)
    replies = []
    threads = [threading.Thread(target=lambda: replies.extend(judge.ask([REQUEST]))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.raw for reply in replies] == [VERDICT] * 16
