"""tuna_trl: train a language model on *ranked* answers.

Public names are resolved on first use, so that `import tuna_trl` loads neither torch nor an SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__


if TYPE_CHECKING:
    from .build.judge import JudgeBuildConfig, build_judge_ranked
    from .build.judge_given import rank_by_judge
    from .build.rank import rank_by_teacher
    from .build.teacher import TeacherBuildConfig, build_teacher_folder, build_teacher_ranked
    from .clients.judges import judge_by_name
    from .collator import RankedCollator
    from .config import TunaConfig
    from .data.convert import import_ranked, to_kto, to_lmops, to_preference, to_sft
    from .data.hub import load_ranked, save_ranked
    from .data.schema import normalise_row, ranked_features
    from .data.validate import validate
    from .errors import BudgetExceeded, BuildError, InputError, SchemaError, TrainingMemoryError
    from .evaluation.lm_eval_tasks import lm_eval_tasks_path
    from .losses import ranking_loss, register_ranking_loss
    from .pipelines.publish import push_to_hub
    from .scoring import score_rows
    from .trainer import TunaTrainer

# name -> module that defines it
_WHERE = {
    "BudgetExceeded": ".errors",
    "BuildError": ".errors",
    "InputError": ".errors",
    "JudgeBuildConfig": ".build.judge",
    "RankedCollator": ".collator",
    "SchemaError": ".errors",
    "TeacherBuildConfig": ".build.teacher",
    "TrainingMemoryError": ".errors",
    "TunaConfig": ".config",
    "TunaTrainer": ".trainer",
    "build_judge_ranked": ".build.judge",
    "build_teacher_folder": ".build.teacher",
    "build_teacher_ranked": ".build.teacher",
    "import_ranked": ".data.convert",
    "judge_by_name": ".clients.judges",
    "lm_eval_tasks_path": ".evaluation.lm_eval_tasks",
    "load_ranked": ".data.hub",
    "normalise_row": ".data.schema",
    "push_to_hub": ".pipelines.publish",
    "rank_by_judge": ".build.judge_given",
    "rank_by_teacher": ".build.rank",
    "ranked_features": ".data.schema",
    "ranking_loss": ".losses",
    "register_ranking_loss": ".losses",
    "save_ranked": ".data.hub",
    "score_rows": ".scoring",
    "to_kto": ".data.convert",
    "to_lmops": ".data.convert",
    "to_preference": ".data.convert",
    "to_sft": ".data.convert",
    "validate": ".data.validate",
}

__all__ = [
    "__version__",
    "BudgetExceeded",
    "BuildError",
    "InputError",
    "JudgeBuildConfig",
    "RankedCollator",
    "SchemaError",
    "TeacherBuildConfig",
    "TrainingMemoryError",
    "TunaConfig",
    "TunaTrainer",
    "build_judge_ranked",
    "build_teacher_folder",
    "build_teacher_ranked",
    "import_ranked",
    "judge_by_name",
    "lm_eval_tasks_path",
    "load_ranked",
    "normalise_row",
    "push_to_hub",
    "rank_by_judge",
    "rank_by_teacher",
    "ranked_features",
    "ranking_loss",
    "register_ranking_loss",
    "save_ranked",
    "score_rows",
    "to_kto",
    "to_lmops",
    "to_preference",
    "to_sft",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
