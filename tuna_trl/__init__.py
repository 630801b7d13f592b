"""tuna_trl: train a language model on *ranked* answers.

Public names are resolved on first use, so that `import tuna_trl` loads neither torch nor an SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__


if TYPE_CHECKING:
    from .build.judge import JudgeBuildConfig, build_judge_ranked
    from .build.teacher import TeacherBuildConfig, build_teacher_folder, build_teacher_ranked
    from .collator import RankedCollator
    from .config import TunaConfig
    from .data.hub import load_ranked, save_ranked
    from .data.schema import normalise_row, ranked_features
    from .errors import BudgetExceeded, BuildError, InputError, SchemaError, TrainingMemoryError
    from .losses import ranking_loss, register_ranking_loss
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
    "load_ranked": ".data.hub",
    "normalise_row": ".data.schema",
    "ranked_features": ".data.schema",
    "ranking_loss": ".losses",
    "register_ranking_loss": ".losses",
    "save_ranked": ".data.hub",
    "score_rows": ".scoring",
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
    "load_ranked",
    "normalise_row",
    "ranked_features",
    "ranking_loss",
    "register_ranking_loss",
    "save_ranked",
    "score_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
