"""Scripts of tests in Python processes of their own, which can be killed and measured without harm to this one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any


TESTS = Path(__file__).resolve().parent

# The last line of a script that prints the most memory that it had, in MB. Not ru_maxrss: a child starts with the
# peak of the process it was forked from (a worker of the suite: 2,210 MB).
SAY_PEAK = """
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmHWM"].split()[0]) // 1024)
"""


def started(script: str, *arguments: Any, env: Mapping[str, Any] | None = None, **options: Any) -> subprocess.Popen:
    """A process that runs `script` with what the tests can import.

    Args:
        env: variables beside those of this process.
        options: of `subprocess.Popen`.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    environment |= {name: str(value) for name, value in (env or {}).items()}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **options)


def python(script: str, *arguments: Any, env: Mapping[str, Any] | None = None, seconds: float = 800) -> str:
    """What a script prints that ends well."""
    process = started(script, *arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        printed, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return printed
