"""What a person sees while a run works: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from tqbench.core.record import Cell
from tqbench.measure import clock
from tqbench.suite.plan import Plan


class Progress:
    """The time left: what the plan guesses for the cells to come, corrected by how the guesses went so far."""

    def __init__(self, plan: Plan, cells: list[Cell]):
        self.weights = {cell.key: _weight(plan, cell) for cell in cells}
        self.tokens = {cell.key: max(1, plan.tokens(cell)) for cell in cells}
        self.cells, self.done = len(cells), 0
        self.spent, self.worth = 0.0, 0.0  # seconds that completed cells took, and what was guessed for them
        self.current: Cell | None = None
        self.begin, self.ran = 0.0, 0
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

    def start(self, cell: Cell) -> None:
        """A cell begins."""
        self.current, self.begin, self.ran, self.label = cell, clock.seconds(), 0, cell.label
        self._show()

    def advance(self, tokens: int) -> None:
        """Tokens of the current cell are done."""
        self.ran += tokens
        self._show()

    def finish(self, cell: Cell, outcome: str) -> None:
        """A cell ended. One that broke off says nothing about how long the others take."""
        weight = self.weights.pop(cell.key)
        if outcome == "ok":
            self.spent, self.worth = self.spent + clock.seconds() - self.begin, self.worth + weight
        self.done, self.current, self.label = self.done + 1, None, cell.label
        if self.bar:
            self._show()
        else:
            self.note(f"[{self.done}/{self.cells}] {cell.label}: {outcome} · {self.left()}")

    def left(self) -> str:
        """The time left, once there is something to go by."""
        share = min(1.0, self.ran / self.tokens[self.current.key]) if self.current else 0.0
        current = self.weights[self.current.key] * share if self.current else 0.0
        spent = self.spent + (clock.seconds() - self.begin if current else 0.0)
        if not self.weights:
            return "done"
        if not self.worth + current:
            return "time left unknown"
        seconds = spent / (self.worth + current) * (sum(self.weights.values()) - current)
        return f"about {seconds / 60:.1f} min left" if seconds >= 60 else f"about {seconds:.0f} s left"

    def _show(self) -> None:
        if self.bar:
            share = min(1.0, self.ran / self.tokens[self.current.key]) if self.current else 0.0
            self.bar.update(f"{self.done}/{self.cells} {self.label}", (self.done + share) / max(1, self.cells), self.left())


def _weight(plan: Plan, cell: Cell) -> float:
    """The guessed seconds, or tokens where the model's size is not known before it is loaded."""
    known = all(cost.seconds for cost in plan.costs)
    cost = plan.cost(cell)
    return cost.seconds if known and cost.seconds else float(cost.tokens)


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
