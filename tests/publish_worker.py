"""A client of the loopback Hub in a process of its own, for datasets: `publish_worker.py STEP FOLDER`.

Each step is a function below; what it finds goes to FOLDER/STEP.json, for the test to compare. Both libraries read the
endpoint when they are imported, so the test cannot do this itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

REPO = "tester/ranked"


def replies(n: int = 4):
    from datasets import Dataset

    from tuna_trl.data.schema import judgment_features

    known = {"occurrence": 0, "attempt": 0, "judge": "a-judge", "permutation": [1, 0, 2], "labels": ["A", "B", "C"]}
    known |= {"scores": [1.0, 2.0, 0.5], "status": "ok", "raw": "{}", "stop_reason": "end", "request_id": None}
    known |= {"usage": {"input": 7}, "cost": 0.5}
    rows = [{**known, "prompt_id": f"p{i // 2}", "repeat": i % 2} for i in range(n)]
    return Dataset.from_list(rows, features=judgment_features())


def rows(first: int, last: int, **changes):
    from ranked_rows import dataset_of, simple_row

    return dataset_of([simple_row(i, **changes) for i in range(first, last)])


def pushed(*args, **kwargs) -> dict:
    from tuna_trl import push_to_hub

    result = push_to_hub(*args, **kwargs)
    return dataclasses.asdict(result) | {"load_line": result.load_line}


def loaded(config: str = "default", **kwargs) -> dict:
    """Rows and features of a config, with `datasets` alone."""
    from datasets import load_dataset

    splits = load_dataset(REPO, config, **kwargs)
    return {
        split: {"rows": list(part), "features": json.dumps(part.features.to_dict(), sort_keys=True)}
        for split, part in splits.items()
    }


def first(folder: Path) -> dict:
    """Push two configs, from a folder."""
    from datasets import DatasetDict

    from tuna_trl import save_ranked

    data = DatasetDict(train=rows(0, 5), test=rows(90, 92))
    save_ranked(data, folder / "ds", judgments=replies(), card={"license": "cc-by-4.0"})
    return {"push": pushed(folder / "ds", REPO), "again": pushed(folder / "ds", REPO)}


def plain(folder: Path) -> dict:
    """Load the first push with `datasets` alone, pinned: both configs, and streamed."""
    revision = json.loads((folder / "first.json").read_text())["push"]["revision"]
    result = {"default": loaded(revision=revision), "judgments": loaded("judgments", revision=revision)}
    result["streamed"] = loaded(streaming=True, revision=revision)
    assert "tuna_trl" not in sys.modules
    return result


def append(folder: Path) -> dict:
    """Append rows and replies, given as datasets; then what `datasets`, load_ranked and report and preview see."""
    from tuna_trl import load_ranked
    from tuna_trl.data.ranked_source import open_ranked

    result = {"push": pushed(rows(5, 8), REPO, judgments=replies(2), append=True)}
    result |= {"default": loaded(), "judgments": loaded("judgments"), "streamed": loaded(streaming=True)}
    source = open_ranked(REPO)
    return result | {
        "load_ranked": load_ranked(REPO)["train"].to_list(),
        "source": list(source.splits["train"]),
        "replies": list(source.judgments["train"]),
        "card": source.card,
    }


def replace(folder: Path) -> dict:
    """A whole new dataset of another size, without judgments, and a view of it; then another on a branch."""
    view = rows(0, 2).select_columns(["prompt_id", "status"])
    result = {"push": pushed(rows(0, 2), REPO, configs={"view": view}), "default": loaded(), "view": loaded("view")}
    branch = pushed(rows(0, 1), REPO, revision="try")
    return result | {"branch": branch, "there": loaded(revision="try"), "main": loaded()}


def fault(folder: Path) -> dict:
    return pushed(rows(40, 41), REPO)


def race(folder: Path) -> dict:
    return {"push": pushed(rows(20, 22), REPO, append=True, report=False)}


def refused(folder: Path) -> dict:
    """The messages of pushes that cannot be."""
    from tuna_trl.errors import InputError

    def message(*args, **kwargs) -> str:
        try:
            pushed(*args, **kwargs)
        except InputError as error:
            return str(error)
        return "pushed"

    wider = rows(30, 32).add_column("topic", ["a", "b"])
    return {
        "same": message(rows(0, 2), REPO, append=True),
        "columns": message(wider, REPO, append=True),
        "public": message(rows(0, 2), "tester/public"),
        "name": message(rows(0, 2), "ranked"),
        "folder": message(folder / "nothing", REPO),
        "card": message(rows(0, 2), "tester/broken", private=False),
    }


def refused_without_token(folder: Path) -> dict:
    from tuna_trl.errors import InputError

    try:
        pushed(rows(0, 2), "tester/other")
    except InputError as error:
        return {"message": str(error)}
    return {"message": "pushed"}


if __name__ == "__main__":
    step, place = sys.argv[1], Path(sys.argv[2])
    (place / f"{step}.json").write_text(json.dumps(globals()[step](place)))
