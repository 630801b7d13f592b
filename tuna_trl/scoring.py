"""Log-probabilities of responses, for trainer, builders and evaluation alike.

`install(model)` teaches a causal language model one more keyword: called with `tuna_targets=...` its forward returns
the log-probs of chosen tokens through the chunked head ([`tuna_trl.head`]) instead of logits. Because that happens
inside the model's own forward, DDP, FSDP, PEFT and autocast see it; without the keyword the forward is the old one.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import check_followed, plan_arguments
from .errors import InputError
from .head import LogitTransform, _at_least_fp32, token_logps
from .packing import pack


@dataclass(frozen=True)
class ResponseScores:
    """What one forward says about a batch; every field is `(B, N)`.

    `logps`: summed log-probs of the scored tokens, nats. `lengths`: how many tokens they sum over. `nll`: the sum of
    the MLE loss over the label tokens, nats. `nll_tokens`: how many those are.
    """

    logps: Tensor
    lengths: Tensor
    nll: Tensor
    nll_tokens: Tensor


def install(model: nn.Module) -> nn.Module:
    """Teach the base model of `model` (PEFT or not) the keyword `tuna_targets`; a second call changes nothing.

    Returns:
        the model whose forward was taught.

    Raises:
        InputError: the model has no output embedding, so it is no language model.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    if getattr(base, "_tuna_scoring", False):
        return base
    if not hasattr(base, "get_output_embeddings") or base.get_output_embeddings() is None:
        raise InputError(
            f"`model`: {type(base).__name__} has no output embedding, so it gives no token probabilities. "
            "Load it with AutoModelForCausalLM."
        )
    transform = LogitTransform.of(base.config)
    plain = _head_is_plain(base, transform)
    base._tuna_forward = base.forward  # an attribute and no closure: a deep copy binds it to the copy
    base.forward = types.MethodType(_taught_forward(type(base).forward, transform, plain), base)
    base._tuna_scoring = True
    return base


