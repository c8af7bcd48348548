"""The worker: a child process that loads one model and measures its cells. Started as `python -m tqbench.runner.worker`.

It reads one line of JSON, its job, and reports events as lines of JSON on a pipe of their own. Everything that libraries print goes to
the log of the cell. It ends when its parent does: then its standard input ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from tqbench import corpora, tasks
from tqbench.core import registry
from tqbench.core.errors import TqbenchError, Unsupported
from tqbench.core.files import write_atomic
from tqbench.core.record import Cell, Outcome, Record
from tqbench.core.session import Session
from tqbench.measure import clock, memory
from tqbench.measure.environment import versions
from tqbench.models import resolve

EXIT_AFTER_OOM = 75


def main() -> None:
    """Serve one job. The argument is the file descriptor for events."""
    events = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Worker(job, lambda **event: print(json.dumps(event), file=events)).run()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


class Worker:
    """Measures the cells of one group, one after another, and writes each record as it ends."""

    def __init__(self, job: dict[str, Any], emit: Any):
        self.emit = emit
        self.root, self.folder = Path(job["root"]), Path(job["folder"])
        self.trust_remote_code = bool(job["trust_remote_code"])
        self.cells = [Cell(**cell) for cell in job["cells"]]
        self.beside: dict[Any, Any] = {}  # the baseline's logits, for all cells of a setting
        self.contexts: dict[Any, Any] = {}  # prefilled once, for all cells

    def run(self) -> None:
        """Load, measure, write."""
        _log_to(self.folder / "worker.log")
        first = self.cells[0]
        self.emit(event="loading", model=first.model)
        session, problem = self._load(first)
        setting = ""
        for cell in self.cells:
            if cell.setting != setting:
                setting, self.beside = cell.setting, {}
            self.emit(event="start", key=cell.key)
            record = problem(cell) if problem else self._measure(session, cell)
            record.write(self.folder / "cells" / cell.key)
            self.emit(event="done", key=cell.key, outcome=record.outcome)
            if record.outcome == "oom":
                sys.exit(EXIT_AFTER_OOM)  # a fresh process measures the rest

    def _load(self, cell: Cell) -> tuple[Any, Any]:
        try:
            model = resolve.resolve(cell.model, self.root, trust_remote_code=self.trust_remote_code)
            return registry.backend(cell.backend)(model, cell.device, cell.dtype), None
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the outcome of every cell
            traceback.print_exc()
            outcome, reason = outcome_of(error)
            return None, lambda cell: Record(cell, outcome, f"while loading the model: {reason}", started=clock.stamp())

    def _measure(self, session: Session, cell: Cell) -> Record:
        folder = self.folder / "cells" / cell.key
        _log_to(folder / "log.txt")
        memory.reset_peak()
        started, begin = clock.stamp(), clock.seconds()
        common: dict[str, Any] = {"started": started, "tqbench": versions()["tqbench"]}
        try:
            text = corpora.load(cell.corpus, self.root)
            told = lambda n: self.emit(event="tokens", n=n)  # noqa: E731 - one line of a message
            result = tasks.run(tasks.Job(session, cell, text, told, self.root, self.beside, self.contexts))
            fields = {**common, "peak_bytes": memory.peak(), **result.fields}
            record = Record(cell, "ok", None, clock.seconds() - begin, **fields).audited()
            wrong = [
                name for name, e in record.metrics.items() if not math.isfinite(sum(v for v in (e.value, e.low, e.high) if v is not None))
            ]
            if wrong:
                return Record(cell, "failed", f"{', '.join(wrong)} is not finite", record.seconds, **common)
            if record.outcome == "ok":
                arrays = {name: _write_array(folder / f"{name}.npy", array) for name, array in result.arrays.items()}
                record = dataclasses.replace(record, arrays=arrays)
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the outcome of this cell
            traceback.print_exc()
            outcome, reason = outcome_of(error)
            return Record(cell, outcome, reason, clock.seconds() - begin, **common)
        return record


def outcome_of(error: Exception) -> tuple[Outcome, str]:
    """The typed outcome of an exception."""
    text = f"{type(error).__name__}: {error}".encode(errors="replace").decode()
    if isinstance(error, Unsupported):
        return "unsupported", text.partition(": ")[2]
    if isinstance(error, TqbenchError):
        return "failed", text.partition(": ")[2]
    if memory.ran_out(error):
        return "oom", text.splitlines()[0][:500]
    return "failed", text[:2000]


def _log_to(path: Path) -> None:
    """Send standard output and error, also of compiled code, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _write_array(path: Path, array: Any) -> str:
    """Write an array; the hash of its file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


if __name__ == "__main__":
    main()
