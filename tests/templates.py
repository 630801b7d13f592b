"""Chat templates of the Llama, Qwen, Gemma, Mistral and SmolLM families, each with a tiny tokenizer of its kind.

The tokenizers are made here: same special tokens, same treatment of spaces and BOS as in the family, a vocabulary of
bytes or characters. Templates are our own, written after the family's markup, and where the installed trl ships the
real one (`trl/chat_templates/*.jinja`) that one is tested as well. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast


TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@dataclass(frozen=True)
class Family:
    """A tokenizer with its template, and what the family's markup promises.

    `end`: the token that ends a turn. `bos`: the token that begins a sequence, None where there is none.
    `system`: whether a system message is taken.
    """

    tokenizer: PreTrainedTokenizerFast
    end: str
    bos: str | None = None
    system: bool = True

    @property
    def end_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.end)


# ---- Templates, in the manner of each family ----

LLAMA3 = tiny.LLAMA3

# a default system prompt; of earlier answers the thoughts are left out, and the last one always has a thought block
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set words = m['content'] %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{% if loop.index0 > last.user %}{% set words = '<think>\n' + thought + '\n</think>\n\n' + words %}{% endif %}"
    "{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + words + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# BOS from the template, the assistant is called "model", words are trimmed, no system role, strict alternation
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# no generation prompt at all: the answer follows [/INST], and the end-of-sequence token ends a turn
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' or (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must go user, assistant, user, ...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)

# the first release: the marks are plain text, and spaces stand on both sides of the end token
MISTRAL_V1 = MISTRAL.replace("'[/INST]'", "' [/INST]'").replace(
    "m['content'] + eos_token", "m['content'] + ' ' + eos_token + ' '"
)

# ChatML with a default system prompt; the tokenizer calls the beginning of each turn its BOS
SMOLLM = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are small.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---- Tokenizers ----


def llama3_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes; plain text gets a BOS; `<|eot_id|>` ends a turn."""
    tokenizer = tiny.llama3_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def qwen_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes, two newlines one token as in Qwen's vocabulary; no BOS; thought marks are added tokens, not special."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny._byte_level([("Ċ", "Ċ")]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer.chat_template = template
    return tokenizer


def smollm_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes; BOS and EOS are the marks of a turn, and nothing is put in front of plain text."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny._byte_level([("Ċ", "Ċ")]),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=1024,
    )
    tokenizer.chat_template = template
    return tokenizer


def gemma_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Characters, spaces as "▁"; plain text gets a BOS; the end of a turn is not the end of a sequence (`<eos>`)."""
    return _characters(
        normalizers.Replace(" ", "▁"),
        template,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


def mistral_tokenizer(template: str, marks: tuple[str, ...] = ("[INST]", "[/INST]")) -> PreTrainedTokenizerFast:
    """Characters, spaces as "▁" and one put in front of every piece of text, as SentencePiece does; no pad token."""
    return _characters(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        template,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(marks),
    )


def _characters(normalizer: normalizers.Normalizer, template: str, **special: str | list) -> PreTrainedTokenizerFast:
    """A BPE over characters, what it does not know as bytes; no pre-tokenizer, so that tokens merge over spaces."""
    symbols = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "\n", *map(chr, range(33, 127))]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("i", "n"), ("\n", "\n"), ("e", "▁")]
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=1024, **special)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = template
    return tokenizer


# ---- Families ----


def llama3(template: str = LLAMA3) -> Family:
    return Family(llama3_tokenizer(template), end="<|eot_id|>", bos="<|begin_of_text|>")


def qwen(template: str = QWEN) -> Family:
    return Family(qwen_tokenizer(template), end="<|im_end|>")


def gemma(template: str = GEMMA) -> Family:
    refused = "ystem role" in template  # Gemma 1 and 2 say so when they refuse it, Gemma 3 takes it
    return Family(gemma_tokenizer(template), end="<end_of_turn>", bos="<bos>", system=not refused)


def mistral(template: str = MISTRAL) -> Family:
    return Family(mistral_tokenizer(template), end="</s>", bos="<s>", system=False)


OWN: dict[str, Family] = {
    "llama 3": llama3(),
    "qwen": qwen(),
    "gemma": gemma(),
    "mistral": mistral(),
    "mistral, first release": Family(mistral_tokenizer(MISTRAL_V1, marks=()), end="</s>", bos="<s>", system=False),
    "smollm": Family(smollm_tokenizer(SMOLLM), end="<|im_end|>"),
}

# file of the installed trl -> what makes its family; a file that a later trl has renamed is left out, and a test
# counts what is left
_FILES: dict[str, Callable[[str], Family]] = {
    "llama3": llama3,
    "llama3_1": llama3,
    "llama3_2": llama3,
    "qwen2_5": qwen,
    "qwen3": qwen,
    "qwen3_instruct_2507": qwen,
    "gemma": gemma,
    "gemma3": gemma,
}
SHIPPED: dict[str, Family] = {
    f"trl/{name}": make((TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    for name, make in _FILES.items()
    if (TRL_TEMPLATES / f"{name}.jinja").is_file()
}
FAMILIES: dict[str, Family] = {**OWN, **SHIPPED}
