"""Laws of the contextual builder: what the judge is shown, and what its verdicts come to."""

from __future__ import annotations

import json
import math

import pytest
from datasets import Dataset, DatasetDict
from doubles.builders import WORDS, FunctionJudge, ListSampler, by_index, config, four, prefers, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.agreement import kendalls_w, mean_tau_b
from tuna_trl.build.case import shown_order
from tuna_trl.build.judge import JudgeBuildConfig, build_judge_ranked, judge_builds
from tuna_trl.clients.base import Reply
from tuna_trl.clients.contextual import labels
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.data.schema import check_row, competition_ranks, judgment_features, ranked_features
from tuna_trl.errors import InputError


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


def test_a_judge_without_batches_is_told_so_before_anything_is_sampled():
    sampler = ListSampler(four)
    with pytest.raises(InputError, match="cannot be asked in batches"):
        build_judge_ranked(prompts(1), sampler, FunctionJudge(prefers("beta")), config(batch=True))
    assert sampler.calls == 0


def test_rows_that_the_money_did_not_reach_are_rows_with_that_status(tmp_path):
    judge = FunctionJudge(prefers("beta"), paid=True, price=1.0, concurrency=1)
    options = {"journal": tmp_path / "journal.sqlite", "stop_over_budget": False}
    ranked, judgments = judge_builds(prompts(4), ListSampler(four), judge, config(max_cost=2.5, **options))
    assert sorted(row["status"] for row in ranked["train"]) == ["ok", "ok", "over_budget", "over_budget"]
    assert all((r["rank"] is None) == (row["status"] != "ok") for row in ranked["train"] for r in row["responses"])
    assert sorted(reply["cost"] for reply in judgments["train"]) == [0.0, 0.0, 1.0, 1.0]
    again = build_judge_ranked(prompts(4), ListSampler(four), judge, config(max_cost=4.0, **options))
    assert [row["status"] for row in again["train"]] == ["ok"] * 4 and len(judge.requests) == 4
