"""What is measured: each scenario is one process, whose sides take turns, and yields rows as they are measured."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .flops import GemmRate, Lengths, ModelSize, floor_seconds, gemm_rate, reference_flops, shared_flops
from .measure import Sample, Side, compared, interleaved, peak_mb, spread
from .models import LORA_RANK, Machine, base_model, with_lora
from .overhead import step_overhead
from .sides import PAIRS, Sides, check_equal, ranked_row


N = 4


@dataclass(frozen=True)
class Setting:
    """What a scenario runs on."""

    machine: Machine
    repeats: int
    folder: Path
    tokenizer: Any


@dataclass(frozen=True)
class Scenario:
    """`gb`: what its largest side was seen to take, above the model, in fp32 on a CPU; `minutes`: on a quiet machine.
    `measure` yields the rows named in `rows`."""

    name: str
    rows: tuple[str, ...]
    gb: float
    minutes: float
    measure: Callable[[Setting], Iterator[dict[str, Any]]]
    quick: bool = False


# ---- Batches ----


def random_rows(groups: Sequence[Lengths], *, seed: int = 0, vocabulary: int = 49152) -> list[dict[str, Any]]:
    """Rows of random tokens with these lengths."""
    g = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(5, min(vocabulary, 40000), (length,), generator=g).tolist()

    return [ranked_row(ids(prompt), [ids(length) for length in responses]) for prompt, responses in groups]


def alpaca_like(instructions: int, *, seed: int) -> list[Lengths]:
    """Ragged lengths as instruction data have them: log-normal, prompts of 72 and responses of 109 tokens in the mean,
    most far shorter than the longest of the batch. Four instructions have 5,600 tokens padded, 2,900 without padding,
    and 2,000 with every prompt once."""
    g = torch.Generator().manual_seed(seed)

    def length(median: float, sigma: float) -> int:
        drawn = median * math.exp(sigma * float(torch.randn((), generator=g)))
        return int(min(max(drawn, 8), 6 * median))

    return [(length(60, 0.6), [length(85, 0.7) for _ in range(N)]) for _ in range(instructions)]


# ---- Scenarios ----


def shape(
    setting: Setting, *, prompt: int, response: int, suffix: str, layers: int | None, checkpointing: bool, floor: bool
) -> Iterator[dict[str, Any]]:
    """One instruction with `prompt` and N x `response` tokens against the reference step, and against the floor."""
    machine = setting.machine
    base = base_model(machine, layers=layers)
    size = ModelSize.of(base.config, LORA_RANK)
    groups = [(prompt, [response] * N)]
    sides = Sides(base, setting.tokenizer, setting.folder, checkpointing=checkpointing)
    rows = random_rows(groups, vocabulary=size.vocabulary)
    chosen = [sides.reference(rows), sides.ours(rows)]
    if machine.device.type == "cuda":  # the ceiling N(P+R)/(P+NR) compares our own layouts
        chosen.append(sides.ours(rows, layout="rows", name="rows"))
    about = _about(base, checkpointing) | {"relative_difference": _checked(sides, setting, size)}
    rates: list[GemmRate] = []

    def between() -> None:
        if floor:
            rates.append(gemm_rate(size, prompt + N * response, machine.device, machine.dtype))

    samples = interleaved(chosen, machine.device, setting.repeats, between=between, label=f"{prompt}x{response}")
    flops = {"flop_ratio": reference_flops(size, groups).total / shared_flops(size, groups).total}
    name = f"{prompt}x{response}"
    sided = ("reference", "ours")
    yield compared(f"{name}_vs_reference{suffix}", samples["reference"], samples["ours"], sided, **about, **flops)
    if "rows" in samples:
        ceiling = N * (prompt + response) / (prompt + N * response)
        sided = ("rows", "ours")
        yield compared(f"{name}_vs_rows{suffix}", samples["rows"], samples["ours"], sided, **about, ceiling=ceiling)
    if floor:
        yield _floor_row(f"floor_{name}{suffix}", samples["ours"], rates, shared_flops(size, groups), about)


def _floor_row(
    name: str, ours: Sequence[Sample], rates: Sequence[GemmRate], flops: Any, about: dict[str, Any]
) -> dict[str, Any]:
    """The share of the floor that a step reaches; the rate is that of the same round."""
    shares = [floor_seconds(flops, rate) / sample.seconds for rate, sample in zip(rates, ours, strict=True)]
    fastest = [flops.total / rate.fastest / sample.seconds for rate, sample in zip(rates, ours, strict=True)]
    return {
        "name": name,
        "time_ratio": statistics.median(shares),
        "memory_ratio": None,
        "spread": spread(shares),
        "time_ratio_is": "floor / ours",
        "repeats": len(shares),
        "floor_seconds": statistics.median(floor_seconds(flops, rate) for rate in rates),
        "ours_seconds": statistics.median(sample.seconds for sample in ours),
        "share_at_the_fastest_rate": statistics.median(fastest),
        "gflop": flops.total / 1e9,
        "gflops_body": statistics.median(rate.body for rate in rates) / 1e9,
        "gflops_head": statistics.median(rate.head for rate in rates) / 1e9,
        "gflops_fastest": statistics.median(rate.fastest for rate in rates) / 1e9,
        **about,
    }


def ragged(setting: Setting, *, suffix: str, layers: int | None, checkpointing: bool) -> Iterator[dict[str, Any]]:
    """Batches of four instructions with ragged lengths; a round is a batch, every batch another one."""
    machine = setting.machine
    base = base_model(machine, layers=layers)
    size = ModelSize.of(base.config, LORA_RANK)
    sides = Sides(base, setting.tokenizer, setting.folder, checkpointing=checkpointing)
    samples: dict[str, list[Sample]] = {"reference": [], "ours": []}
    about: dict[str, Any] = _about(base, checkpointing)
    flop_ratios, tokens = [], []
    for seed in range(setting.repeats):
        groups = alpaca_like(4, seed=seed)
        rows = random_rows(groups, seed=seed, vocabulary=size.vocabulary)
        chosen = [sides.reference(rows), sides.ours(rows)]
        if seed == 0:
            about["relative_difference"] = _checked(sides, setting, size)
        for name, found in interleaved(chosen, machine.device, 1, label=f"ragged, batch {seed + 1}").items():
            samples[name] += found
        flop_ratios.append(reference_flops(size, groups).total / shared_flops(size, groups).total)
        tokens.append(_tokens(groups))
    about |= {"flop_ratio": statistics.median(flop_ratios), "tokens_padded_real_unique": tokens}
    yield compared(
        f"ragged_vs_reference{suffix}", samples["reference"], samples["ours"], ("reference", "ours"), **about
    )


def _tokens(groups: Sequence[Lengths]) -> list[int]:
    """[padded, real, unique] tokens of a batch."""
    longest = max(p + r for p, responses in groups for r in responses)
    rows = sum(len(responses) for _, responses in groups)
    real = sum(p + r for p, responses in groups for r in responses)
    return [rows * longest, real, sum(p + sum(responses) for p, responses in groups)]


def trl(
    setting: Setting, *, suffix: str, layers: int | None, checkpointing: bool, against: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """64x128 against the reference step, DPOTrainer on a choice of pairs, and SFTTrainer on the best response:
    `against` names them ("reference", "sft_best", and the keys of `PAIRS`)."""
    machine = setting.machine
    base = base_model(machine, layers=layers)
    size = ModelSize.of(base.config, LORA_RANK)
    sides = Sides(base, setting.tokenizer, setting.folder, checkpointing=checkpointing, trl=True)
    groups = [(64, [128] * N)]

    def made(rows: Sequence[dict]) -> list[Side]:
        makers = {"reference": sides.reference, "sft_best": sides.sft}
        makers |= {name: functools.partial(sides.dpo, pairs=name) for name in PAIRS}
        return [sides.ours(rows), *(makers[name](rows) for name in against)]

    about = _about(base, checkpointing)
    difference = _checked(sides, setting, size)
    interleaved(made(random_rows([(8, [8] * N)], vocabulary=size.vocabulary)), machine.device, 1, label="warm-up")
    rows = random_rows(groups, vocabulary=size.vocabulary)
    samples = interleaved(made(rows), machine.device, setting.repeats, label="64x128")
    ours = samples["ours"]
    for name in against:
        if name == "reference":
            flops = reference_flops(size, groups).total / shared_flops(size, groups).total
            more = {"relative_difference": difference, "flop_ratio": flops}
            sided = ("reference", "ours")
            yield compared(f"64x128_vs_reference{suffix}", samples[name], ours, sided, **more, **about)
        elif name == "sft_best":
            yield compared(f"64x128_vs_sft_best{suffix}", ours, samples[name], ("ours", "sft_best"), **about)
        else:
            yield compared(f"64x128_{name}{suffix}", samples[name], ours, (name, "ours"), **about)


def vocabulary(setting: Setting, *, suffix: str, checkpointing: bool) -> Iterator[dict[str, Any]]:
    """64x128 on a small random model whose vocabulary is the largest in use, 151,936."""
    machine = setting.machine
    base = base_model(machine, model="vocabulary")
    size = ModelSize.of(base.config, LORA_RANK)
    groups = [(64, [128] * N)]
    sides = Sides(base, setting.tokenizer, setting.folder, checkpointing=checkpointing)
    rows = random_rows(groups)
    chosen = [sides.reference(rows), sides.ours(rows)]
    about = _about(base, checkpointing) | {"relative_difference": _checked(sides, setting, size)}
    about["flop_ratio"] = reference_flops(size, groups).total / shared_flops(size, groups).total
    samples = interleaved(chosen, machine.device, setting.repeats, label="vocabulary")
    name = f"vocabulary_152k_vs_reference{suffix}"
    yield compared(name, samples["reference"], samples["ours"], ("reference", "ours"), **about)


def growth(setting: Setting, *, length: int, response: int, layers: int) -> Iterator[dict[str, Any]]:
    """Time and memory for N = 1 .. 16 of one instruction of `length` tokens a sequence, against N = 1."""
    machine = setting.machine
    base = base_model(machine, layers=layers)
    size = ModelSize.of(base.config, LORA_RANK)
    sides = Sides(base, setting.tokenizer, setting.folder)
    prompt = length - response
    groups = {n: [(prompt, [response] * n)] for n in (1, 2, 4, 8, 16)}
    chosen = [sides.ours(random_rows(groups[n], vocabulary=size.vocabulary), name=f"n{n}") for n in groups]
    interleaved([sides.ours(random_rows([(8, [8] * N)]))], machine.device, 1)
    samples = interleaved(chosen, machine.device, setting.repeats, label=f"growth, L = {length}")
    one = shared_flops(size, groups[1]).total
    for n in groups:
        about = {
            "unique_tokens": prompt + n * response,
            "unique_ratio": (prompt + n * response) / length,
            "padded_ratio": float(n),
            "flop_ratio": shared_flops(size, groups[n]).total / one,
            "ours_mb": peak_mb(samples[f"n{n}"]),
        }
        row = compared(f"growth_{length}_n{n}", samples[f"n{n}"], samples["n1"], (f"n{n}", "n1"), **about)
        yield row | _about(base, False)


def overhead(setting: Setting, *, steps: int) -> Iterator[dict[str, Any]]:
    """What a step of TunaTrainer costs beside the model, at 64x128, one instruction a step: the worst case, as the
    model's share grows with the batch."""
    base = base_model(setting.machine)
    rows = random_rows([(64, [128] * N)] * steps, vocabulary=base.config.vocab_size)
    yield step_overhead(with_lora(base), rows, setting.tokenizer, setting.folder) | _about(base, False)


