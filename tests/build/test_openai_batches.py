"""OpenAI's batches through the real SDK: files, tags, both result files, faults; with a judge that is a mere body."""

from __future__ import annotations

import json

import pytest
from doubles.batch_shelf import without_waiting
from doubles.killed_judging import GOOD, PlainProtocol, questions
from doubles.openai_batches import OpenAIBatchServer
from doubles.openai_server import html, status

from tuna_trl.build.cost import Budget
from tuna_trl.build.journal import Journal
from tuna_trl.build.judging import ask_all
from tuna_trl.clients.base import BatchTransport, Reply, Usage
from tuna_trl.clients.openai_batches import OpenAIBatches
from tuna_trl.errors import InputError


KEY = "sk-planted-1f2e3d4c"


class BodyJudge(PlainProtocol):
    """As much of a judge as batches need; singly it answers by itself."""

    name, method, paid, concurrency, max_batch, gives_room = "gpt-x", "judge", True, 2, 1, True

    def body(self, request):
        system, user = self.render(request)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user + " \u2028 é"}]
        limit = 100 * request.room
        return {"model": self.name, "messages": messages, "max_tokens": limit, "extra_body": {"top_k": 3}}

    def read_body(self, body):
        (choice,) = body["choices"]
        usage = Usage(input=body["usage"]["prompt_tokens"], output=body["usage"]["completion_tokens"])
        return Reply(choice["message"]["content"], choice["finish_reason"], body["id"], body["model"], usage)

    def ask(self, requests):
        return [Reply(GOOD, "stop", "r", self.name, Usage(input=1000, output=200)) for _ in requests]

    def worst_case_cost(self, request):
        return 0.01

    def cost(self, usage):
        return (usage.input + 4 * usage.output) * 1e-6

    def batch(self, url, **options):
        import openai

        client = openai.OpenAI(api_key=KEY, base_url=url, max_retries=0)
        hide = {"share": 0.5, "hide": lambda text: text.replace(KEY, "<key>"), "max_retries": 3}
        return OpenAIBatches(self, client, **hide, **options)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    without_waiting(monkeypatch)


@pytest.fixture
def server():
    with OpenAIBatchServer(lambda body: GOOD + " " * 10) as server:
        yield server


def ask(server, path, count=12):
    judge, asked = BodyJudge(), questions(count)
    transport = judge.batch(server.url, max_requests=5)
    assert isinstance(transport, BatchTransport)
    with Journal(path) as journal:
        options = {"budget": Budget(9.0), "batch": transport, "poll": 0.01, "show_progress": False}
        ask_all(asked, judge, journal=journal, **options)
    return judge, asked


def test_requests_go_up_in_a_file_and_every_answer_comes_back_once(server, tmp_path):
    judge, asked = ask(server, tmp_path / "j")
    assert [q.answers[-1].verdict.status for q in asked] == ["ok"] * 12
    assert set(server.shelf.asked.values()) == {1} and server.shelf.asked.total() == 11
    body = server.shelf.batches["batch_0000"].items[0][1]
    assert body["top_k"] == 3 and "extra_body" not in body and body["messages"][1]["content"].endswith("\u2028 é")
    single = 1800e-6
    assert sum(answer.cost for q in asked for answer in q.answers) == pytest.approx(single + 11 * single / 2)
    with Journal(tmp_path / "j") as journal:
        assert journal.spent() == pytest.approx(single + 11 * single / 2)
    sent = sorted(map(len, server.files["file_0"].splitlines(True)))
    sizes = {judge.batch(server.url).size(question.request) for question in asked}
    assert set(sent) <= sizes


def test_errors_of_the_second_file_are_asked_again_or_named(server, tmp_path):
    fates = ["expired", "500", "429", "succeeded"]
    server.shelf.fate = lambda key, body, times: fates[int(key, 16) % 4] if times == 0 else "succeeded"
    _, asked = ask(server, tmp_path / "j")
    assert [q.answers[-1].verdict.status for q in asked] == ["ok"] * 12
    assert set(server.shelf.answered.values()) == {1}
    server.shelf.fate = lambda key, body, times: "400" if "question 13." in json.dumps(body) else "succeeded"
    with pytest.raises(InputError, match=r"train\[13\]: gpt-x refused the request \(400: no\)"):
        ask(server, tmp_path / "j", 16)


def test_a_lost_answer_to_create_is_found_by_its_tag_while_the_batch_runs(server, tmp_path):
    server.shelf.looks = 4
    server.shelf.create([(f"foreign-{i}", {}) for i in range(5)])
    respond, lost = server.respond, []

    def losing(method, path, headers, raw):
        answer = respond(method, path, headers, raw)
        if method == "POST" and path.endswith("/batches") and not lost:
            lost.append(path)
            return status(502)
        return answer

    server.respond = losing
    server.faults.extend([html(), status(500)])
    server.shelf.tears = [2, 0]
    _, asked = ask(server, tmp_path / "j")
    assert [q.answers[-1].verdict.status for q in asked] == ["ok"] * 12
    assert set(server.shelf.asked.values()) == {1} and len(lost) == 1


def test_a_batch_that_is_refused_whole_is_said_and_can_be_sent_again(server, tmp_path):
    server.refuses = lambda kept: "token_limit_exceeded"
    with pytest.raises(InputError, match=r"refused the batch .*token_limit_exceeded.*max_requests"):
        ask(server, tmp_path / "j")
    server.refuses = lambda kept: None
    for kept in server.shelf.batches.values():
        kept.fates.clear()
    _, asked = ask(server, tmp_path / "j")
    assert [q.answers[-1].verdict.status for q in asked] == ["ok"] * 12


def test_the_key_is_in_no_message(server, tmp_path):
    server.faults.append(status(401, f"bad key {KEY}"))
    with pytest.raises(InputError, match="<key>") as caught:
        ask(server, tmp_path / "j")
    assert KEY not in str(caught.value) and caught.value.__context__ is None
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
