"""Rows of one's own: what files and shapes are read, and that an error names file, row and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from ranked_rows import dataset_of, simple_row

from tuna_trl.data.hub import load_ranked, save_ranked
from tuna_trl.data.schema import normalise_row, ranked_features
from tuna_trl.errors import InputError, SchemaError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


MINE = [
    {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "topic": "x"},
    {"prompt": [{"role": "user", "content": "q"}], "responses": [{"content": "c", "rank": 1}]},
]


def write_lines(file: Path, some) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), "utf-8")
    return file


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json"])
def test_lines_become_full_rows_whatever_shape_each_has(tmp_path, name):
    data = load_ranked(write_lines(tmp_path / name, MINE))
    assert data["train"].to_list() == [normalise_row(row) for row in MINE]
    assert data["train"].features == ranked_features()


def test_an_array_a_byte_order_mark_and_blank_lines_are_read(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(MINE, indent=1), "utf-8")
    (tmp_path / "b.jsonl").write_text("\ufeff\n" + json.dumps(MINE[0]) + "\r\n\n  \n", "utf-8")
    assert len(load_ranked(tmp_path / "a.json", "train")) == 2
    assert len(load_ranked(tmp_path / "b.jsonl", "train")) == 1


def test_parquet_with_ones_own_columns_is_normalised(tmp_path):
    Dataset.from_list([MINE[0], {**MINE[0], "prompt": "q"}]).to_parquet(tmp_path / "x.parquet")
    assert load_ranked(tmp_path / "x.parquet", "train").to_list() == [
        normalise_row(MINE[0]),
        normalise_row({**MINE[0], "prompt": "q"}),
    ]


def test_a_dataset_exported_as_lines_comes_back_the_same(tmp_path):
    failed = {**simple_row(1), "status": "failed"}
    failed["responses"] = [{**r, "rank": None} for r in failed["responses"]]
    failed = normalise_row(failed)
    data = dataset_of([simple_row(), failed])
    data.to_json(tmp_path / "x.jsonl")
    assert load_ranked(tmp_path / "x.jsonl", "train").to_list() == data.to_list()


def test_files_are_splits_by_the_word_they_begin_with(tmp_path):
    for name in ("train-1", "train-2", "test", "val", "testimonials", "sub/dev"):
        write_lines(tmp_path / "f" / f"{name}.jsonl", [{**MINE[0], "prompt": name}])
    (tmp_path / "f" / ".hidden").mkdir()
    write_lines(tmp_path / "f" / ".hidden" / "train.jsonl", MINE)
    loaded = load_ranked(tmp_path / "f")
    prompts = {split: [p[0]["content"] for p in part["prompt"]] for split, part in loaded.items()}
    assert prompts == {
        "train": ["testimonials", "train-1", "train-2"],
        "validation": ["sub/dev", "val"],
        "test": ["test"],
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "p"}', "column 'responses' is missing"),
        ('{"prompt": "p", ', "no valid JSON"),
        ("[1]", r"a row must be an object.*\[1\]"),
        ('{"prompt": "p", "responses": ["a", "b"], "scores": [1, NaN]}', r"responses\[1\].score' is nan"),
        ('{"prompt": "p", "responses": [{"content": "a", "model": 5}]}', "model' is int 5"),
        ('{"prompt": "p", "responses": ["\\ud800"]}', "column 'responses' holds a value.*surrogate"),
        ('{"prompt": "p", "responses": ["a"], "reference": ["r"]}', "column 'reference' is list"),
        ('{"prompt": "p", "responses": ["a"], "provenance": []}', "column 'provenance' is list"),
        (
            '{"prompt": "p", "responses": [{"content": "a", "num_tokens": 10000000000}]}',
            "'responses' holds a value",
        ),
        ("[" * 100_000, "nested too deeply|no valid JSON"),
    ],
)
def test_an_error_names_file_row_and_line(tmp_path, line, words):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(MINE[0]) + "\n\n" + line + "\n", "utf-8")
    with pytest.raises(SchemaError, match=rf"(?s)^mine.jsonl row 1 \(line 3\): .*({words})"):
        load_ranked(file)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(SchemaError, match=r"x.jsonl row 0 \(line 1\): the text is not UTF-8"):
        load_ranked(tmp_path / "x.jsonl")


def test_a_wrong_row_of_a_parquet_file_or_an_array_is_named(tmp_path):
    bad = [MINE[0], {**MINE[0], "scores": [1]}]
    Dataset.from_list(bad).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(bad))
    for name in ("x.parquet", "x.json"):
        with pytest.raises(SchemaError, match=rf"^{name} row 1: column 'scores' has 1 entries for 2"):
            load_ranked(tmp_path / name)


@pytest.mark.parametrize(("name", "words"), [("x.csv", "ends in '.csv'"), ("x.parquet", "no valid Parquet")])
def test_a_file_of_another_kind_is_refused(tmp_path, name, words):
    (tmp_path / name).write_text("a,b\n")
    with pytest.raises(InputError, match=words):
        load_ranked(tmp_path / name)


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data file"):
        load_ranked(tmp_path / "empty")
    write_lines(tmp_path / "empty" / "train.jsonl", [])
    with pytest.raises(InputError, match="train.jsonl: no rows"):
        load_ranked(tmp_path / "empty")


def test_another_hands_dataset_repository_is_normalised(tmp_path):
    (tmp_path / "repo" / "d").mkdir(parents=True)
    Dataset.from_list([MINE[0]]).to_parquet(tmp_path / "repo" / "d" / "x.parquet")
    (tmp_path / "repo" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: d/*.parquet\n---\n"
    )
    assert load_ranked(tmp_path / "repo", "train").to_list() == [normalise_row(MINE[0])]
    with pytest.raises(InputError, match="not part of a dataset written by tuna_trl"):
        save_ranked(dataset_of([simple_row()]), tmp_path / "repo")
