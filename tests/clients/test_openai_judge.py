"""The judge behind an OpenAI-compatible server, against a loopback one, through the real SDK."""

from __future__ import annotations

import json
import threading
import traceback

import pytest
from doubles.openai_server import (
    Canned,
    Habits,
    OpenAIServer,
    choice,
    completion,
    html,
    plain,
    reset,
    status,
    torn,
)
from hypothesis import given
from hypothesis import strategies as st
from planted import everything_logged

from tuna_trl.clients.base import Judge, JudgeRequest, Reply, Usage
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.grammar import tightened
from tuna_trl.clients.openai_completion import read_completion
from tuna_trl.clients.openai_judge import OpenAICompatibleJudge
from tuna_trl.clients.retry import Fault
from tuna_trl.clients.schema_check import CHECK_WORD
from tuna_trl.errors import BuildError, InputError


KEY = "sk-planted-5f4e3d2c1b"
PROMPT = [{"role": "user", "content": "What is 2 + 2?"}]
REQUEST = JudgeRequest(PROMPT, ("4", "5"), None, 0, "5f3a")
ONE = {"rationale": "ok", "accuracy": 5, "detail": 4, "relevance_or_clarity": 3}
VERDICT = json.dumps({"task": "closed", "A": ONE, "B": ONE | {"accuracy": 0}, "ranking": ["A", "B"]})


def judge_at(server, **options):
    return OpenAICompatibleJudge("m", server.url, **options)


def said(text, finish="stop", **message):
    canned = choice(None, text, finish)
    return completion(canned | {"message": canned["message"] | message})


def checked(server, **options):
    """A judge that has seen its server keep to a schema; the server's log is empty."""
    judge = judge_at(server, **options)
    judge.check()
    server.requests.clear()
    return judge


# ---- What is asked ----


def test_it_is_a_judge_and_a_local_server_is_free_and_needs_no_key(server):
    judge = judge_at(server)
    assert isinstance(judge, Judge)
    assert (judge.name, judge.method, judge.paid, judge.max_batch) == ("m", "judge", False, 1)
    assert judge.worst_case_cost(REQUEST) == judge.cost(Usage(input=10**9)) == 0.0
    assert [tuple(order) for order in judge.orders((2, 0, 1))] == [(2, 0, 1)]


def test_the_request_is_the_protocols_question_held_to_its_schema(server):
    protocol = ContextualProtocol()
    judge = checked(server)
    judge.ask([REQUEST])
    system, user = protocol.render(REQUEST)
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "max_tokens": 4096,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": protocol.schema(2)},
            },
        }
    ]
    assert server.bodies[0] == judge.body(REQUEST)


def test_settings_go_into_the_request_only_when_they_are_given(server):
    judge = checked(server, effort="low", temperature=0.0, seed=2**31 + 4, max_tokens=9, extra_body={"min_p": 0})
    again = JudgeRequest(PROMPT, ("4", "5"), None, repeat=3, nonce="5f3a", room=2)
    judge.ask([REQUEST, again])
    first, last = server.bodies
    assert (first["reasoning_effort"], first["temperature"], first["min_p"]) == ("low", 0.0, 0)
    assert (first["seed"], last["seed"]) == (4, 7)
    assert (first["max_tokens"], last["max_tokens"]) == (9, 18)


def test_a_bound_on_rationales_tightens_the_schema(server):
    sent = judge_at(server, max_rationale=90).body(REQUEST)["response_format"]["json_schema"]["schema"]
    assert sent == tightened(ContextualProtocol().schema(2), 90) != ContextualProtocol().schema(2)


