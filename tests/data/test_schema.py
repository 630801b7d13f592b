"""Laws of the ranked row: competition ranks, what a user's row becomes, and that an error says where, what and how."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked_rows import finite, rows, simple_row, texts

from tuna_trl.data.schema import (
    ROW_COLUMNS,
    as_messages,
    canonical_json,
    check_row,
    competition_ranks,
    dense_to_competition,
    digest,
    make_row,
    mark_duplicates,
    normalise_row,
    prompt_id,
    ranked_features,
)
from tuna_trl.errors import SchemaError


score_lists = st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.0]) | finite, max_size=8)


class TestCompetitionRanks:
    @given(score_lists)
    def test_a_rank_is_one_more_than_the_number_of_better_scores(self, scores):
        assert competition_ranks(scores) == [1 + sum(other > score for other in scores) for score in scores]

    @given(score_lists, st.randoms())
    def test_ranks_follow_their_scores_through_a_permutation(self, scores, rng):
        order = rng.sample(range(len(scores)), len(scores))
        ranks = competition_ranks(scores)
        assert competition_ranks([scores[i] for i in order]) == [ranks[i] for i in order]

    @given(score_lists, st.floats(0, 3))
    def test_with_a_tie_delta_a_group_reaches_delta_below_its_first_and_no_further(self, scores, delta):
        ranks = competition_ranks(scores, tie_delta=delta)
        for rank in set(ranks):
            group = [s for s, r in zip(scores, ranks, strict=True) if r == rank]
            assert max(group) - min(group) <= delta
            below = [s for s, r in zip(scores, ranks, strict=True) if r > rank]
            assert all(max(group) - score > delta for score in below)
            assert rank == 1 + sum(r < rank for r in ranks)

    @given(st.lists(st.integers(1, 9), max_size=8))
    def test_any_ascending_ranks_keep_their_order_and_ties(self, ranks):
        result = dense_to_competition(ranks)
        for a, x in zip(ranks, result, strict=True):
            for b, y in zip(ranks, result, strict=True):
                assert (a < b) == (x < y)
        assert dense_to_competition(result) == result


class TestMakeRow:
    @given(rows())
    def test_responses_stand_best_first_and_the_unranked_last(self, row):
        ranks = [r["rank"] for r in row["responses"]]
        ranked = [rank for rank in ranks if rank is not None]
        assert ranked == sorted(ranked)
        assert ranks[len(ranked) :] == [None] * (len(ranks) - len(ranked))
        assert sorted(r["index"] for r in row["responses"]) == list(range(row["num_responses"]))

    @given(rows())
    def test_flat_columns_are_what_the_responses_say(self, row):
        ranks = [r["rank"] for r in row["responses"] if r["rank"] is not None]
        better = sum(1 for i, rank in enumerate(ranks) if rank in ranks[:i])
        scores = [r["score"] for r in row["responses"] if r["rank"] is not None and r["score"] is not None]
        assert row["num_ties"] == better
        assert row["score_gap"] == (max(scores) - min(scores) if scores else None)
        assert tuple(row) == ROW_COLUMNS
        assert row["prompt_id"] == prompt_id(row["prompt"])

    def test_an_unknown_field_is_named_with_its_nearest_known_one(self):
        with pytest.raises(SchemaError, match=r"responses\[1\].*'contents'.*Did you mean 'content'"):
            make_row("p", [{"content": "a", "rank": 1}, {"contents": "b"}], ranking_method="human", ranker=None)

    def test_ranks_with_a_hole_are_no_ranking(self):
        with pytest.raises(SchemaError, match=r"\[1, 3, None\].*read \[1, 2\].*normalise_row"):
            make_row(
                "p",
                [{"content": c, "rank": r} for c, r in [("a", 1), ("b", 3), ("c", None)]],
                ranking_method="human",
                ranker=None,
            )


class TestFeatures:
    @settings(max_examples=30)
    @given(st.lists(rows(), min_size=1, max_size=3))
    def test_rows_and_types_survive_parquet(self, some_rows):
        import io

        import pyarrow.parquet as pq
        from datasets import Dataset

        dataset = Dataset.from_list(some_rows, features=ranked_features())
        buffer = io.BytesIO()
        dataset.to_parquet(buffer)
        again = Dataset(pq.read_table(io.BytesIO(buffer.getvalue())))
        assert again.features == ranked_features()
        assert again.to_list() == some_rows

    def test_no_column_takes_a_name_that_trl_reads_otherwise(self):
        reserved = {"completions", "labels", "messages", "text", "images", "tools", "input_ids", "chosen", "rejected"}
        assert not reserved & set(ranked_features())
        assert tuple(ranked_features()) == ROW_COLUMNS


class TestNormaliseRow:
    @given(rows())
    def test_a_full_row_is_unchanged(self, row):
        assert normalise_row(row) == row

    @given(rows())
    def test_the_argument_is_not_mutated(self, row):
        given_row = {"prompt": row["prompt"], "responses": [dict(r) for r in row["responses"]], "mine": 1}
        before = copy.deepcopy(given_row)
        normalise_row(given_row)
        assert given_row == before

    @given(st.lists(st.tuples(texts, finite), min_size=1, max_size=6))
    def test_every_spelling_of_scored_responses_is_the_same_row(self, pairs):
        contents, scores = [c for c, _ in pairs], [s for _, s in pairs]
        ranks = competition_ranks(scores)
        row = normalise_row({"prompt": "p", "responses": contents, "scores": scores})
        dicts = [{"content": c, "score": s} for c, s in pairs]
        assert normalise_row({"prompt": as_messages("p"), "responses": dicts}) == row
        with_ranks = {"prompt": "p", "responses": contents, "scores": scores, "ranks": ranks}
        assert normalise_row(with_ranks) == row
        by_rank = normalise_row({"prompt": "p", "responses": contents, "ranks": ranks})
        assert [(r["content"], r["rank"]) for r in by_rank["responses"]] == [
            (r["content"], r["rank"]) for r in row["responses"]
        ]
        check_row(row)

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    def test_dense_ranks_are_taken_as_meant(self, ranks):
        dense = [1 + sorted(set(ranks)).index(rank) for rank in ranks]
        row = normalise_row({"prompt": "p", "responses": [str(i) for i in range(len(ranks))], "ranks": dense})
        assert [r["rank"] for r in row["responses"]] == sorted(competition_ranks([-r for r in ranks]))

    def test_ranks_of_a_data_frame_are_integers_too(self):
        for ranks in ([2.0, 1.0], [np.int64(2), np.int64(1)], [np.float64(2), np.float64(1)]):
            row = normalise_row({"prompt": "p", "responses": ["a", "b"], "ranks": ranks})
            assert [(r["content"], r["rank"]) for r in row["responses"]] == [("b", 1), ("a", 2)]

    def test_a_single_response_needs_no_order(self):
        for responses in (["only"], [{"content": "only"}]):
            assert normalise_row({"prompt": "p", "responses": responses})["responses"][0]["rank"] == 1

    @pytest.mark.parametrize("status", ["refused", "malformed", "inconsistent", "truncated", "over_budget", "failed"])
    def test_a_row_whose_ranking_failed_is_not_ranked_after_all(self, status):
        responses = [{"content": "a", "score": 1.0}, {"content": "b", "score": 2.0}, {"content": "c"}]
        row = normalise_row({"prompt": "p", "responses": responses, "status": status})
        assert [r["rank"] for r in row["responses"]] == [None, None, None]
        assert normalise_row({"prompt": "p", "responses": ["a", "b"], "status": status})["num_responses"] == 2

    def test_a_response_without_a_score_is_unranked(self):
        row = normalise_row({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, None, 2.0]})
        assert [(r["content"], r["rank"]) for r in row["responses"]] == [("c", 1), ("a", 2), ("b", None)]


OK = {"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 2.0]}
DICTS = [{"content": "a", "rank": 1}, {"content": "b", "rank": 2}]


@pytest.mark.parametrize(
    ("change", "column", "found", "mend"),
    [
        ({"prompt": ...}, "'prompt'", "responses", "rename_column"),
        ({"responses": ..., "response": ["a"]}, "'responses'", "'response'", "Did you mean 'response'"),
        ({"prompt": []}, "prompt", "list []", "string or list of messages"),
        ({"prompt": None}, "prompt", "NoneType None", "string or list of messages"),
        ({"prompt": [{"role": "user"}]}, "prompt", "{'role': 'user'}", "needs `role` and `content`"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt", "None", "must be strings"),
        ({"responses": "a"}, "responses", "str 'a'", "list of strings or dicts"),
        ({"responses": {"content": ["a"]}}, "responses", "dict", "list of strings or dicts"),
        ({"responses": []}, "responses", "empty list", "dataset.filter"),
        ({"responses": ["a", {"content": "b"}]}, "responses", "dict, str", "use strings"),
        ({"responses": ["a", None]}, "responses", "NoneType, str", "use strings"),
        ({"scores": ...}, "responses", "strings", "add_column('scores'"),
        ({"scores": 3}, "'scores'", "int 3", "must be a list"),
        ({"scores": [1.0]}, "'scores'", "1 entries for 2", "exactly one"),
        ({"ranks": [1, 2, 3]}, "'ranks'", "3 entries for 2", "exactly one"),
        ({"scores": [1.0, math.nan]}, "responses[1].score", "nan", "finite number, or null"),
        ({"scores": [-math.inf, 1.0]}, "responses[0].score", "-inf", "finite number, or null"),
        ({"scores": ["1", "2"]}, "responses[0].score", "str '1'", "expected float64 or null"),
        ({"scores": [True, 1.0]}, "responses[0].score", "bool True", "expected float64 or null"),
        ({"ranks": [1, 0]}, "responses[1].rank", "0", "1 = best"),
        ({"ranks": [1, 1.5]}, "responses[1].rank", "1.5", "integers"),
        ({"ranks": [1, math.nan]}, "responses[1].rank", "nan", "integers"),
        ({"ranks": [1, "2"]}, "responses[1].rank", "str '2'", "expected int32 or null"),
        ({"ranks": [1, True]}, "responses[1].rank", "bool True", "expected int32 or null"),
        ({"ranks": [None, 3]}, "responses[1].rank", "3", "dense_to_competition"),
        ({"responses": [{"text": "a"}]}, "responses[0]", "fields: text", "content"),
        ({"responses": [*DICTS, {"contents": "a"}]}, "responses[2]", "contents", "Did you mean 'contents'"),
        ({"responses": [{"content": None, "rank": 1}]}, "responses[0].content", "null", "expected a string"),
        ({"responses": [{"content": ["a"], "rank": 1}]}, "responses[0].content", "list ['a']", "expected string"),
        (
            {"responses": [{"content": "a"}, {"content": "b"}]},
            "responses",
            "neither",
            "giving each response a 'score'",
        ),
        ({"responses": [{**DICTS[0], "index": "0"}]}, "responses[0].index", "str '0'", "expected int32"),
        ({"responses": [{**DICTS[0], "model": 5}]}, "responses[0].model", "int 5", "expected string or null"),
        ({"responses": [{**DICTS[0], "num_tokens": 1.5}]}, "responses[0].num_tokens", "float 1.5", "expected int32"),
        ({"reference": ["r"]}, "'reference'", "list ['r']", "expected a string or null"),
        ({"ranker": 7}, "'ranker'", "int 7", "expected a string or null"),
        ({"ranking_method": "gpt"}, "'ranking_method'", "'gpt'", "teacher_logprob"),
        ({"status": "okay"}, "'status'", "'okay'", "ok, partial"),
        ({"provenance": "{}"}, "'provenance'", "str '{}'", "expected an object or null"),
    ],
)
def test_an_error_names_row_column_what_was_found_and_what_mends_it(change, column, found, mend):
    row = {name: value for name, value in {**OK, **change}.items() if value is not ...}
    with pytest.raises(SchemaError) as error:
        normalise_row(row, "train row 17")
    message = str(error.value)
    assert message.startswith("train row 17: ")
    assert message.count("row 17") == 1
    for part in (column, found, mend):
        assert part in message


@given(st.recursive(st.none() | st.booleans() | finite | texts, lambda v: st.lists(v) | st.dictionaries(texts, v)))
def test_whatever_stands_in_a_row_the_answer_is_a_row_or_a_schema_error(value):
    for column in ("prompt", "responses", "scores", "ranks", "status", "ranking_method", "provenance"):
        for base in (OK, {"prompt": "p", "responses": DICTS}):
            try:
                check_row(normalise_row({**base, column: value}))
            except SchemaError:
                pass


@given(st.dictionaries(texts, finite, max_size=5), st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_keys(record, rng):
    keys = list(record)
    rng.shuffle(keys)
    assert digest({key: record[key] for key in keys}) == digest(record)
    assert json.loads(canonical_json(record)) == record


@given(st.lists(st.sampled_from(["a", "a ", " a\n", "b", "a b", "a  b"]), max_size=6))
def test_a_duplicate_points_at_the_first_text_that_reads_the_same(some):
    folded = [" ".join(text.split()) for text in some]
    for i, first in enumerate(mark_duplicates(some)):
        assert first == (folded.index(folded[i]) if folded.index(folded[i]) < i else None)


@pytest.mark.parametrize("order", [[2, 1, 0], [0, 2, 1], [1, 0, 2]])
def test_check_row_takes_no_other_order_than_best_first(order):
    row = simple_row()
    check_row(row)
    mended = {**row, "responses": [row["responses"][k] for k in order]}
    with pytest.raises(SchemaError, match=r"^row 3: column 'responses.rank' is .* best first.*normalise_row"):
        check_row(mended, "row 3")
    assert normalise_row(mended) == row
