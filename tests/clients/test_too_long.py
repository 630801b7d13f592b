"""How servers say that a request does not fit the model, and that nothing else is taken for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from doubles.openai_server import status

from tuna_trl.clients.base import Reply, Sampling
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.openai_completion import declined
from tuna_trl.clients.retry import Refused
from tuna_trl.clients.too_long import TOO_LONG, says_too_long, too_long


SAID = {
    "openai": {"error": {"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}},
    "the sdk's body": {"message": "no", "code": "context_length_exceeded"},
    "vllm": {
        "message": "This model's maximum context length is 4096 tokens. However, you requested 5000.",
        "code": 400,
    },
    "llama.cpp": {"error": {"code": 400, "message": "the request exceeds", "type": "exceed_context_size_error"}},
    "anthropic": {"type": "error", "error": {"message": "prompt is too long: 213462 tokens > 200000 maximum"}},
    "tgi": {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500"},
    "tgi, the sdk's body": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3000",
}
OTHERS = [
    None,
    "",
    [],
    {"error": None},
    {"error": {"message": "max_tokens is too large: 200000. This model supports at most 16384 completion tokens."}},
    {"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}},
    {"message": "the model `m` does not exist", "type": "not_found_error"},
]


@pytest.mark.parametrize("body", SAID.values(), ids=SAID)
def test_every_servers_way_to_say_so_is_known(body):
    assert says_too_long(body)
    reply = too_long(body, lambda words: words.replace("tokens", "*"), "req_1")
    assert (reply.stop_reason, reply.request_id) == (TOO_LONG, "req_1") and "tokens" not in reply.raw
    assert isinstance(declined(SimpleNamespace(body=body, request_id="req_1"), str), Reply)


@pytest.mark.parametrize("body", OTHERS, ids=repr)
def test_no_other_refusal_is_taken_for_it(body):
    assert not says_too_long(body) and too_long(body, str) is None


@pytest.mark.parametrize(
    "canned, expected",
    [
        (status(400, "maximum context length is 4096"), True),
        (status(422, "`inputs` must have less than 1024 tokens. Given: 1500"), True),
        (status(413, "no"), True),
        (status(400, "the model does not exist"), False),
        (status(401, "maximum context length"), False),
        (status(422, "extra fields"), False),
    ],
    ids=lambda value: f"{value.status} {value.body[:50]}" if hasattr(value, "status") else str(value),
)
def test_a_refused_request_knows_whether_it_is_the_rows_fault(server, canned, expected):
    server.script(canned)
    with pytest.raises(Refused) as refused:
        OpenAICompatibleSampler("m", server.url).request([{"role": "user", "content": "Hi"}], 1, Sampling(), seed=0)
    assert refused.value.too_long == expected and refused.value.status == canned.status
