"""A recipe: the commands of `tuna-trl` in a row, each on what the ones before made, finished ones skipped.

    output: runs/mine
    model: embedded
    prompts: prompts.jsonl
    defaults:
      train: {use_peft: true, lora_target_modules: all-linear}
    stages:
      - build teacher: {teacher: embedded, num_responses: 4}
      - train: {learning_rate: 1.0e-4}
      - repeat: 2
        stages:
          - build judge: {judge: reference}
          - train: {learning_rate: 2.0e-4}

A stage is a verb and its flags. Where it takes prompts, a model or a dataset, it gets the recipe's prompts, the model
that the last training left and the dataset that the last builder wrote, unless it names another: a path, a Hub id or
the name of an earlier stage. Each stage runs in a process of its own, which gives all of its memory back. This file
plans; what runs is the command line, so that every stage can be run by hand as well.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BuildError, InputError, did_you_mean
from .stages import Stages


@dataclass(frozen=True)
class Wiring:
    """How a verb is strung in. `fills`: option -> what it gets where the stage does not say (`prompts`, `model`,
    `data`, `output`, `seed`); `arguments`: the same for what stands without a flag; `makes`: what the output is for
    the stages behind it."""

    fills: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    makes: str | None = None


WIRING = {
    "build teacher": Wiring(
        {"prompts": "prompts", "teacher": "model", "output": "output", "seed": "seed"}, (), "data"
    ),
    "build judge": Wiring({"prompts": "prompts", "student": "model", "output": "output", "seed": "seed"}, (), "data"),
    "rank": Wiring({"data": "data", "teacher": "model", "output": "output"}, (), "data"),
    "import": Wiring({}, ("source", "output"), "data"),
    "validate": Wiring({}, ("data",)),
    "train": Wiring(
        {"dataset_name": "data", "model_name_or_path": "model", "output_dir": "output", "seed": "seed"}, (), "model"
    ),
    "merge": Wiring({"output": "output"}, ("model",), "model"),
    "evaluate ranking": Wiring({"model": "model", "data": "data", "output": "output"}),
    "evaluate super-ni": Wiring({"model": "model", "output": "output"}),
    "evaluate lmentry": Wiring({"model": "model", "output": "output"}),
    "evaluate vicuna-qa": Wiring({"model": "model", "output": "output"}),
    "report": Wiring({}, ("data",)),
}
_TOP = ("output", "model", "prompts", "seed", "defaults", "stages")
_PEFT = ("use_peft", "lora_", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Step:
    """One command. `options` are flags by name (without dashes), `arguments` come first."""

    name: str
    verb: str
    options: Mapping[str, Any]
    arguments: tuple[str, ...]
    output: Path
    inputs: tuple[str, ...] = ()  # local files that it reads: a changed file is another step

    def command(self) -> list[str]:
        """What stands behind `tuna-trl`; of a training its config file."""
        words = [*self.verb.split(), *self.arguments]
        if self.verb == "train":
            return [*words, "--config", str(self.config_file)]
        for key, value in self.options.items():
            flag = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag] if value else []
            elif value is not None:
                for one in value if isinstance(value, list) else [value]:
                    words += [flag, str(one)]
        return words

    @property
    def config_file(self) -> Path:
        return self.output.with_name(f"{self.name}.yaml")

    @property
    def config_text(self) -> str:
        """What the config file holds; it is written when the stage starts."""
        import yaml

        return yaml.safe_dump(dict(self.options), sort_keys=False, allow_unicode=True)

    def shown(self) -> str:
        return shlex.join(["tuna-trl", *self.command()])


@dataclass
class _State:
    """What the next stage finds."""

    sources: dict[str, Any]
    made: dict[str, str] = field(default_factory=dict)  # stage name -> its output
    adapter: bool = False  # the current model is an adapter's folder
    counts: Counter[str] = field(default_factory=Counter)


def read_recipe(path: Path) -> dict[str, Any]:
    """The YAML file, with every key that it may have.

    Raises:
        InputError: no YAML, an unknown key, a key that is missing or of the wrong kind.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold `key: value` lines ({', '.join(_TOP)}), got a {type(content).__name__}.")
    for key in content:
        if key not in _TOP:
            raise InputError(f"{path}: unknown key {key!r}.{did_you_mean(str(key), _TOP)} Known: {', '.join(_TOP)}.")
    for key in ("output", "stages"):
        if not content.get(key):
            raise InputError(f"{path}: `{key}` is missing.")
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, Mapping) or not all(isinstance(value, Mapping) for value in defaults.values()):
        raise InputError(f"{path}: `defaults` must be options by verb, like `train: {{learning_rate: 1.0e-4}}`.")
    for verb in defaults:
        _check_verb(verb, f"{path}: defaults")
    return dict(content)


def plan(recipe: Mapping[str, Any], known: Mapping[str, frozenset[str]]) -> list[Step]:
    """The commands of a recipe, in order.

    Args:
        recipe: what [`read_recipe`] returns.
        known: verb -> the options that it takes.

    Raises:
        InputError: naming the stage: an unknown verb or option (with the nearest), or something that no stage before
            it makes.
    """
    state = _State({name: recipe.get(name) for name in ("model", "prompts", "seed")})
    folder = Path(str(recipe["output"]))
    steps = []
    for verb, options in _flat(recipe["stages"], "stages"):
        merged = {**(recipe.get("defaults") or {}).get(verb, {}), **options}
        steps.append(_step(verb, merged, state, folder, known.get(verb, frozenset())))
    return steps


