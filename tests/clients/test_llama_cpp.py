"""A real server as the teacher: llama.cpp on the weights that transformers loads too, so that each checks the other.

What it needs is said in tests/llama_server.py.
"""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from llama_server import MARKS, binary, serving, shipped_weights

from tuna_trl.build.teacher import sum_logprob
from tuna_trl.clients import openai_compatible
from tuna_trl.clients.base import Sampling, Usage
from tuna_trl.clients.openai_compatible import OpenAICompatibleSampler
from tuna_trl.clients.openai_replies import read_chat_reply


pytestmark = MARKS

SLOTS = 4
QUESTIONS = (
    "Name three colours.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How do you boil an egg?",
    "Is 7 a prime number? Say why.",
    "Translate 'good morning' into Spanish and German.",
)
FULL = {"top_k": 0, "min_p": 0}  # llama.cpp cuts the distribution at top_k 40 and min_p 0.05 unless told otherwise


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server of the embedded model, in float32 throughout.

    Its GGUF is Q4_1. Transformers computes with those weights in float32, while llama.cpp's kernels for them also
    quantise the activations: 0.05 (temperature 0.6) to 0.12 nats a token (temperature 1) apart on this 135M model. So
    the weights are expanded first, to the same numbers, and the cache is kept in float32 as well.
    """
    folder = tmp_path_factory.mktemp("llama")
    weights = folder / "smollm2-f32.gguf"
    quantise = binary().with_name("llama-quantize")
    expand = [quantise, "--allow-requantize", shipped_weights(), weights, "F32", 1]
    subprocess.run([str(part) for part in expand], check=True, capture_output=True)
    cache = ("-ctk", "f32", "-ctv", "f32")
    try:
        with serving(weights, folder / "server.log", slots=SLOTS, context=8192, options=cache) as port:
            yield f"http://127.0.0.1:{port}/v1"
    finally:
        weights.unlink()  # half a gigabyte, and pytest keeps the folders of three runs


@pytest.fixture(scope="module")
def teacher(url):
    return OpenAICompatibleSampler("smollm2", url, extra_body=FULL, concurrency=2)


@pytest.fixture(scope="module")
def reference():
    from tuna_trl.loading import load_model, load_tokenizer

    return load_model("embedded").eval(), load_tokenizer("embedded")


def ask(question):
    return [{"role": "user", "content": question}]


@pytest.fixture
def drawn_ids(monkeypatch):
    """The token ids of each choice of the last reply, which llama.cpp sends along: a text has many tokenisations."""
    ids: list[list[int]] = []

    def read(body):
        choices = sorted(json.loads(body)["choices"], key=lambda choice: choice["index"])
        ids[:] = [[token["id"] for token in choice["logprobs"]["content"]] for choice in choices]
        return read_chat_reply(body)

    monkeypatch.setattr(openai_compatible, "read_chat_reply", read)
    return ids


def transformers_logprobs(reference, question, response):
    """Log-probs of the token ids of a response, in one teacher-forced pass in float32."""
    model, tokenizer = reference
    prompt = tokenizer.apply_chat_template(ask(question), add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


def test_the_check_knows_the_servers_slots_and_its_raw_log_probs(teacher):
    assert teacher.check(Sampling(), SLOTS) == SLOTS
    assert teacher.check(Sampling(), SLOTS + 1) == 1  # "n" is at most the number of slots
    assert teacher.check(Sampling(temperature=0.7, top_p=0.9, top_k=0), 2) == 2


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_within_a_tenth_of_a_nat_a_token_of_transformers(
    teacher, reference, drawn_ids, temperature, record_property
):
    sampling = Sampling(temperature=temperature, max_new_tokens=48)
    teacher.request(ask(QUESTIONS[0]), 1, sampling, seed=0)  # settles whether log-probs are raw
    scores, tokens, stopped = [], [], 0
    for seed, question in enumerate(QUESTIONS):
        samples = teacher.request(ask(question), SLOTS, sampling, seed=seed)
        for sample, ids in zip(samples, drawn_ids, strict=True):
            assert sum_logprob(sample) is not None and len(ids) == len(sample.token_logprobs)
            stopped += sample.finish_reason == "stop"
            assert (ids[-1] == reference[1].eos_token_id) == (sample.finish_reason == "stop")
            expected = transformers_logprobs(reference, question, ids)
            tokens += [abs(a - b) for a, b in zip(expected, sample.token_logprobs, strict=True)]
            scores.append(abs(sum(expected) - sum(sample.token_logprobs)) / len(ids))
    figures = {"responses": len(scores), "stopped": stopped, "tokens": len(tokens)}
    figures |= {"mean a token": sum(tokens) / len(tokens), "largest a token": max(tokens)}
    figures |= {"mean of scores": sum(scores) / len(scores), "largest of scores": max(scores)}
    print({name: round(value, 6) for name, value in figures.items()})
    record_property("llama.cpp against transformers, nats", figures)
    assert stopped >= 3
    assert max(tokens) < 0.1


def test_n_samples_of_one_request_are_those_of_n_seeds_in_kind(teacher):
    sampling = Sampling(max_new_tokens=24)
    together = teacher.request(ask(QUESTIONS[2]), SLOTS, sampling, seed=5)
    assert len({sample.text for sample in together}) == SLOTS
    alone = [teacher.request(ask(QUESTIONS[2]), 1, sampling, seed=seed)[0] for seed in range(3)]
    assert len({sample.text for sample in alone}) == 3
    again = teacher.request(ask(QUESTIONS[2]), 1, sampling, seed=1)[0]
    assert again.text == alone[1].text
    used = sum((sample.usage for sample in together), Usage())
    assert used.output == sum(len(sample.token_logprobs) for sample in together)
    assert used.input + used.cached > 20


def test_the_end_token_is_in_or_out_by_the_rule(teacher, url):
    without = OpenAICompatibleSampler("smollm2", url, extra_body=FULL, include_eos=False)
    question, sampling = ask("Answer with one word: what colour is the sky?"), Sampling(max_new_tokens=64)
    pairs = [
        (teacher.request(question, 1, sampling, seed=seed)[0], without.request(question, 1, sampling, seed=seed)[0])
        for seed in range(4)
    ]
    assert any(a.finish_reason == "stop" for a, _ in pairs)
    for a, b in pairs:
        assert a.text == b.text
        assert len(a.token_logprobs) - len(b.token_logprobs) == (a.finish_reason == "stop")
