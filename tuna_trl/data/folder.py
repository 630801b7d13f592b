"""A folder that is written whole or not at all: filled beside its target, then swapped in by a rename.

Touches nothing but the target, its parent folder and a hidden sibling that starts with `.<name>.`; knows nothing of
datasets. A kill at any instant leaves the old folder or the new one at the target (and perhaps the hidden sibling).
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import BuildError, InputError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def replace_folder(target: Path, fill: Callable[[Path], None], *, owned: Collection[str]) -> Path:
    """Fill a new folder and put it in the place of `target`.

    Args:
        target: the folder to write; what stands there stays readable until the new one is complete.
        fill: writes the content into the empty folder it is given.
        owned: the top-level names that this writer replaces. Everything else in an old `target` is carried over
            untouched (a journal, a `.git`, a report).

    Returns:
        the absolute path of the folder written.

    Raises:
        InputError: `target` is a file, or the current folder or one above it (it could not be renamed safely).
        BuildError: the disk is full, or the folder cannot be written; the old folder is left whole.
    """
    target = Path(os.path.realpath(target.expanduser()))
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a dataset is written to a folder of its own.")
    if Path.cwd().is_relative_to(target):
        raise InputError(f"{target} is the current folder or holds it; name a folder of its own for the dataset.")
    staging = lock = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        staging.mkdir()
        lock = _lock(staging)
        fill(staging)
        _sync(staging)
        _swap_in(staging, target, owned)
    except OSError as error:
        raise BuildError(
            f"{target} could not be written: {error}. "
            + ("What stood there before is untouched. " if target.exists() else "")
            + "Free some space or choose another folder, then run the same command again."
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)
    return target


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process however that ends; None where it cannot be had."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(handle)
        return None
    return handle


def _sweep(target: Path) -> None:
    """Delete what writers that were killed left beside `target`: a build of a million rows leaves gigabytes."""
    name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{12}")
    for entry in os.listdir(target.parent):
        left = target.with_name(entry)
        # a minute, because another writer may have made its folder and not locked it yet
        if name.fullmatch(entry) and left.is_dir() and time.time() - left.stat().st_mtime > 60:
            handle = _lock(left)
            if handle is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(handle)


def _swap_in(staging: Path, target: Path, owned: Collection[str]) -> None:
    """Put `staging` at `target`; afterwards `staging` holds what is to be deleted, or is gone."""
    if not target.exists():
        os.rename(staging, target)
    else:
        # Carried over before the swap by links, so that the new folder is complete the instant it appears.
        shutil.copymode(target, staging)
        for entry in sorted(os.listdir(target)):
            if entry not in owned:
                _link(target / entry, staging / entry)
        if not _exchange(staging, target):
            _rename_twice(staging, target)
    _sync_entry(target.parent)


def _rename_twice(staging: Path, target: Path) -> None:
    """Where two folders cannot be exchanged in one call: the old one aside, the new one in, back again on failure."""
    aside = staging.with_name(staging.name + ".old")
    os.rename(target, aside)
    try:
        os.rename(staging, target)
    except OSError:
        os.rename(aside, target)
        raise
    os.rename(aside, staging)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one atomic call (Linux renameat2); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl before 1.2.5
        return False
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _link(old: Path, new: Path) -> None:
    """`old` under a second name: hard links for files, so that nothing is copied and an open file stays the same."""
    if old.is_symlink():
        os.symlink(os.readlink(old), new)
    elif old.is_dir():
        shutil.copytree(old, new, symlinks=True, copy_function=_link_file)
    else:
        _link_file(old, new)


def _link_file(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copy2(old, new)


def _sync(folder: Path) -> None:
    """Everything below `folder` on the disk before it is renamed, so that a power cut cannot leave empty files."""
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_entry(Path(root))


def _sync_entry(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened elsewhere
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
