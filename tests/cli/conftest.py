"""What the tests of the command line share: the command, run in this process."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def call(monkeypatch, capsys, request):
    """Run the command in this process (loading torch once, not once a test); returns (exit code, stdout, stderr).

    What a module names in `VERB` comes before the arguments; `verb` takes its place for one call.
    """
    own = getattr(request.module, "VERB", "")

    def run(*args, verb=own):
        from tuna_trl.cli import main

        monkeypatch.setattr(sys, "argv", ["tuna-trl", *verb.split(), *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run
