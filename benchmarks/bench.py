"""`make bench`: how fast and how small a training step is, against what stands beside it. See docs/performance.md.

    python -m benchmarks.bench              everything (40 minutes on a quiet machine); a rerun continues
    python -m benchmarks.bench --quick      a part, in five minutes
    python -m benchmarks.bench --profile    one step of 256x128, grouped by what it does
    python -m benchmarks.bench --device cuda --dtype bf16 --model 0.5b

Each scenario is a process of its own, so that one that is killed for its memory takes nothing with it. Writes
`runs/bench/`, and docs/performance.md if told to (`--write-docs`).
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


# read when torch loads: one thread, whose CPU seconds are the work done
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # says at import that it has no 4-bit kernel

from .results import (  # noqa: E402
    ROOT,
    Journal,
    code_hash,
    markdown_table,
    ordered,
    print_table,
    versions,
    write_block,
    write_results,
)


PAGE = ROOT / "docs" / "performance.md"
MODELS = ("embedded", "0.5b", "1.5b", "tiny")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.profile:
        return _profile(args)
    if args.scenario:
        return _measure(args)
    from .scenarios import scenarios

    machine = _machine(args)
    run = _run(args, machine)
    journal = Journal(args.out / "rows.jsonl", run)
    if args.restart:
        journal.clear()
    listed = scenarios()
    wanted = [s for s in listed if (not args.quick or s.quick) and (not args.only or args.only in s.name)]
    failed = []
    for place, scenario in enumerate(wanted, 1):
        done = {name for name, row in journal.rows().items() if row["code"] == code_hash()}
        if set(scenario.rows) <= done:
            continue
        print(f"[{place}/{len(wanted)}] {scenario.name} (about {scenario.minutes:g} min)", flush=True)
        if reason := _too_large(scenario.gb, machine) if machine.device.type == "cpu" else None:
            failed.append((scenario.name, reason))
            continue
        code = subprocess.run([sys.executable, "-m", "benchmarks.bench", *_own(args, scenario.name)], cwd=ROOT)
        if code.returncode:
            failed.append((scenario.name, f"ended with {code.returncode}" + " (killed)" * (code.returncode == -9)))
    names = [name for scenario in listed for name in scenario.rows]
    rows = ordered(journal.rows(), names)
    write_results(args.out / "results.json", run, rows)
    print_table(rows)
    if old := [row["name"] for row in rows if row["code"] != code_hash()]:
        print(f"measured before the code changed; run again to renew: {', '.join(old)}")
    for name, reason in failed:
        print(f"not measured: {name}: {reason}")
    if args.write_docs and rows:
        write_block(PAGE, "bench:table", _block(run, rows))
        print(f"{PAGE.relative_to(ROOT)} holds this table now.")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the scenarios, in five minutes")
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run has measured")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; figures are medians (3)")
    parser.add_argument("--profile", action="store_true", help="profile one 256x128 step instead")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--model", default="embedded", choices=MODELS, help="embedded = SmolLM2-135M, else random")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench", help="folder of journal and results")
    parser.add_argument("--scenario", help=argparse.SUPPRESS)
    return parser


def _own(args: argparse.Namespace, scenario: str) -> list[str]:
    """The arguments with which a scenario's own process measures what this one was asked for."""
    given = {"device": args.device, "dtype": args.dtype, "model": args.model, "repeats": args.repeats, "out": args.out}
    return [f"--{name}={value}" for name, value in given.items()] + [f"--scenario={scenario}"]


def _machine(args: argparse.Namespace) -> Any:
    import torch

    from .models import Machine

    torch.set_num_threads(1)
    return Machine(torch.device(args.device), {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype], args.model)


def _run(args: argparse.Namespace, machine: Any) -> dict[str, Any]:
    """What rows must share to stand in one table."""
    from .measure import device_name

    return {
        "device": device_name(machine.device),
        "dtype": args.dtype,
        "model": args.model,
        "repeats": args.repeats,
        "versions": versions(),
    }


def _too_large(gb: float, machine: Any) -> str | None:
    """Why a scenario would not fit now; the model and its adapters take 1.5 GB beside it."""
    from .measure import available_gb

    available = available_gb(machine.device)
    if machine.model == "tiny" or available is None or available >= gb + 1.5:
        return None
    return f"needs about {gb + 1.5:.1f} GB of memory, {available:.1f} are free; run again when they are"


def _measure(args: argparse.Namespace) -> int:
    """In a process of its own: one scenario."""
    import warnings

    import datasets
    from transformers.utils import logging as transformers_logging

    from tuna_trl.loading import load_tokenizer

    from .scenarios import Setting, scenarios

    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # TRL's use of old names
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    machine = _machine(args)
    journal = Journal(args.out / "rows.jsonl", _run(args, machine))
    code = code_hash()
    scenario = next(s for s in scenarios() if s.name == args.scenario)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(machine, args.repeats, Path(folder), load_tokenizer("embedded"))
        for row in scenario.measure(setting):
            journal.add({**row, "code": code})
            print(f"  {row['name']}: {row['time_ratio']:.3g} ({row['time_ratio_is']}), memory {row['memory_ratio']}")
    return 0


def _profile(args: argparse.Namespace) -> int:
    from .step_profile import print_profile, profile_step

    found = profile_step(_machine(args))
    print_profile(found)
    if args.write_docs:
        write_block(PAGE, "bench:profile", found.markdown())
    return 0


def _block(run: dict[str, Any], rows: list[Any]) -> str:
    """The generated part of the page."""
    software = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    line = f"{run['device']}, {run['dtype']}, medians of {run['repeats']} rounds. {software}."
    return f"{line}\n\n{markdown_table(rows)}"


if __name__ == "__main__":
    sys.exit(main())
