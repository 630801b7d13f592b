"""Laws of the collapse alarm: it speaks once, when likelihood has fallen by a nat, and not for less."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import chatml_tokenizer, random_llama
from training import config, ranked_dataset
from transformers import TrainerState

from tuna_trl import TunaTrainer
from tuna_trl.callbacks import FALL, WINDOW, CollapseAlarm


ARGS = SimpleNamespace(learning_rate=1e-3, mle_weight=0.5)


def run(values, *, history=(), alarm=None, main=True):
    """Log the values in turn; the alarm that has heard them."""
    alarm = alarm or CollapseAlarm()
    state = TrainerState(log_history=list(history), is_world_process_zero=main)
    for step, value in enumerate(values, start=1):
        logs = {"logps/best": value, "step": step}
        state.log_history.append(logs)
        state.global_step = step
        alarm.on_log(ARGS, state, None, logs=logs)
    return alarm


def test_it_speaks_once_when_the_mean_has_fallen_a_nat(caplog):
    run([-1.0] + [-2.1] * 30)
    assert caplog.text.count("Likelihood collapse") == 1
    assert "from -1.00 to -2.10 nats a token" in caplog.text
    assert "`learning_rate` (now 0.001)" in caplog.text and "`mle_weight` (now 0.5)" in caplog.text


@pytest.mark.parametrize(
    "values",
    [[-1.0] + [-1.0 - FALL] * 30, [-1.0, -1.9] * 10, [-5.0] * 20],
    ids=["exactly a nat", "half of them", "low but level"],
)
def test_it_is_silent_for_less(values, caplog):
    run(values)
    assert "collapse" not in caplog.text


def test_one_bad_entry_is_no_collapse_and_it_waits_for_a_full_window(caplog):
    run([-1.0] * WINDOW + [-4.0] + [-1.0] * WINDOW)
    run([-1.0] + [-9.0] * (WINDOW - 2))
    assert "collapse" not in caplog.text
    run([-1.0] + [-9.0] * WINDOW)
    assert "collapse" in caplog.text


def test_a_resumed_run_remembers_where_the_first_one_began(caplog):
    before = [{"logps/best": -1.0, "step": 0}, {"loss": 1.0, "step": 1}]
    run([-2.5] * WINDOW, history=before)
    assert "from -1.00 to -2.50" in caplog.text


def test_only_the_main_process_speaks(caplog):
    run([-1.0] + [-9.0] * 9, main=False)
    assert "collapse" not in caplog.text


def test_entries_without_the_value_are_passed_over(caplog):
    alarm = CollapseAlarm()
    alarm.on_log(ARGS, TrainerState(), None, logs={"eval_logps/best": -9.0})
    alarm.on_log(ARGS, TrainerState(), None, logs=None)
    run([-1.0] * 9, alarm=alarm)
    assert "collapse" not in caplog.text


def test_every_trainer_has_it_and_a_run_that_unlearns_sets_it_off(tmp_path, caplog):
    # no likelihood term, a vast margin, a rate far too high
    tokenizer = chatml_tokenizer()
    trainer = TunaTrainer(
        random_llama(len(tokenizer)),
        config(tmp_path, mle_weight=0.0, margin=50.0, learning_rate=0.05, max_steps=25, optim="adamw_torch"),
        train_dataset=ranked_dataset(4),
        processing_class=tokenizer,
    )
    trainer.train()
    assert "Likelihood collapse at step" in caplog.text
