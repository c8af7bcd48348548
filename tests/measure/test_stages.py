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

    with stages.timed(wait) as found, stages.stage("model"), stages.stage("attend"):
        tick[0] += 1
    assert found.seconds == {"model": 20, "attend": 11}


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


def test_rounds_alternate_and_their_order_does(tick: list[float]) -> None:
    ran: list[str] = []

    def lane(name: str, seconds: float) -> None:
        ran.append(name)
        tick[0] += seconds

    fns = {"own": lambda: lane("own", 1.0), "cell": lambda: lane("cell", 2.0)}
    assert clock.interleaved(fns, 3, 0) == {"own": [1.0] * 3, "cell": [2.0] * 3}
    assert ran == ["own", "cell", "cell", "own", "own", "cell"]
