"""Rows of the bench: the journal that a rerun continues from, `results.json`, the table, the block in the docs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
# what a measured step runs through; a row of other code is measured again
MEASURED_CODE = (
    "attention.py",
    "batch_metrics.py",
    "collator.py",
    "head.py",
    "layouts.py",
    "losses/tuna.py",
    "losses/pairs.py",
    "packing.py",
    "scoring.py",
    "sharding.py",
    "trainer.py",
)


@dataclass(frozen=True)
class Target:
    """Bounds that the issue sets: `time` and `memory` from below, or `at_most` for the time from above."""

    time: float | None = None
    memory: float | None = None
    at_most: float | None = None

    def met(self, row: Mapping[str, Any]) -> bool:
        """Whether the row keeps all bounds; a memory ratio that could not be measured keeps none."""
        ratio, memory = row["time_ratio"], row["memory_ratio"]
        return (
            (self.time is None or ratio >= self.time)
            and (self.at_most is None or ratio <= self.at_most)
            and (self.memory is None or (memory is not None and memory >= self.memory))
        )

    def __str__(self) -> str:
        parts = [f">= {self.time:g}" if self.time else "", f"<= {self.at_most:g}" if self.at_most else ""]
        parts.append(f"memory >= {self.memory:g}" if self.memory else "")
        return ", ".join(part for part in parts if part)


TARGETS = {
    "ragged_vs_reference": Target(3.0, 4.0),
    "256x128_vs_reference": Target(2.2),
    "1024x64_vs_reference": Target(3.5),
    "64x256_vs_reference": Target(1.2),
    "64x64_vs_reference": Target(1.1),
    "64x128_vs_reference": Target(1.1),
    "vocabulary_152k_vs_reference": Target(memory=10.0),
    "64x128_dpo_all_pairs": Target(8.0),
    "64x128_dpo_adjacent_pairs": Target(4.0),
    "64x128_dpo_one_pair": Target(1.0),
    "64x128_vs_sft_best": Target(at_most=2.2),
    "floor_256x128": Target(0.75),
    "step_overhead": Target(at_most=0.03),
}


def target_of(row: Mapping[str, Any]) -> Target | None:
    """The bounds of a row; a cut of the model and a run with checkpointing have those of the whole one without."""
    return TARGETS.get(re.sub(r"(_\d+_layers)?(_checkpointing)?$", "", row["name"]))


def versions() -> dict[str, str]:
    """What the figures depend on beside the machine."""
    return {name: metadata.version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}


def code_hash() -> str:
    """12 hex digits of the code that a measured step runs through, the reference step included."""
    digest = hashlib.sha256()
    for path in [*(ROOT / "tuna_trl" / name for name in MEASURED_CODE), ROOT / "benchmarks" / "reference_step.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Journal:
    """Rows on disk, one line each, written before the next measurement starts.

    Args:
        path: a `.jsonl` file; made with its folder.
        run: what every row of this run carries and must share to be taken over (device, precision, versions).
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self._path = path
        self._run = dict(run)

    def rows(self) -> dict[str, dict[str, Any]]:
        """name -> the last row of that name that belongs to this run. A line cut by a kill is left out."""
        found = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if entry["run"] == self._run:
                    found[entry["row"]["name"]] = entry["row"]
        return found

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cut = self._path.is_file() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps({"run": self._run, "row": dict(row)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)


def write_results(path: Path, run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """`results.json`: `device`, `versions`, ..., and `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [dict(row) | _verdict(row) for row in rows]
    path.write_text(json.dumps({**run, "rows": found}, indent=1) + "\n", encoding="utf-8")


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    target = target_of(row)
    return {"target": str(target), "met": target.met(row)} if target else {}


# ---- The table ----

COLUMNS = ("row", "layers", "time ratio", "spread", "memory ratio", "seconds", "peak MB", "target", "met")


def table_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row's cells in the order of `COLUMNS`. Seconds and MB stand as the ratio is formed: upper / lower."""
    names = [name.strip() for name in row["time_ratio_is"].split("/")]
    target = target_of(row)
    seconds = [row.get(f"{name}_seconds") for name in names]
    if row["name"] == "step_overhead":
        seconds = [row["outside_seconds"], row["step_seconds"]]
    memory = [row.get(f"{name}_mb") for name in names]
    return (
        row["name"],
        str(row.get("layers", "")),
        f"{row['time_ratio']:.3f}" if row["time_ratio"] < 0.1 else f"{row['time_ratio']:.2f}",
        f"{row['spread']:.0%}",
        "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        " / ".join(f"{s:.2f}" for s in seconds if s is not None),
        " / ".join(f"{mb:.0f}" for mb in memory if mb is not None),
        str(target or ""),
        "" if target is None else ("yes" if target.met(row) else "no"),
    )


def markdown_table(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join((f"`{cells[0]}`", *cells[1:])) + " |" for cells in map(table_cells, rows)]
    return "\n".join(lines)


def print_table(rows: Iterable[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="make bench", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("row", "target", "met") else "right", no_wrap=name == "row")
    for row in rows:
        table.add_row(*table_cells(row), style=None if target_of(row) is None or target_of(row).met(row) else "yellow")
    console = Console()
    # a file or a pipe has no width; at 80 columns the names would be cut
    Console(width=None if console.is_terminal else 160).print(table)


def write_block(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` of a page.

    Raises:
        ValueError: the page has no such block.
    """
    found = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(found):
        raise ValueError(f"{page.name} has no block {name!r}")
    page.write_text(pattern.sub(lambda m: f"{m.group(1)}{text}\n{m.group(2)}", found), encoding="utf-8")


def ordered(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Rows in the order of `names`, those of other names (an earlier list of scenarios, CUDA's own) behind."""
    known = [rows[name] for name in names if name in rows]
    return known + [row for name, row in rows.items() if name not in names]
