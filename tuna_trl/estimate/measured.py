"""The memory of two real steps of a real config on this machine, on the heaviest batch of its data.

On CUDA the allocator's own peak; on a CPU the weights and what the process's resident peak (`VmHWM`) rises by, reset
once the model is there: loading it takes more for a moment. Large blocks are mapped one by one for it, or glibc keeps
them for reuse and counts them as resident (SmolLM2-135M, LoRA, 1,210 tokens, checkpointed: 1.95 GB instead of 0.79).
Two steps, because the optimizer's state comes into being at the end of the first.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback

from ..errors import InputError
from ..trainer import TunaTrainer
from .workload import Tokens, workload_of


_M_MMAP_THRESHOLD = -3  # malloc.h; a threshold that is set stays where it is, its default grows to 32 MB


@dataclass(frozen=True)
class Measured:
    """`peak` bytes on `device`; `tokens` of the batch it was measured on; `layout` as the model chose it."""

    peak: float
    device: str
    layout: str
    tokens: Tokens


class _InOrder(TunaTrainer):
    """Takes the rows as they stand."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def measure(model: str, training: Any, dataset: Any, *, quantisation: Any = None, peft_config: Any = None) -> Measured:
    """Train two steps on the longest rows and see what that takes; nothing is saved.

    Args:
        training: the [`TunaConfig`] of the run, not changed; `model_init_kwargs` as for [`TunaTrainer`].
        dataset: the train split, prepared or not.

    Raises:
        InputError: on a CPU without /proc (Linux's), where the resident peak cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="tuna-trl-estimate-") as folder:
        trainer = _InOrder(
            model=model,
            args=_two_steps(training, folder),
            train_dataset=dataset,
            quantization_config=quantisation,
            peft_config=peft_config,
        )
        trainer.remove_callback(PrinterCallback)  # prints a dict of metrics to stdout
        args, layout = trainer.args, trainer._layout
        rows: Any = trainer.train_dataset
        workload = workload_of(rows, "data", reference=args.mle_target == "reference")
        order = workload.heaviest_rows(args.per_device_train_batch_size, layout)
        micro_batches = 2 * args.gradient_accumulation_steps
        trainer.train_dataset = rows.select(order * micro_batches)
        before = _begin(trainer.model)
        trainer.train()
        device = trainer.args.device.type
        peak = _peak(before)
    return Measured(peak, device, layout, workload.heaviest(len(order), layout))


def _two_steps(training: Any, folder: str) -> Any:
    """The config, but for what is saved, evaluated, reported and shuffled."""
    args = copy.copy(training)
    changes = {
        "output_dir": folder,
        "max_steps": 2,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "push_to_hub": False,
        "load_best_model_at_end": False,
        "shuffle_dataset": False,
    }
    for name, value in changes.items():
        kind = type(getattr(args, name))
        setattr(args, name, kind(value) if issubclass(kind, str) else value)
    return args


def _begin(model: torch.nn.Module) -> float:
    """Reset the peaks; what is to be taken off them, bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    # weights that are mapped from a file count once they are read
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.amax()
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (OSError, AttributeError) as error:
        raise InputError("--measure on a CPU reads /proc/self (Linux), which is not here; leave it out.") from error
    return _status("VmRSS") - sum(weights.values())


def _peak(before: float) -> float:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM") - before


def _status(name: str) -> float:
    """Bytes of a line of /proc/self/status, which is in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024.0 * float(line.split()[1])
    raise InputError(f"/proc/self/status has no {name}; leave --measure out.")
