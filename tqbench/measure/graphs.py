"""Work of a device that is captured once and run again as often as wanted, so that Python asks for none of its launches.

A captured call repeats its launches with the very arguments of that moment, addresses above all. So what it read must stay where it was,
and nothing may have come from the host's memory or gone there. What one recorder captures shares one pool of memory: it is run again in
the order in which it was captured, or one call would write over what another still needs.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tqbench.core.errors import Unsupported

Replay = Callable[[], None]


class Recorder(Protocol):
    """Captures calls, one after another."""

    def rehearse(self, work: Callable[[], Any], *, strictly: bool = False) -> Any:
        """Make a call where it will be captured, uncaptured: what is made once is made now. `strictly`: Unsupported if it waits."""

    def capture(self, work: Callable[[], Any]) -> Replay:
        """Capture a call, which is not run; what it returns keeps its memory as long as this recorder lives."""


def recorder(device: str) -> Recorder:
    """What captures on a device."""
    if not device.startswith("cuda"):
        raise Unsupported(f"CUDA graphs need CUDA, and the model is on {device}")
    return CudaGraphs(device)


class CudaGraphs:
    """CUDA graphs on a stream of their own. Libraries have their workspaces there after a rehearsal, and Triton its kernels loaded: neither
    can be done while a stream is captured."""

    def __init__(self, device: str):
        import torch

        self.cuda: Any = torch.cuda
        self.device = torch.device(device)
        self.stream, self.pool = self.cuda.Stream(self.device), self.cuda.graph_pool_handle()
        self.kept: list[Any] = []

    def rehearse(self, work: Callable[[], Any], *, strictly: bool = False) -> Any:
        with self._aside(), self._refusing_waits() if strictly else contextlib.nullcontext():
            return work()

    def capture(self, work: Callable[[], Any]) -> Replay:
        graph = self.cuda.CUDAGraph()
        how = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}  # other threads do as they like
        try:
            with self._aside(), _no_garbage(), self.cuda.graph(graph, **how):
                self.kept.append(work())
        except RuntimeError as error:  # no memory among them; the first cause: ending a capture that has failed is an error of its own
            raise Unsupported(f"this work cannot be captured: {_first(error)}") from error
        self.kept.append(graph)  # a pool lives as long as its graphs
        replay: Replay = graph.replay
        return replay

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of the captures, which waits for the one before and is waited for; the host waits for neither. A capture that fails
        leaves its stream behind as the current one, and this does not."""
        with self.cuda.device(self.device):
            before = self.cuda.current_stream()
            self.stream.wait_stream(before)
            try:
                with self.cuda.stream(self.stream):
                    yield
            finally:
                before.wait_stream(self.stream)

    @contextlib.contextmanager
    def _refusing_waits(self) -> Iterator[None]:
        """Where torch would make the host wait it raises instead, and says so before a capture is broken by it."""
        mode = self.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this mode is a prototype
                self.cuda.set_sync_debug_mode("error")
                yield
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            raise Unsupported(f"a step waits for the device, which no graph can hold, in {_place(error)}") from error
        finally:
            self.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """What is left of others is not collected while a capture goes on: to end a graph then may break it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _first(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]


def _place(error: BaseException) -> str:
    """The line that asked, without what is private in its path."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno} {last.line or ''}".strip()
