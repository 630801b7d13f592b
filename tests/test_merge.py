"""Merging: the merged model says what the adapted one said, needs no peft; nothing is overwritten or half-written."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tuna_trl.adapters import merge_adapter
from tuna_trl.errors import InputError


@pytest.fixture
def adapter(tiny_folder, tiny_tokenizer, tmp_path):
    """An adapter that changes the model: its weights are drawn at random."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_merged_model_is_the_adapted_one_without_peft(adapter, tiny_folder, tmp_path):
    report = merge_adapter(str(adapter), tmp_path / "merged", dtype="float32")
    assert report.answers == 8 and report.largest < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.randint(0, 200, (2, 11))
    plain = copy.deepcopy(base)(ids).logits
    adapted = PeftModel.from_pretrained(base, adapter)(ids).logits
    torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(ids).logits, plain, atol=1e-2)
    assert (tmp_path / "merged" / "tokenizer_config.json").is_file()


def test_what_is_there_is_not_overwritten(adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(InputError, match="exists already"):
        merge_adapter(str(adapter), tmp_path / "merged")


def test_a_model_without_an_adapter_is_refused(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        merge_adapter(str(tiny_folder), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_failed_save_leaves_nothing(adapter, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def full(self, folder, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(Exception, match="No space left"):
        merge_adapter(str(adapter), tmp_path / "out" / "merged", dtype="float32")
    assert list((tmp_path / "out").iterdir()) == []
