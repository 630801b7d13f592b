"""One prompt, N branches, one row: where each token of a batch stands once its padding and repeated prompts are gone.

Everything here is positions and index tensors; what attends to what is computed by [`tuna_trl.attention`].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """One instruction in the packed row: `prompt` tokens from `start`, its first response behind them (the trunk,
    `trunk` tokens, is an ordinary causal sequence), then the other responses, `branches` = (start, length) each."""

    start: int
    prompt: int
    trunk: int
    branches: tuple[tuple[int, int], ...]


@dataclass
class AttentionPlan:
    """Who sees whom in a packed row of `length` tokens: a response sees its prompt and itself, never another one.

    `calls` counts the attention layers that followed the plan and `windows` lists their sliding windows, so that a
    model that does not follow it is found out.
    """

    groups: tuple[Group, ...]
    length: int
    calls: int = 0
    windows: list[int | None] = field(default_factory=list)
    _cache: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def branch_mask(self, prompt: int, response: int, window: int | None, device: torch.device) -> Tensor:
        """`(response, prompt + response)` bool: what each token of a branch sees of prompt + itself. A sliding
        `window` is measured in positions, which go on from the prompt: the last `window` tokens, itself included."""
        key = (prompt, response, window, device)
        if key not in self._cache:
            query = torch.arange(prompt, prompt + response, device=device).unsqueeze(1)
            seen = torch.arange(prompt + response, device=device).unsqueeze(0)
            mask = seen <= query
            if window is not None:
                mask &= seen > query - window
            self._cache[key] = mask
        return self._cache[key]

    def lengths(self) -> tuple[list[int], list[int]]:
        """Query and key tokens of every segment (trunk or branch), in packed order."""
        queries, keys = [], []
        for group in self.groups:
            queries += [group.trunk, *(length for _, length in group.branches)]
            keys += [group.trunk, *(group.prompt + length for _, length in group.branches)]
        return queries, keys

    def gathered_keys(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For variable-length kernels: `(index of each segment's keys in the packed row, cumulative query lengths,
        cumulative key lengths, longest query, longest key)`; the lengths are int32, as the kernels want them."""
        key = ("varlen", device)
        if key not in self._cache:
            pieces = []
            for group in self.groups:
                pieces.append(torch.arange(group.start, group.start + group.trunk))
                for start, length in group.branches:
                    pieces.append(torch.arange(group.start, group.start + group.prompt))
                    pieces.append(torch.arange(start, start + length))
            queries, keys = self.lengths()
            self._cache[key] = (
                torch.cat(pieces).to(device),
                _cumulative(queries).to(device),
                _cumulative(keys).to(device),
                max(queries),
                max(keys),
            )
        return self._cache[key]

    def segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(instruction, response, position)` of every packed token, each `(T,)`; response 0 is the prompt."""
        instruction, response, position = [], [], []
        for i, group in enumerate(self.groups):
            first = group.trunk - group.prompt
            lengths = [group.prompt, first, *(length for _, length in group.branches)]
            offsets = [0] + [group.prompt] * (len(lengths) - 1)
            for k, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
                instruction.append(torch.full((length,), i))
                response.append(torch.full((length,), k))
                position.append(torch.arange(offset, offset + length))
        return torch.cat(instruction), torch.cat(response), torch.cat(position)

    def dense_mask(self, window: int | None, device: torch.device) -> Tensor:
        """`(1, 1, T, T)` bool, True = seen: the plan as one block mask, for models that take a mask but no plan. It
        grows with the square of the packed length."""
        key = ("dense", window, device)
        if key not in self._cache:
            instruction, response, position = (t.to(device) for t in self.segments())
            own = response.unsqueeze(1) == response.unsqueeze(0)
            seen = (instruction.unsqueeze(1) == instruction.unsqueeze(0)) & (own | (response == 0).unsqueeze(0))
            seen &= position.unsqueeze(0) <= position.unsqueeze(1)
            if window is not None:
                seen &= position.unsqueeze(0) > position.unsqueeze(1) - window
            self._cache[key] = seen[None, None]
        return self._cache[key]


@dataclass(frozen=True)
class PackedBatch:
    """A batch without padding and with every prompt once.

    `input_ids`, `position_ids`: int64 `(1, T)`. `plan`: who sees whom. `offsets`: int64 `(B * N,)`, so that the token
    at place l of row r (flat, padded) stands at `where(l < prompt of r, prompt_starts[r], offsets[r]) + l`.
    """

    input_ids: Tensor
    position_ids: Tensor
    plan: AttentionPlan
    prompt_lengths: Tensor
    prompt_starts: Tensor
    offsets: Tensor

    def place(self, row: Tensor, place: Tensor) -> Tensor:
        """Packed positions of the tokens at `place` of the flat rows `row`, each `(T',)`."""
        in_prompt = place < self.prompt_lengths[row]
        return torch.where(in_prompt, self.prompt_starts[row], self.offsets[row]) + place


def pack(batch: Mapping[str, Tensor]) -> PackedBatch:
    """The packed form of a collated batch.

    Args:
        batch: `input_ids`, `attention_mask` `(B, N, L)`, padded behind the tokens; `prompt_lengths` `(B,)`: the first
            so many tokens of all responses of an instruction are its prompt, the same in each.

    Raises:
        ValueError: `prompt_lengths` is wrong: two responses of an instruction begin with different prompts.
    """
    B, N, L = batch["input_ids"].shape
    device = batch["input_ids"].device
    lengths, prompts = _checked_lengths(batch)
    groups, ids, positions = [], [], []
    starts, offsets = [0] * (B * N), [0] * (B * N)
    end = 0
    for b in range(B):
        present = [k for k in range(N) if lengths[b][k] > 0]
        if not present and (b or any(map(any, lengths))):
            continue
        first, *others = present or [0]  # of an all-empty batch one padding token goes through
        # a slot that holds the prompt alone is no branch; what is trained or scored of it stands in the trunk
        prompt, trunk = prompts[b], max(lengths[b][first], 1)
        prompt = min(prompt, trunk)
        start, branches = end, []
        ids.append(torch.arange((b * N + first) * L, (b * N + first) * L + trunk))
        positions.append(torch.arange(trunk))
        end += trunk
        starts[b * N : (b + 1) * N] = [start] * N
        offsets[b * N + first] = start
        for k in others:
            length = lengths[b][k] - prompt
            offsets[b * N + k] = end - prompt
            if length > 0:
                branches.append((end, length))
                ids.append(torch.arange((b * N + k) * L + prompt, (b * N + k) * L + prompt + length))
                positions.append(torch.arange(prompt, prompt + length))
                end += length
        groups.append(Group(start, prompt, trunk, tuple(branches)))
    index = torch.cat(ids).to(device, non_blocking=True)
    return PackedBatch(
        input_ids=batch["input_ids"].reshape(-1)[index].unsqueeze(0),
        position_ids=torch.cat(positions).to(device, non_blocking=True).unsqueeze(0),
        plan=AttentionPlan(tuple(groups), end),
        prompt_lengths=batch["prompt_lengths"].repeat_interleave(N),
        prompt_starts=torch.tensor(starts).to(device, non_blocking=True),
        offsets=torch.tensor(offsets).to(device, non_blocking=True),
    )


def _checked_lengths(batch: Mapping[str, Tensor]) -> tuple[list[list[int]], list[int]]:
    """`(B, N)` token counts and `(B,)` prompt lengths as numbers, in one transfer; the prompts are compared."""
    B, N, L = batch["input_ids"].shape
    lengths, prompts = batch["attention_mask"].sum(2), batch["prompt_lengths"]
    present = lengths > 0
    first = present.to(torch.int64).argmax(1)
    own = batch["input_ids"][torch.arange(B, device=first.device), first].unsqueeze(1)
    in_prompt = torch.arange(L, device=first.device) < prompts.view(B, 1, 1)
    differ = ((batch["input_ids"] != own) & in_prompt & present.unsqueeze(2)).any((1, 2))
    differ |= ((lengths < prompts.unsqueeze(1)) & present).any(1)
    numbers = torch.cat([lengths, prompts.unsqueeze(1), differ.unsqueeze(1).to(lengths)], 1).tolist()
    if bad := [b for b, row in enumerate(numbers) if row[-1]]:
        raise ValueError(
            f"`prompt_lengths` is {numbers[bad[0]][-2]} for instruction {bad[0]} of the batch, but its responses do "
            'not begin with the same so many tokens. Mend the collator, or use `batch_layout="rows"`.'
        )
    return [row[:N] for row in numbers], [row[N] for row in numbers]


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
