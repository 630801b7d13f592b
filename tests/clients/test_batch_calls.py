"""Lines of a stream as they were written, wherever it is cut; requests that are priced and marked for the cache."""

from __future__ import annotations

import json

import pytest
from doubles.anthropic_server import AnthropicServer, message
from doubles.killed_judging import GOOD, claude, questions
from hypothesis import given
from hypothesis import strategies as st

from tuna_trl.clients.base import Usage
from tuna_trl.clients.batch_calls import lines
from tuna_trl.clients.prices import PriceTable, load_prices
from tuna_trl.errors import InputError


texts = st.text(st.sampled_from("ab\u2028\x85\r\né🙂\x0b\x1c"), max_size=8)


@given(st.lists(texts, max_size=6), st.lists(st.integers(0, 200), max_size=8), st.booleans(), st.booleans())
def test_lines_are_what_was_written_wherever_the_stream_is_cut(values, cuts, ended, escaped):
    whole = b"\n".join(json.dumps(value, ensure_ascii=escaped).encode() for value in values)
    whole += b"\n" if ended else b""
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    chunks = [whole[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert [json.loads(line) for line in lines(chunks)] == values


def test_the_size_of_a_request_is_never_less_than_what_is_sent():
    request = questions(1)[0].request
    for text in ("plain", 'é\u2028🙂\\"', "\x00\x1f"):
        judge = claude("http://127.0.0.1:1")
        odd = type(request)([{"role": "user", "content": text * 50}], request.candidates)
        sent = json.dumps({"custom_id": "0" * 64, "params": judge.body(odd)}, ensure_ascii=False).encode()
        assert judge.batch().size(odd) >= len(sent)


def test_limits_are_the_providers_or_lower():
    judge = claude("http://127.0.0.1:1")
    assert (judge.batch().max_requests, judge.batch().max_bytes) == (100_000, 256_000_000)
    assert judge.batch(max_requests=7, max_bytes=10**12).max_requests == 7
    assert judge.batch(max_bytes=10**12).max_bytes == 256_000_000
    with pytest.raises(InputError, match="max_requests"):
        judge.batch(max_requests=0)


def test_a_marked_system_prompt_is_sent_so_priced_so_and_the_same_judge():
    with AnthropicServer(lambda body: GOOD) as server:
        plain, marked = claude(server.url), claude(server.url, cache_system=True)
        usage = {"input_tokens": 100, "cache_read_input_tokens": 900, "cache_creation_input_tokens": 0}
        server.script(message(GOOD, usage=usage | {"output_tokens": 10}))
        request = questions(1)[0].request
        (reply,) = marked.ask([request])
        (system,) = server.requests[0][1]["system"]
        assert system == {"type": "text", "text": "Score the candidates.", "cache_control": {"type": "ephemeral"}}
        assert reply.usage == Usage(input=100, cached=900, output=10)
        assert marked.cost(reply.usage) == pytest.approx(100 * 4e-6 + 900 * 0.2e-6 + 10 * 20e-6)
        assert marked.fingerprint() == plain.fingerprint()
        more = marked.worst_case_cost(request) - plain.worst_case_cost(request)
        assert more == pytest.approx(len("Score the candidates.") * 1e-6)  # written at 5 instead of 4 USD a million


def test_the_share_of_a_batch_is_the_models_the_tables_or_half(tmp_path):
    assert load_prices().batch_share("claude-opus-5-5") == 0.5
    path = tmp_path / "prices.yaml"
    path.write_text("batch: 0.6\nmodels: {mine: {input: 1, output: 1}, other: {input: 1, output: 1, batch: 0.9}}")
    table = load_prices(path)
    shares = [table.batch_share(name) for name in ("mine", "other", "claude-opus-5-5")]
    assert shares == [0.6, 0.9, 0.5]
    assert PriceTable("2026-01-01", {}).batch_share("unknown") == 0.5
    for wrong in ("batch: half", "batch: -1", "batch: .nan"):
        path.write_text(f"{wrong}\nmodels: {{}}")
        with pytest.raises(InputError, match="batch is"):
            load_prices(path)
