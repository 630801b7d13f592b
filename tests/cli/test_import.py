"""`tuna-trl import`: other projects' files in, a ranked dataset out that loads; the next command is named."""

from __future__ import annotations

import json

import pytest
from documented_shapes import DOCUMENTED

from tuna_trl import load_ranked
from tuna_trl.data.convert import to_source


VERB = "import"  # of every `call`


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "name", ["nectar", "ultrafeedback", "mix_instruct", "shp", "lmops", "alpaca_eval_annotations"]
)
def test_a_file_becomes_a_dataset_that_gives_its_rows_back(name, call, tmp_path):
    rows = DOCUMENTED[name][0]
    code, out, _ = call(written(tmp_path / "x.jsonl", rows), tmp_path / "out")
    assert code == 0 and f"Read as {name}: rows by status: " in out
    assert out.rstrip().splitlines()[-1] == f"Next: tuna-trl validate {tmp_path / 'out'}"
    assert list(to_source(load_ranked(tmp_path / "out")["train"])) == rows


def test_a_folder_keeps_its_splits(call, tmp_path):
    (tmp_path / "in").mkdir()
    written(tmp_path / "in" / "train.jsonl", DOCUMENTED["hh_rlhf"][0])
    written(tmp_path / "in" / "test.jsonl", DOCUMENTED["hh_rlhf"][0][:1])
    code, out, err = call(tmp_path / "in", tmp_path / "out")
    assert code == 0, err
    assert {split: len(rows) for split, rows in load_ranked(tmp_path / "out").items()} == {"train": 2, "test": 1}


def test_what_nothing_ranks_is_sent_to_a_ranker(call, tmp_path):
    code, out, _ = call(written(tmp_path / "x.jsonl", DOCUMENTED["alpaca_eval_outputs"][0]), tmp_path / "out")
    assert code == 0 and "2 responses have no rank" in out and "Next: tuna-trl rank" in out


def test_unreadable_rows_stop_it_or_are_left_out_and_counted(call, tmp_path):
    odd = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    path = written(tmp_path / "x.jsonl", [*DOCUMENTED["hh_rlhf"][0], odd])
    code, _, err = call(path, tmp_path / "out")
    assert code == 2 and "row 2: columns 'chosen' and 'rejected' part" in err and not (tmp_path / "out").exists()
    code, out, _ = call(path, tmp_path / "out", "--skip-unreadable", "--drop-rest")
    assert code == 0 and "1 rows were left out. 1: columns 'chosen'" in out
    assert "rest" not in load_ranked(tmp_path / "out")["train"][0]["provenance"]


@pytest.mark.parametrize(
    ("rows", "args", "message"),
    [
        ([{"question": "a"}], [], "Known shapes: ranked, own"),
        ([{"chosen": "a b", "rejected": "a c"}], ["--shape", "preferense"], "Did you mean 'preference'"),
        ([{"chosen": "a b", "rejected": "a c"}], ["--shape", "nectar"], "row 0: column 'prompt' is missing"),
        ([], [], "has no row that could be read"),
    ],
)
def test_what_is_wrong_is_one_message(rows, args, message, call, tmp_path):
    code, _, err = call(written(tmp_path / "x.jsonl", rows), tmp_path / "out", *args)
    assert code == 2 and message in err and "Traceback" not in err and not (tmp_path / "out").exists()
