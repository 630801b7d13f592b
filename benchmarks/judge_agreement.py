"""How often a judge that runs here agrees with people: PandaLM and LLMBar pairs, in both orders.

    python -m benchmarks.judge_agreement --data <folder> --judge longer --judge local:embedded --limit 40
    python -m benchmarks.judge_agreement --data <folder> --judge local:embedded --protocol pairwise

The folder holds `ranked/pandalm_ranked.jsonl` and `pairs/llmbar.jsonl`. Judges: `longer` (the baseline), `reward-head`
(a linear head on the frozen embedded model, fitted to the other half of PandaLM), or any name that
`tuna_trl.clients.judges.judge_by_name` knows. Replies go into a journal, so that a rerun continues. Intervals are 95 %
bootstrap intervals over instructions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tuna_trl.build.cost import Budget  # noqa: E402
from tuna_trl.build.journal import Journal  # noqa: E402
from tuna_trl.build.judging import Question, ask_all  # noqa: E402
from tuna_trl.clients.base import Judge, JudgeRequest  # noqa: E402
from tuna_trl.data.schema import digest  # noqa: E402

from .human_pairs import HumanPair, llmbar, pandalm  # noqa: E402


DRAWS = 4000  # of the bootstrap
HEADER = (
    "| judge | data | pairs | agreement, both orders (95 %) | first order alone | ties | first place named | "
    "orders agree | replies not read |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Agreement:
    """What came of a judge on a set. Shares are of 1; an interval is (low, high).

    `agreement`: both orders taken together, a tie counts a half, a pair of which nothing could be read as a half too.
    `one_order`: the same from the first order alone. `ties`: pairs without a preference. `first`: share of the shown
    places named better that are the first one. `consistent`: pairs whose two orders name the same response, of those
    where both name one. `unread`: replies that are no verdict, by status.
    """

    judge: str
    data: str
    pairs: int
    agreement: float
    interval: tuple[float, float]
    one_order: float
    ties: float
    first: float | None
    consistent: float | None
    replies: int
    unread: dict[str, int]


def questions_of(pair: HumanPair, judge: Judge) -> list[Question]:
    """Every question about a pair in both orders, each once."""
    prompt = [{"role": "user", "content": pair.instruction}]
    shown = dict.fromkeys(tuple(places) for order in ((0, 1), (1, 0)) for places in judge.orders(order))
    questions = []
    for places in shown:
        texts = tuple(pair.responses[i] for i in places)
        nonce = digest(["agreement", pair.group, texts])[:16]
        questions.append(Question(pair.group, JudgeRequest(prompt, texts, None, 0, nonce), places))
    return questions


def preference(question: Question) -> float | None:
    """How much better response 1 is than response 0 in one reply: a sign, 0 for a tie, None where it says nothing."""
    verdict = question.answers[-1].verdict
    if verdict.status not in ("ok", "inconsistent") or len(question.permutation) != 2:
        return None
    scores = dict(zip(question.permutation, verdict.scores, strict=True))
    if None in scores.values():
        return None
    if scores[0] != scores[1]:
        return math.copysign(1.0, scores[1] - scores[0])
    if verdict.order is None:
        return 0.0
    return 1.0 if question.permutation[verdict.order[0]] == 1 else -1.0


def _joint(asked: Sequence[Question]) -> float | None:
    """The preference that all replies about a pair add up to."""
    if len(asked[0].permutation) == 2:
        found = [value for value in map(preference, asked) if value is not None]
        return sum(found) / len(found) if found else None
    scores = {q.permutation[0]: q.answers[-1].verdict.scores[0] for q in asked}  # one response a question
    if None in scores.values():
        return None
    return float((scores[1] > scores[0]) - (scores[1] < scores[0]))


def summarise(name: str, data: str, pairs: Sequence[HumanPair], asked: Sequence[Sequence[Question]]) -> Agreement:
    """Agreement of the answered questions with people."""
    credits, single, ties = [], [], 0
    firsts, orders = [], []
    unread: dict[str, int] = {}
    for pair, questions in zip(pairs, asked, strict=True):
        both = _joint(questions)
        ties += not both
        credits.append(_credit(both, pair.better))
        single.append(_credit(_joint(questions[:1]) if len(questions[0].permutation) == 2 else both, pair.better))
        named = []
        for question in questions:
            status = question.answers[-1].verdict.status
            if status not in ("ok", "inconsistent"):
                unread[status] = unread.get(status, 0) + 1
            if value := preference(question):
                winner = 1 if value > 0 else 0
                named.append(winner)
                firsts.append(question.permutation[0] == winner)
        if len(named) == 2:
            orders.append(named[0] == named[1])
    return Agreement(
        judge=name,
        data=data,
        pairs=len(pairs),
        agreement=_mean(credits) or 0.0,
        interval=_bootstrap(credits, [pair.group for pair in pairs]),
        one_order=_mean(single) or 0.0,
        ties=ties / len(pairs),
        first=_mean(firsts),
        consistent=_mean(orders),
        replies=sum(map(len, asked)),
        unread=unread,
    )


def _credit(value: float | None, better: int) -> float:
    return 0.5 if not value else float((value > 0) == (better == 1))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _bootstrap(credits: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    """95 % percentile interval of the mean credit, instructions drawn with replacement."""
    import numpy as np

    names = sorted(set(groups))
    places = {name: k for k, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for credit, group in zip(credits, groups, strict=True):
        sums[places[group]] += credit
        counts[places[group]] += 1
    drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


class LongerWins:
    """The baseline: the score of a response is the number of its characters."""

    name = "longer"
    method = "reference"
    paid = False
    concurrency = 1
    max_batch = 64

    def fingerprint(self) -> dict[str, Any]:
        return {"judge": self.name}

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Any]:
        from tuna_trl.clients.base import Reply

        return [Reply(json.dumps([float(len(text)) for text in request.candidates])) for request in requests]

    def parse(self, request: JudgeRequest, reply: Any) -> Any:
        from tuna_trl.clients.base import Verdict

        return Verdict("ok", tuple(json.loads(reply.raw)))

    def worst_case_cost(self, request: JudgeRequest) -> float:
        return 0.0

    def cost(self, usage: Any) -> float:
        return 0.0


def spread(pairs: Sequence[HumanPair], limit: int | None) -> list[HumanPair]:
    """The first `limit` pairs in the order of a hash, so that every subset and instruction has its share."""
    ordered = sorted(pairs, key=lambda pair: digest(["pair", pair.group, pair.responses]))
    return ordered[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judge", action="append", required=True, help="may be given several times")
    parser.add_argument(
        "--protocol", default=None, help="of judges that are language models: contextual, pairwise ..."
    )
    parser.add_argument("--base-url", default=None, help="of openai: judges")
    parser.add_argument("--limit", type=int, default=None, help="pairs of each set")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--max-rationale", type=int, default=None, help="characters; see the judges")
    parser.add_argument("--output", type=Path, default=Path("runs/judge_agreement"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    print(HEADER, flush=True)
    sets = {"PandaLM": pandalm(args.data), "LLMBar": llmbar(args.data)}
    for name in args.judge:
        # the half of PandaLM that a reward head is not fitted to; the same half for every judge
        held_out = {"PandaLM": [pair for pair in sets["PandaLM"] if not in_fitting_half(pair)]}
        judge = make_judge(name, args, sets["PandaLM"])
        label = f"{name} ({args.protocol or 'contextual'})" if hasattr(judge, "protocol") else name
        for data, pairs in (sets | held_out).items():
            chosen = spread(pairs, args.limit)
            asked = [questions_of(pair, judge) for pair in chosen]
            flat = {question.key(judge, 0): question for questions in asked for question in questions}
            with Journal(args.output / "journal.sqlite") as journal:
                ask_all(list(flat.values()), judge, journal=journal, budget=Budget(math.inf), max_malformed=0)
            answered = [[flat[question.key(judge, 0)] for question in questions] for questions in asked]
            result = summarise(label, data, chosen, answered)
            print(table_row(result), flush=True)
            with (args.output / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")


def in_fitting_half(pair: HumanPair) -> bool:
    return int(digest(["half", pair.group])[:8], 16) % 2 == 0


def make_judge(name: str, args: argparse.Namespace, pairs: Sequence[HumanPair]) -> Judge:
    if name == "longer":
        return LongerWins()
    if name == "reward-head":
        from .reward_head import fit_reward_head

        folder = Path(tempfile.mkdtemp(prefix="reward-head-"))
        return fit_reward_head([pair for pair in pairs if in_fitting_half(pair)], folder)
    from tuna_trl.clients.judges import judge_by_name

    options: dict[str, Any] = {}
    if name.startswith("openai:"):
        options = {"base_url": args.base_url, "max_tokens": args.max_new_tokens, "protocol": args.protocol}
        options |= {"temperature": 0.0, "concurrency": args.batch_size, "max_rationale": args.max_rationale}
    if name.startswith("local:"):
        options = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "protocol": args.protocol}
        options |= {"max_rationale": args.max_rationale}
    return judge_by_name(name, **options)


def table_row(result: Agreement) -> str:
    """One line of a Markdown table, with the columns of [`HEADER`]."""
    low, high = result.interval
    unread = ", ".join(f"{count} {status}" for status, count in sorted(result.unread.items())) or "0"
    cells = [
        result.judge, result.data, str(result.pairs), f"{result.agreement:.1%} ({low:.0%} to {high:.0%})",
        f"{result.one_order:.1%}", f"{result.ties:.0%}", _share(result.first), _share(result.consistent),
        f"{unread} of {result.replies}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
