"""The instructions of docs/results.md, out of ../shared/data/alpaca: `python -m benchmarks.effect_prompts`.

Writes, to runs/effect (or `--output`), one {"prompt", "reference"} a line:

    tune.jsonl       388 short instructions that settings were tried on
    tune_dev.jsonl   140 of the same source, not trained on: what the tried settings were chosen by
    train.jsonl      600 other instructions: what the compared arms are trained on
    heldout.jsonl    400 more, in neither of the others: what is reported

The two sources (LLMs-from-scratch for tuning, Alpaca for the report) share no instruction, so that nothing reported
was looked at while settings were chosen. Answers are short (30 words, 100 characters), because SmolLM2-135M keeps to
a question for about as long, and because two cores have to sample and score them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuna_trl.pipelines.demo import SYSTEM


# bit i: row i of LLMs-from-scratch is one of tune_dev.jsonl; drawn once, at random
TUNE_DEV = int(
    "30408A349002C90886714821304145D2DB02040800214F40284500092252314505501E"
    "1114000068804211200040044C0478F0201D0241A3C00019048080E60900090081",
    16,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/alpaca"), help="the folder of the sources")
    parser.add_argument("--output", type=Path, default=Path("runs/effect"))
    args = parser.parse_args()
    tuned = _read(args.data / "llms_from_scratch_1100.jsonl")
    short = [(i, row) for i, row in enumerate(tuned) if len(row["output"].split()) <= 30]
    parts = {
        "tune": [_row(row) for i, row in short if not TUNE_DEV >> i & 1],
        "tune_dev": [_row(row) for i, row in short if TUNE_DEV >> i & 1],
    }
    fresh = _short_alpaca(_read(args.data / "alpaca_subset.jsonl"), {_text(row) for _, row in short})
    random.Random(0).shuffle(fresh)
    parts |= {"heldout": fresh[:400], "train": fresh[400:1000]}
    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{args.output / name}.jsonl: {len(rows)} instructions")


def _short_alpaca(rows: Iterable[dict[str, str]], seen: set[str]) -> list[dict[str, Any]]:
    """Rows with an answer of 8 to 100 characters on one line and a question of at most 300, each question once."""
    kept, seen = [], set(seen)
    for row in rows:
        text, answer = _text(row), row["output"]
        if not 8 <= len(answer) <= 100 or len(text) > 300 or text in seen or "\n" in answer.strip():
            continue
        seen.add(text)
        kept.append(_row(row))
    return kept


def _row(row: dict[str, str]) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": _text(row)}]
    return {"prompt": messages, "reference": row["output"].strip()}


def _text(row: dict[str, str]) -> str:
    return row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")


def _read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


if __name__ == "__main__":
    main()
