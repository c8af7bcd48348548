"""Statistics of timed rounds against numbers that one can see."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.metrics import timing


def test_a_rate_counts_hiccups() -> None:
    seconds = np.array([1.0] * 9 + [11.0])
    found = timing.rate(np.full(10, 8.0), seconds)
    assert found.value == 80 / 20
    assert found.low is not None
    assert found.high is not None
    assert found.low < 4 < found.high


def test_a_ratio_pairs_neighbours() -> None:
    """The machine slows down tenfold in the middle; each round still compares two neighbours."""
    pace = np.array([1.0] * 10 + [10.0] * 10)
    found = timing.ratio(pace, 2 * pace)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_few_rounds_have_no_interval() -> None:
    for found in (timing.rate(np.ones(5), np.ones(5)), timing.ratio(np.ones(5), np.ones(5)), timing.mean(np.ones(3))):
        assert (found.value, found.low, found.high) == (1.0, None, None)


def test_a_quantile_needs_samples_beyond_it() -> None:
    steps = np.linspace(1, 2, 50)
    assert timing.quantile(steps, 0.5, 1e3).value == pytest.approx(1500)
    assert timing.quantile(steps, 0.5).low is not None
    assert timing.quantile(steps, 0.99).low is None
