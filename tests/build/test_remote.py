"""Laws of asking a server: nothing received is asked for again, no cap is passed, a failure is said and kept apart."""

from __future__ import annotations

import json
import math
import threading

import pytest
from datasets import IterableDataset
from doubles.openai_server import Habits, OpenAIServer
from doubles.remote import CountingRemote, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.journal import Journal
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_folder, build_teacher_ranked
from tuna_trl.clients.base import RemoteSampler, Sample, Usage
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.retry import Refused
from tuna_trl.data.hub import load_ranked
from tuna_trl.errors import BudgetExceeded, BuildError, InputError


def prompts(n=5):
    return [{"prompt": f"question {i}"} for i in range(n)]


def build(sampler, rows=None, **options):
    config = TeacherBuildConfig(**({"show_progress": False} | options))
    return list(build_teacher_ranked(prompts() if rows is None else rows, sampler, config)["train"])


def texts(row):
    return [r["content"] for r in sorted(row["responses"], key=lambda response: response["index"])]


def unsound(text="odd"):
    return Sample(text, (), "stop", Usage(thinking=1))


class Stop(Exception):
    pass


def test_the_double_is_what_the_protocol_says():
    assert isinstance(CountingRemote(), RemoteSampler)


@settings(max_examples=20)
@given(
    n=st.integers(1, 5),
    count=st.integers(1, 12),
    per_request=st.none() | st.integers(1, 3),
    gives=st.sampled_from([1, 2, 1000]),
    concurrency=st.integers(1, 4),
)
def test_every_prompt_gets_its_samples_in_order_whatever_a_request_gives(n, count, per_request, gives, concurrency):
    sampler = CountingRemote(per_request=per_request, gives=gives, concurrency=concurrency)
    rows = build(sampler, prompts(count), num_responses=n)
    assert [row["prompt"][0]["content"] for row in rows] == [f"question {i}" for i in range(count)]
    assert all(row["num_responses"] == n and row["status"] == "ok" for row in rows if n > 1)
    assert sampler.checks == 1 and sampler.most_at_once <= concurrency
    seeds = [seed for _, _, seed in sampler.requests]
    assert len(set(seeds)) == len(seeds)
    if per_request is None and gives == 1000:
        assert sorted(sampler.requests) == sorted((text, n, seed) for text, _, seed in sampler.requests)
        assert len(sampler.requests) == count


def test_requests_run_at_once_up_to_the_concurrency():
    gate = threading.Barrier(3, timeout=20)
    sampler = CountingRemote(before=lambda number, text: gate.wait() if number < 3 else None)
    build(sampler, prompts(9))
    assert sampler.most_at_once == 3


def test_a_second_build_asks_nothing_not_even_the_check(tmp_path):
    first = build(CountingRemote(), journal=tmp_path / "j")
    again = CountingRemote()
    assert build(again, journal=tmp_path / "j") == first
    assert again.requests == [] and again.checks == 0


@settings(max_examples=12)
@given(stops=st.lists(st.integers(0, 12), max_size=3))
def test_a_build_stopped_anywhere_and_gone_on_with_asks_for_each_sample_once(tmp_path_factory, stops):
    journal, asked = tmp_path_factory.mktemp("j") / "j", []
    whole = build(CountingRemote(per_request=1), num_responses=3)
    for stop in [*stops, math.inf]:

        def before(number, text, stop=stop):
            if number == stop:
                raise Stop

        sampler = CountingRemote(before=before, per_request=1, concurrency=2)
        try:
            rows = build(sampler, num_responses=3, journal=journal)
        except Stop:
            asked += [request for i, request in enumerate(sampler.requests) if i != stop]
        else:
            asked += sampler.requests
    assert rows == whole
    assert len(asked) == len(set(asked)) == 15


