"""Laws of the model card: what was trained on what and how, readable by the Hub, true for local models."""

from __future__ import annotations

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from ranked_rows import dataset_of, simple_row
from tiny import chatml_tokenizer, random_llama
from training import config, ranked_dataset
from transformers import BitsAndBytesConfig

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


def test_it_says_how_many_rows_have_how_many_responses_and_who_ranked_them(trainer_of, tmp_path):
    rows = [simple_row(i, n=2 + i % 3) for i in range(7)]
    rows += [simple_row(8, ranking_method="teacher_logprob", ranker="a|<b>`c`\n| x |", status="partial")]
    trainer_of(train=dataset_of(rows)).create_model_card()
    text = card(tmp_path)[1]
    table = text.split("| responses an instruction | instructions |")[1].split("\n\n")[0]
    counts = [len(row["responses"]) for row in rows]
    assert [tuple(map(int, line.strip("| ").split(" | "))) for line in table.splitlines()[2:]] == [
        (n, counts.count(n)) for n in sorted(set(counts))
    ]
    assert "| ranked: `judge` by `a-judge` | 7 instructions |" in text
    assert "| ranked: `teacher_logprob` by ``a\\|<b>`c` \\| x \\|`` | 1 instructions |" in text
    assert "\n| x |" not in text  # a name of a ranker is no row of our table


def test_ties_are_counted_among_the_responses_that_train(trainer_of, tmp_path):
    rows = [
        {"prompt": "q", "responses": [{"content": "a", "rank": 1}, {"content": "b", "rank": 1}]},
        {"prompt": "p", "responses": [{"content": c, "rank": r} for c, r in (("a", 1), ("b", 2), ("c", None))]},
    ]
    trainer_of(train=Dataset.from_list(rows)).create_model_card()
    text = card(tmp_path)[1]
    assert "| with ties | 1 instructions |" in text and "| responses | 4 (2 an instruction) |" in text
    assert "ranked:" not in text  # the rows do not say by whom


def test_nought_is_a_setting_and_what_is_not_set_is_left_out(trainer_of, tmp_path):
    trainer = trainer_of(margin=0.0, mle_weight=0.0, gradient_accumulation_steps=3, max_steps=2)
    trainer.train()
    trainer.create_model_card()
    text = card(tmp_path)[1]
    assert "| `margin` | 0.0 |" in text and "| `mle_weight` | 0.0 |" in text
    assert "| optimiser steps | 2 |" in text and "| instructions a step | 24 |" in text
    assert "`loss_kwargs`" not in text and "| None |" not in text and "| False |" not in text


def test_margins_by_gap_and_the_eval_losses_are_among_the_metrics(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.create_model_card()
    metrics = card(tmp_path)[1].split("## Metrics")[1].split("## Versions")[0]
    for name in ("loss", "eval_held_loss", "rank/margin_gap1", "rank/margin_gap3", "eval_held_rank/margin_gap2"):
        assert f"| `{name}` | " in metrics, name
    assert "train_loss" not in metrics  # the mean over the run, not where it ended


def test_an_adapter_on_a_quantised_base_is_described(tmp_path):
    folder = tmp_path / "base"
    random_llama(len(TOKENIZER)).save_pretrained(folder)
    TunaTrainer(
        str(folder),
        config(tmp_path / "my-run"),
        train_dataset=ranked_dataset(2),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, target_modules=["v_proj", "q_proj"], use_dora=True, lora_dropout=0.0),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ).create_model_card()
    text = card(tmp_path)[1]
    assert "| `type` | LORA |" in text and "| `r` | 4 |" in text and "| `use_dora` | True |" in text
    assert "| `target_modules` | q_proj, v_proj |" in text and "| `bnb_4bit_quant_type` | nf4 |" in text
    assert "- bitsandbytes: " in text and str(tmp_path) not in text


def test_a_table_of_the_card_has_no_gap_in_it(trainer_of, tmp_path):
    trainer = trainer_of(max_steps=1, peft_config=LoraConfig(target_modules=["q_proj"]))
    trainer.train()
    trainer.create_model_card()
    from markdown_it import MarkdownIt

    text = card(tmp_path)[1].split("---", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    stray = [t.content for t in tokens if t.type == "inline" and t.content.startswith("|")]
    assert stray == []  # every row of every table belongs to a table
    assert sum(t.type == "table_open" for t in tokens) == 5  # data, sizes, training, adapter, metrics
