"""Ranking rows that never sit in memory: shards as they fill, a broken line named, nothing done before lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from datasets import IterableDataset
from doubles.samplers import SeedSampler
from doubles.scorers import HashScorer
from own_process import SAY_PEAK, python, started

from tuna_trl.build.rank import RankConfig, rank_folder, rank_given
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_folder
from tuna_trl.data import parquet
from tuna_trl.data.hub import load_ranked, save_ranked
from tuna_trl.data.row_streams import read_jsonl_stream, stream_rows
from tuna_trl.data.schema import ranked_features
from tuna_trl.errors import InputError, SchemaError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows(n):
    return [
        {"prompt": f"Question {i}", "responses": ["one", "two " * (i % 9 + 1), {"text": f"three {i}", "model": "m"}]}
        for i in range(n)
    ]


def quiet(**values):
    return RankConfig(**{"show_progress": False, "window_size": 700, **values})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def jsonl(path, given, broken_at=None):
    lines = [json.dumps(row) for row in given]
    if broken_at is not None:
        lines[broken_at] = lines[broken_at][:-3]
    path.write_text("".join(line + "\n" for line in lines))
    return path


class TestFolder:
    def test_it_is_to_the_byte_what_save_ranked_writes_of_the_ranked_dataset(self, tmp_path):
        given = {"train": rows(1500), "test": rows(3)}
        folder = rank_folder(given, HashScorer(), tmp_path / "streamed", quiet(), card={"license": "mit"})
        ranked = rank_given(given, HashScorer(), quiet())
        assert tree(folder) == tree(save_ranked(ranked, tmp_path / "saved", card={"license": "mit"}))
        assert load_ranked(folder)["train"].to_list() == ranked["train"].to_list()
        assert ranked["train"].cache_files and ranked["train"].features == ranked_features()

    def test_shards_are_written_as_they_fill_and_nothing_stands_there_until_all_does(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parquet.ShardWriter.__init__, "__kwdefaults__", {"shard_bytes": 1})
        seen = []

        def before(call):
            (staging,) = tmp_path.glob(".ds.*")
            seen.append(len(list(staging.rglob("*.full"))))
            assert not (tmp_path / "ds").exists()

        rank_folder(rows(2500), HashScorer(before), tmp_path / "ds", quiet(bucket_size=100))
        assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 2

    @pytest.mark.parametrize("kind", ["stream", "json lines", "iterator", "a ranked folder"])
    def test_streams_give_the_rows_of_a_list(self, kind, tmp_path):
        given = rows(900)
        whole = rank_given(given, HashScorer(), quiet(window_size=100))["train"].to_list()
        source = {
            "stream": lambda: IterableDataset.from_generator(lambda: iter(given)),
            "json lines": lambda: read_jsonl_stream(jsonl(tmp_path / "rows.jsonl", given)),
            "iterator": lambda: iter(given),
            "a ranked folder": lambda: stream_rows(
                str(rank_folder(given, HashScorer(), tmp_path / "first", quiet(window_size=100))), "--data"
            ),
        }[kind]()
        assert rank_given(source, HashScorer(), quiet(window_size=100))["train"].to_list() == whole

    @pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
    def test_other_files_stream_too(self, suffix, tmp_path):
        import pandas

        file = tmp_path / f"prompts.{suffix}"
        frame = pandas.DataFrame({"prompt": ["a", "b"], "source": ["x", "y"]})
        {"parquet": frame.to_parquet, "csv": frame.to_csv, "json": frame.to_json}[suffix](
            file, **({"orient": "records"} if suffix == "json" else {"index": False})
        )
        read = stream_rows(str(file), "--data")["train"]
        for _ in range(2):
            assert [(row["prompt"], row["source"]) for row in read] == [("a", "x"), ("b", "y")]


class TestBrokenLines:
    def test_a_broken_line_is_named_before_anything_is_scored_or_drawn(self, tmp_path):
        path = jsonl(tmp_path / "logs.jsonl", rows(900), broken_at=777)
        scorer, sampler = HashScorer(), SeedSampler()
        with pytest.raises(InputError, match=r"logs.jsonl row 777 \(line 778\): no valid JSON"):
            rank_folder(read_jsonl_stream(path), scorer, tmp_path / "ds", quiet())
        with pytest.raises(InputError, match=r"logs.jsonl row 777 \(line 778\): no valid JSON"):
            build_teacher_folder(
                stream_rows(str(path), "--prompts"), sampler, tmp_path / "ds", TeacherBuildConfig(show_progress=False)
            )
        assert scorer.calls == [] and sampler.calls == [] and not (tmp_path / "ds").exists()

    def test_what_was_done_before_a_broken_line_of_an_iterator_is_in_the_journal(self, tmp_path):
        config = quiet(journal=tmp_path / "j", window_size=100, bucket_size=10)
        broken = read_jsonl_stream(jsonl(tmp_path / "logs.jsonl", rows(300), broken_at=250))
        first = HashScorer()
        with pytest.raises(InputError, match=r"row 250 \(line 251\)"):
            rank_folder(iter(broken), first, tmp_path / "ds", config)
        assert len(first.calls) == 20
        second = HashScorer()
        mended = read_jsonl_stream(jsonl(tmp_path / "logs.jsonl", rows(300)))
        ranked = rank_folder(mended, second, tmp_path / "ds", config)
        assert len(second.calls) == 10 and len(load_ranked(ranked, "train")) == 300

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b'{"prompt": "a"}\n[1]\n', r"x.jsonl row 1 \(line 2\): a row must be a JSON object"),
            (b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n', r"x.jsonl row 1 \(line 3\): the text is not UTF-8"),
            (b'{"prompt": "a"}\n{"prompt": ', r"x.jsonl row 1 \(line 2\): no valid JSON"),
        ],
    )
    def test_every_way_to_be_broken_is_named(self, text, message, tmp_path):
        (tmp_path / "x.jsonl").write_bytes(text)
        read = iter(read_jsonl_stream(tmp_path / "x.jsonl"))
        assert next(read) == {"prompt": "a"}
        with pytest.raises(SchemaError, match=message):
            next(read)

    def test_a_file_that_is_not_there_and_one_of_datasets_that_breaks_are_input_errors(self, tmp_path):
        with pytest.raises(InputError, match="gone.jsonl could not be read: No such file"):
            list(read_jsonl_stream(tmp_path / "gone.jsonl"))
        with pytest.raises(InputError, match="--data .*gone.jsonl: there is no such file"):
            stream_rows(str(tmp_path / "gone.jsonl"), "--data")
        folder = tmp_path / "folder"
        folder.mkdir()
        jsonl(folder / "train.jsonl", rows(20), broken_at=19)
        jsonl(folder / "test.jsonl", rows(3))
        splits = stream_rows(str(folder), "--data")
        assert [row["prompt"] for row in splits["test"]] == [row["prompt"] for row in rows(3)]
        with pytest.raises(InputError, match=r"train.jsonl row 19 \(line 20\)"):
            list(splits["train"])
        (folder / "bad.csv").write_text("prompt,source\na,b\n" + "c,d,e,f\n")
        with pytest.raises(InputError, match="bad.csv could not be read beyond its first"):
            list(stream_rows(str(folder / "bad.csv"), "--data")["train"])


class TestOtherTeachers:
    def test_they_are_refused_before_anything_is_scored_and_in_an_iterator_when_they_come(self, tmp_path):
        class Other(HashScorer):
            name = "other"

        ranked = rank_given(rows(5), HashScorer(), quiet())["train"].to_list()
        scorer = Other()
        with pytest.raises(InputError, match=r"3 by 'hash-scorer'.*--overwrite-ranks"):
            rank_given([*rows(7), *ranked[:3]], scorer, quiet())
        with pytest.raises(InputError, match=r"1 by 'hash-scorer'"):
            rank_given(iter([*rows(7), *ranked[:3]]), scorer, quiet())
        assert scorer.calls == []
        assert len(rank_given(iter(ranked), scorer, quiet(overwrite_ranks=True))["train"]) == 5


RANK = """
    import json, sys
    from doubles.scorers import HashScorer
    from tuna_trl.build.rank import RankConfig, rank_folder
    from tuna_trl.data.row_streams import read_jsonl_stream

    count, folder = int(sys.argv[1]), sys.argv[2]
    with open(folder + ".jsonl", "w") as file:
        for i in range(count):
            answers = [f"answer {k} " * (i % 29) + "word " * 40 for k in range(4)]
            file.write(json.dumps({"prompt": f"Instruction {i}", "responses": answers}) + "\\n")
    config = RankConfig(journal=folder + ".sqlite", window_size=256, show_progress=False)
    rank_folder(read_jsonl_stream(folder + ".jsonl"), HashScorer(), folder, config)
