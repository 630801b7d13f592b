"""The recipes of examples/recipes: each plans, each training parses as the command line would, each fits its card."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tuna_trl.cli.run import options_of_verbs
from tuna_trl.pipelines.recipe import plan, read_recipe


RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
# the published sizes of the models that the recipes name
LLAMA_1B = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192}
LLAMA_3B = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "intermediate_size": 8192}
QWEN_8B = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": True}
QWEN = {"model_type": "qwen3", "vocab_size": 151936, "tie_word_embeddings": False}
SIZES = {
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA | LLAMA_1B | {"head_dim": 64},
    "meta-llama/Llama-3.2-3B-Instruct": LLAMA | LLAMA_3B | {"head_dim": 128},
    "Qwen/Qwen3-8B": QWEN | QWEN_8B | {"head_dim": 128},
}


def steps_of(path):
    return plan(read_recipe(path), options_of_verbs())


def test_there_are_recipes():
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans_and_its_trainings_parse(path, tmp_path, monkeypatch):
    from tuna_trl.cli import train

    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    for i, step in enumerate(step for step in steps_of(path) if step.verb == "train"):
        config = tmp_path / f"{i}.yaml"
        config.write_text(yaml.safe_dump(dict(step.options)))
        _, training, model = train._parse(config, [])
        assert training.learning_rate == step.options["learning_rate"]
        assert bool(model.use_peft) == step.options.get("use_peft", False)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if re.search(r"_\d+gb$", path.stem)], ids=lambda path: path.stem
)
def test_a_recipe_fits_the_card_in_its_name(path, tmp_path, tiny_folder, monkeypatch, capsys):
    """As `tuna-trl estimate` counts, at 4 responses of 384 tokens to a prompt of 256."""
    from tuna_trl.cli import main

    step = next(step for step in steps_of(path) if step.verb == "train")
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    sizes = SIZES[step.options["model_name_or_path"]]
    (folder / "config.json").write_text(json.dumps(sizes | {"num_key_value_heads": 8}))
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(dict(step.options) | {"model_name_or_path": str(folder), "bf16": False}))
    card = re.search(r"_(\d+)gb$", path.stem)[1]
    lengths = ["--num_responses", "4", "--prompt_length", "256", "--response_length", "384"]
    monkeypatch.setattr(sys, "argv", ["tuna-trl", "estimate", "--config", str(config), "--card", card, *lengths])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 0, said.out + said.err
