"""The parts of `make bench`: the reference step against the oracle, counts against hand and profiler, rows, journal.

No time is asserted; the models have two layers and are 32 wide.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from reference import total_loss
from tiny import random_llama
from training import tokenised_row


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.flops import GemmRate, ModelSize, StepFlops, floor_seconds, reference_flops, shared_flops  # noqa: E402
from benchmarks.measure import Sample, Side, compared, interleaved, step  # noqa: E402
from benchmarks.models import Machine, base_model, sharing_copy, with_lora  # noqa: E402
from benchmarks.reference_step import reference_loss  # noqa: E402
from benchmarks.results import (  # noqa: E402
    COLUMNS,
    TARGETS,
    Journal,
    Target,
    markdown_table,
    table_cells,
    target_of,
    write_block,
    write_results,
)
from benchmarks.scenarios import N, Setting, alpaca_like, overhead, ragged, random_rows, scenarios, shape, trl  # noqa: E402
from benchmarks.step_profile import part_of  # noqa: E402
from tuna_trl import RankedCollator  # noqa: E402


CPU = torch.device("cpu")
TINY = Machine(CPU, torch.float32, "tiny")


@pytest.fixture
def setting(tmp_path, tiny_tokenizer) -> Setting:
    return Setting(TINY, 1, tmp_path, tiny_tokenizer)


# ---- The reference step ----


@pytest.mark.parametrize("mle_weight", [1.0, 0.3])
def test_the_reference_step_is_the_oracle_in_value_and_gradient(mle_weight):
    model = random_llama(97)
    rows = [
        tokenised_row([5, 6, 7, 8], [[9, 10], [11, 12, 13, 14], [15], [16, 17, 18]], [1, 2, 3, 4], tail=0),
        tokenised_row([20, 21], [[22], [23, 24, 25], [26, 27], [28, 29, 30, 31, 32]], [1, 2, 3, 4], tail=0),
    ]
    gradients = []
    values = []
    for loss in (
        reference_loss(model, RankedCollator(pad_token_id=0)(rows), mle_weight=mle_weight),
        total_loss(model, rows, mle_weight=mle_weight),
    ):
        model.zero_grad()
        loss.backward()
        values.append(float(loss))
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    for found, expected in zip(*gradients, strict=True):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())


def test_the_reference_step_does_not_see_padding():
    model = random_llama(97)
    rows = [tokenised_row([5, 6, 7], [[9, 10], [11, 12, 13]], [1, 2], tail=0)]
    plain = reference_loss(model, RankedCollator(pad_token_id=0)(rows))
    padded = reference_loss(model, RankedCollator(pad_token_id=3, pad_to_multiple_of=16)(rows))
    assert float(plain) == pytest.approx(float(padded), rel=1e-5)


# ---- Counts ----


SMALL = ModelSize(layers=1, hidden=2, heads=1, kv_heads=1, head_dim=2, feed_forward=3, vocabulary=5, lora_rank=1)


def test_the_operations_of_a_shared_step_are_those_counted_by_hand():
    # weights 4 + 2 * 4 + 4 + 2 * 6 + 6 = 34, adapters 4 + 8 + 4 + 10 + 5 = 31; 1 + 2 + 1 tokens, of them 3 predicted;
    # attended: 1 / 2 of the prompt, 2 + 4 / 2 and 1 + 1 / 2 of the responses
    found = shared_flops(SMALL, [(1, [2, 1])])
    assert found == StepFlops(body=4 * 34 * 4, lora=6 * 31 * 4, attention=3.5 * 4 * 2 * 6, head=4 * 2 * 5 * 3)


def test_the_operations_of_the_reference_step_are_those_of_padded_copies():
    found = reference_flops(SMALL, [(1, [2, 1])])  # two rows of three
    assert found == StepFlops(body=4 * 34 * 6, lora=6 * 31 * 6, attention=3.5 * 4 * 2 * 9, head=4 * 2 * 5 * 6)


def test_the_count_of_products_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    base = base_model(TINY)
    size = ModelSize.of(base.config)
    groups = [(7, [5, 5, 5])]
    model, batch = with_lora(base), RankedCollator(pad_token_id=0)(random_rows(groups, vocabulary=size.vocabulary))
    with FlopCounterMode(display=False) as counter:
        reference_loss(model, batch).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if str(op) in ("aten.mm", "aten.addmm", "aten.bmm"))
    ours = reference_flops(size, groups)
    # nothing stands before the first layer, so its queries, keys and values hand no gradient down
    tokens = 3 * 12
    first = [(inner, outer, n // size.layers) for inner, outer, n in size.products()[:2]]
    undone = 2 * tokens * sum((i * o + size.lora_rank * i) * n for i, o, n in first)
    assert products == ours.body + ours.lora + ours.head - undone


def test_the_floor_is_slower_where_the_head_is():
    flops = StepFlops(body=10.0, lora=1.0, attention=1.0, head=4.0)
    assert floor_seconds(flops, GemmRate(body=4.0, head=2.0, fastest=4.0)) == 5.0


# ---- Measuring ----


def test_ratios_are_those_of_the_same_round():
    slow = [Sample(4.0, 40_000_000), Sample(9.0, 80_000_000), Sample(30.0, 60_000_000)]
    fast = [Sample(2.0, 10_000_000), Sample(3.0, 30_000_000), Sample(6.0, 20_000_000)]
    row = compared("x", slow, fast, ("slow", "fast"), layers=3)
    assert row["time_ratio"] == 3.0 and row["spread"] == 1.0  # 2, 3, 5
    assert row["memory_ratio"] == 3.0 and row["slow_mb"] == 60.0
    assert row["slow_seconds"] == 9.0 and row["fast_seconds"] == 3.0 and row["layers"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident memory is read from /proc")
def test_the_peak_is_that_of_the_step_and_not_of_an_earlier_one():
    model = torch.nn.Linear(2, 1)

    def side(megabytes: int) -> Side:
        def loss():
            held = torch.ones(megabytes * 250_000)
            return model.weight.sum() * held.sum()

        return Side(f"{megabytes}", model, loss)

    step(side(400), CPU)
    peak = step(side(80), CPU).peak_bytes
    assert 75e6 < peak < 200e6


def test_sides_take_turns_and_start_without_gradients():
    model, seen = torch.nn.Linear(2, 1), []

    def side(name: str) -> Side:
        def loss():
            assert model.weight.grad is None
            seen.append(name)
            return model.weight.sum()

        return Side(name, model, loss)

    samples = interleaved([side("a"), side("b")], CPU, 2, between=lambda: seen.append("|"))
    assert seen == ["a", "b", "|", "a", "b", "|"]
    assert {name: len(found) for name, found in samples.items()} == {"a": 2, "b": 2}


def test_copies_of_a_model_share_its_weights_and_not_its_forward():
    base = base_model(TINY)
    other = sharing_copy(base)
    assert all(a is b for a, b in zip(base.parameters(), other.parameters(), strict=True))
    other.forward = None
    assert callable(base.forward)
    first, second = (dict(with_lora(base).named_parameters()) for _ in range(2))
    name = next(name for name in first if "lora_B" in name)
    assert first[name] is not second[name] and torch.equal(first[name], second[name]) and bool(first[name].any())


# ---- Scenarios, on a tiny model ----


def names(rows) -> list[str]:
    found = list(rows)
    for row in found:
        assert row["time_ratio"] > 0 and row["spread"] >= 0
        assert len(table_cells(row)) == len(COLUMNS)
        json.dumps(row)
    return [row["name"] for row in found]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_shape_is_measured_against_the_reference_step_and_the_floor(setting, checkpointing):
    rows = shape(
        setting, prompt=9, response=5, suffix="_x", layers=1, checkpointing=checkpointing, floor=not checkpointing
    )
    found = names(rows)
    assert found == ["9x5_vs_reference_x"] + ([] if checkpointing else ["floor_9x5_x"])


def test_ragged_batches_are_measured(setting):
    assert names(ragged(setting, suffix="", layers=None, checkpointing=False)) == ["ragged_vs_reference"]


def test_trls_trainers_are_measured(setting):
    against = ("reference", "sft_best", "dpo_one_pair", "dpo_adjacent_pairs", "dpo_all_pairs")
    found = names(trl(setting, suffix="", layers=None, checkpointing=True, against=against))
    assert found == ["64x128_vs_reference", "64x128_vs_sft_best"] + [f"64x128_{name}" for name in against[2:]]


def test_the_overhead_is_a_share_of_a_step(setting):
    (row,) = overhead(setting, steps=3)
    assert row["name"] == "step_overhead" and 0 < row["time_ratio"] < 1 and row["repeats"] == 2


def test_ragged_lengths_are_mostly_short_and_always_the_same():
    groups = [group for seed in range(40) for group in alpaca_like(4, seed=seed)]
    assert groups[:4] == alpaca_like(4, seed=0)
    prompts, responses = [p for p, _ in groups], [r for _, rs in groups for r in rs]
    assert len(responses) == N * len(groups)
    assert 60 < sum(prompts) / len(prompts) < 85 and 90 < sum(responses) / len(responses) < 130
    assert max(responses) > 2 * sum(responses) / len(responses)


def test_every_target_is_measured_and_no_row_twice():
    listed = [name for scenario in scenarios() for name in scenario.rows]
    assert len(listed) == len(set(listed))
    assert set(TARGETS) <= set(listed)
    assert sum(s.minutes for s in scenarios()) < 45 and sum(s.minutes for s in scenarios() if s.quick) < 5


# ---- Rows on disk ----


def row(name: str, ratio: float = 2.0, **about) -> dict:
    samples = [Sample(ratio, 2_000_000)], [Sample(1.0, 1_000_000)]
    return compared(name, *samples, ("reference", "ours"), **about)


def test_a_rerun_takes_over_rows_of_the_same_run_only(tmp_path):
    path = tmp_path / "bench" / "rows.jsonl"
    journal = Journal(path, {"device": "a"})
    journal.add(row("x", 2.0))
    journal.add(row("x", 3.0))
    Journal(path, {"device": "b"}).add(row("y"))
    with path.open("a") as file:
        file.write('{"run": {"dev')  # killed while it wrote
    again = Journal(path, {"device": "a"})
    again.add(row("z"))
    assert {name: found["time_ratio"] for name, found in again.rows().items()} == {"x": 3.0, "z": 2.0}
    again.clear()
    assert again.rows() == {}


def test_results_say_where_they_come_from_and_what_is_met(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"device": "d", "versions": {"torch": "1"}}, [row("256x128_vs_reference", 2.1), row("x")])
    found = json.loads(path.read_text())
    assert found["device"] == "d" and found["versions"] == {"torch": "1"}
    assert {"name", "time_ratio", "memory_ratio", "spread"} <= found["rows"][0].keys()
    assert found["rows"][0]["met"] is False and "met" not in found["rows"][1]


def test_targets_bound_from_the_side_that_the_issue_names():
    assert not Target(3.0, 4.0).met(row("x", 3.5)) and Target(3.0, 2.0).met(row("x", 3.5))
    assert Target(at_most=2.2).met(row("x", 2.0)) and not Target(at_most=2.2).met(row("x", 2.3))
    assert target_of(row("1024x64_vs_reference_10_layers_checkpointing")) == TARGETS["1024x64_vs_reference"]
    assert target_of(row("growth_4096_n2")) is None


def test_a_block_of_the_page_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- t -->\nold\n<!-- /t -->\nbehind\n")
    write_block(page, "t", markdown_table([row("x")]))
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- t -->"] and lines[-2:] == ["<!-- /t -->", "behind"]
    assert "`x`" in lines[4] and "old" not in lines
    with pytest.raises(ValueError, match="no block"):
        write_block(page, "other", "")


@pytest.mark.parametrize(
    "operation, shapes, group",
    [
        ("aten::mm", [[768, 576], [576, 1536]], "products, layers"),
        ("aten::mm", [[768, 576], [576, 16]], "products, LoRA"),
        ("aten::mm", [[341, 576], [576, 49152]], "products, head"),
        ("aten::exp", [[341, 49152]], "head, log-sum-exp and softmax"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[1, 9, 256, 64]], "attention"),
        ("aten::cat", [[]], "copies"),
        ("aten::silu", [[1, 768, 1536]], "elementwise and the rest"),
    ],
)
def test_the_profile_knows_what_an_operation_is_for(operation, shapes, group):
    size = ModelSize(30, 576, 9, 3, 64, 1536, 49152)
    assert part_of(operation, shapes, size) == group
