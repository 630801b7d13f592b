"""A reward model as the judge: AutoModelForSequenceClassification scores each candidate by itself. Free, local.

Prompt and candidate go through the tokenizer's chat template, as in training; control tokens that a candidate writes
stay text. Touches the model only to run it: eval mode and no gradients inside, every module's mode restored after.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..data.hub_access import reach_options
from ..data.schema import Messages
from ..errors import InputError
from .base import JudgeRequest, Reply, Usage, Verdict
from .chat_ids import chat_ids
from .local import default_name, inference
from .local_judge import model_fingerprint


_DTYPES = ("auto", "float32", "bfloat16", "float16")


class RewardModelJudge:
    """Scores candidates by the raw logit of a reward model; higher is better.

    Logits have no scale of their own: they say which candidate of a row is better, and nothing across models. A
    candidate longer than `max_length` is not scored (cut, it would be scored for another text); where none of a
    request can be, it is `truncated`. NaN and infinities are `malformed`.

    Args:
        model: a Hub id, a folder, or a loaded model.
        tokenizer: of a loaded model, or in place of the one beside the weights; with a chat template.
        name: the model id that goes into rows; default: the last part of the path or the Hub id.
        batch_size: texts in one forward pass; they are sorted by length first. Not in the fingerprint.
        max_length: tokens of prompt and candidate together; default: the model's context.
        dtype: float32, bfloat16, float16 or auto, of a model that is loaded here. In bfloat16 close logits are equal.
        device: where a model that is loaded here goes; default: a GPU if there is one.
        label: which logit, by number or by its name in `id2label`, if there is more than one.

    Raises:
        InputError: the model has no trained head (a base language model would get a random one), several logits and
            no `label`, no chat template, or cannot be loaded.
    """

    method = "reward_model"
    paid = False
    concurrency = 1

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        label: int | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"RewardModelJudge: batch_size is {batch_size}, expected 1 or more.")
        if isinstance(model, str | Path):
            from ..loading import load_tokenizer

            tokenizer = tokenizer or load_tokenizer(str(model))
            model = load_reward_model(str(model), dtype=dtype, device=device)
        if tokenizer is None:
            raise InputError("RewardModelJudge: `tokenizer` is missing; pass the one of the loaded model.")
        if not tokenizer.chat_template:
            raise InputError(
                "RewardModelJudge: `tokenizer` has no chat template, so prompt and response cannot be put together as "
                "they were in training. Set `tokenizer.chat_template` to the one that the model was trained with."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or default_name(model)
        self.batch_size = batch_size
        self.max_batch = batch_size  # requests: they hold several texts each, and are cut into batches inside
        self._logit = _logit(model, label)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if max_length is not None and not 1 <= max_length <= (context or max_length):
            raise InputError(
                f"RewardModelJudge: max_length is {max_length}, expected a number of tokens from 1 to {context}, the "
                "context of the model."
            )
        self.max_length = max_length or context
        self._fingerprint: dict[str, Any] | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Name, weights, tokenizer, template, limit and logit; computed once, as a judge is not trained meanwhile."""
        if self._fingerprint is None:
            self._fingerprint = {
                "judge": "reward-model",
                "model": self.name,
                **model_fingerprint(self.model, self.tokenizer),
                "max_length": self.max_length,
                "logit": self._logit,
            }
        return dict(self._fingerprint)

    def orders(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order)]  # all at once; each is scored by itself

    def ask(self, requests: Sequence[JudgeRequest]) -> list[Reply]:
        """Score every candidate of every request.

        Returns:
            replies whose `raw` is JSON: `scores` (raw logits in shown order, null where too long; NaN as the model
            gave it) and `tokens`.

        Raises:
            InputError: the chat template does not take the conversation.
        """
        texts = [self._ids(request.prompt, text) for request in requests for text in request.candidates]
        scores = iter(self._scores(texts))
        lengths = iter(map(len, texts))
        replies = []
        for request in requests:
            n = len(request.candidates)
            own, tokens = [next(scores) for _ in range(n)], [next(lengths) for _ in range(n)]
            used = sum(length for length, score in zip(tokens, own, strict=True) if score is not None)
            raw = json.dumps({"scores": own, "tokens": tokens})
            replies.append(Reply(raw, "stop", None, self.name, Usage(input=used)))
        return replies

    def parse(self, request: JudgeRequest, reply: Reply) -> Verdict:
        n = len(request.candidates)
        try:
            content = json.loads(reply.raw)
            scores, tokens = content["scores"], content["tokens"]
            if not isinstance(scores, list) or len(scores) != n:
                raise ValueError(f"expected {n} scores")
            if not all(score is None or (isinstance(score, float) and math.isfinite(score)) for score in scores):
                raise ValueError(f"scores are {scores}, expected finite numbers")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return Verdict("malformed", (None,) * n, None, f"{type(error).__name__}: {error}")
        if all(score is None for score in scores):
            why = f"candidates of {tokens} tokens, {self.name} reads {self.max_length}"
            return Verdict("truncated", (None,) * n, None, why)
        return Verdict("ok", tuple(scores))

    def worst_case_cost(self, request: JudgeRequest) -> float:
        return 0.0

    def cost(self, usage: Usage) -> float:
        return 0.0

    def _ids(self, prompt: Messages, text: str) -> list[int]:
        messages = [{"role": message["role"], "content": message["content"]} for message in prompt]
        return chat_ids(
            self.tokenizer, [*messages, {"role": "assistant", "content": text}], add_generation_prompt=False
        )

    def _scores(self, texts: Sequence[Sequence[int]]) -> list[float | None]:
        """The logit of each text, None where it is too long; longest first, where memory would run out."""
        fits = [k for k, ids in enumerate(texts) if self.max_length is None or len(ids) <= self.max_length]
        fits.sort(key=lambda k: (-len(texts[k]), k))
        scores: list[float | None] = [None] * len(texts)
        with inference(self.model):
            for start in range(0, len(fits), self.batch_size):
                part = fits[start : start + self.batch_size]
                for k, score in zip(part, self._forward([texts[k] for k in part]), strict=True):
                    scores[k] = score
        return scores

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, rows))
        with _padding(self.model, rows) as pad:
            ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            device = self.model.device
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, self._logit].double().tolist()


