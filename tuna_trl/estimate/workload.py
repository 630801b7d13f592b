"""How many tokens a batch holds: from the lengths of real rows, or from lengths that are assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Instruction:
    """One row of the data: tokens of its prompt and of each of its responses."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def unique(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def longest(self) -> int:
        return self.prompt + max(self.responses, default=0)

    def at_most(self, responses: int | None) -> Instruction:
        return self if responses is None else Instruction(self.prompt, self.responses[:responses])


@dataclass(frozen=True)
class Tokens:
    """A batch as a layer sees it.

    `tokens`: through the linear layers. `scored`: whose log-prob is taken. `branch_keys`: keys of all branches,
    prompts counted again for each (shared prompt only). `cells`: entries of the attention masks that are written out.
    `segment_keys`: keys of all segments, as a varlen kernel gathers them. `rows`, `length`: of the padded form;
    `padded`: whether the padded form holds padding. `instructions`, `responses`: how many.
    """

    layout: str
    tokens: int
    scored: int
    branch_keys: int
    segment_keys: int
    cells: int
    rows: int
    length: int
    padded: bool
    instructions: int
    responses: int
    groups: tuple[Instruction, ...] = field(repr=False)

    @property
    def unique(self) -> int:
        return sum(group.unique for group in self.groups)

    def trunk_cells(self, window: int | None) -> int:
        """Mask entries of the trunks that a sliding window cuts."""
        trunks = (group.prompt + group.responses[0] for group in self.groups if group.responses)
        return 0 if window is None else sum(trunk * trunk for trunk in trunks if trunk > window)


def count(batch: Sequence[Instruction], layout: str) -> Tokens:
    """The token counts of a batch in a layout, `"shared_prompt"` or `"rows"` ([`tuna_trl.layouts`])."""
    branches = [(g.prompt, r) for g in batch for r in g.responses[1:] if r > 0]
    rows = sum(len(g.responses) for g in batch)
    length = max((g.longest for g in batch), default=1)
    branch_keys = sum(p + r for p, r in branches)
    trunks = sum(g.prompt + (g.responses[0] if g.responses else 0) for g in batch)
    shared = layout == "shared_prompt"
    padded = any(g.prompt + r != length for g in batch for r in g.responses)
    return Tokens(
        layout=layout,
        tokens=sum(g.unique for g in batch) if shared else rows * length,
        scored=sum(sum(g.responses) for g in batch),
        branch_keys=branch_keys,
        segment_keys=trunks + branch_keys,
        cells=sum(r * (p + r) for p, r in branches) if shared else rows * length * length if padded else 0,
        rows=rows,
        length=length,
        padded=padded,
        instructions=len(batch),
        responses=max((len(g.responses) for g in batch), default=0),
        groups=tuple(batch),
    )


@dataclass(frozen=True)
class Workload:
    """What a step can be asked to hold: the rows of the data, or one assumed row. `source`: where it is from."""

    rows: tuple[Instruction, ...]
    source: str
    assumed: bool = False

    def heaviest(self, batch_size: int, layout: str, max_responses: int | None = None) -> Tokens:
        """The batch of the longest rows, such as batches grouped by length have; a last short batch is lighter."""
        rows = [row.at_most(max_responses) for row in self.rows]
        chosen = Workload(tuple(rows), self.source, self.assumed).heaviest_rows(batch_size, layout)
        return count([rows[i] for i in chosen], layout)

    def heaviest_rows(self, batch_size: int, layout: str) -> list[int]:
        """The indices of that batch; one assumed row stands for as many as are asked for."""
        weigh = _unique if layout == "shared_prompt" else _padded
        order = sorted(range(len(self.rows)), key=lambda i: -weigh(self.rows[i]))
        return order[:1] * batch_size if self.assumed else order[:batch_size]

    def typical(self, quantile: float) -> Instruction:
        """The row at a quantile of unique tokens."""
        rows = sorted(self.rows, key=_unique)
        return rows[min(int(quantile * len(rows)), len(rows) - 1)]

    def at_length(self, length: int) -> Workload:
        """A workload whose every row fills `length` tokens: prompts and responses in the proportion of the heaviest
        row, with as many responses as the most of any row."""
        row = max(self.rows, key=_unique)
        most = max(len(r.responses) for r in self.rows)
        share = row.prompt / max(row.longest, 1)
        prompt = min(int(share * length), length - 1)
        return Workload((Instruction(prompt, (length - prompt,) * most),), f"rows of {length} tokens", assumed=True)


def _unique(row: Instruction) -> int:
    return row.unique


def _padded(row: Instruction) -> int:
    return row.longest * len(row.responses)


def assumed_workload(prompt: int, response: int, responses: int) -> Workload:
    """One row of given lengths, tokens."""
    row = Instruction(prompt, (response,) * responses)
    return Workload((row,), f"assumed: {responses} responses of {response} tokens on {prompt} of prompt", assumed=True)


def workload_of(tokenised: Iterable[Mapping[str, Any]], source: str, *, reference: bool = False) -> Workload:
    """From tokenised rows ([`tuna_trl.data.prepare`]): `prompt_ids`, `response_ids`; `reference`: and the reference
    answer, which takes a slot of its own (`mle_target="reference"`).

    Raises:
        InputError: there is no row.
    """
    rows = []
    for row in tokenised:
        lengths = [len(ids) for ids in row["response_ids"]]
        if reference:
            lengths.append(len(row["reference_ids"]))
        rows.append(Instruction(len(row["prompt_ids"]), tuple(lengths)))
    if not rows:
        raise InputError("The dataset is empty, so a batch of it has no memory to estimate.")
    return Workload(tuple(rows), source)
