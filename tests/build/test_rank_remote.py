"""Laws of ranking given responses on a server: nothing is asked for twice, no cap is passed, a failure is said."""

from __future__ import annotations

import json
import math
import threading

import pytest
from doubles.openai_server import LOGITS, WORDS, Habits, OpenAIServer, html, reset, status, torn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from tuna_trl.build.journal import Journal
from tuna_trl.build.rank import RankConfig, count_unranked, rank_folder, rank_given
from tuna_trl.clients import retry
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.prompt_logprobs import PromptScorer
from tuna_trl.data.hub import load_ranked
from tuna_trl.errors import BudgetExceeded, BuildError, InputError


COLOURS = [word.strip() for word in WORDS[:4]]
ROWS = [
    {"prompt": f"Question {i}?", "responses": ["red blue", "blue", f"grey {COLOURS[i % 4]} red", "red blue", ""]}
    for i in range(7)
]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)


def scorer_at(server, **options):
    return PromptScorer(OpenAICompatibleSampler("m", server.url, **options))


def quiet(**values):
    return RankConfig(**{"show_progress": False, **values})


def by_index(row):
    return sorted(row["responses"], key=lambda response: response["index"])


def logprob(word):
    return LOGITS[WORDS.index(word)] - math.log(sum(map(math.exp, LOGITS)))


def expected(text, cut=False):
    values = [logprob(f" {word}") for word in text.split()] + ([] if cut else [logprob(WORDS[-1])])
    return sum(values), len(values)


def asked(server):
    """What was asked for beside the self-check, by messages."""
    bodies = [body for body in server.bodies if "kitchen" not in body["messages"][0]["content"]]
    return [json.dumps([body["messages"], body["add_generation_prompt"]]) for body in bodies]


def checks(server):
    return len(server.bodies) - len(asked(server))


class TestScores:
    @pytest.mark.parametrize("beta", [1.0, 0.0])
    def test_they_are_the_server_s_and_rank_the_responses(self, beta):
        with OpenAIServer() as server:
            ranked = rank_given(ROWS, scorer_at(server), quiet(length_exponent=beta))["train"]
        assert [row["prompt"][0]["content"] for row in ranked] == [row["prompt"] for row in ROWS]
        for row in ranked:
            scored = by_index(row)[:4]
            for response in scored:
                total, length = expected(response["content"])
                assert (response["logprob"], response["num_tokens"]) == (pytest.approx(total), length)
                assert response["score"] == pytest.approx(total / length**beta)
            assert [r["rank"] for r in scored] == rankdata([-round(r["score"], 9) for r in scored], "min").tolist()
            assert row["provenance"]["unranked"] == {"empty": 1} and row["status"] == "partial"
            assert row["ranker"] == "m" and row["provenance"]["include_eos"] is True

    def test_cut_responses_are_scored_without_an_end_and_ranked_on_request(self):
        rows = [{"prompt": "a", "responses": [{"content": "red blue", "finish_reason": "length"}, "blue", "grey"]}]
        with OpenAIServer() as server:
            row = rank_given(rows, scorer_at(server), quiet())["train"][0]
            both = rank_given(rows, scorer_at(server), quiet(rank_truncated=True))["train"][0]
        total, length = expected("red blue", cut=True)
        assert by_index(row)[0]["logprob"] == pytest.approx(total) and by_index(row)[0]["rank"] is None
        assert by_index(both)[0]["num_tokens"] == length and by_index(both)[0]["rank"] is not None

    def test_max_length_counts_prompt_and_response(self):
        rows = [{"prompt": "a", "responses": ["red", "red blue red blue"]}]
        with OpenAIServer() as server:
            whole = rank_given(rows, scorer_at(server), quiet())["train"][0]
            assert whole["status"] == "ok"
            body = max((b for b in server.bodies if "kitchen" not in str(b)), key=lambda b: len(str(b["messages"])))
            tokens = 1 + 3 + 1 + 2 + 3 + 4 + 2  # <s>, user turn, assistant turn, as the double renders them
            assert len(body["messages"]) == 2
            for limit, fits in ((tokens, True), (tokens - 1, False)):
                row = rank_given(rows, scorer_at(server), quiet(max_length=limit))["train"][0]
                assert (by_index(row)[1]["rank"] is not None) == fits, limit

    def test_a_word_without_a_number_and_a_rewritten_text_get_no_rank_and_are_counted(self):
        rows = [{"prompt": "a", "responses": ["red", "odd blue", "blue think", "grey"]}]
        with OpenAIServer(Habits(unknown="odd", rewrites="think")) as server:
            ranked = rank_given(rows, scorer_at(server), quiet())
            before = len(server.requests)
        assert count_unranked(ranked) == {"not_finite": 1, "rewritten": 1}
        (row,) = ranked["train"]
        assert row["status"] == "partial" and [r["score"] for r in by_index(row)][1:3] == [None, None]
        assert before > 0


