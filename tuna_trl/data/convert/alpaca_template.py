"""Alpaca's prompt template, which the released Tuna data has applied already: put on, and taken off.

The two texts are a data format: what the paper's models were trained to answer, to the letter (Stanford Alpaca,
LMOps `tuna/src/train_tuna.py`).
"""

from __future__ import annotations

import re


_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_NO_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_HEAD, _MIDDLE, _TAIL = "\n\n### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:"
_WITH = re.compile(f"{re.escape(_INPUT + _HEAD)}(.*?){re.escape(_MIDDLE)}(.*){re.escape(_TAIL)}", re.DOTALL)
_WITHOUT = re.compile(f"{re.escape(_NO_INPUT + _HEAD)}(.*){re.escape(_TAIL)}", re.DOTALL)


def put_on(instruction: str, more: str = "") -> str:
    """A prompt in Alpaca's template.

    >>> put_on("Say hi.").endswith("### Instruction:\\nSay hi.\\n\\n### Response:")
    True
    """
    if more:
        return f"{_INPUT}{_HEAD}{instruction}{_MIDDLE}{more}{_TAIL}"
    return f"{_NO_INPUT}{_HEAD}{instruction}{_TAIL}"


def take_off(text: str) -> tuple[str, str] | None:
    """Instruction and input of a prompt in Alpaca's template; None where it is in no such template.

    >>> take_off(put_on("Add one.", "41"))
    ('Add one.', '41')
    """
    if found := _WITH.fullmatch(text):
        return found[1], found[2]
    found = _WITHOUT.fullmatch(text)
    return (found[1], "") if found else None
