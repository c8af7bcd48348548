"""One file per task, written against Session only, so that it runs on every backend. Each has `run(job) -> Result`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tqbench.core.record import Cell
from tqbench.core.session import Session
from tqbench.corpora import Text


@dataclass(frozen=True)
class Job:
    """What a task gets: a loaded session, its cell, the text, whom to tell how many tokens are done, and where calibration text lies."""

    session: Session
    cell: Cell
    text: Text
    progress: Callable[[int], None]
    root: Path = Path()
    beside: dict[Any, Any] = field(default_factory=dict)  # baselines whose logits are kept, for all cells of a setting
    contexts: dict[Any, Any] = field(default_factory=dict)  # of `Session.context`, for all cells of a worker


@dataclass(frozen=True)
class Result:
    """What a task found: fields of a Record, and arrays to keep beside it."""

    fields: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def run(job: Job) -> Result:
    """Run the cell's task."""
    result: Result = importlib.import_module(f"{__name__}.{job.cell.task}").run(job)
    return result
