"""Each misuse of the trainer is a ValueError or TypeError that names the argument, the value seen and a way out.

The table here holds what no other test holds; the rest stands where the part is tested: arguments in
test_setup_arguments.py, fields in test_config.py, rows in data/test_prepare.py and data/test_schema.py, adapters in
test_adapters.py, tokens in test_tokens.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from peft import LoraConfig, get_peft_model
from tiny import chatml_tokenizer, random_llama
from training import config, ranked_dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    LlamaForCausalLM,
    ProgressCallback,
    T5Config,
    T5ForConditionalGeneration,
)
from trl_rows import assistant, prepared, user

from tuna_trl import RankedCollator, TunaConfig, TunaTrainer
from tuna_trl.argument_checks import check_collator, check_hooks


TOKENIZER = chatml_tokenizer()
V = len(TOKENIZER)
FIELDS = {f.name for f in dataclasses.fields(TunaConfig)}
LORA = LoraConfig(target_modules=["q_proj"])
TWO_BY_BERT = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def unused(*args, **kwargs):
    raise AssertionError("never called")


def rows(*some):
    return Dataset.from_list(list(some))


def with_pad(token):
    tokenizer = chatml_tokenizer()
    tokenizer.add_special_tokens({"pad_token": token})
    return tokenizer


RANKED = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}
SEEN = [
    {"role": role, "content": [{"type": "image"}, {"type": "text", "text": "a"}]} for role in ("user", "assistant")
]

# what it is -> (arguments and fields, error, message); a function makes what is dear to make
MISUSES = {
    # the model
    "an encoder": (
        lambda: dict(model=BertForMaskedLM(BertConfig(vocab_size=V, **TWO_BY_BERT))),
        ValueError,
        "`model`: BertForMaskedLM does not generate text.*AutoModelForCausalLM",
    ),
    "an encoder and a decoder": (
        lambda: dict(
            model=T5ForConditionalGeneration(
                T5Config(vocab_size=V, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0)
            )
        ),
        ValueError,
        "`model`: T5ForConditionalGeneration has an encoder.*AutoModelForCausalLM",
    ),
    "a classifier": (
        lambda: dict(model=AutoModelForSequenceClassification.from_config(random_llama(V).config)),
        ValueError,
        "`model`: LlamaForSequenceClassification does not generate.*AutoModelForCausalLM",
    ),
    "a headless model": (
        lambda: dict(model=random_llama(V).model),
        ValueError,
        "`model`: LlamaModel.*AutoModelForCausal",
    ),
    "the class of a model": (dict(model=LlamaForCausalLM), TypeError, "`model` must be.*got type"),
    "an adapter on an adapter": (
        lambda: dict(model=get_peft_model(random_llama(V), LORA), peft_config=LORA),
        ValueError,
        "`model` is a PeftModel and `peft_config` is given too.*leave `peft_config` out",
    ),
    "the class of an adapter's config": (dict(peft_config=LoraConfig), TypeError, "`peft_config` must be.*got type"),
    "modules that the model has not": (
        dict(peft_config=LoraConfig(target_modules=["nope"])),
        ValueError,
        "Target modules .*nope.* not found in the base model",
    ),
    # how it is loaded
    "a quantisation by name": (
        dict(model="folder", quantization_config="nf4", peft_config=LORA),
        TypeError,
        "`quantization_config` must be.*BitsAndBytesConfig.*got str",
    ),
    "a quantisation by name among the options": (
        dict(model="folder", model_init_kwargs={"quantization_config": "nf4"}, peft_config=LORA),
        TypeError,
        "`quantization_config` must be.*BitsAndBytesConfig.*got str",
    ),
    "4 bits and no adapter": (
        dict(model="folder", quantization_config=BitsAndBytesConfig(load_in_4bit=True)),
        ValueError,
        "purely quantized models. Please attach trainable adapters",
    ),
    "options that are none": (
        dict(model="folder", model_init_kwargs="float32"),
        ValueError,
        "`model_init_kwargs` is 'float32'; give a dict",
    ),
    "an option that is unknown": (
        dict(model="folder", model_init_kwargs={"dtyp": "bfloat16"}),
        ValueError,
        "`model_init_kwargs` has 'dtyp'.*Leave it out",
    ),
    "a dtype that is unknown": (
        dict(model="folder", model_init_kwargs={"dtype": "bf61"}),
        ValueError,
        "`dtype` is 'bf61', expected one of auto, float32",
    ),
    # config, tokenizer
    "the class of a config": (dict(args=TunaConfig), TypeError, "`args` must be a TunaConfig.*got type"),
    "no loss": (dict(ranking_loss=None), ValueError, "`ranking_loss` is None; give the name"),
    "dataset_kwargs by name": (
        dict(dataset_kwargs="skip_prepare_dataset"),
        ValueError,
        "`dataset_kwargs` is 'skip_prepare_dataset'; give a dict",
    ),
    "a tokenizer by name": (dict(processing_class="gpt2"), TypeError, "`processing_class` must be.*got str"),
    "another model's tokenizer": (
        lambda: dict(processing_class=with_pad("<|new|>")),
        ValueError,
        rf"`processing_class`: its pad_token '<.new.>' has id {V}, but `model` has embeddings for {V} tokens.*resize",
    ),
    "a template with a hole": (
        dict(chat_template_path="broken.jinja"),
        ValueError,
        "`chat_template_path` '.*broken.jinja' is no Jinja template: line 2: .*Mend the file",
    ),
    "a template that is no text": (
        dict(chat_template_path="binary.jinja"),
        ValueError,
        "`chat_template_path` '.*binary.jinja' could not be read",
    ),
    # data
    "a stream without an end": (
        lambda: dict(train_dataset=ranked_dataset(2).to_iterable_dataset()),
        ValueError,
        "`train_dataset` is streamed.*`max_steps` is -1. Set `max_steps`",
    ),
    "streams by split": (
        lambda: dict(train_dataset=IterableDatasetDict(a=ranked_dataset(2).to_iterable_dataset())),
        TypeError,
        r"`train_dataset` must be.*Pass one split: train_dataset\['a'\]",
    ),
    "an image": (
        lambda: dict(train_dataset=rows({"prompt": "q", "completion": "a", "image": "a.png"})),
        ValueError,
        "train dataset has a column 'image': vision.*remove_columns.*SFTTrainer",
    ),
    "images": (
        lambda: dict(eval_dataset=rows({**RANKED, "images": ["a.png"]})),
        ValueError,
        "eval dataset has a column 'images': vision.*remove_columns.*SFTTrainer",
    ),
    "an image in a message": (
        dict(train_dataset=rows({"messages": SEEN})),
        ValueError,
        "train dataset has messages with parts of type 'image': vision.*SFTTrainer",
    ),
    "unpaired rows": (
        dict(train_dataset=rows({"prompt": "q", "completion": "a", "label": True})),
        ValueError,
        "`completion` and `label`: unpaired preference rows.*KTOTrainer",
    ),
    "no reference to train on": (
        dict(train_dataset=rows(RANKED), mle_target="reference"),
        ValueError,
        "train row 0: `mle_target='reference'`.*column 'reference'.*`mle_target='best'`",
    ),
    "tools that are no JSON": (
        dict(train_dataset=rows({**RANKED, "tools": "a hammer"})),
        ValueError,
        "train row 0: column 'tools' is 'a hammer', expected a list of tools",
    ),
    "arguments of a template that are none": (
        dict(train_dataset=rows({**RANKED, "chat_template_kwargs": "thinking"})),
        ValueError,
        "train row 0: column 'chat_template_kwargs' is 'thinking', expected a dict",
    ),
    "text as tokens": (
        dict(train_dataset=rows({"input_ids": "the end"})),
        ValueError,
        "train row 0: column 'input_ids' is 'the end', expected a list of token ids.*'text'",
    ),
    "eval rows that nobody prepared": (
        dict(
            train_dataset=rows({"input_ids": [1, 2]}),
            eval_dataset=ranked_dataset(2),
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        ValueError,
        "skip_prepare_dataset.*takes the eval dataset as it is.*'prompt_ids'.*Leave it out",
    ),
    "an eval set that is a number": (
        dict(eval_dataset=3),
        TypeError,
        "eval.*dataset.* must be a datasets.Dataset.*got int",
    ),
    "steps of evaluation and nothing to evaluate": (
        dict(eval_strategy="steps"),
        ValueError,
        "args.eval_strategy.*pass an `eval_dataset`",
    ),
    # functions
    "a text for a formatting function": (
        dict(formatting_func="{prompt}"),
        TypeError,
        "`formatting_func` must be a function of a row.*got str",
    ),
    "a formatting function that gives a list": (
        dict(formatting_func=lambda row: ["a"]),
        ValueError,
        r"train row 0: column 'text' is \['a'\], expected a string",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("a-model")
    random_llama(V).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_named_with_the_value_seen_and_the_way_out(name, folder, tmp_path):
    changes, error, message = MISUSES[name]
    changes = dict(changes() if callable(changes) else changes)
    (tmp_path / "broken.jinja").write_text("{{ messages }}\n{% for %}")
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    if changes.get("model") == "folder":
        changes["model"] = folder
    if "chat_template_path" in changes:
        changes["chat_template_path"] = str(tmp_path / changes["chat_template_path"])

    def make():
        fields = {field: changes.pop(field) for field in list(changes) if field in FIELDS}
        known = dict(model=random_llama(V), train_dataset=ranked_dataset(2), processing_class=TOKENIZER)
        args = changes.pop("args", None) or config(tmp_path / "run", **fields)
        return TunaTrainer(args=args, **{**known, **changes})

    with pytest.raises(error, match=f"(?s){message}"):
        make()


def test_a_misspelt_key_of_dataset_kwargs_is_said_to_be_ignored_as_trl_ignores_it(tmp_path, caplog):
    TunaTrainer(
        random_llama(V),
        config(tmp_path, dataset_kwargs={"skip_prepare_dataset": False, "skip_prepare": True}),
        train_dataset=ranked_dataset(2),
        processing_class=TOKENIZER,
    )
    assert "`dataset_kwargs` has 'skip_prepare', which is ignored" in caplog.text
    assert "Did you mean 'skip_prepare_dataset'" in caplog.text


# ---- What transformers takes without looking ----

SGD = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
HOOKS = {
    "a collator that is none": (dict(data_collator=3), TypeError, "`data_collator` must be a function.*got int"),
    "metrics that are none": (dict(compute_metrics={"a": 1}), TypeError, "`compute_metrics` must be.*got dict"),
    "one callback": (
        dict(callbacks=ProgressCallback()),
        TypeError,
        r"`callbacks` must be a list, got Progress.*\[callback\]",
    ),
    "a function among the callbacks": (
        dict(callbacks=[ProgressCallback(), unused]),
        TypeError,
        "`callbacks` has .*unused.*each must be a transformers.TrainerCallback",
    ),
    "an optimizer alone": (dict(optimizers=SGD), TypeError, "`optimizers` must be a pair.*got SGD.*None"),
    "a pair of one": (dict(optimizers=(SGD,)), TypeError, "`optimizers` must be a pair.*got tuple"),
    "a class of optimizers alone": (
        dict(optimizer_cls_and_kwargs=torch.optim.SGD),
        TypeError,
        "`optimizer_cls_and_kwargs` must be a pair.*got type.*torch.optim.SGD",
    ),
    "two optimizers": (
        dict(optimizers=(SGD, None), optimizer_cls_and_kwargs=(torch.optim.SGD, {})),
        ValueError,
        "`optimizers` and `optimizer_cls_and_kwargs` both.*Keep one",
    ),
    "an eval set by name": (dict(eval_dataset="a/name"), TypeError, "`eval_dataset` must be.*got str.*load_dataset"),
    "rows for an eval set": (
        dict(eval_dataset={"held": [RANKED]}),
        TypeError,
        r"`eval_dataset\['held'\]` must be.*got list. Pass Dataset.from_list",
    ),
    "an eval set of nothing": (
        dict(eval_dataset={"held": None}),
        TypeError,
        r"`eval_dataset\['held'\]`.*got NoneType",
    ),
    "no eval set in a dict": (dict(eval_dataset={}), ValueError, "`eval_dataset` is an empty dict"),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_wrong_hook_is_named_before_it_is_called(name):
    arguments, error, message = HOOKS[name]
    with pytest.raises(error, match=message):
        check_hooks(**arguments)


def test_right_hooks_pass():
    check_hooks()
    check_hooks(
        data_collator=RankedCollator(0),
        compute_metrics=lambda prediction: {},
        callbacks=[ProgressCallback(), ProgressCallback],
        optimizers=(SGD, None),
        eval_dataset=DatasetDict(a=ranked_dataset(2)),
    )
    check_hooks(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}), eval_dataset=ranked_dataset(2))


def flat(batch):
    return {name: value.flatten(0, 1) if value.ndim > 1 else value for name, value in batch.items()}


COLLATORS = {
    "TRL's": (DataCollatorForLanguageModeling(TOKENIZER, mlm=False), "fails on tokenised rows.*RankedCollator"),
    "no batch": (lambda some: some, "'input_ids' is missing for 2 rows"),
    "no ranks": (
        lambda some: {k: v for k, v in RankedCollator(0)(some).items() if k != "ranks"},
        "'ranks' is missing.*RankedCollator",
    ),
    "responses as rows": (
        lambda some: flat(RankedCollator(0)(some)),
        r"'input_ids' has shape \(\d+, \d+\).*\(B, N, L\)",
    ),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_a_collator_of_another_batch_is_named_before_the_first_step(name, tmp_path):
    collator, message = COLLATORS[name]
    trainer = TunaTrainer(
        random_llama(V), config(tmp_path), train_dataset=ranked_dataset(3), processing_class=TOKENIZER
    )
    check_collator(trainer.data_collator, trainer.train_dataset)
    check_collator(trainer.data_collator, trainer.train_dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match=f"`data_collator`.*{message}"):
        check_collator(collator, trainer.train_dataset)


def test_a_conversation_without_its_images_is_text():
    assert len(prepared([{"messages": [user("q"), assistant("a")], "images": []}])) == 1
