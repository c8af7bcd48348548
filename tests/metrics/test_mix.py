"""The cheapest mix, against all mixes that there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tqbench.metrics import mix
from tqbench.metrics.mix import Choice, cheapest, worth


def some(rng, layers: int, choices: int, unit: int = 34) -> list[list[Choice]]:
    return [
        [Choice(f"k{i}", f"v{i}", unit * int(rng.integers(1, 40)), float(rng.exponential(0.01))) for i in range(choices)]
        for _ in range(layers)
    ]


def every(layers: list[list[Choice]], limit: float) -> tuple[int, float] | None:
    """By trying all of them."""
    sums = [(sum(one.bytes for one in found), sum(one.kld for one in found)) for found in product(*layers)]
    return min((pair for pair in sums if pair[1] <= limit), default=None)


@pytest.mark.parametrize("seed", range(30))
def test_no_mix_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = some(rng, 5, 4)
    for limit in rng.exponential(0.03, 5):
        best, found = every(layers, limit), cheapest(layers, limit)
        if best is None:
            assert found is None
            continue
        assert found is not None
        assert len(found) == 5
        assert all(one in own for one, own in zip(found, layers, strict=True))
        assert sum(one.kld for one in found) <= limit
        assert sum(one.bytes for one in found) == best[0]
        assert sum(one.kld for one in found) == pytest.approx(best[1])


def test_bytes_without_a_common_step_are_counted_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "FINEST", 50)
    layers = some(np.random.default_rng(0), 5, 4, unit=37 * 1009)
    layers[0].append(Choice("k", "v", 3, 1.0))
    best, found = every(layers, 0.05), cheapest(layers, 0.05)
    assert best is not None
    assert found is not None
    assert sum(one.kld for one in found) <= 0.05
    spread = sum(max(one.bytes for one in own) - min(one.bytes for one in own) for own in layers)
    assert best[0] <= sum(one.bytes for one in found) <= best[0] + 5 * spread / 50 + 5


def test_what_is_dearer_and_worse_is_no_choice() -> None:
    cheap, beaten, good, same = Choice("a", "a", 10, 1.0), Choice("b", "b", 20, 1.0), Choice("c", "c", 20, 0.5), Choice("d", "d", 30, 0.5)
    assert worth([same, good, beaten, cheap]) == [cheap, good]
    assert cheapest([[cheap, good]] * 2, 1.5) in ([cheap, good], [good, cheap])
    assert cheapest([[cheap, good]] * 2, 0.9) is None


def test_many_layers_take_no_time() -> None:
    layers = some(np.random.default_rng(1), 80, 36)
    found = cheapest(layers, 0.2)
    assert found is not None
    assert sum(one.kld for one in found) <= 0.2
