"""Batches, through the real SDK against a loopback server that counts: every fault, every fate, the money, the key."""

from __future__ import annotations

import json
import logging
import re
import signal
import traceback
from collections import Counter

import pytest
from doubles.anthropic_server import AnthropicServer, Canned, error, html, overloaded, plain
from doubles.batch_shelf import without_waiting
from doubles.killed_judging import GOOD, KEY, claude, questions

from tuna_trl.build import batches
from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.build.judging import ask_all, usage_totals
from tuna_trl.clients.base import BatchTransport
from tuna_trl.errors import BudgetExceeded, BuildError, InputError


FULL = 1200 * 4e-6 + 300 * 20e-6  # USD of one of the double's replies


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_waiting(monkeypatch)


@pytest.fixture
def server():
    with AnthropicServer(lambda body: GOOD) as server:
        yield server


def ask(server, path, count=12, *, most=5, max_cost=50.0, show=False, **options):
    judge = claude(server.url, concurrency=2)
    asked = questions(count)
    with Journal(path) as journal:
        ask_all(
            asked,
            judge,
            journal=journal,
            budget=Budget(max_cost),
            batch=judge.batch(max_requests=most),
            poll=0.01,
            show_progress=show,
            **options,
        )
    return judge, asked


def statuses(asked):
    return Counter(question.answers[-1].verdict.status for question in asked)


def singles(server):
    return len(server.requests)


def test_the_transport_is_one(server):
    assert isinstance(claude(server.url).batch(), BatchTransport)


def test_every_question_is_asked_once_in_batches_within_the_limits_at_half_price(server, tmp_path, capsys):
    judge, asked = ask(server, tmp_path / "j", 12, show=True)
    assert statuses(asked) == {"ok": 12}
    assert singles(server) == 1 and server.shelf.asked.total() == 11
    assert set(server.shelf.asked.values()) == {1}
    assert [len(kept.items) for kept in server.shelf.batches.values()] == [5, 5, 1]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", key) for key in server.shelf.asked)
    totals = usage_totals(asked, judge)
    assert (totals.requests, totals.batch_requests) == (12, 11)
    assert totals.cost == pytest.approx(FULL + 11 * FULL / 2)
    assert (totals.usage.input, totals.usage.thinking, totals.batch.output) == (14400, 1200, 3300)
    said = " ".join(capsys.readouterr().err.split())
    assert "batch batch_0000 sent: 5 requests." in said and "batch batch_0001 collected: 5 replies." in said
    assert "12 judgments (12 ok); 12 requests, 11 of them in batches" in said and f"{totals.cost:.4f} USD" in said


def test_a_second_run_asks_nothing_and_prices_the_same_without_batches_too(server, tmp_path):
    judge, asked = ask(server, tmp_path / "j")
    before = server.shelf.asked.total(), singles(server), len(server.headers)
    again = questions(12)
    with Journal(tmp_path / "j") as journal:
        budget = Budget(50.0)
        ask_all(again, judge, journal=journal, budget=budget, show_progress=False)
    assert (server.shelf.asked.total(), singles(server), len(server.headers)) == before
    assert [q.answers for q in again] == [q.answers for q in asked]
    assert usage_totals(again, judge) == usage_totals(asked, judge)
    assert budget.spent == pytest.approx(usage_totals(asked, judge).cost)


def test_what_expires_or_breaks_at_the_providers_is_asked_again_in_a_later_batch(server, tmp_path, capsys):
    fates = ["expired", "canceled", "overloaded_error", "api_error", "rate_limit_error"]
    server.shelf.fate = lambda key, body, times: fates[int(key, 16) % 5] if times == 0 else "succeeded"
    _, asked = ask(server, tmp_path / "j", show=True)
    assert statuses(asked) == {"ok": 12}
    assert set(server.shelf.asked.values()) == {2} and set(server.shelf.answered.values()) == {1}
    assert "requests without one" in capsys.readouterr().err


def test_what_never_comes_is_given_up_after_six_batches_and_the_rest_is_kept(server, tmp_path):
    bad = '"question 7.'
    server.shelf.fate = lambda key, body, times: "expired" if bad[1:] in json.dumps(body) else "succeeded"
    with pytest.raises(BuildError, match=r"1 requests came back .* from 6 batches \(expired: 6\).*11 of 12 judgments"):
        ask(server, tmp_path / "j")
    assert sorted(server.shelf.asked.values()) == [1] * 10 + [6]


def test_a_request_that_is_wrong_is_named_when_all_others_are_answered_and_not_asked_again(server, tmp_path):
    server.shelf.fate = lambda key, body, times: (
        "invalid_request_error" if "question 7." in json.dumps(body) else "succeeded"
    )
    with pytest.raises(InputError, match=r"train\[7\]: claude-opus-5-5 refused the request \(invalid_request_error"):
        ask(server, tmp_path / "j")
    assert set(server.shelf.asked.values()) == {1}
    with Journal(tmp_path / "j") as journal:
        assert journal.count("judgment") == 11


