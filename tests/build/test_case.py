"""Cases: the questions of a row by protocol, and what the verdicts come to, whatever the protocol."""

from __future__ import annotations

import json
import math

import pytest
from doubles.builders import FunctionJudge, ListSampler, by_index, config, four, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.agreement import kendalls_w
from tuna_trl.build.case import make_case, rank_case
from tuna_trl.build.items import PromptItem
from tuna_trl.build.judge import build_judge_ranked, judge_builds
from tuna_trl.build.judging import Answer
from tuna_trl.build.sampling import Drawn
from tuna_trl.clients.base import Reply, Sample, Verdict
from tuna_trl.clients.contextual import ContextualProtocol, labels
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.pointwise import PointwiseProtocol
from tuna_trl.data.schema import check_row, competition_ranks


PAIRWISE, POINTWISE, RANKED = PairwiseProtocol(), PointwiseProtocol(scale=(0, 9)), ContextualProtocol("ranked")


class ProtocolJudge(FunctionJudge):
    """A judge that asks and reads by a real protocol; `reply(request)` is its verdict as JSON, or a Reply."""

    def __init__(self, protocol, reply, **options):
        super().__init__(lambda request: self._raw(reply(request)), **options)
        self.protocol = protocol

    @staticmethod
    def _raw(answer):
        return answer if isinstance(answer, (str, Reply)) else json.dumps(answer)

    def fingerprint(self):
        return {"judge": "double"} | self.protocol.fingerprint()

    def orders(self, order):
        return self.protocol.orders(order)

    def parse(self, request, reply):
        return self.protocol.parse(request, reply)


def prefers_by(merit):
    """A pairwise verdict by the merit of a text."""

    def reply(request):
        a, b = map(merit, request.candidates)
        return {"rationale": "", "winner": "A" if a > b else "B" if b > a else "tie"}

    return reply


def point(score):
    return lambda request: {"rationale": "", "score": score(request.candidates[0])}


def drawn(*texts, prompt="q"):
    item = PromptItem([{"role": "user", "content": prompt}], f"id of {prompt}", 0, None, None)
    return Drawn(item, tuple(Sample(text, (), "stop") for text in texts), 1.0, 1, None)


def answered(case, verdict):
    """The case with a verdict on every question; `verdict(question)` is a Verdict, a list of scores, or None: none."""
    for question in case.questions:
        read = verdict(question)
        if read is not None:
            read = read if isinstance(read, Verdict) else Verdict("ok", tuple(read))
            question.answers.append(Answer(Reply(""), read))
    return case


def failed(status, n=2):
    return Verdict(status, (None,) * n)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=12)
def test_pairs_rank_as_merit_does_and_score_the_win_rate(merits, repeats, seed):
    merit = dict(zip(four("question 0"), merits, strict=True))
    judge = ProtocolJudge(PAIRWISE, prefers_by(merit.get))
    ranked, judgments = judge_builds(prompts(1), ListSampler(four), judge, config(repeats=repeats, seed=seed))
    (row,) = ranked["train"]
    assert [r["rank"] for r in by_index(row)] == competition_ranks(merits)
    wins = [sum((a > b) + 0.5 * (a == b) for j, b in enumerate(merits) if j != i) / 3 for i, a in enumerate(merits)]
    assert [r["score"] for r in by_index(row)] == pytest.approx(wins)
    assert row["status"] == "ok" and len(judge.requests) == 12 * repeats
    assert len({(r.candidates, r.repeat) for r in judge.requests}) == 12 * repeats
    for reply in judgments["train"]:
        assert reply["labels"] == ["A", "B"] and len(reply["permutation"]) == len(reply["scores"]) == 2
        assert reply["repeat"] in range(repeats)


@pytest.mark.parametrize("winner", ["A", "B", "tie"])
def test_a_judge_of_pairs_that_looks_at_places_only_ties_all(winner):
    judge = ProtocolJudge(PAIRWISE, lambda request: {"rationale": "", "winner": winner})
    (row,) = build_judge_ranked(prompts(1), ListSampler(four), judge, config())["train"]
    assert [(r["rank"], r["score"]) for r in row["responses"]] == [(1, 0.5)] * 4


def test_orders_that_disagree_are_a_tie_of_that_pair_only():
    def first_of_two_but_alpha_beats_all(request):
        alpha = [place for place, text in enumerate(request.candidates) if "alpha" in text]
        return {"rationale": "", "winner": "AB"[alpha[0] if alpha else 0]}

    judge = ProtocolJudge(PAIRWISE, first_of_two_but_alpha_beats_all)
    (row,) = build_judge_ranked(prompts(1), ListSampler(four), judge, config())["train"]
    assert [r["rank"] for r in by_index(row)] == [1, 2, 2, 2]
    assert [r["score"] for r in by_index(row)] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("status", ["refused", "malformed", "truncated"])
