"""What earlier cells took on this machine, and what that says about cells to come.

A record teaches how far the first guess was off: the median of the ratios of the cells most like the one that is planned. Only records of
the same machine with the same threads count, and of these the same backend, device, dtype and task.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

from tqbench.core.errors import TqbenchError
from tqbench.core.record import Cell, Record
from tqbench.corpora import recipes
from tqbench.measure import environment
from tqbench.models import resolve
from tqbench.suite.cost import Cost, Size, peak_bytes, work
from tqbench.suite.deciding import Earlier, expected

RUNS = 40  # that are read, the latest
ENOUGH = 7  # cells that a prediction rests on, at most: the nearest in context, of these the latest


@dataclass(frozen=True)
class Seen:
    """A cell that was measured here."""

    cell: Cell
    seconds: float
    work: float
    started: str
    peak: float | None  # of the bytes that were guessed
    earlier: Earlier


# From alike to barely: of the first kind that has been seen, the cells count. Memory does not follow from another model's.
KINDS: tuple[Callable[[Cell, Cell], bool], ...] = (
    lambda a, b: a == b,
    lambda a, b: _core(a) == _core(b) and a.scheme == b.scheme and a.kernel == b.kernel,
    lambda a, b: _core(a) == _core(b) and (a.scheme is None) == (b.scheme is None),
    lambda a, b: _core(a)[1:] == _core(b)[1:] and (a.scheme is None) == (b.scheme is None),
)
SAME_MODEL = 3  # so many of the kinds


@dataclass(frozen=True)
class History:
    """The measured cells of this machine."""

    seen: tuple[Seen, ...] = ()

    @staticmethod
    def read(results: Path) -> History:
        """From the runs in a results folder, committed ones included. What cannot be read, or was measured elsewhere, teaches nothing."""
        here = environment.machine(environment.describe())
        plans = sorted(results.glob("*/*/plan.json"), key=lambda path: path.stat().st_mtime_ns)[-RUNS:]
        folders = [path.parent for path in plans if environment.machine(_environment(path.parent)) == here]
        return History(tuple(seen for folder in folders for seen in _seen(folder)))

    def cost(self, cell: Cell, size: Size | None, guess: Cost) -> Cost:
        """The guess, corrected by what was seen."""
        if guess.unsupported:
            return guess
        alike = self._alike(cell, KINDS)
        if not alike:
            return guess
        pace = statistics.median(one.seconds / one.work for one in alike)
        alone, first = (pace * work(cell, size, first=one) for one in (False, True))
        found = dataclasses.replace(guess, seconds=alone, beside=first - alone, peak_bytes=self._peak(cell, guess), learned=len(alike))
        return dataclasses.replace(found, expected=expected(cell, [one.earlier for one in self.seen]))

    def _peak(self, cell: Cell, guess: Cost) -> int | None:
        """By how much such cells exceeded their guesses at most."""
        peaks = [one.peak for one in self._alike(cell, KINDS[:SAME_MODEL]) if one.peak]
        return int(guess.peak_bytes * max(peaks)) if peaks and guess.peak_bytes else guess.peak_bytes

    def _alike(self, cell: Cell, kinds: tuple[Callable[[Cell, Cell], bool], ...]) -> list[Seen]:
        for kind in kinds:
            if found := [one for one in self.seen if kind(one.cell, cell)]:
                found.sort(key=lambda one: one.started, reverse=True)
                return sorted(found, key=lambda one: _distance(one.cell, cell))[:ENOUGH]
        return []


NOTHING = History()


def _core(cell: Cell) -> tuple[str, ...]:
    return (cell.model, cell.backend, cell.device, cell.dtype, cell.task)


def _distance(a: Cell, b: Cell) -> float:
    return abs(log2((1 + a.params["context"]) / (1 + b.params["context"])))


def _ran(record: Record) -> Cell:
    """The cell as far as it went: one that is scored until it is decided may have stopped early. Windows may overlap, so the text that it
    took ends where its last window does."""
    cell = record.cell
    if cell.scheme is None or "until" not in cell.params:
        return cell
    last = recipes.spans(cell.params)[record.text["windows"] - 1]
    return dataclasses.replace(cell, params={**cell.params, "tokens": last.end})


def _environment(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _seen(folder: Path) -> Iterator[Seen]:
    records = []
    for path in folder.glob("cells/*/record.json"):
        try:
            records.append(Record.read(path))
        except TqbenchError:
            continue
    settings: set[str] = set()
    for record in sorted(records, key=lambda one: one.started or ""):
        if record.outcome != "ok" or not record.seconds or not record.started:
            continue
        first = record.cell.scheme is not None and record.cell.setting not in settings
        settings |= {record.cell.setting} if first else set()
        try:
            size, ran = Size.of(resolve.config(record.cell.model)), _ran(record)
            known, guessed = work(ran, size, first=first), peak_bytes(ran, size) if size else None
        except (LookupError, TypeError, ValueError):  # the parameters of an older version
            continue
        if known > 0:
            peak = record.peak_bytes / guessed if record.peak_bytes and guessed else None
            earlier = Earlier(record.cell, record.metrics, record.text.get("scored", 0))
            yield Seen(record.cell, record.seconds, known, record.started, peak, earlier)
