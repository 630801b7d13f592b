"""`make bench-sampling`: tokens a second of the local sampler against the three ways that transformers itself has.

    OMP_NUM_THREADS=1 python -m benchmarks.sampling [--quick] [--only 64x16_bf16] [--restart] [--write-docs]

One process, the sides in turn within every round, CPU seconds, medians. A point is on disk as soon as it is measured,
and a rerun continues behind it. Touches `runs/bench/sampling.jsonl` and `sampling.json`, and docs/ranking.md if asked.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuna_trl.clients.base import Sampling
from tuna_trl.clients.local import TransformersSampler

from .measure import device_name, spread, timed
from .results import ROOT, Journal, versions, write_block


N, NEW_TOKENS = 4, 24
POINTS = [(dtype, prompt, batch) for batch in (1, 16) for prompt in (64, 384) for dtype in ("fp32", "bf16")]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDES = ("generate_each", "generate_n", "generate_batch")
MEASURED = ("local.py", "kv_cache.py", "drawing.py", "weights.py")

Drawn = tuple[Tensor, Tensor]  # ids `(prompts * N, NEW_TOKENS)` and their log-probs


class EndlessSampler(TransformersSampler):
    """The sampler on token ids, without end tokens, so that every side draws the same number of tokens."""

    def _encode(self, prompts: Sequence[Any]) -> list[list[int]]:
        return [list(ids) for ids in prompts]

    def _end_tokens(self) -> set[int]:
        return set()


def ours(sampler: TransformersSampler, prompts: Tensor) -> list[tuple[float, ...]]:
    """One call of [`TransformersSampler.sample`]."""
    seeds = [[N * i + k for k in range(N)] for i in range(len(prompts))]
    drawn = sampler.sample(prompts.tolist(), N, Sampling(max_new_tokens=NEW_TOKENS), seeds=seeds)
    return [sample.token_logprobs for samples in drawn for sample in samples]


def generate_each(model: Any, prompts: Tensor) -> list[Drawn]:
    """N calls of `generate`, each one sample of every prompt."""
    return [_generate(model, prompts, 1) for _ in range(N)]


def generate_n(model: Any, prompts: Tensor) -> list[Drawn]:
    """One call with `num_return_sequences=N`."""
    return [_generate(model, prompts, N)]


def _generate(model: Any, prompts: Tensor, copies: int) -> Drawn:
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        num_return_sequences=copies,
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        pad_token_id=0,
        output_logits=True,  # the raw ones, before any processor
        return_dict_in_generate=True,
    )
    ids = output.sequences[:, prompts.shape[1] :]
    logprobs = [
        (logits := raw.float()).gather(1, ids[:, t, None])[:, 0] - logits.logsumexp(1)
        for t, raw in enumerate(output.logits)
    ]
    return ids, torch.stack(logprobs, 1)


def generate_batch(model: Any, prompts: Tensor) -> dict[str, Any]:
    """Continuous batching; its log-probs are of the processed scores, which at T = 1 are the raw ones."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    batch, length = prompts.shape
    page = 32
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=batch * (-(-length // page) + N * (2 + -(-NEW_TOKENS // page))) + 8,
        # 128, 512 and 2048 take the same time (17 to 19 s at 64 x 16 in bfloat16)
        max_batch_tokens=512,
        return_logprobs=True,
        seed=0,
    )
    generation = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        num_return_sequences=N,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        pad_token_id=0,
    )
    own = model.config._attn_implementation
    try:
        return model.generate_batch(
            prompts.tolist(), generation_config=generation, continuous_batching_config=config, warmup=False
        )
    finally:
        model.set_attn_implementation(own)


def check(found: dict[str, Any], prompts: int) -> None:
    """Every side has drawn what the others have drawn: as many tokens, each with a log-prob."""
    each = sum((list(rows) for _, rows in found["generate_each"]), [])
    continuous = [result.logprobs for result in found["generate_batch"].values()]
    for name, rows in (
        ("ours", found["ours"]),
        ("generate_each", each),
        ("generate_n", list(found["generate_n"][0][1])),
        ("generate_batch", continuous),
    ):
        lengths = {len(row) for row in rows}
        if len(rows) != prompts * N or lengths != {NEW_TOKENS}:
            raise RuntimeError(f"{name}: {len(rows)} responses of {lengths} tokens, not {prompts * N} of {NEW_TOKENS}")


