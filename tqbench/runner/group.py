"""Cells of one model through worker processes. A worker that dies costs the cell it was measuring; the next one measures the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tqbench.core.record import Cell, Outcome, Record
from tqbench.measure import clock, memory
from tqbench.measure.environment import threads
from tqbench.runner.folder import Folder
from tqbench.runner.progress import Progress
from tqbench.suite.plan import Plan

# Threads that wait asleep: with others on the machine, spinning ones made everything several times slower, and alone it costs nothing here.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def measure(plan: Plan, cells: list[Cell], folder: Folder, progress: Progress) -> None:
    """Measure the cells of one group; each ends with a record."""
    pending = list(cells)
    while pending:
        with _Process(plan, pending, folder) as process:
            ended = _follow(plan, process, pending, folder, progress)
        if not ended:  # the worker died while loading: every cell would meet the same end
            for cell in pending:
                _record(folder, cell, process.fate("while loading the model"), progress)
            return
        pending = [cell for cell in pending if cell.key not in ended]


def _follow(plan: Plan, process: _Process, cells: list[Cell], folder: Folder, progress: Progress) -> set[str]:
    """Follow one worker to its end; the keys of the cells that have a record now."""
    by_key = {cell.key: cell for cell in cells}
    ended: set[str] = set()
    current: Cell | None = None
    for event in process.events():
        kind = event["event"]
        if kind == "loading":
            progress.note(f"loading {event['model']}")
        elif kind == "start":
            current = by_key[event["key"]]
            process.deadline = clock.seconds() + plan.timeout
            progress.start(current)
        elif kind == "tokens":
            progress.advance(event["n"])
        elif kind == "done" and current is not None:
            progress.finish(current, event["outcome"])
            ended.add(current.key)
            current, process.deadline = None, None
    if current is not None:
        _record(folder, current, process.fate("while measuring"), progress)
        ended.add(current.key)
    return ended


def _record(folder: Folder, cell: Cell, fate: tuple[Outcome, str], progress: Progress) -> None:
    finished = folder.finished(cell)  # the worker may have died between writing its record and saying so
    if finished is None:
        Record(cell, fate[0], fate[1], started=clock.stamp()).write(folder.cell(cell))
    progress.finish(cell, finished.outcome if finished else fate[0])


@dataclass
class _Process:
    """A worker process and its event channel."""

    plan: Plan
    cells: list[Cell]
    folder: Folder
    deadline: float | None = None
    timed_out: bool = False

    def __enter__(self) -> _Process:
        self.kills = memory.out_of_memory_kills()
        self.deadline = clock.seconds() + self.plan.timeout  # loading has one too
        events, channel = os.pipe()
        self.channel = os.fdopen(events, "rb", buffering=0)
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tqbench.runner.worker", str(channel)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[channel],
            process_group=0,  # an interrupt from the terminal is the parent's to handle; the worker ends when its input does
            env={**quiet, **PATIENT, **os.environ, "OMP_NUM_THREADS": threads()},
        )
        os.close(channel)
        job = {
            "root": str(self.plan.root),
            "folder": str(self.folder.path),
            "trust_remote_code": self.plan.trust_remote_code,
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
        }
        assert self.child.stdin  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError):  # it died at birth; its end of the event channel says so
            self.child.stdin.write((json.dumps(job) + "\n").encode())
            self.child.stdin.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.channel.close()
        if self.child.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Events until the worker ends or the deadline of its cell has passed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            rest = b""
            while True:
                if not selector.select(timeout=1.0):
                    if self.deadline is not None and clock.seconds() > self.deadline:  # and nothing waits to be read
                        self.timed_out = True
                        self.child.kill()
                        break
                    continue
                data = os.read(self.channel.fileno(), 1 << 16)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                yield from (json.loads(line) for line in lines)
        try:
            self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:  # it closed its channel and does not end
            self.child.kill()
            self.child.wait()

    def fate(self, when: str) -> tuple[Outcome, str]:
        """How the worker ended."""
        if self.timed_out:
            return "timeout", f"longer than {self.plan.timeout:g} s {when}"
        code = self.child.returncode
        if code >= 0:
            return "crashed", f"the worker ended with exit code {code} {when}; see its log"
        if self.kills is not None and (memory.out_of_memory_kills() or 0) > self.kills:
            return "oom", f"the worker was killed {when}, and the system's out-of-memory killer struck"
        return "crashed", f"the worker was killed by signal {-code} ({signal.strsignal(-code)}) {when}"
