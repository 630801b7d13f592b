"""Fixtures of all tests: tiny models and tokenizers built here, offline, once a session and copied per test."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# threads that spin while they wait are five times slower than one on a busy machine; read when torch loads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))
# a shell that starts the tests in the background has SIGINT ignored, here and in every child
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402


# the first example pays for imports, and machines are shared: a deadline would only make tests flaky
settings.register_profile("tuna", deadline=None)
settings.load_profile("tuna")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _tokenizer():
    from tiny import chatml_tokenizer

    return chatml_tokenizer()


@pytest.fixture
def tiny_tokenizer(_tokenizer):
    """A byte-level tokenizer with a ChatML template; `<|im_end|>` ends a turn, `<|pad|>` pads."""
    return copy.deepcopy(_tokenizer)


@pytest.fixture(scope="session")
def _llama(_tokenizer):
    from tiny import random_llama

    return random_llama(len(_tokenizer))


@pytest.fixture
def tiny_llama(_llama):
    """A random two-layer Llama (GQA, 32 wide, float32) over the tiny tokenizer's vocabulary."""
    return copy.deepcopy(_llama)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout; tests that measure on it say why they skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data (../shared/data beside the checkout) is absent")
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, _tokenizer, _llama) -> Path:
    """A folder with a tiny model and its tokenizer, to be loaded by name."""
    folder = tmp_path_factory.mktemp("tiny-model")
    copy.deepcopy(_llama).save_pretrained(folder)
    _tokenizer.save_pretrained(folder)
    return folder
