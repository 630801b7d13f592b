"""Laws of the importers: the shape is found, nothing is guessed, and an import can be undone to the last column."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from documented_shapes import DOCUMENTED, SHP, assistant, user
from hypothesis import given
from hypothesis import strategies as st
from ranked_rows import dataset_of, json_values, simple_row
from ranked_rows import rows as any_row

from tuna_trl import SchemaError, ranked_features
from tuna_trl.data.convert import SHAPES, detect_shape, import_ranked, to_source
from tuna_trl.data.convert.alpaca_template import put_on
from tuna_trl.data.convert.rest import difference, restored
from tuna_trl.data.schema import check_row, competition_ranks


NAMES = [name for name in SHAPES if name != "ranked"]


def same(a, b) -> bool:
    """Equal, with NaN equal to itself and true unequal to 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def test_every_shape_is_documented_here():
    assert set(DOCUMENTED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestDocumentedShapes:
    def test_it_is_found_by_every_single_row(self, name):
        for row in DOCUMENTED[name][0]:
            assert detect_shape([row]).name == name

    def test_the_first_row_says_what_its_source_says(self, name):
        rows, expected = DOCUMENTED[name]
        row = next(import_ranked(rows))
        responses = sorted(row["responses"], key=lambda r: r["index"])
        assert [(r["content"], r["rank"]) for r in responses] == expected
        ranked = sum(rank is not None for _, rank in expected)
        assert row["status"] == ("ok" if ranked == len(expected) else "partial" if ranked > 1 else "failed")
        assert row["provenance"]["imported_from"] == name

    def test_import_and_export_is_the_source(self, name):
        rows, _ = DOCUMENTED[name]
        before = copy.deepcopy(rows)
        ranked = list(import_ranked(rows))
        for row in ranked:
            check_row(row)
        assert same(list(to_source(ranked)), before)
        assert same(rows, before), "the argument was changed"

    def test_so_it_is_after_a_journey_through_parquet(self, name, tmp_path):
        rows, _ = DOCUMENTED[name]
        path = str(tmp_path / "x.parquet")
        dataset_of(list(import_ranked(rows))).to_parquet(path)
        back = Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
        assert back.features == ranked_features()
        assert same(list(to_source(back)), rows)

    def test_a_dataset_of_such_rows_is_read_alike(self, name):
        """Arrow fills what one entry of a list lacks with null; a source is read with those in it."""
        first = {k: v for k, v in DOCUMENTED[name][0][0].items() if k != "pairs"}  # PandaLM's, of mixed types
        dataset = Dataset.from_list([first])
        ranked = import_ranked(dataset)
        assert ranked.features == ranked_features()
        assert ranked[0]["responses"] == next(import_ranked(DOCUMENTED[name][0][:1]))["responses"]
        assert same(list(to_source(ranked)), dataset.to_list())

    def test_no_text_is_stored_twice(self, name):
        row = next(import_ranked(DOCUMENTED[name][0]))
        rest = json.dumps(row["provenance"].get("rest"))
        if name == "tuna_contextual":  # GPT-4's reply and what it was asked, which hold the responses in their midst
            return
        assert "The Baltic." not in rest and "Add one." not in rest

    def test_without_its_rest_it_still_trains(self, name):
        for row in import_ranked(DOCUMENTED[name][0], keep_rest=False):
            assert "rest" not in row["provenance"]


class TestScores:
    def test_equal_scores_tie(self):
        ranked = list(import_ranked(DOCUMENTED["ultrafeedback_binarized"][0]))
        assert [r["rank"] for r in ranked[1]["responses"]] == [1, 1]
        assert [row["status"] for row in ranked] == ["ok", "ok"]

    def test_ultrafeedbacks_ten_that_was_a_one_does_not_rank(self):
        row = next(import_ranked(DOCUMENTED["ultrafeedback"][0]))
        assert {r["content"]: r["score"] for r in row["responses"]} == {"The Baltic.": 4.75, "Water": 1.5, "Sea": None}

    @given(st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=6))
    def test_what_has_no_score_has_no_rank(self, ratings):
        texts = [f"text {i}" for i in range(len(ratings))]
        source = {"instruction": "a", "generations": texts, "ratings": ratings}
        row = next(import_ranked([source]))
        responses = sorted(row["responses"], key=lambda r: r["index"])
        expected = iter(competition_ranks([r for r in ratings if r is not None]))
        assert [r["rank"] for r in responses] == [None if r is None else next(expected) for r in ratings]
        assert same(list(to_source([row])), [source | {"ratings": ratings}])

    def test_a_ranking_that_cannot_be_read_ranks_nothing(self):
        contextual = list(import_ranked(DOCUMENTED["tuna_contextual"][0]))[1]
        unclear = list(import_ranked(DOCUMENTED["pandalm_train"][0]))[3]
        for row in (contextual, unclear):
            assert row["status"] == "malformed" and all(r["rank"] is None for r in row["responses"])

    def test_scores_that_contradict_the_pair_are_refused(self):
        row = {**DOCUMENTED["argilla"][0][0], "rejected-rating": 5.0}
        with pytest.raises(SchemaError, match=r"row 0: .*chosen-rating.*opposite"):
            list(import_ranked([row]))
        with pytest.raises(SchemaError, match=r"row 0: .*'labels' is 1.*3.0 and 12.0"):
            list(import_ranked([{**SHP, "labels": 1}]))


