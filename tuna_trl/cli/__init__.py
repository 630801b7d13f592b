"""The command line: one file a verb. Importing this loads typer and nothing heavier; `--help` answers at once.

Exit codes: 0 done; 2 your input is wrong (one message that names what, where and the way out); 1 it is not your fault
(a full disk, a server that stays down, a bug); 130 interrupted, with everything received kept.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import BuildError, InputError, TrainingMemoryError
from ..library_notes import drop_notes
from . import (
    ablate,
    build,
    convert,
    demo,
    env,
    estimate,
    evaluate,
    generate,
    import_,
    init,
    merge,
    preview,
    push,
    rank,
    report,
    run,
    train,
    validate,
)


# what an interrupted command keeps, by the verb's first word; the others write whole or not at all
_KEPT = {
    "build": "What was received is journalled; run the same command again to go on.",
    "rank": "What was received is journalled; run the same command again to go on.",
    "generate": "With --output, what was answered is kept; run the same command again to go on.",
    "evaluate": "What was answered is kept; run the same command again to go on.",
    "train": "Checkpoints in output_dir are kept (one every save_steps); the same command goes on from the last one.",
    "run": "Finished stages are kept, and what the one at work had received; run the same command again to go on.",
    "demo": "Finished stages are kept; run the same command again to go on.",
    "ablate": "Finished runs and checkpoints are kept; run the same command again to go on.",
}


class _Interrupted(Exception):
    """Ctrl-C on its way past typer, which would end the process without a word."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


def _hyphens(name: str) -> str:
    """`--max_cost` is `--max-cost`, as TRL's flags may be written in either way."""
    return name.replace("_", "-")


app = typer.Typer(
    name="tuna-trl",
    cls=_Commands,
    context_settings={"token_normalize_func": _hyphens},
    help="Rank several answers, train a model on the ranking (Tuna, arXiv 2310.13385).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(init.init)
app.add_typer(build.app, name="build")
app.add_typer(evaluate.app, name="evaluate")
app.command("rank")(rank.rank)
app.command("import")(import_.import_)
app.command("convert")(convert.convert)
app.command("validate")(validate.validate)
app.command("train", context_settings=train.CONTEXT)(train.train)
app.command("estimate", context_settings=train.CONTEXT)(estimate.estimate)
app.command("generate")(generate.generate)
app.command("merge")(merge.merge)
app.command("run")(run.run)
app.command("ablate")(ablate.ablate)
app.command("preview")(preview.preview)
app.command("report")(report.report)
app.command("push")(push.push)
app.command("demo")(demo.demo)
app.command("env")(env.env)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    # Read by OpenMP when torch loads. At load 5 on 2 cores, threads that spin while they wait made 77 products a
    # second, threads that sleep 380, one thread 390.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    drop_notes()
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(str(error), 2)
    except (_Interrupted, KeyboardInterrupt):
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        _fail(f"Interrupted. {_KEPT.get(verb, 'Nothing was half written; run the same command again.')}", 130)
    except (BuildError, TrainingMemoryError) as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error}. Finished work is kept; run the same command again to go on.", 1)
    except MemoryError:
        _fail("Out of memory. Use a smaller batch, shorter responses or a smaller model; finished work is kept.", 1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}\nThis is a bug; TUNA_TRL_DEBUG=1 shows where.", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    if os.environ.get("TUNA_TRL_DEBUG"):
        raise  # noqa: PLE0704 - called from an except block only
    sys.stderr.write(f"tuna-trl: {message}\n")
    sys.exit(code)