def test_a_cycle_of_comparisons_with_a_question_unread_does_not_count(status):
    """A response that lost a comparison to a refusal would be compared by other opponents than the rest."""
    case = make_case(drawn("a", "b", "c"), where="", seed=0, repeats=2, orders=PAIRWISE.orders)

    def verdict(question):
        if question.request.repeat == 0 and question.permutation == (0, 1):
            return failed(status)
        return (1.0, 0.0) if question.permutation[0] < question.permutation[1] else (0.0, 1.0)

    ranking = rank_case(answered(case, verdict), 0.0)
    assert (ranking.status, ranking.ranks, ranking.scores) == ("partial", [1, 2, 3], [1.0, 0.5, 0.0])
    assert ranking.agreement_w is None  # of one cycle
    single = make_case(drawn("a", "b", "c"), where="", seed=0, repeats=1, orders=PAIRWISE.orders)
    ranking = rank_case(answered(single, verdict), 0.0)
    assert (ranking.status, ranking.ranks, ranking.scores) == (status, [None] * 3, [None] * 3)


def test_points_are_the_mean_over_the_cycles():
    table = {"a": [1, 2], "b": [5, 3], "c": [5, 5]}
    judge = ProtocolJudge(POINTWISE, lambda request: point(lambda text: table[text][request.repeat])(request))
    sampler = ListSampler(lambda prompt: ["a", "b", "c", "a"])
    (row,) = build_judge_ranked(prompts(1), sampler, judge, config(repeats=2))["train"]
    assert [r["score"] for r in by_index(row)] == [1.5, 4.0, 5.0, 1.5]
    assert [r["rank"] for r in by_index(row)] == [3, 2, 1, 3]
    assert row["agreement_w"] == pytest.approx(kendalls_w([[1.0, 5.0, 5.0], [2.0, 3.0, 5.0]]))
    assert len(judge.requests) == 6 and all(len(request.candidates) == 1 for request in judge.requests)


def test_a_response_read_alone_counts_if_it_was_read_in_every_cycle_that_was_read():
    def reply(request):
        if request.candidates == ("b",) and request.repeat == 1:
            return Reply("", "refusal")
        if request.repeat == 2:
            return Reply("", "refusal")  # nothing of this cycle was read: it takes nobody out
        return {"rationale": "", "score": {"a": 3, "b": 9, "c": 5, "d": 5}[request.candidates[0]]}

    judge = ProtocolJudge(POINTWISE, reply)
    sampler = ListSampler(lambda prompt: ["a", "b", "c", "d"])
    (row,) = build_judge_ranked(prompts(1), sampler, judge, config(repeats=3))["train"]
    assert row["status"] == "partial"
    assert [(r["rank"], r["score"]) for r in by_index(row)] == [(3, 3.0), (None, None), (1, 5.0), (1, 5.0)]


def test_a_row_of_which_nothing_was_read_has_the_status_of_the_first_question_that_failed():
    case = make_case(drawn("a", "b"), where="", seed=0, repeats=2, orders=POINTWISE.orders)
    statuses = iter(["truncated", "refused", "refused", "malformed"])
    ranking = rank_case(answered(case, lambda question: failed(next(statuses), 1)), 0.0)
    assert (ranking.status, ranking.ranks) == ("truncated", [None, None])


@pytest.mark.parametrize("orders", [None, PAIRWISE.orders, POINTWISE.orders])
def test_a_question_that_was_never_answered_is_over_budget_and_never_ranked(orders):
    case = make_case(drawn("a", "b"), where="", seed=0, repeats=1, orders=orders)
    assert rank_case(case, 0.0).status == "over_budget"
    assert rank_case(case, 0.0).ranks == [None, None]
    twice = make_case(drawn("a", "b"), where="", seed=0, repeats=2, orders=orders)
    answered(twice, lambda q: [2.0 - i for i in q.permutation] if q.request.repeat == 0 else None)
    assert (rank_case(twice, 0.0).status, rank_case(twice, 0.0).ranks) == ("partial", [1, 2])


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 5), st.sampled_from([None, PAIRWISE, POINTWISE]))
@settings(deadline=None, max_examples=30)
def test_every_question_of_a_row_has_a_key_and_a_nonce_of_its_own(n, repeats, seed, protocol):
    texts = [f"text {i}" for i in range(n)]
    orders = protocol and protocol.orders
    case = make_case(drawn(*texts), where="", seed=seed, repeats=repeats, orders=orders)
    judge = FunctionJudge(None)
    assert len({question.key(judge, 0) for question in case.questions}) == len(case.questions)
    assert len({question.request.nonce for question in case.questions}) == len(case.questions)
    for question in case.questions:
        assert question.request.candidates == tuple(texts[i] for i in question.permutation)
    assert {question.request.repeat for question in case.questions} == set(range(repeats))
    again = make_case(drawn(*texts), where="", seed=seed, repeats=repeats, orders=orders)
    assert again == case


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(0, 2))
@settings(deadline=None, max_examples=40)
def test_one_by_one_and_all_at_once_rank_alike_where_the_scores_are_the_same(table, tie_delta):
    def verdict(question):
        return [float(table[question.request.repeat][i]) for i in question.permutation]

    rankings = [
        rank_case(
            answered(make_case(drawn("a", "b", "c"), where="", seed=1, repeats=len(table), orders=orders), verdict),
            tie_delta,
        )
        for orders in (None, POINTWISE.orders)
    ]
    assert rankings[0] == rankings[1]
    means = [math.fsum(column) / len(table) for column in zip(*table, strict=True)]
    assert rankings[0].ranks == competition_ranks(means, tie_delta)


