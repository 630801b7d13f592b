"""What asking in batches says on stderr: a bar on a terminal, elsewhere one line for every change."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..clients.base import BatchFault, BatchState


class BatchReport:
    """Context manager around one run. `change` is said where there is no bar, `note` always."""

    def __init__(self, name: str, total: int, note: str, *, show: bool) -> None:
        self._name, self._total, self._note, self._show = name, total, note, show
        self._bar: Any = None
        self._seen: dict[str, tuple[int, bool]] = {}
        self._faults: Counter[str] = Counter()

    def __enter__(self) -> BatchReport:
        if not self._show:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.note(f"{self._name} judges in batches: {self._total} to go ({self._note}).")
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(f"{self._name} judges in batches", total=self._total)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if exc[0] is None:
            self.note(f"{self._name} judges in batches: done.")

    def note(self, text: str) -> None:
        if self._show:
            self._console.print(text, markup=False)

    def change(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            self.note(text)

    def done(self, count: int) -> None:
        """Questions that have their last answer."""
        if self._bar is not None:
            self._bar.update(self._task, completed=count)

    def state(self, state: BatchState) -> None:
        """Said when it is another than at the last look."""
        if self._seen.get(state.id) == (state.done, state.ended):
            return
        self._seen[state.id] = (state.done, state.ended)
        said = "ended" if state.ended else "running"
        self.change(f"batch {state.id} is {said}: {state.done} of {state.size} requests done.")

    def fault(self, fault: BatchFault) -> None:
        """An item without a reply; counted until its batch is collected."""
        self._faults[f"{fault.reason}{'' if fault.again else ' (not asked again)'}"] += 1

    def collected(self, state: BatchState, count: int) -> None:
        faults, self._faults = self._faults, Counter()
        words = f"batch {state.id} collected: {count - faults.total()} replies"
        if faults:
            reasons = ", ".join(f"{reason[:200]}: {number}" for reason, number in faults.most_common(5))
            words += f", {faults.total()} requests without one ({reasons})"
            self.note(words + "; what can be mended by asking again is asked again.")
        else:
            self.change(words + ".")