class TestAsking:
    def test_equal_responses_are_asked_for_once_and_a_second_run_asks_nothing(self, tmp_path):
        rows = ROWS + ROWS[:3]
        config = quiet(journal=tmp_path / "j")
        with OpenAIServer() as server:
            first = rank_given(rows, scorer_at(server), config)["train"].to_list()
            requests = asked(server)
            assert (
                len(requests)
                == len(set(requests))
                == 7 * (1 + 3) - sum(ROWS[i]["responses"][2] in ROWS[i]["responses"][:2] for i in range(7))
            )
            before = len(server.requests)
            assert rank_given(rows, scorer_at(server), config)["train"].to_list() == first
            again = rank_given(rows, scorer_at(server), quiet(journal=tmp_path / "j", length_exponent=0, limit=4))
            assert len(again["train"]) == 4 and len(server.requests) == before

    def test_the_check_comes_first_and_nothing_is_kept_when_it_fails(self, tmp_path):
        for habits, message in (
            (Habits(scores_prompts=False), "does not score prompts.*vLLM.*local teacher.*llama.cpp"),
            (Habits(wrong_prompts=True), "are wrong"),
            (Habits(thinks=True), "generation prompt|renders"),
            (Habits(forgets=2), "counts as"),
        ):
            with OpenAIServer(habits) as server:
                with pytest.raises(BuildError, match=message):
                    rank_given(ROWS, scorer_at(server, concurrency=4), quiet(journal=tmp_path / "j"))
                assert asked(server) == [] and checks(server) <= 12
        with Journal(tmp_path / "j") as journal:
            assert journal.count() == 0

    def test_requests_run_at_once_up_to_the_concurrency(self):
        gate = threading.Barrier(3, timeout=20)
        with OpenAIServer() as server:
            scorer, lock = scorer_at(server, concurrency=3), threading.Lock()
            real, at_once, most, count = scorer.start, [0], [0], [0]

            def start(prompt, **options):
                if options:  # the check
                    return real(prompt, **options)
                with lock:
                    at_once[0] += 1
                    count[0] += 1
                    most[0] = max(most[0], at_once[0])
                    wait = count[0] <= 3
                if wait:
                    gate.wait()
                try:
                    return real(prompt)
                finally:
                    with lock:
                        at_once[0] -= 1

            scorer.start = start
            rank_given(ROWS, scorer, quiet())
            assert most[0] == 3 and server.busiest <= 3

    @settings(max_examples=5, deadline=None)
    @given(stops=st.lists(st.integers(5, 30), min_size=1, max_size=3))
    def test_a_run_stopped_anywhere_goes_on_and_asks_for_each_reply_once(self, stops, tmp_path_factory):
        journal, received = tmp_path_factory.mktemp("j") / "j", []
        with OpenAIServer() as server:
            whole = rank_given(ROWS, scorer_at(server), quiet())["train"].to_list()
        for stop in [*stops, math.inf]:
            with OpenAIServer() as server:
                scorer, count, lock = scorer_at(server, concurrency=2), [0], threading.Lock()
                real = scorer._sampler.exchange

                def exchange(*args, real=real, stop=stop, count=count, lock=lock):
                    with lock:
                        count[0] += 1
                        if count[0] >= stop:
                            raise KeyboardInterrupt
                    return real(*args)

                scorer._sampler.exchange = exchange
                try:
                    ranked = rank_given(ROWS, scorer, quiet(journal=journal))["train"].to_list()
                except KeyboardInterrupt:
                    pass
                received += asked(server)
        assert ranked == whole
        assert len(received) == len(set(received))

    def test_two_runs_on_one_journal_share_the_work(self, tmp_path):
        results = []
        with OpenAIServer() as server:

            def run():
                results.append(rank_given(ROWS, scorer_at(server), quiet(journal=tmp_path / "j"))["train"].to_list())

            threads = [threading.Thread(target=run) for _ in range(2)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            requests = asked(server)
        assert results[0] == results[1] and len(requests) == len(set(requests))


class TestFaults:
    def test_faults_on_the_way_are_repeated(self):
        with OpenAIServer() as server:
            whole = rank_given(ROWS, scorer_at(server), quiet())["train"].to_list()
        with OpenAIServer() as server:
            server.script(status(529), torn(), reset(), html(), status(429, retry_after="0"))
            assert rank_given(ROWS, scorer_at(server, concurrency=1), quiet())["train"].to_list() == whole

    def test_what_the_server_refuses_is_left_unranked_said_and_asked_again_only_on_request(self, tmp_path):
        rows = [
            *ROWS[:3],
            {"prompt": "b", "responses": ["red", "too blue", "grey"]},
            {"prompt": "too", "responses": ["a"]},
        ]
        config = quiet(journal=tmp_path / "j")
        with OpenAIServer(Habits(refuses="too")) as server:
            ranked = rank_given(rows, scorer_at(server), config)
            assert count_unranked(ranked) == {"empty": 3, "unanswered": 2}
            row = ranked["train"][3]
            assert row["status"] == "partial" and "maximum context length" in row["provenance"]["failures"][0]
            assert "gpu7" not in json.dumps(ranked["train"].to_list())
            assert ranked["train"][4]["status"] == "failed"
            before = len(server.requests)
            assert rank_given(rows, scorer_at(server), config)["train"].to_list() == ranked["train"].to_list()
            assert len(server.requests) == before
        with OpenAIServer() as server:
            mended = rank_given(rows, scorer_at(server), quiet(journal=tmp_path / "j", retry_failed=True))
            assert count_unranked(mended) == {"empty": 3} and len(asked(server)) == 3
            before = len(server.requests)
            assert rank_given(rows, scorer_at(server), config)["train"].to_list() == mended["train"].to_list()
            assert len(server.requests) == before

    def test_a_server_that_dies_stops_the_run_and_is_not_held_against_the_rows(self, tmp_path):
        config = quiet(journal=tmp_path / "j")
        with OpenAIServer() as server:
            whole = rank_given(ROWS, scorer_at(server), quiet())["train"].to_list()
        with OpenAIServer() as server:
            scorer = scorer_at(server, max_retries=0, concurrency=1)
            scorer.check()
            scorer.check = lambda: None
            server.script(*[status(500)] * 400)
            with pytest.raises(BuildError, match="requests in a row failed"):
                rank_given(ROWS * 9 + [{"prompt": f"{i}", "responses": ["red"]} for i in range(30)], scorer, config)
        with Journal(tmp_path / "j") as journal:
            assert journal.count("failure") == 0
        with OpenAIServer() as server:
            assert rank_given(ROWS, scorer_at(server), config)["train"].to_list() == whole


PRICES = "date: 2026-11-01\nmodels:\n  m: {input: 100.0, output: 100.0}\n"


class TestMoney:
    @pytest.fixture
    def priced(self, tmp_path):
        (tmp_path / "prices.yaml").write_text(PRICES)
        return dict(paid=True, prices=tmp_path / "prices.yaml")

    def test_a_paid_server_needs_a_cap_a_journal_and_a_price(self, tmp_path, priced):
        with OpenAIServer() as server:
            with pytest.raises(InputError, match="set `max_cost`"):
                rank_given(ROWS, scorer_at(server, **priced), quiet(journal=tmp_path / "j"))
            with pytest.raises(InputError, match="set `journal`"):
                rank_given(ROWS, scorer_at(server, **priced), quiet(max_cost=1.0))
            with pytest.raises(InputError, match="price of m is not known"):
                rank_given(ROWS, scorer_at(server, paid=True), quiet(max_cost=1.0, journal=tmp_path / "j"))
            assert server.requests == []

    def test_no_cap_is_passed_and_more_money_goes_on_from_there(self, tmp_path, priced):
        with OpenAIServer() as server:
            with pytest.raises(BudgetExceeded, match="could cost"):  # not even the check
                rank_given(ROWS, scorer_at(server, **priced), quiet(journal=tmp_path / "j", max_cost=0.01))
            assert server.requests == []
            cap = 2.0
            with pytest.raises(BudgetExceeded, match=r"in the journal.*Raise max_cost") as stop:
                rows = [{"prompt": f"{i}", "responses": ["red " * 300, "blue"]} for i in range(100)]
                rank_given(rows, scorer_at(server, **priced), quiet(journal=tmp_path / "j", max_cost=cap))
            assert "scores are in the journal" in str(stop.value)
            half = asked(server)
            with Journal(tmp_path / "j") as journal:
                spent = journal.spent()
            replies = len(server.requests)
            assert 0 < spent <= cap and 0 < len(half) < 300
            ranked = rank_given(rows, scorer_at(server, **priced), quiet(journal=tmp_path / "j", max_cost=math.inf))
            requests = asked(server)
            assert len(ranked["train"]) == 100 and len(requests) == len(set(requests)) == 300
            assert len(server.requests) > replies

    def test_what_the_check_uses_is_in_the_sum(self, tmp_path, priced):
        with OpenAIServer() as server:
            rank_given(ROWS[:1], scorer_at(server, **priced), quiet(journal=tmp_path / "j", max_cost=math.inf))
            total = sum(100e-6 * self.tokens(body) for body in server.bodies)
            with Journal(tmp_path / "j") as journal:
                assert journal.spent() > 0.6 * total > 0 and journal.count("check") == 0

    @staticmethod
    def tokens(body):
        return sum(len(m["content"].split()) for m in body["messages"])


def test_a_folder_holds_the_rows_and_nothing_of_the_server(tmp_path):
    with OpenAIServer() as server:
        config = quiet(journal=tmp_path / "j")
        path = rank_folder(iter(ROWS), scorer_at(server, api_key="sk-secret-1234567"), tmp_path / "ds", config)
        expected_rows = rank_given(ROWS, scorer_at(server), config)["train"].to_list()
    assert load_ranked(path)["train"].to_list() == expected_rows
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert server.url.encode() not in everything and b"sk-secret" not in everything


def test_many_refusals_in_a_row_are_no_dead_server(tmp_path):
    rows = [{"prompt": f"too long {i}", "responses": ["red", "blue"]} for i in range(40)]
    with OpenAIServer(Habits(refuses="too")) as server:
        ranked = rank_given([*rows, *ROWS[:1]], scorer_at(server, concurrency=1), quiet(journal=tmp_path / "j"))
        assert count_unranked(ranked) == {"unanswered": 80, "empty": 1}
        assert len(asked(server)) == 40 + 4