def _checked(sides: Sides, setting: Setting, size: ModelSize) -> float:
    """Warm up on a small batch, on which the reference step and ours must agree; how far they do not."""
    small = random_rows([(8, [8, 5, 9, 7]), (5, [6, 8, 4, 3])], vocabulary=size.vocabulary)
    reference, ours = sides.reference(small), sides.ours(small)
    difference = check_equal(ours, reference, setting.machine.dtype)
    interleaved([reference, ours], setting.machine.device, 1, label="warm-up")
    return difference


def _about(base: Any, checkpointing: bool) -> dict[str, Any]:
    return {"layers": base.config.num_hidden_layers, "checkpointing": checkpointing}


# ---- The list ----


NEAR = ("reference", "sft_best", "dpo_one_pair")
FAR = ("dpo_adjacent_pairs", "dpo_all_pairs")


def scenarios() -> list[Scenario]:
    """All of them, cheap ones first."""
    return [
        _vocabulary(False, 2.0, 0.6, quick=True),
        _shape(256, 128, 4.5, 1.6, floor=True, quick=True),
        _trl(NEAR, 1.5, 0.7, layers=10, quick=True),
        _overhead(6, 2.0, 0.8),
        _ragged(8.5, 2.0, layers=10, quick=True),
        _shape(64, 64, 1.5, 0.7),
        _shape(64, 256, 3.6, 1.4),
        _trl(FAR, 4.0, 1.8, layers=10),
        _shape(1024, 64, 6.5, 1.8, layers=10),
        _trl(NEAR, 2.5, 1.3),
        _trl(FAR, 9.0, 4.3),
        _shape(1024, 64, 14.0, 3.6),
        _growth(4096, 256, 6, 5.0, 4.0),
        _ragged(16.0, 4.4),
        _vocabulary(True, 2.0, 0.6),
        _shape(256, 128, 3.5, 2.0, checkpointing=True),
        _trl(NEAR, 2.0, 1.6, checkpointing=True),
        _trl(FAR, 3.0, 5.2, checkpointing=True),
        _ragged(10.0, 5.0, checkpointing=True),
    ]


