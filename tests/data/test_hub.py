"""The dataset folder: it loads as what was saved, appears whole or not at all, and names what is wrong with a row."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranked_rows import dataset_of, rows, simple_row

from tuna_trl.data.folder import _exchange
from tuna_trl.data.hub import load_ranked, save_ranked
from tuna_trl.data.schema import judgment_features, ranked_features
from tuna_trl.errors import BuildError, InputError, SchemaError


JUDGMENT = {
    "prompt_id": "p",
    "occurrence": 0,
    "repeat": 0,
    "attempt": 0,
    "judge": "a-judge",
    "permutation": [1, 0],
    "labels": ["A", "B"],
    "scores": [1.0, None],
    "status": "ok",
    "raw": '{"scores": [1]}',
    "stop_reason": None,
    "request_id": None,
    "usage": {"input": 3},
    "cost": 0.25,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def judgments(n=2):
    return Dataset.from_list([{**JUDGMENT, "repeat": i} for i in range(n)], features=judgment_features())


def five_rows():
    return dataset_of([simple_row(i) for i in range(5)])


def parquet(folder: Path, split: str = "train") -> bytes:
    return (folder / f"data/{split}-00000-of-00001.parquet").read_bytes()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestRoundTrip:
    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(rows(), min_size=1, max_size=4))
    def test_rows_and_types_come_back_as_they_went(self, tmp_path, some_rows):
        folder = save_ranked(dataset_of(some_rows), tmp_path / "ds")
        again = load_ranked(folder, split="train")
        assert again.features == ranked_features()
        assert again.to_list() == some_rows

    def test_plain_load_dataset_reads_both_configs(self, tmp_path):
        data = DatasetDict(train=five_rows(), test=dataset_of([simple_row(9)]))
        folder = save_ranked(data, tmp_path / "ds", judgments=judgments())
        assert sorted(tree(folder)) == [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00001.parquet",
            "judgments/train-00000-of-00001.parquet",
        ]
        loaded = load_dataset(str(folder))
        assert {split: part.to_list() for split, part in loaded.items()} == {s: p.to_list() for s, p in data.items()}
        assert loaded["test"].features == ranked_features()
        replies = load_dataset(str(folder), "judgments")
        assert replies["train"].features == judgment_features()
        assert replies["train"].to_list() == judgments().to_list()

    def test_the_card_declares_what_is_there(self, tmp_path):
        folder = save_ranked(five_rows(), tmp_path / "ds", judgments=judgments(), card={"license": "cc0-1.0"})
        card = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---")[1])
        assert card["license"] == "cc0-1.0"
        default, replies = card["dataset_info"]
        assert default["splits"][0]["num_examples"] == 5
        assert replies["splits"][0]["num_examples"] == 2
        assert default["download_size"] == len(parquet(folder))

    def test_a_split_keeps_its_name_and_a_slice_of_it_too(self, tmp_path):
        folder = save_ranked(DatasetDict(test=five_rows()), tmp_path / "one")
        part = load_ranked(folder, split="test")
        assert list(load_ranked(save_ranked(part, tmp_path / "two"))) == ["test"]
        assert load_ranked(folder, split="test[1:3]").to_list() == five_rows().select([1, 2]).to_list()

    def test_empty_judgments_write_no_config(self, tmp_path):
        empty = judgments().select([])
        for replies in (empty, DatasetDict(train=empty)):
            assert not (save_ranked(five_rows(), tmp_path / "ds", judgments=replies) / "judgments").exists()

    def test_extra_columns_are_kept_behind_ours(self, tmp_path):
        data = five_rows().add_column("topic", ["a", "b", "c", "d", "e"]).select_columns(["topic", *ranked_features()])
        loaded = load_ranked(save_ranked(data, tmp_path / "ds"), split="train")
        assert loaded.features == Features({**ranked_features(), "topic": Value("string")})
        assert loaded["topic"][1] == "b"

    def test_a_new_save_is_what_the_next_load_sees(self, tmp_path):
        save_ranked(five_rows(), tmp_path / "ds", judgments=judgments())
        assert len(load_ranked(tmp_path / "ds", split="train")) == 5
        save_ranked(dataset_of([simple_row(7)]), tmp_path / "ds")
        assert load_ranked(tmp_path / "ds", split="train").to_list() == [simple_row(7)]
        assert not (tmp_path / "ds" / "judgments").exists()


class TestBytes:
    @settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(rows(), min_size=2, max_size=5), st.data())
    def test_equal_rows_give_equal_bytes_however_the_dataset_was_made(self, tmp_path, some_rows, data):
        expected = parquet(save_ranked(dataset_of(some_rows), tmp_path / "ds"))
        order = data.draw(st.permutations(range(len(some_rows))))
        shuffled = dataset_of([some_rows[i] for i in order])
        selected = shuffled.select([order.index(i) for i in range(len(some_rows))])
        cut = data.draw(st.integers(1, len(some_rows) - 1))
        pieces = concatenate_datasets([dataset_of(some_rows[:cut]), dataset_of(some_rows[cut:])])
        for variant in (selected, pieces, pieces.with_format("numpy"), load_ranked(tmp_path / "ds", "train")):
            assert parquet(save_ranked(variant, tmp_path / "other")) == expected

    def test_the_order_in_which_a_dict_was_filled_is_no_difference(self, tmp_path):
        one, other = {"a": 1, "b": {"c": 2, "d": "/é"}}, {"b": {"d": "/é", "c": 2}, "a": 1}
        files = [
            parquet(save_ranked(dataset_of([simple_row(provenance=p)]), tmp_path / name))
            for p, name in ((one, "1"), (other, "2"))
        ]
        assert files[0] == files[1]

    def test_types_that_were_only_inferred_are_set_right(self, tmp_path):
        inferred = Dataset.from_list([simple_row(i, provenance={"seed": 7}) for i in range(3)])
        assert inferred.features != ranked_features()  # nulls and int64
        folder = save_ranked(inferred, tmp_path / "ds")
        assert load_ranked(folder, "train").to_list() == [simple_row(i, provenance={"seed": 7}) for i in range(3)]

    def test_the_card_has_no_date_or_path_in_it(self, tmp_path):
        one, other = (save_ranked(five_rows(), tmp_path / name, judgments=judgments()) for name in ("a", "b"))
        assert tree(one) == tree(other)


class TestReplacement:
    @pytest.fixture
    def old(self, tmp_path):
        folder = save_ranked(five_rows(), tmp_path / "ds", judgments=judgments())
        (folder / "notes.txt").write_text("mine")
        (folder / ".git").mkdir()
        (folder / ".git" / "HEAD").write_text("ref")
        return folder

    @pytest.mark.parametrize("atomic", [True, False])
    def test_files_of_others_are_carried_over(self, old, monkeypatch, atomic):
        if not atomic:
            monkeypatch.setattr("tuna_trl.data.folder._exchange", lambda one, other: False)
        save_ranked(dataset_of([simple_row()]), old)
        assert (old / "notes.txt").read_text() == "mine"
        assert (old / ".git" / "HEAD").read_text() == "ref"
        assert len(load_ranked(old, "train")) == 1
        assert sorted(os.listdir(old.parent)) == ["cache", "ds"]

    def test_a_full_disk_leaves_the_old_dataset_whole(self, old):
        before = tree(old)
        big = dataset_of([simple_row(i, n=8) for i in range(2000)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel then refuses to write on
        try:
            with pytest.raises(BuildError, match="could not be written.*before is untouched.*Free some space"):
                save_ranked(big, old)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert tree(old) == before
        assert sorted(os.listdir(old.parent)) == ["ds"]

    @pytest.mark.parametrize("instant", ["fill", "swap"])
    def test_a_kill_leaves_the_old_dataset_or_the_new_one(self, old, instant):
        before = tree(old)
        code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from ranked_rows import dataset_of, simple_row
from tuna_trl.data import folder, hub
def die(*args): os.kill(os.getpid(), 9)
if {instant!r} == "fill":
    hub.write_config.__globals__["_canonical"] = die
else:
    folder._sync_entry = lambda path: die() if path.name != "data" and not path.name.startswith(".") else None
hub.save_ranked(dataset_of([simple_row(7)]), {str(old)!r})
"""
        killed = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[2])
        assert killed.returncode == -9, killed.stderr.decode()
        if instant == "fill":
            assert tree(old) == before
        else:
            assert load_ranked(old, "train").to_list() == [simple_row(7)]
            assert (old / "notes.txt").read_text() == "mine"

    def test_two_folders_trade_places_in_one_call_or_not_at_all(self, tmp_path):
        for name in "ab":
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        done = _exchange(tmp_path / "a", tmp_path / "b")
        assert os.listdir(tmp_path / "a") == (["b"] if done else ["a"])
        assert done or sys.platform != "linux"

    def test_a_failed_second_rename_puts_the_old_folder_back(self, old, monkeypatch):
        before, rename = tree(old), os.rename
        monkeypatch.setattr("tuna_trl.data.folder._exchange", lambda one, other: False)

        def refuse(source, target):
            if Path(target) == old and not Path(source).name.endswith(".old"):
                raise PermissionError(13, "no")
            rename(source, target)

        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(BuildError, match="untouched"):
            save_ranked(dataset_of([simple_row()]), old)
        assert tree(old) == before

    def test_a_folder_that_is_not_ours_is_refused(self, tmp_path):
        (tmp_path / "README.md").write_text("# my project")
        with pytest.raises(InputError, match=r"README.md.*not part of a dataset written by tuna_trl"):
            save_ranked(five_rows(), tmp_path)
        assert (tmp_path / "README.md").read_text() == "# my project"

    def test_a_folder_with_only_other_files_is_joined(self, tmp_path):
        (tmp_path / "ds").mkdir()
        (tmp_path / "ds" / "journal.sqlite").write_bytes(b"replies")
        save_ranked(five_rows(), tmp_path / "ds")
        assert (tmp_path / "ds" / "journal.sqlite").read_bytes() == b"replies"
        assert len(load_ranked(tmp_path / "ds", "train")) == 5

    def test_the_current_folder_and_a_file_are_refused(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="is a file"):
            save_ranked(five_rows(), tmp_path / "file")
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        for path in (".", "..", "../below"):
            with pytest.raises(InputError, match="current folder"):
                save_ranked(five_rows(), path)


