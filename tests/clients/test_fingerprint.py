"""The local sampler's fingerprint: the same for a copy, another for any change that could change a sample."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tuna_trl.clients.base import Sampler
from tuna_trl.clients.local import TransformersSampler


@pytest.fixture
def sampler(tiny_llama, tiny_tokenizer):
    return TransformersSampler(tiny_llama, tiny_tokenizer)


def test_it_is_the_same_for_a_copy_in_any_mode(tiny_llama, tiny_tokenizer):
    first = TransformersSampler(tiny_llama, tiny_tokenizer).fingerprint()
    model, tokenizer = copy.deepcopy(tiny_llama).train(), copy.deepcopy(tiny_tokenizer)
    twin = TransformersSampler(model, tokenizer, max_batch_tokens=9)
    assert twin.fingerprint() == first and isinstance(twin, Sampler)


def test_it_changes_with_the_least_bit_of_any_weight(sampler):
    seen = [sampler.fingerprint()]
    for parameter in sampler.model.parameters():
        flat = parameter.data.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        seen.append(sampler.fingerprint())
    assert len({str(fingerprint) for fingerprint in seen}) == len(seen)


def test_it_changes_when_weights_are_reordered(sampler):
    before = sampler.fingerprint()
    weight = sampler.model.lm_head.weight.data
    weight.copy_(weight.flip(0).clone())
    assert sampler.fingerprint() != before


def test_it_changes_with_an_adapters_training_template_or_precision(tiny_llama, tiny_tokenizer):
    plain = TransformersSampler(copy.deepcopy(tiny_llama), tiny_tokenizer).fingerprint()
    model = get_peft_model(tiny_llama, LoraConfig(r=2, target_modules=["q_proj"]))
    sampler = TransformersSampler(model, tiny_tokenizer)
    untrained = sampler.fingerprint()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    trained = sampler.fingerprint()
    sampler.tokenizer.chat_template += " "
    template = sampler.fingerprint()
    sampler.model = model.to(torch.bfloat16)
    keys = [str(f) for f in (plain, untrained, trained, template, sampler.fingerprint())]
    assert len(set(keys)) == 5


def test_the_name_holds_no_folder(tiny_llama, tiny_tokenizer, tmp_path):
    folder = tmp_path / "checkpoint-3"
    tiny_llama.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert TransformersSampler(model, tiny_tokenizer).name == "checkpoint-3"
    assert str(tmp_path) not in str(TransformersSampler(model, tiny_tokenizer).fingerprint())
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert TransformersSampler(tuned, tiny_tokenizer).name == "checkpoint-3+lora"
    assert TransformersSampler(model, tiny_tokenizer, name="mine").name == "mine"
