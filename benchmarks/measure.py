"""Seconds and peak memory of a step, the steps of several sides in turn. Touches nothing but the process it runs in.

On a CPU: CPU seconds of the process (`time.process_time`, so waiting for a core does not count) and the peak of its
resident memory above what it held before the step. On CUDA: events, and the allocator's peak above what it held.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """One step: CPU (or GPU) seconds, and bytes at its peak above what was held before it (None: not known here)."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Side:
    """One way to take a step on a batch: `loss()` builds the graph, whose leaves are `model`'s parameters."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `run` takes on `device`."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.process_time()
    run()
    return time.process_time() - start


def step(side: Side, device: torch.device) -> Sample:
    """Forward and backward of one batch; gradients are dropped before the clock starts, and memory is given back."""
    side.model.zero_grad(set_to_none=True)
    gc.collect()
    before = _reset_peak(device)
    seconds = timed(lambda: side.loss().backward(), device)
    peak = _peak(device)
    side.model.zero_grad(set_to_none=True)
    return Sample(seconds, None if before is None or peak is None else peak - before)


def interleaved(
    sides: Sequence[Side],
    device: torch.device,
    repeats: int,
    *,
    between: Callable[[], None] | None = None,
    label: str = "",
) -> dict[str, list[Sample]]:
    """`repeats` rounds in which every side takes one step, so that a load that comes and goes meets them all.

    Args:
        between: called once a round (a measurement that belongs beside the steps).
        label: in front of the progress bar, which only a terminal shows.
    """
    from tqdm.auto import tqdm

    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    with tqdm(total=repeats * len(sides), desc=label, unit="step", disable=None, leave=False) as bar:
        for _ in range(repeats):
            for side in sides:
                bar.set_postfix_str(side.name)
                samples[side.name].append(step(side, device))
                bar.update()
            if between is not None:
                between()
    return samples


def compared(name: str, upper: list[Sample], lower: list[Sample], names: tuple[str, str], **about: Any) -> dict:
    """The row of two sides measured in the same rounds.

    `time_ratio` is the median over rounds of upper / lower, both of the same round; `spread` the (max - min) / median
    of those; `memory_ratio` the ratio of the medians. `names`: what upper and lower are called.
    """
    ratios = [a.seconds / b.seconds for a, b in zip(upper, lower, strict=True)]
    row: dict[str, Any] = {
        "name": name,
        "time_ratio": statistics.median(ratios),
        "memory_ratio": None,
        "spread": spread(ratios),
        "time_ratio_is": f"{names[0]} / {names[1]}",
        "repeats": len(ratios),
    }
    for side, samples in zip(names, (upper, lower), strict=True):
        seconds = [sample.seconds for sample in samples]
        row[f"{side}_seconds"] = statistics.median(seconds)
        row[f"{side}_spread"] = spread(seconds)
        row[f"{side}_mb"] = peak_mb(samples)
    if row[f"{names[0]}_mb"] and row[f"{names[1]}_mb"]:
        row["memory_ratio"] = row[f"{names[0]}_mb"] / row[f"{names[1]}_mb"]
    return row | about


def spread(values: Sequence[float]) -> float:
    """(max - min) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def peak_mb(samples: Sequence[Sample]) -> float | None:
    """The median peak in MB (10^6 bytes)."""
    known = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return statistics.median(known) / 1e6 if known else None


def device_name(device: torch.device) -> str:
    """The processor in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{found.group(1) if found else 'CPU'}, {torch.get_num_threads()} thread"


def available_gb(device: torch.device) -> float | None:
    """Memory that a step may still take, GB; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    status = _proc("/proc/meminfo")
    return status["MemAvailable"] / 1e9 if "MemAvailable" in status else None


def _reset_peak(device: torch.device) -> int | None:
    """Start a new peak; bytes held now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        # without it glibc keeps what the last side freed, and the next one's peak would start inside it
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS (proc(5))
    except (OSError, AttributeError):  # not Linux with glibc
        return None
    return _proc("/proc/self/status")["VmRSS"]


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _proc("/proc/self/status").get("VmHWM")


def _proc(path: str) -> Mapping[str, int]:
    """The sizes of a /proc file, in bytes."""
    try:
        text = Path(path).read_text()
    except OSError:
        return {}
    return {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
