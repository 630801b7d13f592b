"""A benchmark at every evaluation of a training run."""

from __future__ import annotations

import copy

import pytest
import torch
from training import config, ranked_dataset

from tuna_trl import TunaTrainer
from tuna_trl.data.schema import normalise_row
from tuna_trl.errors import InputError
from tuna_trl.evaluation.callback import BenchmarkCallback
from tuna_trl.evaluation.lmentry.data import Example
from tuna_trl.evaluation.lmentry.runner import LMentry
from tuna_trl.evaluation.lmentry.tasks import CORE
from tuna_trl.evaluation.ranked import RankedData


@pytest.fixture
def make(tiny_llama, tiny_tokenizer, tmp_path):
    def trainer():
        data = ranked_dataset(4)
        args = config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
        model = copy.deepcopy(tiny_llama)
        return TunaTrainer(
            model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tiny_tokenizer
        )

    return trainer


@pytest.fixture
def trainer(make):
    return make()


def test_the_figures_stand_in_the_log_of_every_evaluation_and_training_goes_on_as_before(trainer, make):
    rows = [normalise_row(row, f"row {i}") for i, row in enumerate(ranked_dataset(4))]
    trainer.add_callback(BenchmarkCallback(trainer, RankedData(rows), prefix="ranks"))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_ranks_pair_accuracy" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(e["eval_ranks_pair_accuracy_low"] <= e["eval_ranks_pair_accuracy"] <= 1 for e in logged)
    assert "eval_ranks_top_1" in trainer.evaluate()
    without = make()
    without.train()
    for own, other in zip(trainer.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_generated_answers_are_scored_with_the_benchmarks_own_template(trainer):
    metadata = {"template_id": 0, "word": "ab", "answer": "a", "sentence": "a b", "letter": "a"}
    examples = [Example(task, "1", "Q?", metadata) for task in ("first_letter", "starts_with_letter")]
    assert set(metadata) and {e.task for e in examples} <= set(CORE)
    callback = BenchmarkCallback(trainer, LMentry(examples, max_new_tokens=3), prefix="lmentry")
    assert callback.figures() == {}  # two tasks have neither accuracy nor score


def test_several_processes_are_refused(trainer, monkeypatch):
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(InputError, match="one process"):
        BenchmarkCallback(trainer, None, prefix="x")
