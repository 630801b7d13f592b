"""One step of TunaTrainer under torch's profiler, its seconds grouped by what they are spent on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .flops import GemmRate, ModelSize, StepFlops, gemm_rate, shared_flops
from .measure import interleaved, step
from .models import LORA_RANK, Machine, base_model
from .scenarios import N, random_rows
from .sides import Sides


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
SOFTMAX = ("aten::logsumexp", "aten::exp", "aten::exp_", "aten::amax", "aten::log", "aten::log_softmax", "aten::max")
COPIES = (
    "aten::cat",
    "aten::copy_",
    "aten::fill_",
    "aten::zero_",
    "aten::clone",
    "aten::index",
    "aten::slice_backward",
)


@dataclass(frozen=True)
class Part:
    """A group of operations: its seconds in the profiled step, and what it would take at the floor (None: nothing is
    counted for it, all of it is above the floor)."""

    name: str
    seconds: float
    floor: float | None


@dataclass(frozen=True)
class Profile:
    """`wall`: seconds of the same step without a profiler, which slows small operations down."""

    parts: Sequence[Part]
    wall: float
    rate: GemmRate

    def lines(self) -> list[tuple[str, ...]]:
        total = sum(part.seconds for part in self.parts)
        found = []
        for part in sorted(self.parts, key=lambda part: -part.seconds):
            floor = "" if part.floor is None else f"{part.floor:.2f}"
            left = part.seconds - (part.floor or 0.0)
            found.append((part.name, f"{part.seconds:.2f}", f"{part.seconds / total:.0%}", floor, f"{left:.2f}"))
        floors = sum(part.floor or 0.0 for part in self.parts)
        found.append(("all", f"{total:.2f}", "100%", f"{floors:.2f}", f"{total - floors:.2f}"))
        return found

    def markdown(self) -> str:
        lines = ["| part | seconds | share | floor | left on the table |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(cells) + " |" for cells in self.lines()]
        return "\n".join([self.caption(), "", *lines])

    def caption(self) -> str:
        return (
            f"256x128, N = 4, TunaTrainer's own `compute_loss` and its backward: {self.wall:.2f} s without the "
            f"profiler. Floor: the counted operations at {self.rate.body / 1e9:.0f} GFLOP/s in the model's layers and "
            f"{self.rate.head / 1e9:.0f} in its head, as measured beside it."
        )


def profile_step(machine: Machine, *, prompt: int = 256, response: int = 128) -> Profile:
    """Profile one step with the prompt shared."""
    from tuna_trl.loading import load_tokenizer

    base = base_model(machine)
    size = ModelSize.of(base.config, LORA_RANK)
    groups = [(prompt, [response] * N)]
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(base, load_tokenizer("embedded"), Path(folder))
        side = sides.ours(random_rows(groups, vocabulary=size.vocabulary))
        wall = interleaved([side], machine.device, 2)["ours"][-1].seconds
        activities = [torch.profiler.ProfilerActivity.CPU]
        if machine.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            step(side, machine.device)
    seconds: dict[str, float] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        on_gpu = machine.device.type == "cuda"
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        group = part_of(event.key, event.input_shapes, size)
        seconds[group] = seconds.get(group, 0.0) + own / 1e6
    rate = gemm_rate(size, prompt + N * response, machine.device, machine.dtype)
    return Profile(_parts(seconds, shared_flops(size, groups), rate), wall, rate)


def _parts(seconds: Mapping[str, float], flops: StepFlops, rate: GemmRate) -> list[Part]:
    floors = {
        "products, layers": flops.body / rate.body,
        "products, LoRA": flops.lora / rate.body,
        "products, head": flops.head / rate.head,
        "attention": flops.attention / rate.body,
    }
    return [Part(name, spent, floors.get(name)) for name, spent in seconds.items() if spent > 0]


def part_of(operation: str, shapes: Sequence[Any], size: ModelSize) -> str:
    """The group that an operation of the profiler belongs to."""
    if "attention" in operation:
        return "attention"
    sides = {n for shape in shapes if isinstance(shape, (list, tuple)) for n in shape}
    if operation in PRODUCTS:
        if size.vocabulary in sides:
            return "products, head"
        return "products, LoRA" if size.lora_rank in sides else "products, layers"
    if size.vocabulary in sides or operation in SOFTMAX:
        return "head, log-sum-exp and softmax"
    if operation in COPIES:
        return "copies"
    return "elementwise and the rest"


def print_profile(profile: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=profile.caption(), header_style="bold")
    for name in ("part", "seconds", "share", "floor", "left on the table"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for cells in profile.lines():
        table.add_row(*cells)
    Console().print(table)
