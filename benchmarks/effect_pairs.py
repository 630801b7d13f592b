"""How many pairs a margin gives a gradient: `python -m benchmarks.effect_pairs runs/effect/judged`. Reads, prints.

Of the first four responses of each row, by the log-probs that their sampler kept: the share of pairs i better than j
with s_j - s_i + margin * (r_j - r_i) > 0, s = log-prob / tokens (nats), before any training.
"""

from __future__ import annotations

import sys
from collections import Counter

from tuna_trl.data.hub import load_ranked
from tuna_trl.pipelines.ablation_data import fewer_responses


def main(name: str, margins: tuple[float, ...] = (0.0, 0.1, 1.0, 3.0), rows: int = 400, drawn: int = 4) -> None:
    dataset, active, pairs = load_ranked(name, split="train"), Counter[float](), 0
    for row in dataset.select(range(min(rows, len(dataset)))):
        kept = [r for r in fewer_responses(row, drawn, None)["responses"] if r["rank"] and r["logprob"] is not None]
        for better in kept:
            for worse in kept:
                gap = worse["rank"] - better["rank"]
                if gap > 0 and better["content"] != worse["content"]:
                    lead = better["logprob"] / better["num_tokens"] - worse["logprob"] / worse["num_tokens"]
                    pairs += 1
                    active.update(margin for margin in margins if lead < margin * gap)
    print(f"{pairs} pairs; " + ", ".join(f"margin {margin:g}: {active[margin] / pairs:.1%}" for margin in margins))


if __name__ == "__main__":
    main(sys.argv[1])
