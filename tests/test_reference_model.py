"""The reference model: the same numbers from the adapter-off model, a frozen copy and a precomputed column."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from training import config

from tuna_trl import InputError, TunaTrainer
from tuna_trl.losses import register_ranking_loss


ROWS = [
    {
        "prompt": f"say {i}",
        "responses": [{"content": f"it is {'the ' * k}{i}", "rank": k + 1} for k in range(2 + i % 3)],
    }
    for i in range(7)
]


def trainer(model, tokenizer, folder, *, peft=False, train=(), **changes):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=not peft) if peft else None
    args = config(folder, **{"ranking_loss": "dpo_pl", "mle_weight": 0.0, **changes})
    return TunaTrainer(
        copy.deepcopy(model), args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, peft_config=lora
    )


def first_losses(made):
    made.train()
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def test_the_reference_is_the_model_before_the_first_step(tiny_llama, tiny_tokenizer, tmp_path):
    # at step 1 policy and reference agree: every difference is 0, and N responses cost log 1 + ... + log N
    made = trainer(tiny_llama, tiny_tokenizer, tmp_path, num_train_epochs=2)
    losses = first_losses(made)
    expected = sum(sum(torch.log(torch.tensor(float(k))) for k in range(2, 3 + i % 3)) for i in range(7)) / 7
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[1] < losses[0]


def test_frozen_copy_and_precomputed_column_train_alike(tiny_llama, tiny_tokenizer, tmp_path):
    copied = first_losses(trainer(tiny_llama, tiny_tokenizer, tmp_path / "a", num_train_epochs=4))
    column = trainer(tiny_llama, tiny_tokenizer, tmp_path / "b", num_train_epochs=4, precompute_ref_log_probs=True)
    assert column._reference._copy is None and "ref_logps" in column.train_dataset.column_names
    assert first_losses(column) == pytest.approx(copied, rel=1e-5)


def test_an_adapters_reference_is_the_base_model(tiny_llama, tiny_tokenizer, tmp_path):
    made = trainer(tiny_llama, tiny_tokenizer, tmp_path, peft=True)  # the adapter starts at random, not at zero
    batch = made.data_collator([made.train_dataset[i] for i in range(3)])
    assert made._reference._copy is None
    plain = trainer(tiny_llama, tiny_tokenizer, tmp_path / "plain")
    expected = plain._reference.logps(plain.model, batch)
    torch.testing.assert_close(made._reference.logps(made.model, batch), expected)
    from tuna_trl.scoring import response_logps

    with torch.no_grad():
        assert not torch.allclose(response_logps(made.model, batch).logps, expected, atol=1e-2)


def test_the_reference_has_no_dropout_and_leaves_the_modes_alone(tiny_llama, tiny_tokenizer, tmp_path):
    made = trainer(tiny_llama, tiny_tokenizer, tmp_path)
    made.model.train()
    batch = made.data_collator([made.train_dataset[0]])
    assert torch.equal(made._reference.logps(made.model, batch), made._reference.logps(made.model, batch))
    assert made.model.training


def test_a_pair_is_dpos_loss(tiny_llama, tiny_tokenizer, tmp_path):
    made = trainer(tiny_llama, tiny_tokenizer, tmp_path, loss_kwargs={"beta": 0.3})
    batch = made.data_collator([made.train_dataset[0]])  # N = 2
    batch["ref_logps"] = torch.tensor([[-3.0, -9.0]])
    from tuna_trl.scoring import response_logps

    logps = response_logps(made.model, batch).logps
    ratio = logps - batch["ref_logps"]
    expected = -logsigmoid(0.3 * (ratio[0, 0] - ratio[0, 1]))
    torch.testing.assert_close(made.compute_loss(made.model, batch), expected)


def test_a_registered_loss_can_ask_for_a_reference(tiny_llama, tiny_tokenizer, tmp_path):
    seen = []

    def watching(logps, lengths, ranks, mask, *, targets=None, ref_logps=None, **loss_kwargs):
        seen.append(ref_logps)
        return (logps * mask).sum(1) * 0.01

    register_ranking_loss("test-watching", watching, needs_reference=True)
    trainer(tiny_llama, tiny_tokenizer, tmp_path, ranking_loss="test-watching", max_steps=1).train()
    assert seen[0] is not None and torch.isfinite(seen[0]).all()


def test_a_stream_cannot_be_scored_beforehand(tiny_llama, tiny_tokenizer, tmp_path):
    args = config(tmp_path, ranking_loss="lipo", precompute_ref_log_probs=True, max_steps=1)
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(InputError, match="precompute_ref_log_probs"):
        TunaTrainer(tiny_llama, args, train_dataset=stream, processing_class=tiny_tokenizer)


def test_data_that_was_not_scored_beforehand_is_refused_not_compared_with_the_model_itself(
    tiny_llama, tiny_tokenizer, tmp_path
):
    made = trainer(tiny_llama, tiny_tokenizer, tmp_path, precompute_ref_log_probs=True)
    with pytest.raises(InputError, match="no column `ref_logps`"):
        made.evaluate(Dataset.from_list(ROWS))
