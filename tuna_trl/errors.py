"""The errors of the package: one class for "what you passed", one for "what the world did".

The command line turns [`InputError`] into exit code 2 and everything else into exit code 1. A leaf: imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong; the message names the argument, the value seen and the way out (exit code 2)."""


class SchemaError(InputError):
    """A row is not what it should be; the message names row, column, what was found and the call that mends it."""


class BuildError(RuntimeError):
    """A build could not go on, through nobody's input: a server that stays down, a full disk (exit code 1)."""


class BudgetExceeded(BuildError):
    """The next request could cost more than what is left of `max_cost`; everything received so far is journalled."""


class TrainingMemoryError(RuntimeError):
    """Training ran out of memory; the message names the batch, what helps and the checkpoint (exit code 1)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'margin'?"` for the nearest known name, or `""` when none is near.

    >>> did_you_mean("margn", ["margin", "mle_weight"])
    " Did you mean 'margin'?"
    >>> did_you_mean("zzz", ["margin"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