def test_a_request_that_the_api_refuses_is_refused_before_any_batch_is_sent(server, tmp_path):
    server.script(error(400, "invalid_request_error", "effort: unknown"))
    with pytest.raises(InputError, match=r"train\[\d+\]: .*effort: unknown"):
        ask(server, tmp_path / "j")
    assert not server.shelf.batches


def test_malformed_and_cut_replies_are_asked_again_in_later_batches_and_refusals_never(server, tmp_path):
    seen = Counter()

    def answer(body):
        number = re.search(r"question (\d+)\.", body["messages"][0]["content"])[1]
        seen[number] += 1
        return "nonsense" if number == "3" and seen["3"] <= 2 else GOOD

    server.answer = answer
    record = server._results

    def results(kept):
        canned = record(kept)
        lines = []
        for line in canned.body.splitlines():
            item = json.loads(line)
            body = dict(kept.items)[item["custom_id"]]
            if "question 5." in json.dumps(body) and body["max_tokens"] == 4096:
                item["result"]["message"]["stop_reason"] = "max_tokens"
            if "question 6." in json.dumps(body):
                item["result"]["message"] |= {"stop_reason": "refusal", "content": []}
            lines.append(json.dumps(item))
        return Canned(body="\n".join(lines).encode())  # and no line feed at the end

    server._results = results
    judge, asked = ask(server, tmp_path / "j", most=50)
    by_row = {q.where: [a.verdict.status for a in q.answers] for q in asked}
    assert by_row.pop("train[3]") == ["malformed", "malformed", "ok"]
    assert by_row.pop("train[5]") == ["truncated", "ok"]
    assert by_row.pop("train[6]") == ["refused"]
    assert set(map(tuple, by_row.values())) == {("ok",)}
    assert set(server.shelf.asked.values()) == {1}  # every attempt has a key of its own
    assert usage_totals(asked, judge).replies == {"malformed": 2, "ok": 11, "refused": 1, "truncated": 1}


