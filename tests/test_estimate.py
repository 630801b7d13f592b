"""Laws of the estimate: what autograd keeps, and the peak of a step, counted on real tensors of random models.

The truth is counted, never timed: bytes of the storages that autograd saves, and bytes of all storages alive at once.
What is CUDA's alone cannot be counted here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import random_llama, random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import tokenised_row

from tuna_trl import InputError
from tuna_trl.collator import RankedCollator
from tuna_trl.estimate.activations import Execution, kept
from tuna_trl.estimate.levers import levers, together
from tuna_trl.estimate.memory import CARDS, GIB, OPTIMIZERS, optimizer_bytes, step_memory
from tuna_trl.estimate.plan import Plan
from tuna_trl.estimate.shape import shape_of
from tuna_trl.estimate.workload import Instruction, assumed_workload, count, workload_of
from tuna_trl.layouts import choose_layout
from tuna_trl.packing import pack
from tuna_trl.scoring import install, response_logps


PRECISIONS = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "bfloat16 under autocast": ("bfloat16", True),
    "float32 under autocast": ("float32", True),
}
ADAPTERS = {
    "full": None,
    "LoRA": LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0),
    "LoRA with dropout": LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.1),
    "LoRA on two": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
}
# P, R and N of which no two agree; ragged, so that padded rows need a mask
BATCH = [Instruction(100, (60, 52, 44, 36)), Instruction(70, (50, 41, 33))]


def model_of(family="llama", dtype="float32", *, layers=4, vocabulary=500):
    kinds = {"layer_types": (["sliding_attention", "full_attention"] * layers)[:layers]} if "gemma" in family else {}
    window = {} if family == "llama" else {"sliding_window": 64}
    sizes = dict(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=8,
        head_dim=32,
        max_position_embeddings=2048,
        **window,
        **kinds,
    )
    model = random_llama(vocabulary, **sizes) if family == "llama" else random_model(family, vocabulary, **sizes)
    return model.to(getattr(torch, dtype))


def prepared(family, dtype, adapter, layout, checkpointing, **sizes):
    """(the shape by its config, a real model in that layout)."""
    model = model_of(family, dtype, **sizes)
    shape = shape_of(model.config, dtype=dtype, peft_config=ADAPTERS[adapter])
    if ADAPTERS[adapter] is not None:
        model = get_peft_model(model, ADAPTERS[adapter])
    install(model)
    assert choose_layout(model, layout) == layout
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if ADAPTERS[adapter] is not None:
            model.enable_input_require_grads()
    return shape, model.train()


def collated(batch, vocabulary=500):
    g = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(0, vocabulary, (length,), generator=g).tolist()

    rows = [
        tokenised_row(ids(i.prompt), [ids(n) for n in i.responses], list(range(1, len(i.responses) + 1)))
        for i in batch
    ]
    return RankedCollator(pad_token_id=0)(rows)


def forward(model, batch, layout, autocast):
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        scores = response_logps(model, batch, layout=layout)
    return scores.logps.sum() + scores.nll.sum()


def bytes_kept(model, batch, layout, autocast):
    """Bytes of the storages that autograd saves in a forward, parameters and the batch apart, each once."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *batch.values()]}
    seen, alive = {}, []

    def packed(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)  # or its address would be used again
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        forward(model, batch, layout, autocast)
    return sum(seen.values())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages alive, those that were there before apart; `peak` is the most at once."""

    def __init__(self, before):
        super().__init__()
        self.before = [tensor.untyped_storage() for tensor in before]
        self.seen = {storage._cdata: 0 for storage in self.before}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key):
        self.now -= self.seen.pop(key)


KEPT = [
    *(("llama", precision, adapter, "shared_prompt") for precision in PRECISIONS for adapter in ADAPTERS),
    *(("llama", precision, "LoRA", "rows") for precision in PRECISIONS),
    *((family, precision, "full", "shared_prompt") for family in ("qwen3", "gemma3_text") for precision in PRECISIONS),
    *((family, "float32", "LoRA with dropout", "rows") for family in ("qwen3", "gemma3_text", "mistral")),
]


@pytest.mark.parametrize("family, precision, adapter, layout", KEPT)
def test_what_autograd_keeps_is_the_formula_within_a_tenth(family, precision, adapter, layout):
    dtype, autocast = PRECISIONS[precision]
    shape, model = prepared(family, dtype, adapter, layout, checkpointing=False)
    found = kept(shape, count(BATCH, layout), Execution(2 if autocast else None, False, "cpu"))
    assert found == pytest.approx(bytes_kept(model, collated(BATCH), layout, autocast), rel=0.1)


@pytest.mark.parametrize("family, vocabulary", [("llama", 500), ("llama", 20_000), ("gemma3_text", 500)])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("adapter", ["full", "LoRA"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16 under autocast", "float32 under autocast"])
def test_the_peak_of_a_step_is_the_estimate_within_a_tenth(family, precision, adapter, checkpointing, vocabulary):
    dtype, autocast = PRECISIONS[precision]
    shape, model = prepared(family, dtype, adapter, "shared_prompt", checkpointing, layers=6, vocabulary=vocabulary)
    batch = collated(BATCH, vocabulary)
    execution = Execution(2 if autocast else None, checkpointing, "cpu")
    estimated = step_memory(shape, count(BATCH, "shared_prompt"), execution, optim="sgd")
    with LiveBytes([*model.parameters(), *model.buffers(), *batch.values()]) as live:
        forward(model, batch, "shared_prompt", autocast).backward()
    assert estimated.peak - estimated.weights == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("dropped", ["norms", "attention", "mlp", "inputs"])
def test_no_term_of_the_formula_could_be_left_out(dropped):
    from tuna_trl.estimate.activations import kept_by_layer

    shape, model = prepared("llama", "float32", "LoRA", "shared_prompt", checkpointing=False)
    tokens, execution = count(BATCH, "shared_prompt"), Execution(None, False, "cpu")
    without = kept(shape, tokens, execution) - sum(
        getattr(kept_by_layer(layer, shape, tokens, execution), dropped) for layer in shape.layers
    )
    assert without < 0.93 * bytes_kept(model, collated(BATCH), "shared_prompt", False)


# ---- Parameters ----


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    "family, dtype",
    [
        ("llama", "float32"),
        ("llama", "bfloat16"),
        ("gemma3_text", "bfloat16"),
        ("phi", "float32"),
        ("gpt_oss", "float32"),
    ],
)
def test_parameters_are_those_of_the_real_model(family, dtype, adapter):
    model = model_of(family, dtype)
    shape = shape_of(model.config, dtype=dtype, peft_config=ADAPTERS[adapter])
    if ADAPTERS[adapter] is not None:
        model = get_peft_model(model, ADAPTERS[adapter])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.trained_parameters == sum(p.numel() for p in trained)
    assert shape.trained_bytes == sum(p.numel() * p.element_size() for p in trained)
    assert shape.frozen_bytes == sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("double", [False, True], ids=["float32 scales", "quantised scales"])
def test_4_bit_weights_take_what_bitsandbytes_takes(double):
    import bitsandbytes as bnb

    linear = torch.nn.Linear(256, 384, bias=False)
    packed = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=double, quant_type="nf4", blocksize=64
    )
    state = packed.to("cpu").quant_state
    scales = [state.absmax] + ([state.state2.absmax] if double else [])
    real = packed.to("cpu").data.nbytes + sum(t.nbytes for t in scales)
    config = model_of(layers=2).config
    config.hidden_size, config.intermediate_size = 256, 384
    config.num_attention_heads, config.head_dim, config.num_key_value_heads = 8, 32, 8
    plain = shape_of(config, peft_config=ADAPTERS["LoRA"])
    quantised = shape_of(config, peft_config=ADAPTERS["LoRA"], bits=4, double=double)
    weights = plain.linear_weights
    saved = plain.frozen_bytes - quantised.frozen_bytes
    assert weights * 4 - saved == pytest.approx(real / linear.weight.numel() * weights, rel=0.002)


def test_a_quantised_model_has_its_adapter_in_16_bit():
    config = model_of(layers=2).config
    plain, quantised = (shape_of(config, peft_config=ADAPTERS["LoRA"], bits=bits) for bits in (None, 4))
    assert quantised.trained_parameters == plain.trained_parameters
    assert quantised.trained_bytes == plain.trained_bytes / 2


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop"])
def test_optimizer_state_is_that_of_the_real_optimizer(name, tmp_path):
    from training import config
    from transformers import Trainer

    model = model_of(layers=2)
    shape = shape_of(model.config)
    optimizer = Trainer(model, config(tmp_path, optim=name, warmup_steps=1)).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert optimizer_bytes(shape, name)[0] == pytest.approx(sum(t.nbytes for t in tensors), rel=0.001)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(InputError, match="`optim` is 'galore_adamw', whose memory is not known"):
        optimizer_bytes(shape_of(model_of(layers=2).config), "galore_adamw")
    assert all(name in OPTIMIZERS for name in ("adamw_torch_fused", "paged_adamw_8bit", "adafactor"))


# ---- Tokens ----


lengths = st.builds(Instruction, st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple))


@given(st.lists(lengths, min_size=1, max_size=4))
@settings(max_examples=40)
def test_tokens_are_those_of_the_packed_batch(batch):
    collated_batch = collated(batch)
    packed, tokens = pack(collated_batch), count(batch, "shared_prompt")
    queries, keys = packed.plan.lengths()
    assert tokens.tokens == tokens.unique == packed.plan.length == sum(queries)
    assert tokens.segment_keys == sum(keys)
    assert tokens.cells == sum(
        length * (group.prompt + length) for group in packed.plan.groups for _, length in group.branches
    )
    rows = count(batch, "rows")
    present = collated_batch["attention_mask"].any(2)
    assert rows.tokens == present.sum() * collated_batch["input_ids"].shape[2] >= tokens.tokens
    assert rows.padded == (not collated_batch["attention_mask"][present].all())
    assert tokens.scored == rows.scored == (collated_batch["labels"] != -100).sum()


@given(st.lists(lengths, min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=40)
def test_the_heaviest_batch_is_no_lighter_than_any(rows, size, most):
    data = workload_of(
        [{"prompt_ids": [0] * r.prompt, "response_ids": [[0] * n for n in r.responses]} for r in rows], "x"
    )
    heaviest = data.heaviest(size, "shared_prompt", most)
    assert heaviest.instructions == min(size, len(rows))
    for start in range(len(rows)):
        other = [row.at_most(most) for row in (rows[start:] + rows[:start])[:size]]
        assert heaviest.unique >= count(other, "shared_prompt").unique


def test_an_empty_dataset_is_wrong_input():
    with pytest.raises(InputError, match="dataset is empty"):
        workload_of([], "x")


# ---- Plans ----


def plan_of(**changes):
    values = {
        "config": model_of(layers=2).config,
        "workload": assumed_workload(300, 200, 4),
        "execution": Execution(None, False, "cuda"),
        "peft_config": ADAPTERS["LoRA with dropout"],
        **changes,
    }
    return Plan(**values)


def test_a_larger_card_takes_a_longer_row_and_no_longer_one_than_said():
    plan = plan_of(batch_size=64)
    found = [plan.longest(gib * GIB) or 0 for gib in (1, *CARDS)]
    assert found == sorted(found) and found[0] < found[-1] <= 2048
    length = plan.longest(GIB)
    for at, fits in ((length, True), (length + 16, False)):
        step = dataclasses.replace(plan, workload=plan.workload.at_length(at)).memory()
        assert step.fits(GIB) == fits


def test_every_lever_saves_what_it_says_and_the_largest_comes_first():
    plan = plan_of(peft_config=None, batch_size=16)
    needed = plan.memory().on_card()
    found = levers(plan, 2 * GIB)
    assert {lever.flag.split()[0] for lever in found} >= {
        "--activation_checkpointing",
        "--per_device_train_batch_size",
        "--max_responses",
        "--use_peft",
        "--optim",
    }
    assert [lever.saved for lever in found] == sorted((lever.saved for lever in found), reverse=True)
    for lever in found:
        assert 0 < lever.saved < needed
    checkpointed = dataclasses.replace(plan, execution=dataclasses.replace(plan.execution, checkpointing=True))
    named = next(lever for lever in found if "checkpointing" in lever.flag)
    assert named.saved == pytest.approx(needed - checkpointed.memory().on_card())


def test_levers_together_fit_where_none_alone_does():
    plan = plan_of(peft_config=None, batch_size=64)
    alone = levers(plan, GIB)
    card = plan.memory().on_card() - alone[0].saved - 1
    assert not any(lever.fits for lever in levers(plan, card))
    found = together(plan, card)
    assert found is not None and found.fits and "--activation_checkpointing true" in found.flag
    assert together(plan, 0.5 * GIB) is None  # the CUDA context alone


def test_a_smaller_batch_keeps_the_instructions_of_a_step():
    found = next(lever for lever in levers(plan_of(batch_size=8, accumulation=3), GIB) if "size 1" in lever.flag)
    assert found.flag.endswith("--gradient_accumulation_steps 24")


@pytest.mark.parametrize("family, word", [("gpt_oss", "mixture of experts")])
def test_a_family_that_is_only_known_roughly_is_said(family, word):
    assert word in shape_of(model_of(family).config).rough
    assert shape_of(model_of("llama").config).rough is None
