"""A store that takes a context over holds what it would hold had it decoded it, and claims no attention for it; in quiet it only notes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.side import SAMPLED_TOKENS
from tqbench.cache.store import Store
from tqbench.core.errors import Unsupported
from tqbench.core.evidence import audit, coverage, kept
from tqbench.core.presets import preset, read
from tqbench.core.session import Terms

HEAD_DIM, TOKENS, CONTEXT = 64, 90, 70
K, V, Q = (torch.randn(1, heads, TOKENS, HEAD_DIM, generator=torch.Generator().manual_seed(heads)) for heads in (2, 2, 4))
PROBE = {"name": "probe", "k": {"codec": "affine", "bits": 4, "axis": "channel", "window": 5}, "v": {"codec": "block"}, "sinks": 3}
SCHEMES = [preset("turbo4"), preset("q8_0"), read(PROBE), read(PROBE | {"name": "long", "v": {"codec": "block", "window": 200}})]


def store(scheme, quiet=False, reach=None) -> Store:
    return Store(scheme, Shape("llama", HEAD_DIM, "float32", 2, 4), TorchArrays(), Terms(quiet=quiet), Layer(reach=reach))


def step(one: Store, t: int) -> torch.Tensor:
    one.append(K[:, :, t : t + 1], V[:, :, t : t + 1])
    return one.attend(Q[:, :, t : t + 1], 0.125)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_what_is_held_is_what_decoding_would_have_left(scheme) -> None:
    taken, decoded = store(scheme), store(scheme)
    taken.take(K[:, :, :CONTEXT], V[:, :, :CONTEXT])
    for t in range(CONTEXT):
        step(decoded, t)
    for side in ("k", "v"):
        one, two = getattr(taken, side), getattr(decoded, side)
        assert (one.tokens, one.packed_end, one.units) == (two.tokens, two.packed_end, two.units)
        for name in two.buffers if two.units else ():
            assert torch.equal(one.buffers[name][:, :, : one.units], two.buffers[name][:, :, : two.units]), name
    assert kept(taken.evidence()) == kept(decoded.evidence())
    for t in range(CONTEXT, TOKENS):
        assert torch.equal(step(taken, t), step(decoded, t))


def test_nobody_has_attended_to_a_context() -> None:
    one = store(preset("turbo4"))
    one.take(K[:, :, :CONTEXT], V[:, :, :CONTEXT])
    assert [(e.tokens_packed, e.attended, e.attended_packed) for e in one.evidence()] == [(CONTEXT, 0, 0)] * 2
    assert "no attended key or value was packed" in audit(one.evidence(), 1, lossless=False, identical=False)
    step(one, CONTEXT)
    assert [(e.attended, e.attended_packed) for e in one.evidence()] == [(CONTEXT + 1, CONTEXT + 1)] * 2
    assert coverage(one.evidence()) == 1


def test_quiet_leaves_the_instruments_work_for_later() -> None:
    one = store(preset("turbo4"), quiet=True)
    one.take(K[:, :, :CONTEXT], V[:, :, :CONTEXT])
    step(one, CONTEXT)
    assert [(e.error, e.attend_error) for e in one.evidence()] == [(None, None)] * 2
    one.verify()
    loud = store(preset("turbo4"))
    loud.take(K[:, :, :CONTEXT], V[:, :, :CONTEXT])
    assert [e.error for e in one.evidence()] == [e.error for e in loud.evidence()]
    assert all(e.attend_error is not None and e.attend_error < e.attend_limit for e in one.evidence())
    assert audit(one.evidence(), 1, lossless=False, identical=False) == []


def test_tokens_packed_in_quiet_alone_are_sampled_too() -> None:
    """A scheme with a window packs nothing before its window is full."""
    one = store(read(PROBE | {"k": {"codec": "block", "window": 8}, "v": {"codec": "block", "window": 8}, "sinks": 0}), quiet=True)
    for t in range(20):
        step(one, t)
    one.verify()
    assert all(e.error for e in one.evidence())
    assert one.k.sampled <= SAMPLED_TOKENS


def test_a_kernel_that_errs_in_the_last_timed_step_is_found() -> None:
    one = store(preset("turbo4"), quiet=True)
    one.take(K[:, :, :CONTEXT], V[:, :, :CONTEXT])
    honest = one.attention.fn
    step(one, CONTEXT)
    one.attention.fn = lambda *args: 1.01 * honest(*args)
    step(one, CONTEXT + 1)
    one.verify()
    assert any("off the reference" in text for text in audit(one.evidence(), 1, lossless=False, identical=False))


def test_a_context_that_has_left_its_window_goes_on_where_it_is() -> None:
    """Of token-wise schemes; what is packed together may have lost its first tokens."""
    reach, start = 16, CONTEXT - 15
    taken, decoded = store(preset("turbo4"), reach=reach), store(preset("turbo4"), reach=reach)
    taken.take(K[:, :, start:CONTEXT], V[:, :, start:CONTEXT], start)
    for t in range(CONTEXT):
        step(decoded, t)
    for t in range(CONTEXT, TOKENS):
        assert torch.allclose(step(taken, t), step(decoded, t), atol=1e-6)
    evidence = [dataclasses.replace(e, attended=0) for e in taken.evidence()]
    assert {e.tokens + e.tokens_forgotten for e in evidence} == {TOKENS}
    with pytest.raises(Unsupported, match="has left a sliding window"):
        store(read(PROBE), reach=reach).take(K[:, :, start:CONTEXT], V[:, :, start:CONTEXT], start)
