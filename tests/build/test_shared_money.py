"""One cap for all who share a journal: what living others have in flight counts, what the dead had does not."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter

import pytest
from doubles.anthropic_server import AnthropicServer, message
from doubles.killed_judging import GOOD, PlainProtocol, claude, questions

from tuna_trl.build import judging
from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.build.judging import ask_all, usage_totals
from tuna_trl.clients.base import Reply, Usage
from tuna_trl.errors import BudgetExceeded


@pytest.fixture
def two(tmp_path):
    """Two who share a journal, as two processes do: each with a lease of its own."""
    with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as other:
        yield one, other


def shared(journal, cap):
    budget = Budget(cap)
    budget.share(journal)
    return budget


def test_what_another_has_in_flight_is_waited_for_and_what_it_spent_counts(two):
    one, other = two
    first, second = shared(one, 1.0), shared(other, 1.0)
    first.reserve(0.8)
    waiting = threading.Thread(target=second.reserve, args=(0.5,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    one.put_all({"a": {}}, kind="judgment", cost=0.4)
    first.settle(0.8, 0.0)
    waiting.join(20)
    assert not waiting.is_alive()
    assert second.spent == 0.4
    with pytest.raises(BudgetExceeded, match=r"0\.4000 USD are spent"):
        first.reserve(0.7)
    first.reserve(0.1)


def test_no_sum_of_two_is_above_the_cap_whatever_they_do_at_once(two):
    cap, above, done = 1.0, [], Counter()

    def work(journal, name):
        budget = shared(journal, cap)
        for k in range(15):
            try:
                budget.reserve(0.3)
            except BudgetExceeded:
                return
            money = journal.money(lambda ledger: ledger.balance(""))
            if money.spent + money.others > cap + 1e-9:
                above.append(money)
            journal.put_all({f"{name}-{k}": {}}, kind="judgment", cost=0.07)
            budget.settle(0.3, 0.0)
            done[name] += 1

    threads = [threading.Thread(target=work, args=(journal, i)) for i, journal in enumerate(two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not above
    # ten have cost 0.7; the eleventh could take it to the cap; a twelfth and thirteenth could pass it
    assert two[0].spent() == pytest.approx(0.07 * done.total()) and done.total() in (10, 11)


def test_the_dead_have_nothing_in_flight(tmp_path):
    import sys

    script = (
        "import sys; from tuna_trl.build.journal import Journal; from tuna_trl.build.cost import Budget\n"
        "b = Budget(1.0); b.share(Journal(sys.argv[1])); b.reserve(0.9); print('there', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with Journal(tmp_path / "j") as journal:
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "j")], **pipes)
        assert process.stdout.readline() == "there\n"
        assert journal.money(lambda ledger: ledger.balance("")).others == 0.9
        process.kill()
        process.wait()
        shared(journal, 1.0).reserve(0.9)


def test_two_budgets_of_one_process_count_each_other(two):
    one, _ = two
    shared(one, 1.0).reserve(0.6)
    with pytest.raises(BudgetExceeded, match="could cost up to 1.1"):
        shared(one, 1.0).reserve(1.1)
    assert one.money(lambda ledger: ledger.balance("")).others == 0.6


def test_what_open_batches_may_cost_counts_until_they_are_collected(two):
    one, other = two
    submission, dear = one.batches(
        lambda known: known.begin("tag", {"a": 0.4, "b": 0.4, "c": 0.4}, judge="j", cap=1.0)
    )
    assert submission.size == 2 and dear == ["c"]
    with pytest.raises(BudgetExceeded, match=r"batches in flight may cost 0\.8000 USD"):
        shared(other, 1.0).reserve(0.3)
    one.batches(lambda known: known.receive("tag", "a", {"x": 1}, kind="judgment", cost=0.1))
    one.batches(lambda known: known.receive("tag", "a", {"x": 2}, kind="judgment", cost=0.1))  # a second download
    assert one.spent() == 0.1 and one.get("a") == {"x": 1}
    shared(other, 1.0).reserve(0.3)
    other.batches(lambda known: known.end("tag", "collected"))
    assert one.money(lambda ledger: ledger.balance("")).batches == 0
    assert one.claim(["b"]).state == "mine"


def test_a_question_in_a_batch_is_nobodys_to_ask_singly_and_the_other_way_round(two):
    one, other = two
    assert other.claim(["x"]).state == "mine"
    submission, dear = one.batches(lambda known: known.begin("tag", {"a": 0.0, "x": 0.0}, judge="j", cap=1.0))
    assert (submission.size, dear) == (1, [])
    assert other.claim(["a"]).state == "batch"
    assert other.batches(lambda known: known.begin("t2", {"a": 0.0}, judge="j", cap=1.0)) == (None, [])
    assert other.batches(lambda known: known.mine("j")) == []  # its owner lives
    assert [each.tag for each in one.batches(lambda known: known.mine("j"))] == ["tag"]


class Judge(PlainProtocol):
    name, method, paid, concurrency, max_batch = "judge", "judge", True, 3, 1

    def __init__(self, asked, meet=lambda: None) -> None:
        self.asked, self.meet = asked, meet

    def ask(self, requests):
        self.asked.update(request.prompt[-1]["content"] for request in requests)
        self.meet()
        return [Reply(GOOD, "stop", usage=Usage(output=1)) for _ in requests]

    def worst_case_cost(self, request):
        return 0.04

    def cost(self, usage):
        return 0.01


@pytest.mark.parametrize("max_batch", [1, 4])
def test_two_who_ask_singly_ask_every_question_once_and_have_all_answers(two, monkeypatch, max_batch):
    monkeypatch.setattr(judging, "_LOOK", 0.01)
    asked, both = Counter(), threading.Barrier(2)
    met = []

    def meet():  # the first request of each is answered when both have asked
        if len(met) < 2:
            met.append(1)
            both.wait(20)

    lists = [questions(30), questions(30)]

    def work(journal, mine):
        judge = Judge(asked, meet)
        judge.max_batch, judge.concurrency = max_batch, 1
        ask_all(mine, judge, journal=journal, budget=Budget(1.0), show_progress=False)

    threads = [threading.Thread(target=work, args=each) for each in zip(two, lists, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(asked.values()) == {1} and len(asked) == 30
    assert lists[0] == lists[1] and all(question.answers for question in lists[0])
    assert two[0].spent() == pytest.approx(0.3) and two[0].sent_again() == 0


def test_what_does_not_fit_is_marked_counted_and_asked_when_the_cap_is_raised(tmp_path):
    asked = Counter()
    first = questions(20)
    with Journal(tmp_path / "j") as journal:
        budget = Budget(0.105)
        ask_all(first, Judge(asked), journal=journal, budget=budget, show_progress=False, stop_over_budget=False)
        totals = usage_totals(first, Judge(asked))
        assert budget.spent <= 0.105 and totals.cost == pytest.approx(budget.spent)
        assert totals.statuses == {"ok": 7, "over_budget": 13} and totals.requests == 7 == journal.count("judgment")
        assert all(
            "max_cost is 0.10" in q.answers[-1].verdict.detail for q in first if len(q.answers[-1].reply.raw) == 0
        )
        second = questions(20)
        ask_all(second, Judge(asked), journal=journal, budget=Budget(1.0), show_progress=False)
    assert set(asked.values()) == {1} and usage_totals(second, Judge(asked)).statuses == {"ok": 20}


def test_a_cut_reply_is_asked_once_again_with_twice_the_room_under_its_own_key(tmp_path, capsys):
    with AnthropicServer() as server, Journal(tmp_path / "j") as journal:
        server.script(*[message(GOOD[:5], stop_reason="max_tokens")] * 2, message("nonsense"))
        server.answer = lambda body: GOOD
        judge = claude(server.url, concurrency=1, max_tokens=100)
        (question,) = questions(1)
        ask_all([question], judge, journal=journal, budget=Budget(1.0), show_progress=False)
        assert [answer.verdict.status for answer in question.answers] == ["truncated", "truncated"]
        assert [body["max_tokens"] for _, body in server.requests] == [100, 200]
        assert len({question.key(judge, attempt) for attempt in range(3)}) == 3
        (other,) = questions(2)[1:]
        server.script(message(GOOD[:5], stop_reason="max_tokens"))  # then the nonsense, then the good one
        server._queue.rotate(1)
        ask_all([other], judge, journal=journal, budget=Budget(1.0), show_progress=True)
        assert [answer.verdict.status for answer in other.answers] == ["truncated", "malformed", "ok"]
        assert [body["max_tokens"] for _, body in server.requests[2:]] == [100, 200, 200]
        assert "1 judgments (1 ok); 3 requests" in capsys.readouterr().err
        before = len(server.requests)
        again = questions(2)
        ask_all(again, judge, journal=journal, budget=Budget(1.0), show_progress=False)
        assert len(server.requests) == before and [q.answers for q in again] == [question.answers, other.answers]
        assert journal.spent() == pytest.approx(sum(a.cost for q in again for a in q.answers))