def measure(dtype: str, length: int, batch: int, repeats: int) -> dict[str, Any]:
    """The row of one point: tokens a second of each side, and how many times as fast as each we are."""
    model, tokenizer = _loaded(dtype)
    sampler = EndlessSampler(model, tokenizer, name="embedded")
    prompts = torch.randint(100, 40_000, (batch, length), generator=torch.Generator().manual_seed(length))
    sides: dict[str, Callable[[Tensor], Any]] = {
        "ours": lambda ids: ours(sampler, ids),
        "generate_each": lambda ids: generate_each(model, ids),
        "generate_n": lambda ids: generate_n(model, ids),
        "generate_batch": lambda ids: generate_batch(model, ids),
    }
    check({name: side(prompts[:1, :16]) for name, side in sides.items()}, 1)  # and the warm-up
    seconds = _rounds(sides, prompts, repeats, f"{length}x{batch} {dtype}")
    row: dict[str, Any] = {"name": f"{length}x{batch}_{dtype}", "prompt": length, "batch": batch, "dtype": dtype}
    tokens = batch * N * NEW_TOKENS
    row["tokens_per_second"] = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    row["seconds"] = {name: statistics.median(values) for name, values in seconds.items()}
    for name in SIDES:
        ratios = [other / own for other, own in zip(seconds[name], seconds["ours"], strict=True)]
        row[f"over_{name}"] = statistics.median(ratios)
        row[f"over_{name}_spread"] = spread(ratios)
    return row | {"repeats": repeats, "load": round(os.getloadavg()[0], 1)}


def _rounds(
    sides: dict[str, Callable[[Tensor], Any]], prompts: Tensor, repeats: int, label: str
) -> dict[str, list[float]]:
    from tqdm.auto import tqdm

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    with tqdm(total=repeats * len(sides), desc=label, unit="call", disable=None, leave=False) as bar:
        for _ in range(repeats):
            for name, side in sides.items():
                bar.set_postfix_str(name)
                with torch.no_grad():
                    seconds[name].append(timed(lambda s=side, n=name: found.update({n: s(prompts)}), prompts.device))
                bar.update()
            check(found, len(prompts))
            found.clear()
    return seconds


_MODELS: dict[str, Any] = {}


def _loaded(dtype: str) -> Any:
    """The model of a precision; one is in memory at a time."""
    if dtype not in _MODELS:
        from tuna_trl.loading import load_model, load_tokenizer

        _MODELS.clear()
        model = load_model("embedded", dtype=DTYPES[dtype], device_map=None)
        model.generation_config.eos_token_id = None  # every side draws the same number of tokens
        _MODELS[dtype] = model, load_tokenizer("embedded")
    return _MODELS[dtype]


def code_hash() -> str:
    """12 hex digits of the sampler's code, docstrings and comments left out: a row of other code is measured again."""
    digest = hashlib.sha256()
    for name in MEASURED:
        tree = ast.parse((ROOT / "tuna_trl" / "clients" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/ranking.md."""
    head = ("prompt", "prompts", "", "ours, tokens/s", "over (i)", "over (ii)", "over (iii)", "load")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        over = [f"{row[f'over_{name}']:.2f}x" for name in SIDES]
        own = f"{row['tokens_per_second']['ours']:.0f}"
        cells = [str(row["prompt"]), str(row["batch"]), row["dtype"], own, *over, f"{row['load']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="prompts of 64 tokens, one at a time")
    parser.add_argument("--only", default="", help="points whose name contains this (64x16_bf16)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--restart", action="store_true", help="forget what was measured")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/ranking.md")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    run = {"device": device_name(device), "versions": versions(), "code": code_hash(), "n": N, "new": NEW_TOKENS}
    journal = Journal(arguments.output / "sampling.jsonl", run)
    if arguments.restart:
        journal.clear()
    points = [p for p in POINTS if not arguments.quick or p[1:] == (64, 1)]
    for dtype, length, batch in points:  # the cheapest first
        name = f"{length}x{batch}_{dtype}"
        if arguments.only in name and name not in journal.rows():
            row = measure(dtype, length, batch, arguments.repeats)
            journal.add(row)
            print(name, {key: round(row[f"over_{key}"], 2) for key in SIDES}, f"load {row['load']}", flush=True)
    found = journal.rows()
    rows = [found[name] for d, p, b in POINTS if (name := f"{p}x{b}_{d}") in found]
    (arguments.output / "sampling.json").write_text(json.dumps({**run, "rows": rows}, indent=1) + "\n")
    print(markdown(rows))
    if arguments.write_docs:
        write_block(ROOT / "docs" / "ranking.md", "bench:sampling", markdown(rows))


if __name__ == "__main__":
    main()
