"""Ranks computed again from stored judgments: the same with the same settings, others with others, and no request."""

from __future__ import annotations

import functools
import json
import random

import pytest
from datasets import Dataset
from doubles.builders import FunctionJudge, ListSampler, by_index, config, four, prefers, prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build import from_judgments
from tuna_trl.build.judge import judge_builds
from tuna_trl.clients.base import Reply, Usage
from tuna_trl.clients.contextual import ContextualProtocol
from tuna_trl.clients.pairwise import PairwiseProtocol
from tuna_trl.clients.pointwise import PointwiseProtocol
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.clients.verdicts import labels
from tuna_trl.data.hub import save_ranked
from tuna_trl.data.schema import make_row, ranked_features
from tuna_trl.errors import InputError, SchemaError


rank_from_judgments = functools.partial(from_judgments.rank_from_judgments, show_progress=False)


class ProtocolJudge(FunctionJudge):
    """Answers at random, as the protocol asks; some replies are cut, refused, malformed or contradict themselves."""

    def __init__(self, protocol, *, faults=0.3, seed=0, **options):
        super().__init__(self.verdict, **options)
        self.protocol, self.faults, self.seed = protocol, faults, seed

    def fingerprint(self):
        return {"judge": "double", "model": self.name, **self.protocol.fingerprint()}

    def orders(self, order):
        return self.protocol.orders(order)

    def parse(self, request, reply):
        return self.protocol.parse(request, reply)

    def verdict(self, request):
        # by what is asked, not by when: threads ask in any order
        draw = random.Random(f"{self.seed} {request.repeat} {request.candidates} {self.requests.count(request)}")
        fault = draw.choice(["malformed", "refused", "truncated", "contrary"]) if draw.random() < self.faults else None
        reason = {"refused": "refusal", "truncated": "max_tokens"}.get(fault, "end_turn")
        raw = "first A, then B" if fault == "malformed" else json.dumps(self.content(draw, request, fault))
        return Reply(raw, reason, f"req-{draw.random()}", self.name, Usage(input=10, output=3))

    def content(self, draw, request, fault):
        name, n = self.protocol.name, len(request.candidates)
        if name == "pairwise":
            return {"rationale": "r", "winner": draw.choice(["A", "B", "tie"])}
        if name == "pointwise":
            return {"rationale": "r", "score": draw.randint(1, 5)}
        fields = self.protocol.schema(n)["properties"]
        names = list(fields["ranking"]["items"]["enum"])
        scores = {label: draw.randint(0, 2) for label in names}
        ranking = sorted(names, key=lambda label: (-scores[label], draw.random()))
        content = {"task": "open"} | ({"answer": f"mine {draw.random()}"} if "answer" in fields else {})
        for label in names:
            content[label] = {"rationale": "r", "accuracy": scores[label], "detail": 1, "relevance_or_clarity": 1}
        return content | {"ranking": ranking[::-1] if fault == "contrary" else ranking}


def texts(prompt):
    """Four responses; of every third prompt some are the same, of every seventh all."""
    k = int(prompt.split()[-1])
    if k % 7 == 6:
        return ["same"] * 4
    return ["a b", "c", " a  b", f"d {k}"] if k % 3 == 2 else four(prompt)


PROTOCOLS = [
    ContextualProtocol(),
    ContextualProtocol(judge_answer="context"),
    ContextualProtocol(judge_answer="ranked"),
    PairwiseProtocol(),
    PointwiseProtocol(),
]


def build(protocol, rows=9, judge=None, **options):
    return judge_builds(prompts(rows), ListSampler(texts), judge or ProtocolJudge(protocol), config(**options))


def same(one, other):
    assert list(one) == list(other)
    for split in one:
        assert list(one[split]) == list(other[split])
        assert one[split].features == other[split].features == ranked_features()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