FAULTS = {
    "529": overloaded(),
    "500": error(500, "api_error"),
    "html": html(),
    "null": plain(b"null"),
    "empty": plain(b""),
    "{}": plain(b"{}"),
    "torn": Canned(body=b'{"id": "batch_0000", "type": "message_batch"}' + b" " * 50, cut=40),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_on_the_way_lose_nothing_and_a_create_is_never_sent_blindly_again(server, tmp_path, fault):
    """The answer to `create` is lost although the batch is there; every look and every download breaks once."""
    about, lost = server._about_batches, []

    def losing(method, path, body):
        answer = about(method, path, body)
        if method == "POST" and not lost:
            lost.append(path)
            server.batch_faults.extend([fault, fault])
            return fault
        return answer

    server._about_batches = losing
    server.shelf.tears = [0, 2, 4]
    _, asked = ask(server, tmp_path / "j")
    assert statuses(asked) == {"ok": 12}
    assert set(server.shelf.asked.values()) == {1}


@pytest.mark.parametrize("status", [429, 413, 401])
def test_a_create_that_is_refused_is_no_submission(server, tmp_path, status):
    create, calls = server._about_batches, []

    def about(method, path, body):
        if method == "POST" and not calls:
            calls.append(1)
            return error(status, "some_error", "no")
        return create(method, path, body)

    server._about_batches = about
    if status == 429:
        _, asked = ask(server, tmp_path / "j")
        assert statuses(asked) == {"ok": 12}
    else:
        with pytest.raises(InputError, match=f"HTTP {status}"):
            ask(server, tmp_path / "j")
        _, asked = ask(server, tmp_path / "j")
    assert set(server.shelf.asked.values()) == {1}


def test_torn_results_are_fetched_again_and_each_item_is_paid_for_once(server, tmp_path):
    server.shelf.tears = [3, 3, 4, 0, 1]
    judge, asked = ask(server, tmp_path / "j", 10, most=9)
    assert statuses(asked) == {"ok": 10} and set(server.shelf.asked.values()) == {1}
    with Journal(tmp_path / "j") as journal:
        assert journal.spent() == pytest.approx(FULL + 9 * FULL / 2)


def test_results_that_stop_short_without_an_error_are_fetched_again(server, tmp_path):
    whole, calls = server._results, []

    def short(kept):
        canned = whole(kept)
        calls.append(1)
        return Canned(body=b"".join(canned.body.splitlines(True)[:2])) if len(calls) == 1 else canned

    server._results = short
    _, asked = ask(server, tmp_path / "j", 5)
    assert statuses(asked) == {"ok": 5} and set(server.shelf.asked.values()) == {1} and len(calls) == 2


def test_a_batch_that_cannot_be_read_any_more_is_not_paid_for_again_unasked(server, tmp_path):
    about = server._about_batches
    server._about_batches = lambda method, path, body: (
        error(404, "not_found_error", "no such batch") if method == "GET" else about(method, path, body)
    )
    for _ in range(2):
        with pytest.raises(InputError, match="batch batch_0000 with 5 requests cannot be read.*--forget-batch"):
            ask(server, tmp_path / "j")
    assert server.shelf.asked.total() == 5
    server._about_batches = about
    with Journal(tmp_path / "j") as journal:
        assert journal.batches(lambda known: known.forget("batch_9999")) == 0
        assert journal.batches(lambda known: known.forget("batch_0000")) == 5
    _, asked = ask(server, tmp_path / "j")
    assert statuses(asked) == {"ok": 12} and sorted(server.shelf.asked.values()) == [1] * 6 + [2] * 5


def test_ctrl_c_leaves_the_batch_running_and_says_how_to_go_on(server, tmp_path, capsys):
    server.shelf.looks = 8
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batches.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
        ask(server, tmp_path / "j", show=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "go on at the provider's (batch_0000, batch_0001, batch_0002); run the same command again" in said
    before = server.shelf.asked.total()
    with Journal(tmp_path / "j") as journal, pytest.raises(InputError, match="are in batches.*--batch"):
        ask_all(questions(12), claude(server.url), journal=journal, budget=Budget(50.0), show_progress=False)
    _, asked = ask(server, tmp_path / "j")
    assert statuses(asked) == {"ok": 12} and server.shelf.asked.total() == before == 11 and singles(server) == 1


def test_the_list_is_read_page_by_page(server, tmp_path):
    server.shelf.page = 2
    for _ in range(7):
        server.shelf.create([(f"foreign-{len(server.shelf.batches)}", {})])
    states = claude(server.url).batch().list(since=0.0)
    assert [state.id for state in states] == [f"batch_{i:04d}" for i in range(6, -1, -1)]
    newest = states[0].created
    assert claude(server.url).batch().list(since=newest + 10) == []


class TestMoney:
    def test_a_batch_holds_no_more_than_the_cap_allows_and_the_rest_follows_when_money_comes_back(
        self, server, tmp_path
    ):
        judge = claude(server.url)
        worst = judge.worst_case_cost(questions(1)[0].request)
        cap = worst + 3.2 * worst / 2  # one asked singly; then three at a time in batches
        _, asked = ask(server, tmp_path / "j", 8, most=50, max_cost=cap)
        assert statuses(asked) == {"ok": 8}
        sizes = [len(kept.items) for kept in server.shelf.batches.values()]
        assert sum(sizes) == 7 and max(sizes) <= 5 and len(sizes) >= 2

    def test_a_cap_that_only_the_price_of_batches_fits_under_is_used(self, server, tmp_path):
        worst = claude(server.url).worst_case_cost(questions(1)[0].request)
        _, asked = ask(server, tmp_path / "j", 3, max_cost=0.8 * worst, stop_over_budget=False)
        assert statuses(asked)["ok"] >= 1 and singles(server) == 0

    def test_what_does_not_fit_stops_the_run_or_is_marked_and_never_journalled(self, server, tmp_path):
        judge = claude(server.url)
        worst = judge.worst_case_cost(questions(1)[0].request)
        cap = worst + FULL
        with pytest.raises(BudgetExceeded, match=r"in a batch\..*of 40 judgments.*Raise max_cost"):
            ask(server, tmp_path / "j", 40, max_cost=cap)
        spent = FULL + FULL / 2 * server.shelf.answered.total()
        assert spent <= cap and server.shelf.answered.total() > 5
        judge, asked = ask(server, tmp_path / "j", 40, max_cost=cap, stop_over_budget=False)
        found = statuses(asked)
        assert set(found) == {"ok", "over_budget"} and found["over_budget"] >= 3
        with Journal(tmp_path / "j") as journal:
            assert journal.count("judgment") == found["ok"] and journal.spent() <= cap
        totals = usage_totals(asked, judge)
        assert totals.requests == found["ok"] and totals.statuses == dict(found)
        _, asked = ask(server, tmp_path / "j", 40)
        assert statuses(asked) == {"ok": 40} and set(server.shelf.asked.values()) == {1}


def test_the_key_is_in_no_journal_log_message_or_traceback(server, tmp_path, caplog, capsys):
    said = []
    with caplog.at_level(logging.DEBUG):
        server.shelf.fate = lambda key, body, times: "expired" if times == 0 else "succeeded"
        server.shelf.tears = [1]
        server.batch_faults.extend([error(529, "overloaded_error", f"key {KEY}"), html()])
        ask(server, tmp_path / "j", show=True)
        for fault in (error(401, "authentication_error", f"bad key {KEY}"), error(403, "permission_error", KEY)):
            server.batch_faults.append(fault)
            try:
                ask(server, tmp_path / f"j-{fault.status}", show=True)
            except InputError as caught:
                chain = traceback.TracebackException.from_exception(caught, capture_locals=False)
                said += ["".join(chain.format()), repr(caught.__context__)]
    captured = capsys.readouterr()
    written = caplog.text + captured.out + captured.err + "".join(said)
    assert "batch_0000" in written and len(said) == 4 and "<key>" in written
    assert KEY not in written
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