def _suffix(layers: int | None, checkpointing: bool) -> str:
    return (f"_{layers}_layers" if layers else "") + ("_checkpointing" if checkpointing else "")


def _shape(
    prompt: int,
    response: int,
    gb: float,
    minutes: float,
    *,
    layers: int | None = None,
    checkpointing: bool = False,
    floor: bool = False,
    quick: bool = False,
) -> Scenario:
    suffix = _suffix(layers, checkpointing)
    name = f"{prompt}x{response}"
    rows = [f"{name}_vs_reference{suffix}"] + ([f"floor_{name}{suffix}"] if floor else [])
    measure = functools.partial(
        shape,
        prompt=prompt,
        response=response,
        suffix=suffix,
        layers=layers,
        checkpointing=checkpointing,
        floor=floor,
    )
    return Scenario(f"{name}{suffix}", tuple(rows), gb, minutes, measure, quick)


def _ragged(
    gb: float, minutes: float, *, layers: int | None = None, checkpointing: bool = False, quick: bool = False
) -> Scenario:
    suffix = _suffix(layers, checkpointing)
    measure = functools.partial(ragged, suffix=suffix, layers=layers, checkpointing=checkpointing)
    return Scenario(f"ragged{suffix}", (f"ragged_vs_reference{suffix}",), gb, minutes, measure, quick)


