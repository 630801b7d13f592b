"""`memory_worker.py make FOLDER ROWS` writes a dataset as a stream; `report FOLDER` writes its report and prints its
own peak of resident memory in kB (VmHWM, which starts anew in each process)."""

from __future__ import annotations

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))


def make(folder: str, number: str) -> None:
    from ranked_rows import simple_row

    from tuna_trl.data.hub import stream_ranked

    some = [simple_row(i, n=4) for i in range(1000)]
    for row in some:
        for k, response in enumerate(row["responses"]):
            response["content"] += " and so on" * 40
            response["model"] = f"model {k}"
    stream_ranked([("train", (some[i % 1000] | {"prompt_id": str(i)} for i in range(int(number))))], folder)


def report(folder: str) -> None:
    from tuna_trl.report.dataset import write_dataset_report

    write_dataset_report(folder)
    print([line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line][0])


if __name__ == "__main__":
    {"make": make, "report": report}[sys.argv[1]](*sys.argv[2:])
