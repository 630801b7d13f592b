"""The file of `tuna-trl ablate`: what is compared, on what, who judges. Read, checked by name, expanded to arms.

    output: runs/ablation
    model: embedded
    train: runs/demo/judge_ranked
    heldout: runs/demo/heldout_ranked
    seeds: [0, 1]
    base: {learning_rate: 2.0e-4, use_peft: true, lora_target_modules: all-linear}
    arms:
      sft_best: {trainer: sft_best}
      tuna: {trainer: tuna, mle_target: best}
    vary:
      margin: [0, 0.1, 0.3]

Nothing here loads a model or a dataset; which options a trainer takes is asked of [`.baselines`].
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..evaluation.results import file_name


START = "start"
# keys of an arm that are no options of its trainer
ARM_KEYS = (
    "trainer",
    "train",
    "train_rows",
    "num_responses",
    "max_responses",
    "mix_sft",
    "ranked_by",
    "pairs",
    "reward",
    "second_stage",
    "without",
)
# options of `trl.ModelConfig` that a model is measured with as it was trained
LOADING = (
    *("model_revision", "dtype", "attn_implementation", "load_in_4bit", "load_in_8bit"),
    *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)
_TOP = (
    *("output", "model", "train", "train_split", "heldout", "heldout_split", "prompts", "allow_overlap"),
    *("judge", "max_cost", "max_new_tokens", "batch_size", "seeds", "tokens"),
    *("base", "trainers", "arms", "vary", "vary_from", "grid", "baseline"),
)
_COUNTS = ("train_rows", "num_responses", "max_responses")
# which trainers read an arm's key; those that are not named here are read by all but `start`
_ONLY_FOR = {
    "mix_sft": ("tuna", "rrhf", "sft_best", "sft_all"),
    "ranked_by": ("tuna", "rrhf", "sft_best", "sft_all", "dpo"),
    "pairs": ("dpo", "reward_judge"),
    "reward": ("grpo", "rloo"),
}


@dataclass(frozen=True)
class Source:
    """The training data of one arm: its stages, each the datasets that are put together for it."""

    stages: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage))


@dataclass(frozen=True)
class Arm:
    """One setting that is trained once a seed.

    `options` are what the trainer's config and `trl.ModelConfig` are made of; `second` what changes in them for the
    second stage. `data` holds the keys of [`ARM_KEYS`] that say what it is trained on.
    """

    name: str
    trainer: str
    source: Source
    data: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names that may be those of other arms, which are then trained before this one."""
        return tuple(self.data[key] for key in ("ranked_by", "reward") if self.data.get(key))


@dataclass(frozen=True)
class Sweep:
    """The whole file. `arms` are in the order of the file, `start` first."""

    output: Path
    model: str
    heldout: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1)
    prompts: str | None = None
    judge: Mapping[str, Any] = field(default_factory=lambda: {"name": "reference"})
    max_cost: float | None = None
    max_new_tokens: int = 128
    batch_size: int = 8
    tokens: int | None = None
    baselines: tuple[str, ...] = ()
    train_split: str | None = None
    heldout_split: str | None = None
    allow_overlap: bool = False

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def read_sweep(path: Path) -> Sweep:
    """The sweep that a YAML file describes.

    Raises:
        InputError: no YAML, an unknown key, option, trainer or arm (with the nearest name), a value of a wrong kind.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The sweep {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    return make_sweep(content, str(path))


def make_sweep(content: Any, where: str = "sweep") -> Sweep:
    """As [`read_sweep`], of what stands in the file."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must hold `key: value` lines ({', '.join(_TOP)}), got a {type(content).__name__}.")
    _known(content, _TOP, where, "key")
    for key in ("output", "model", "heldout"):
        if not isinstance(content.get(key), str) or not content[key]:
            raise InputError(f"{where}: `{key}` is {content.get(key)!r}; it must be a name or a path.")
    arms = _arms(content, where)
    sweep = Sweep(
        output=Path(content["output"]),
        model=content["model"],
        heldout=content["heldout"],
        arms=arms,
        seeds=_seeds(content.get("seeds", [0, 1]), where),
        prompts=_text(content, "prompts", where),
        judge=_judge(content.get("judge", "reference"), where),
        max_cost=_number(content, "max_cost", where),
        max_new_tokens=_count(content, "max_new_tokens", where) or 128,
        batch_size=_count(content, "batch_size", where) or 8,
        tokens=_count(content, "tokens", where),
        train_split=_text(content, "train_split", where),
        heldout_split=_text(content, "heldout_split", where),
        allow_overlap=_flag(content, "allow_overlap", where),
    )
    return replace(sweep, baselines=_baselines(content.get("baseline"), arms, where))