class TestDetection:
    def test_an_unknown_form_lists_the_known_ones_and_the_nearest(self):
        with pytest.raises(SchemaError) as error:
            import_ranked([{"instruction": "a", "generations": ["b"], "rating": [1]}])
        assert "nearest is 'distilabel', which also has 'ratings'" in str(error.value)
        assert "For 'rating': Did you mean 'ratings'?" in str(error.value)
        assert all(name in str(error.value) for name in SHAPES)

    def test_columns_with_a_slip_of_the_pen_get_a_hint(self):
        with pytest.raises(SchemaError, match=r"For 'respones': Did you mean 'responses'\?"):
            import_ranked([{"prompt": "a", "respones": ["b"]}])

    def test_two_shapes_at_once_are_asked_about(self):
        both = {**DOCUMENTED["shp"][0][0], **DOCUMENTED["nectar"][0][0]}
        with pytest.raises(SchemaError, match=r"fit the shapes 'shp', 'nectar'; say which"):
            import_ranked([both])
        assert next(import_ranked([both], "nectar"))["provenance"]["imported_from"] == "nectar"

    def test_an_unknown_name_has_a_nearest_one(self):
        with pytest.raises(SchemaError, match="Did you mean 'nectar'"):
            import_ranked([], "necter")

    @pytest.mark.parametrize("name", NAMES)
    def test_columns_alone_never_crash_it(self, name):
        """Null in every column: it is of no shape, or it is one that says which column is wrong."""
        empty = dict.fromkeys(DOCUMENTED[name][0][0])
        with pytest.raises(SchemaError):
            list(import_ranked([empty]))

    def test_a_later_row_of_another_shape_is_named(self):
        rows = DOCUMENTED["nectar"][0] * 60 + [{"prompt": "a"}]
        with pytest.raises(SchemaError, match="row 120: column 'answers' is missing"):
            list(import_ranked(rows))

    def test_skipped_rows_are_counted_with_their_reason(self):
        odd = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
        tally = Counter()
        rows = [*DOCUMENTED["hh_rlhf"][0], odd]
        assert len(list(import_ranked(rows, on_error="skip", tally=tally))) == 2
        (reason,) = [key for key in tally if key.startswith("skipped")]
        assert tally[reason] == 1 and "two different prompts" in reason and tally["hh_rlhf"] == 2


