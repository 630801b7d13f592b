"""A judging protocol by name, for the command line and for YAML."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, did_you_mean
from .base import JudgeProtocol
from .contextual import ContextualProtocol
from .own_protocol import OwnProtocol
from .pairwise import PairwiseProtocol
from .pointwise import PointwiseProtocol


PROTOCOLS = {kind.name: kind for kind in (ContextualProtocol, PairwiseProtocol, PointwiseProtocol, OwnProtocol)}


def protocol_by_name(name: str, **options: Any) -> JudgeProtocol:
    """`contextual`, `pairwise`, `pointwise` or `own`, with the options of its class.

    >>> protocol_by_name("contextual", judge_answer="ranked")
    ContextualProtocol(judge_answer='ranked', show_reference=False)

    Raises:
        InputError: the name or an option is not known, an option is missing, or its value is refused.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"`protocol` is {name!r}, expected one of {', '.join(PROTOCOLS)}.{did_you_mean(str(name), PROTOCOLS)}"
        )
    parameters = inspect.signature(PROTOCOLS[name]).parameters
    for option in options:
        if option not in parameters:
            raise InputError(
                f"The protocol {name!r} has no option {option!r}, it has {', '.join(parameters)}."
                f"{did_you_mean(str(option), parameters)}"
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and options.get(option) is None:
            raise InputError(f"The protocol {name!r} needs the option {option!r}.")
    return PROTOCOLS[name](**options)


def protocol_from(setting: str | Mapping[str, Any] | None) -> JudgeProtocol:
    """A protocol as YAML writes it: a name, or a mapping of `name` and options; None is contextual ranking.

    >>> protocol_from({"name": "pointwise", "scale": [0, 10]}).scale
    (0, 10)

    Raises:
        InputError: see [`protocol_by_name`]; or the setting is neither.
    """
    if setting is None:
        return ContextualProtocol()
    if isinstance(setting, str):
        return protocol_by_name(setting)
    if not isinstance(setting, Mapping) or not isinstance(setting.get("name"), str):
        raise InputError(
            f"`protocol` is {setting!r}, expected a name ({', '.join(PROTOCOLS)}) or a mapping with `name` and "
            "options."
        )
    options = {option: value for option, value in setting.items() if option != "name"}
    if not all(isinstance(option, str) for option in options):
        raise InputError(f"`protocol` has an option that is no name: {list(options)}.")
    if options.get("judge_answer") is False:  # what YAML 1.1 makes of an unquoted `off`
        options["judge_answer"] = "off"
    return protocol_by_name(setting["name"], **options)
