"""Rows straight into a folder: the bytes of `save_ranked`, whole or not at all, never more than a window at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from doubles.samplers import SeedSampler
from own_process import SAY_PEAK, python, started
from ranked_rows import dataset_of, simple_row

from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_folder, build_teacher_ranked
from tuna_trl.data import parquet
from tuna_trl.data.hub import load_ranked, save_ranked, stream_ranked
from tuna_trl.data.schema import ranked_features
from tuna_trl.errors import BuildError, InputError, SchemaError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def prompts(n):
    return [{"prompt": f"question {i}", "source": "book"} for i in range(n)]


def config(**options):
    return TeacherBuildConfig(**({"show_progress": False, "window_size": 700} | options))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Stop(Exception):
    pass


class TestFolder:
    def test_it_is_to_the_byte_what_save_ranked_writes_of_the_built_dataset(self, tmp_path):
        rows = DatasetDict(train=Dataset.from_list(prompts(1300)), test=Dataset.from_list(prompts(3)))
        folder = build_teacher_folder(rows, SeedSampler(), tmp_path / "streamed", config(), card={"license": "mit"})
        built = build_teacher_ranked(rows, SeedSampler(), config())
        saved = save_ranked(built, tmp_path / "saved", card={"license": "mit"})
        assert tree(folder) == tree(saved)
        assert load_ranked(folder)["train"].to_list() == built["train"].to_list()

    def test_a_shard_ends_when_it_is_full_and_all_of_them_are_one_dataset(self, tmp_path, monkeypatch):
        rows = [simple_row(i) for i in range(3500)]
        whole = stream_ranked([("train", rows)], tmp_path / "whole")
        monkeypatch.setattr(parquet.ShardWriter.__init__, "__kwdefaults__", {"shard_bytes": 300_000})
        folder = stream_ranked([("train", iter(rows)), ("test", rows[:2])], tmp_path / "cut")
        names = sorted(file.name for file in (folder / "data").iterdir())
        count = len(names) - 1
        assert count > 1
        assert names == ["test-00000-of-00001.parquet"] + [
            f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)
        ]
        assert load_dataset(str(folder))["train"].to_list() == load_ranked(whole)["train"].to_list() == rows
        assert tree(save_ranked(DatasetDict(train=dataset_of(rows), test=dataset_of(rows[:2])), tmp_path / "s")) == (
            tree(folder)
        )

    def test_nothing_stands_there_until_all_of_it_does_and_shards_are_written_as_they_fill(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(parquet.ShardWriter.__init__, "__kwdefaults__", {"shard_bytes": 1})
        seen = []

        def before(call):
            (staging,) = tmp_path.glob(".ds.*")
            seen.append(len(list(staging.rglob("*.full"))))
            assert not (tmp_path / "ds").exists()

        build_teacher_folder(prompts(2500), SeedSampler(before=before), tmp_path / "ds", config(bucket_size=100))
        assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 2
        assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "cache") == ["ds"]

    def test_a_build_that_stops_leaves_what_stood_there(self, tmp_path):
        build_teacher_folder(prompts(2), SeedSampler(), tmp_path / "ds", config())
        before = tree(tmp_path / "ds")

        def stop(call):
            raise Stop

        with pytest.raises(Stop):
            build_teacher_folder(prompts(5), SeedSampler(before=stop), tmp_path / "ds", config())
        assert tree(tmp_path / "ds") == before

    def test_a_folder_of_somebody_else_is_refused_before_anything_is_drawn(self, tmp_path):
        (tmp_path / "README.md").write_text("mine")
        sampler = SeedSampler()
        with pytest.raises(InputError, match="already holds README.md"):
            build_teacher_folder(prompts(2), sampler, tmp_path, config())
        with pytest.raises(SchemaError, match="row 1"):
            build_teacher_folder([{"prompt": "a"}, {}], sampler, tmp_path / "ds", config())
        assert not sampler.calls

    def test_what_a_killed_writer_left_is_swept_and_a_living_one_s_is_not(self, tmp_path):
        old, fresh, other = (tmp_path / name for name in (".ds." + "a" * 12, ".ds." + "b" * 12, ".ds.notes"))
        for folder in (old, fresh, other):
            folder.mkdir()
        os.utime(old, (1, 1))
        os.utime(other, (1, 1))
        seen = []

        def rows():
            (mine,) = set(tmp_path.glob(".ds.*")) - {old, fresh, other}
            os.utime(mine, (1, 1))
            save_ranked(dataset_of([simple_row()]), tmp_path / "ds")  # another writer, while this one is at work
            seen.append(mine.is_dir())
            yield simple_row(1)

        stream_ranked([("train", rows())], tmp_path / "ds")
        assert seen == [True] and not old.exists() and fresh.exists() and other.exists()

    def test_a_full_disk_is_a_build_error(self, tmp_path, monkeypatch):
        def full(self, table):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(parquet.ShardWriter, "write", full)
        with pytest.raises(BuildError, match="could not be written.*No space left"):
            build_teacher_folder(prompts(2), SeedSampler(), tmp_path / "ds", config())
        assert not (tmp_path / "ds").exists()


class TestStreams:
    def test_a_large_build_is_memory_mapped_and_a_small_one_is_not(self):
        large = build_teacher_ranked(prompts(1001), SeedSampler(), config())["train"]
        assert large.cache_files and large.features == ranked_features() and len(large) == 1001
        small = build_teacher_ranked(prompts(1000), SeedSampler(), config())["train"]
        assert not small.cache_files
        assert large.select(range(1000)).to_list() == small.to_list()

    def test_the_temporary_file_is_gone_when_the_process_ends(self, tmp_path):
        script = """
            from doubles.samplers import SeedSampler
            from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_ranked
            rows = [{"prompt": str(i)} for i in range(1100)]
            built = build_teacher_ranked(rows, SeedSampler(), TeacherBuildConfig(show_progress=False))["train"]
            print(built.cache_files[0]["filename"], built[1099]["prompt"][0]["content"])
        """
        name, last = python(script, env={"TMPDIR": str(tmp_path)}).split()
        assert last == "1099" and name.startswith(str(tmp_path)) and not Path(name).exists()

    @pytest.mark.parametrize("kind", ["stream", "json lines", "iterator"])
    def test_streams_give_the_rows_of_a_list(self, tmp_path, kind):
        rows = prompts(900)
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "stream": IterableDataset.from_generator(lambda: iter(rows)),
            "json lines": load_dataset("json", data_files=str(tmp_path / "p.jsonl"), streaming=True)["train"],
            "iterator": iter(rows),
        }[kind]
        built = build_teacher_ranked(given, SeedSampler(), config(window_size=100))["train"]
        assert built.to_list() == build_teacher_ranked(rows, SeedSampler(), config(window_size=100))["train"].to_list()

    def test_a_bad_row_far_down_a_stream_stops_the_build_before_anything_is_drawn(self):
        rows = [*prompts(900), {"prompt": " "}]
        sampler = SeedSampler()
        with pytest.raises(SchemaError, match="row 900: column 'prompt' is empty"):
            build_teacher_ranked(IterableDataset.from_generator(lambda: iter(rows)), sampler, config(window_size=100))
        assert not sampler.calls
        with pytest.raises(SchemaError, match="row 900"):  # an iterator's rows are checked as they come
            build_teacher_ranked(iter(rows), sampler, config(window_size=100))
        assert len(sampler.calls) > 0


BUILD = """
    import sys
    from datasets import IterableDataset
    from doubles.samplers import SeedSampler
    from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_folder, build_teacher_ranked

    count, folder = int(sys.argv[1]), sys.argv[2]

    def rows():
        for i in range(count):
            yield {"prompt": f"Instruction {i}: " + "explain it in some detail please " * (i % 17)}

    config = TeacherBuildConfig(journal=folder + ".sqlite", window_size=int(sys.argv[3]), show_progress=False)
    build_teacher_folder(IterableDataset.from_generator(rows), SeedSampler(), folder, config)