def test_samples_are_journalled_one_by_one_so_that_another_server_goes_on_with_other_requests(tmp_path):
    many = CountingRemote(before=lambda number, text: (_ for _ in ()).throw(Stop) if number == 3 else None)
    with pytest.raises(Stop):
        build(many, journal=tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        received = journal.count("reply")
    one = CountingRemote(per_request=1)
    rows = build(one, journal=tmp_path / "j")
    assert len(one.requests) == 20 - received and all(n == 1 for _, n, _ in one.requests)
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.7}, {"max_new_tokens": 9}], ids=str)
def test_a_changed_parameter_asks_anew_and_a_changed_prompt_alone_for_itself(tmp_path, change):
    build(CountingRemote(), journal=tmp_path / "j")
    anew = CountingRemote()
    build(anew, journal=tmp_path / "j", **change)
    assert len(anew.requests) == 5
    one = CountingRemote()
    build(one, [*prompts(4), {"prompt": "another"}], journal=tmp_path / "j")
    assert [text for text, _, _ in one.requests] == ["another"]


@pytest.mark.parametrize("change", [{"length_exponent": 0.5}, {"rank_truncated": True}, {"tie_delta": 1.0}], ids=str)
def test_what_only_ranks_asks_nothing(tmp_path, change):
    build(CountingRemote(), journal=tmp_path / "j")
    silent = CountingRemote()
    build(silent, journal=tmp_path / "j", **change)
    assert silent.requests == []


def test_a_longer_build_goes_on_from_a_limited_one_and_more_responses_from_fewer(tmp_path):
    build(CountingRemote(), limit=2, journal=tmp_path / "j")
    longer = CountingRemote()
    build(longer, journal=tmp_path / "j")
    assert sorted(text for text, _, _ in longer.requests) == ["question 2", "question 3", "question 4"]
    more = CountingRemote()
    build(more, num_responses=6, journal=tmp_path / "j")
    assert [n for _, n, _ in more.requests] == [2] * 5


def test_a_stream_is_read_as_it_is_needed_and_an_iterator_once():
    ahead, done = [], []

    def rows():
        for i in range(400):
            ahead.append(i)
            yield {"prompt": f"question {i}"}

    sampler = CountingRemote(before=lambda number, text: done.append(len(ahead) - number))
    built = build(sampler, rows())
    assert len(built) == 400 and max(done) <= 80
    again = build(CountingRemote(), IterableDataset.from_generator(lambda: iter(prompts(400))))
    assert [texts(row) for row in again] == [texts(row) for row in built]


