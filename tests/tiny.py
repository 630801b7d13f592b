"""Tiny tokenizers and models, made here: nothing is downloaded and no file is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# ChatML whose assistant's words stand between generation marks, for `assistant_only_loss`
CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama 3's: the template writes the BOS itself, trims the words, and nothing follows the end-of-turn token
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def chatml_tokenizer(*, more_merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """Bytes as tokens plus a few merges, so that a boundary can merge; special tokens as in the Qwen/SmolLM family."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(more_merges),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that adds a BOS to plain text, with a template that writes one too; no pad token."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        model_max_length=1024,
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = LLAMA3
    return tokenizer


def _byte_level(more_merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("i", "n"), ("e", "r"), ("Ġ", "the"), *more_merges]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
    tie_word_embeddings=False,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)


def random_llama(vocab_size: int, *, seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A random Llama whose weights are large enough (std 0.2) for responses to differ by whole nats."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": vocab_size, **overrides})).eval()


# What each family does behind its head, or otherwise than Llama
FAMILIES = {
    "phi": {},  # a bias in the head, LayerNorm: the only one here whose every step runs in float64 when asked to
    "gemma2": dict(head_dim=8, sliding_window=4, final_logit_softcapping=5.0, query_pre_attn_scalar=8),
    "cohere": dict(logit_scale=0.25),
    "granite": dict(logits_scaling=4.0),
    "qwen3": dict(head_dim=8),
    "gemma3_text": dict(
        head_dim=8,
        sliding_window=4,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral": dict(head_dim=8, sliding_window=4),
    "gpt_oss": dict(head_dim=8, sliding_window=4, num_local_experts=4, num_experts_per_tok=2),
}


def random_model(family: str, vocab_size: int, *, seed: int = 0, **overrides) -> PreTrainedModel:
    """As [`random_llama`], of another family; "phi-tied" shares the weights of the head with the embedding."""
    name, _, tied = family.partition("-")
    config = {**SIZES, **FAMILIES[name], "vocab_size": vocab_size, "tie_word_embeddings": bool(tied), **overrides}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **config)).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


class SquashedLlama(LlamaForCausalLM):
    """Does something behind its head that no config says: the chunked head cannot know it."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 3.0 * torch.sin(output.logits)
        return output
