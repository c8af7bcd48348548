"""A store in a sliding window: what each query sees is computed key by key beside it, and what no later query sees is forgotten."""

import dataclasses

import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.rope import Rope
from tqbench.cache.side import STEP, Kernels
from tqbench.cache.store import Store
from tqbench.core.evidence import audit, coverage
from tqbench.core.op import Choice
from tqbench.core.presets import read
from tqbench.core.session import Terms

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 64, 130
SCALE, SOFTCAP = 0.3, 1.5
ROPE = Rope(tuple(10000 ** (-i / DIM) for i in range(0, DIM, 2)))
Q, K, V = (
    torch.randn(1, heads, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))
)
BLOCK = {"codec": "block", "bits": 8}
CHANNEL = {"codec": "affine", "bits": 4, "group_size": 16, "axis": "channel"}  # sixteen tokens together
SCHEMES = {
    "all packed": {"k": BLOCK, "v": BLOCK},
    "exact window": {"k": {**BLOCK, "window": 5}, "v": {**BLOCK, "window": 9}},
    "sinks": {"k": BLOCK, "v": BLOCK, "sinks": 6},
    "units": {"k": CHANNEL, "v": BLOCK},
    "units, windows, sinks": {"k": {**CHANNEL, "window": 3}, "v": {**BLOCK, "window": 7, "flush": 4}, "sinks": 3},
    "an exact window beyond the reach": {"k": BLOCK, "v": {**BLOCK, "window": 40}},
    "unequal units": {"k": CHANNEL, "v": {**CHANNEL, "group_size": 32}},
}
REACHES = (1, 7, 16, 64, 500)


def open_store(data, reach, kernel="auto", protocol="strict", dtype="float64", quiet=False):
    shape = Shape("llama", DIM, dtype, KV_HEADS, HEADS, ROPE)
    return Store(read({"name": "test", **data}), shape, TorchArrays(), Terms(kernel, protocol, quiet=quiet), Layer(reach=reach))


def feed(store, chunk, tokens=TOKENS, softcap=None):
    """Attention of every query from where the store is."""
    out = []
    for first in range(store.tokens, tokens, chunk):
        new = slice(first, min(first + chunk, tokens))
        store.append(K[:, :, new], V[:, :, new])
        out.append(store.attend(Q[:, :, new], SCALE, softcap))
    return torch.cat(out, 2)


def packed_at(t, sinks, window, flush):
    """How many positions from the sinks on are packed for the query at t."""
    return max(0, t + 1 - sinks - window) // flush * flush


def values_seen(x, side, sinks, t):
    """The first t + 1 positions in the form in which the query at t sees them."""
    seen, count = x[:, :, : t + 1].clone(), packed_at(t, sinks, side.window, side.flush)
    if count:
        codec = side.codec
        seen[:, :, sinks : sinks + count] = codec.decode(codec.encode(x[:, :, sinks : sinks + count]), DIM, torch.float64)
    return seen


