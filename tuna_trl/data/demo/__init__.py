"""The instructions of `tuna-trl demo`, read from `instructions.jsonl` beside this file (see README.md there).

A leaf: json and importlib.resources only, so that listing the demo's prompts loads neither `datasets` nor torch.
"""

from __future__ import annotations

import json
from importlib.resources import files

from ...errors import InputError, did_you_mean


SPLITS = ("train", "heldout")


def load_instructions(split: str) -> list[dict[str, str]]:
    """The demo's rows of one split, always in the order of the file: one row of each kind in turn.

    So the first 16 k rows of either split hold every kind k times, and a smaller demo keeps the mix.

    Args:
        split: `"train"` (112 rows, 7 of each of 16 kinds) or `"heldout"` (48 rows, 3 of each).

    Returns:
        new dicts with the fields `prompt` (one user turn), `reference` (a good answer), `kind` and `split`.

    Raises:
        InputError: `split` is neither of the two.
    """
    if split not in SPLITS:
        raise InputError(
            f"`split` must be one of {', '.join(map(repr, SPLITS))}, got {split!r}.{did_you_mean(str(split), SPLITS)}"
        )
    text = files(__name__).joinpath("instructions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if row["split"] == split]
