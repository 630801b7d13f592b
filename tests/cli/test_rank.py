"""`tuna-trl rank`: a file of given responses in, a ranked dataset out; what is wrong is said before a model loads."""

from __future__ import annotations

import json

import pytest

from tuna_trl.data.hub import load_ranked


ROWS = [
    {"instruction": "Name a sea.", "input": "", "outputs": ["The Baltic.", "Water"]},
    {"instruction": "Why?", "input": "", "outputs": ["", "Because."]},
]


VERB = "rank"  # of every `call`


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_file_of_lists_becomes_a_ranked_dataset_and_a_rerun_scores_nothing(call, data, tmp_path, tiny_folder):
    output = tmp_path / "ranked"
    command = ("--teacher", tiny_folder, "--data", data, "--output", output)
    code, out, err = call(*command)
    assert code == 0 and str(output) in out
    assert "1 of 4 responses have no rank: 1 empty." in err
    rows = load_ranked(output)["train"]
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert {row["ranking_method"] for row in rows} == {"teacher_logprob"}
    written = (output / "data" / "train-00000-of-00001.parquet").read_bytes()
    code, _, err = call(*command)
    assert code == 0 and "1 of 1 buckets were already in the journal" in err
    assert (output / "data" / "train-00000-of-00001.parquet").read_bytes() == written


def test_a_ranked_folder_is_read_and_another_teacher_needs_leave(call, data, tmp_path, tiny_folder):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("--teacher", tiny_folder, "--data", data, "--output", first, "--limit", 1)[0] == 0
    again = ("--teacher", tiny_folder, "--data", first, "--output", second, "--dtype", "float64")
    code, _, err = call(*again)
    assert code == 2 and "--overwrite-ranks" in err and not second.exists()
    assert call(*again, "--overwrite-ranks", "--length-exponent", 0)[0] == 0
    (row,) = load_ranked(second)["train"]
    assert row["provenance"]["length_exponent"] == 0 and row["score_gap"] > 0


@pytest.mark.parametrize(
    ("teacher", "file", "message"),
    [
        ("claude-opus-5-5", "lists.jsonl", "Anthropic's API returns no log-probabilities"),
        ("embedded", "missing.jsonl", "there is no such file"),
        ("embedded", "torn.jsonl", "torn.jsonl row 0 (line 1): no valid JSON"),
    ],
)
def test_what_is_wrong_is_said_at_once(teacher, file, message, call, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tuna_trl.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a", "respon')
    code, _, err = call("--teacher", teacher, "--data", tmp_path / file, "--output", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--concurrency", 3), "--concurrency is for a teacher behind a server"),
        (("--system", "x"), "--system is for a teacher behind a server"),
        (("--base-url", "http://localhost:1/v1", "--engine", "ray"), "--engine ray is for a local teacher"),
        (("--base-url", "https://api.openai.com/v1"), "OpenAI's API cannot score given responses"),
        (("--base-url", "http://localhost:1/v1", "--extra-body", "{"), "--extra-body '{' is no JSON"),
        (("--base-url", "http://localhost:1/v1", "--paid"), "set `max_cost`"),
    ],
)
def test_flags_that_do_not_go_together_are_said(flags, message, call, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tuna_trl.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-123456789")
    code, _, err = call("--teacher", "m", "--data", data, "--output", tmp_path / "out", *flags)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_server_ranks_and_a_rerun_asks_it_nothing(call, tmp_path):
    from doubles.openai_server import OpenAIServer

    data, output = tmp_path / "lists.jsonl", tmp_path / "ranked"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "responses": ["red", "blue"]}) + "\n" for i in range(3)))
    with OpenAIServer() as server:
        command = ("--teacher", "m", "--data", data, "--output", output, "--base-url", server.url, "--concurrency", 2)
        code, out, _ = call(*command, "--dry-run")
        assert code == 0 and "9 requests" in out and server.requests == [] and not output.exists()
        code, out, err = call(*command)
        assert code == 0 and str(output) in out and "0 of 6 scores were already in the journal" in err
        assert [row["status"] for row in load_ranked(output)["train"]] == ["ok"] * 3
        before = len(server.requests)
        assert call(*command)[0] == 0 and len(server.requests) == before
        code, _, err = call(*command, "--no-resume")
        assert code == 0 and "aside-1" in err and len(server.requests) == 2 * before


def test_a_server_that_cannot_score_given_text_is_said_with_the_ways_out(call, data, tmp_path):
    from doubles.openai_server import Habits, OpenAIServer

    with OpenAIServer(Habits(scores_prompts=False)) as server:
        code, _, err = call("--teacher", "m", "--data", data, "--output", tmp_path / "o", "--base-url", server.url)
    assert code == 1 and "does not score prompts" in err and "llama.cpp" in err and "Traceback" not in err
