"""A model behind chat.completions with vLLM's `prompt_logprobs`, by plain forward passes; for the real SDK."""

from __future__ import annotations

import json
from typing import Any

import torch

from doubles.loopback import Canned, Loopback


class VllmLike(Loopback):
    """`with VllmLike(model, tokenizer) as server:` serves on a free port of 127.0.0.1.

    Args:
        shift: added to the log-prob of every prompt token, as a server with other weights or a wrong place would.
    """

    root = "/v1"

    def __init__(self, model: Any, tokenizer: Any, end: str = "<|im_end|>", shift: float = 0.0) -> None:
        super().__init__()
        self.model, self.tokenizer, self.shift = model, tokenizer, shift
        self.end = tokenizer.convert_tokens_to_ids(end)
        self.requests: list[dict[str, Any]] = []

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        body = json.loads(raw)
        with self._lock:
            self.requests.append(body)
            return Canned(body=json.dumps(self.answer(body)).encode())

    @torch.no_grad()
    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=body.get("add_generation_prompt", True), tokenize=False
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        drawn, entries = self._draw(ids, body)
        places = None
        if "prompt_logprobs" in body:
            logprobs = self.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            values = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0] + self.shift
            places = [None]
            for token, value in zip(ids[1:], values.tolist(), strict=True):
                places.append({str(token): {"logprob": value, "rank": 1, "decoded_token": self._piece(token)}})
        finish = "stop" if drawn and drawn[-1] == self.end else "length"
        words = self.tokenizer.decode([token for token in drawn if token != self.end])
        choice = {"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": finish}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(drawn)}
        return {
            "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
            "choices": [{**choice, "logprobs": {"content": entries}}], "prompt_logprobs": places,
        }  # fmt: skip

    def _draw(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], list[dict[str, Any]]]:
        source = torch.Generator().manual_seed(body["seed"])
        drawn, entries = [], []
        while len(drawn) < body["max_tokens"] and self.end not in drawn:
            logprobs = self.model(torch.tensor([ids + drawn])).logits[0, -1].double().log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=source))
            drawn.append(token)
            piece = self._piece(token)
            entries.append({"token": piece, "bytes": None, "logprob": float(logprobs[token]), "top_logprobs": []})
        return drawn, entries

    def _piece(self, token: int) -> str:
        return self.tokenizer.decode([token])
