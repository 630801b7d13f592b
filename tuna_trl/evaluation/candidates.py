"""The models that are evaluated: by name, loaded one after the other, each with what identifies it.

A candidate is a model folder or Hub id, an adapter on the first model, or a model behind a server.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .generation import AnyServer, check_template, tokenizer_for


@dataclass
class Candidate:
    """One model to evaluate.

    `sampler` gives answers; `model` and `tokenizer` are there for models in this process. `record` goes into the
    results: name, revision, weights' digest, template. `extra["answers"]`: answers by question id that are there
    already (Vicuna QA).
    """

    name: str
    sampler: Any
    record: dict[str, Any]
    model: Any = None
    tokenizer: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        return self.model is not None


def local_candidates(
    models: Sequence[str],
    adapters: Sequence[str] = (),
    *,
    template: str = "chat",
    dtype: str = "float32",
    max_batch_tokens: int = 32_768,
) -> Iterator[Candidate]:
    """Models of this process, one in memory at a time: each of `models`, then each adapter on the first of them.

    Raises:
        InputError: no model, a name twice, an adapter that is none, an unknown template.
    """
    check_template(template)
    if not models:
        raise InputError("`models` is empty: name at least one model.")
    for path in adapters:
        if not Path(path, "adapter_config.json").is_file():
            raise InputError(f"`adapter` {path!r} is no adapter: it has no adapter_config.json.")
    names = [*models, *(f"{models[0]} + {path}" for path in adapters)]
    if len(set(names)) != len(names):
        raise InputError(f"A model is named twice: {', '.join(names)}.")
    return _load_each(list(models), list(adapters), names, template, dtype, max_batch_tokens)


def _load_each(
    models: list[str], adapters: list[str], names: list[str], template: str, dtype: str, max_batch_tokens: int
) -> Iterator[Candidate]:
    import torch

    from ..clients.local import TransformersSampler
    from ..loading import load_model, load_tokenizer

    for place, name in enumerate(names):
        base = models[place] if place < len(models) else models[0]
        tokenizer = load_tokenizer(base)
        model = load_model(base, dtype=dtype)
        record: dict[str, Any] = {"model": base}
        if place >= len(models):
            from peft import PeftModel

            record["adapter"] = adapters[place - len(models)]
            model = PeftModel.from_pretrained(model, record["adapter"])
        if template == "chat" and not tokenizer.chat_template:
            raise InputError(
                f"{base} has no chat template. Evaluate it with --template raw (the benchmark's bare prompt) or "
                "--template alpaca."
            )
        model.eval()
        sampler = TransformersSampler(
            model, tokenizer_for(tokenizer, template), name=name, max_batch_tokens=max_batch_tokens
        )
        # a model's name is where it lay; what it is, is in the digest of its weights
        record |= {"revision": getattr(model.config, "_commit_hash", None), "fingerprint": sampler.fingerprint()}
        candidate = Candidate(name, sampler, record, model, tokenizer)
        yield candidate
        # who took the candidate may hold it until the next one is there: what is large is let go of here
        candidate.model = candidate.sampler = None
        del model, sampler
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def server_candidate(model: str, make: Callable[[], Any], *, template: str = "chat") -> Iterator[Candidate]:
    """A model behind a server, which renders its own chat template.

    Args:
        make: gives the [`tuna_trl.clients.openai_compatible.OpenAICompatibleSampler`].

    Raises:
        InputError: another template than "chat".
    """
    if template != "chat":
        raise InputError(
            f"`template` is {template!r}: a server puts every prompt into its model's own chat template. Use 'chat', "
            "or evaluate the model in this process."
        )
    sampler = AnyServer(make())
    return iter([Candidate(model, sampler, {"model": model, "fingerprint": sampler.fingerprint()})])


def stored_candidate(path: str, answers: dict[Any, str]) -> Candidate:
    """Answers that were given elsewhere, as a candidate without a model."""
    return Candidate(path, None, {"answers": path}, extra={"answers": answers})