"""


def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    few, many = (int(python(RANK + SAY_PEAK, count, tmp_path / str(count))) for count in (600, 6000))
    assert len(load_ranked(tmp_path / "6000", "train")) == 6000
    # 5,400 rows are 20 MB as Python objects; the rest is what Arrow and SQLite keep for reuse
    assert many < few + 60, f"{few} MB for 600 rows, {many} MB for 6,000"


PROCESS = """
    import sys
    from doubles.scorers import HashScorer
    from tuna_trl.build.rank import RankConfig, rank_folder
    rows = [{"prompt": f"Question {i}", "responses": ["one", "two " * (i % 9)]} for i in range(300)]
    scorer = HashScorer(lambda call: __import__("time").sleep(0.02))
    rank_folder(rows, scorer, sys.argv[1], RankConfig(journal=sys.argv[2], bucket_size=4, window_size=100))
    print(len(scorer.calls))
"""


def test_two_processes_write_the_dataset_of_one_and_score_each_bucket_once(tmp_path):
    assert int(python(PROCESS, tmp_path / "one", tmp_path / "one.sqlite")) == 75
    running = []
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        paths = [tmp_path / "two", tmp_path / "two.sqlite"]
        running.append(started(PROCESS, *paths, env=ranks, stdout=subprocess.PIPE))
    counts = [int(process.communicate(timeout=200)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0] and sum(counts) == 75
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


KILLED = """
    import sys
    from doubles.scorers import HashScorer
    from tuna_trl.build.rank import RankConfig, rank_folder
    rows = [{"prompt": f"Question {i}", "responses": ["one", "two " * (i % 9)]} for i in range(300)]
    scorer = HashScorer(lambda call: print(call, flush=True))
    rank_folder(rows, scorer, sys.argv[1], RankConfig(journal=sys.argv[2], bucket_size=4, window_size=100))
"""


def test_kill_9_in_the_middle_costs_one_bucket_at_most_and_no_byte(tmp_path):
    paths, begun = [tmp_path / "ds", tmp_path / "j"], 0
    for after in (3, 31):
        process = started(KILLED, *paths, stdout=subprocess.PIPE)
        for _ in range(after):
            process.stdout.readline()
        process.kill()
        begun += after + len(process.stdout.read().splitlines())
        process.wait()
        assert not (tmp_path / "ds").exists()
    begun += len(python(KILLED, *paths).split())
    assert 75 <= begun <= 77
    rows = [{"prompt": f"Question {i}", "responses": ["one", "two " * (i % 9)]} for i in range(300)]
    whole = rank_folder(rows, HashScorer(), tmp_path / "whole", quiet(bucket_size=4, window_size=100))
    assert tree(tmp_path / "ds") == tree(whole)


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, {"journal": "j"}, "cannot be shared between machines"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, {}, "share their work in a journal"),
    ],
)
def test_processes_that_cannot_share_are_refused(tmp_path, monkeypatch, ranks, options, message):
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        rank_folder(rows(2), HashScorer(), tmp_path / "ds", quiet(**options))
