"""Builds to be run in processes of their own and killed there; imported by the processes that run them."""

from __future__ import annotations

import os
from pathlib import Path

from doubles.remote import LoopbackRemote
from tuna_trl.build.teacher import TeacherBuildConfig, build_teacher_folder


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Instruction {i}: say " + "on and " * (i * 7 % 11)} for i in range(count)]


def local_build(model: Path, output: Path, journal: Path, log: Path) -> None:
    """A tiny model in this process; 25 buckets in four windows."""
    import torch

    from tuna_trl.clients.local import TransformersSampler
    from tuna_trl.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    _log_to(log)
    teacher = TransformersSampler(load_model(str(model), dtype="float32"), load_tokenizer(str(model)), name="tiny")
    config = TeacherBuildConfig(
        max_new_tokens=8, rank_truncated=True, bucket_size=8, window_size=64, seed=3, journal=journal
    )
    build_teacher_folder(rows(200), teacher, output, config)


def server_build(port: int, output: Path, journal: Path, log: Path) -> None:
    """200 instructions, four samples each, one sample a request, four requests at once."""
    _log_to(log)
    build_teacher_folder(rows(200), LoopbackRemote(port, concurrency=4), output, TeacherBuildConfig(journal=journal))


def _log_to(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
