"""Laws of the model card: what was trained on what and how, readable by the Hub, true for local models."""

from __future__ import annotations

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from tiny import chatml_tokenizer, random_llama
from training import config, ranked_dataset

from tuna_trl import TunaTrainer


TOKENIZER = chatml_tokenizer()


@pytest.fixture
def trainer_of(tmp_path):
    def made(*, name="", train=None, peft_config=None, **fields):
        model = random_llama(len(TOKENIZER))
        model.config._name_or_path = name
        return TunaTrainer(
            model,
            config(tmp_path / "my-run", **fields),
            train_dataset=ranked_dataset(5) if train is None else train,
            eval_dataset={"held": ranked_dataset(3)},
            processing_class=TOKENIZER,
            peft_config=peft_config,
        )

    return made


def card(tmp_path):
    text = (tmp_path / "my-run" / "README.md").read_text(encoding="utf-8")
    return ModelCard(text), text, yaml.safe_load(text.split("---")[1])


def test_a_run_leaves_a_card_with_data_settings_metrics_and_versions(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=2, margin=0.25, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.create_model_card(model_name="My Model", dataset_name="me/data", tags="mine")
    _, text, data = card(tmp_path)
    assert text.split("---")[2].strip().startswith("# My Model")
    assert "| instructions | 5 |" in text and "| responses | 14 (2 to 4 an instruction) |" in text
    assert f"| {sum(trainer.train_dataset['length']):,} |" in text
    assert "| `margin` | 0.25 |" in text and "| `lr_scheduler_type` | constant |" in text
    assert "`rank/accuracy`" in text and "`eval_held_rank/accuracy`" in text and "`loss/mle`" in text
    assert "- trl: 1." in text and "- tuna-trl: " in text and "2310.13385" in text
    assert data["datasets"] == ["me/data"] or data["datasets"] == "me/data"
    assert {"tuna", "trl", "mine", "arxiv:2310.13385"} <= set(data["tags"])
    assert data["library_name"] == "transformers" and "base_model" not in data


def test_without_a_name_the_card_is_called_after_its_folder(trainer_of, tmp_path):
    trainer_of().create_model_card()
    assert "# my-run\n" in card(tmp_path)[1] and "None" not in card(tmp_path)[1].split("## Training\n")[0]


@pytest.mark.parametrize(
    "name, linked", [("org/base-1b", True), ("", False), ("/some/folder", False), ("a/b/c", False)]
)
def test_only_a_base_model_of_the_hub_is_linked(name, linked, trainer_of, tmp_path):
    trainer_of(name=name).create_model_card()
    _, text, data = card(tmp_path)
    assert (data.get("base_model") == name) is linked
    assert (f"(https://huggingface.co/{name})" in text) is linked
    assert ("a local LlamaForCausalLM checkpoint" in text) is not linked
    assert "/some/folder" not in text  # no path of anybody's machine


def test_an_adapters_card_says_so(trainer_of, tmp_path):
    trainer_of(peft_config=LoraConfig(target_modules=["q_proj"])).create_model_card()
    _, text, data = card(tmp_path)
    assert data["library_name"] == "peft" and "LlamaForCausalLM" in text


def test_a_stream_is_not_counted_and_sft_data_are(trainer_of, tmp_path):
    trainer_of(train=ranked_dataset(3).to_iterable_dataset(), max_steps=1).create_model_card()
    assert "| instructions | streamed |" in card(tmp_path)[1]
    trainer_of(train=Dataset.from_list([{"prompt": "q", "completion": "a"}] * 4)).create_model_card()
    assert "| responses | 4 (1 an instruction) |" in card(tmp_path)[1]


def test_a_callable_loss_is_named(trainer_of, tmp_path):
    def my_own_loss(logps, lengths, ranks, mask, **kwargs):
        return logps.sum(1) * 0.0

    trainer_of(ranking_loss=my_own_loss).create_model_card()
    assert "| `ranking_loss` | my_own_loss |" in card(tmp_path)[1]


def test_every_checkpoint_finds_the_card_written(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=1, save_strategy="steps", save_steps=1, hub_model_id="me/the-model")
    trainer.train()
    assert "# the-model" in card(tmp_path)[1]
    assert trainer.model.model_tags is not None and "tuna" in trainer.model.model_tags


def test_the_card_of_rows_that_skipped_preparation_is_written_too(trainer_of, tmp_path):
    rows = Dataset.from_list([{"input_ids": [5, 6, 7]}])
    trainer = trainer_of(train=rows)
    trainer.train_dataset = trainer.train_dataset.remove_columns("length")
    trainer.create_model_card()
    assert "| instructions | 1 |" in card(tmp_path)[1]
