"""`tuna-trl evaluate`: each benchmark from the command line on a tiny model and data of our own."""

from __future__ import annotations

import json

import pytest
from doubles.openai_server import Habits, OpenAIServer


VERB = "evaluate"  # of every `call`


@pytest.fixture
def ni(tmp_path):
    (tmp_path / "ni" / "tasks").mkdir(parents=True)
    for name, category in (("task1", "Word Analogy"), ("task2", "Title Generation")):
        record = {
            "Definition": ["Say it."],
            "Categories": [category],
            "Positive Examples": [{"input": "a", "output": "b"}] * 2,
            "Instances": [{"id": str(i), "input": f"in {i}", "output": ["yes"]} for i in range(3)],
        }
        (tmp_path / "ni" / "tasks" / f"{name}.json").write_text(json.dumps(record))
    return tmp_path / "ni"


def test_super_ni_writes_results_and_a_rerun_generates_nothing(call, ni, tmp_path, tiny_folder):
    output = tmp_path / "out"
    command = ("super-ni", "--model", tiny_folder, "--data", ni, "--output", output, "--max-new-tokens", 4)
    code, out, err = call(*command)
    assert code == 0 and "Copy-Demo (no model)" in out and "Next: tuna-trl evaluate lmentry --model" in out
    results = json.loads((output / "results.json").read_text())
    assert results["settings"]["shots"] == 2 and results["models"][0]["model"]["fingerprint"]["weights"]
    assert (output / "plots" / "rouge_l.svg").read_text().startswith("<svg")
    written = (output / "results.json").read_text()
    code, _, err = call(*command)
    assert code == 0 and "1 of 1 buckets were already in the journal" in err
    assert (output / "results.json").read_text() == written


def test_lmentry_reads_a_limit_and_is_asked_in_its_own_words(call, tmp_path, tiny_folder):
    examples = {
        str(i): {"input": f"Q{i}", "metadata": {"template_id": i % 3, "word": "ab", "answer": "a"}} for i in range(12)
    }
    (tmp_path / "first_letter.json").write_text(json.dumps({"examples": examples}))
    args = ("--model", tiny_folder, "--data", tmp_path, "--output", tmp_path / "out", "--limit", 2)
    code, out, _ = call("lmentry", *args, "--max-new-tokens", 3, "--truncate")
    assert code == 0 and "No accuracy and no score: the data lacks" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["template"] == "raw" and results["settings"]["examples"] == 6


def test_ranking_takes_rows_of_a_file(call, tmp_path, tiny_folder):
    rows = [
        {"prompt": f"q{i}", "responses": [{"content": "long one", "rank": 1}, {"content": "x", "rank": 2}]}
        for i in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("--model", tiny_folder, "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "out")
    code, out, err = call("ranking", *args, "--split", "train")
    assert code == 0, err
    assert "| longer_wins (no model) | 1.000 | 1.000 | – |" in out and "kendall_tau_b" in out


def test_a_server_answers_without_log_probs_and_one_that_costs_needs_a_cap(call, ni, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    args = ("--data", ni, "--output", tmp_path / "out", "--max-new-tokens", 4)
    with OpenAIServer(Habits(knows_logprobs=False)) as server:
        code, _, err = call("super-ni", "--model", "m", "--base-url", server.url, *args)
        assert code == 0, err
        assert len(server.requests) == 6
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    code, _, err = call("super-ni", "--model", "m", "--base-url", "https://127.0.0.1:1/v1", *args)
    assert code == 2 and "max_cost" in err


@pytest.fixture
def vicuna(tmp_path):
    folder = tmp_path / "vicuna"
    folder.mkdir()

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("question.jsonl", [{"question_id": i, "text": f"Why {i}?", "category": "generic"} for i in (1, 2)])
    prompt = {"system_prompt": "Judge.", "prompt_template": "{question} {answer_a} {answer_b}"}
    write("judge_prompts.jsonl", [prompt | {"name": name} for name in ("pair-v2", "pair-math-v1")])
    for name in ("one", "two"):
        write(f"{name}.jsonl", [{"question_id": i, "text": f"{name} {i}"} for i in (1, 2)])
    return folder


def test_stored_answers_are_judged_by_a_local_model(call, vicuna, tmp_path, tiny_folder):
    """A random model says nothing that can be read: every pair is dropped, and that is said."""
    models = ("--model", vicuna / "one.jsonl", "--model", vicuna / "two.jsonl")
    args = ("--data", vicuna, "--judge", tiny_folder, "--output", tmp_path / "out")
    code, out, err = call("vicuna-qa", *models, *args)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["models"][1]["games"]["dropped"] + found["models"][1]["games"]["tie"] == 2
    assert found["settings"]["opponent"] == str(vicuna / "one.jsonl") and "vicuna-export" in out


def test_pairs_go_out_blinded_and_verdicts_come_back(call, vicuna, tmp_path):
    args = ("--data", vicuna, "--first", vicuna / "one.jsonl", "--second", vicuna / "two.jsonl")
    code, out, _ = call("vicuna-export", *args, "--output", tmp_path / "blind")
    assert code == 0 and "keep" in out and "Next: tuna-trl evaluate vicuna-import" in out
    pairs = [json.loads(line) for line in (tmp_path / "blind" / "pairs.jsonl").read_text().splitlines()]
    verdicts = [{"id": p["id"], "verdict": "left" if p["left"].startswith("one") else "right"} for p in pairs]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in verdicts))
    code, out, _ = call("vicuna-import", "--key", tmp_path / "blind" / "key.json", "--verdicts", tmp_path / "v.jsonl")
    assert code == 0 and json.loads(out)["summary"]["win"] == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("super-ni", "--model", "x", "--data", "{tmp}", "--output", "{tmp}/o"), "No Super-NaturalInstructions task"),
        (("lmentry", "--model", "x", "--data", "{tmp}", "--output", "{tmp}/o"), "No LMentry task"),
        (
            ("super-ni", "--model", "x", "--data", "{ni}", "--output", "{tmp}/o", "--template", "alpacca"),
            "Did you mean 'alpaca'",
        ),
        (
            ("super-ni", "--model", "x", "--model", "x", "--data", "{ni}", "--output", "{tmp}/o"),
            "named twice",
        ),
        (
            ("super-ni", "--model", "x", "--adapter", "{ni}", "--data", "{ni}", "--output", "{tmp}/o"),
            "is no adapter",
        ),
        (
            ("super-ni", "--model", "x", "--model", "y", "--base-url", "http://127.0.0.1:1/v1", "--data", "{ni}",
             "--output", "{tmp}/o"),
            "name one --model",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_a_model_loads(command, message, call, ni, tmp_path, monkeypatch):
    monkeypatch.setattr("tuna_trl.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = call(*(part.format(tmp=empty, ni=ni) for part in command))
    assert code == 2 and message in err and "Traceback" not in err


def test_one_model_has_no_opponent_and_a_paid_judge_needs_a_cap(call, vicuna, tmp_path, tiny_folder, monkeypatch):
    args = ("--model", vicuna / "one.jsonl", "--data", vicuna, "--output", tmp_path / "out")
    code, _, err = call("vicuna-qa", *args, "--judge", tiny_folder)
    assert code == 2 and "no opponent" in err
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    code, _, err = call("vicuna-qa", *args, "--judge", "claude", "--against", vicuna / "two.jsonl")
    assert code == 2 and "--max-cost" in err
    code, _, err = call(
        "vicuna-qa", *args, "--judge", tiny_folder, "--protocol", "v3", "--against", vicuna / "two.jsonl"
    )
    assert code == 2 and "--protocol 'v3'" in err
