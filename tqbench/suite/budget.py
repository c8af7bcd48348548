"""Less than a whole suite: the cells that fit a time and a memory, the most wanted first, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tqbench.core.errors import ConfigError
from tqbench.core.gate import matches
from tqbench.core.quantity import duration, read_duration, read_size, size
from tqbench.core.record import Cell
from tqbench.suite.plan import Plan

SHOWN = 8  # cells that an error names
ALONE = "no scheme is left to compare it with"


@dataclass(frozen=True)
class Limits:
    """What a command may take, as the user wrote it; None is no limit."""

    budget: str | None = None
    memory: str | None = None

    def given(self) -> dict[str, str]:
        """Those that were given."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def read(self) -> tuple[float | None, int | None]:
        """Seconds and bytes; ConfigError with whatever cannot be read."""
        problems: list[str] = []
        found: list[float | None] = []
        for name, text, reader in (("budget", self.budget, read_duration), ("memory", self.memory, read_size)):
            try:
                found.append(None if text is None else reader(text))
            except ValueError as error:
                problems.append(f"--{name}: {error}")
        if problems:
            raise ConfigError(problems)
        return found[0], None if found[1] is None else int(found[1])


NONE = Limits()


def trim(plans: Sequence[Plan], limits: Limits, done: Collection[str] = ()) -> list[Plan]:
    """The plans without what does not fit, also those that nothing is left of: what they leave out is told, and counts. The budget is for
    all of them together and for what is yet to be measured: cells that are `done`, by key, cost nothing. A baseline goes with the first
    scheme that needs it."""
    seconds, memory = limits.read()
    plans = [dataclasses.replace(plan, done=frozenset(done)) for plan in plans]
    if seconds is None and memory is None:
        return plans
    trimmed = []
    for plan in plans:
        trimmer = _Trimmer(plan, seconds, memory)
        dropped = trimmer.dropped()
        seconds = trimmer.left
        trimmed.append(dataclasses.replace(plan, limits=limits.given(), dropped=dropped))
    if not any(plan.chosen for plan in trimmed):
        given = " ".join(f"--{name} {value}" for name, value in limits.given().items())
        why = [f"{plan.suite}: {cell.key}: {plan.dropped[cell.key]}" for plan in trimmed for cell in plan.asked if cell.scheme]
        raise ConfigError([f"{given} leaves nothing to measure; give more, or make cells smaller with --set", *why[:SHOWN]])
    return trimmed


class _Trimmer:
    """One plan under limits."""

    def __init__(self, plan: Plan, left: float | None, memory: int | None):
        self.plan, self.left, self.memory, self.done = plan, left, memory, plan.done
        self.prices = dict(zip((cell.key for cell in plan.cells), plan.prices, strict=True))
        self.kept: set[str] = set()
        self.settings: set[str] = set()  # whose baselines run beside a scheme that is kept
        self.groups: set[tuple[str, ...]] = set()  # whose workers have been counted
        self.bases = {cell.setting: cell for cell in plan.asked if cell.scheme is None}

    def dropped(self) -> dict[str, str]:
        """Why cells are dropped, by key."""
        found: dict[str, str] = {}
        for cell in self._by_priority():
            needed = [one for one in (*self._base(cell), cell) if one.key not in self.kept]
            why = next((reason for one in needed if (reason := self._too_large(one))), None) or self._too_long(cell, needed)
            if why:
                found[cell.key] = why
            else:
                self.kept |= {one.key for one in needed}
        alone = {base.key: ALONE for base in self.bases.values() if base.key not in self.kept}
        return {cell.key: why for cell in self.plan.asked if (why := (alone | found).get(cell.key))}

    def _by_priority(self) -> list[Cell]:
        """What is wanted, as `priority` says, then in the order of the suite: the schemes, and baselines that were asked for alone."""
        compared = {cell.setting for cell in self.plan.asked if cell.scheme}
        return sorted((cell for cell in self.plan.asked if cell.scheme or cell.setting not in compared), key=self._rank)

    def _base(self, cell: Cell) -> list[Cell]:
        """The baseline that a scheme is compared with."""
        return [self.bases[cell.setting]] if cell.scheme and cell.setting in self.bases else []

    def _rank(self, cell: Cell) -> int:
        patterns = self.plan.priority
        found = (i for i, pattern in enumerate(patterns) if matches(pattern, cell.label) or matches(pattern, cell.key))
        return next(found, len(patterns))

    def _too_large(self, cell: Cell) -> str | None:
        peak = self.prices[cell.key].peak_bytes
        if self.memory is None or cell.key in self.done:
            return None
        if peak is None:
            return f"how much memory {cell.label} needs is not known before it has run: measure it once with -k"
        return f"{cell.label} needs about {size(peak)} of memory, allowed are {size(self.memory)}" if peak > self.memory else None

    def _too_long(self, cell: Cell, needed: Sequence[Cell]) -> str | None:
        """Spend the time, or say why it is not there. What cannot run takes none."""
        pending = [one for one in needed if one.key not in self.done and not self.prices[one.key].unsupported]
        if self.left is None or not pending:
            return None
        times = [self.prices[one.key].seconds for one in pending]
        if None in times:
            return "how long it takes is not known before it has run: measure it once with -k"
        brought = 0.0 if cell not in pending or cell.setting in self.settings else self.prices[cell.key].beside
        takes = sum(filter(None, times)) + brought + (0.0 if cell.group in self.groups else self.plan.startup([cell]))
        if takes > self.left:
            beside = " with its baseline" if len(pending) > 1 else ""
            return f"it takes about {duration(takes)}{beside}, {duration(self.left)} of the budget are left"
        self.groups.add(cell.group)
        self.settings |= {cell.setting} if brought else set()
        self.left -= takes
        return None
