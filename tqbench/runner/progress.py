"""What a person sees while a run works: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from tqbench.measure import clock


class Progress:
    """Counts tokens over all cells of a run; the time left follows from the rate so far."""

    def __init__(self, cells: int, tokens: int):
        self.cells, self.tokens = cells, max(tokens, 1)
        self.done_cells, self.done_tokens, self.cell_tokens = 0, 0, 0
        self.begin: float | None = None
        self.bar = _Bar() if sys.stderr.isatty() else None
        self.label = ""

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        if self.bar:
            self.label = text
            self._show()
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the progress log

    def start(self, label: str) -> None:
        """A cell begins."""
        self.begin = self.begin or clock.seconds()
        self.label, self.cell_tokens = label, 0
        self._show()

    def advance(self, tokens: int) -> None:
        """Tokens of the current cell are done."""
        self.cell_tokens += tokens
        self._show()

    def finish(self, outcome: str, planned: int) -> None:
        """A cell ended; it counts as planned, whatever it ran."""
        self.done_cells += 1
        self.done_tokens, self.cell_tokens = self.done_tokens + planned, 0
        if self.bar:
            self._show()
        else:
            self.note(f"[{self.done_cells}/{self.cells}] {self.label}: {outcome} · {self.left()}")

    def left(self) -> str:
        """The time left, once there is a rate."""
        done = self.done_tokens + self.cell_tokens
        if not done or self.begin is None:
            return "time left unknown"
        seconds = (clock.seconds() - self.begin) / done * max(0, self.tokens - done)
        return f"about {seconds / 60:.1f} min left" if seconds >= 60 else f"about {seconds:.0f} s left"

    def _show(self) -> None:
        if self.bar:
            share = min(1.0, (self.done_tokens + self.cell_tokens) / self.tokens)
            self.bar.update(f"{self.done_cells}/{self.cells} {self.label}", share, self.left())


class _Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[left]}", markup=False),
        )
        self.progress = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("", total=1.0, left="")

    def start(self) -> None:
        self.progress.start()

    def stop(self) -> None:
        self.progress.stop()

    def update(self, label: str, share: float, left: str) -> None:
        self.progress.update(self.task, description=label, completed=share, left=left)
