"""A store put back to an earlier moment goes on as it went on then, and one with room reserved keeps its buffers where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.snapshot import Snapshot, parts
from tqbench.cache.store import Store
from tqbench.core.presets import preset, read
from tqbench.core.session import Terms
from tqbench.testing.samples import gaussian

FORMS = "encode=reference,decode=reference,attend=torch"
MIXED: dict[str, Any] = {
    "name": "mixed",
    "k": {"codec": "affine", "bits": 4, "group_size": 32, "axis": "channel", "flush": 32},
    "v": {"codec": "affine", "bits": 4, "group_size": 32, "window": 10, "flush": 5},
    "sinks": 3,
}


def made(scheme: Any) -> Store:
    found = read(scheme) if isinstance(scheme, dict) else preset(scheme)
    return Store(found, Shape("llama", 64, "float32", 2, 4), TorchArrays(), Terms(FORMS, quiet=True))


def step(store: Store, seed: int) -> torch.Tensor:
    store.append(gaussian(1, 2, 1, 64, seed=seed), gaussian(1, 2, 1, 64, seed=1000 + seed))
    out: torch.Tensor = store.attend(gaussian(1, 4, 1, 64, seed=2000 + seed), 0.125)
    return out


@pytest.mark.parametrize("scheme", ["turbo4", "kivi4", MIXED], ids=str)
def test_put_back_twice_it_goes_on_as_before(scheme: Any) -> None:
    store = made(scheme)
    for seed in range(30):
        step(store, seed)
    store.reserve(10)
    before = Snapshot(parts([store]))
    runs, told = [], []
    for _ in range(3):
        runs.append([step(store, seed) for seed in range(30, 40)])
        told.append((store.queries, store.attention.calls, store.k.kernels.encode.calls, [e.tokens_packed for e in store.evidence()]))
        before.restore()
    assert store.tokens == store.queries == 30
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))
    assert told[0] == told[1] == told[2]
    store.verify()


@pytest.mark.parametrize("scheme", ["turbo4", "kivi4", MIXED], ids=str)
@pytest.mark.parametrize("held", [1, 4, 30])
def test_with_room_reserved_buffers_stay_where_they_are(scheme: Any, held: int) -> None:
    store, more = made(scheme), 140
    for seed in range(held):
        step(store, seed)
    store.reserve(more)
    where = [buffer.data_ptr() for side in (store.k, store.v) for buffer in side.buffers.values()]
    for seed in range(held, held + more):
        step(store, seed)
    assert [buffer.data_ptr() for side in (store.k, store.v) for buffer in side.buffers.values()] == where
    assert [side.capacity for side in (store.k, store.v)] == [side.units for side in (store.k, store.v)]
    assert all(where)
    step(store, held + more)
    store.verify()
