"""Laws of the contextual builder: what is asked, what is never asked twice, and what the verdicts come to."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from doubles.builders import FunctionJudge, ListSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.agreement import kendalls_w, mean_tau_b
from tuna_trl.build.case import shown_order
from tuna_trl.build.journal import Journal
from tuna_trl.build.judge import JudgeBuildConfig, build_judge_ranked, judge_builds
from tuna_trl.clients.base import Reply
from tuna_trl.clients.contextual import labels
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.data.schema import check_row, competition_ranks, judgment_features, ranked_features
from tuna_trl.errors import BudgetExceeded, BuildError, InputError


WORDS = ["alpha one", "beta two", "gamma three", "delta four"]


def four(prompt):
    return [f"{word} about {prompt}" for word in WORDS]


def config(**options):
    return JudgeBuildConfig(**({"show_progress": False, "rouge_threshold": None} | options))


def prompts(n=3):
    return [{"prompt": f"question {i}", "reference": f"answer {i}"} for i in range(n)]


def prefers(word):
    """Scores 9 for the candidate that holds `word`, else its length modulo 5."""
    return lambda request: [9.0 if word in text else float(len(text) % 5) for text in request.candidates]


def by_index(row):
    return sorted(row["responses"], key=lambda response: response["index"])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("repeats", [1, 2, 4, 7])
def test_a_judge_that_always_prefers_one_text_ranks_it_first_under_every_permutation(word, repeats):
    judge = FunctionJudge(prefers(word))
    ranked = build_judge_ranked(prompts(6), ListSampler(four), judge, config(repeats=repeats))
    assert len({request.candidates for request in judge.requests}) > repeats  # it was shown in many orders
    for row in ranked["train"]:
        assert word in row["responses"][0]["content"]
        assert row["responses"][0]["rank"] == 1 and row["responses"][1]["rank"] > 1
        assert row["status"] == "ok"


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_a_judge_that_looks_at_texts_only_gives_the_same_ranks_whatever_is_shown_where(merits, repeats, seed):
    merit = dict(zip(four("question 0"), map(float, merits), strict=True))
    judge = FunctionJudge(lambda request: [merit[text] for text in request.candidates])
    (row,) = build_judge_ranked(prompts(1), ListSampler(four), judge, config(repeats=repeats, seed=seed))["train"]
    assert [r["rank"] for r in by_index(row)] == competition_ranks(list(map(float, merits)))
    assert [r["score"] for r in by_index(row)] == list(map(float, merits))
    assert row["num_ties"] == 4 - len(set(merits))


@given(st.integers(1, 6), st.integers(0, 99), st.integers(0, 3))
def test_as_many_repeats_as_responses_show_each_at_each_place_once(n, seed, lap):
    distinct = list(range(0, 2 * n, 2))
    orders = [
        shown_order(distinct, seed=seed, prompt_id="p", occurrence=0, repeat=k) for k in range(lap * n, lap * n + n)
    ]
    assert all(sorted(order) == distinct for order in orders)
    for place in range(n):
        assert sorted(order[place] for order in orders) == distinct


def test_the_first_order_shown_is_spread_over_all_places():
    first = [shown_order([0, 1, 2, 3], seed=0, prompt_id=f"p{i}", occurrence=0, repeat=0)[0] for i in range(400)]
    assert all(60 < first.count(i) < 140 for i in range(4))  # 100 expected, 8.7 = one standard deviation


def test_a_judge_that_only_likes_the_first_place_makes_all_equal_after_a_full_round():
    judge = FunctionJudge(lambda request: [1.0] + [0.0] * (len(request.candidates) - 1))
    ranked = build_judge_ranked(prompts(3), ListSampler(four), judge, config(repeats=4))
    for row in ranked["train"]:
        assert [r["rank"] for r in row["responses"]] == [1, 1, 1, 1]
        assert row["agreement_w"] == 0.0


def test_rows_and_judgments_have_the_schema_and_recompute_the_ranks():
    judge = FunctionJudge(prefers("beta"), price=0.25)
    ranked, judgments = judge_builds(prompts(3), ListSampler(four), judge, config(repeats=3))
    assert ranked["train"].features == ranked_features()
    assert judgments["train"].features == judgment_features()
    replies = list(judgments["train"])
    assert len(replies) == 9
    for row in ranked["train"]:
        check_row(row)
        responses = by_index(row)
        sums = [0.0] * 4
        mine = [reply for reply in replies if reply["prompt_id"] == row["prompt_id"]]
        for reply in mine:
            assert reply["labels"] == list(labels(4)) and reply["judge"] == "judge-1" and reply["cost"] == 0.25
            for place, i in enumerate(reply["permutation"]):
                sums[i] += reply["scores"][place]
        assert [reply["repeat"] for reply in mine] == [0, 1, 2]
        assert [r["score"] for r in responses] == [pytest.approx(s / 3) for s in sums]
        assert [r["content"] for r in responses] == four(row["prompt"][0]["content"])
        assert {r["model"] for r in responses} == {"student-1"} and {r["source"] for r in responses} == {"student"}
        assert {r["logprob"] for r in responses} == {-0.75} and {r["num_tokens"] for r in responses} == {2}
        assert (row["ranking_method"], row["ranker"]) == ("judge", "judge-1")
        assert row["provenance"]["judge"] == judge.fingerprint() and row["provenance"]["repeats"] == 3


def test_what_is_asked_never_leaves_the_labels_with_the_response():
    """The permutation, not the sampling order, decides what stands at place A (the released code keeps old labels)."""
    judge = FunctionJudge(prefers("alpha"))
    _, judgments = judge_builds(prompts(4), ListSampler(four), judge, config())
    asked = {request.candidates for request in judge.requests}
    for i, reply in enumerate(judgments["train"]):
        assert tuple(four(f"question {i}")[k] for k in reply["permutation"]) in asked


def test_equal_responses_are_judged_once_and_share_score_and_rank():
    sampler = ListSampler(lambda prompt: ["same  text", "other text", "same text", "other text\n"])
    judge = FunctionJudge(lambda request: [float("same" in text) for text in request.candidates])
    (row,) = build_judge_ranked(prompts(1), sampler, judge, config(repeats=2))["train"]
    assert [len(request.candidates) for request in judge.requests] == [2, 2]
    responses = by_index(row)
    assert [r["rank"] for r in responses] == [1, 3, 1, 3]
    assert [r["score"] for r in responses] == [1.0, 0.0, 1.0, 0.0]
    assert [r["duplicate_of"] for r in responses] == [None, None, 0, 1]


@pytest.mark.parametrize("texts", [["same"] * 4, ["same", " same", "same\n", "same "]])
def test_nothing_is_asked_where_there_is_nothing_to_compare(texts):
    judge = FunctionJudge(prefers("x"))
    (row,) = build_judge_ranked(prompts(1), ListSampler(lambda prompt: texts), judge, config())["train"]
    assert judge.requests == []
    assert [(r["rank"], r["score"]) for r in row["responses"]] == [(1, None)] * 4
    assert row["status"] == "ok"


def test_ties_stay_ties_over_repeats_and_the_judges_order_breaks_them_in_a_single_judgment():
    def equal_but_longest_first(request):
        order = sorted(range(4), key=lambda place: -len(request.candidates[place]))
        return json.dumps({"scores": [5.0, 5.0, 5.0, 5.0], "order": order})

    def ranks(**options):
        judge = FunctionJudge(equal_but_longest_first)
        (row,) = build_judge_ranked(prompts(1), ListSampler(four), judge, config(**options))["train"]
        return [r["rank"] for r in by_index(row)]

    lengths = [float(len(text)) for text in four("question 0")]
    broken = ranks(repeats=1)
    assert sorted(broken) == [1, 2, 3, 4]
    assert all(broken[i] < broken[j] for i in range(4) for j in range(4) if lengths[i] > lengths[j])
    assert ranks(repeats=2) == [1, 1, 1, 1]
    assert ranks(repeats=1, tie_delta=0.5) == [1, 1, 1, 1]


def test_the_judges_order_never_turns_unequal_scores():
    judge = FunctionJudge(lambda request: json.dumps({"scores": [1.0, 2.0, 3.0, 4.0], "order": [0, 1, 2, 3]}))
    ranked, judgments = judge_builds(prompts(1), ListSampler(four), judge, config())
    order = judgments["train"][0]["permutation"]
    assert [r["index"] for r in ranked["train"][0]["responses"]] == order[::-1]


def test_a_duplicate_shares_the_rank_that_the_judges_order_gave():
    sampler = ListSampler(lambda prompt: ["b", "a", "b", "c"])
    best_first = {"b": 0, "a": 1, "c": 2}

    def reply(request):
        order = sorted(range(3), key=lambda place: best_first[request.candidates[place]])
        return json.dumps({"scores": [2.0, 2.0, 2.0], "order": order})

    (row,) = build_judge_ranked(prompts(1), sampler, FunctionJudge(reply), config())["train"]
    assert [r["rank"] for r in by_index(row)] == [1, 3, 1, 4]


def test_scores_within_tie_delta_of_their_groups_first_are_tied():
    merit = dict(zip(WORDS, [3.0, 2.9, 2.8, 1.0], strict=True))
    judge = FunctionJudge(lambda request: [merit[t.split(" about")[0]] for t in request.candidates])
    (row,) = build_judge_ranked(prompts(1), ListSampler(four), judge, config(tie_delta=0.15))["train"]
    assert [r["rank"] for r in by_index(row)] == [1, 1, 3, 4]


def test_agreement_is_that_of_the_repeats_over_the_distinct_responses():
    sampler = ListSampler(lambda prompt: ["a", "b", "c", "a"])
    table = {"a": [3.0, 1.0, 2.0], "b": [2.0, 2.0, 2.0], "c": [1.0, 3.0, 0.0]}
    judge = FunctionJudge(lambda request: [table[text][request.repeat] for text in request.candidates])
    (row,) = build_judge_ranked(prompts(1), sampler, judge, config(repeats=3))["train"]
    by_repeat = [[table[text][k] for text in "abc"] for k in range(3)]
    assert row["agreement_w"] == pytest.approx(kendalls_w(by_repeat))
    assert row["agreement_tau"] == pytest.approx(mean_tau_b(by_repeat))
    (single,) = build_judge_ranked(prompts(1), sampler, judge, config(repeats=1))["train"]
    assert single["agreement_w"] is None and single["agreement_tau"] is None


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


MALFORMED = {
    "no JSON": "rank: [1, 2, 3, 4]",
    "no score at all": json.dumps({"scores": [None] * 4, "order": None}),
    "too few scores": json.dumps({"scores": [1.0, 2.0], "order": None}),
    "an infinite score": json.dumps({"scores": [1.0, 2.0, 3.0, math.inf], "order": None}),
    "an order with a repeat": json.dumps({"scores": [1.0] * 4, "order": [0, 0, 1, 2]}),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("max_malformed", [0, 2])
def test_a_row_whose_verdicts_stay_malformed_is_marked_and_never_ranked(raw, max_malformed):
    judge = FunctionJudge(lambda request: raw if "question 1" in request.candidates[0] else [4.0, 3.0, 2.0, 1.0])
    ranked, judgments = judge_builds(prompts(3), ListSampler(four), judge, config(max_malformed=max_malformed))
    assert [row["status"] for row in ranked["train"]] == ["ok", "malformed", "ok"]
    assert [(r["rank"], r["score"]) for r in ranked["train"][1]["responses"]] == [(None, None)] * 4
    assert [r["content"] for r in ranked["train"][1]["responses"]] == four("question 1")
    assert len(judge.requests) == 3 + max_malformed
    assert sum(reply["status"] == "malformed" for reply in judgments["train"]) == 1 + max_malformed


@pytest.mark.parametrize("status", ["refused", "truncated", "inconsistent"])
def test_other_failures_are_marked_and_not_asked_again(status):
    judge = FunctionJudge(lambda request: Reply("", status))
    ranked = build_judge_ranked(prompts(2), ListSampler(four), judge, config(max_malformed=2))
    assert [row["status"] for row in ranked["train"]] == [status, status]
    assert len(judge.requests) == 2
    assert all(r["rank"] is None for row in ranked["train"] for r in row["responses"])


def test_a_row_judged_in_some_repeats_only_is_partial_and_ranked_by_those():
    def reply(request):
        return Reply("", "refused") if request.repeat == 1 else prefers("gamma")(request)

    ranked, judgments = judge_builds(prompts(1), ListSampler(four), FunctionJudge(reply), config(repeats=3))
    (row,) = ranked["train"]
    assert row["status"] == "partial" and "gamma" in row["responses"][0]["content"]
    assert [reply["status"] for reply in judgments["train"]] == ["ok", "refused", "ok"]


def test_a_response_without_a_score_is_not_ranked_and_the_row_is_partial():
    def reply(request):
        return [None if "beta" in text else float(len(text)) for text in request.candidates]

    (row,) = build_judge_ranked(prompts(1), ListSampler(four), FunctionJudge(reply), config(repeats=2))["train"]
    assert row["status"] == "partial"
    assert [r["rank"] is None for r in by_index(row)] == [False, True, False, False]
    assert row["responses"][-1]["score"] is None


def test_a_response_cut_by_the_sampler_stays_ranked():
    sampler = ListSampler(four, finish_reason="length")
    (row,) = build_judge_ranked(prompts(1), sampler, FunctionJudge(prefers("beta")), config())["train"]
    assert row["status"] == "ok" and {r["finish_reason"] for r in row["responses"]} == {"length"}
    assert "beta" in row["responses"][0]["content"]


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
        received, sent = journal.count("judgment"), journal.count("sent")
    assert 7 - 3 <= received <= 7 and received <= sent <= received + 3
    judge = FunctionJudge(lambda request: [4.0, 3.0, 2.0, 1.0], paid=True, price=0.01)
    sampler = ListSampler(four)
    rows = [{"prompt": f"question {i}"} for i in range(20)]
    ranked = build_judge_ranked(rows, sampler, judge, config(journal=path, max_cost=1.0, show_progress=True))
    assert len(judge.requests) == 20 - received and sampler.calls == 0
    assert [row["status"] for row in ranked["train"]] == ["ok"] * 20
    said = " ".join(capsys.readouterr().err.split())
    assert f"{received} of 20 judgments were already in the journal" in said
    assert f"{sent - received} requests were in flight when the last run ended" in said


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


def test_splits_are_kept_and_the_same_prompt_in_two_of_them_is_judged_once():
    data = DatasetDict(
        {
            "train": Dataset.from_list(prompts(3)),
            "test": Dataset.from_list(prompts(4)[2:]),
        }
    )
    judge = FunctionJudge(prefers("beta"))
    ranked, judgments = judge_builds(data, ListSampler(four), judge, config())
    assert {split: len(rows) for split, rows in ranked.items()} == {"train": 3, "test": 2}
    assert {split: len(rows) for split, rows in judgments.items()} == {"train": 3, "test": 2}
    assert len(judge.requests) == 4
    assert ranked["train"][2]["responses"] == ranked["test"][0]["responses"]


def test_the_same_prompt_twice_is_two_rows_each_judged():
    judge = FunctionJudge(prefers("beta"))
    ranked, judgments = judge_builds(prompts(1) * 2, ListSampler(four), judge, config())
    assert len(ranked["train"]) == 2 and len(judge.requests) == 2
    assert judgments["train"]["occurrence"][:] == [0, 1]


def test_the_reference_judge_ranks_by_likeness_to_the_given_answer_and_is_labelled_so():
    rows = [{"prompt": "q", "reference": "the delta four answer"}]
    (row,) = build_judge_ranked(rows, ListSampler(four), ReferenceJudge(), config())["train"]
    assert "delta" in row["responses"][0]["content"]
    assert (row["ranking_method"], row["ranker"]) == ("reference", "reference:rouge-l")
    assert row["reference"] == "the delta four answer"


def test_a_missing_reference_is_named_before_anything_is_sampled():
    sampler = ListSampler(four)
    rows = [*prompts(2), {"prompt": "no answer here", "reference": None}]
    with pytest.raises(InputError, match=r"train\[2\]: column 'reference'.*1 of 3 rows"):
        build_judge_ranked(rows, sampler, ReferenceJudge(), config())
    assert sampler.calls == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_responses", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 0),
        ("temperature", math.inf),
        ("rouge_threshold", 0.0),
        ("rouge_threshold", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("max_tries", 0),
        ("bucket_size", 0),
        ("repeats", 0),
        ("tie_delta", -1.0),
        ("max_malformed", -1),
        ("max_cost", -1.0),
        ("limit", 0),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(option, value):
    with pytest.raises(InputError, match=f"`{option}` is {value}"):
        JudgeBuildConfig(**{option: value})


def test_quiet_means_quiet_and_a_pipe_gets_lines_not_bars(capsys):
    build_judge_ranked(prompts(2), ListSampler(four), FunctionJudge(prefers("beta")), config())
    assert capsys.readouterr() == ("", "")
    build_judge_ranked(prompts(2), ListSampler(four), FunctionJudge(prefers("beta")), config(show_progress=True))
    out, err = capsys.readouterr()
    assert out == "" and "judge-1 judges: 2 to go" in err and "judge-1 judges: done." in err
