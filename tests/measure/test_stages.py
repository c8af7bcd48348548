"""Stages nest, are charged once, and cost nothing unless something is timing."""

from __future__ import annotations

import pytest

from tqbench.measure import clock, stages


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; tests move its hand."""
    hand = [0.0]
    monkeypatch.setattr(clock, "seconds", lambda: hand[0])
    return hand


def test_each_stage_is_charged_with_what_happens_in_itself(tick: list[float]) -> None:
    with stages.timed() as found:
        tick[0] += 1  # between stages
        with stages.stage("model"):
            tick[0] += 2
            with stages.stage("attend"):
                tick[0] += 3
                with stages.stage("decode"):
                    tick[0] += 4
                tick[0] += 5
            tick[0] += 6
        with stages.stage("attend"):
            tick[0] += 7
    assert found.seconds == {"model": 8, "attend": 15, "decode": 4}


def test_a_stage_that_fails_is_closed(tick: list[float]) -> None:
    with stages.timed() as found:
        with pytest.raises(ValueError, match="within"):
            _fail(tick)
        tick[0] += 1
        with stages.stage("choose"):
            tick[0] += 1
    assert found.seconds == {"model": 1, "choose": 1}


def _fail(tick: list[float]) -> None:
    with stages.stage("model"):
        tick[0] += 1
        raise ValueError("within")


def test_the_device_is_waited_for_at_both_ends(tick: list[float]) -> None:
    """What was asked of it before belongs to what asked."""

    def wait() -> None:
        tick[0] += 10

    with stages.timed(clock.HostMarks(wait)) as found, stages.stage("model"), stages.stage("attend"):
        tick[0] += 1
    assert found.seconds == {"model": 20, "attend": 11}


class Queue:
    """A device that works through what it is asked in order, `seconds` behind the host; its events are read from its own clock."""

    def __init__(self) -> None:
        self.seconds, self.waits = 0.0, 0

    def event(self, *, enable_timing: bool) -> Queue._Event:
        assert enable_timing
        return self._Event(self)

    class _Event:
        def __init__(self, queue: Queue):
            self.queue, self.at = queue, -1.0

        def record(self, stream: object) -> None:
            assert stream == "the stream of cuda:1"
            self.at = self.queue.seconds

        def synchronize(self) -> None:
            self.queue.waits += 1

        def elapsed_time(self, end: Queue._Event) -> float:
            assert self.queue.waits, "an event is read before it has happened"
            return 1e3 * (end.at - self.at)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    import torch

    found = Queue()
    monkeypatch.setattr(torch.cuda, "Event", found.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    return found


def test_on_cuda_stages_are_timed_by_events_of_the_device_and_waited_for_once(tick: list[float], queue: Queue) -> None:
    """The host runs ahead: its clock tells nothing of what the device does, and marks do not hold it up."""
    with stages.timed(clock.marks("cuda:1")) as found:
        queue.seconds += 1  # between stages
        with stages.stage("model"):
            queue.seconds += 2
            with stages.stage("attend"):
                queue.seconds += 3
            tick[0] += 100
            queue.seconds += 4
        assert queue.waits == 0
    assert found.seconds == {"model": pytest.approx(6), "attend": pytest.approx(3)}
    assert queue.waits == 1


def test_what_is_not_cuda_is_timed_on_the_hosts_clock() -> None:
    assert isinstance(clock.marks("cpu"), clock.HostMarks)
    assert isinstance(clock.marks("cuda"), clock.DeviceMarks)


def test_without_timing_a_mark_is_one_and_the_same_nothing(tick: list[float]) -> None:
    assert stages.stage("model") is stages.stage("attend")
    assert not stages.timing()
    with stages.timed():
        assert stages.timing()
        assert stages.stage("model") is not stages.stage("model")
    assert not stages.timing()


def test_only_devices_that_run_on_are_waited_for() -> None:
    assert clock.waiter("cpu") is None
    assert clock.waiter("gpu") is None  # MLX: a session's forward call evaluates
    assert clock.waiter("cuda:0") is not None


def test_the_device_that_computes_is_the_one_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    wait = clock.waiter("cuda:1")
    assert wait is not None
    wait()
    assert waited == ["cuda:1"]


def test_rounds_alternate_and_their_order_does(tick: list[float]) -> None:
    ran: list[str] = []

    def lane(name: str, seconds: float) -> None:
        ran.append(name)
        tick[0] += seconds

    fns = {"own": lambda: lane("own", 1.0), "cell": lambda: lane("cell", 2.0)}
    assert clock.interleaved(fns, 3, 0) == {"own": [1.0] * 3, "cell": [2.0] * 3}
    assert ran == ["own", "cell", "cell", "own", "own", "cell"]