"""


def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    few, many = (int(python(BUILD + SAY_PEAK, count, tmp_path / str(count), 256)) for count in (600, 6000))
    assert len(load_ranked(tmp_path / "6000", "train")) == 6000
    # 5,400 rows are 30 MB as Python objects with all their samples; the rest is what Arrow and SQLite keep for reuse
    assert many < few + 60, f"{few} MB for 600 rows, {many} MB for 6,000"


@pytest.mark.slow
def test_100000_rows_are_built_within_2_gb(tmp_path, capsys):
    peak = int(python(BUILD + SAY_PEAK, 100_000, tmp_path / "ds", 4096))
    with capsys.disabled():
        print(f"\n100,000 rows: peak {peak} MB resident")
    assert peak < 2000
    info = load_dataset(str(tmp_path / "ds"), streaming=True)["train"].info
    assert info.splits["train"].num_examples == 100_000


PROCESS = """
    import sys
    from doubles.killed_builds import local_build
    from pathlib import Path
    local_build(*map(Path, sys.argv[1:]))
"""


def test_two_processes_write_the_dataset_of_one(tmp_path, tiny_folder):
    log = tmp_path / "log"
    python(PROCESS, tiny_folder, tmp_path / "one", tmp_path / "one.sqlite", log)
    running, port = [], free_port()
    for rank in range(2):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        paths = [tiny_folder, tmp_path / "two", tmp_path / "two.sqlite", tmp_path / f"log{rank}"]
        running.append(started(PROCESS, *paths, env=ranks))
    assert [process.wait(200) for process in running] == [0, 0]
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
    assert len(load_ranked(tmp_path / "two", "train")) == 200
    assert (tmp_path / "log1").read_text().count("Sampling") == 0


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
        build_teacher_folder(prompts(2), SeedSampler(), tmp_path / "ds", config(**options))
