"""The recipe that `tuna-trl init` writes: YAML with comments, by model, data, ranker and card. Pure: text out."""

from __future__ import annotations

import json
import re
from pathlib import Path


# GiB a billion parameters that LoRA on a bf16 base takes at 4 responses of 384 tokens to a prompt of 256,
# which is what `tuna-trl estimate` says of Llama-3.2-1B, -3B and Qwen3-8B (tests/cli/test_init.py holds them to it)
_LORA_GIB, _FREE_GIB = 4.2, 1.0


def recipe_text(
    *,
    path: Path,
    output: str,
    model: str,
    source: str,
    ranked_as: str | None,
    ranker: str,
    card: float,
    max_cost: float,
    seed: int,
) -> str:
    """The file as text.

    Args:
        path: what the file will be called.
        ranked_as: None: `source` holds prompts; "ranked" or "unranked": rows with responses.
        ranker: `given`, `teacher:<model>` or a judge's name.
        card: GiB; 0 is a CPU.
        max_cost: USD, for a paid judge.
    """
    method = _method(_billions(model), card)
    lines = [
        f"# A recipe of tuna_trl.   tuna-trl run {path} --dry-run   shows its commands,   tuna-trl run {path}   runs",
        "# what is not finished: after an interruption or a change run it again. All keys: docs/recipes.md.",
        f"output: {_scalar(output)}  # folder of everything; stage train_1 writes to train_1 in it",
        f"model: {_scalar(model)}  # what is trained: a Hub id, a folder or embedded",
    ]
    if ranked_as is None:
        lines.append(f"prompts: {_scalar(source)}  # {_prompt_note(source, ranker)}")
    lines += [f"seed: {seed}  # of every stage that draws", "defaults:", "  train:"]
    lines += [f"    {line}" for line in _training(method, card, output)]
    lines += ["stages:", *(f"  {line}" for line in _ranking(source, ranked_as, ranker, card, max_cost))]
    lines += [
        "  - train: {learning_rate: 1.0e-4}  # the first thing to vary, by a factor of 3",
        "  - merge: {}  # adapter and base as one plain model, which loads anywhere",
        "  # Did it help? On ranked rows that were not trained on, before and after:",
        "  # - evaluate ranking: {data: held_out.jsonl, split: train}",
        "  # A second round, on answers of the model that the first has trained: put the stages above under",
        "  # - repeat: 2",
        "  #   stages: [...]",
    ]
    return "\n".join(lines) + "\n"


def _scalar(text: str) -> str:
    """A string as YAML: plain where that is safe, else in double quotes (JSON is YAML)."""
    plain = re.fullmatch(r"[A-Za-z./_][\w./:@+-]*", text) and not text.endswith(":")
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "."}
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def _billions(model: str) -> float | None:
    """Parameters in billions, as the name says (`Llama-3.2-3B`, `SmolLM2-360M`), None where it does not."""
    if model == "embedded":
        return 0.135
    found = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z\d])", model.lower())
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1 if unit == "b" else 1000)


def _method(billions: float | None, card: float) -> str:
    """`cpu`, `lora` or `qlora`: what fits, LoRA on bf16 weights first. Of a model whose size the name does not tell:
    QLoRA up to 24 GiB."""
    if not card:
        return "cpu"
    if billions is None:
        return "qlora" if card <= 24 else "lora"
    return "lora" if _LORA_GIB * billions + _FREE_GIB <= card else "qlora"


def _training(method: str, card: float, output: str) -> list[str]:
    shared = [
        "use_peft: true  # an adapter (LoRA); without it all weights are trained, which takes far more memory",
        "lora_r: 16",
        "lora_alpha: 32",
        "lora_target_modules: all-linear",
    ]
    by_method = {
        "cpu": ["max_length: 256  # tokens of a prompt with one response; longer ones are dropped"],
        "lora": [
            "dtype: bfloat16  # of the frozen weights",
            "bf16: true",
            "optim: adamw_8bit",
            "max_length: 1024  # tokens of a prompt with one response; longer ones are dropped",
        ],
        "qlora": [
            "load_in_4bit: true  # the frozen weights in half a byte each: QLoRA",
            "use_bnb_nested_quant: true",
            "dtype: bfloat16  # what 4-bit weights are computed in",
            "bf16: true",
            "optim: paged_adamw_8bit",
            "max_length: 1024  # tokens of a prompt with one response; longer ones are dropped",
        ],
    }[method]
    if card:
        ask = f"tuna-trl estimate --config {output}/train_1.yaml --card {card:g}"
        by_method.append(f"# before the training starts: does it fit?   {ask}")
    return [
        *shared,
        *by_method,
        "per_device_train_batch_size: 1",
        f"gradient_accumulation_steps: {16 if card else 8}  # instructions of one step",
        "num_train_epochs: 1",
        "lr_scheduler_type: cosine",
        "margin: 1.0  # nats a token and rank that a better answer is to lead by; the paper's 0.1 gained less, see",
        "             # docs/results.md (measured at 135M)",
        "mle_target: best  # what the likelihood term trains: the best response of each prompt",
        "mle_weight: 1.0  # weight of the likelihood term beside the ranking loss",
        "logging_steps: 4",
        "save_steps: 50  # a run that is interrupted goes on from the last checkpoint",
        "report_to: none  # or wandb, tensorboard, trackio",
    ]


def _prompt_note(source: str, ranker: str) -> str:
    if source.startswith("demo:"):
        return 'instructions that come with the package; yours: a .jsonl with {"prompt": "..."} a line'
    fields = '{"prompt": "...", "reference": "..."}' if ranker == "reference" else '{"prompt": "..."}'
    return f"{fields} a line, or a Hub id"


def _ranking(source: str, ranked_as: str | None, ranker: str, card: float, max_cost: float) -> list[str]:
    """The stages up to the ranked dataset."""
    teacher = ranker.removeprefix("teacher:") if ranker.startswith("teacher:") else None
    dtype = ["    dtype: bfloat16"] if card else []
    cost = [f"    max_cost: {max_cost:g}  # USD, at most"] if _paid(ranker) else []
    if ranked_as is None and teacher is not None:
        return [
            "- build teacher:  # the teacher samples; its own likelihood ranks. A stronger teacher ranks better",
            f"    teacher: {_scalar(teacher)}",
            "    num_responses: 4",
            "    max_new_tokens: 256  # a response that is cut is not ranked",
            *dtype,
        ]
    if ranked_as is None:
        key = "  # needs ANTHROPIC_API_KEY" if ranker.startswith("claude") else ""
        return [
            "- build judge:  # the model itself samples, the judge reads and ranks",
            f"    judge: {_scalar(ranker)}{key}",
            "    num_responses: 4",
            f"    max_new_tokens: {256 if card else 40}",
            *dtype,
            *cost,
        ]
    stages = [f"- import: {{source: {_scalar(source)}}}  # finds the shape by itself; it says if it cannot"]
    if teacher is not None:
        stages += ["- rank:  # by likelihood", f"    teacher: {_scalar(teacher)}", *dtype, "    overwrite_ranks: true"]
    elif ranker != "given":
        stages += ["- rank:  # the judge reads what is there", f"    judge: {_scalar(ranker)}", *cost]
    return [*stages, "- validate  # stops here if rows are unsound"]


def _paid(ranker: str) -> bool:
    return ranker.startswith(("claude", "openai:"))