class TestFailures:
    @staticmethod
    def refuses(*words, error=BuildError):
        def before(number, text):
            if text in words:
                raise error(f"no reply for {text} from https://user@host:1/v1 after 6 tries")

        return before

    @pytest.mark.parametrize("error", [BuildError, InputError])
    def test_a_request_that_fails_fails_its_row_and_no_other(self, tmp_path, error):
        sampler = CountingRemote(before=self.refuses("question 2", error=error), concurrency=1)
        rows = build(sampler, journal=tmp_path / "j")
        assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok"]
        assert rows[2]["responses"] == [] and rows[2]["num_responses"] == 0
        assert rows[2]["provenance"]["failures"] == ["no reply for question 2 from <server> after 6 tries"] * 4
        assert "failures" not in rows[1]["provenance"]
        silent = CountingRemote()
        assert build(silent, journal=tmp_path / "j") == rows and silent.requests == []

    def test_a_row_with_failures_is_written_and_loaded(self, tmp_path):
        sampler = CountingRemote(before=self.refuses("question 2"))
        config = TeacherBuildConfig(show_progress=False)
        folder = build_teacher_folder(prompts(), sampler, tmp_path / "ds", config)
        assert [row["status"] for row in load_ranked(folder, "train")][2] == "failed"

    def test_retry_failed_asks_again_for_failed_rows_alone_and_counts_from_then_on(self, tmp_path):
        build(CountingRemote(before=self.refuses("question 2")), journal=tmp_path / "j")
        retry = CountingRemote()
        rows = build(retry, journal=tmp_path / "j", retry_failed=True)
        assert [text for text, _, _ in retry.requests] == ["question 2"]
        assert all(row["status"] == "ok" for row in rows)
        silent = CountingRemote()
        assert build(silent, journal=tmp_path / "j") == rows
        assert build(silent, journal=tmp_path / "j", retry_failed=True) == rows and silent.requests == []

    def test_samples_without_log_probs_are_kept_apart_and_asked_for_again_on_request(self, tmp_path):
        def half(text, seed, place):
            return unsound() if text == "question 1" and place < 3 else draw(text, seed, place)

        rows = build(CountingRemote(half), journal=tmp_path / "j")
        assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok", "ok"]
        good = next(r for r in rows[1]["responses"] if r["score"] is not None)
        retry = CountingRemote()
        mended = build(retry, journal=tmp_path / "j", retry_failed=True)
        assert [(text, n) for text, n, _ in retry.requests] == [("question 1", 3)]
        assert mended[1]["status"] == "ok" and good["content"] in texts(mended[1])

    def test_a_retry_that_fails_again_is_tried_once_a_run(self, tmp_path):
        build(CountingRemote(lambda *_: unsound()), prompts(1), journal=tmp_path / "j")
        for _ in range(2):
            retry = CountingRemote(lambda *_: unsound())
            (row,) = build(retry, prompts(1), journal=tmp_path / "j", retry_failed=True)
            assert len(retry.requests) == 1 and row["status"] == "failed"

    def test_prompts_that_do_not_fit_the_model_are_no_dead_server_however_many(self, tmp_path):
        rows = [{"prompt": f"too long {i}"} for i in range(40)] + prompts(2)
        options = dict(journal=tmp_path / "j", num_responses=2, max_new_tokens=4)
        with OpenAIServer(Habits(refuses="too")) as server:
            built = build(OpenAICompatibleSampler("m", server.url, concurrency=1), rows, **options)
            assert [row["status"] == "failed" for row in built] == [True] * 40 + [False] * 2
            said = {failure for row in built[:40] for failure in row["provenance"]["failures"]}
            assert len(said) == 1 and "maximum context length" in said.pop()
            with Journal(tmp_path / "j") as journal:
                assert journal.count("failure") == 80
            sent = len(server.requests)
            assert build(OpenAICompatibleSampler("m", server.url), rows, **options) == built
            assert len(server.requests) == sent

    # connection refused; a key that was revoked; a setting that the server does not know
    @pytest.mark.parametrize("error", [BuildError, InputError, Refused])
    def test_a_server_that_is_down_stops_the_build_and_is_not_held_against_the_rows(self, tmp_path, error):
        def dies(number, text):
            if number >= 10:
                raise error("connection refused")

        sampler = CountingRemote(before=dies, concurrency=2)
        # 16 failures stop it; the other worker's request may fail before it is told
        said = r"1[67] requests in a row failed; .*refused 20 samples are in the journal"
        with pytest.raises(BuildError, match=said):
            build(sampler, prompts(60), journal=tmp_path / "j", num_responses=2)
        with Journal(tmp_path / "j") as journal:
            assert journal.count("reply") == 20 and journal.count("failure") == 0
        again = CountingRemote()
        rows = build(again, prompts(60), journal=tmp_path / "j", num_responses=2)
        assert len(again.requests) == 50 and all(row["status"] == "ok" for row in rows)

    def test_a_check_that_fails_stops_the_build_before_anything_is_asked(self):
        class Deaf(CountingRemote):
            def check(self, sampling, n):
                raise BuildError("it gives no log-probs")

        sampler = Deaf()
        with pytest.raises(BuildError, match="it gives no log-probs"):
            build(sampler)
        assert sampler.requests == []

    def test_a_bug_in_a_sampler_is_raised_as_it_is(self):
        def bug(number, text):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            build(CountingRemote(before=bug))


