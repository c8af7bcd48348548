"""Timings as figures."""

from __future__ import annotations

import pytest

from tqbench.metrics.spread import ratio, spread


def test_a_handful_of_samples() -> None:
    found = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found.median, found.least) == (3.0, 1.0)
    assert found.p90 == pytest.approx(4.6)
    assert found.spread == pytest.approx(2 / 3)
    assert spread([7.0]).spread == 0


def test_ratios_are_paired() -> None:
    """A machine that is three times as slow in one round changes no ratio."""
    found = ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0])
    assert (found.median, found.low, found.high) == (2, 2, 2)


@pytest.mark.parametrize(("pairs", "cut", "confidence"), [(1, 0, 0.0), (3, 0, 0.75), (6, 0, 0.96875), (9, 1, 0.9609375), (20, 5, 0.958611)])
def test_the_interval_is_that_of_a_sign_test(pairs: int, cut: int, confidence: float) -> None:
    found = ratio([float(i) for i in range(1, pairs + 1)], [1.0] * pairs)
    assert (found.low, found.high) == (1 + cut, pairs - cut)
    assert found.confidence == pytest.approx(confidence, abs=1e-6)
