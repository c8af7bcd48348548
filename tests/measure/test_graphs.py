"""What is asked of torch to capture a graph, in which order, and what becomes of a capture that fails. CUDA itself is played."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest

from tqbench.bench.device import repeated
from tqbench.core.errors import Unsupported
from tqbench.measure import graphs


class Stream:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")


class Graph:
    def __init__(self, told: list[str]) -> None:
        self.told = told

    def replay(self) -> None:
        self.told.append("replay")


class Cuda:
    """The part of torch.cuda that captures, telling what it was asked; a capture that fails leaves its stream as the current one."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.now, self.mode = Stream("main", self.told), 0

    def device(self, device: Any) -> Any:
        return contextlib.nullcontext()

    def current_stream(self) -> Stream:
        return self.now

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Any:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    def CUDAGraph(self) -> Graph:  # noqa: N802 - torch's name
        return Graph(self.told)

    @contextlib.contextmanager
    def graph(self, graph: Graph, pool: Any, stream: Stream, capture_error_mode: str) -> Any:
        self.told.append(f"capture in {pool} on {stream.name}, {capture_error_mode}, garbage {gc.isenabled()}")
        self.now = stream
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 - as torch leaves it

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.told.append(f"waits: {mode}")
        self.mode = mode


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> graphs.CudaGraphs:
    found = graphs.CudaGraphs.__new__(graphs.CudaGraphs)
    found.cuda, found.device, found.kept = Cuda(), "cuda:0", []
    found.stream, found.pool = Stream("side", found.cuda.told), "a pool"
    monkeypatch.setattr(graphs, "CudaGraphs", lambda device: found)
    return found


def test_calls_share_a_stream_and_a_pool(recorder: graphs.CudaGraphs) -> None:
    told, on = recorder.cuda.told, []
    assert recorder.rehearse(lambda: on.append(recorder.cuda.now.name) or "made") == "made"
    replay = recorder.capture(lambda: on.append(recorder.cuda.now.name) or "kept")
    assert on == ["side", "side"]
    assert told == [
        *("side waits for main", "main waits for side"),
        *("side waits for main", "capture in a pool on side, thread_local, garbage False", "main waits for side"),
    ]
    assert recorder.cuda.now.name == "main"
    assert gc.isenabled()
    assert recorder.kept[0] == "kept"
    replay()
    assert told[-1] == "replay"


def test_a_rehearsal_may_be_strict(recorder: graphs.CudaGraphs) -> None:
    def waiting() -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        recorder.rehearse(waiting)
    with pytest.raises(
        Unsupported, match=r"waits for the device, which no graph can hold, in measure/test_graphs.py:\d+ raise RuntimeError"
    ):
        recorder.rehearse(waiting, strictly=True)
    assert [words for words in recorder.cuda.told if "waits:" in words] == ["waits: error", "waits: 0"]
    with pytest.raises(ValueError, match="something else"):
        recorder.rehearse(lambda: (_ for _ in ()).throw(ValueError("something else")).send(None), strictly=True)
    assert recorder.cuda.mode == 0
    assert recorder.cuda.now.name == "main"


def test_a_capture_that_fails_says_why_and_leaves_things_as_they_were(recorder: graphs.CudaGraphs) -> None:
    def copying() -> None:
        raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture\nand more")

    with pytest.raises(
        Unsupported, match=r"^this work cannot be captured: Cannot copy between CPU and CUDA tensors during CUDA graph capture$"
    ):
        recorder.capture(copying)
    assert recorder.cuda.now.name == "main"
    assert gc.isenabled()


def test_nothing_is_collected_for_a_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than most of what a bench captures, and a bench makes a recorder for every call."""
    import torch

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", []))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("collects"))
    assert graphs.recorder("cuda:0").pool == "a pool"  # type: ignore[attr-defined]


def test_a_bench_captures_a_call_once(recorder: graphs.CudaGraphs) -> None:
    calls: list[int] = []
    call = repeated(lambda: calls.append(1) or len(calls), "cuda:0")
    assert call() == call() == 4
    assert recorder.cuda.told.count("replay") == 2
    assert repeated(len, "cpu") is len
