"""Out of memory in training: which batch it was, what to change, and from which checkpoint to go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .errors import TrainingMemoryError


if TYPE_CHECKING:
    from torch import Tensor

# torch's CPU allocator (c10/core/impl/alloc_cpu.cpp), MPS, and kernels whose workspace did not fit
_MESSAGES = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    import torch

    if isinstance(error, TrainingMemoryError):
        return False  # explained already
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def explain(
    error: BaseException,
    batch: Mapping[str, Tensor] | None,
    args: Any,
    *,
    layout: str = "rows",
    step: int | None = None,
    checkpoint: str | None = None,
    quantised: bool = False,
) -> TrainingMemoryError:
    """The error to raise instead: what ran out, on which batch, and the levers.

    Args:
        batch: as collated, `input_ids` and `attention_mask` `(B, N, L)`, `prompt_lengths` `(B,)`; None = not known.
        args: the [`TunaConfig`] of the run.
        layout: "shared_prompt" or "rows".
        step: optimizer steps done before.
        checkpoint: the folder to resume from; None = there is none.
        quantised: whether the base model is in 4 or 8 bit already.
    """
    lines = [f"Out of memory{'' if step is None else f' in step {step + 1}'}. {_first_line(error)}"]
    if batch is not None:
        lines.append(describe_batch(batch, layout))
    lines += ["What helps, the first that suits you:", *(f"  - {lever}" for lever in levers(args, batch, quantised))]
    lines.append(
        f"Nothing that was saved is lost: `resume_from_checkpoint={checkpoint!r}` goes on from there (tuna-trl train "
        "does so by itself)."
        if checkpoint
        else f"No checkpoint was saved yet (`save_steps` is {args.save_steps:g}), so training starts anew."
    )
    lines.append("`tuna-trl estimate --config x.yaml` says beforehand what fits.")
    return TrainingMemoryError("\n".join(lines))


def describe_batch(batch: Mapping[str, Tensor], layout: str) -> str:
    """`The batch: 2 instructions with up to 4 responses, 584 tokens each once, 768 with every prompt repeated, ...`"""
    try:
        B, N, L = batch["input_ids"].shape
        lengths = batch["attention_mask"].sum(2).cpu()
        rows = int((lengths > 0).sum())
        prompts = batch["prompt_lengths"].cpu() if "prompt_lengths" in batch else None
    except (RuntimeError, KeyError, ValueError):  # the device that ran out may answer nothing any more
        return "The batch could not be read any more."
    text = f"The batch: {B} instruction{'s' * (B != 1)} with up to {N} responses"
    if prompts is not None:
        repeated = ((lengths > 0).sum(1) - 1).clamp(min=0) * prompts
        text += f", {int(lengths.sum() - repeated.sum()):,} tokens with each prompt once"
    return f'{text}, {rows * L:,} as {rows} padded rows of {L}; layout "{layout}".'


def levers(args: Any, batch: Mapping[str, Tensor] | None = None, quantised: bool = False) -> list[str]:
    """What to change, in the order of what it costs; what is set already is left out."""
    found = []
    size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if size > 1:
        smaller = size // 2
        accumulated = -(-size * steps // smaller)
        found.append(
            f"per_device_train_batch_size={smaller} (now {size}) with gradient_accumulation_steps={accumulated} (now "
            f"{steps}): the same loss and gradient, as it is normalised over the whole step"
        )
    length = args.max_length
    if batch is not None:
        length = batch["input_ids"].shape[2]
    most = "all" if args.max_responses is None else args.max_responses
    if batch is not None and most == "all":
        most = f"all, {batch['input_ids'].shape[1]} here"
    found.append(f"a shorter max_length (this batch has {length}), or fewer max_responses (now {most})")
    last = []
    if not args.activation_checkpointing:
        last.append("activation_checkpointing=True (one more forward of each layer)")
    if not quantised:
        last.append("load_in_4bit=True with use_peft=True")
    if last:
        found.append(" or ".join(last))
    return found


@contextmanager
def explaining(describe: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Raise [`TrainingMemoryError`] for an error inside that says memory ran out; others pass as they are.

    Args:
        describe: called only then; the keyword arguments of [`explain`], but for `error`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        # frames of the traceback hold the tensors that filled the memory; in a notebook they would stay
        traceback.clear_frames(error.__traceback__)
        raise explain(error, **describe()) from error


def explaining_step(trainer: Any, batch: Mapping[str, Tensor] | None) -> AbstractContextManager[None]:
    """[`explaining`] for a step of a `TunaTrainer`: the batch, its layout and its last checkpoint.

    With `auto_find_batch_size` nothing is explained: accelerate reads the error and tries a smaller batch.
    """
    if trainer.args.auto_find_batch_size:
        return nullcontext()

    def describe() -> dict[str, Any]:
        return {
            "batch": batch,
            "args": trainer.args,
            "layout": trainer._layout,
            "step": trainer.state.global_step,
            "checkpoint": last_checkpoint(trainer.args.output_dir),
            "quantised": any(getattr(trainer.model, f"is_loaded_in_{bits}bit", False) for bits in (4, 8)),
        }

    return explaining(describe)


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint in `output_dir` that is whole: it has the trainer's state, which is written last."""
    from pathlib import Path

    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    whole = [path for path in folders if (path / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda path: int(path.name.split("-")[-1]))) if whole else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") + "." if str(error).strip() else ""
