"""Laws of ranking given responses by a judge: what comes in comes out, ranked; nothing is paid for twice."""

from __future__ import annotations

import json
import math

import pytest
from doubles.builders import FunctionJudge, by_index, config, prefers
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.build.from_judgments import rank_from_judgments
from tuna_trl.build.judge_given import rank_by_judge
from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.data.hub import load_ranked, save_ranked
from tuna_trl.data.schema import competition_ranks, judgment_features, mark_duplicates, ranked_features
from tuna_trl.errors import BudgetExceeded, InputError, SchemaError


def longest():
    return FunctionJudge(lambda request: [float(len(text)) for text in request.candidates], paid=True, price=0.5)


def ask(rows, judge=None, **options):
    return rank_by_judge(rows, judge or FunctionJudge(prefers("good")), config(**options))


TEXTS = st.lists(st.sampled_from(["a", "bb", "b b", "b  b", "ccc", ""]), min_size=1, max_size=5)


@settings(max_examples=25)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 3))
def test_rows_keep_their_responses_and_get_the_judges_ranks(lists, repeats):
    rows = [{"prompt": f"q{i % 2}", "responses": texts} for i, texts in enumerate(lists)]
    judge = FunctionJudge(lambda request: [float(len(text)) for text in request.candidates])
    ranked, judgments = ask(rows, judge, repeats=repeats)
    assert ranked["train"].features == ranked_features() and judgments["train"].features == judgment_features()
    for row, texts in zip(ranked["train"], lists, strict=True):
        responses = by_index(row)
        assert [r["content"] for r in responses] == texts and row["status"] == "ok"
        duplicate_of = mark_duplicates(texts)
        assert [r["duplicate_of"] for r in responses] == duplicate_of
        if duplicate_of.count(None) > 1:  # equal texts have the score of the first
            scores = [float(len(texts[i if k is None else k])) for i, k in enumerate(duplicate_of)]
            assert [r["rank"] for r in responses] == competition_ranks(scores)
        else:
            assert {r["rank"] for r in responses} == {1}
        assert {r["source"] for r in responses} == {"dataset"}
    assert rank_from_judgments(ranked, judgments)["train"][:] == ranked["train"][:]


def test_lists_of_several_models_keep_their_names():
    rows = [
        {"instruction": "Add one.", "input": "41", "outputs": [
            {"output": "good: 42", "generator": "model-a"}, {"text": "43", "model": "model-b"}, "44"]},
    ]  # fmt: skip
    ((row,),) = (list(part) for part in ask(rows)[0].values())
    assert row["prompt"] == [{"role": "user", "content": "Add one.\n\n41"}]
    assert [(r["model"], r["content"]) for r in by_index(row)] == [
        ("model-a", "good: 42"), ("model-b", "43"), (None, "44"),
    ]  # fmt: skip
    assert (
        row["responses"][0]["model"] == "model-a" and row["ranker"] == "judge-1" and row["ranking_method"] == "judge"
    )


def test_ranked_rows_are_ranked_anew_under_their_own_indices(tmp_path):
    """Stored best first, by a judge that put in an answer of its own: `index` is what ties things together."""
    responses = [
        {"content": "first", "index": 5, "rank": 1, "source": "judge", "model": "old-judge"},
        {"content": "good one", "index": 2, "rank": 2, "source": "student", "model": "s"},
        {"content": "good  one", "index": 9, "rank": 3, "source": "student", "model": "s"},
    ]
    from tuna_trl.data.schema import make_row

    old = make_row("q", responses, ranking_method="judge", ranker="old-judge", provenance={"seed": 3})
    ranked, judgments = ask([old], repeats=2)
    row = ranked["train"][0]
    assert [(r["index"], r["rank"], r["source"], r["duplicate_of"]) for r in by_index(row)] == [
        (2, 1, "student", None), (5, 3, "dataset", None), (9, 1, "student", 2),
    ]  # fmt: skip
    assert {tuple(sorted(reply["permutation"])) for reply in judgments["train"]} == {(2, 5)}
    assert row["provenance"]["responses"] == {"seed": 3}
    folder = save_ranked(ranked, tmp_path / "f", judgments=judgments)
    assert list(load_ranked(folder)["train"]) == list(ranked["train"])
    assert list(rank_from_judgments(ranked, judgments)["train"]) == list(ranked["train"])


def test_a_run_that_was_stopped_by_its_cap_goes_on_and_pays_for_nothing_twice(tmp_path):
    rows = [{"prompt": f"q{i}", "responses": ["a", "bb", "ccc"]} for i in range(6)]
    first, options = longest(), {"repeats": 2, "journal": tmp_path / "j"}
    with pytest.raises(BudgetExceeded):
        ask(rows, first, max_cost=2.0, **options)
    assert 0 < len(first.requests) <= 4
    second = longest()
    ranked, judgments = ask(rows, second, max_cost=6.0, **options)
    assert len(first.requests) + len(second.requests) == 12 == len(judgments["train"])
    third = longest()
    again, _ = ask(rows, third, max_cost=6.0, **options)
    assert third.requests == [] and list(again["train"]) == list(ranked["train"])


def test_a_paid_judge_needs_a_cap_and_a_journal():
    rows = [{"prompt": "q", "responses": ["a", "b"]}]
    judge = longest()
    with pytest.raises(InputError, match="max_cost"):
        ask(rows, judge)
    with pytest.raises(InputError, match="journal"):
        ask(rows, judge, max_cost=math.inf)
    assert judge.requests == []


def test_a_reference_judge_wants_its_reference_before_anything_is_asked():
    with pytest.raises(InputError, match=r"train\[1\]: column 'reference'"):
        ask([{"prompt": "q", "reference": "a", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["a", "b"]}],
            ReferenceJudge())  # fmt: skip


def test_rows_that_cannot_be_judged_keep_their_responses_and_say_why():
    rows = [{"prompt": "q", "responses": ["a", "b"]}, {"prompt": "only one", "responses": ["alone"]}]
    ranked, judgments = ask(rows, FunctionJudge(lambda request: "B, clearly"), max_malformed=1)
    assert ranked["train"]["status"][:] == ["malformed", "ok"]
    assert [r["rank"] for r in ranked["train"][0]["responses"]] == [None, None]
    assert len(judgments["train"]) == 2  # asked twice; of one response there is nothing to ask


def test_a_bad_row_is_named_and_nothing_given_is_changed():
    judge = FunctionJudge(prefers("good"))
    with pytest.raises(SchemaError, match="split 'train', row 1"):
        ask([{"prompt": "q", "responses": ["a"]}, {"prompt": "q"}], judge)
    assert judge.requests == []
    rows = [{"prompt": "q", "responses": ["a", {"content": "b"}]}]
    before = json.dumps(rows)
    ask(rows, judge)
    assert json.dumps(rows) == before
