"""Stages that are done once: each is named by a hash of what goes into it, and skipped when its output stands.

Knows nothing of ranking; the demo and recipes are made of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.schema import digest
from ..errors import BuildError


class Stages:
    """The stages of one run folder, recorded in its `stages.json`.

    Args:
        folder: created if missing.
        say: how progress is told, one line a call.

    A stage's key covers its settings and the key of the stage before, so that a change at the front repeats all that
    comes behind it, and nothing else. While a stage is at work, `went_on` says whether it was begun before with the
    very same settings, so that what a killed run left (a checkpoint, say) may be gone on from.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say
        self._file = folder / "stages.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._done: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}
        except OSError as error:
            raise BuildError(f"The run folder {folder} cannot be used: {error}.") from error
        except json.JSONDecodeError as error:
            raise BuildError(f"{self._file} is damaged ({error}); delete it to start this run anew.") from error
        self._key = ""
        self.went_on = False

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of each finished stage, in the run that finished it."""
        return {name: entry["seconds"] for name, entry in self._done.items() if "seconds" in entry}

    def run(self, name: str, title: str, settings: Mapping[str, Any], output: Path, work: Callable[[], None]) -> None:
        """Do `work`, which writes `output`, unless it was done before with the same settings."""
        self._key = digest([self._key, name, settings])
        entry = self._done.get(name, {})
        same = entry.get("key") == self._key
        if same and "seconds" in entry and output.exists():
            self.say(f"{title}: done before ({entry['seconds']:.0f} s).")
            return
        self.say(f"{title} ...")
        self.went_on = same and "seconds" not in entry  # finished and deleted: nothing is left to go on from
        self._done[name] = {"key": self._key}
        write_json(self._file, self._done)
        started = time.monotonic()
        work()
        self._done[name] = {"key": self._key, "seconds": round(time.monotonic() - started, 1)}
        write_json(self._file, self._done)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        work.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        work.replace(path)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise BuildError(f"{path} could not be written: {error}.") from error
