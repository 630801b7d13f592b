"""A loopback server that speaks OpenAI's chat.completions, well or badly, for the real SDK to talk to.

`with OpenAIServer(...) as server:` serves on a free port of 127.0.0.1. Canned responses go first
(`server.script(status(529), torn())`); when their queue is empty a small random model answers, which honours `n`,
`seed`, `temperature`, `max_tokens` and `logprobs` as its `Habits` say; asked for no log-probs it is a judge, which
fills in the JSON schema of the request. Every request is kept in `server.requests`.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doubles.loopback import Canned, Loopback


END = "<|im_end|>"
WORDS = (" red", " blue", " green", " grey", " é", " 🙂", "\n", END)
LOGITS = (2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, 0.8)


@dataclass(frozen=True)
class Habits:
    """What a server does with what it is asked.

    `end_token`: how its log-probs show it: `named` (vLLM), `empty` (llama.cpp) or `absent` (OpenAI).
    """

    end_token: str = "named"
    knows_n: bool = True
    most_n: int = 128  # above it, 400 (llama.cpp: its slots)
    copies: bool = False  # n copies of one draw
    knows_logprobs: bool = True
    processed: bool = False  # log-probs of the distribution drawn from, not of the model
    reasoning: str = ""  # a token that only the log-probs hold
    knows_bytes: bool = True  # without: half a character is U+FFFD
    shift: float = 0.0  # another model: its logits are multiplied by 1 + shift
    usage_of_one: bool = False  # llama.cpp counts the completion tokens of one choice
    scores_prompts: bool = True  # vLLM's prompt_logprobs
    wrong_prompts: bool = False  # the log-probs of the place before
    trims: bool = True  # its chat template, the blanks around a response
    thinks: bool = False  # its chat template puts empty reasoning before a given response
    rewrites: str = ""  # the same, where the response holds this word
    refuses: str = ""  # 400 for a request that holds this word
    prompt_shift: float = 0.0  # its prompt log-probs are multiplied by 1 + prompt_shift
    forgets: int = 0  # so many of the first tokens of a prompt have no score at all
    unknown: str = ""  # a word whose prompt log-prob is the placeholder of vLLM for -inf
    keeps_schema: bool = True  # else `response_format` is ignored, and a judge writes as it likes


def token(text: str, logprob: Any, **extra: Any) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": [], **extra}


def choice(tokens: Sequence[dict[str, Any]] | None, text: str | None, finish: str | None = "stop", index: int = 0):
    logprobs = None if tokens is None else {"content": list(tokens), "refusal": None}
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def completion(*choices: Mapping[str, Any], usage: Any = None, **extra: Any) -> Canned:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10} if usage is None else usage
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return Canned(body=json.dumps(body | extra).encode())


def status(code: int, text: Any = "no", kind: str = "some_error", **headers: str) -> Canned:
    body = {"error": {"message": text, "type": kind, "code": None, "param": None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Canned(code, json.dumps(body).encode(), named)


def torn() -> Canned:
    """A good reply whose connection breaks before its end."""
    return Canned(body=completion(choice([token("a", -1.0), token(END, -1.0)], "a")).body, cut=40)


def reset() -> Canned:
    return Canned(status=0)


def html(code: int = 200) -> Canned:
    return Canned(code, b"<html><body>Sign in to the Wi-Fi</body></html>", content_type="text/html")


def plain(body: bytes) -> Canned:
    """HTTP 200 with this body, said to be JSON."""
    return Canned(body=body)


def answer(body: Mapping[str, Any], habits: Habits) -> Canned:
    """What the small model says."""
    if habits.refuses and any(habits.refuses in message["content"] for message in body["messages"]):
        return status(400, "maximum context length exceeded at http://gpu7:8000/v1")
    if "logprobs" not in body:
        return _judged(body, habits)
    if body.get("n", 1) > habits.most_n:
        return status(400, f"n: Value must be between 1 <= value <= {habits.most_n}")
    n = body.get("n", 1) if habits.knows_n else 1
    choices = [_draw(body, 0 if habits.copies else k, habits) for k in range(n)]
    used = [len(each["logprobs"]["content"]) if each["logprobs"] else 5 for each in choices]
    counted = used[0] if habits.usage_of_one else sum(used)
    scored = _scored_prompt(body, habits) if habits.scores_prompts and "prompt_logprobs" in body else None
    sent = 11 if scored is None else len(scored) + habits.forgets
    usage = {"prompt_tokens": sent, "completion_tokens": counted, "prompt_tokens_details": {"cached_tokens": 4}}
    return completion(*[{**each, "index": k} for k, each in enumerate(choices)], usage=usage, prompt_logprobs=scored)


def _judged(body: Mapping[str, Any], habits: Habits) -> Canned:
    """A verdict drawn at random from the schema, with 40 of 100 prompt tokens cached and some reasoning billed."""
    form = body.get("response_format", {}).get("json_schema")
    rng = random.Random(json.dumps([body["messages"], body.get("seed", 0)]))
    text = "I like them all, but the first one best."
    if form and habits.keeps_schema:
        text = json.dumps(_filled(form["schema"], rng))
    usage = {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens": 30}
    usage["completion_tokens_details"] = {"reasoning_tokens": 10}
    return completion(choice(None, text), usage=usage)


def _filled(schema: Mapping[str, Any], rng: random.Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "object":
        return {name: _filled(inner, rng) for name, inner in schema["properties"].items()}
    if schema["type"] == "array":  # each of its words once
        return rng.sample(schema["items"]["enum"], len(schema["items"]["enum"]))
    return {"string": "words", "integer": 3, "number": 2.5, "boolean": True}[schema["type"]]


def _draw(body: Mapping[str, Any], k: int, habits: Habits) -> dict[str, Any]:
    seed = hashlib.sha256(json.dumps([body["messages"], body.get("seed", 0), k]).encode()).hexdigest()
    rng, temperature = random.Random(seed), max(body.get("temperature", 1.0), 1e-6)
    logits = [logit * (1 + habits.shift) for logit in LOGITS]
    drawn_from = _log_softmax([logit / temperature for logit in logits])
    shown = drawn_from if habits.processed else _log_softmax(logits)
    entries, text, finish = [], "", "length"
    if habits.reasoning:
        entries.append(token(habits.reasoning, -0.1))
    for _ in range(body.get("max_tokens") or body["max_completion_tokens"]):
        place = rng.choices(range(len(WORDS)), [math.exp(value) for value in drawn_from])[0]
        best = sorted(range(len(WORDS)), key=lambda w: -shown[w])[: body["top_logprobs"]]
        top = [token(WORDS[w], shown[w]) for w in best]
        if WORDS[place] == END:
            finish = "stop"
            name = {"named": END, "empty": ""}.get(habits.end_token)
            entries += [] if name is None else [token(name, shown[place], top_logprobs=top)]
            break
        text += WORDS[place]
        entries += _entries(WORDS[place], shown[place], top, habits)
    return choice(entries if habits.knows_logprobs else None, text.strip(), finish)


def _scored_prompt(body: Mapping[str, Any], habits: Habits) -> list[Any]:
    """The rendered messages as vLLM scores them: every known word as if it had been drawn, the others at -7."""
    rendered: list[str] = ["<s>"]
    for message in body["messages"]:
        text = message["content"].strip() if habits.trims else message["content"]
        thinks = habits.thinks or (habits.rewrites and habits.rewrites in text)
        thoughts = ["<think>", "</think>"] if thinks and message["role"] == "assistant" else []
        rendered += ["<|im_start|>", message["role"], "\n", *thoughts, *_words(text), END, "\n"]
    rendered += ["<|im_start|>", "assistant", "\n"] if body.get("add_generation_prompt", True) else []
    known = dict(zip(WORDS, _log_softmax([logit * (1 + habits.shift) for logit in LOGITS]), strict=True))
    tokens: list[tuple[str, float]] = []
    for k, word in enumerate(rendered):
        before = rendered[k - 1] if habits.wrong_prompts else word
        value = known.get(before, known.get(f" {before}", -7.0)) * (1 + habits.prompt_shift)
        value = -9999.0 if habits.unknown and word.strip() == habits.unknown else value
        pieces = _entries(word, value, [], habits) if word == " 🙂" else [{"token": word, "logprob": value}]
        tokens += [(piece["token"], piece["logprob"]) for piece in pieces]
    places = [{_id(piece): {"logprob": v, "rank": 1, "decoded_token": piece}} for piece, v in tokens[1:]]
    return [None, *places[habits.forgets :]]


def _id(piece: str) -> str:
    return str(int(hashlib.sha256(piece.encode()).hexdigest()[:6], 16))


def _words(text: str) -> list[str]:
    """A text in words, each with the blank before it; the first one without is the same token to the model."""
    words = re.findall(r"\n| ?[^\s]+", text)
    return [
        f" {word}" if k == 0 and f" {word}" in WORDS and " 🙂" in f" {word}" else word for k, word in enumerate(words)
    ]


def _entries(word: str, logprob: float, top: list[Any], habits: Habits) -> list[dict[str, Any]]:
    """A word as one token, but an emoji as two, each holding half of it, as byte-level tokenizers have it."""
    if word != " 🙂":
        found = token(word, logprob, top_logprobs=top)
        return [found if habits.knows_bytes else found | {"bytes": None}]
    raw = word.encode()
    halves = [raw[:3], raw[3:]]
    return [
        {
            "token": half.decode("utf-8", "replace"),
            "bytes": list(half) if habits.knows_bytes else None,
            "logprob": logprob / 2,
            "top_logprobs": top,
        }
        for half in halves
    ]


def _log_softmax(logits: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits)
    return [logit - total for logit in logits]


class OpenAIServer(Loopback):
    """The server; `requests` holds (headers, decoded body) in the order of arrival, `busiest` the most in flight."""

    root = "/v1"

    def __init__(self, habits: Habits | None = None, *, hold: threading.Event | None = None) -> None:
        super().__init__()
        self.habits = habits or Habits()
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.busiest = 0
        self.hold = hold  # requests wait for it before they are answered
        self._in_flight = 0
        self._queue: deque[Canned] = deque()

    def script(self, *responses: Canned) -> None:
        self._queue.extend(responses)

    def clear(self) -> None:
        """Forget what was scripted and not asked for."""
        self._queue.clear()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.requests]

    def __exit__(self, *exc: object) -> None:
        if self.hold is not None:
            self.hold.set()
        super().__exit__(*exc)

    def respond(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> Canned:
        body = json.loads(raw)
        with self._lock:
            self.requests.append((headers, body))
            self._in_flight += 1
            self.busiest = max(self.busiest, self._in_flight)
            canned = self._queue.popleft() if self._queue else None
        try:
            if self.hold is not None:
                self.hold.wait(30)
            canned = canned or answer(body, self.habits)
            return canned if path == "/v1/chat/completions" else status(404, path)
        finally:
            with self._lock:
                self._in_flight -= 1
