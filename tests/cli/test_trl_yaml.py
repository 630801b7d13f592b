"""A YAML for `trl sft` runs under `tuna-trl train --config` as it is."""

from __future__ import annotations

import json

import pytest

from tuna_trl.cli.train import _parse


# the keys of TRL's documented SFT configuration files
TRL_SFT = """
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
dataset_train_split: train
learning_rate: 2.0e-4
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
packing: false
max_length: 256
logging_steps: 1
warmup_steps: 1
lr_scheduler_type: cosine
use_peft: true
lora_r: 8
lora_alpha: 16
lora_target_modules: all-linear
eos_token: <|im_end|>
eval_strategy: 'no'
report_to: none
output_dir: {output}
"""


def test_trls_yaml_parses_to_what_trl_means(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(TRL_SFT.format(model="m", data="d", output=tmp_path / "out"))
    script, training, model = _parse(path, ["--learning_rate", "1e-5"])
    assert script.dataset_name == "d" and model.lora_r == 8 and model.use_peft
    assert training.learning_rate == pytest.approx(1e-5)  # flags override the file
    assert training.activation_checkpointing and training.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert training.eos_token == "<|im_end|>" and training.packing is False


@pytest.mark.parametrize("more", ["", "load_in_4bit: true\nuse_bnb_nested_quant: true\n"], ids=["plain", "4-bit"])
def test_trls_yaml_trains(tmp_path, tiny_folder, monkeypatch, more):
    rows = [
        {"prompt": [{"role": "user", "content": f"q{i}"}], "completion": [{"role": "assistant", "content": f"a {i}"}]}
        for i in range(6)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "sft.yaml"
    path.write_text(TRL_SFT.format(model=tiny_folder, data=tmp_path / "d.jsonl", output=tmp_path / "out") + more)
    from tuna_trl.cli import main

    monkeypatch.setattr("sys.argv", ["tuna-trl", "train", "--config", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_broken_line_of_the_data_is_named(tmp_path, tiny_folder, monkeypatch, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion"\n')
    path = tmp_path / "sft.yaml"
    path.write_text(TRL_SFT.format(model=tiny_folder, data=data, output=tmp_path / "out"))
    from tuna_trl.cli import main

    monkeypatch.setattr("sys.argv", ["tuna-trl", "train", "--config", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "d.jsonl" in said and "line 2" in said
