"""What libraries say on stderr that whoever runs a command can do nothing about; commands keep it off the terminal.

Nothing here is called on import or by the classes: in a program of your own, all of it stays as the libraries have it.
"""

from __future__ import annotations

import logging
import warnings


def drop_notes() -> None:
    """Before any of the libraries is imported: two notes that are there at every run.

    bitsandbytes tells at each import on a CPU that an optional kernel is missing, whether 4-bit weights are used or
    not; peft asks transformers by a name that transformers has deprecated, once for every adapter.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def leave_the_terminal() -> None:
    """For commands with stages and bars of their own: no deprecation is told, and no bar for loading 0.5 GB."""
    import datasets
    from transformers.utils import logging as transformers_logging

    drop_notes()
    warnings.simplefilter("ignore", FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
