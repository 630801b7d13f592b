"""A judge by name and options, for the command line and for YAML."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, did_you_mean
from .base import Judge


KNOWN = ("reference", "exact-match", "claude", "openai:<model>", "local:<model>", "reward:<model>")
# name or prefix -> module and class beside this file; modules are imported when asked for
_CLASSES = {
    "reference": ("reference", "ReferenceJudge"),
    "exact-match": ("reference", "ExactMatchJudge"),
    "claude": ("anthropic_messages", "AnthropicJudge"),
    "openai": ("openai_judge", "OpenAICompatibleJudge"),
    "local": ("local_judge", "TransformersJudge"),
    "reward": ("reward_model", "RewardModelJudge"),
}
_ALIASES = {"reference:rouge-l": "reference", "reference:exact-match": "exact-match"}
# arguments that the name, or the loading of the model, already gives
_GIVEN = {"model", "tokenizer"}


def judge_by_name(name: str, **options: Any) -> Judge:
    """A judge with the options of its class; an option that is None is left at its default.

    `reference` (ROUGE-L) and `exact-match` compare with each row's reference; `claude` is the default Claude model,
    and any Claude id works (`claude-haiku-5-5`); `openai:<model id>` is behind OpenAI's API or `base_url`; `local:<Hub
    id, folder or embedded>` is a language model in this process, `reward:<Hub id or folder>` a reward model.

    Args:
        name: one of those above.
        options: arguments of the class, such as `effort`, `max_tokens`, `base_url`, `concurrency`, `prices`,
            `batch_size`; `protocol` may be a name or a mapping ([`tuna_trl.clients.protocols.protocol_from`]);
            `local:` also takes `dtype` and `device`.

    Raises:
        InputError: the name is not known, an option does not apply to this judge, or what the class itself refuses (a
            missing key).
    """
    kind, model = _split(name)
    options = {option: value for option, value in options.items() if value is not None}
    module, class_name = _CLASSES[kind]
    judge = getattr(importlib.import_module(f".{module}", __package__), class_name)
    _check_options(name, kind, judge, options)
    if isinstance(options.get("protocol"), str | Mapping):
        from .protocols import protocol_from

        options["protocol"] = protocol_from(options["protocol"])
    if kind == "local":
        loading = {key: options.pop(key) for key in ("dtype", "device") if key in options}
        return judge(*_loaded(model, **loading), **options)
    return judge(model, **options) if model else judge(**options)


def judge_options(name: str) -> tuple[str, ...]:
    """The options that the judge of this name takes.

    Raises:
        InputError: the name is not known.
    """
    kind, _ = _split(name)
    module, class_name = _CLASSES[kind]
    return _options_of(kind, getattr(importlib.import_module(f".{module}", __package__), class_name))


def _split(name: str) -> tuple[str, str]:
    """The kind of judge, and the model that its name holds ("" where it holds none)."""
    name = _ALIASES.get(name, name)
    if name in ("reference", "exact-match", "claude"):
        return name, ""
    if name.startswith("claude-"):
        return "claude", name
    kind, colon, model = name.partition(":")
    if kind in ("openai", "local", "reward"):
        if model.strip():
            return kind, model.strip()
        raise InputError(f"`judge` is {name!r}, which names no model. Write {kind}:<model>.")
    hint = did_you_mean(kind, ("openai", "local", "reward")) if colon else did_you_mean(name, KNOWN)
    raise InputError(f"`judge` is {name!r}, expected a Claude model id or one of {', '.join(KNOWN)}.{hint}")


def _options_of(kind: str, judge: type) -> tuple[str, ...]:
    own = [name for name in inspect.signature(judge).parameters if name not in _GIVEN]
    return (*own, *(("dtype", "device") if kind == "local" else ()))


def _check_options(name: str, kind: str, judge: type, options: Mapping[str, Any]) -> None:
    known = _options_of(kind, judge)
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(f"The judge {name!r} has no option {option!r}; {takes}.{did_you_mean(option, known)}")


def _loaded(name: str, *, dtype: str = "float32", device: str | None = None) -> tuple[Any, Any]:
    from ..loading import load_model, load_tokenizer

    where: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
    return load_model(name, dtype=dtype, **where), load_tokenizer(name)
