"""What a long step of a build says on stderr: a bar on a terminal, elsewhere one line at start and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(
    title: str,
    total: int | None,
    note: str = "",
    *,
    unit: str = "",
    closing: Callable[[], str] = str,
    show: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`.

    Args:
        title: what is being done.
        total: how much of it there is to do; None where that is not known before.
        note: said once at the start ("12 of 40 buckets were already in the journal").
        unit: what is counted ("prompts").
        closing: called at the end; what it returns is said there.
        show: False says nothing at all.
    """
    if not show:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    start = f"{title}: {'all' if total is None else total}{unit and ' ' + unit} to go" + (
        f" ({note})." if note else "."
    )
    if not console.is_terminal:
        console.print(start, markup=False)
        yield lambda count: None
        console.print(_end(title, closing()), markup=False)
        return
    if note:
        console.print(start, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, advance=count)
    if said := closing():
        console.print(_end(title, said), markup=False)


def _end(title: str, said: str) -> str:
    return f"{title}: done" + (f" ({said})." if said else ".")