class TestMoney:
    def test_a_paid_teacher_needs_a_cap_a_journal_and_a_price(self, tmp_path):
        journal = tmp_path / "j"
        for options, message in [
            ({"journal": journal}, "costs money: set `max_cost`"),
            ({"max_cost": 1.0}, "costs money: set `journal`"),
        ]:
            sampler = CountingRemote(paid=True, price=0.01)
            with pytest.raises(InputError, match=message):
                build(sampler, **options)
            assert sampler.requests == [] and sampler.checks == 0
        with pytest.raises(InputError, match="price of remote-1 is not known.*max_cost=1"):
            build(CountingRemote(paid=True, price=None), max_cost=1.0, journal=journal)
        assert len(build(CountingRemote(paid=True, price=None), max_cost=math.inf, journal=journal)) == 5

    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_the_cap_holds_over_runs_and_what_was_paid_for_is_not_lost(self, tmp_path, concurrency):
        asked = 0
        for cap in (0.10, 0.10, 0.30):
            sampler = CountingRemote(paid=True, price=0.01, worst=0.01, concurrency=concurrency)
            with pytest.raises(BudgetExceeded, match=r"max_cost is .*Raise max_cost and run the same build again"):
                build(sampler, prompts(10), max_cost=cap, journal=tmp_path / "j")
            asked += 4 * len(sampler.requests)
            assert 0.01 * asked <= cap + 1e-9
        assert asked == 28  # what 0.30 USD pay for at 0.04 USD a request
        sampler = CountingRemote(paid=True, price=0.01)
        rows = build(sampler, prompts(10), max_cost=0.401, journal=tmp_path / "j")
        assert 4 * len(sampler.requests) == 12 and len(rows) == 10
        with Journal(tmp_path / "j") as journal:
            assert journal.spent() == pytest.approx(0.40)

    def test_the_worst_case_is_reserved_not_the_hoped_for_price(self, tmp_path):
        sampler = CountingRemote(paid=True, price=0.01, worst=1.0)
        with pytest.raises(BudgetExceeded):
            build(sampler, max_cost=3.9, journal=tmp_path / "j")
        assert sampler.requests == []

    @pytest.mark.parametrize("passes", [True, False])
    def test_what_the_check_used_counts_as_spent_whether_it_passes_or_not(self, tmp_path, passes):
        class Checked(CountingRemote):
            check_usage = Usage(thinking=7)  # of an earlier build

            def check(self, sampling, n):
                self.check_usage += Usage(thinking=2)
                if not passes:
                    raise BuildError("no log-probs")
                return n

        sampler = Checked(paid=True, price=0.01)
        try:
            build(sampler, prompts(2), max_cost=math.inf, journal=tmp_path / "j")
        except BuildError:
            assert not passes
        with Journal(tmp_path / "j") as journal:
            assert journal.spent() == pytest.approx(0.02 + (0.08 if passes else 0))
        refused = Checked(paid=True, price=0.01)
        if passes:  # two more prompts cost 0.08, and another check
            with pytest.raises(BudgetExceeded):
                build(refused, prompts(4), max_cost=0.19, journal=tmp_path / "j")


def test_progress_says_what_was_there_and_what_failed(tmp_path, capfd):
    sampler = CountingRemote(before=TestFailures.refuses("question 4"))
    build(sampler, journal=tmp_path / "j", show_progress=True)
    assert capfd.readouterr().err.splitlines() == [
        "Sampling from remote-1: 5 prompts to go.",
        "Sampling from remote-1: done (0 of 16 samples were already in the journal; 4 samples failed).",
    ]


def test_the_journal_holds_no_address(tmp_path):
    sampler = CountingRemote(before=TestFailures.refuses("question 2"))
    rows = build(sampler, journal=tmp_path / "j")
    assert b"https://" not in (tmp_path / "j").read_bytes() and "https://" not in json.dumps(rows)
