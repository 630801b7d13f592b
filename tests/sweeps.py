"""Small sweeps for tests: ranked files, a tiny model, runs in this process instead of one each."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from training import ranked_dataset


BASE = {
    "learning_rate": 1e-2,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "use_peft": True,
    "lora_target_modules": "all-linear",
    "lora_r": 2,
    "use_cpu": True,
    "activation_checkpointing": False,
}


def ranked_file(path: Path, rows: int, *, seed: int, word: str) -> Path:
    """Ranked rows whose prompts begin with `word`, so that two files share none."""
    lines = [{**row, "prompt": f"{word} {row['prompt']}"} for row in ranked_dataset(rows, seed=seed)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def sweep_content(folder: Path, model: Path, arms: dict, **top) -> dict:
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    if not train.exists():
        ranked_file(train, 12, seed=0, word="train")
        ranked_file(heldout, 4, seed=1, word="held")
    content = {
        "output": str(folder / "out"),
        "model": str(model),
        "train": str(train),
        "heldout": str(heldout),
        "max_new_tokens": 4,
        "seeds": [0],
        "base": BASE,
        "arms": arms,
    }
    return {**content, **top}


def write_sweep(folder: Path, content: dict) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class InThisProcess:
    """Stands for the processes of a sweep: runs each here, notes which were asked for, fails at one."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.fail_at, self.asked = fail_at, []

    def __call__(self, file: Path) -> int:
        from tuna_trl.pipelines.ablation_run import run_arm

        spec = json.loads(file.read_text(encoding="utf-8"))
        self.asked.append((spec["arm"], spec["seed"]))
        if spec["arm"] == self.fail_at:
            return 2
        run_arm(spec)
        return 0
