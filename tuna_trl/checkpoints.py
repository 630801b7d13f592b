"""The checkpoints of a training that begins anew in the same folder."""

from __future__ import annotations

from pathlib import Path

from .errors import BuildError


def set_checkpoints_aside(folder: Path) -> Path | None:
    """Move `checkpoint-*` of an earlier run into a folder of their own, so that nothing later takes them for its own.

    A run is gone on from its checkpoint with the highest number: those of a longer run before would win over every
    one of the new run. Nothing is deleted.

    Returns:
        where they are, `<folder>/before-restart-1` or the next that is free; None where there were none.

    Raises:
        BuildError: they cannot be moved.
    """
    found = sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []
    if not found:
        return None
    number = 1
    while (aside := folder / f"before-restart-{number}").exists():
        number += 1
    try:
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
    except OSError as error:
        raise BuildError(f"The checkpoints of {folder} could not be moved to {aside}: {error}.") from error
    return aside