class TestKinds:
    def test_a_ranked_row_goes_through_as_it_is(self):
        rows = [simple_row(i) for i in range(3)]
        assert list(import_ranked(rows)) == rows and list(import_ranked(dataset_of(rows))) == rows

    @given(any_row())
    def test_any_row_of_ours_does(self, row):
        assert list(import_ranked([row])) == [row]

    def test_what_comes_in_goes_out(self):
        rows = DOCUMENTED["nectar"][0][:1] * 1500
        dataset = import_ranked(Dataset.from_list(rows))
        assert isinstance(dataset, Dataset) and dataset.features == ranked_features() and len(dataset) == 1500
        splits = import_ranked(DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:2])}))
        assert isinstance(splits, DatasetDict) and len(splits["test"]) == 2
        stream = import_ranked(IterableDataset.from_generator(lambda: iter(rows)))
        assert isinstance(stream, IterableDataset) and stream.features == ranked_features()
        assert next(iter(stream)) == dataset[0]
        assert len(list(stream)) == 1500

    def test_a_generator_is_read_a_hundred_rows_at_first_and_then_as_needed(self):
        read = 0

        def rows():
            nonlocal read
            for row in DOCUMENTED["nectar"][0] * 500:
                read += 1
                yield row

        ranked = import_ranked(rows())
        next(ranked)
        assert read <= 101

    def test_answers_of_several_files_become_one_row_each(self):
        rows = [
            {"instruction": f"q{i}", "output": f"a{i} {model}", "generator": model}
            for model in ("x", "y", "z")
            for i in range(50)
        ]
        ranked = list(import_ranked(rows))
        assert [row["prompt"][0]["content"] for row in ranked] == [f"q{i}" for i in range(50)]
        assert all([r["model"] for r in row["responses"]] == ["x", "y", "z"] for row in ranked)
        key = json.dumps
        assert sorted(map(key, to_source(ranked))) == sorted(map(key, rows))

    def test_several_turns_are_no_single_response(self):
        turns = [assistant("b"), user("c"), assistant("d")]
        with pytest.raises(SchemaError, match="assistant, user, assistant"):
            list(import_ranked([{"prompt": [user("a")], "chosen": turns, "rejected": turns}]))


TEXTS = st.text(st.sampled_from("ab \n:") | st.characters(exclude_categories=["Cs"]), max_size=12)
TURNS = st.lists(
    st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "\n\nHuman: ", "\n\nAssistant: "]) | TEXTS, max_size=6
)
TRANSCRIPTS = TURNS.map(lambda parts: "\n\nHuman:" + "".join(parts))
TEMPLATED = st.tuples(TEXTS, TEXTS).map(lambda texts: put_on(*texts))


class TestHostileSources:
    """Any text: it is refused by name, or comes back as it was."""

    @pytest.mark.parametrize(
        ("shape", "columns"),
        [
            ("hh_rlhf", {"chosen": TRANSCRIPTS, "rejected": TRANSCRIPTS}),
            ("preference", {"chosen": TEXTS, "rejected": TEXTS}),
            ("preference", {"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}),
            ("preference", {"instruction": TEXTS, "input": TEXTS, "chosen": TEXTS, "rejected": TEXTS}),
            ("lmops", {"instruction": TEXTS | TEMPLATED, "output": st.lists(TEXTS), "score": st.lists(st.floats())}),
            (
                "nectar",
                {
                    "prompt": TRANSCRIPTS,
                    "answers": st.lists(st.fixed_dictionaries({"answer": TEXTS, "rank": st.integers(0, 3)})),
                },
            ),
            ("own", {"prompt": TEXTS, "responses": st.lists(TEXTS), "scores": st.lists(st.none() | st.floats())}),
        ],
    )
    @given(st.data())
    def test_it_is_so(self, shape, columns, data):
        source = data.draw(st.fixed_dictionaries(columns))
        try:
            ranked = list(import_ranked([source], shape))
        except SchemaError as error:
            assert "row 0" in str(error)
            return
        check_row(ranked[0])
        assert same(list(to_source(ranked)), [source])


class TestRest:
    @given(json_values, json_values)
    def test_a_difference_put_back_is_the_source(self, source, made):
        assert same(restored(made, difference(source, made)), source)

    @given(json_values)
    def test_equal_values_have_none(self, value):
        assert difference(value, copy.deepcopy(value)) is None

    def test_what_json_cannot_hold_is_named(self):
        with pytest.raises(SchemaError, match=r"column 'when' holds a date.*remove_columns"):
            import datetime

            difference({"when": datetime.date(2023, 1, 1)}, {})
