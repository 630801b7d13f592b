"""`tuna-trl estimate`: the verdict is the exit code, no weights are read, what is estimated is what would train."""

from __future__ import annotations

import json
import shutil
import sys

import pytest


YAML = """
model_name_or_path: {model}
dataset_name: {data}
output_dir: {out}
max_length: 256
per_device_train_batch_size: 2
report_to: none
{more}
"""


@pytest.fixture
def weightless(tmp_path, tiny_folder):
    """A model's folder without its weights."""
    folder = tmp_path / "config-only"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def estimated(tmp_path, weightless, monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""
    rows = [
        {
            "prompt": f"question {i}" + " more" * i,
            "responses": ["an answer" * k for k in (3, 2, 1)],
            "scores": [3, 2, 1],
        }
        for i in range(6)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*flags, model=weightless, data=tmp_path / "d.jsonl", more=""):
        from tuna_trl.cli import main

        path = tmp_path / "x.yaml"
        path.write_text(YAML.format(model=model, data=data, out=tmp_path / "out", more=more))
        monkeypatch.setattr(sys, "argv", ["tuna-trl", "estimate", "--config", str(path), *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code, *capsys.readouterr())

    return call


def test_the_exit_code_is_the_verdict(estimated):
    code, out, err = estimated("--card", "24")
    assert code == 0, err
    assert "fits" in out and "largest max_length" in out and "80 GB" in out
    code, out, _ = estimated("--card", "0.5")  # less than a CUDA context
    assert code == 1 and "does not fit" in out and "No set of these flags" in out


@pytest.mark.parametrize(
    "flags, more, message",
    [
        ([], "learning_rat: 1", "Did you mean 'learning_rate'?"),
        (["--card", "-1"], "", "--card is -1"),
        ([], "optim: galore_adamw", "`optim` is 'galore_adamw', whose memory is not known"),
        ([], "load_in_4bit: true", "quantised weights do not train: set `use_peft: true`"),
        ([], "use_peft: true\nlora_target_modules: [no_such_layer]", "The adapter does not fit the model"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(estimated, flags, more, message):
    code, _, err = estimated(*flags, more=more)
    assert code == 2, err
    assert message in err and "Traceback" not in err


def test_a_model_without_a_config_is_named(estimated, tmp_path):
    code, _, err = estimated(model=tmp_path / "nowhere", data="no/data")
    assert code == 2 and "there is no such folder" in err and "nowhere" in err


def test_json_holds_the_counts_of_the_data(estimated, weightless):
    from transformers import AutoConfig, AutoModelForCausalLM

    code, out, err = estimated("--json", more="use_peft: true\nlora_target_modules: all-linear\nlora_r: 4")
    assert code == 0, err
    found = json.loads(out)
    assert found["lengths_from"] == "the data" and found["batch"]["instructions"] == 2
    # both heaviest rows have 4 and 5 times " more"; prompts are there once
    assert found["batch"]["scored_tokens"] < found["batch"]["tokens"] < 2 * 256 * 3
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(weightless))
    assert found["parameters"] - found["trained_parameters"] == sum(p.numel() for p in model.parameters())
    assert found["bytes"]["peak"] >= found["bytes"]["weights"] + found["bytes"]["activations"]
    assert [card["card_gib"] for card in found["cards"]] == [8, 12, 16, 24, 32, 80]


def test_fewer_responses_and_checkpointing_are_less_memory(estimated):
    def peak(*flags):
        return json.loads(estimated("--json", *flags)[1])["bytes"]["activations"]

    plain = peak("--activation_checkpointing", "false")
    assert peak("--activation_checkpointing", "false", "--max_responses", "2") < plain
    assert peak("--activation_checkpointing", "true") < plain
    assert peak("--activation_checkpointing", "false", "--batch_layout", "rows") > plain


def test_mixed_precision_is_assumed_on_a_card_and_can_be_switched_off(estimated):
    def activations(*flags):
        return json.loads(estimated("--json", "--activation_checkpointing", "false", *flags)[1])["bytes"][
            "activations"
        ]

    assert activations() == activations("--bf16", "true") != activations("--bf16", "false")


def test_lengths_can_be_assumed(estimated):
    given = ["--num_responses", 5, "--prompt_length", 40, "--response_length", 30]
    found = json.loads(estimated("--json", *given)[1])
    assert found["batch"]["tokens"] == 2 * (40 + 5 * 30) and found["lengths_from"].startswith("assumed")
    code, out, err = estimated("--json", data="no/data")
    assert code == 0 and json.loads(out)["batch"]["tokens"] == 2 * (128 + 4 * 128)
    _, _, err = estimated(data="no/data")
    assert "could not be loaded" in err and "assumed" in err


def test_no_weight_is_loaded_and_none_are_there(estimated, weightless, monkeypatch):
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    assert not list(weightless.glob("*.safetensors"))
    assert estimated()[0] == 0


def test_measuring_trains_two_steps_and_saves_nothing(estimated, tiny_folder, tmp_path):
    code, out, err = estimated("--measure", "--json", "--use_cpu", "true", model=tiny_folder)
    assert code == 0, err
    found = json.loads(out)["measured"]
    assert found["device"] == "cpu" and found["peak"] > 0 and found["estimated_peak"] > 0
    assert found["tokens"] == json.loads(out)["batch"]["tokens"]  # the heaviest batch was measured
    assert not (tmp_path / "out").exists()


def test_measuring_without_data_is_wrong_input(estimated, tiny_folder):
    code, _, err = estimated("--measure", model=tiny_folder, data="no/data")
    assert code == 2 and "--measure needs the data" in err
