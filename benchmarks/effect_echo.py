"""How much of a gain is echo: `python -m benchmarks.effect_echo runs/effect/ablation runs/effect/heldout_judged`.

The judge of docs/results.md measures overlap with a reference answer, and so rewards whoever repeats the instruction
where the reference does. Reads the answers of a finished sweep, prints how far that goes:

- the judge score of echoes: of the whole instruction, and of what stands behind its first blank line, the text that it
  is about (of the whole where there is none);
- each arm's judge score by what the better of the two echoes scores on the instruction;
- how close each arm's answers are to an echo: ROUGE-L of the answer and the closer of the two;
- each arm's score by words that the instruction does not have, where an echo scores 0.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_trl.clients.reference import ReferenceJudge
from tuna_trl.data.hub import load_ranked
from tuna_trl.evaluation.ranking import Interval, bootstrap_interval, paired_interval
from tuna_trl.pipelines.ablation_results import Values, over_seeds


BANDS = ((0.0, 0.2), (0.2, 0.5), (0.5, 1.01))  # of what the better echo scores


def echoes(instruction: str) -> tuple[str, str]:
    """The whole of it, and what stands behind its first blank line."""
    return instruction, instruction.split("\n\n", 1)[-1]


def new_words(answer: str, reference: str, instruction: str) -> float | None:
    """F1 of the sets of words (lower-cased runs of a-z and 0-9) that are not in the instruction; None where the
    reference has no such word."""
    given = _words(instruction)
    wanted, found = _words(reference) - given, _words(answer) - given
    return 2 * len(wanted & found) / (len(wanted) + len(found)) if wanted else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def main(folder: str, heldout: str) -> None:
    judge, rows = ReferenceJudge(), list(load_ranked(heldout, split="train"))
    result = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    baselines = ["start", *result["baselines"]]
    both = [echoes(row["prompt"][-1]["content"]) for row in rows]
    scores = [[judge.score(row["reference"], text) for text in two] for row, two in zip(rows, both, strict=True)]
    for name, column in zip(
        ("the instruction", "the part behind its blank line"), zip(*scores, strict=True), strict=True
    ):
        print(f"repeating {name}: {_shown(bootstrap_interval(column))}")
    arms = {name: _measured(Path(folder) / "runs" / name, judge, rows, both) for name in result["arms"]}
    better = [max(two) for two in scores]
    for low, high in BANDS:
        kept = [k for k, score in enumerate(better) if low <= score < high]
        echo = bootstrap_interval([better[k] for k in kept])
        print(f"\njudge score of {len(kept)} instructions where the better echo scores {low:g} to {min(high, 1):g}")
        print(f"  the better echo: {_shown(echo)}")
        _table({name: [found["quality"][k] for k in kept] for name, found in arms.items()}, baselines)
    print("\nROUGE-L of the answer and the closer echo")
    _table({name: found["closeness"] for name, found in arms.items()}, baselines)
    print("\nF1 of words that the instruction does not have")
    _table({name: found["new_words"] for name, found in arms.items()}, baselines)


def _measured(
    folder: Path, judge: ReferenceJudge, rows: Sequence[Any], both: Sequence[tuple[str, str]]
) -> dict[str, Values]:
    """Figure -> its values by instruction, mean over the seeds, of one arm's answers."""
    runs: dict[str, list[Values]] = {"quality": [], "closeness": [], "new_words": []}
    for file in sorted(folder.glob("seed_*/measured.json")):
        answers = json.loads(file.read_text(encoding="utf-8"))["answers"]
        together = list(zip(rows, both, answers, strict=True))
        runs["quality"].append([judge.score(row["reference"], text) for row, _, text in together])
        runs["closeness"].append([max(judge.score(echo, text) for echo in two) for _, two, text in together])
        runs["new_words"].append([new_words(text, row["reference"], two[0]) for row, two, text in together])
    return {figure: over_seeds(values) for figure, values in runs.items()}


def _table(values: Mapping[str, Values], baselines: Sequence[str]) -> None:
    for name, own in values.items():
        differences = [
            f"- {other} {_shown(paired_interval(own, values[other]), '+')}" for other in baselines if other != name
        ]
        print(f"  {name}: {_shown(bootstrap_interval(own))}; {', '.join(differences)}")


def _shown(interval: Interval, sign: str = "") -> str:
    if interval.mean is None:
        return "nothing to measure"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


if __name__ == "__main__":
    main(*sys.argv[1:3])
