"""Laws of evaluation: the eval loss is that of the whole set, metrics keep its name, the best model comes back."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from peft import LoraConfig
from tiny import chatml_tokenizer, random_llama
from training import config, largest_difference, losses, parameters, ranked_dataset

from tuna_trl import TunaTrainer
from tuna_trl.batch_metrics import BatchSums
from tuna_trl.metrics import kendall_tau, rank_accuracy


TOKENIZER = chatml_tokenizer()
EVAL = ranked_dataset(7, seed=3)


@pytest.fixture
def trainer_of(tmp_path):
    def made(*, eval_dataset=EVAL, compute_metrics=None, peft_config=None, callbacks=None, **fields):
        return TunaTrainer(
            random_llama(len(TOKENIZER)),
            config(tmp_path, **fields),
            train_dataset=ranked_dataset(4),
            eval_dataset=eval_dataset,
            processing_class=TOKENIZER,
            compute_metrics=compute_metrics,
            peft_config=peft_config,
            callbacks=callbacks,
        )

    return made


def without_times(metrics):
    return {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second", "_time"))}


@pytest.mark.parametrize("mle_target", ["all", "best"])
def test_the_eval_loss_is_the_formulas_whatever_the_batch_size(mle_target, trainer_of):
    rows = list(trainer_of().eval_dataset)
    expected = reference.total_loss(random_llama(len(TOKENIZER)), rows, mle_target=mle_target, mle_weight=0.7).item()
    first = None
    for size in (1, 2, 3, 7, 20):
        trainer = trainer_of(per_device_eval_batch_size=size, mle_target=mle_target, mle_weight=0.7)
        metrics = without_times(trainer.evaluate())
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6), size
        first = first or metrics
        assert metrics == pytest.approx(first, rel=1e-5, abs=1e-6), size


def test_metrics_are_means_over_the_rows_that_have_them(trainer_of):
    got = []
    trainer = trainer_of(compute_metrics=lambda p: got.append(p) or {"rows": float(len(p.predictions))})
    metrics = trainer.evaluate()
    scores, ranks = torch.from_numpy(got[0].predictions), torch.from_numpy(got[0].label_ids)
    mask = ranks != -100
    for name, metric in (("accuracy", rank_accuracy), ("kendall_tau", kendall_tau)):
        assert metrics[f"eval_rank/{name}"] == pytest.approx(metric(scores, ranks, mask).nanmean().item(), rel=1e-5)
    best = torch.where(mask & (ranks == 1), scores, torch.nan)[:, 0]
    assert metrics["eval_logps/best"] == pytest.approx(best.mean().item(), rel=1e-5)
    assert metrics["eval_rows"] == 7.0


@pytest.mark.parametrize("size", [1, 3, 7])
def test_compute_metrics_gets_scores_and_ranks_of_every_row(size, trainer_of):
    got = []
    trainer = trainer_of(compute_metrics=lambda p: got.append(p) or {}, per_device_eval_batch_size=size)
    trainer.evaluate()
    scores, ranks = got[0].predictions, got[0].label_ids
    rows = list(trainer.eval_dataset)
    N = max(len(row["ranks"]) for row in rows)
    assert scores.shape == ranks.shape == (7, N) and scores.dtype == np.float32
    for b, row in enumerate(rows):
        n, P = len(row["ranks"]), len(row["prompt_ids"])
        assert ranks[b].tolist() == row["ranks"] + [-100] * (N - n)
        assert (scores[b, n:] == -100).all()
        for k, (ids, length) in enumerate(zip(row["response_ids"], row["score_lengths"], strict=True)):
            logps = reference.sequence_logps(trainer.model, row["prompt_ids"] + ids, list(range(P, P + length)))
            assert scores[b, k] == pytest.approx(sum(logps).item() / length, rel=1e-5)


def test_named_eval_sets_keep_their_names_and_their_numbers(trainer_of):
    sets = {"easy": ranked_dataset(3, seed=1), "hard": ranked_dataset(5, seed=2)}
    together = trainer_of(eval_dataset=sets).evaluate()
    for name, rows in sets.items():
        alone = without_times(trainer_of(eval_dataset=rows).evaluate())
        for key, value in alone.items():
            assert together[key.replace("eval_", f"eval_{name}_", 1)] == pytest.approx(value, rel=1e-6), key
    assert not any(key.startswith(("eval_loss", "eval_rank")) for key in together)
    assert trainer_of(eval_dataset=sets).evaluate("hard").keys() >= {"eval_loss"}


def test_a_fresh_raw_dataset_is_prepared_by_evaluate_and_by_predict(trainer_of):
    trainer = trainer_of()
    expected = trainer.evaluate()["eval_loss"]
    assert trainer_of(eval_dataset=None).evaluate(EVAL)["eval_loss"] == expected
    assert trainer_of(eval_dataset=None).evaluate({"a": EVAL})["eval_a_loss"] == expected
    assert trainer_of(eval_dataset=None).evaluate(EVAL.to_iterable_dataset())["eval_loss"] == pytest.approx(expected)
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == expected
    found = trainer_of(eval_dataset=None).predict(EVAL)
    assert found.metrics["test_loss"] == expected
    assert found.predictions.shape == found.label_ids.shape == (7, 4)


def test_evaluating_leaves_weights_and_gradients_alone(trainer_of):
    trainer = trainer_of()
    before = parameters(trainer.model)
    trainer.evaluate()
    assert largest_difference(parameters(trainer.model), before) == 0
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("metric", ["eval_rank/accuracy", "eval_loss/rank", "rank/margin"])
def test_the_best_model_by_a_metric_of_ours_comes_back(metric, adapter, trainer_of):
    from transformers import TrainerCallback

    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            seen.append((metrics[metric if metric.startswith("eval_") else f"eval_{metric}"], parameters(model)))

    trainer = trainer_of(
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False) if adapter else None,
        callbacks=[Watch()],
        max_steps=5,
        learning_rate=3.0,  # far too much, so that the last model is not the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    values = [value for value, _ in seen]
    best = (min if "loss" in metric else max)(values)
    assert len(seen) == 5 and len(set(values)) > 1
    assert trainer.state.best_metric == best
    assert largest_difference(parameters(trainer.model), seen[values.index(best)][1]) == 0
    assert trainer.evaluate()[metric if metric.startswith("eval_") else f"eval_{metric}"] == pytest.approx(best)


def test_training_logs_one_value_of_each_metric_a_step(trainer_of):
    trainer = trainer_of(max_steps=2)
    trainer.train()
    for name in (
        "loss",
        "rank/accuracy",
        "rank/kendall_tau",
        "rank/margin",
        "loss/rank",
        "loss/mle",
        "logps/best",
        "logps/worst",
        "num_tokens",
    ):
        assert len(losses(trainer, name)) == 2, name
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss/rank"] + first["loss/mle"], rel=1e-5)


def test_sft_data_log_no_rank_metrics(trainer_of):
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": "q", "completion": "the end"}, {"prompt": "p", "completion": "a"}])
    metrics = trainer_of(eval_dataset=rows).evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_loss/mle"])
    assert not any("rank" in name or "worst" in name for name in metrics)


def test_a_row_that_was_repeated_to_fill_a_batch_shows_in_no_metric(trainer_of):
    trainer, rows = trainer_of(), list(trainer_of().eval_dataset)[:3]
    found = []
    for part, weights in ((rows, [1.0, 0.0, 1.0]), ([rows[0], rows[2]], [1.0, 1.0])):
        batch = {**trainer.data_collator(part), "instruction_weights": torch.tensor(weights)}
        trainer._eval_sums = BatchSums()
        trainer.compute_loss(trainer.model.eval(), batch)
        found.append(trainer._eval_sums.reduce(trainer.accelerator))
        counted = batch["attention_mask"][torch.tensor(weights).bool()]
        assert trainer._eval_sums.take_tokens(trainer.accelerator) == counted.sum()
    assert found[0] == pytest.approx(found[1], rel=1e-5)
