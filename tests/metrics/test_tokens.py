"""The plain formulas by hand, and the sessions' reduction against them."""

from __future__ import annotations

import numpy as np
import torch

from backends.transformers.session import _reduce
from tqbench.metrics import tokens


def test_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25]]))
    base = np.log(np.array([[0.25, 0.5, 0.25]]))
    assert np.allclose(tokens.nll(logits, np.array([1])), np.log(4))
    assert np.allclose(tokens.kld(base, logits), 0.25 * np.log(0.5) + 0.5 * np.log(2))
    assert tokens.rank(base, logits).tolist() == [1]
    assert tokens.kld(base, base).tolist() == [0.0]


def test_the_reduction_on_the_device_equals_the_plain_formula() -> None:
    rng = np.random.default_rng(0)
    base, logits = rng.normal(0, 3, (2, 50, 1000)).astype(np.float32)
    targets = rng.integers(0, 1000, 50)
    rows = np.arange(0, 50, 3)
    got = _reduce(torch.from_numpy(logits), torch.from_numpy(base), targets, rows)
    wide, wide_base = logits[rows].astype(np.float64), base[rows].astype(np.float64)
    assert np.allclose(got.nll, tokens.nll(wide, targets[rows]), atol=1e-5)
    assert np.allclose(got.base_nll, tokens.nll(wide_base, targets[rows]), atol=1e-5)
    assert np.allclose(got.kld, tokens.kld(wide_base, wide), atol=1e-5)
    assert np.array_equal(got.rank, tokens.rank(wide_base, wide))


def test_equal_logits_have_exactly_no_divergence() -> None:
    logits = torch.randn(20, 5000, generator=torch.Generator().manual_seed(0))
    got = _reduce(logits, logits.clone(), np.arange(20), np.arange(20))
    assert not got.kld.any()
    assert not got.rank.any()
    assert np.array_equal(got.nll, got.base_nll)
