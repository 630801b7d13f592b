"""SFTTrainer against TunaTrainer on the same rows: loss and gradient norm, step by step, in one table.

Both trainers get the same settings, model, tokenizer and rows; what differs is the class. TunaTrainer runs in each of
its batch layouts. Nothing is downloaded. Exits with 1 where a bound is broken. Writes the page, and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

FIRST_BOUND, ANY_BOUND = 1e-5, 1e-4  # relative difference at step 1, and at any step
# what a user of SFTTrainer on a CPU would write; the learning rate is that of AdamW on a small model
SETTINGS = dict(
    per_device_train_batch_size=4,
    learning_rate=1e-3,
    max_grad_norm=1.0,
    gradient_checkpointing=False,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
    bf16=False,
)
WORDS = "the in a there other thin then answer question summer river stone his her other than".split()
TOOLS = '[{"type": "function", "function": {"name": "lookup", "description": "", "parameters": {}}}]'
SHOWN = "{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}{{ mood }}"
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear")
REAL_MARK = "## On a real model"
# "shared_prompt" is what a plain SFTConfig comes to
LAYOUTS = ("rows", "shared_prompt")


@dataclass
class Line:
    """One line of the table: a kind of rows, and what differs from `SETTINGS`."""

    name: str
    rows: str = "prompt-completion"
    settings: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    template: str = "CHATML"  # of tests/tiny.py
    prefix: str = ""  # in front of the template
    model: dict[str, Any] = field(default_factory=dict)
    layouts: tuple[str, ...] = LAYOUTS


LINES = [
    Line("prompt-completion"),
    Line("prompt-completion, conversational", "conversational"),
    Line("prompt-completion, prompt trained too", settings={"completion_only_loss": False}),
    Line("prompt-completion, tools and chat_template_kwargs", "tools", prefix=SHOWN),
    Line("messages", "messages"),
    Line("messages, assistant only", "messages", {"assistant_only_loss": True}, template="CHATML_MARKED"),
    Line("text", "text"),
    Line("text, truncated to 24 tokens", "text", {"max_length": 24}),
    Line("input_ids", "input_ids"),
    Line("input_ids and completion_mask", "masked", {"completion_only_loss": True}),
    # 22 micro-batches an epoch: the last step of one has 2 of 4, the last of those 1 row of 3
    Line("accumulation 4 x 3", settings={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}),
    Line("LoRA", lora=LORA),
    Line("LoRA with dropout 0.1", lora={**LORA, "lora_dropout": 0.1}, layouts=("rows",)),
    Line("LoRA, embeddings and head saved", lora={**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}),
    Line("attention dropout 0.1", model={"attention_dropout": 0.1}, layouts=("rows",)),
    Line("NEFTune, alpha 5", settings={"neftune_noise_alpha": 5}, layouts=("rows",)),
    Line("activation checkpointing", settings={"gradient_checkpointing": True}),
    Line("tied embeddings", model={"tie_word_embeddings": True}),
    Line("loss_type dft", settings={"loss_type": "dft"}),
    Line(
        "cosine schedule, warm-up, weight decay",
        settings={"lr_scheduler_type": "cosine", "warmup_steps": 5, "weight_decay": 0.1},
    ),
]


@dataclass
class Result:
    """What both trainers logged: `(loss, gradient norm)` of each step."""

    name: str
    layout: str
    sft: list[tuple[float, float]]
    tuna: list[tuple[float, float]]

    def differences(self, what: int) -> list[float]:
        """Relative difference of each step; `what` is 0 for the loss, 1 for the gradient norm."""
        pairs = zip(self.sft, self.tuna, strict=True)
        return [abs(ours[what] - theirs[what]) / max(abs(theirs[what]), 1e-30) for theirs, ours in pairs]

    @property
    def first(self) -> float:
        return max(self.differences(0)[0], self.differences(1)[0])

    @property
    def largest(self) -> float:
        return max(*self.differences(0), *self.differences(1))

    @property
    def within(self) -> bool:
        """False for a NaN too: it is never `<=` a bound."""
        return self.first <= FIRST_BOUND and all(d <= ANY_BOUND for what in (0, 1) for d in self.differences(what))


def make_rows(kind: str, count: int, vocab_size: int) -> list[dict[str, Any]]:
    """`count` rows of a kind, of many lengths, the same at every call."""
    rng = random.Random(0)

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    def user() -> dict[str, str]:
        return {"role": "user", "content": words(9)}

    def assistant() -> dict[str, str]:
        return {"role": "assistant", "content": words(15)}

    def masked() -> dict[str, Any]:
        prompt, completion = rng.randint(1, 9), rng.randint(1, 15)
        ids = [rng.randrange(vocab_size) for _ in range(prompt + completion)]
        return {"input_ids": ids, "completion_mask": [0] * prompt + [1] * completion}

    makers = {
        "prompt-completion": lambda: {"prompt": words(9) + " ", "completion": words(15)},
        "conversational": lambda: {"prompt": [user()], "completion": [assistant()]},
        "tools": lambda: {
            "prompt": [user()],
            "completion": [assistant()],
            "tools": TOOLS,
            "chat_template_kwargs": {"mood": rng.choice(["calm", "glad"])},
        },
        "messages": lambda: {"messages": [m for _ in range(rng.randint(1, 3)) for m in (user(), assistant())]},
        "text": lambda: {"text": words(25)},
        "input_ids": lambda: {"input_ids": masked()["input_ids"]},
        "masked": masked,
    }
    return [makers[kind]() for _ in range(count)]


def train(
    layout: str | None, model: Any, tokenizer: Any, rows: list, settings: dict, lora: dict | None
) -> list[tuple[float, float]]:
    """`(loss, gradient norm)` of each step of one trainer: TunaTrainer in a layout, or SFTTrainer (None)."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from tuna_trl import TunaTrainer
    from tuna_trl.config import upgrade_config

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL sets the old name of activation checkpointing itself
        args = SFTConfig(output_dir=folder, **settings)
        if layout == "rows":
            args = upgrade_config(args, folder)
            args.batch_layout = layout
        trainer = (TunaTrainer if layout else SFTTrainer)(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(tokenizer),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
        )
        if layout and trainer._layout != layout:  # a table must not say "shared_prompt" of padded rows
            raise RuntimeError(f"The layout is {trainer._layout!r}, not {layout!r}.")
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        steps = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]
    if len(steps) != settings["max_steps"]:
        raise RuntimeError(f"{type(trainer).__name__} logged {len(steps)} steps of {settings['max_steps']}.")
    return steps


