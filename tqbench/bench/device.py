"""Work for a GPU, so that what is timed is the device and not the time that Python takes to ask it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def repeated(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call, as a graph that was captured once and is replayed; on the CPU itself."""
    return call if device == "cpu" else _Captured(call)


class _Captured:
    """A call that is captured when it is first made, after three runs by itself."""

    def __init__(self, call: Callable[[], Any]):
        self.call, self.output = call, None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Any:
        self.graph = self.graph or self._capture()
        self.graph.replay()
        return self.output

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.output = self.call()
        return graph
