"""From the arguments of a training run to its memory, on each card and with each flag changed."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.hub_access import reach_options
from ..errors import InputError
from .activations import Execution
from .memory import StepMemory, step_memory
from .shape import Shape, shape_of
from .workload import Tokens, Workload


@dataclass(frozen=True)
class Plan:
    """A training run as far as its memory goes; changed by `dataclasses.replace`.

    `config`: the model's, of transformers. `peft_config`: None trains all weights. `bits`: 4, 8 or None.
    """

    config: Any
    workload: Workload
    execution: Execution
    peft_config: Any = None
    dtype: str = "float32"
    bits: int | None = None
    double: bool = False
    optim: str = "adamw_torch_fused"
    batch_size: int = 8
    accumulation: int = 1
    layout: str = "shared_prompt"
    max_length: int | None = 1024
    max_responses: int | None = None
    _shapes: dict[tuple[Any, ...], Shape] = field(default_factory=dict, repr=False, compare=False)

    def shape(self) -> Shape:
        """Of the model; made once for all plans that are derived from one and share it."""
        key = (repr(self.peft_config), self.dtype, self.bits, self.double)
        if key not in self._shapes:
            self._shapes[key] = shape_of(
                self.config, dtype=self.dtype, peft_config=self.peft_config, bits=self.bits, double=self.double
            )
        return self._shapes[key]

    def tokens(self) -> Tokens:
        return self.workload.heaviest(self.batch_size, self.layout, self.max_responses)

    def memory(self) -> StepMemory:
        return step_memory(
            self.shape(), self.tokens(), self.execution, optim=self.optim, accumulation=self.accumulation
        )

    def longest(self, card: float) -> int | None:
        """The largest `max_length` at which a batch whose every row is as long fits on a card of so many bytes, in
        steps of 16 tokens up to the model's positions; None where not even 16 do."""
        most = (self.shape().positions or 131_072) // 16
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            at = dataclasses.replace(self, workload=self.workload.at_length(16 * middle))
            if at.memory().fits(card):
                low = middle
            else:
                high = middle - 1
        return 16 * low or None


def execution_of(training: Any, device: str, *, bf16: bool) -> Execution:
    """How a `TunaConfig` runs on "cuda" or "cpu"; `bf16` as it is there."""
    autocast = 2 if bf16 or training.fp16 else None
    if training.activation_offloading:
        raise InputError("`activation_offloading` moves activations to the host; its memory is not estimated.")
    return Execution(autocast=autocast, checkpointing=bool(training.activation_checkpointing), device=device)


def plan_of(training: Any, model_config: Any, workload: Workload, *, device: str, bf16: bool) -> Plan:
    """The plan of what `tuna-trl train` would run.

    Args:
        training, model_config: `TunaConfig` and `trl.ModelConfig`, as parsed.
        device: "cuda" or "cpu", what it is estimated for. bf16: whether it runs in mixed precision there.

    Raises:
        InputError: the model's config cannot be read, or something is asked for whose memory is not known.
    """
    from trl import get_peft_config, get_quantization_config

    config, adapter = model_config_of(model_config)
    kwargs = training.model_init_kwargs or {}
    quantisation = kwargs.get("quantization_config") or get_quantization_config(model_config)
    stored = getattr(config, "quantization_config", None)
    bits, double = _bits(quantisation if quantisation is not None else stored)
    peft_config = get_peft_config(model_config) if adapter is None else adapter
    if bits is not None and peft_config is None:
        raise InputError("The model is quantised, and quantised weights do not train: set `use_peft: true`.")
    return Plan(
        config=config,
        workload=workload,
        execution=execution_of(training, device, bf16=bf16),
        peft_config=peft_config,
        dtype=kwargs.get("dtype") or model_config.dtype or "float32",
        bits=bits,
        double=double,
        optim=str(getattr(training.optim, "value", training.optim)),
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        layout=_layout(training, config),
        max_length=training.max_length,
        max_responses=training.max_responses,
    )


def model_config_of(model_config: Any) -> tuple[Any, Any]:
    """(the model's config, the adapter's where the name is an adapter's folder); no weights are read."""
    from transformers import AutoConfig

    name = model_config.model_name_or_path
    if not name:
        raise InputError("`model_name_or_path` is missing: name a Hub id, a folder, or 'embedded'.")
    path, extra = where(name)
    if Path(path, "adapter_config.json").is_file():
        from peft import PeftConfig

        adapter = PeftConfig.from_pretrained(path)
        base = copy.copy(model_config)
        base.model_name_or_path = adapter.base_model_name_or_path
        adapter.inference_mode = False
        return model_config_of(base)[0], adapter
    try:
        reach = reach_options(path, "model_name_or_path", model_config.model_revision)
        return AutoConfig.from_pretrained(path, revision=model_config.model_revision, **extra, **reach), None
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The config of `model_name_or_path` {name!r} could not be read: {reason} Give a Hub id, a folder with "
            "config.json, or 'embedded'."
        ) from error


def where(name: str) -> tuple[str, dict[str, str]]:
    """(folder or id, more arguments) for a config or tokenizer by name; the embedded model is not converted for it."""
    from .. import loading

    if name != loading.EMBEDDED:
        return name, {}
    converted = loading.cache_folder() / loading.EMBEDDED_NAME
    if (converted / "config.json").is_file():
        return str(converted), {}
    try:
        source = Path(str(metadata.distribution(loading._WHEEL).locate_file(loading._GGUF)))
    except metadata.PackageNotFoundError:
        return str(loading.embedded_model_path()), {}  # says what to install
    return str(source.parent), {"gguf_file": source.name}


def _bits(quantisation: Any) -> tuple[int | None, bool]:
    """(bits, whether scales are quantised) of a `BitsAndBytesConfig`, an object or the dict of a stored config."""
    if quantisation is None:
        return None, False
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    if values.get("load_in_4bit"):
        return 4, bool(values.get("bnb_4bit_use_double_quant"))
    if values.get("load_in_8bit"):
        return 8, False
    raise InputError(
        f"The model is stored quantised ({values.get('quant_method', 'unknown')}), and only bitsandbytes' 4 and 8 bit "
        "are known here."
    )


def _layout(training: Any, config: Any) -> str:
    """The layout a run would find, as far as the config says it; the model itself is asked at training only."""
    from ..layouts import argument_against

    if training.batch_layout == "rows" or argument_against(training) is not None:
        return "rows"
    text = config.get_text_config()
    other = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return "rows" if other or config.is_encoder_decoder else "shared_prompt"
