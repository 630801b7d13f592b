"""Laws of asking: nothing received is asked for again, no cap is passed, a failure costs only what was in flight."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from doubles.builders import WORDS, FunctionJudge, ListSampler, config, four, prefers, prompts

from tuna_trl.build.journal import Journal
from tuna_trl.build.judge import build_judge_ranked, judge_builds
from tuna_trl.errors import BudgetExceeded, BuildError, InputError


def test_a_malformed_reply_is_asked_for_again_and_kept(tmp_path):
    seen = []

    def second_time_lucky(request):
        seen.append(request)
        return "1 > 2 > 3" if seen.count(request) == 1 else [3.0, 2.0, 1.0, 0.0]

    judge = FunctionJudge(second_time_lucky, concurrency=1)
    ranked, judgments = judge_builds(
        prompts(2), ListSampler(four), judge, config(max_malformed=1, journal=tmp_path / "j")
    )
    assert len(judge.requests) == 4
    assert [row["status"] for row in ranked["train"]] == ["ok", "ok"]
    assert [(r["attempt"], r["status"], r["raw"]) for r in judgments["train"]][:2] == [
        (0, "malformed", "1 > 2 > 3"),
        (1, "ok", '{"scores": [3.0, 2.0, 1.0, 0.0], "order": null}'),
    ]
    again = FunctionJudge(prefers("alpha"))
    options = config(max_malformed=1, journal=tmp_path / "j")
    assert list(judge_builds(prompts(2), ListSampler(four), again, options)[1]["train"]) == list(judgments["train"])
    assert again.requests == []


def test_a_second_run_asks_nothing_and_gives_the_same_rows(tmp_path):
    options = config(repeats=2, journal=tmp_path / "journal.sqlite")
    first = judge_builds(prompts(4), ListSampler(four), FunctionJudge(prefers("beta")), options)
    sampler, judge = ListSampler(four), FunctionJudge(prefers("something else"))
    second = judge_builds(prompts(4), sampler, judge, options)
    assert judge.requests == [] and sampler.calls == 0
    for one, other in zip(first, second, strict=True):
        assert list(one["train"]) == list(other["train"])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"repeats": 5}, {"limit": 2}, {"max_malformed": 0}, {"tie_delta": 1.0}, {"max_cost": 9.0}]
)
def test_only_a_change_of_what_is_asked_asks_again(tmp_path, change):
    options = {"repeats": 4, "journal": tmp_path / "journal.sqlite"}
    judge_builds(prompts(3), ListSampler(four), FunctionJudge(prefers("beta")), config(**options))
    judge = FunctionJudge(prefers("beta"))
    judge_builds(prompts(3), ListSampler(four), judge, config(**options | change))
    assert len(judge.requests) == {"seed": 12, "repeats": 3}.get(next(iter(change)), 0)


def test_another_judge_or_another_prompt_is_asked_anew(tmp_path):
    options = config(journal=tmp_path / "journal.sqlite")
    judge_builds(prompts(3), ListSampler(four), FunctionJudge(prefers("beta")), options)
    other = FunctionJudge(prefers("beta"))
    other.fingerprint = lambda: {"judge": "another"}
    judge_builds(prompts(3), ListSampler(four), other, options)
    assert len(other.requests) == 3
    longer = FunctionJudge(prefers("beta"))
    judge_builds(prompts(5), ListSampler(four), longer, options)
    assert len(longer.requests) == 2


KILLED = """
    import json, os, sys, threading
    sys.path.insert(0, sys.argv[2])
    from doubles.builders import FunctionJudge, ListSampler
    from tuna_trl.build.judge import JudgeBuildConfig, judge_builds

    lock, received = threading.Lock(), []

    def reply(request):
        with lock:
            if len(received) == 7:
                os._exit(9)
            received.append(request)
        return [4.0, 3.0, 2.0, 1.0]

    judge = FunctionJudge(reply, paid=True, price=0.01, concurrency=3)
    sampler = ListSampler(lambda prompt: [f"{word} about {prompt}" for word in json.loads(sys.argv[3])])
    options = JudgeBuildConfig(journal=sys.argv[1], max_cost=1.0, show_progress=False, rouge_threshold=None)
    judge_builds([{"prompt": f"question {i}"} for i in range(20)], sampler, judge, options)
