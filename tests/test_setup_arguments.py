"""Laws of the trainer's arguments: each is honoured or refused by name, and none but the model is changed."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import CHATML, LLAMA3, chatml_tokenizer, llama3_tokenizer, random_llama
from training import config, ranked_dataset
from transformers import BitsAndBytesConfig, TrainingArguments
from trl import SFTConfig

from tuna_trl import InputError, TunaConfig, TunaTrainer


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    """A model and its tokenizer on disk."""
    tiny_llama.generation_config.eos_token_id = [7, 9]
    tiny_llama.save_pretrained(tmp_path / "a-model")
    tiny_tokenizer.save_pretrained(tmp_path / "a-model")
    return str(tmp_path / "a-model")


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, tmp_path):
    """`make(**changes)`: a trainer on small ranked data; args may be given as fields."""

    def made(**changes):
        fields = {k: changes.pop(k) for k in list(changes) if k in {f.name for f in dataclasses.fields(TunaConfig)}}
        known = dict(
            model=tiny_llama,
            args=config(tmp_path / "out", **fields),
            train_dataset=ranked_dataset(4),
            processing_class=tiny_tokenizer,
        )
        return TunaTrainer(**{**known, **changes})

    return made


# ---- Nothing is changed ----


def snapshot(value):
    return {f.name: copy.deepcopy(getattr(value, f.name)) for f in dataclasses.fields(value)}


@pytest.mark.parametrize("kind", [TunaConfig, SFTConfig, TrainingArguments])
def test_no_argument_but_the_model_is_changed_by_a_whole_run(kind, tiny_llama, tmp_path):
    known = {f.name for f in dataclasses.fields(kind)}
    fields = config(
        tmp_path, max_steps=1, eos_token="<|pad|>", shuffle_dataset=True, model_init_kwargs={"dtype": "auto"}
    )
    args = kind(**{f.name: getattr(fields, f.name) for f in dataclasses.fields(fields) if f.init and f.name in known})
    tokenizer = chatml_tokenizer()
    tokenizer.pad_token = None
    lora = LoraConfig(target_modules=None)  # peft fills in the modules, the model's name and more
    train, evaluation = ranked_dataset(4), {"a": ranked_dataset(2), "b": ranked_dataset(3)}
    callbacks, loss_kwargs = [], {}
    before = snapshot(args), snapshot(lora), tokenizer.special_tokens_map, tokenizer.chat_template, len(tokenizer)
    prints = train._fingerprint, {name: part._fingerprint for name, part in evaluation.items()}
    trainer = TunaTrainer(
        tiny_llama,
        args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "saved"))
    after = snapshot(args), snapshot(lora), tokenizer.special_tokens_map, tokenizer.chat_template, len(tokenizer)
    for old, new in zip(before, after, strict=True):
        assert new == old
    assert (train._fingerprint, {name: part._fingerprint for name, part in evaluation.items()}) == prints
    assert evaluation.keys() == {"a", "b"} and callbacks == [] and loss_kwargs == {}
    assert trainer.args is not args and trainer.processing_class is not tokenizer


def test_a_stream_turns_the_dispatcher_off_in_a_copy(make, tmp_path):
    args = config(tmp_path, max_steps=1, accelerator_config={"dispatch_batches": True})
    trainer = make(args=args, train_dataset=ranked_dataset(4).to_iterable_dataset())
    assert trainer.args.accelerator_config.dispatch_batches is False
    assert args.accelerator_config.dispatch_batches is True


def test_no_args_name_the_run_after_the_model(folder):
    from tuna_trl.setup_arguments import copied_config

    assert copied_config(None, folder, None).output_dir == "a-model-Tuna"
    assert copied_config(None, "org/Model-1B", None).output_dir == "Model-1B-Tuna"


# ---- The model ----


def test_a_model_by_name_is_loaded_with_its_tokenizer_as_model_init_kwargs_say(folder, tmp_path):
    trainer = TunaTrainer(
        folder, config(tmp_path, model_init_kwargs={"dtype": "bfloat16"}), train_dataset=ranked_dataset(2)
    )
    assert trainer.model.dtype == torch.bfloat16
    assert trainer.processing_class.chat_template == CHATML
    assert TunaTrainer(folder, config(tmp_path), train_dataset=ranked_dataset(2)).model.dtype == torch.float32


def test_an_adapter_by_name_goes_on_training(folder, tmp_path):
    base = random_llama(len(chatml_tokenizer()))
    base.save_pretrained(folder)
    from transformers import AutoModelForCausalLM

    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    trainer = TunaTrainer(str(tmp_path / "adapter"), config(tmp_path), train_dataset=ranked_dataset(2))
    assert isinstance(trainer.model, PeftModel)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("model", [None, 3, {"a": 1}, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_named(model, make):
    with pytest.raises(TypeError, match=f"`model` must be.*model.*got {type(model).__name__}"):
        make(model=model)


def test_a_name_that_loads_nothing_is_named(make, tmp_path):
    with pytest.raises(InputError, match="`model` '.*no-model' could not be loaded.*'embedded'"):
        make(model=str(tmp_path / "no-model"))


def test_quantisation_given_twice_is_refused(folder, make):
    quantised = BitsAndBytesConfig(load_in_4bit=True)
    with pytest.raises(InputError, match="`quantization_config` is given twice.*model_init_kwargs"):
        make(model=folder, quantization_config=quantised, model_init_kwargs={"quantization_config": quantised})


def test_loading_options_of_a_loaded_model_are_said_to_be_ignored(make, caplog):
    make(model_init_kwargs={"dtype": "bfloat16"}, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert "`model_init_kwargs` is ignored" in caplog.text and "`quantization_config` is ignored" in caplog.text


def test_the_seed_decides_the_adapter(make):
    lora = LoraConfig(target_modules=["q_proj"])

    def drawn(seed):
        torch.manual_seed(torch.seed())
        model = make(seed=seed, peft_config=lora, model=random_llama(len(chatml_tokenizer()))).model
        return next(p for name, p in model.named_parameters() if "lora_A" in name)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_max_length_is_lowered_to_the_models_positions_and_longer_rows_are_dropped(make, caplog):
    rows = [{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}, {"prompt": "q" * 600, "responses": ["a"]}]
    trainer = make(train_dataset=Dataset.from_list(rows), max_length=1024)
    assert trainer.args.max_length == 512 and len(trainer.train_dataset) == 1
    assert "`max_length` is 1024, but the model has 512 positions; 512 is used" in caplog.text
    caplog.clear()
    assert make(max_length=100).args.max_length == 100 and "positions" not in caplog.text
    with pytest.raises(InputError, match="No row of the train dataset is left.*`max_length` = 512"):
        make(train_dataset=Dataset.from_list(rows[1:]), max_length=None)


# ---- Tokenizer, template, tokens ----


def test_tokenizer_and_model_agree_on_end_and_padding(make, tiny_tokenizer, tiny_llama):
    tiny_llama.generation_config.eos_token_id = [7, 9]
    tiny_tokenizer.pad_token = None
    trainer = make(eos_token="<|im_start|>")
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert trainer.processing_class.eos_token == "<|im_start|>"
    assert trainer.model.config.eos_token_id == end
    assert trainer.model.generation_config.eos_token_id == [end, 7, 9]  # whatever ended generation before still does
    assert trainer.model.config.pad_token_id == trainer.model.generation_config.pad_token_id == end
    assert tiny_tokenizer.eos_token == "<|im_end|>" and tiny_tokenizer.pad_token is None


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated")
def test_a_token_that_is_not_in_the_vocabulary_is_named(name, make):
    with pytest.raises(InputError, match=f"`{name}` is '<nowhere>', which is not in the vocabulary"):
        make(**{name: "<nowhere>"})


def test_a_tokenizer_without_pad_and_end_token_is_named(make, tiny_tokenizer):
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token = None
    with pytest.raises(InputError, match="`processing_class` has neither a pad token nor an end token"):
        make()


def test_a_jinja_file_becomes_the_template(make, tmp_path, tiny_tokenizer):
    path = tmp_path / "other.jinja"
    path.write_text(CHATML + "{# other #}")
    assert make(chat_template_path=str(path)).processing_class.chat_template.endswith("{# other #}")
    assert tiny_tokenizer.chat_template == CHATML
    with pytest.raises(InputError, match="`chat_template_path` '.*none.jinja' could not be read"):
        make(chat_template_path=str(tmp_path / "none.jinja"))
    with pytest.raises(InputError, match="`chat_template_path` '.*nothing' is neither a .jinja file nor a tokenizer"):
        make(chat_template_path=str(tmp_path / "nothing"))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_a_cloned_template_brings_its_tokens_and_they_are_trained(adapter, make, tmp_path):
    llama3_tokenizer().save_pretrained(tmp_path / "llama3")
    lora = LoraConfig(target_modules=["q_proj"])
    trainer = make(
        chat_template_path=str(tmp_path / "llama3"), peft_config=lora if adapter else None, max_steps=1, max_length=400
    )
    tokenizer = trainer.processing_class
    assert tokenizer.chat_template == LLAMA3 and tokenizer.eos_token == "<|eot_id|>"
    new = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"])
    embeddings = trainer.model.get_input_embeddings()
    assert embeddings.weight.shape[0] == len(tokenizer)
    before = embeddings(torch.tensor(new)).detach().clone()
    trainer.train()
    after = embeddings(torch.tensor(new)).detach()
    assert (after != before).any(1).tolist()[:2] == [True, True]
    assert lora.trainable_token_indices is None and lora.modules_to_save is None


def test_assistant_only_loss_takes_trls_marked_twin_of_a_known_template(make, tmp_path):
    from importlib import resources

    template = resources.files("trl").joinpath("chat_templates/qwen2_5.jinja").read_text(encoding="utf-8")
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = template
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "the end"}]
    rows = Dataset.from_list([{"messages": turns}])
    trainer = make(processing_class=tokenizer, train_dataset=rows, assistant_only_loss=True)
    (labels,) = trainer.train_dataset[0]["response_labels"]
    assert tokenizer.decode([i for i in labels if i != -100]) == "\nthe end<|im_end|>\n"  # as TRL marks it
    assert trainer.processing_class.chat_template == template  # what is saved is the user's
    tokenizer.chat_template = CHATML + "{# unknown to TRL #}"
    with pytest.raises(InputError, match="assistant_only_loss=True.*generation.*chat_template_path"):
        make(processing_class=tokenizer, train_dataset=rows, assistant_only_loss=True)


def test_a_missing_or_wrong_tokenizer_is_named(make, tiny_llama):
    with pytest.raises(InputError, match="`processing_class` is required: the model does not say where it came from"):
        make(processing_class=None)
    with pytest.raises(TypeError, match="`processing_class` must be a tokenizer.*got dict"):
        make(processing_class={"a": 1})


# ---- What is refused ----


def unused(*args, **kwargs):
    raise AssertionError("never called")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"compute_loss_func": unused}, InputError, "`compute_loss_func` is not supported.*ranking_loss"),
        ({"preprocess_logits_for_metrics": unused}, InputError, "`preprocess_logits_for_metrics`.*compute_metrics"),
        (
            {"formatting_func": unused, "completion_only_loss": True},
            InputError,
            "`formatting_func`.*`completion_only_loss=True`",
        ),
        ({"train_dataset": None}, InputError, "`train_dataset` is required"),
        ({"train_dataset": [{"prompt": "q"}]}, TypeError, "`train_dataset` must be.*list. Pass Dataset.from_list"),
        (
            {"train_dataset": DatasetDict(train=ranked_dataset(2))},
            TypeError,
            r"`train_dataset` must be.*DatasetDict. Pass one split: train_dataset\['train'\]",
        ),
        ({"train_dataset": "a/name"}, TypeError, "`train_dataset` must be.*got str"),
        ({"eval_dataset": [{"prompt": "q"}]}, TypeError, "`eval_dataset` must be.*list. Pass Dataset.from_list"),
        ({"eval_dataset": {"a": [1]}}, TypeError, r"`eval_dataset\['a'\]` must be a datasets.Dataset.*got list"),
        ({"train_dataset": Dataset.from_list([])}, InputError, "The train dataset is empty"),
        ({"eval_dataset": Dataset.from_list([])}, InputError, "The eval dataset is empty"),
        ({"args": {"output_dir": "x"}}, TypeError, "`args` must be a TunaConfig.*got dict"),
        ({"peft_config": {"r": 8}}, TypeError, "`peft_config` must be a peft.PeftConfig.*got dict"),
        (
            {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
            InputError,
            "`peft_config`: PromptTuningConfig puts virtual tokens.*Use LoRA",
        ),
        ({"ranking_loss": "tunna"}, InputError, "`ranking_loss` is 'tunna'.*Did you mean 'tuna'"),
        ({"loss_kwargs": {"margn": 0.2}}, InputError, "takes no 'margn'.*Did you mean 'margin'"),
    ],
)
def test_a_wrong_argument_is_named_with_the_way_out(changes, error, message, make):
    with pytest.raises(error, match=message):
        make(**changes)


def test_an_unknown_loss_is_named_before_a_model_is_loaded(make, monkeypatch):
    import tuna_trl.setup_arguments

    monkeypatch.setattr(tuna_trl.setup_arguments, "load_model", unused)
    with pytest.raises(InputError, match="`ranking_loss` is 'tunna'"):
        make(model="a/name", ranking_loss="tunna")


def test_a_dataset_with_a_transform_is_refused_unless_it_makes_tokenised_rows_itself(make):
    rows = ranked_dataset(3)
    with pytest.raises(InputError, match="train dataset has a transform.*dataset.map.*skip_prepare_dataset"):
        make(train_dataset=rows.with_transform(lambda batch: batch))
    with pytest.raises(InputError, match="eval dataset has a transform"):
        make(eval_dataset=rows.with_transform(lambda batch: batch))
    tokenised = make().train_dataset.with_transform(lambda batch: batch)
    trainer = make(train_dataset=tokenised, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=1)
    trainer.train()
    assert trainer.train_dataset is tokenised


def test_rows_of_sft_that_skip_preparation_train_as_they_are(make):
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [5, 6, 7]}])
    trainer = make(train_dataset=rows, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted((batch["labels"] != -100).sum((1, 2)).tolist()) == [2, 3]
    trainer.train()


def test_rows_that_skip_preparation_without_tokens_are_named(make):
    with pytest.raises(InputError, match="skip_prepare_dataset.*train dataset.*'prompt_ids'"):
        make(dataset_kwargs={"skip_prepare_dataset": True})


def test_assistant_only_loss_needs_conversations(make):
    rows = Dataset.from_list([{"prompt": "q", "completion": "a"}])
    with pytest.raises(InputError, match="assistant_only_loss=True.*not conversational"):
        make(train_dataset=rows, assistant_only_loss=True)


def test_several_gpus_of_one_process_are_refused(make, tmp_path):
    args = config(tmp_path)
    args._n_gpu = 2
    with pytest.raises(InputError, match="2 GPUs are visible to one process.*accelerate launch.*CUDA_VISIBLE_DEVICES"):
        make(args=args)
