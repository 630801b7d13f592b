"""Tasks for EleutherAI's lm-eval: YAML files that call the scorers of this package.

lm_eval --model hf --model_args pretrained=... --tasks tuna_super_ni --include_path $(tuna_trl's folder)
"""

from __future__ import annotations

from pathlib import Path


def lm_eval_tasks_path() -> str:
    """The folder for lm-eval's `--include_path` or `TaskManager(include_path=...)`."""
    return str(Path(__file__).resolve().parent)