def load_reward_model(
    name: str, *, dtype: str | torch.dtype = "float32", device: str | torch.device | None = None
) -> Any:
    """A sequence classifier with its trained head, by Hub id or folder.

    Raises:
        InputError: the weights hold no head, so that transformers would make a random one; an adapter; no such model.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise InputError(f"`dtype` is {dtype!r}, expected one of {', '.join(_DTYPES)}.")
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    if Path(name, "adapter_config.json").is_file():
        raise InputError(
            f"RewardModelJudge: {name!r} is an adapter. Merge it into its base model first "
            "(model.merge_and_unload().save_pretrained(...)), head included."
        )
    reach = reach_options(name, "reward model")
    try:
        config = AutoConfig.from_pretrained(name, **reach)
        kinds = config.architectures or []
        if kinds and not any("SequenceClassification" in kind or "RewardModel" in kind for kind in kinds):
            raise _no_head(name, f"it is a {kinds[0]}")
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **reach
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"RewardModelJudge: {name!r} could not be loaded: {reason}") from error
    missing = sorted({*report["missing_keys"], *(str(key) for key in report.get("mismatched_keys") or ())})
    if missing:
        raise _no_head(name, f"its weights lack {', '.join(missing[:3])}")
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _no_head(name: str, why: str) -> InputError:
    return InputError(
        f"RewardModelJudge: {name!r} has no trained head to score with ({why}); transformers would make one of random "
        "weights, and so random scores. Name a reward model (AutoModelForSequenceClassification, as TRL's "
        "RewardTrainer saves), or let this model judge in words: judge='local:...'."
    )


def _logit(model: Any, label: int | str | None) -> int:
    """Which logit is the score."""
    names = {int(key): str(value) for key, value in (model.config.id2label or {}).items()}
    count = model.config.num_labels
    if label is None and count == 1:
        return 0
    known = ", ".join(f"{key}: {value!r}" for key, value in sorted(names.items())[:10])
    if label is None:
        raise InputError(
            f"RewardModelJudge: {model.config._name_or_path or 'the model'} has {count} logits, a reward model has "
            f"one. Say which of them is the score: label=... (it has {known})."
        )
    found = [key for key, value in names.items() if label in (key, value)]
    if isinstance(label, bool) or len(found) != 1 or found[0] >= count:
        raise InputError(f"RewardModelJudge: label is {label!r}; the model has {known}.")
    return found[0]


@contextmanager
def _padding(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[int]:
    """The id to pad with.

    Decoders take the logit at the last token that is not the configuration's pad token, so that is the one to pad
    with. Where the configuration names none, they refuse batches: it is given, for the time of the call, an id that
    is in no row, so that the last token of each is found.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is not None:
        yield config.pad_token_id
        return
    used = {token for row in rows for token in row}
    config.pad_token_id = next(token for token in range(len(used) + 1) if token not in used)
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = None
