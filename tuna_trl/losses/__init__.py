"""Ranking losses by name. A loss is a pure function of `(B, N)` tensors; it knows no model, no config, no trainer.

Signature of every ranking loss, ours or a user's:

    loss(logps, lengths, ranks, mask, *, targets=None, ref_logps=None, **loss_kwargs) -> (B,)

`logps` (float, nats) and `lengths` (int, tokens) are the model's summed log-probabilities of the responses and how
many tokens they sum over; `ranks` (int, 1 = best, ties share a rank); `mask` (bool, slots with a ranked response);
`targets` (float, the ranker's scores); `ref_logps` (float, nats, the reference model's). All are `(B, N)`. One value
an instruction comes back, 0 where a row has no pair; the reduction over instructions is the trainer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError, did_you_mean
from .listwise import dpo_pl_loss, lipo_loss, listmle_loss, listnet_loss, pro_loss
from .pairwise import brio_loss, rrhf_loss, simpo_loss, slic_loss
from .tuna import tuna_loss


RankingLoss = Callable[..., Tensor]
"""A ranking loss: `(logps, lengths, ranks, mask, *, targets=None, ref_logps=None, **kwargs)` -> `(B,)`."""

__all__ = [
    "RankingLoss",
    "brio_loss",
    "dpo_pl_loss",
    "lipo_loss",
    "listmle_loss",
    "listnet_loss",
    "needs_reference",
    "pro_loss",
    "ranking_loss",
    "register_ranking_loss",
    "rrhf_loss",
    "simpo_loss",
    "slic_loss",
    "tuna_loss",
]

_LOSSES: dict[str, RankingLoss] = {
    "tuna": tuna_loss,
    "rrhf": rrhf_loss,
    "brio": brio_loss,
    "slic": slic_loss,
    "pro": pro_loss,
    "listmle": listmle_loss,
    "listnet": listnet_loss,
    "simpo": simpo_loss,
    "dpo_pl": dpo_pl_loss,
    "lipo": lipo_loss,
}
# Those that compare with a reference model.
_NEED_REFERENCE = {"dpo_pl", "lipo"}


def register_ranking_loss(name: str, loss: RankingLoss, *, needs_reference: bool = False) -> RankingLoss:
    """Make `loss` available as `TunaConfig(ranking_loss=name)`. A name that is taken is refused.

    Args:
        name: what configs call it.
        loss: a callable with the signature of [`tuna_trl.losses.tuna.tuna_loss`], as far as it is common to all.
        needs_reference: the loss reads `ref_logps`; the trainer then makes them. (A callable that is not registered
            says so by an attribute `needs_reference = True`.)

    Returns:
        `loss`.

    Raises:
        InputError: another loss has that name.
    """
    if name in _LOSSES and _LOSSES[name] is not loss:
        raise InputError(f"`name`: a ranking loss called {name!r} is registered already; choose another name.")
    _LOSSES[name] = loss
    if needs_reference:
        _NEED_REFERENCE.add(name)
    return loss


def needs_reference(loss: str | RankingLoss) -> bool:
    """Whether a loss compares with a reference model.

    Args:
        loss: a registered name, or a callable.
    """
    if callable(loss):
        return getattr(loss, "needs_reference", False) or any(_LOSSES[name] is loss for name in _NEED_REFERENCE)
    return loss in _NEED_REFERENCE


def ranking_loss(loss: str | RankingLoss) -> RankingLoss:
    """The loss of that name, or the callable itself.

    Args:
        loss: a registered name, or a callable.

    Raises:
        InputError: no loss of that name is registered.
    """
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise InputError(
            f"`ranking_loss` is {loss!r}, which is not registered.{did_you_mean(str(loss), _LOSSES)} "
            f"Registered: {', '.join(sorted(_LOSSES))}; a callable with the signature of `tuna_trl.losses` works too."
        )
    return _LOSSES[loss]


def bind(loss: str | RankingLoss, loss_kwargs: dict[str, Any], defaults: dict[str, Any]) -> RankingLoss:
    """The loss with its keyword arguments fixed.

    Args:
        loss_kwargs: what the user asked for; a name the loss does not take is an error.
        defaults: what the config has for all losses (`margin`, `length_exponent`, ...); each goes only to a loss
            that takes it, and None leaves the loss its own default.
    """
    function = ranking_loss(loss)
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in loss_kwargs:
        if name not in own and not takes_all:
            raise InputError(
                f"`loss_kwargs`: the ranking loss {getattr(function, '__name__', loss)!r} takes no {name!r}."
                f"{did_you_mean(name, own)} It takes: {', '.join(sorted(own - {'targets', 'ref_logps', 'groups'}))}."
            )
        if defaults.get(name) is not None and defaults[name] != loss_kwargs[name]:
            raise InputError(
                f"`{name}` is {defaults[name]!r} and `loss_kwargs` has {loss_kwargs[name]!r}; set the field `{name}` "
                "alone."
            )
    missing = [name for name in ("targets", "ref_logps") if name not in parameters and not takes_all]
    if missing:
        raise InputError(
            f"`ranking_loss`: {getattr(function, '__name__', loss)!r} takes no {missing[0]!r}, with which the trainer "
            "calls every loss. Its signature is (logps, lengths, ranks, mask, *, targets=None, ref_logps=None, "
            "**kwargs)."
        )
    # None = the loss's own default
    given = {name: value for name, value in defaults.items() if name in own and value is not None}
    return partial(function, **(given | dict(loss_kwargs)))


def takes(loss: RankingLoss, name: str) -> bool:
    """Whether a (bound) loss has a keyword argument of that name."""
    return name in inspect.signature(loss).parameters
