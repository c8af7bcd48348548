"""One run's folder, `results/<suite>/<run>/`: plan.json, environment.json, cells/<key>/record.json; locked while a run works in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqbench.core.errors import ConfigError, LockedError, TqbenchError
from tqbench.core.files import seal, write_json
from tqbench.core.record import FINAL, Cell, Record
from tqbench.measure import environment
from tqbench.report import audit
from tqbench.suite.plan import Plan


@dataclass(frozen=True)
class Folder:
    """Where a run keeps its files."""

    path: Path

    @staticmethod
    def of(plan: Plan, output: Path, *, fresh: bool) -> Folder:
        """The folder that this plan continues, or with `fresh` a new one beside it."""
        base = output / plan.suite
        name = plan.identity()
        number = 1
        while (base / _numbered(name, number + (0 if fresh else 1))).exists():
            number += 1
        return Folder(base / _numbered(name, number))

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / cell.key

    def finished(self, cell: Cell) -> Record | None:
        """The cell's record if it need not be measured again. A damaged or foreign record counts as none, and so does one without a seal:
        whatever measures into this folder seals, so it was changed, and would be sealed as measured if it were taken."""
        try:
            record = Record.read(self.cell(cell) / "record.json")
        except TqbenchError:
            return None
        return record if record.outcome in FINAL and record.cell == cell and record.seal else None

    def settle(self, plan: Plan) -> None:
        """Read the records together, and write those anew that the others contradict."""
        found = [record for cell in plan.cells if (record := self.finished(cell))]
        for before, after in zip(found, audit.settle(found), strict=True):
            if after != before:
                after.write(self.cell(after.cell))

    def describe(self, plan: Plan, command: str) -> None:
        """Write what is about to be done, sealed as records are, and where."""
        data = {
            "schema": "tqbench.plan/1",
            "suite": plan.suite,
            "run": self.path.name,
            "command": command,
            "cells": [dataclasses.asdict(cell) for cell in plan.cells],
            "gates": [dataclasses.asdict(gate) for gate in plan.gates],
            "limits": dict(plan.limits),
            "dropped": dict(plan.dropped),
            "source": plan.source,
            "lines": list(plan.lines),
            "sealed": True,
        }
        write_json(self.path / "plan.json", data | {"seal": seal(data)})
        write_json(self.path / "environment.json", {"schema": "tqbench.environment/1", **environment.describe(), "code": plan.code()})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. The system lets go of the lock when this process ends, however it ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"results cannot be written to {str(self.path)!r}: {error}") from error
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise LockedError(
                    f"another run (process {holder}) works in {self.path}; wait for it, or give another folder with -o"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"