def ranking_judge(score, own_score, answer="the judge's own"):
    """A contextual judge that also ranks its own answer: totals by text, its own first among equals."""

    def reply(request):
        names = [*labels(len(request.candidates)), "REF"]
        own = own_score(request) if callable(own_score) else own_score
        totals = [*map(score, request.candidates), own]
        parts = [{"accuracy": t - 2 * (t // 3), "detail": t // 3, "relevance_or_clarity": t // 3} for t in totals]
        whole = {"task": "open", "answer": answer(request) if callable(answer) else answer}
        whole |= {name: {"rationale": "", **part} for name, part in zip(names, parts, strict=True)}
        order = sorted(range(len(names)), key=lambda i: (-totals[i], -i))
        return whole | {"ranking": [names[i] for i in order]}

    return ProtocolJudge(RANKED, reply)


TOTALS = {"a": 9, "b": 6, "c": 3, "d": 6}


def ranked_row(judge, texts="abcd", **options):
    (row,) = build_judge_ranked(prompts(1), ListSampler(lambda prompt: list(texts)), judge, config(**options))["train"]
    check_row(row)
    return row


@pytest.mark.parametrize(
    ("own", "ranks"),
    [(12, [2, 3, 5, 4, 1]), (9, [2, 3, 5, 4, 1]), (6, [1, 3, 5, 4, 2]), (0, [1, 2, 4, 3, 5])],
)
def test_the_judges_own_answer_is_one_more_response_ranked_among_the_others(own, ranks):
    row = ranked_row(ranking_judge(TOTALS.get, own))
    responses = by_index(row)
    assert len(responses) == row["num_responses"] == 5 and row["status"] == "ok"
    found = [r["rank"] for r in responses]
    assert found[4] == ranks[4] and sorted(found) == [1, 2, 3, 4, 5]  # one judgment: its order breaks the ties
    assert (found[0], found[2]) == (ranks[0], ranks[2]) and {found[1], found[3]} == {ranks[1], ranks[3]}
    answer = responses[4]
    assert (answer["source"], answer["model"], answer["content"]) == ("judge", "judge-1", "the judge's own")
    assert (answer["score"], answer["duplicate_of"], answer["logprob"]) == (float(own), None, None)
    assert [r["source"] for r in responses[:4]] == ["student"] * 4


def test_of_several_repeats_the_first_readable_answer_is_ranked_with_its_own_score():
    def by_repeat(request):
        return Reply("", "refusal") if request.repeat == 0 else judge_reply(request)

    judge = ranking_judge(TOTALS.get, lambda r: 3 + r.repeat, lambda r: f"answer {r.repeat}")
    judge_reply, judge.reply = judge.reply, by_repeat
    row = ranked_row(judge, repeats=3)
    answer = by_index(row)[4]
    assert (answer["content"], answer["score"], answer["rank"]) == ("answer 1", 4.0, 4)
    assert [r["rank"] for r in by_index(row)] == [1, 2, 5, 2, 4] and row["status"] == "partial"
    tied = ranked_row(ranking_judge(TOTALS.get, 9), repeats=2)
    assert [r["rank"] for r in by_index(tied)] == [1, 3, 5, 3, 1]
    near = ranked_row(ranking_judge(TOTALS.get, 8), tie_delta=1.0)
    assert [r["rank"] for r in by_index(near)] == [1, 3, 5, 3, 1]


def test_an_own_answer_that_repeats_a_response_shares_its_score_and_rank():
    row = ranked_row(ranking_judge(TOTALS.get, 0, answer=" b\n"), texts="abcb")
    responses = by_index(row)
    assert [r["rank"] for r in responses] == [1, 2, 5, 2, 2]
    assert [r["score"] for r in responses] == [9.0, 6.0, 3.0, 6.0, 6.0]
    assert [r["duplicate_of"] for r in responses] == [None, None, None, 1, 1]


def test_a_row_without_a_readable_verdict_has_no_answer_of_the_judge():
    judge = ranking_judge(TOTALS.get, 9)
    judge.reply = lambda request: Reply('{"answer": "the judge\'s own"}', "end_turn")
    row = ranked_row(judge)
    assert row["num_responses"] == 4 and row["status"] == "malformed"
    assert ranked_row(ranking_judge(TOTALS.get, 9), texts="aaaa")["num_responses"] == 4  # nothing was asked


def test_a_reply_with_half_a_surrogate_pair_can_be_stored():
    judge = ProtocolJudge(POINTWISE, lambda request: Reply('{"rationale": "\ud83d", "score": 3}', "stop"))
    _, judgments = judge_builds(prompts(1), ListSampler(four), judge, config())
    assert judgments["train"][0]["raw"] == '{"rationale": "\\ud83d", "score": 3}'
    assert judgments["train"][0]["scores"] == [3.0]
