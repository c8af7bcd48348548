"""Work for a GPU, so that what is timed is the device and not the time that Python takes to ask it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqbench.measure import graphs

WARM = 3  # runs by itself before a call is captured


def repeated(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call, as a graph that was captured once and is replayed; on the CPU itself."""
    return call if device == "cpu" else _Captured(call, device)


class _Captured:
    """A call that is captured when it is first made."""

    def __init__(self, call: Callable[[], Any], device: str):
        self.call, self.device, self.output = call, device, None
        self.replay: graphs.Replay | None = None

    def __call__(self) -> Any:
        self.replay = self.replay or self._capture()
        self.replay()
        return self.output

    def _capture(self) -> graphs.Replay:
        recorder = graphs.recorder(self.device)
        for _ in range(WARM):
            recorder.rehearse(self.call)
        return recorder.capture(self._run)

    def _run(self) -> None:
        self.output = self.call()
