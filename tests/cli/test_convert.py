"""`tuna-trl convert`: ranked rows in, files that `load_dataset` and the trainers read out."""

from __future__ import annotations

import json

import pytest
from datasets import load_dataset
from documented_shapes import DOCUMENTED
from ranked_rows import dataset_of, simple_row

from tuna_trl import save_ranked
from tuna_trl.data.convert import to_kto, to_lmops, to_preference, to_sft
from tuna_trl.data.convert.preference_export import preference_features


VERB = "convert"  # of every `call`


ROWS = [simple_row(i) for i in range(3)] + [simple_row(3, status="failed")]


@pytest.fixture
def ranked(tmp_path):
    return save_ranked(dataset_of(ROWS), tmp_path / "ranked")


@pytest.mark.parametrize(
    ("to", "export", "command"),
    [("sft", to_sft, "trl sft"), ("preference", to_preference, "trl dpo"), ("kto", to_kto, "trl kto")],
)
def test_a_folder_loads_as_what_the_exporter_makes(to, export, command, call, ranked, tmp_path):
    code, out, err = call(ranked, tmp_path / "out", "--to", to)
    assert code == 0 and out.rstrip().splitlines()[-1].startswith(f"Next: {command} --dataset_name {tmp_path / 'out'}")
    assert "1: status failed" in err
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].to_list() == list(export(ROWS))
    assert loaded["train"].features == export(dataset_of(ROWS)).features


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_one_file_for_one_split(suffix, call, ranked, tmp_path):
    path = tmp_path / f"pairs{suffix}"
    code, out, _ = call(ranked, path, "--to", "preference", "--pairs", "all", "--min-gap", 2)
    kind = "parquet" if suffix == ".parquet" else "json"
    loaded = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    expected = list(to_preference(ROWS, pairs="all", min_gap=2))
    assert code == 0 and f"{len(expected)} rows (train {len(expected)})" in out
    assert [{name: row[name] for name in preference_features()} for row in loaded] == expected


def test_the_papers_code_gets_its_json_list(call, ranked, tmp_path):
    code, out, _ = call(ranked, tmp_path / "tuna.json", "--to", "lmops", "--num-responses", 2)
    assert code == 0 and f"bash src/train_tuna.sh {tmp_path / 'tuna.json'}" in out
    assert json.loads((tmp_path / "tuna.json").read_text()) == list(to_lmops(ROWS, num_responses=2))


def test_source_gives_back_what_was_imported(call, tmp_path):
    rows = DOCUMENTED["ultrafeedback"][0]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = call(tmp_path / "x.jsonl", tmp_path / "y.jsonl", "--to", "source")
    assert code == 0, err
    assert [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()] == rows


def test_what_stands_there_is_replaced_only_if_asked(call, ranked, tmp_path):
    out = tmp_path / "out"
    for path in (out, tmp_path / "x.jsonl"):
        assert call(ranked, path, "--to", "sft")[0] == 0
        code, _, err = call(ranked, path, "--to", "kto")
        assert code == 2 and "--overwrite" in err
        assert call(ranked, path, "--to", "kto", "--overwrite")[0] == 0
    assert "label" in load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache")).column_names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "dpo"], "--to is 'dpo', expected one of sft, preference"),
        (["--to", "preferences"], "Did you mean 'preference'"),
        (["--to", "sft", "--min-gap", "1"], "--min-gap is for --to preference"),
        (["--to", "preference", "--min-gap", "9"], "No row is left to write"),
        (["--to", "sft", "--split", "tain"], "Did you mean 'train'"),
        (["--to", "source"], "names no shape"),
    ],
)
def test_what_is_wrong_is_one_message_and_nothing_is_written(args, message, call, ranked, tmp_path):
    code, _, err = call(ranked, tmp_path / "out", *args)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_splits_do_not_go_into_one_file(call, tmp_path):
    part = dataset_of(ROWS[:1])
    from datasets import DatasetDict

    folder = save_ranked(DatasetDict({"train": part, "test": part}), tmp_path / "two")
    code, _, err = call(folder, tmp_path / "x.jsonl", "--to", "sft")
    assert code == 2 and "splits train, test" in err
    assert call(folder, tmp_path / "x.jsonl", "--to", "sft", "--split", "test")[0] == 0


def test_a_file_of_another_suffix_is_refused(call, ranked, tmp_path):
    code, _, err = call(ranked, tmp_path / "x.csv", "--to", "sft")
    assert code == 2 and "'.csv'" in err
