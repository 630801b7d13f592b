"""Laws of the config: every SFTConfig field is there, honoured or refused by name; an upgrade loses nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings

import pytest
from training import config
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig, TrlParser

from tuna_trl import InputError, TunaConfig
from tuna_trl.config import REFUSED_FIELDS, upgrade_config


OWN = {f.name for f in dataclasses.fields(TunaConfig)} - {f.name for f in dataclasses.fields(SFTConfig)}


def values(args):
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}


def test_every_field_of_sft_config_is_there_with_its_default():
    ours = {f.name: f for f in dataclasses.fields(TunaConfig)}
    for theirs in dataclasses.fields(SFTConfig):
        assert ours[theirs.name].default == theirs.default, theirs.name


def test_what_a_default_config_becomes_is_what_sft_config_becomes(tmp_path):
    ours = values(TunaConfig(output_dir=str(tmp_path), use_cpu=True))
    theirs = values(SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    assert {name: ours[name] for name in theirs} == theirs


def test_every_field_of_our_own_is_documented_and_has_help():
    fields = {f.name: f for f in dataclasses.fields(TunaConfig)}
    for name in OWN:
        assert f"{name} (`" in TunaConfig.__doc__, name
        assert fields[name].metadata["help"].endswith("."), name


def test_bf16_is_off_where_the_hardware_has_none_and_stays_as_asked(tmp_path):
    assert TunaConfig(output_dir=str(tmp_path), use_cpu=True).bf16 is False
    assert TunaConfig(output_dir=str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_a_config_of_ones_own_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = TunaConfig(output_dir=str(tmp_path), use_cpu=True)
        assert made.activation_checkpointing is True
        made = TunaConfig(output_dir=str(tmp_path), use_cpu=True, activation_checkpointing=False)
        assert made.activation_checkpointing is False


def test_the_old_names_of_activation_checkpointing_still_count(tmp_path):
    made = TunaConfig(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=False)
    assert made.activation_checkpointing is False and made.gradient_checkpointing is False
    kwargs = {"use_reentrant": False}
    made = TunaConfig(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing_kwargs=kwargs)
    assert made.activation_checkpointing_kwargs == kwargs


# ---- Upgrades ----


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments])
def test_an_upgrade_keeps_every_value(kind, checkpointing, tmp_path):
    known = {f.name for f in dataclasses.fields(kind)}
    given = dict(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        eos_token="<|the end|>",
        hub_token="a-token",
        hub_model_id="me/mine",
        learning_rate=3e-4,
        max_steps=17,
        warmup_steps=3,
        logging_steps=7,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=5,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 2},
        optim="adafactor",
        eval_strategy="steps",
        save_strategy="best",
        load_best_model_at_end=False,
        metric_for_best_model="eval_rank/accuracy",
        accelerator_config={"split_batches": True},
        report_to=[],
        run_name="a run",
        seed=5,
        data_seed=6,
        max_length=77,
        model_init_kwargs={"dtype": "bfloat16"},
        dataset_kwargs={"skip_prepare_dataset": True},
        dataset_text_field="story",
        completion_only_loss=True,
        assistant_only_loss=True,
        loss_type="dft",
        pad_to_multiple_of=8,
        shuffle_dataset=True,
        trust_remote_code=True,
    )
    args = kind(**{name: value for name, value in given.items() if name in known})
    before = copy.deepcopy(values(args))
    upgraded = upgrade_config(args, "unused")
    assert type(upgraded) is TunaConfig
    assert {name: getattr(upgraded, name) for name in before} == before
    assert values(args) == before
    assert not any(str(value).startswith("<EOS") for value in values(upgraded).values())


def test_an_upgrade_repeats_no_warning_that_was_given_already(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upgrade_config(args, "unused")


def test_our_own_config_passes_through_and_none_becomes_a_default(tmp_path):
    args = config(tmp_path)
    assert upgrade_config(args, "unused") is args
    assert upgrade_config(None, "a-model-Tuna").output_dir == "a-model-Tuna"


@pytest.mark.parametrize("args", [{"output_dir": "x"}, "x", 5])
def test_what_is_no_config_is_named(args):
    with pytest.raises(TypeError, match=f"`args` must be a TunaConfig, SFTConfig.*got {type(args).__name__}"):
        upgrade_config(args, "unused")


def test_another_trainers_loss_is_not_taken_for_a_likelihood(tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(InputError, match="`loss_type` is .*sigmoid.*`ranking_loss`"):
        upgrade_config(args, "unused")


# ---- Refusals ----


REFUSED = {
    "packing": True,
    "eval_packing": True,
    "padding_free": True,
    "label_smoothing_factor": 0.1,
    "truncation_mode": "keep_end",
    "router_aux_loss_coef": 0.01,
    "use_liger_kernel": True,
}
HARMLESS = {
    "packing": False,
    "eval_packing": False,
    "padding_free": False,
    "label_smoothing_factor": 0.0,
    "truncation_mode": "keep_start",
    "router_aux_loss_coef": 0.0,
    "use_liger_kernel": False,
    "packing_strategy": "wrapped",
}


def test_the_refused_fields_are_all_tried_here():
    assert REFUSED.keys() == REFUSED_FIELDS.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_ranked_batch_cannot_honour_is_refused_with_the_reason(name, tmp_path):
    with pytest.raises(InputError, match=rf"`{name}` = .* is not supported by TunaTrainer: \w+"):
        config(tmp_path, **{name: REFUSED[name]})


def test_what_is_switched_off_is_not_refused(tmp_path):
    config(tmp_path, **HARMLESS)


def test_selective_checkpointing_is_refused_and_its_absence_taken_out(tmp_path):
    with pytest.raises(InputError, match="`activation_checkpointing_kwargs`.*'selective'"):
        config(tmp_path, activation_checkpointing_kwargs={"selective": True})
    given = {"selective": False, "use_reentrant": False}
    assert config(tmp_path, activation_checkpointing_kwargs=given).activation_checkpointing_kwargs == {
        "use_reentrant": False
    }
    assert given == {"selective": False, "use_reentrant": False}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"metric_for_best_model": "eval_mean_token_accuracy"},
            "`metric_for_best_model` is 'eval_mean_token_accuracy', which needs logits.*'eval_loss'",
        ),
        ({"metric_for_best_model": "eval_valid_entropy"}, "`metric_for_best_model` is 'eval_valid_entropy'"),
        ({"pair_reduction": "mean"}, "`pair_reduction` is 'mean', expected one of gap_mean, sum"),
        ({"mle_target": "bst"}, "`mle_target` is 'bst'.*Did you mean 'best'"),
        ({"batch_layout": "packed"}, "`batch_layout` is 'packed', expected one of auto, shared_prompt, rows"),
        (
            {"excess_length_strategy": "cut"},
            "`excess_length_strategy` is 'cut', expected one of drop, truncate, raise",
        ),
        ({"margin": -0.1}, "`margin` is -0.1.*>= 0"),
        ({"margin": "wide"}, "`margin` is 'wide'.*number"),
        ({"margin": math.nan}, "`margin` is nan"),
        ({"margin": math.inf}, "`margin` is inf"),
        ({"mle_weight": None}, "`mle_weight` is None.*number"),
        ({"length_exponent": -1}, "`length_exponent` is -1"),
        ({"max_responses": 0}, "`max_responses` is 0; use at least 1"),
        ({"max_responses": 2.5}, "`max_responses` is 2.5"),
        ({"max_length": 1}, "`max_length` is 1"),
        ({"max_length": "long"}, "`max_length` is 'long'"),
        ({"loss_type": "sigmoid"}, "`loss_type` is 'sigmoid'.*'nll' or 'dft'.*`ranking_loss`"),
        ({"loss_kwargs": ["margin"]}, "`loss_kwargs` is .*'margin'.*dict"),
        ({"ranking_loss": 3}, "`ranking_loss` is 3.*name.*callable"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)


# ---- Command line, JSON ----


def test_a_command_line_parses_and_renders_its_help(tmp_path, capsys):
    parser = TrlParser(TunaConfig)
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--margin", "0.3", "--loss_kwargs", '{"top_k": 2}']
    (made,) = parser.parse_args_and_config([*line, "--max_responses", "4", "--ranking_loss", "listmle"])
    assert (made.margin, made.loss_kwargs, made.max_responses, made.ranking_loss) == (0.3, {"top_k": 2}, 4, "listmle")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in OWN)


def test_a_yaml_file_of_sft_keys_parses(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nmax_length: 99\npacking: false\nmle_target: best\n")
    (made,) = TrlParser(TunaConfig).parse_args_and_config(["--config", str(path)])
    assert (made.max_length, made.mle_target) == (99, "best")


def test_a_config_with_a_callable_loss_still_becomes_json(tmp_path):
    def my_loss(logps, lengths, ranks, mask, **kwargs):
        return logps.sum(1)

    made = config(tmp_path, ranking_loss=my_loss, loss_kwargs={"a": 1})
    assert json.loads(made.to_json_string())["ranking_loss"] == "my_loss"
    assert made.ranking_loss is my_loss


@pytest.mark.parametrize(
    "metric, greater",
    [("loss", False), ("eval_loss/rank", False), ("eval_valid_loss/mle", False), ("rank/accuracy", True)],
)
def test_of_a_loss_less_is_better_whatever_it_is_called(metric, greater, tmp_path):
    assert config(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    assert config(tmp_path, metric_for_best_model=metric, greater_is_better=True).greater_is_better is True