def _arms(content: Mapping[str, Any], where: str) -> tuple[Arm, ...]:
    from .baselines import KINDS

    base = _options(content.get("base"), f"{where}: base")
    trainers = {}
    for kind, options in _options(content.get("trainers"), f"{where}: trainers").items():
        _one_of(kind, KINDS, f"{where}: trainers", "trainer")
        trainers[kind] = _options(options, f"{where}: trainers.{kind}")
    given = _options(content.get("arms"), f"{where}: arms")
    written = {str(name): _options(value, f"{where}: arms.{name}") for name, value in given.items()}
    named = {name: value for name, value in written.items() if name != START}
    if written.get(START, {}).get("trainer", START) != START:
        raise InputError(f"{where}: the arm {START!r} is the untrained model; give that arm another name.")
    varied = _varied(content, named, where)
    for name in varied:
        if name in named:
            raise InputError(f"{where}: `vary` or `grid` gives an arm called {name!r}, and `arms` has one.")
    if not named and not varied:
        raise InputError(f"{where}: there is nothing to compare; give `arms`, `vary` or `grid`.")
    arms = [Arm(START, START, Source(()), options={key: base[key] for key in LOADING if key in base})]
    for name, own in {**named, **varied}.items():
        arms.append(_arm(name, own, base, trainers, content.get("train"), f"{where}: arm {name}"))
    _check_names(arms, where)
    _check_needs(arms, where)
    return tuple(arms)


def _arm(
    name: str, own: Mapping[str, Any], base: Mapping[str, Any], trainers: Mapping[str, Any], train: Any, where: str
) -> Arm:
    """One arm: `base`, then `trainers` of its kind, then its own options; every name is checked."""
    from .baselines import KINDS, check_option, reaches

    kind = own.get("trainer", "tuna")
    _one_of(kind, [k for k in KINDS if k != START], where, "trainer")
    merged = {**trainers.get(kind, {}), **own}
    without = merged.get("without") or []
    if not isinstance(without, list) or not all(option in base for option in without):
        raise InputError(f"{where}: `without` is {without!r}; it must be a list of options of `base`.")
    shared = {option: value for option, value in base.items() if option not in without}
    shared = {option: value for option, value in shared.items() if reaches(kind, option)}
    together = {**shared, **merged}
    options = {option: value for option, value in together.items() if option not in ARM_KEYS}
    for option in options:
        in_base = option in shared and option not in merged
        check_option(kind, option, where, way_out=f"`without: [{option}]` leaves it out here." if in_base else "")
    data = {key: together[key] for key in ARM_KEYS if together.get(key) is not None}
    for key in ("trainer", "without"):
        data.pop(key, None)
    second = _options(data.pop("second_stage", None), f"{where}.second_stage")
    for option in second:
        check_option(kind, option, f"{where}.second_stage")
    for key, kinds in _ONLY_FOR.items():
        if key in data and kind not in kinds:
            raise InputError(f"{where}: `{key}` is for the trainers {', '.join(kinds)}; this arm has {kind!r}.")
    for key in _COUNTS:
        _count(data, key, where)
    for key in ("mix_sft", "ranked_by", "reward"):
        _text(data, key, where)
    _check_pairs(data.get("pairs"), where)
    source = _source(data.pop("train", train), where)
    if second and len(source.stages) < 2:
        raise InputError(f"{where}: `second_stage` needs two stages: `train: [first dataset, second dataset]`.")
    return Arm(name, kind, source, data, options, second)