def _taught_forward(plain_forward: Callable[..., Any], transform: LogitTransform, plain: bool) -> Callable[..., Any]:
    """The forward of a class with one more keyword; `plain` as found by [`_head_is_plain`]."""

    def forward(self: Any, *args: Any, tuna_targets: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        if tuna_targets is None:
            return self._tuna_forward(*args, **kwargs)
        kwargs["use_cache"] = False
        select, targets, plan = tuna_targets["select"], tuna_targets["targets"], tuna_targets.get("plan")
        if plan is not None:
            embedding = self.get_input_embeddings().weight
            dtype = torch.get_autocast_dtype(embedding.device.type) if _autocast(embedding) else embedding.dtype
            kwargs |= plan_arguments(self, plan, targets.device, dtype)
        # a model spread over devices (device_map) ends on another one than it begins on
        if plain:
            hidden = self.base_model(*args, **kwargs).last_hidden_state
            hidden = hidden.reshape(-1, hidden.shape[-1])[select.to(hidden.device)]
            # looked up at each call: PEFT and FSDP replace the head after this function is made
            logps = token_logps(hidden, targets.to(hidden.device), self.get_output_embeddings(), transform)
        else:
            logits = self._tuna_forward(*args, **kwargs).logits
            logits = _at_least_fp32(logits.reshape(-1, logits.shape[-1])[select.to(logits.device)])
            chosen = logits.gather(1, targets.to(logits.device).unsqueeze(1)).squeeze(1)
            logps = chosen - torch.logsumexp(logits, 1)
        if plan is not None:
            check_followed(self, plan)
        return {"logps": logps.to(targets.device)}

    # generate() checks its keywords against this signature. `__wrapped__` must not be there: accelerate follows it to
    # the end when it takes off its mixed precision (utils/other.py, extract_model_from_parallel), and ours would go.
    taught: Any = functools.update_wrapper(forward, plain_forward)
    del taught.__wrapped__
    taught.__signature__ = inspect.signature(plain_forward)
    return taught


def response_logps(
    model: nn.Module, batch: Mapping[str, Tensor], *, loss_type: str = "nll", layout: str = "rows"
) -> ResponseScores:
    """Score every response of a batch in one forward of (wrapped) `model`; `install` must have been called on it.

    Args:
        batch: `input_ids`, `attention_mask`, `score_mask` (bool), `labels` (-100 = not trained), each `(B, N, L)`, as
            [`RankedCollator`] makes them. Position 0 has no log-prob and never counts.
        loss_type: "nll", or "dft" (arXiv 2508.05629: each token's NLL weighed by its own probability, no gradient
            through the weight).
        layout: what [`tuna_trl.layouts.choose_layout`] found: "rows" runs one padded row a response;
            "shared_prompt" one row for the batch, without padding, every prompt once (needs `prompt_lengths` `(B,)`).
    """
    shape = batch["input_ids"].shape
    flat = {name: batch[name].reshape(-1, shape[-1]) for name in ("input_ids", "attention_mask")}
    score_mask = batch["score_mask"].reshape(-1, shape[-1])[:, 1:].bool()
    label_mask = batch["labels"].reshape(-1, shape[-1])[:, 1:] != -100
    used = flat["attention_mask"].any(1)
    row, place = ((score_mask | label_mask) & used.unsqueeze(1)).nonzero(as_tuple=True)
    targets = {"targets": flat["input_ids"][row, place + 1]}
    if layout == "shared_prompt" and "prompt_lengths" in batch:
        packed = pack(batch)
        # a tensor of its own for the plan would be split by nn.DataParallel and moved by accelerate; an object is not
        targets |= {"select": packed.place(row, place), "plan": packed.plan}
        output = model(input_ids=packed.input_ids, position_ids=packed.position_ids, tuna_targets=targets)
    else:
        # ragged N: an empty slot costs nothing. One row always goes through, so that every rank runs a forward.
        used[0] |= ~used.any()
        targets["select"] = (used.cumsum(0) - 1)[row] * shape[-1] + place
        output = model(
            input_ids=flat["input_ids"][used],
            attention_mask=_visible(flat["attention_mask"][used]),
            tuna_targets=targets,
        )
    logps = output["logps"]
    if logps.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"The wrapper around the model rounds its log-probabilities to {logps.dtype}, and a loss compares them to "
            "hundredths. With FSDP2 use MixedPrecisionPolicy(output_dtype=None)."
        )
    nll = -logps * logps.exp().detach() if loss_type == "dft" else -logps
    scored, labelled = score_mask[row, place], label_mask[row, place]

    def per_row(values: Tensor, chosen: Tensor) -> Tensor:
        total = values.new_zeros(len(used)).index_add(0, row, torch.where(chosen, values, 0.0))
        return total.view(shape[:2])

    return ResponseScores(
        logps=per_row(logps, scored),
        lengths=score_mask.sum(1).view(shape[:2]),
        nll=per_row(nll, labelled),
        nll_tokens=label_mask.sum(1).view(shape[:2]),
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside, every module's mode as it was behind.

    `model.eval()` would not do before training: bitsandbytes repacks a 4-bit weight at its first eval-mode forward on
    AVX512-BF16 CPUs, and later gradients are wrong (bitsandbytes 0.50.2, nn/modules.py:613). Such a layer has no
    dropout to switch off, so it runs in training mode (a model comes from `from_pretrained` in eval mode).
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = type(module).__name__ == "Linear4bit"
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def score_rows(
    model: nn.Module,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    batch_layout: str = "auto",
    show_progress: bool = False,
) -> list[list[dict[str, float | int | None]]]:
    """Log-probs of *given* responses under a local model, by teacher forcing, temperature 1, raw logits.

    Args:
        model: taught to score ([`tuna_trl.scoring.install`]).
        tokenizer: with a chat template.
        rows: ranked rows (`prompt`, `responses`); ranks are not looked at.
        batch_size: rows in one forward.
        max_length: tokens a prompt with one response may have (None: the model's own limit); a longer response is
            not scored.
        batch_layout: "auto", "shared_prompt" or "rows" ([`tuna_trl.layouts`]).
        show_progress: progress on stderr.

    Returns:
        for each row, in the order of its `responses`: `{"logprob": nats, "num_tokens": int}`, the end-of-turn token
        included; both None for a response that is too long or empty.
    """
    from .collator import RankedCollator
    from .data.tokenize import tokenize_row
    from .layouts import choose_layout
    from .tokens import Template

    base = install(model)
    layout = choose_layout(model, batch_layout)
    template = Template(tokenizer)
    limit = max_length or getattr(base.config.get_text_config(), "max_position_embeddings", None)
    tokenised = [tokenize_row(row, template) for row in rows]
    collator = RankedCollator(pad_token_id=template.pad_token_id, mle_target="none")
    results: list[list[dict[str, float | int | None]]] = [
        [{"logprob": None, "num_tokens": None} for _ in row["response_ids"]] for row in tokenised
    ]
    fitting = [_fitting(row, limit) for row in tokenised]
    # longest first: neighbours have similar lengths, so little padding, and an out-of-memory error shows at once
    order = sorted((i for i, f in enumerate(fitting) if f), key=lambda i: -tokenised[i]["length"])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if show_progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="Scoring responses", unit="batch")
    was_training = model.training
    model.eval()
    try:
        for chosen in batches:
            batch = collator([_keep(tokenised[i], fitting[i]) for i in chosen])
            batch = {name: value.to(_device(model)) for name, value in batch.items()}
            scores = response_logps(model, batch, layout=layout)
            for b, i in enumerate(chosen):
                for place, k in enumerate(fitting[i]):
                    length = int(scores.lengths[b, place])
                    if length:
                        results[i][k] = {"logprob": float(scores.logps[b, place]), "num_tokens": length}
    finally:
        model.train(was_training)
    return results


