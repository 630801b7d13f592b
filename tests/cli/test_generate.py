"""`tuna-trl generate`: answers alone on stdout, from a model or an adapter's folder; what is wrong before it loads."""

from __future__ import annotations

import io
import json
import sys

import pytest
from peft import LoraConfig, get_peft_model

from tuna_trl.clients.local import TransformersSampler
from tuna_trl.loading import load_model, load_tokenizer


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr). `piped` is what stdin holds."""

    def run(*args, piped=None, verb="generate"):
        from tuna_trl.cli import main

        monkeypatch.setattr(sys, "stdin", None if piped is None else io.StringIO(piped))
        monkeypatch.setattr(sys, "argv", ["tuna-trl", verb, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


def greedy(folder, prompts, n=8):
    sampler = TransformersSampler(load_model(str(folder)), load_tokenizer(str(folder)))
    return sampler.greedy([[{"role": "user", "content": prompt}] for prompt in prompts], n)


def test_stdout_holds_the_answer_and_nothing_else(call, tiny_folder):
    (answer,) = greedy(tiny_folder, ["What is a sea?"])
    code, out, err = call("--model", tiny_folder, "--prompt", "What is a sea?", "--max-new-tokens", 8)
    assert code == 0 and out == answer + "\n", err
    assert err.rstrip().splitlines()[-1].startswith("Next: tuna-trl ")


def test_a_prompt_may_be_piped_in(call, tiny_folder):
    (answer,) = greedy(tiny_folder, ["Two\nlines"])
    code, out, err = call("--model", tiny_folder, "--max-new-tokens", 8, piped="Two\nlines\n")
    assert code == 0 and out == answer + "\n", err


def test_several_prompts_are_answered_in_order_and_a_system_prompt_counts(call, tiny_folder):
    prompts = ["a rather long first prompt", "b"]
    flags = ["--model", tiny_folder, "--prompt", prompts[0], "--prompt", prompts[1], "--max-new-tokens", 8]
    code, out, err = call(*flags)
    assert code == 0 and out == "\n\n".join(greedy(tiny_folder, prompts)) + "\n"
    assert "[2/2] b" in err
    code, told, _ = call(*flags, "--system", "Be brief.", "--json")
    asked = [answer["prompt"] for answer in json.loads(told)["answers"]]
    assert asked[1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "b"}]


def test_an_adapters_folder_answers_as_the_adapted_model(call, tiny_folder, tmp_path):
    # so much of it that it says something else than its base
    lora = LoraConfig(r=16, lora_alpha=256, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(str(tiny_folder)), lora).save_pretrained(tmp_path / "adapter")
    (base,), (answer,) = greedy(tiny_folder, ["hello"]), greedy(tmp_path / "adapter", ["hello"])
    code, out, err = call("--model", tmp_path / "adapter", "--prompt", "hello", "--max-new-tokens", 8)
    assert code == 0 and out == answer + "\n" != base + "\n", err


def test_a_file_of_prompts_becomes_a_file_of_rows_that_rank_reads(call, tiny_folder, tmp_path):
    rows = [{"prompt": f"question {i}", "reference": f"it is {i}"} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", tiny_folder, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 6]
    flags += ["--temperature", 1, "--num-responses", 2, "--output", tmp_path / "new" / "out.jsonl"]
    code, out, err = call(*flags)
    assert code == 0 and out == "" and "6 answers to 3 prompts" in err
    assert err.rstrip().splitlines()[-1].startswith("Next: tuna-trl rank --data")
    written = (tmp_path / "new" / "out.jsonl").read_text()
    made = [json.loads(line) for line in written.splitlines()]
    assert [row["reference"] for row in made] == [row["reference"] for row in rows]
    assert all(len(row["responses"]) == 2 for row in made)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]
    assert call(*flags)[0] == 2  # it is there already
    code, out, err = call(*flags, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["answers"] == 6, err
    assert (tmp_path / "new" / "out.jsonl").read_text() == written  # the seed is the same
    ranking = ["--data", tmp_path / "new" / "out.jsonl", "--judge", "reference", "--output", tmp_path / "ranked"]
    code, out, err = call(*ranking, verb="rank")
    assert code == 0, err


def test_what_was_answered_before_an_interruption_is_not_answered_again(call, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(20)))
    flags = ["--model", tiny_folder, "--prompts", tmp_path / "p.jsonl", "--max-new-tokens", 4]
    flags += ["--output", tmp_path / "out.jsonl"]
    sample, calls = TransformersSampler.sample, []

    def interrupted(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, prompts, *args, **kwargs)

    monkeypatch.setattr(TransformersSampler, "sample", interrupted)
    code, out, err = call(*flags)
    assert code == 130 and "what was answered is kept" in err and not (tmp_path / "out.jsonl").exists()
    code, out, err = call(*flags)
    assert code == 0 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    assert sum(calls) == 20 + calls[1]  # what was in flight was asked for twice, the rest once


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", " "], "--prompt is empty"),
        ([], "Nothing to answer"),
        (["--prompt", "a", "--prompts", "b.jsonl"], "both given"),
        (["--prompts", "nowhere.jsonl"], "--prompts nowhere.jsonl: there is no such file"),
        (["--prompt", "a", "--num-responses", "2"], "set a temperature"),
        (["--prompt", "a", "--top-p", "1.5"], "--top-p is 1.5"),
        (["--prompt", "a", "--output", "out.txt"], "ends in .jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_loads(call, args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuna_trl.loading.load_model", lambda *args, **kwargs: pytest.fail("loaded a model"))
    code, out, err = call("--model", "m", *args)
    assert code == 2 and message in err and "Traceback" not in err and out == ""


def test_an_empty_pipe_and_a_wrong_model_are_named(call, tmp_path):
    code, _, err = call("--model", "m", piped="\n")
    assert code == 2 and "What was piped in is empty" in err
    code, _, err = call("--model", "./nowhere", "--prompt", "a")
    assert code == 2 and "`model` './nowhere' could not be loaded: there is no such folder" in err