def _trl(
    against: Sequence[str],
    gb: float,
    minutes: float,
    *,
    layers: int | None = None,
    checkpointing: bool = False,
    quick: bool = False,
) -> Scenario:
    suffix = _suffix(layers, checkpointing)
    vs = {"reference": "vs_reference", "sft_best": "vs_sft_best"}
    rows = tuple(f"64x128_{vs.get(name, name)}{suffix}" for name in against)
    measure = functools.partial(trl, suffix=suffix, layers=layers, checkpointing=checkpointing, against=against)
    return Scenario(f"64x128_{'near' if against == NEAR else 'far'}{suffix}", rows, gb, minutes, measure, quick)


def _vocabulary(checkpointing: bool, gb: float, minutes: float, *, quick: bool = False) -> Scenario:
    suffix = _suffix(None, checkpointing)
    measure = functools.partial(vocabulary, suffix=suffix, checkpointing=checkpointing)
    name = f"vocabulary_152k_vs_reference{suffix}"
    return Scenario(f"vocabulary{suffix}", (name,), gb, minutes, measure, quick)


def _growth(length: int, response: int, layers: int, gb: float, minutes: float) -> Scenario:
    rows = tuple(f"growth_{length}_n{n}" for n in (1, 2, 4, 8, 16))
    measure = functools.partial(growth, length=length, response=response, layers=layers)
    return Scenario(f"growth_{length}", rows, gb, minutes, measure)


def _overhead(steps: int, gb: float, minutes: float) -> Scenario:
    return Scenario("overhead", ("step_overhead",), gb, minutes, functools.partial(overhead, steps=steps))