def _fitting(row: Mapping[str, Any], limit: int | None) -> list[int]:
    """Indices of the responses that fit into `limit` tokens with their prompt."""
    lengths = [len(row["prompt_ids"]) + len(ids) for ids in row["response_ids"]]
    return [k for k, length in enumerate(lengths) if limit is None or length <= limit]


def _keep(row: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A tokenised row with only some of its responses."""
    lists = ("response_ids", "response_labels", "score_lengths", "ranks", "scores")
    return {name: [value[k] for k in kept] if name in lists else value for name, value in row.items()}


def _visible(attention_mask: Tensor) -> Tensor:
    """The mask with at least one visible token a row, so that a row of an all-empty batch has no NaN softmax."""
    mask = attention_mask.clone()
    mask[:, 0] |= mask.sum(1) == 0
    return mask


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _autocast(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _head_is_plain(model: nn.Module, transform: LogitTransform) -> bool:
    """Whether backbone -> head -> transform gives the model's own logits: asked once, on three tokens.

    A model that does something else behind its head (an unknown scale, a second norm) is scored through its full
    logits: slower, more memory, never a wrong number. Sharded parameters cannot be asked and are taken at their word.
    """
    if model.base_model is model:
        return False
    parameters = list(model.parameters())
    if any(p.numel() == 0 or p.is_meta or type(p.data).__name__ == "DTensor" for p in parameters):
        return True
    ids = torch.tensor([[1, 2, 3]], device=model.get_input_embeddings().weight.device)
    with evaluating(model), torch.no_grad():
        own = _at_least_fp32(model(input_ids=ids, use_cache=False).logits)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = transform(_at_least_fp32(model.get_output_embeddings()(hidden)))
    if not own.isfinite().all():  # weights that another process loads: every process has to take the same way
        return True
    scale = own.abs().max().clamp(min=1e-6)
    plain = own.shape == ours.shape and bool(((own - ours).abs().max() / scale) < 1e-2)
    if not plain:
        from transformers.utils import logging

        logging.get_logger(__name__).warning(
            f"{type(model).__name__} does more behind its output embedding than scale or cap the logits; its "
            "responses are scored through full logits (right, but with the memory of (tokens, vocabulary) floats)."
        )
    return plain