@settings(max_examples=6)
@given(seed=st.integers(0, 1000), repeats=st.integers(1, 4), delta=st.sampled_from([0.0, 0.5, 1.5]))
def test_the_same_settings_give_the_same_dataset(protocol, seed, repeats, delta):
    ranked, judgments = build(protocol, 8, ProtocolJudge(protocol, seed=seed), repeats=repeats, tie_delta=delta)
    same(rank_from_judgments(ranked, judgments), ranked)
    same(rank_from_judgments(ranked, judgments, judge=protocol, tie_delta=delta), ranked)


def test_it_was_put_to_the_test():
    """The rows of the test above hold every way in which a row can end, or it would prove little."""
    found = set()
    for seed in range(6):
        judge = ProtocolJudge(ContextualProtocol(), seed=seed, faults=0.5)
        ranked, judgments = build(None, 8, judge, repeats=1, max_malformed=1)
        found |= {status for part in (ranked, judgments) for status in part["train"]["status"]}
    assert {"ok", "malformed", "refused", "truncated", "inconsistent"} <= found


@pytest.mark.parametrize("protocol", PROTOCOLS[:1] + PROTOCOLS[2:], ids=str)
def test_other_settings_give_what_a_build_with_them_would_have_given(protocol):
    ranked, judgments = build(protocol, repeats=3)
    again = rank_from_judgments(ranked, judgments, tie_delta=1.5)
    same(again, build(protocol, repeats=3, tie_delta=1.5)[0])
    assert list(again["train"]) != list(ranked["train"])
    fewer = rank_from_judgments(ranked, judgments, repeats=[0])["train"]
    for row, expected in zip(fewer, build(protocol, repeats=1)[0]["train"], strict=True):
        assert row["provenance"].pop("repeats_used") == [0]
        assert row == expected
    for row, old in zip(again["train"], ranked["train"], strict=True):  # only what a judge decides is another
        kept = ("prompt_id", "prompt", "reference", "ranker", "ranking_method", "source")
        assert [row[name] for name in kept] == [old[name] for name in kept]
        assert [r["content"] for r in by_index(row)][:4] == [r["content"] for r in by_index(old)][:4]


@pytest.mark.parametrize("protocol", [ContextualProtocol(), PairwiseProtocol(), PointwiseProtocol()], ids=str)
def test_rows_that_the_money_did_not_reach_stay_as_they_are(tmp_path, protocol):
    judge = ProtocolJudge(protocol, faults=0.0, paid=True, price=1.0)
    options = {"repeats": 2, "max_cost": 5.0, "journal": tmp_path / "j", "stop_over_budget": False}
    ranked, judgments = build(protocol, 5, judge, **options)
    assert "over_budget" in ranked["train"]["status"][:] and "over_budget" in judgments["train"]["status"][:]
    same(rank_from_judgments(ranked, judgments), ranked)


def test_equal_prompts_and_other_splits_are_told_apart():
    splits = {"a": prompts(2) + prompts(2), "b": prompts(3)}
    judge = ProtocolJudge(ContextualProtocol(), faults=0.0)
    ranked, judgments = judge_builds(splits, ListSampler(four), judge, config(repeats=2))
    same(rank_from_judgments(ranked, judgments), ranked)


def test_the_reference_judge_is_read_again_too():
    ranked, judgments = judge_builds(prompts(4), ListSampler(four), ReferenceJudge(), config())
    same(rank_from_judgments(ranked, judgments), ranked)
    same(rank_from_judgments(ranked, judgments, judge=ReferenceJudge()), ranked)


def test_another_judge_of_the_same_protocol_reads_the_same():
    ranked, judgments = build(PairwiseProtocol())
    other = ProtocolJudge(PairwiseProtocol())
    other.name = "another-model"
    same(rank_from_judgments(ranked, judgments, judge=other), ranked)
    assert other.requests == []