def run_recipe(
    steps: Sequence[Step], folder: Path, call: Callable[[Step, list[str]], int], say: Callable[[str], None]
) -> int:
    """Run what is not finished.

    Args:
        call: runs the command of a step and returns its exit code.

    Returns:
        0, or the exit code of the stage that failed; run again, what was finished is skipped.
    """
    stages = Stages(folder, say)
    for i, step in enumerate(steps):
        codes: list[int] = []

        def work(step: Step = step, codes: list[int] = codes) -> None:
            say(f"  {step.shown()}")
            words = step.command()
            if step.verb == "train":
                _write_config(step)
                words += [] if stages.went_on else ["--restart"]
            codes.append(call(step, words))
            if codes[0]:
                raise _Stopped

        settings = {
            "verb": step.verb,
            "options": dict(step.options),
            "arguments": step.arguments,
            "files": {name: _hash(Path(name)) for name in step.inputs},
        }
        try:
            stages.run(step.name, f"{i + 1}/{len(steps)} {step.name}", settings, step.output, work)
        except _Stopped:
            return codes[0]
    return 0


class _Stopped(Exception):
    """A stage's command failed; never leaves this module."""


def _flat(stages: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """(verb, options) of every stage, groups repeated."""
    if not isinstance(stages, list) or not stages:
        raise InputError(f"{where} must be a list of stages, like `- train: {{learning_rate: 1.0e-4}}`.")
    result = []
    for i, entry in enumerate(stages):
        here = f"{where}[{i}]"
        entry = {entry: None} if isinstance(entry, str) else entry  # a verb without options
        if not isinstance(entry, Mapping):
            raise InputError(f"{here} is {entry!r}, expected a verb and its options.")
        if "repeat" in entry:
            times = entry["repeat"]
            if (
                set(entry) != {"repeat", "stages"}
                or isinstance(times, bool)
                or not isinstance(times, int)
                or times < 1
            ):
                raise InputError(f"{here}: a group has `repeat: <1 or more>` and `stages: [...]`, and nothing else.")
            result += _flat(entry["stages"], f"{here}.stages") * times
            continue
        if len(entry) != 1:
            raise InputError(f"{here} has the keys {', '.join(map(str, entry))}; a stage is one verb.")
        ((verb, options),) = entry.items()
        _check_verb(verb, here)
        if options is not None and not isinstance(options, Mapping):
            raise InputError(f"{here}: the options of {verb!r} are {options!r}, expected `key: value`.")
        result.append((verb, {str(key): value for key, value in (options or {}).items()}))
    return result


def _check_verb(verb: Any, where: str) -> None:
    if verb not in WIRING:
        raise InputError(
            f"{where}: {verb!r} is no stage.{did_you_mean(str(verb), WIRING)} Stages: {', '.join(WIRING)}, repeat."
        )


def _step(verb: str, options: dict[str, Any], state: _State, folder: Path, known: frozenset[str]) -> Step:
    wiring = WIRING[verb]
    state.counts[verb] += 1
    own = options.pop("name", None)
    name = str(own or f"{verb.replace(' ', '_').replace('-', '_')}_{state.counts[verb]}")
    if name in state.made:
        raise InputError(f"Two stages are called {name!r}; a name is the name of a folder.")
    options = {key.replace("-", "_"): value for key, value in options.items()}
    # `data`, `model`, `prompts` of a stage stand for whatever flag takes them
    given: dict[str, Any] = {
        source: options.pop(source) for source in ("data", "model", "prompts", "source") if source in options
    }
    for option in options:
        if option not in known:
            words = f"Stage {name} ({verb}): there is no option {option!r}."
            raise InputError(f"{words}{did_you_mean(option, known | {'name', 'data', 'model', 'prompts'})}")
    output = folder / name
    sources = {**state.sources, **given, "output": str(output)}
    others = {"judge", "from_judgments"} & options.keys() if verb == "rank" else ()  # who ranks in a teacher's place
    for option, source in wiring.fills.items():
        if others and option in ("teacher", *(["data"] if "from_judgments" in others else [])):
            continue
        if option not in options and (value := _found(source, sources, state, name, verb)) is not None:
            options[option] = value
    options = {key: _resolved(value, state) for key, value in options.items()}
    arguments = tuple(str(_found(source, sources, state, name, verb)) for source in wiring.arguments)
    if verb == "train":
        from_adapter = state.adapter and "model" not in given
        options = {k: v for k, v in options.items() if not (from_adapter and k.startswith(_PEFT))}
        state.adapter = from_adapter or bool(options.get("use_peft"))
    elif verb == "merge":
        state.adapter = False
    state.made[name] = str(output)
    if wiring.makes:
        state.sources[wiring.makes] = str(output)
    read = (str(value) for value in [*options.values(), *arguments] if isinstance(value, str))
    files = tuple(value for value in read if Path(value).is_file())
    return Step(name, verb, options, arguments, output, files)


def _found(source: str, sources: Mapping[str, Any], state: _State, name: str, verb: str) -> Any:
    value = _resolved(sources.get(source), state)
    if value is None and source != "seed":
        ways = {
            "prompts": "set `prompts` at the top of the recipe",
            "model": "set `model` at the top of the recipe",
            "data": "put a builder before it, or say `data: <folder or Hub id>`",
            "source": "say `source: <folder, file or Hub id>`",
        }
        raise InputError(f"Stage {name} ({verb}) has no {source}: {ways[source]}.")
    return value


def _resolved(value: Any, state: _State) -> Any:
    """The name of an earlier stage stands for its output."""
    return state.made.get(value, value) if isinstance(value, str) else value


def _write_config(step: Step) -> None:
    try:
        step.output.parent.mkdir(parents=True, exist_ok=True)
        step.config_file.write_text(step.config_text, encoding="utf-8")
    except OSError as error:
        raise BuildError(f"{step.config_file} could not be written: {error}.") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