def measure(line: Line, rows: int, steps: int) -> list[Result]:
    """Both trainers on one line, each on its own copy of a random model; one result a layout."""
    import tiny

    tokenizer = tiny.chatml_tokenizer()
    tokenizer.chat_template = line.prefix + getattr(tiny, line.template)
    data = make_rows(line.rows, rows, len(tokenizer))
    settings = {**SETTINGS, "max_steps": steps, **line.settings}

    def run(layout: str | None) -> list[tuple[float, float]]:
        model = tiny.random_llama(len(tokenizer), **{**tiny_size(), **line.model})
        return train(layout, model, tokenizer, data, settings, line.lora)

    expected = run(None)
    return [Result(line.name, layout, expected, run(layout)) for layout in line.layouts]


def tiny_size() -> dict[str, Any]:
    """Between the tests' model and a real one, at transformers' initial weights, so that it trains as models do."""
    return dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, initializer_range=0.02, max_position_embeddings=1024
    )


def measure_real(rows: int, steps: int) -> list[Result]:
    """The embedded SmolLM2-135M on the text of its demo's instructions, 64 tokens a row."""
    from tuna_trl.loading import load_model, load_tokenizer

    lines = (ROOT / "tuna_trl/data/demo/instructions.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    data = [{"text": text_of(json.loads(line))} for line in lines]
    settings = {**SETTINGS, "max_steps": steps, "max_length": 64, "learning_rate": 1e-5}
    found = {}
    for layout in (None, *LAYOUTS):
        print(f"  embedded model, {layout or 'SFTTrainer'} ...", file=sys.stderr)
        found[layout] = train(layout, load_model("embedded"), load_tokenizer("embedded"), data, settings, None)
        gc.collect()
    name = f"SmolLM2-135M, text, {len(data)} rows of at most 64 tokens, AdamW at 1e-5"
    return [Result(f"{name}, `{layout}`", layout, found[None], found[layout]) for layout in LAYOUTS]


def text_of(row: dict[str, str]) -> str:
    return f"{row['prompt']}\n{row['reference']}"


# ---- The page ----


def page(results: list[Result], rows: int, steps: int, real: str) -> str:
    """The whole page in Markdown; `real` is the section on the real model."""
    worst = max(results, key=lambda result: result.largest)
    padded, packed = ([r for r in results if r.layout == layout] for layout in LAYOUTS)
    return f"""# Parity with SFTTrainer

Made by `python benchmarks/parity.py`; the figures are those of the run that wrote the page ({versions()}).

Both trainers get the same settings, model, tokenizer and {rows} rows: {steps} steps of AdamW at 1e-3, gradients
clipped at 1, 4 rows a batch where the line says nothing else, float32 on a CPU. The model is a random Llama of two
layers, the rows are random words of many lengths. The figures are relative differences of what the two trainers log:
at step 1 (bound {FIRST_BOUND:.0e}), and the largest of all {steps} steps (bound {ANY_BOUND:.0e}).

## Padded rows, as SFTTrainer has them

The same settings with `batch_layout="rows"`:

{table(padded)}

## Without padding, the default

A plain `SFTConfig` comes to `batch_layout="auto"`, which puts the batch in one row without padding where the model
can. Dropout then draws its masks for another shape, so that a run with dropout is another sample of the same
distribution: those lines stand above only. NEFTune, whose noise depends on a row's length, always has padded rows.

{table(packed)}

## Step by step

The line with the largest difference ({worst.name}, `{worst.layout}`):

{step_table(worst)}

## What differs

- `eval_loss` is exact whatever the batch size; SFTTrainer's is a mean of its batches' means. In one batch they agree.
- `entropy` and `mean_token_accuracy` are not logged: there are no logits. `metric_for_best_model` cannot name them.
- `train_sampling_strategy="group_by_length"` draws another order, from the seed alone: a resumed run sees it again.
- A text that begins with a BOS has one; SFTTrainer's tokenizer puts another in front of it.
- Prompt-completion rows that also have a column `text` end with the end token; SFTTrainer puts it behind `text`, and
  the completion has none.

{real}"""


def table(results: list[Result]) -> str:
    """One row a result."""
    lines = [
        "| rows and settings | loss, first to last step | loss, step 1 | gradient norm, step 1 | loss, largest "
        "| gradient norm, largest | within |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        losses, norms = result.differences(0), result.differences(1)
        figures = " | ".join(f"{x:.1e}" for x in (losses[0], norms[0], max(losses), max(norms)))
        course = f"{result.tuna[0][0]:.4f} to {result.tuna[-1][0]:.4f}"
        lines.append(f"| {result.name} | {course} | {figures} | {'yes' if result.within else '**no**'} |")
    return "\n".join(lines)


def step_table(result: Result) -> str:
    """Every step of one result, to the digits in which the two could differ."""
    lines = [
        "| step | loss, SFTTrainer | loss, TunaTrainer | gradient norm, SFTTrainer | gradient norm, TunaTrainer |"
    ]
    lines.append("|---|---|---|---|---|")
    for i, (theirs, ours) in enumerate(zip(result.sft, result.tuna, strict=True), 1):
        lines.append(f"| {i} | {theirs[0]:.8f} | {ours[0]:.8f} | {theirs[1]:.8f} | {ours[1]:.8f} |")
    return "\n".join(lines)


def real_section(results: list[Result]) -> str:
    return f"{REAL_MARK}\n\nMade by `python benchmarks/parity.py --real` ({versions()}).\n\n{table(results)}\n"


def kept_real_section(output: Path) -> str:
    """The section of an earlier `--real` run, as the page has it; it says itself what made it."""
    text = output.read_text(encoding="utf-8") if output.is_file() else ""
    _, found, rest = text.partition(REAL_MARK)
    return (
        found + rest
        if found
        else f"{REAL_MARK}\n\nNot run yet: `python benchmarks/parity.py --real` (minutes on a CPU).\n"
    )


def versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("torch", "trl", "transformers", "peft"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="rows of each dataset")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps")
    parser.add_argument("--only", default="", help="only lines whose name contains this; the page is not written")
    parser.add_argument("--real", action="store_true", help="also the embedded SmolLM2-135M (minutes on a CPU)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md", help="the page")
    arguments = parser.parse_args()

    chosen = [line for line in LINES if arguments.only in line.name]
    if not chosen:
        parser.error(f"--only {arguments.only!r} fits no line; there are: {', '.join(line.name for line in LINES)}.")
    quieten()
    results: list[Result] = []
    for i, line in enumerate(chosen, 1):
        results += report(measure(line, arguments.rows, arguments.steps), f"{i}/{len(chosen)}")
    own, real = list(results), kept_real_section(arguments.output)
    if arguments.real:
        measured = report(measure_real(arguments.rows, arguments.steps), "real")
        results += measured
        real = real_section(measured)
    if not arguments.only:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(page(own, arguments.rows, arguments.steps, real), encoding="utf-8")
        print(f"Written to {arguments.output}.")
    broken = [f"{result.name} ({result.layout})" for result in results if not result.within]
    if broken:
        print(f"Out of bounds: {'; '.join(broken)}.", file=sys.stderr)
    return 1 if broken else 0


def quieten() -> None:
    """One line a result is what a run prints."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def report(results: list[Result], place: str) -> list[Result]:
    for result in results:
        verdict = "" if result.within else "  OUT OF BOUNDS"
        figures = f"step 1 {result.first:.1e}, largest {result.largest:.1e}{verdict}"
        print(f"{place:>6}  {result.layout:13}  {result.name}: {figures}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
