"""The key-value cache of N branches that grow from each prompt, in two forms, and the attention over the second.

* [`expand`]: a row a branch, the prompt's keys and values repeated; any attention, any device. Room for what is to
  come is set aside beforehand: transformers' own layer copies all it holds at every token (`torch.cat`).
* [`Branches`]: prompts are kept once, and the branches of one prompt are queries of one product over its keys. Used on
  a CPU, by models that [`follows_branches`] has asked. With 64 branches of 16 prompts of 384 tokens (SmolLM2-135M, one
  core, bfloat16) a decoding step takes 0.18 s instead of 0.76 s.

Knows transformers' cache classes and attention interface and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


IMPLEMENTATION = "tuna_branches"
_REPLACED = ("sdpa", "eager", "tuna_sdpa", "tuna_eager")
# a term of the scores that is not known here; a window is one too, because branches see their whole prompt
_UNKNOWN_TERMS = ("sliding_window", "softcap", "s_aux", "position_bias", "alibi", "head_mask", "cache")
# of an attention output; a branch that loses its prompt or sees another one is off by a large part of its norm
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def _filled(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    if layer.keys is None or layer.values is None:
        raise ValueError("The layer has not seen a prompt yet.")
    return layer.keys, layer.values


class RoomyLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are views of larger tensors.

    Args:
        layer: the layer to take over, initialised by a prefill; keys and values `(B, heads, P, head_dim)`.
        repeats: branches of each row; row b becomes rows `b * repeats ... (b + 1) * repeats - 1`.
        room: tokens that will be added at most.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, repeats: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        keys, values = _filled(layer)
        self._room = keys.shape[-2] + room
        self._hold(keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0))

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        batch, heads, length, _ = keys.shape
        self._all_keys = keys.new_empty(batch, heads, self._room, keys.shape[-1])
        self._all_values = values.new_empty(batch, heads, self._room, values.shape[-1])
        self._all_keys[:, :, :length] = keys
        self._all_values[:, :, :length] = values
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._all_keys[:, :, :length], self._all_values[:, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the old ones; returns all keys and values."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        self._all_keys[:, :, start:end] = key_states
        self._all_values[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._hold(self.keys[indices], self.values[indices])


class BranchLayer(RoomyLayer):
    """One layer of [`Branches`]: the prompts' keys and values, once each, and behind them those of every branch.

    In float32 or better, whatever the model's precision: a CPU multiplies that faster than it converts bfloat16 anew
    at every token, and the scores are not rounded to bfloat16.

    Args:
        layer, repeats, room: as for [`RoomyLayer`].
    """

    def __init__(self, layer: DynamicLayer, repeats: int, room: int) -> None:
        DynamicLayer.__init__(self)
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._room = room
        keys, values = _filled(layer)
        exact = torch.promote_types(keys.dtype, torch.float32)
        self.prompt_keys, self.prompt_values = keys.to(exact), values.to(exact)
        empty = [t.new_empty(len(t) * repeats, t.shape[1], 0, t.shape[3]) for t in self._prompts]
        self._hold(*empty)

    @property
    def _prompts(self) -> tuple[Tensor, Tensor]:
        return self.prompt_keys, self.prompt_values

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[-2] + self.keys.shape[-2]

    def select_prompts(self, kept: Tensor) -> None:
        self.prompt_keys, self.prompt_values = self.prompt_keys[kept], self.prompt_values[kept]


class Branches:
    """Which branch grows from which prompt, for a cache whose layers it turns into [`BranchLayer`]s.

    Args:
        cache: prefilled with B prompts, all its layers plain ([`all_plain`]); its layers are replaced.
        mask: `(B, P)`, 1 = a token of the prompt, 0 = padding on its left.
        repeats: branches of each prompt; row b becomes rows `b * repeats ... (b + 1) * repeats - 1`.
        room: tokens that will be added at most.
    """

    def __init__(self, cache: Any, mask: Tensor, repeats: int, room: int) -> None:
        self.layers = [BranchLayer(layer, repeats, room) for layer in cache.layers]
        cache.layers[:] = self.layers
        self._mask = mask
        self._group(torch.arange(len(mask)).repeat_interleave(repeats))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (ascending) only; a prompt without any is dropped."""
        for layer in self.layers:
            layer.batch_select_indices(rows)
        prompts, prompt_of = torch.unique(self._prompt_of[rows], return_inverse=True)
        if len(prompts) < len(self._mask):
            self._mask = self._mask[prompts]
            for layer in self.layers:
                layer.select_prompts(prompts)
        self._group(prompt_of)

    def _group(self, prompt_of: Tensor) -> None:
        """Give every row a place among its prompt's: `prompts x width` places, of which some may stay empty."""
        self._prompt_of = prompt_of
        counts = torch.bincount(prompt_of, minlength=len(self._mask))
        self._width = int(counts.max())
        first = counts.cumsum(0) - counts
        place = prompt_of * self._width + torch.arange(len(prompt_of)) - first[prompt_of]
        self._place = None if len(place) == len(self._mask) * self._width else place
        self._hidden = None if bool(self._mask.all()) else (self._mask == 0)[:, None, None, :]

    def attend(self, layer: BranchLayer, query: Tensor) -> Tensor:
        """`(rows, heads, head_dim)`: attention of one token a row over its prompt and its own branch.

        The softmax over both is put together from the two parts' own: with z their sums of exponentials, the result
        is `(z_prompt * out_prompt + z_own * out_own) / (z_prompt + z_own)`.

        Args:
            query: `(rows, heads, head_dim)`, scaled.
        """
        rows, heads, size = query.shape
        kv_heads = layer.keys.shape[1]
        grouped = query.view(rows, kv_heads, heads // kv_heads, size)
        own, own_sum = _softmax_product(grouped, layer.keys, layer.values, None)
        prompt, prompt_sum = _softmax_product(self._gathered(grouped), *layer._prompts, self._hidden)
        prompt, prompt_sum = self._scattered(prompt, rows), self._scattered(prompt_sum, rows)
        merged = torch.lerp(own, prompt, torch.sigmoid(prompt_sum - own_sum))
        return merged.reshape(rows, heads, -1)

    def _gathered(self, rows: Tensor) -> Tensor:
        """`(rows, kv_heads, group, D) -> (prompts, kv_heads, width * group, D)`"""
        _, kv_heads, group, size = rows.shape
        if self._place is not None:
            padded = rows.new_zeros(len(self._mask) * self._width, kv_heads, group, size)
            padded[self._place] = rows
            rows = padded
        places = rows.view(len(self._mask), self._width, kv_heads, group, size).transpose(1, 2)
        return places.reshape(len(self._mask), kv_heads, self._width * group, size)

    def _scattered(self, prompts: Tensor, rows: int) -> Tensor:
        """The way back."""
        kv_heads, size = prompts.shape[1], prompts.shape[3]
        places = prompts.view(len(prompts), kv_heads, self._width, -1, size).transpose(1, 2)
        places = places.reshape(len(prompts) * self._width, kv_heads, -1, size)
        return places if self._place is None else places[self._place]


def _softmax_product(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention `(B, heads, Q, D)` and the log of its sum of exponentials `(B, heads, Q, 1)`."""
    scores = query @ keys.transpose(2, 3)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    total = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(total).exp_() @ values, total


class _Question(Branches):
    """Branches beside an expanded cache: the attention is computed both ways, and the difference noted."""

    calls = 0
    error = 0.0


# ---- transformers' interface ----


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tuna_branches: Branches | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if tuna_branches is None or query.shape[2] != 1 or dropout:
        raise NotImplementedError(f"{type(module).__name__} has not been given its branches")
    if unknown := [name for name in _UNKNOWN_TERMS if kwargs.get(name) is not None]:
        raise NotImplementedError(f"{type(module).__name__} uses {unknown[0]}")
    layer = tuna_branches.layers[module.layer_idx]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(tuna_branches, _Question):
        layer.update(key[:, :, -1:], value[:, :, -1:])
    found = tuna_branches.attend(layer, query[:, :, 0].to(layer.keys.dtype) * scale)[:, None].to(query.dtype)
    if isinstance(tuna_branches, _Question):
        tuna_branches.calls += 1
        own = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0]
        error = (found - own).double().norm(dim=(2, 3)) / own.double().norm(dim=(2, 3)).clamp(min=1e-12)
        tuna_branches.error = max(tuna_branches.error, float(error.nan_to_num(torch.inf).max()))
    return found, None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


@contextmanager
def attending_branches(model: nn.Module) -> Iterator[None]:
    """Inside, `model` attends as [`Branches`] says; afterwards as before."""
    own = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def can_expand(cache: Any) -> bool:
    """Whether every layer holds keys and values only.

    Asked by exact class: layers with recurrent state inherit a `batch_repeat_interleave` that forgets that state.
    """
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def all_plain(cache: Any) -> bool:
    """Whether every layer holds the keys and values of all tokens."""
    return all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)


def expand(cache: Any, repeats: int, room: int) -> None:
    """Turn a prefilled cache of B rows into one of `B * repeats`, in place, with `room` for that many tokens more."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(layer, repeats, room)
        else:
            layer.batch_repeat_interleave(repeats)


@torch.no_grad()
def follows_branches(model: nn.Module) -> bool:
    """Whether every layer of `model` (no PEFT wrapper, in eval mode) can attend to [`Branches`]: asked of itself, on
    prompts of 5 and 3 tokens with two branches each, of which one ends early. The two attentions are compared layer by
    layer, where rounding has not yet added up: in bfloat16 the logits of a right and a wrong one may be as far apart.
    """
    if model.device.type != "cpu" or model.config._attn_implementation not in _REPLACED:
        return False  # elsewhere sdpa's own kernels win, and these products were never run there
    if not model._can_set_attn_implementation() or "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    ids = torch.tensor([[3, 7, 2, 9, 5], [0, 0, 8, 4, 6]]) % model.get_input_embeddings().weight.shape[0]
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
    if not (can_expand(cache) and all_plain(cache)):
        return False
    question = _Question(SimpleNamespace(layers=list(cache.layers)), mask, 2, room=2)
    expand(cache, 2, room=2)
    seen = mask.repeat_interleave(2, 0)
    tokens, lengths = ids.flatten()[:4, None], torch.tensor([[5], [5], [3], [3]])
    try:
        with attending_branches(model):
            for step, rows in enumerate([torch.arange(4), torch.tensor([0, 1, 3])]):
                if step:
                    question.keep(rows)
                    cache.batch_select_indices(rows)
                seen = torch.cat([seen[rows], seen.new_ones(len(rows), 1)], 1)
                # a mask of four dimensions is handed on to the attention as it is (masking_utils.py)
                hidden = torch.zeros(len(rows), 1, 1, seen.shape[1], dtype=model.dtype)
                hidden.masked_fill_(seen[:, None, None] == 0, torch.finfo(model.dtype).min)
                model(
                    input_ids=tokens[rows],
                    attention_mask=hidden,
                    position_ids=lengths[rows] + step,
                    past_key_values=cache,
                    use_cache=True,
                    tuna_branches=question,
                )
    except Exception:  # noqa: BLE001 - whatever a foreign model does with another attention, it is a no
        return False
    return question.calls == 2 * len(question.layers) and question.error < _TOLERANCE.get(model.dtype, 0.015)