"""


def test_a_kill_between_replies_repeats_at_most_what_was_in_flight(tmp_path, capsys):
    root = Path(__file__).resolve().parents[2]
    path = tmp_path / "journal.sqlite"
    environment = os.environ | {"PYTHONPATH": str(root)}
    argv = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(root / "tests"), json.dumps(WORDS)]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 9, ended.stderr
    with Journal(path) as journal:
        received = journal.count("judgment")
    assert 7 - 3 <= received <= 7
    judge = FunctionJudge(lambda request: [4.0, 3.0, 2.0, 1.0], paid=True, price=0.01)
    sampler = ListSampler(four)
    rows = [{"prompt": f"question {i}"} for i in range(20)]
    ranked = build_judge_ranked(rows, sampler, judge, config(journal=path, max_cost=1.0, show_progress=True))
    assert len(judge.requests) == 20 - received and sampler.calls == 0
    assert [row["status"] for row in ranked["train"]] == ["ok"] * 20
    said = " ".join(capsys.readouterr().err.split())
    assert f"{received} of 20 judgments were already in the journal" in said
    again = int(re.search(r"(\d+) requests were in flight when an earlier run ended and were sent again", said)[1])
    assert 8 - received <= again <= 3  # the eighth was asked for, and no more than three at once


def test_ctrl_c_leaves_every_reply_in_the_journal(tmp_path, capsys):
    def reply(request):
        if len(judge.requests) == 5:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)  # the main thread has to get a turn before all is answered
        return [4.0, 3.0, 2.0, 1.0]

    path = tmp_path / "journal.sqlite"
    judge = FunctionJudge(reply, concurrency=2)
    with pytest.raises(KeyboardInterrupt):
        judge_builds(prompts(40), ListSampler(four), judge, config(journal=path, show_progress=True))
    assert "Stopping when what is in flight has arrived" in " ".join(capsys.readouterr().err.split())
    with Journal(path) as journal:
        assert journal.count("judgment") == len(judge.requests) < 40


@pytest.mark.parametrize("failure", [BuildError("server down"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_failure_leaves_what_was_received_and_the_rest_is_asked_later(tmp_path, failure):
    count = []

    def reply(request):
        count.append(request)
        if len(count) == 5:
            raise failure
        return [4.0, 3.0, 2.0, 1.0]

    options = config(journal=tmp_path / "journal.sqlite")
    with pytest.raises(type(failure)):
        judge_builds(prompts(12), ListSampler(four), FunctionJudge(reply, concurrency=1), options)
    assert len(count) == 5
    judge = FunctionJudge(prefers("beta"))
    ranked = build_judge_ranked(prompts(12), ListSampler(four), judge, options)
    assert len(judge.requests) == 12 - 4
    assert len(ranked["train"]) == 12


def test_a_request_that_waits_for_money_is_not_sent_after_a_failure(tmp_path):
    def reply(request):
        time.sleep(0.05)  # the other thread reaches its reservation, for which only one request's money is there
        raise BuildError("server down")

    judge = FunctionJudge(reply, paid=True, price=0.1, worst=0.6, concurrency=2)
    with pytest.raises(BuildError, match="server down"):
        judge_builds(prompts(6), ListSampler(four), judge, config(journal=tmp_path / "j", max_cost=1.0))
    assert len(judge.requests) == 1


def test_a_reply_is_journalled_before_it_is_read(tmp_path):
    judge = FunctionJudge(lambda request: [4.0, 3.0, 2.0, 1.0])
    parse = judge.parse

    def broken(request, reply):
        raise RuntimeError("a bug in the parser")

    judge.parse = broken
    options = config(journal=tmp_path / "journal.sqlite")
    with pytest.raises(RuntimeError, match="a bug in the parser"):
        judge_builds(prompts(1), ListSampler(four), judge, options)
    judge.parse = parse
    judge_builds(prompts(1), ListSampler(four), judge, options)
    assert len(judge.requests) == 1


def test_the_error_of_a_row_names_the_row():
    def reply(request):
        if "question 2" in request.candidates[0]:
            raise InputError("too long")
        return [4.0, 3.0, 2.0, 1.0]

    with pytest.raises(InputError, match=r"train\[2\]: too long"):
        build_judge_ranked(prompts(4), ListSampler(four), FunctionJudge(reply), config())


def test_a_budget_stops_before_the_request_that_could_pass_it_and_raising_it_goes_on(tmp_path):
    path = tmp_path / "journal.sqlite"

    def paid():
        return FunctionJudge(lambda request: [4.0, 3.0, 2.0, 1.0], paid=True, price=0.10, worst=0.25, concurrency=2)

    first = paid()
    with pytest.raises(BudgetExceeded, match=r"max_cost is 1\.00 USD.*8 of 20 judgments.*Raise max_cost"):
        judge_builds(prompts(20), ListSampler(four), first, config(journal=path, max_cost=1.0))
    assert len(first.requests) == 8  # 0.8 are spent, and 0.25 more could pass 1.0
    same = paid()
    with pytest.raises(BudgetExceeded):  # the cap counts what was spent before
        judge_builds(prompts(20), ListSampler(four), same, config(journal=path, max_cost=1.0))
    assert same.requests == []
    more = paid()
    ranked, judgments = judge_builds(prompts(20), ListSampler(four), more, config(journal=path, max_cost=3.0))
    assert len(more.requests) == 12
    assert math.fsum(judgments["train"]["cost"]) == pytest.approx(2.0)
    assert [row["status"] for row in ranked["train"]] == ["ok"] * 20


def test_a_paid_judge_needs_a_cap_a_journal_and_a_price_before_anything_is_sampled(tmp_path):
    sampler, judge = ListSampler(four), FunctionJudge(prefers("beta"), paid=True, price=0.1)
    with pytest.raises(InputError, match="max_cost"):
        build_judge_ranked(prompts(), sampler, judge, config(journal=tmp_path / "j"))
    with pytest.raises(InputError, match="journal"):
        build_judge_ranked(prompts(), sampler, judge, config(max_cost=1.0))
    judge.price = None
    with pytest.raises(InputError, match="price of judge-1 is not known"):
        build_judge_ranked(prompts(), sampler, judge, config(max_cost=1.0, journal=tmp_path / "j"))
    assert sampler.calls == 0 and judge.requests == []
    judge.worst = None
    ranked, judgments = judge_builds(prompts(), sampler, judge, config(max_cost=math.inf, journal=tmp_path / "j"))
    assert len(ranked["train"]) == 3 and judgments["train"]["cost"][:] == [None] * 3


@pytest.mark.parametrize(("max_batch", "batches"), [(1, [1] * 10), (4, [2, 4, 4]), (100, [10])])
def test_requests_go_out_in_batches_of_the_judges_size(max_batch, batches):
    judge = FunctionJudge(prefers("beta"), max_batch=max_batch)
    ranked = build_judge_ranked(prompts(10), ListSampler(four), judge, config())
    assert sorted(judge.batches) == batches
    assert all("beta" in row["responses"][0]["content"] for row in ranked["train"])


def test_a_judge_that_returns_the_wrong_number_of_replies_is_refused():
    judge = FunctionJudge(prefers("beta"), max_batch=2)
    judge.ask = lambda requests: []
    with pytest.raises(BuildError, match="0 replies to 2 requests"):
        build_judge_ranked(prompts(2), ListSampler(four), judge, config())


def test_quiet_means_quiet_and_a_pipe_gets_lines_not_bars(capsys):
    build_judge_ranked(prompts(2), ListSampler(four), FunctionJudge(prefers("beta")), config())
    assert capsys.readouterr() == ("", "")
    build_judge_ranked(prompts(2), ListSampler(four), FunctionJudge(prefers("beta")), config(show_progress=True))
    out, err = capsys.readouterr()
    assert out == "" and "judge-1 judges: 2 to go" in err and "judge-1 judges: done." in err