def expected(scheme, reach, softcap=None):
    """softmax(q · K) V over the banded mask, one query at a time."""
    out = torch.empty_like(Q)
    for t in range(TOKENS):
        keys, values = (
            values_seen(x, side, scheme.sinks, t).repeat_interleave(HEADS // KV_HEADS, 1) for x, side in ((K, scheme.k), (V, scheme.v))
        )
        scores = (keys @ Q[:, :, t, :, None])[..., 0] * SCALE
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        scores[..., : max(0, t + 1 - reach)] = -torch.inf
        out[:, :, t] = (torch.softmax(scores, -1)[:, :, None] @ values)[:, :, 0]
    return out


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("name", SCHEMES)
def test_attention_is_the_banded_formula_however_the_text_is_cut(name, reach):
    store = open_store(SCHEMES[name], reach)
    formula = expected(store.scheme, reach)
    for chunk in (1, 7, 32, TOKENS):
        assert (feed(open_store(SCHEMES[name], reach), chunk) - formula).abs().max() < 1e-13  # float64: measured 2e-15


@pytest.mark.parametrize("kernel", ["attend=torch", "attend=reference"])
def test_logits_are_capped_softly(kernel):
    data, reach = SCHEMES["exact window"], 16
    capped, plain = expected(open_store(data, reach).scheme, reach, SOFTCAP), expected(open_store(data, reach).scheme, reach)
    assert (capped - plain).abs().max() > 0.1
    assert (feed(open_store(data, reach, kernel), 7, softcap=SOFTCAP) - capped).abs().max() < 1e-13


@pytest.mark.parametrize("name", SCHEMES)
def test_the_reference_sees_the_same_band(name):
    found = feed(open_store(SCHEMES[name], 16, "attend=reference"), 7)
    assert (found - expected(open_store(SCHEMES[name], 16).scheme, 16)).abs().max() < 1e-13


@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_held_stays_bounded(name, chunk):
    """Of what is packed, at most what a query sees twice over and a unit; of what is exact, the policy's share and sinks."""
    reach, held = 16, []
    store = open_store(SCHEMES[name], reach)
    waiting = max(side.window + side.flush - 1 for side in (store.scheme.k, store.scheme.v))
    unit = max(side.codec.unit for side in (store.scheme.k, store.scheme.v))
    for end in range(chunk, TOKENS + 1, chunk):
        feed(store, chunk, end)
        for side in store.evidence():
            assert side.tokens + side.tokens_forgotten == store.tokens
            packed = side.bytes_payload + side.bytes_metadata
            assert side.bytes_slack <= max(packed, STEP * packed // max(1, side.tokens_packed))  # or what a growing buffer has at least
            held.append(side.tokens)
    assert max(held) <= store.scheme.sinks + max(reach, waiting) + reach + unit
    assert max(held) < TOKENS
    assert all(side.tokens_forgotten > 0 for side in store.evidence())


def test_quiet_steps_are_verified_wherever_they_end():
    """The step after which the oldest tokens go is checked like any other."""
    for end in range(1, 64):
        store = open_store(SCHEMES["all packed"], 16, quiet=True)
        feed(store, 1, end)
        store.verify()
        assert all(side.attend_error is not None and side.error is not None for side in store.evidence())


def test_a_window_that_was_never_full_forgets_nothing():
    store = open_store(SCHEMES["all packed"], 500)
    feed(store, 7)
    assert [(side.tokens, side.tokens_forgotten) for side in store.evidence()] == [(TOKENS, 0)] * 2


def test_bytes_are_those_of_what_is_left():
    store = open_store(SCHEMES["sinks"], 16)
    feed(store, 7)
    layout = store.k.codec.layout(DIM)
    for side, own in zip(store.evidence(), (store.k, store.v), strict=True):
        assert side.tokens == side.tokens_packed < 2 * 16 + 7
        assert side.bytes_payload + side.bytes_metadata == side.tokens_packed * KV_HEADS * layout.nbytes == side.bytes_declared
        assert side.bytes_exact == 0  # the sinks went with the rest: no query sees them any more
        assert own.exact_sinks is None
        assert all(array.untyped_storage().nbytes() == array.nbytes for array in own.buffers.values())


@pytest.mark.parametrize("name", SCHEMES)
def test_the_audit_accepts_the_evidence_at_every_length(name):
    store = open_store(SCHEMES[name], 16)
    for end in range(33, TOKENS, 11):
        feed(store, 11, end)
        assert audit(store.evidence(), 1, lossless=False, identical=False) == []


@pytest.mark.parametrize("protocol", ["strict", "deploy"])
@pytest.mark.parametrize("name", SCHEMES)
def test_what_was_attended_is_counted_within_the_band(name, protocol):
    reach, chunk = 16, 7
    store = open_store(SCHEMES[name], reach, protocol=protocol)
    feed(store, chunk)
    for found, side in zip(store.evidence(), (store.scheme.k, store.scheme.v), strict=True):
        seen = packed = 0
        for t in range(TOKENS):
            decides = t if protocol == "strict" else t // chunk * chunk - 1  # deploy: what the policy had packed before the call
            end = store.scheme.sinks + packed_at(decides, store.scheme.sinks, side.window, side.flush)
            band = range(max(0, t + 1 - reach), t + 1)
            seen += len(band)
            packed += sum(store.scheme.sinks <= j < end for j in band)
        assert (found.attended, found.attended_packed, found.attended_declared) == (seen, packed, packed)


def test_v_whose_exact_window_covers_the_reach_is_never_read_packed():
    store = open_store(SCHEMES["an exact window beyond the reach"], 16)
    feed(store, 7)
    k, v = store.evidence()
    assert (k.attended_packed, v.attended_packed) == (k.attended, 0)
    assert coverage(store.evidence()) == 0.5
    assert v.tokens_packed > 0


def test_the_engine_is_shown_what_its_own_cache_would_keep():
    """reach − 1 tokens before the chunk, and the chunk, bit for bit."""
    store = Store(
        dataclasses.replace(read({"name": "test", **SCHEMES["units, windows, sinks"]}), bypass="identity"),
        Shape("llama", DIM, "float64", KV_HEADS, HEADS),
        TorchArrays(),
        layer=Layer(reach=16),
    )
    for first in range(0, TOKENS, 13):
        new = slice(first, min(first + 13, TOKENS))
        store.append(K[:, :, new], V[:, :, new])
        keys, values = store.visible()
        oldest = max(0, first - 15)
        assert torch.equal(keys, K[:, :, oldest : new.stop])
        assert torch.equal(values, V[:, :, oldest : new.stop])
    assert store.evidence()[0].tokens_forgotten > 0


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_forgetting_encodes_nothing_again(chunk):
    store = open_store(SCHEMES["units, windows, sinks"], 16)
    handed = []

    def encode(codec, x):
        handed.append(x.clone())
        return codec.encode(x)

    store.k.kernels = Kernels(Choice("encode", "counted", encode), store.k.kernels.decode, store.k.kernels.reference)
    feed(store, chunk)
    assert torch.equal(torch.cat(handed, 2), K[:, :, 3 : store.k.packed_end])
    assert store.k.base > 0


def test_keys_before_rope_keep_their_positions_when_the_oldest_are_gone():
    """Unquantized, so attention over keys that were taken back and forth is that over the keys themselves."""
    exact = {"codec": "cast", "dtype": "float32"}
    data = {"k": {**exact, "rope": "pre", "window": 3}, "v": exact}
    store = open_store(data, 16)
    found = feed(store, 7)
    assert store.k.base > 0
    plain = expected(read({"name": "plain", "k": {**exact, "window": 999}, "v": {**exact, "window": 999}}), 16)
    assert (found - plain).abs().max() < 1e-5  # float32 codes


def test_the_logits_multiplier_counts_the_keys_in_the_band():
    """grow = 1 + value √ln n, n being what the query sees; the scores are scaled, so the scale may be."""
    data = {**SCHEMES["all packed"], "logits": {"form": "grow", "value": 0.5}}
    found = feed(open_store(data, 16), 7)
    plain = open_store(SCHEMES["all packed"], 16)
    for t in range(TOKENS):
        plain.append(K[:, :, t : t + 1], V[:, :, t : t + 1])
        n = torch.tensor(min(t + 1, 16.0), dtype=torch.float64)
        out = plain.attend(Q[:, :, t : t + 1], SCALE * float(1 + 0.5 * n.log().sqrt()))
        assert (out - found[:, :, t : t + 1]).abs().max() < 1e-13
