"""Layers that pack together: what a query sees depends on its position alone, every layer reads what is stored, bytes are counted once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.calibration import Calibration, Piece
from tqbench.cache.rope import Rope
from tqbench.cache.shared import Shared
from tqbench.cache.store import Store
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.evidence import audit, coverage
from tqbench.core.presets import read
from tqbench.core.session import Terms

WINDOW, SINKS, TOKENS = 20, 3, 100
SIDE = {"codec": "kvtc_paper", "ratio": 5.0, "window": WINDOW, "flush": 4}
SCHEME = read({"name": "shared", "k": {**SIDE, "rope": "pre"}, "v": SIDE, "sinks": SINKS})
MIXED = read({"name": "mixed", "k": {**SIDE, "rope": "pre"}, "v": "q8_0", "sinks": SINKS})
IDS = np.random.default_rng(0).integers(0, 256, TOKENS)
WINDOWS = [np.random.default_rng(seed).integers(0, 256, 200) for seed in (1, 2)]


@pytest.fixture(scope="module")
def session():
    with TransformersSession(tiny.llama("float64", num_hidden_layers=3), None, "tiny") as opened:
        yield opened


@pytest.fixture(scope="module")
def calibration(session):
    return dataclasses.replace(session.calibrate(WINDOWS), folder=None)


def run(session, scheme, terms, chunk, tokens=TOKENS):
    cache = session.new_cache(scheme, terms)
    parts = [session.forward(IDS[i : min(tokens, i + chunk)], cache) for i in range(0, tokens, chunk)]
    return torch.cat(parts), cache


# --- strict: a function of the position


@pytest.mark.parametrize("scheme", [SCHEME, MIXED, dataclasses.replace(SCHEME, bypass="bridge")], ids=lambda scheme: scheme.label)
def test_the_cut_of_the_text_changes_nothing(session, calibration, scheme):
    terms = Terms(calibration=calibration)
    whole, cache = run(session, scheme, terms, TOKENS)
    assert cache.stores[0].k.units == (TOKENS - SINKS - WINDOW) // 4 * 4
    for chunk in (1, 7, 16, WINDOW, 33):
        off = (run(session, scheme, terms, chunk)[0] - whole).abs().amax()
        assert off <= 1e-10, f"chunks of {chunk} differ by {off:.2g}"


def test_each_query_sees_its_own_window_exact_and_the_rest_as_it_decodes(session, calibration):
    """Beside the store: keys and values of one layer, packed by hand up to the boundary of each query."""
    store, beside = pair(session, calibration)
    q, k, v = (
        torch.randn(1, heads, TOKENS, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2)
    )
    rope, out = session.shape.rope, []
    for first in range(0, TOKENS, WINDOW):
        new = slice(first, first + WINDOW)
        for one, sign in ((store, 1), (beside, -1)):
            one.append(sign * k[:, :, new], sign * v[:, :, new])
            out += [one.attend(q[:, :, new], 0.125)] if sign == 1 else []
            if sign == -1:
                one.attend(q[:, :, new], 0.125)
    kcodec, vcodec = store.k.together.codec, store.v.together.codec
    plain = rope.undo(k, 0)
    packed_k = rope.redo(kcodec.decode(kcodec.encode(torch.cat([plain, -plain], 1)), 64, torch.float64)[:, :2], 0)
    packed_v = vcodec.decode(vcodec.encode(torch.cat([v, -v], 1)), 64, torch.float64)[:, :2]
    for t in range(TOKENS):
        end = SINKS + max(0, t + 1 - SINKS - WINDOW) // 4 * 4 if t >= SINKS else t + 1
        sees = [torch.cat([x[:, :, :SINKS], y[:, :, SINKS:end], x[:, :, end : t + 1]], 2) for x, y in ((k, packed_k), (v, packed_v))]
        sees = sees if t >= SINKS else [k[:, :, : t + 1], v[:, :, : t + 1]]
        keys, values = (x.repeat_interleave(2, 1) for x in sees)
        expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, t : t + 1], keys, values, scale=0.125)
        assert torch.allclose(torch.cat(out, 2)[:, :, t : t + 1], expected, rtol=0, atol=1e-9), t


def pair(session, calibration, terms=None, scheme=SCHEME):
    """Two layers without a model around them."""
    pieces = Calibration(calibration.layers[:2])
    shared, given = Shared(2), terms or Terms(calibration=pieces)
    return [Store(scheme, session.shape, TorchArrays(), given, Layer(i, i), shared) for i in range(2)]


def test_a_forward_call_longer_than_the_window_raises_in_the_store_and_is_cut_by_the_session(session, calibration):
    first, second = pair(session, calibration)
    q, x = torch.randn(1, 4, TOKENS, 64, dtype=torch.float64), torch.randn(1, 2, TOKENS, 64, dtype=torch.float64)
    first.append(x, x)
    with pytest.raises(EvidenceError, match=f"not every layer has yet; a forward call may bring at most {WINDOW} tokens"):
        first.attend(q, 0.125)
    assert second.tokens == 0
    cache = session.new_cache(SCHEME, Terms(calibration=calibration))
    assert cache.shared.most == WINDOW
    assert session.forward(IDS, cache).shape[0] == TOKENS
    assert session.forward(IDS[:50], session.new_cache(SCHEME, Terms(calibration=calibration)), last=True).shape[0] == 1
    assert session.new_cache(read("q8_0")).shared.most is None


def test_in_deploy_a_long_call_is_exact_and_the_next_sees_it_packed(session, calibration):
    terms = Terms(protocol="deploy", calibration=calibration)
    cache = session.new_cache(SCHEME, terms)
    exact = session.forward(IDS[:60], session.new_cache(None))
    assert torch.allclose(session.forward(IDS[:60], cache), exact, atol=1e-9)
    assert {side.attended_packed for side in cache.evidence()} == {0}
    assert {side.tokens_packed for side in cache.evidence()} == {(60 - SINKS - WINDOW) // 4 * 4}
    session.forward(IDS[60:], cache)
    assert audit(cache.evidence(), 3, lossless=False, identical=False) == []
    exact_left = (TOKENS - (TOKENS - SINKS - WINDOW) // 4 * 4) * 2 * 64 * 8
    assert {side.bytes_exact for side in cache.evidence()} == {exact_left}


# --- what is stored is what is read


@pytest.mark.parametrize("side", ["k", "v"])
def test_a_changed_byte_changes_every_layer_and_the_logits_of_later_queries(session, calibration, side):
    logits, read_back = [], []
    for damaged in (False, True):
        _, cache = run(session, SCHEME, Terms(calibration=calibration), WINDOW, tokens=80)
        together = cache.shared.sides[side]
        if damaged:
            changed = together.buffers["scales"].clone()
            changed[:, :, 10] = changed[:, :, 10] * 4 + 1
            together.buffers["scales"] = changed
        read_back.append([getattr(store, side).decoded() for store in cache.stores])
        logits.append(session.forward(IDS[80:84], cache))
    for whole, other in zip(*read_back, strict=True):
        changed = (whole != other).any(-1).any(1)[0].nonzero().flatten().tolist()
        assert changed == [10]
    assert (logits[0] - logits[1]).abs().amax(1).min() > 1e-6


def test_layers_decode_their_own_heads(session, calibration):
    _, cache = run(session, SCHEME, Terms(calibration=calibration), WINDOW)
    together = cache.shared.sides["v"]
    whole = together.codec.decode(together._packed(), 64, torch.float64)
    assert whole.shape[1] == 3 * 2
    for i, store in enumerate(cache.stores):
        assert torch.allclose(store.v.decoded(), whole[:, 2 * i : 2 * i + 2], atol=1e-12)


# --- evidence


def test_shared_bytes_are_counted_once(session, calibration):
    _, cache = run(session, SCHEME, Terms(calibration=calibration), 16)
    evidence = cache.evidence()
    assert audit(evidence, 3, lossless=False, identical=False) == []
    for name in ("k", "v"):
        together, mine = cache.shared.sides[name], [e for e in evidence if e.side == name]
        packed = sum(int(array.nbytes) for array in together._packed().values())
        assert sum(e.bytes_payload + e.bytes_metadata for e in mine) == packed == mine[0].tokens_packed * together.codec.layout(64).nbytes
        assert sum(e.bytes_payload + e.bytes_metadata + e.bytes_slack for e in mine) == sum(b.nbytes for b in together.buffers.values())
        assert sum(e.bytes_tables for e in mine) == sum(array.nbytes for array in together.codec.learned.values())
        assert max(e.bytes_tables for e in mine) - min(e.bytes_tables for e in mine) <= 1
        assert all(e.error and 0 < e.error < 1 for e in mine)
    assert 0 < coverage(evidence) < 1


def test_the_audit_sees_a_layer_that_reads_exact_tokens(session, calibration):
    _, cache = run(session, SCHEME, Terms(calibration=calibration), 16)
    evidence = [dataclasses.replace(e, attended_packed=e.attended_packed - 1) for e in cache.evidence()]
    assert any("attention was handed" in text for text in audit(evidence, 3, lossless=False, identical=False))


# --- contexts


def test_a_context_that_is_taken_over_is_what_decoding_would_have_left(session, calibration):
    """The same exact keys and values, at once and token by token."""
    taken, decoded = pair(session, calibration), pair(session, calibration)
    x = [[torch.randn(1, 2, 90, 64, dtype=torch.float64) for _ in "kv"] for _ in taken]
    q = torch.randn(1, 4, 90, 64, dtype=torch.float64)
    for store, (k, v) in zip(taken, x, strict=True):
        store.take(k[:, :, :80], v[:, :, :80])
    for t in range(80):
        for store, (k, v) in zip(decoded, x, strict=True):
            store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
            store.attend(q[:, :, t : t + 1], 0.125)
    for one, two in zip(taken, decoded, strict=True):
        for a, b in ((one.k, two.k), (one.v, two.v)):
            assert (a.tokens, a.packed_end, a.units, a.tail_start) == (b.tokens, b.packed_end, b.units, b.tail_start)
            assert torch.equal(a.tail, b.tail)
            assert all(torch.equal(a._packed()[name], b._packed()[name]) for name in b._packed())
    assert not any(e.attended for store in taken for e in store.evidence())
    for t in range(80, 90):
        for one, two, (k, v) in zip(taken, decoded, x, strict=True):
            for store in (one, two):
                store.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
            assert torch.allclose(one.attend(q[:, :, t : t + 1], 0.125), two.attend(q[:, :, t : t + 1], 0.125), atol=1e-12)


def test_decoding_after_a_prefilled_context_leaves_good_evidence(session, calibration):
    held = session.context(IDS[:70])
    cache = session.new_cache(SCHEME, Terms(calibration=calibration, quiet=True), held)
    for t in range(70, TOKENS):
        session.forward(IDS[t : t + 1], cache, last=True)
    cache.verify()
    assert audit(cache.evidence(), 3, lossless=False, identical=False) == []
    assert {e.tokens_packed for e in cache.evidence()} == {(TOKENS - SINKS - WINDOW) // 4 * 4}


# --- controls, calibration, refusals


def test_identity_is_exactly_the_baseline_and_the_bridge_costs_rounding(session, calibration):
    exact = torch.cat([session.forward(IDS[i : i + 16], base) for base in [session.new_cache(None)] for i in range(0, TOKENS, 16)])
    identity, _ = run(session, dataclasses.replace(SCHEME, bypass="identity"), Terms(), 16)
    assert torch.equal(identity, exact)
    bridge, _ = run(session, dataclasses.replace(SCHEME, bypass="bridge"), Terms(calibration=calibration), 16)
    assert (bridge - exact).abs().amax() < 1e-9
    assert (run(session, SCHEME, Terms(calibration=calibration), 16)[0] - exact).abs().amax() > 1e-3


def test_it_learns_from_all_layers_without_the_sinks(session):
    rope = Rope((1.0, 0.1))
    layers = [[Piece(*torch.randn(2, 1, 2, 50, 4, generator=torch.Generator().manual_seed(i)), start=s)] for i, s in ((0, 0), (1, 0))]
    scheme = read({"name": "one", "k": {**SIDE, "ratio": 2.0, "rope": "pre"}, "v": {**SIDE, "ratio": 2.0}, "sinks": 4})
    shared, terms = Shared(2), Terms(calibration=Calibration(layers))
    for i in range(2):
        Store(scheme, Shape("llama", 4, "float32", 2, 4, rope), TorchArrays(), terms, Layer(i, i), shared)
    for name in ("k", "v"):
        seen = [rope.undo(layer[0].k, 0) if name == "k" else layer[0].v for layer in layers]
        expected = torch.cat(seen, 1)[0, :, 4:].mean(1).flatten()
        assert torch.allclose(shared.sides[name].codec.learned["mean"].flatten(), expected, atol=1e-6)


@pytest.mark.parametrize("rule", [{"protect": {"first": 1, "scheme": "q8_0"}}, {"layers": [{"last": 1, "scheme": "q8_0"}]}])
def test_rules_for_layers_make_no_sense(session, calibration, rule):
    scheme = read(SCHEME.to_data() | rule)
    with pytest.raises(Unsupported, match=f"packs all layers together, so none can run another scheme: no {next(iter(rule))}"):
        scheme.check(64, 2)


def test_a_sliding_window_is_refused():
    with TransformersSession(tiny.sliding(), None, "tiny") as session:
        terms = Terms(calibration=dataclasses.replace(session.calibrate([np.arange(16)]), folder=None))
        with pytest.raises(Unsupported, match="layer 0 forgets what leaves its sliding window"):
            session.new_cache(SCHEME, terms)


def test_layers_without_keys_and_values_do_not_take_part():
    with TransformersSession(tiny.hybrid("float64"), None, "tiny") as session:
        scheme = read({"name": "post", "k": SIDE, "v": SIDE, "sinks": SINKS})
        terms = Terms(calibration=dataclasses.replace(session.calibrate(WINDOWS), folder=None))
        whole, cache = run(session, scheme, terms, TOKENS)
        assert cache.shared.layers == len(cache.stores) == 2
        assert (run(session, scheme, terms, 7)[0] - whole).abs().amax() <= 1e-10


def test_checks_that_were_put_off_are_made_for_what_layers_share(session, calibration):
    _, cache = run(session, dataclasses.replace(SCHEME, bypass="bridge"), Terms(calibration=calibration, quiet=True), WINDOW)
    cache.shared.sides["v"].pending.add("what all layers packed is wrong", torch.tensor(False))
    with pytest.raises(Unsupported, match="what all layers packed is wrong"):
        cache.verify()
