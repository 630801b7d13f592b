"""Which flag changes the verdict: each lever alone, then the cheapest ones together until it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .plan import Plan


@dataclass(frozen=True)
class Lever:
    """A change and what it does. `flag`: as on the command line; `peak`, `saved`: bytes; `fits`: on the card asked."""

    flag: str
    peak: float
    saved: float
    fits: bool


def levers(plan: Plan, card: float) -> list[Lever]:
    """Every change that lowers the memory of `plan`, alone, by what it saves; `card` in bytes."""
    now = plan.memory().on_card()
    found = []
    for flag, changed in _changes(plan):
        memory = changed.memory()
        if memory.on_card() < now:
            found.append(Lever(flag, memory.peak, now - memory.on_card(), memory.fits(card)))
    return sorted(found, key=lambda lever: -lever.saved)


def together(plan: Plan, card: float) -> Lever | None:
    """The fewest changes, in the order of what they cost in time or quality, under which `plan` fits; None if none."""
    now, flags = plan.memory().on_card(), []
    for change in (_checkpointing, _smaller_optimizer, _smallest_batch, _adapter, _four_bit, _fewer_responses):
        changed = change(plan)
        if changed is None:
            continue
        flag, plan = changed
        flags.append(flag)
        if plan.memory().fits(card):
            return Lever(" ".join(flags), plan.memory().peak, now - plan.memory().on_card(), True)
    return None


def _changes(plan: Plan) -> list[tuple[str, Plan]]:
    makers: list[Callable[[Plan], tuple[str, Plan] | None]] = [
        _checkpointing,
        _no_dropout,
        _smaller_optimizer,
        _paged,
        _half_batch,
        _smallest_batch,
        _fewer_responses,
        _sixteen_bit,
        _adapter,
        _four_bit,
        _shared,
    ]
    return [changed for make in makers if (changed := make(plan)) is not None]


def _checkpointing(plan: Plan) -> tuple[str, Plan] | None:
    if plan.execution.checkpointing:
        return None
    execution = dataclasses.replace(plan.execution, checkpointing=True)
    return "--activation_checkpointing true", dataclasses.replace(plan, execution=execution)


def _no_dropout(plan: Plan) -> tuple[str, Plan] | None:
    if not getattr(plan.peft_config, "lora_dropout", 0):
        return None
    return "--lora_dropout 0", dataclasses.replace(plan, peft_config=_copied(plan.peft_config, lora_dropout=0.0))


def _smaller_optimizer(plan: Plan) -> tuple[str, Plan] | None:
    return None if "8bit" in plan.optim else ("--optim adamw_8bit", dataclasses.replace(plan, optim="adamw_8bit"))


def _paged(plan: Plan) -> tuple[str, Plan] | None:
    if "paged" in plan.optim or plan.execution.device != "cuda":
        return None
    return "--optim paged_adamw_8bit", dataclasses.replace(plan, optim="paged_adamw_8bit")


def _half_batch(plan: Plan) -> tuple[str, Plan] | None:
    return _batch(plan, plan.batch_size // 2) if plan.batch_size > 2 else None


def _smallest_batch(plan: Plan) -> tuple[str, Plan] | None:
    return _batch(plan, 1) if plan.batch_size > 1 else None


def _batch(plan: Plan, size: int) -> tuple[str, Plan]:
    steps = -(-plan.batch_size * plan.accumulation // size)
    flag = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {steps}"
    return flag, dataclasses.replace(plan, batch_size=size, accumulation=steps)


def _fewer_responses(plan: Plan) -> tuple[str, Plan] | None:
    most = plan.tokens().responses
    return (f"--max_responses {most // 2}", dataclasses.replace(plan, max_responses=most // 2)) if most > 3 else None


def _sixteen_bit(plan: Plan) -> tuple[str, Plan] | None:
    if plan.dtype != "float32" or plan.execution.autocast is None:
        return None
    return "--dtype bfloat16", dataclasses.replace(plan, dtype="bfloat16")


def _adapter(plan: Plan) -> tuple[str, Plan] | None:
    if plan.peft_config is not None:
        return None
    from peft import LoraConfig

    peft_config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return "--use_peft --lora_target_modules all-linear --lora_dropout 0", dataclasses.replace(
        plan, peft_config=peft_config
    )


def _four_bit(plan: Plan) -> tuple[str, Plan] | None:
    if plan.bits == 4:
        return None
    adapter = _adapter(plan)
    flag, plan = adapter if adapter is not None else ("", plan)
    # 4-bit layers compute in the weights' dtype
    dtype = "bfloat16" if plan.execution.autocast else plan.dtype
    named = " --dtype bfloat16" if dtype != plan.dtype else ""
    return f"{flag} --load_in_4bit{named}".strip(), dataclasses.replace(plan, bits=4, dtype=dtype)


def _shared(plan: Plan) -> tuple[str, Plan] | None:
    if plan.layout == "shared_prompt":
        return None
    return "--batch_layout shared_prompt", dataclasses.replace(plan, layout="shared_prompt")


def _copied(config: Any, **changes: Any) -> Any:
    import copy

    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