class TestWhatIsRefused:
    def test_a_wrong_row_is_named_and_nothing_is_written(self, tmp_path):
        bad = simple_row()
        bad["responses"][0]["score"] = float("inf")
        with pytest.raises(SchemaError, match=r"^split 'train', row 1: .*responses\[0\].score' is inf"):
            save_ranked(dataset_of([simple_row(), bad]), tmp_path / "ds")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("dataset", "words"),
        [
            (lambda: five_rows().remove_columns("status"), "split 'train': column 'status' is missing"),
            (lambda: five_rows().rename_column("responses", "response"), "'responses' is missing.*mean 'response'"),
            (lambda: Dataset.from_list([]), "has no rows"),
            (lambda: DatasetDict(train=five_rows(), test=five_rows().select([])), "split 'test' has no rows"),
            (lambda: DatasetDict(), "DatasetDict with a split"),
            (lambda: five_rows().to_list(), "got list"),
            (lambda: five_rows().to_iterable_dataset(), "got IterableDataset"),
            (lambda: {"my split": five_rows()}, "named 'my split'"),
            (lambda: {"all": five_rows()}, "named 'all'"),
            (
                lambda: DatasetDict(train=five_rows(), test=five_rows().add_column("x", [1] * 5)),
                "'train' and 'test' differ in their extra columns",
            ),
            (
                lambda: five_rows().remove_columns("num_ties").add_column("num_ties", ["many"] * 5),
                "'num_ties' is of type .*could not be cast.*from_list",
            ),
        ],
    )
    def test_a_dataset_that_is_none_is_refused_by_name(self, tmp_path, dataset, words):
        with pytest.raises(InputError, match=words):
            save_ranked(dataset(), tmp_path / "ds")
        assert not (tmp_path / "ds").exists()

    def test_an_unknown_card_key_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="unknown key 'licence'"):
            save_ranked(five_rows(), tmp_path / "ds", card={"licence": "mit"})

    @pytest.mark.parametrize("path", ["absent", "./absent.jsonl", "no/such/folder", "a b/c", Path("owner/name")])
    def test_a_path_that_is_not_there_is_said_to_be_absent(self, tmp_path, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"is no file or folder here .*owner/name"):
            load_ranked(path)

    def test_an_id_that_cannot_be_reached_says_both_that_it_was_tried_and_why_it_failed(self):
        with pytest.raises(InputError, match="owner/absent is no file or folder here.*as a Hub dataset it could not"):
            load_ranked("owner/absent")

    def test_a_split_that_is_not_there_is_answered_with_those_that_are(self, tmp_path):
        folder = save_ranked(five_rows(), tmp_path / "ds")
        with pytest.raises(InputError, match="no split 'trian'; it has 'train'. Did you mean 'train'"):
            load_ranked(folder, split="trian")
        with pytest.raises(InputError, match="`revision` is 'main'.*local path"):
            load_ranked(folder, revision="main")

    def test_a_damaged_file_is_named(self, tmp_path):
        folder = save_ranked(five_rows(), tmp_path / "ds")
        file = folder / "data/train-00000-of-00001.parquet"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(InputError, match="cannot be read"):
            load_ranked(folder)
