"""What a person sees while a run works: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from math import exp, log
from types import TracebackType

from tqbench.core.record import Cell
from tqbench.measure import clock
from tqbench.suite.plan import Plan

LEARNED = 0.5  # cells that what was learned counts for
QUIET = 60.0  # seconds of a cell after which a log says that it goes on


class Progress:
    """The time left: what the plan says of the cells to come, corrected by how it was right so far."""

    def __init__(self, plan: Plan, cells: list[Cell]):
        self.pace = Pace(plan, cells)
        self.tokens = {cell.key: max(1, plan.tokens(cell)) for cell in cells}
        self.cells, self.done = len(cells), 0
        self.current: Cell | None = None
        self.begin, self.said, self.ran = 0.0, 0.0, 0
        self.bar = _Bar() if _terminal() else None
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
        self.said = self.begin
        self.pace.start(cell)
        self._show()

    def advance(self, tokens: int) -> None:
        """Tokens of the current cell are done."""
        self.ran += tokens
        if self.bar or self.current is None:
            self._show()
        elif clock.seconds() - self.said >= QUIET:
            self.said = clock.seconds()
            self.note(f"[{self.done + 1}/{self.cells}] {self.current.label}: {self._share():.0%} · {self.left()}")

    def finish(self, cell: Cell, outcome: str) -> None:
        """A cell ended. One that broke off says nothing about how long the others take."""
        self.pace.finish(cell, clock.seconds() - self.begin if outcome == "ok" and self.current else None)
        self.done, self.current, self.label = self.done + 1, None, cell.label
        if self.bar:
            self._show()
        else:
            self.note(f"[{self.done}/{self.cells}] {cell.label}: {outcome} · {self.left()}")

    def left(self) -> str:
        """The time left, in words."""
        if self.done == self.cells:
            return "done"
        elapsed = clock.seconds() - self.begin if self.current else 0.0
        seconds = self.pace.left(self.current, self._share(), elapsed)
        if seconds is None:
            return "time left unknown"
        text = f"about {seconds / 60:.1f} min left" if seconds >= 60 else f"about {seconds:.0f} s left"
        return text if self.pace.sure or self.pace.seen or self._share() else f"{text} (first guess)"

    def _share(self) -> float:
        return min(1.0, self.ran / self.tokens[self.current.key]) if self.current else 0.0

    def _show(self) -> None:
        if self.bar:
            self.bar.update(f"{self.done}/{self.cells} {self.label}", (self.done + self._share()) / max(1, self.cells), self.left())


class Pace:
    """How long cells take against what the plan says. A task goes by its own cells once there are some: what is wrong about the speed of
    single tokens is not what is wrong about the speed of many."""

    def __init__(self, plan: Plan, cells: list[Cell]):
        costs = {cell.key: plan.cost(cell) for cell in cells}
        self.timed = all(cost.seconds is not None for cost in costs.values())
        self.sure = self.timed and all(cost.learned or cost.unsupported for cost in costs.values())
        self.pending = {cell.key: cell for cell in cells}
        self.weights = {key: (cost.seconds or 0.0) if self.timed else float(cost.tokens) for key, cost in costs.items()}
        self.startups = {cell.group: plan.startup([cell]) for cell in cells}
        self.seen: dict[str, list[tuple[float, float]]] = {}  # by task: seconds, and what the plan said

    def start(self, cell: Cell) -> None:
        """Its worker has loaded the model."""
        self.startups.pop(cell.group, None)

    def finish(self, cell: Cell, seconds: float | None) -> None:
        """A cell ended; None if it says nothing about the pace."""
        del self.pending[cell.key]
        if seconds is not None and self.weights[cell.key]:
            self.seen.setdefault(cell.task, []).append((seconds, self.weights[cell.key]))

    def left(self, current: Cell | None, share: float, elapsed: float) -> float | None:
        """Seconds to the end, the current cell being done to that share after so many; None before there is anything to go by."""
        now = (elapsed, self.weights[current.key] * share) if current and share and self.weights[current.key] else None
        paces = {task: self._pace(task, current, now) for task in {cell.task for cell in self.pending.values()}}
        total = sum(self.startups.values())
        for key, cell in self.pending.items():
            pace = paces[cell.task]
            if pace is None:
                return None
            total += pace * self.weights[key] * (1 - share if current and key == current.key else 1)
        return total

    def _pace(self, task: str, current: Cell | None, now: tuple[float, float] | None) -> float | None:
        running = [now] if now else []
        own = [*self.seen.get(task, []), *(running if current and current.task == task else [])]
        every = [*(pair for pairs in self.seen.values() for pair in pairs), *running]
        found = own or every
        if self.sure:  # a machine that is busy now is likelier than a single odd cell, and both happen
            return exp(sum(log(max(spent, 1e-9) / worth) for spent, worth in found) / (len(found) + LEARNED))
        if not found:
            return 1.0 if self.timed else None
        return sum(spent for spent, _ in found) / sum(worth for _, worth in found)


def _terminal() -> bool:
    """Whether someone watches: bars in the log of a build server are thousands of lines."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


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