def _varied(content: Mapping[str, Any], named: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The arms of `vary` (one a value) and `grid` (one a combination), on top of the arm that `vary_from` names."""
    start = content.get("vary_from")
    if start is not None:
        _one_of(start, named, where, "arm in `vary_from`")
    ground = dict(named[start]) if start is not None else {"trainer": "tuna"}
    found: dict[str, dict[str, Any]] = {}

    def add(settings: Mapping[str, Any]) -> None:
        name = ",".join(f"{option}={_shown(value)}" for option, value in settings.items())
        if name in found:
            raise InputError(f"{where}: `vary` and `grid` give the arm {name!r} twice.")
        found[name] = {**ground, **settings}

    vary, grid = (_values(content.get(key), f"{where}: {key}") for key in ("vary", "grid"))
    for option, values in vary.items():
        for value in values:
            add({option: value})
    for combination in itertools.product(*grid.values()) if grid else ():
        add(dict(zip(grid, combination, strict=True)))
    return found


def _values(content: Any, where: str) -> dict[str, list[Any]]:
    options = _options(content, where)
    for option, values in options.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}.{option} is {values!r}; it must be a list of values.")
    return options


def _source(train: Any, where: str) -> Source:
    """`a` is one stage; `[a, b]` two; `{mixed: [a, b]}` one of both."""
    if isinstance(train, str) and train:
        return Source(((train,),))
    if isinstance(train, Mapping) and set(train) == {"mixed"} and _names(train["mixed"]):
        return Source((tuple(train["mixed"]),))
    if _names(train) and len(train) == 2:
        return Source(tuple((name,) for name in train))
    raise InputError(
        f"{where}: `train` is {train!r}; give a ranked dataset, a list of two (one stage each, in this order) or "
        "{mixed: [first, second]}, at the top of the file or in the arm."
    )


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def _check_names(arms: Iterable[Arm], where: str) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        folder = file_name(arm.name).lower()  # a file system may not tell capitals apart
        if folder in seen:
            raise InputError(f"{where}: the arms {seen[folder]!r} and {arm.name!r} would share a folder; rename one.")
        seen[folder] = arm.name


def _check_needs(arms: list[Arm], where: str) -> None:
    """`ranked_by` names a `reward_judge`; a `reward` that is no such arm is a judge's name, which is checked later."""
    judges = [arm.name for arm in arms if arm.trainer == "reward_judge"]
    for arm in arms:
        needed = arm.data.get("ranked_by")
        if needed is not None:
            _one_of(needed, judges, f"{where}: arm {arm.name}", "arm with `trainer: reward_judge` in `ranked_by`")


def _check_pairs(pairs: Any, where: str) -> None:
    from ..data.convert.pairs import PAIRS

    if pairs is not None:
        _one_of(pairs, PAIRS, where, "kind of `pairs`")


def _baselines(value: Any, arms: tuple[Arm, ...], where: str) -> tuple[str, ...]:
    """The arms that differences are taken from beside `start`: those named, else the first that is SFT on best."""
    if value is None:
        return tuple(arm.name for arm in arms if arm.trainer == "sft_best")[:1]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise InputError(f"{where}: `baseline` is {value!r}; give an arm's name, or a list of different ones.")
    known = [arm.name for arm in arms if arm.trainer not in (START, "reward_judge")]
    for name in names:
        _one_of(name, known, where, "arm in `baseline`")
    return tuple(names)


def _judge(value: Any, where: str) -> dict[str, Any]:
    judge = {"name": value} if isinstance(value, str) else value
    if not isinstance(judge, Mapping) or not isinstance(judge.get("name"), str):
        raise InputError(f"{where}: `judge` is {value!r}; give a name, or `{{name: ..., option: ...}}`.")
    return dict(judge)


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    fine = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not fine or len(set(value)) != len(value):
        raise InputError(f"{where}: `seeds` is {value!r}; give different integers, like [0, 1].")
    return tuple(value)


def _options(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; it must hold `key: value`.")
    return {str(key): entry for key, entry in value.items()}


def _known(content: Mapping[str, Any], known: Iterable[str], where: str, what: str) -> None:
    for key in content:
        if key not in known:
            raise InputError(
                f"{where}: unknown {what} {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}."
            )


def _one_of(value: Any, known: Iterable[str], where: str, what: str) -> None:
    known = list(known)
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise InputError(f"{where}: there is no {what} {value!r}.{hint} There is: {', '.join(known) or 'none'}.")


def _checked(kind: Callable[[Any], bool], what: str) -> Callable[[Mapping[str, Any], str, str], Any]:
    def get(content: Mapping[str, Any], key: str, where: str) -> Any:
        value = content.get(key)
        if value is not None and not kind(value):
            raise InputError(f"{where}: `{key}` is {value!r}; it must be {what}.")
        return value

    return get


_count = _checked(lambda value: type(value) is int and value >= 1, "an integer of 1 or more")
_text = _checked(lambda value: isinstance(value, str) and bool(value), "a name")
_number = _checked(lambda value: type(value) in (int, float) and 0 <= value and not math.isnan(value), "0 or more")


def _flag(content: Mapping[str, Any], key: str, where: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{where}: `{key}` is {value!r}; it must be true or false.")
    return value


def _shown(value: Any) -> str:
    """A value in the name of an arm."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
