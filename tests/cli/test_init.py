"""`tuna-trl init`: four answers make a recipe that plans, trains and fits its card; nothing is overwritten."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import yaml

from tuna_trl.cli.recipe_text import recipe_text
from tuna_trl.cli.run import options_of_verbs
from tuna_trl.pipelines.recipe import plan, read_recipe


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def rows(path, *content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def steps_of(path):
    return plan(read_recipe(path), options_of_verbs())


def test_without_a_terminal_the_defaults_run_anywhere(call, tmp_path):
    code, out, err = call("init", "--card", 0)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("Next: tuna-trl run tuna.yaml")
    recipe = yaml.safe_load((tmp_path / "tuna.yaml").read_text())
    assert (recipe["model"], recipe["prompts"], recipe["output"]) == ("embedded", "demo:train", "runs/tuna")
    assert [step.verb for step in steps_of(tmp_path / "tuna.yaml")] == ["build judge", "train", "merge"]
    assert "bf16" not in recipe["defaults"]["train"]


def test_nothing_is_overwritten_unless_asked_for(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, _, err = call("init", "mine.yaml", "--card", 0)
    assert code == 2 and "--overwrite" in err and (tmp_path / "mine.yaml").read_text() == "mine"
    assert call("init", "mine.yaml", "--card", 0, "--overwrite")[0] == 0
    assert steps_of(tmp_path / "mine.yaml")


def test_the_flag_of_before_still_works_and_says_what_it_is_called_now(call, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, out, err = call("init", "mine.yaml", "--card", 0, "--force")
    assert code == 0 and "--force is deprecated" in err and "--overwrite" in err and "deprecated" not in out
    assert "--force" not in call("init", "--help")[1]


@pytest.mark.parametrize(
    ("judge", "card"),
    [(["--judge", "claude"], 24), (["--judge", "local:embedded"], 0), (["--teacher", "embedded"], 24)],
)
@pytest.mark.parametrize("source", ["prompts", "unranked", "ranked", "Hub"])
def test_every_set_of_answers_plans_and_its_training_parses(call, tmp_path, monkeypatch, judge, source, card):
    from tuna_trl.cli import train

    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    flag = "--prompts" if source in ("prompts", "Hub") else "--data"
    row = {"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]}
    if source == "unranked":
        del row["scores"]
    name = "owner/name" if source == "Hub" else rows(tmp_path / "rows.jsonl", row)
    code, _, err = call("init", flag, name, *judge, "--card", card, "--model", "owner/My-3B", "--max-cost", "7")
    assert code == 0, err
    steps = steps_of(tmp_path / "tuna.yaml")
    (training,) = (step for step in steps if step.verb == "train")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(dict(training.options)))
    assert train._parse(tmp_path / "train.yaml", [])[2].use_peft
    ranking = next(step for step in steps if step.verb.startswith(("build", "rank")))
    assert ranking.verb == ("rank" if flag == "--data" else f"build {judge[0].removeprefix('--')}")
    assert ranking.options.get("max_cost") == (7 if judge[1] == "claude" else None)
    assert {"judge", "teacher"} & {key for key, value in ranking.options.items() if value} == {judge[0][2:]}


def test_data_with_scores_of_its_own_is_imported_and_ranked_by_nobody(call, tmp_path):
    data = rows(tmp_path / "d.jsonl", {"prompt": "a", "responses": ["b", "c"], "scores": [1, 0]})
    assert call("init", "--data", data, "--card", 0)[0] == 0
    assert [step.verb for step in steps_of(tmp_path / "tuna.yaml")] == ["import", "validate", "train", "merge"]


def test_prompts_without_references_are_not_ranked_by_them(call, tmp_path):
    code, _, err = call("init", "--prompts", rows(tmp_path / "p.jsonl", {"prompt": "a"}), "--card", 0)
    assert code == 0, err
    assert steps_of(tmp_path / "tuna.yaml")[0].verb == "build teacher"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_four_questions_are_asked(call, tmp_path, monkeypatch):
    prompts = rows(tmp_path / "p.jsonl", {"prompt": "a"})
    monkeypatch.setattr(sys, "stdin", Terminal(f"Qwen/Qwen3-8B\n{prompts}\nclaude\n24\n"))
    code, out, err = call("init")
    assert code == 0, err
    assert all(f"{number}. " in out for number in (1, 2, 3, 4)) and "5. " not in out
    recipe = yaml.safe_load((tmp_path / "tuna.yaml").read_text())
    assert recipe["model"] == "Qwen/Qwen3-8B" and recipe["prompts"] == prompts
    assert recipe["stages"][0]["build judge"]["judge"] == "claude" and recipe["defaults"]["train"]["load_in_4bit"]


def test_a_flag_answers_its_question(call, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    code, out, err = call("init", "--model", "a/b", "--judge", "reference", "--card", 0)
    assert code == 0, err
    assert "2. " in out and not any(f"{number}. " in out for number in (1, 3, 4))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--judge", "referense"], "Did you mean 'reference'?"),
        (["--judge", "claude", "--teacher", "x"], "were both given"),
        (["--prompts", "a", "--data", "b"], "were both given"),
        (["--prompts", "nowhere.jsonl"], "there is no such file"),
        (["--data", "nowhere.csv"], "--data nowhere.csv: there is no such file"),
        (["--judge", "given"], "prompts have no responses yet"),
        (["--teacher", "claude-opus-5"], "use --judge"),
        (["--card", "inf"], "--card"),
        (["."], "is a folder"),
    ],
)
def test_a_wrong_answer_is_exit_code_2_and_writes_nothing(call, tmp_path, args, words):
    code, _, err = call("init", *args, *([] if "--card" in args else ["--card", "0"]))
    assert code == 2 and words in err, err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a b", "yes", "1e3", "x: y", "#x", "a'b\"c", "ü", "-", "null", "C:", "a/b@main"])
def test_whatever_a_name_is_it_is_read_back(tmp_path, text):
    options = dict(ranked_as=None, ranker=f"teacher:{text}", card=0, max_cost=5, seed=3, path=tmp_path / "x")
    recipe = yaml.safe_load(recipe_text(output=text, model=text, source=text, **options))
    assert [recipe["output"], recipe["model"], recipe["prompts"]] == [text] * 3 and recipe["seed"] == 3
    assert recipe["stages"][0]["build teacher"]["teacher"] == text


# the published sizes; what is asked is that the way of training that init picks fits, as `tuna-trl estimate` counts
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": True, "num_attention_heads": 32}
_3B = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "intermediate_size": 8192}
_1B = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}
_8B = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
SIZES = {
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA | _1B | {"head_dim": 64},
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA | _3B | {"head_dim": 128},
    "Qwen/Qwen3-8B": _8B | {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128},
}


@pytest.mark.parametrize(("model", "card"), [("1B", 8), ("3B", 12), ("3B", 16), ("8B", 24), ("8B", 48)])
def test_what_init_picks_fits_the_card(call, tmp_path, tiny_folder, model, card):
    (name,) = (name for name in SIZES if model in name)
    assert call("init", "--model", name, "--card", card)[0] == 0
    (step,) = (step for step in steps_of(tmp_path / "tuna.yaml") if step.verb == "train")
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (folder / "config.json").write_text(json.dumps(SIZES[name] | {"num_key_value_heads": 8}))
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(dict(step.options) | {"model_name_or_path": str(folder), "bf16": False}))
    lengths = ["--num_responses", 4, "--prompt_length", 256, "--response_length", 384]
    code, out, err = call("estimate", "--config", config, "--card", card, *lengths)
    assert code == 0, out + err
