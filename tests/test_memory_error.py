"""Laws of running out of memory: the batch, the levers and the checkpoint are named, and the run goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import chatml_tokenizer, random_llama
from training import config, largest_difference, losses, parameters, random_rows, ranked_dataset

from tuna_trl import TunaTrainer
from tuna_trl.collator import RankedCollator
from tuna_trl.errors import TrainingMemoryError
from tuna_trl.memory_error import (
    describe_batch,
    explain,
    explaining,
    is_memory_error,
    last_checkpoint,
    levers,
)


TOKENIZER = chatml_tokenizer()
CUDA_OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore")
CPU_OOM = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to")


def trainer_of(folder, *, kind=TunaTrainer, fail_at=None, **fields):
    """Six steps of two micro-batches, a checkpoint every second step; the memory runs out in step `fail_at`."""
    fields = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        **fields,
    }
    model = random_llama(len(TOKENIZER))
    trainer = kind(model, config(folder, **fields), train_dataset=ranked_dataset(11), processing_class=TOKENIZER)
    if fail_at is not None:

        def full(module, args):
            if module.training and trainer.state.global_step == fail_at - 1:
                raise CUDA_OOM

        model.model.layers[1].register_forward_pre_hook(full)
    return trainer


def test_a_run_that_runs_out_of_memory_says_what_and_goes_on_from_its_checkpoint(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    with pytest.raises(TrainingMemoryError) as stop:
        trainer_of(tmp_path / "cut", fail_at=3).train()
    message, checkpoint = str(stop.value), tmp_path / "cut" / "checkpoint-2"
    assert "Out of memory in step 3. CUDA out of memory. Tried to allocate 2.00 GiB" in message
    assert "The batch: 2 instructions with up to" in message and 'layout "shared_prompt"' in message
    assert "per_device_train_batch_size=1 (now 2) with gradient_accumulation_steps=4 (now 2)" in message
    assert "max_responses" in message and "activation_checkpointing=True" in message and "load_in_4bit" in message
    assert str(checkpoint) in message
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    assert not (tmp_path / "cut" / "checkpoint-3").exists()

    torch.manual_seed(12345)  # the new process knows nothing of the old one's state
    resumed = trainer_of(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(losses(whole)) == len(losses(resumed)) == 6
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)
    assert largest_difference(parameters(whole.model), parameters(resumed.model)) < 1e-6


def test_a_batch_size_that_is_searched_for_is_still_found(tmp_path):
    trainer = trainer_of(tmp_path, auto_find_batch_size=True, save_strategy="no", per_device_train_batch_size=4)
    sizes = []

    def full(module, args, kwargs):
        sizes.append(trainer._train_batch_size)
        if trainer._train_batch_size > 2:
            raise CUDA_OOM

    trainer.model.model.layers[1].register_forward_pre_hook(full, with_kwargs=True)
    trainer.train()
    assert sizes[0] == 4 and set(sizes[1:]) <= {3, 2} and trainer.state.global_step == 6


def test_without_a_checkpoint_that_is_said(tmp_path):
    with pytest.raises(TrainingMemoryError, match="No checkpoint was saved yet .`save_steps` is 2"):
        trainer_of(tmp_path, fail_at=1).train()


def test_the_tensors_of_the_failed_step_are_let_go():
    import gc
    import weakref

    kept = []

    def step():
        tensor = torch.zeros(10)
        kept.append(weakref.ref(tensor))
        raise CPU_OOM

    error = None
    try:
        with explaining(lambda: {"batch": None, "args": config("x")}):
            step()
    except TrainingMemoryError as caught:
        error = caught  # as a notebook keeps it, with its traceback
    gc.collect()
    assert kept[0]() is None and "can't allocate memory" in str(error.__cause__)


@pytest.mark.parametrize(
    "error, is_one",
    [
        (CUDA_OOM, True),
        (CPU_OOM, True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (TrainingMemoryError("Out of memory: explained, out of memory"), False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_only_what_says_that_memory_ran_out_is_explained(error, is_one):
    assert is_memory_error(error) == is_one
    caught = TrainingMemoryError if is_one else type(error)
    with pytest.raises(caught) as stop, explaining(lambda: {"batch": None, "args": config("x")}):
        raise error
    assert is_one or stop.value is error


def test_the_batch_is_counted_as_it_is():
    rows = random_rows(50)
    batch = RankedCollator(pad_token_id=0)(rows)
    unique = sum(len(row["prompt_ids"]) + sum(map(len, row["response_ids"])) for row in rows)
    B, N, L = batch["input_ids"].shape
    text = describe_batch(batch, "rows")
    assert f"{B} instructions with up to {N} responses, {unique} tokens with each prompt once" in text
    assert f"{11 * L:,} as 11 padded rows of {L}" in text and 'layout "rows"' in text
    assert describe_batch({"input_ids": torch.zeros(2, 2)}, "rows") == "The batch could not be read any more."


def test_levers_that_are_pulled_already_are_not_named():
    pulled = config("x", per_device_train_batch_size=1, activation_checkpointing=True, max_responses=3)
    assert [line.split(",")[0] for line in levers(pulled, quantised=True)] == [
        f"a shorter max_length (this batch has {pulled.max_length})"
    ]
    three = levers(config("x", per_device_train_batch_size=5, gradient_accumulation_steps=3))
    assert len(three) == 3 and "size=2 (now 5) with gradient_accumulation_steps=8" in three[0]


def test_the_last_whole_checkpoint_is_the_one_named(tmp_path):
    assert last_checkpoint(str(tmp_path / "none")) is None
    for step, whole in ((9, True), (10, True), (100, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert Path(last_checkpoint(str(tmp_path))).name == "checkpoint-10"


def test_the_command_line_ends_with_the_message_and_exit_code_1(monkeypatch, capsys):
    from tuna_trl import cli

    def fails(*args, **kwargs):
        raise explain(CUDA_OOM, None, config("x"), step=4)

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert stop.value.code == 1 and "Out of memory in step 5." in err and "bug" not in err