def test_where_no_protocol_is_known_the_stored_scores_stand():
    ranked, judgments = judge_builds(prompts(5), ListSampler(four), FunctionJudge(prefers("beta")), config(repeats=2))
    same(rank_from_judgments(ranked, judgments), ranked)


def test_a_folder_that_was_written_and_read_ranks_the_same(tmp_path):
    from datasets import load_dataset

    ranked, judgments = build(ContextualProtocol(), repeats=2)
    folder = str(save_ranked(ranked, tmp_path / "built", judgments=judgments))
    again = rank_from_judgments(load_dataset(folder), load_dataset(folder, "judgments"))
    assert list(again["train"]) == list(ranked["train"])


def test_the_raw_reply_counts_and_not_the_score_beside_it():
    ranked, judgments = build(None, judge=ProtocolJudge(ContextualProtocol(), faults=0.0))
    wrong = judgments["train"].map(lambda row: {"scores": [0.0] * len(row["scores"]), "status": "refused"})
    same(rank_from_judgments(ranked, {"train": wrong}), ranked)


def test_rows_that_were_filtered_away_do_not_matter_and_lists_will_do():
    ranked, judgments = build(ContextualProtocol(), repeats=2)
    some = ranked["train"].select([0, 3, 4])
    assert list(rank_from_judgments(some, list(judgments["train"]))["train"]) == list(some)
    assert list(rank_from_judgments(list(some), iter(judgments["train"]))["train"]) == list(some)


def test_what_does_not_fit_is_refused_by_row_and_column():
    ranked, judgments = build(ContextualProtocol())
    rows = list(judgments["train"])
    key = ranked["train"][0]["prompt_id"]
    with pytest.raises(SchemaError, match=r"split 'train', row 0: column 'prompt_id'.*no judgment of it"):
        rank_from_judgments(ranked, [row for row in rows if row["prompt_id"] != key])
    with pytest.raises(SchemaError, match=r"no judgment of the repeats \[7\]"):
        rank_from_judgments(ranked, judgments, repeats=[7])
    with pytest.raises(SchemaError, match=r"row 0: column 'permutation' names response 9"):
        rank_from_judgments(ranked, [rows[0] | {"permutation": [9, 1, 2, 3]}, *rows[1:]])
    given = make_row("q", [{"content": "a", "rank": 1}], ranking_method="human", ranker=None)
    with pytest.raises(SchemaError, match=r"row 0: column 'ranking_method' is 'human'"):
        rank_from_judgments([given], [])
    bare = make_row("q", [{"content": "a", "rank": 1}], ranking_method="judge", ranker="j")
    with pytest.raises(SchemaError, match=r"row 0: column 'provenance' names no judge"):
        rank_from_judgments([bare], [])
    with pytest.raises(InputError, match="judge_answer='off', and the one given has 'ranked'"):
        rank_from_judgments(ranked, judgments, judge=ContextualProtocol(judge_answer="ranked"))
    for bad in ({"tie_delta": -1.0}, {"tie_delta": float("nan")}, {"repeats": []}):
        with pytest.raises(InputError, match=next(iter(bad))):
            rank_from_judgments(ranked, judgments, **bad)


def test_an_own_answer_needs_the_protocol_that_scored_it():
    judge = ProtocolJudge(ContextualProtocol(judge_answer="ranked"), faults=0.0)
    judge.fingerprint = lambda: {"judge": "unheard of"}
    ranked, judgments = build(None, judge=judge)
    with pytest.raises(InputError, match="Pass the judge's protocol"):
        rank_from_judgments(ranked, judgments)


def test_nothing_given_is_changed():
    ranked, judgments = build(ContextualProtocol(), repeats=2)
    rows, replies = list(ranked["train"]), list(judgments["train"])
    before = json.dumps([rows, replies])
    rank_from_judgments(rows, replies, tie_delta=2.0, repeats=[1])
    assert json.dumps([rows, replies]) == before
    assert isinstance(ranked["train"], Dataset) and len(labels(4)) == 4
