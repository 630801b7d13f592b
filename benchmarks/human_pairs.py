"""Pairs of responses that people compared, as judges are held against them: PandaLM and LLMBar. Reads two files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HumanPair:
    """Two responses to one instruction. `better`: 0 or 1, by the majority of people; `group`: the instruction."""

    group: str
    instruction: str
    responses: tuple[str, str]
    better: int
    subset: str


def pandalm(data: Path) -> list[HumanPair]:
    """Pairs of PandaLM's test set (Wang et al., arXiv 2306.05087) with a majority of the three people for one side,
    in the order of the file."""
    pairs = []
    for line in (data / "ranked" / "pandalm_ranked.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = {response["model"]: response["text"] for response in row["responses"]}
        for first, second, votes in row["pairs"]:
            better = next((side for side in (0, 1) if 2 * votes.count(side + 1) > len(votes)), None)
            if better is not None and texts[first].strip() != texts[second].strip():
                pair = (texts[first], texts[second])
                pairs.append(HumanPair(row["id"], _instruction(row), pair, better, "PandaLM"))
    return pairs


def llmbar(data: Path) -> list[HumanPair]:
    """LLMBar (Zeng et al., arXiv 2310.07641): pairs of which one follows the instruction, checked by people."""
    pairs = []
    for line in (data / "pairs" / "llmbar.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        pair = (row["output_1"], row["output_2"])
        pairs.append(HumanPair(row["id"], _instruction(row), pair, int(row["label"]) - 1, row["subset"].split("/")[0]))
    return pairs


def _instruction(row: dict) -> str:
    given = (row.get("input") or "").strip()
    return f"{row['instruction'].strip()}\n\n{given}" if given else row["instruction"].strip()
