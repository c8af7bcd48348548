"""What keys and values look like beforehand: figures of known shapes, and rank correlations that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tqbench.core.session import Exact
from tqbench.metrics.traits import TRAITS, kurtosis, spearman, traits

RNG = np.random.default_rng(0)


def layer(k, bias=None) -> Exact:
    return Exact(0, k.astype(np.float32), k.astype(np.float32), bias)


def test_gaussian_keys_have_no_traits() -> None:
    found = traits(layer(RNG.standard_normal((2, 500, 64)), np.zeros((2, 64), np.float32)))["k"]
    assert found.keys() == TRAITS.keys()
    assert found["norm_mean"] == pytest.approx(8, rel=0.02)
    assert found["norm_spread"] == pytest.approx(1 / np.sqrt(128), rel=0.1)
    assert found["kurtosis"] == pytest.approx(3 * 64 / 66, rel=0.02)
    assert found["kurtosis_rotated"] == pytest.approx(found["kurtosis"], rel=0.02)
    assert 3 < found["channel_max"] < 6
    assert found["bias"] == 0


def test_an_outlier_channel_is_seen_and_a_rotation_hides_it() -> None:
    k = RNG.standard_normal((1, 500, 64))
    k[..., 5] += 40
    bias = np.zeros((1, 64), np.float32)
    bias[0, 5] = 40
    found = traits(layer(k, bias))
    assert found["k"]["kurtosis"] > 20
    assert found["k"]["kurtosis_rotated"] < 7
    assert found["k"]["channel_max"] > 7
    assert found["k"]["bias"] == pytest.approx(1, abs=0.05)
    assert "bias" not in found["v"]
    assert traits(layer(k))["k"]["bias"] is None


def test_vectors_of_zeros_are_no_figures_to_fear() -> None:
    assert kurtosis(np.zeros((1, 3, 8))) == 0
    assert all(x is None or np.isfinite(x) for side in traits(layer(np.zeros((1, 3, 8)))).values() for x in side.values())


def test_rank_correlation_by_hand() -> None:
    found = spearman(np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 6, 7, 8, 7]))
    assert found is not None
    assert found.value == pytest.approx(0.8207826816681233)  # SciPy's for the same pairs
    assert found.low is not None
    assert found.low < found.value < (found.high or 0)
    rising = spearman(np.arange(9.0), np.exp(np.arange(9.0)))
    assert rising is not None
    assert (rising.value, rising.low) == (1, None)
    assert spearman(np.arange(9.0), np.ones(9)) is None
    assert spearman(np.arange(3.0), np.arange(3.0)) is None


def test_its_interval_holds_as_often_as_it_says() -> None:
    """Pairs of normal numbers of known correlation: Spearman's is then (6 / π) arcsin(ρ / 2)."""
    rho, n, hits = 0.6, 30, 0
    true = 6 / np.pi * np.arcsin(rho / 2)
    for _ in range(800):
        x, z = RNG.standard_normal((2, n))
        found = spearman(x, rho * x + np.sqrt(1 - rho**2) * z)
        assert found is not None
        hits += found.ends[0] <= true <= found.ends[1]
    assert 0.93 < hits / 800 < 0.985