def test_openai_itself_gets_the_name_of_the_limit_that_its_reasoning_models_know(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = OpenAICompatibleJudge("gpt-5", max_tokens=77)
    body = judge.body(REQUEST)
    assert body["max_completion_tokens"] == 77 and "max_tokens" not in body and judge.paid


def test_a_prompted_schema_stands_in_the_system_prompt_and_nothing_is_checked(server):
    judge = judge_at(server, schema="prompt", extra_body={"response_format": {"type": "json_object"}})
    server.script(said(VERDICT))
    (reply,) = judge.ask([REQUEST])
    (body,) = server.bodies
    assert json.dumps(ContextualProtocol().schema(2)) in body["messages"][0]["content"]
    assert body["response_format"] == {"type": "json_object"}
    assert judge.parse(REQUEST, reply).scores == (12.0, 7.0)


def test_half_a_character_in_a_response_does_not_stop_the_request(server):
    judge = checked(server)
    judge.ask([JudgeRequest(PROMPT, ("\ud83d and on", "5\0"), None, 0, "5f3a")])
    assert len(server.bodies) == 1


# ---- The check before spending ----


def test_the_check_asks_each_server_once_for_a_word_that_only_the_schema_holds():
    with OpenAIServer() as one, OpenAIServer() as two:
        judge = OpenAICompatibleJudge("m", endpoints=[one.url, two.url])
        for _ in range(4):
            judge.ask([REQUEST])
        assert [len(server.requests) for server in (one, two)] == [3, 3]
        for server in (one, two):
            assert CHECK_WORD in json.dumps(server.bodies[0]["response_format"])
            assert CHECK_WORD not in json.dumps(server.bodies[0]["messages"])


def test_what_the_check_used_is_in_the_first_reply_alone(server):
    judge = judge_at(server)
    first, second = (judge.ask([REQUEST])[0].usage for _ in range(2))
    one = Usage(input=60, cached=40, output=30, thinking=10)
    assert (first, second) == (one + one, one)


def test_a_server_that_ignores_the_schema_is_found_out_before_a_row_is_sent():
    with OpenAIServer(Habits(keeps_schema=False)) as server:
        judge = judge_at(server)
        for _ in range(2):  # and it is not forgotten
            with pytest.raises(BuildError, match="does not keep to a JSON schema.*I like them all.*schema='prompt'"):
                judge.ask([REQUEST])
        assert all("2 + 2" not in json.dumps(body["messages"]) for body in server.bodies)
        free = judge_at(server, schema="prompt")
        assert free.parse(REQUEST, free.ask([REQUEST])[0]).status == "malformed"


def test_threads_that_wait_for_a_check_that_fails_do_not_ask_again():
    hold = threading.Event()
    with OpenAIServer(Habits(keeps_schema=False), hold=hold) as server:
        judge = judge_at(server)
        errors: list = []

        def ask():
            try:
                judge.ask([REQUEST])
            except BuildError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while not server.requests:
            threading.Event().wait(0.01)
        threading.Event().wait(0.3)  # time for the others to come to wait
        hold.set()
        for thread in threads:
            thread.join()
        assert len(errors) == 6 and len(set(errors)) == 1 and len(server.requests) == 1


def test_a_server_that_refuses_the_schema_says_the_way_out(server):
    server.script(status(400, "response_format is not supported"))
    with pytest.raises(InputError, match="response_format is not supported.*schema='prompt'"):
        judge_at(server).ask([REQUEST])


def test_a_check_that_reasons_to_its_limit_says_so(server):
    server.script(said("", "length"))
    with pytest.raises(BuildError, match="max_tokens=50.*Raise it"):
        judge_at(server, max_tokens=50).ask([REQUEST])


# ---- What comes back ----


@pytest.mark.parametrize(
    ("canned", "expected", "detail"),
    [
        (said(VERDICT), "ok", None),
        (said(VERDICT[:40], "length"), "truncated", "length"),
        (said("", "content_filter"), "refused", "content_filter"),
        (said(None, refusal="I can't help with that."), "refused", ""),
        (said(None), "malformed", "no JSON"),
        (said(f"```json\n{VERDICT}\n```"), "malformed", "no JSON"),
        (said(VERDICT + " So A is better."), "malformed", "no JSON"),
        (status(400, "too many tokens", "exceed_context_size_error"), "truncated", "too many tokens"),
        (status(400, "This model's maximum context length is 4096 tokens."), "truncated", "4096"),
        (
            Canned(400, b'{"error": {"message": "Too long.", "code": "context_length_exceeded"}}'),
            "truncated",
            "Too long.",
        ),
        (Canned(400, b'{"error": {"message": "No.", "code": "content_filter"}}'), "refused", "content_filter"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_ending_has_its_status(server, canned, expected, detail):
    judge = checked(server)
    server.script(canned)
    (reply,) = judge.ask([REQUEST])
    again = Reply.from_json(json.loads(json.dumps(reply.to_json())))
    verdict = judge.parse(REQUEST, again)
    assert verdict.status == expected and (detail is None or detail in verdict.detail)
    assert len(server.requests) == 1


def test_the_envelope_is_kept(server):
    judge = checked(server)
    server.script(Canned(body=said(VERDICT).body, headers={"x-request-id": "req_7"}))
    (reply,) = judge.ask([REQUEST])
    assert (reply.raw, reply.stop_reason, reply.request_id, reply.model) == (VERDICT, "stop", "req_7", "m")


def test_the_words_of_a_refusal_are_kept():
    message = {"role": "assistant", "content": "", "refusal": "I won't."}
    reply = read_completion({"choices": [{"message": message, "finish_reason": "stop"}], "id": "c9"})
    assert reply.stop_reason == "refusal" and json.loads(reply.raw)["stop_details"]["words"] == "I won't."
    assert reply.request_id == "c9"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "finish_reason", "refusal", "prompt_tokens", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_reply_or_a_fault_and_goes_into_the_journal(body):
    try:
        reply = read_completion(body)
    except Fault:
        return
    assert Reply.from_json(json.loads(json.dumps(reply.to_json()))) == reply
    assert isinstance(reply.raw, str)


# ---- Faults ----


@pytest.mark.parametrize(
    "fault",
    [status(529), status(500), status(429), torn(), reset(), html(), plain(b""), plain(b"null"), plain(b"{}")]
    + [plain(b'{"error": {"message": "busy"}}'), plain(b'{"choices": [{"index": 0}]}')],
    ids=range(11),
)
def test_a_fault_is_waited_out_and_never_taken_for_a_reply(server, pauses, fault):
    judge = checked(server)
    server.script(fault, fault, said(VERDICT))
    (reply,) = judge.ask([REQUEST])
    assert reply.raw == VERDICT and len(server.requests) == 3 and len(pauses) == 2


def test_a_server_that_stays_down_ends_the_build_after_the_allowed_tries(server, pauses):
    judge = checked(server, max_retries=2)
    server.script(*[status(503)] * 9)
    with pytest.raises(BuildError, match="no reply in 3 tries"):
        judge.ask([REQUEST])
    assert len(server.requests) == 3


def test_a_wrong_key_is_the_users_to_mend(server):
    judge = checked(server)
    server.script(status(401, "bad key"))
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        judge.ask([REQUEST])
    assert len(server.requests) == 1


def test_the_key_is_sent_and_shown_nowhere(server, pauses, capsys):
    judge = judge_at(server, api_key=KEY, max_retries=1)
    shown = [repr(judge), str(vars(judge)), json.dumps(judge.fingerprint())]
    with everything_logged() as logs:
        judge.ask([REQUEST])
        assert server.requests[0][0]["authorization"] == f"Bearer {KEY}"
        echo = f"you sent {KEY}"
        for canned in ([status(400, echo)], [status(500, echo)] * 2, [status(401, echo)], [status(403, echo)]):
            server.script(*canned)
            with pytest.raises((InputError, BuildError)) as caught:
                judge.ask([REQUEST])
            shown.append("".join(traceback.format_exception(caught.value)))
            server.clear()
        server.script(status(400, f"maximum context length, {KEY}"))
        shown.append(str(judge.ask([REQUEST])))
    shown += [logs.getvalue(), *capsys.readouterr()]
    assert KEY not in "".join(shown) and "<key>" in "".join(shown)


# ---- Money ----


def test_prices_bound_what_a_request_can_cost(server, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 2.0, cached: 1.0, output: 10.0}}")
    judge = judge_at(server, prices=prices, paid=True, max_tokens=100)
    worst = judge.worst_case_cost(REQUEST)
    (reply,) = judge.ask([REQUEST])
    assert judge.cost(reply.usage) == pytest.approx((120 * 2 + 80 * 1 + 60 * 10) / 1e6)
    later = judge.worst_case_cost(REQUEST)
    assert 0 < later < worst  # the check is behind it
    wide = JudgeRequest(REQUEST.prompt, REQUEST.candidates, None, 0, "5f3a", room=2)
    assert judge.worst_case_cost(wide) == pytest.approx(later + 100 * 10 / 1e6)


def test_a_price_that_is_not_known_is_not_nought(server):
    judge = judge_at(server, paid=True)
    assert judge.cost(Usage(input=1)) is None and judge.worst_case_cost(REQUEST) is None


# ---- Batches ----


def test_a_batch_needs_one_server_and_bounds_its_price_without_a_check(server, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {m: {input: 2.0, output: 10.0}}")
    judge = judge_at(server, prices=prices, paid=True)
    batches = judge.batch(max_requests=7)
    judge.check()
    assert batches.worst_case_cost(REQUEST) == pytest.approx(judge.worst_case_cost(REQUEST) / 2)
    assert batches.max_requests == 7
    with pytest.raises(InputError, match="one server"):
        OpenAICompatibleJudge("m", endpoints=[server.url, server.url + "/2"]).batch()


# ---- Arguments and the fingerprint ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schema": "strct"}, "Did you mean 'strict'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_rationale": 0}, "max_rationale is 0"),
        ({"max_rationale": 9, "schema": "prompt"}, "schema='strict'"),
        ({"extra_body": {"temperature": 1}}, "holds temperature"),
        ({"extra_body": {"reasoning_effort": "low"}}, "holds reasoning_effort"),
        ({"extra_body": {"response_format": {}}}, "holds response_format"),
        ({"extra_body": {"api_key": "x"}}, "api_key"),
    ],
)
def test_arguments_out_of_range_are_named(server, options, words):
    with pytest.raises(InputError, match=words):
        judge_at(server, **options)


def test_https_needs_a_key_and_is_paid():
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        OpenAICompatibleJudge("m", "https://example.org/v1")
    assert OpenAICompatibleJudge("m", "https://example.org/v1", api_key=KEY).paid


def test_the_fingerprint_knows_what_changes_a_reply_and_no_address(server):
    base = judge_at(server).fingerprint()
    assert server.url not in json.dumps(base)
    others = [{"effort": "low"}, {"max_tokens": 5}, {"temperature": 0.5}, {"seed": 1}, {"schema": "prompt"}]
    others += [
        {"max_rationale": 90},
        {"extra_body": {"min_p": 0}},
        {"protocol": ContextualProtocol(show_reference=True)},
    ]
    prints = [json.dumps(judge_at(server, **options).fingerprint()) for options in others]
    assert len({json.dumps(base), *prints}) == len(others) + 1
    assert judge_at(server, concurrency=2, timeout=5, max_retries=0).fingerprint() == base
