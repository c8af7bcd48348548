"""The store against its policy written out token by token."""

import dataclasses
import gc
import json
import weakref
from dataclasses import replace
from math import log

import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Shape
from tqbench.cache.side import Kernels
from tqbench.cache.store import Store
from tqbench.codecs.block import Block
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, EvidenceError, Unsupported
from tqbench.core.evidence import audit, coverage
from tqbench.core.op import Choice
from tqbench.core.presets import preset, read
from tqbench.core.scheme import Scheme, Side
from tqbench.core.session import Terms
from tqbench.testing.samples import gaussian

HEAD_DIM, TOKENS = 64, 90
POLICIES = [(0, 0, 1), (0, 8, 1), (3, 0, 1), (5, 7, 4), (2, 0, 32), (4, 16, 32), (100, 0, 1), (0, 200, 1)]
K = torch.randn(1, 2, TOKENS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
V = torch.randn(1, 2, TOKENS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
Q = torch.randn(1, 4, TOKENS, HEAD_DIM, generator=torch.Generator().manual_seed(2))


def scheme(sinks=0, window=0, flush=1, codec="block"):
    side = {"codec": codec, "window": window, "flush": flush}
    return read({"name": "test", "k": side, "v": side, "sinks": sinks})


def open_store(wanted, kernel="auto", architecture="llama", dtype="float32"):
    return Store(wanted, Shape(architecture, HEAD_DIM, dtype, kv_heads=2, heads=4), TorchArrays(), Terms(kernel))


def feed(store, chunk, tokens=TOKENS):
    for first in range(store.tokens, tokens, chunk):
        new = slice(first, min(first + chunk, tokens))
        store.append(K[:, :, new], V[:, :, new])
        store.attend(Q[:, :, new], 0.125)


def forms(t, sinks, window, flush):
    """What the query at position t sees: for each position up to t, whether it is packed. One token after another."""
    packed = []
    waiting: list[int] = []  # left the window, not flushed yet
    for now in range(t + 1):
        leaving = now - window
        if leaving >= sinks:
            waiting.append(leaving)
        if len(waiting) == flush:
            packed, waiting = packed + waiting, []
    return [position in packed for position in range(t + 1)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, TOKENS])
def test_what_is_packed_and_attended_follows_the_policy(policy, chunk):
    store = open_store(scheme(*policy))
    feed(store, chunk)
    seen = [forms(t, *policy) for t in range(TOKENS)]
    for side in store.evidence():
        assert side.tokens == TOKENS
        assert side.tokens_packed == side.tokens_declared == sum(seen[-1])
        assert side.attended == sum(map(len, seen))
        assert side.attended_packed == sum(map(sum, seen))
        assert side.bytes_exact == (TOKENS - sum(seen[-1])) * HEAD_DIM * 2 * 4
    assert coverage(store.evidence()) == sum(map(sum, seen)) / sum(map(len, seen))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_boundary_is_the_policy(policy):
    sinks, side = policy[0], scheme(*policy).k
    for t in range(TOKENS):
        end = side.packed(t, sinks)
        assert forms(t, *policy) == [sinks <= position < end for position in range(t + 1)]


def test_what_the_engine_would_read_is_exact_outside_the_packed_region():
    wanted = scheme(sinks=3, window=10, flush=4)
    store = open_store(wanted)
    store.append(K, V)
    keys, _ = store.visible()
    end = wanted.k.packed(TOKENS - 1, 3)
    codec = wanted.k.codec
    packed = codec.decode(codec.encode(K[:, :, 3:end]), HEAD_DIM, torch.float32)
    assert torch.equal(keys, torch.cat([K[:, :, :3], packed, K[:, :, end:]], 2))
    assert not torch.equal(packed, K[:, :, 3:end])


@pytest.mark.parametrize("chunk", [1, 7, 32, TOKENS])
def test_each_token_is_encoded_once_and_in_order(chunk):
    wanted = scheme(sinks=2, window=5, flush=4)
    store = open_store(wanted)
    handed: list[torch.Tensor] = []

    def encode(codec, x):
        handed.append(x.clone())
        return codec.encode(x)

    store.k.kernels = Kernels(Choice("encode", "counted", encode), store.k.kernels.decode, store.k.kernels.reference)
    feed(store, chunk)
    assert torch.equal(torch.cat(handed, 2), K[:, :, 2 : wanted.k.packed(TOKENS - 1, 2)])
    assert all(x.shape[2] % 4 == 0 for x in handed)
    assert store.k.kernels.encode.calls == len(handed)


def test_buffers_grow_by_doubling_and_keep_what_they_hold():
    store = open_store(scheme())
    sizes = set()
    for end in range(1, TOKENS + 1):
        feed(store, 1, end)
        assert store.k.units == end <= store.k.capacity
        sizes.add(store.k.capacity)
    assert sorted(sizes) == [1, 8, 16, 32, 64, 128]  # from two scales for each token on, what lies between heads is a multiple of 16
    whole = store.k.codec.encode(K)
    for name, buffer in store.k.buffers.items():
        assert torch.equal(buffer[:, :, :TOKENS], whole[name])
    evidence = store.evidence()[0]
    assert evidence.bytes_payload + evidence.bytes_metadata == nbytes(whole)
    assert evidence.bytes_slack == nbytes(whole) * (128 - TOKENS) // TOKENS


def test_payload_and_metadata_are_told_apart():
    store = open_store(scheme())
    feed(store, TOKENS)
    evidence = store.evidence()[0]
    assert evidence.bytes_payload == TOKENS * 2 * HEAD_DIM
    assert evidence.bytes_metadata == TOKENS * 2 * 2 * (HEAD_DIM // 32)


def test_exact_tokens_are_dropped_from_memory_once_packed():
    store = open_store(scheme())
    feed(store, TOKENS)
    assert store.k.tail.shape[2] == 0
    assert store.k.tail.untyped_storage().nbytes() == 0


def test_tokens_that_no_query_attended_are_an_error():
    store = open_store(scheme())
    store.append(K[:, :, :4], V[:, :, :4])
    with pytest.raises(EvidenceError, match="4 tokens were appended and never attended"):
        store.append(K[:, :, 4:5], V[:, :, 4:5])


def test_queries_must_belong_to_the_new_tokens():
    store = open_store(scheme())
    store.append(K[:, :, :4], V[:, :, :4])
    with pytest.raises(EvidenceError, match="3 queries for 4 new tokens"):
        store.attend(Q[:, :, :3], 0.125)


def test_a_store_that_saw_nothing_has_evidence_of_nothing():
    for side in open_store(scheme(sinks=2)).evidence():
        assert (side.tokens, side.tokens_packed, side.attended, side.bytes_exact, side.error) == (0, 0, 0, 0, None)


def test_the_error_is_that_of_the_codec():
    store = open_store(scheme())
    feed(store, 8)
    codec = store.k.codec
    back = codec.decode(codec.encode(K), HEAD_DIM, torch.float32)
    assert store.evidence()[0].error == pytest.approx(float((back - K).double().square().sum() / K.double().square().sum()))


def test_channel_order_is_looked_up_by_architecture():
    wanted = preset("q8_0")
    assert [side.order for side in open_store(wanted).evidence()] == ["interleaved", "native"]
    assert [side.order for side in open_store(wanted, architecture="qwen2").evidence()] == ["half_split", "native"]
    with pytest.raises(Unsupported, match="how architecture 'mamba' orders its key channels is not known here"):
        open_store(wanted, architecture="mamba")


def test_a_head_dim_that_does_not_fit_is_refused():
    with pytest.raises(Unsupported, match="head_dim 80"):
        Store(preset("q8_0"), Shape("llama", 80, "float32"), TorchArrays())


@pytest.mark.parametrize("bypass", ["identity", "bridge"])
def test_a_control_takes_the_room_of_the_model_dtype(bypass):
    store = open_store(replace(preset("turbo3_pad128"), bypass=bypass))
    feed(store, TOKENS)
    values = {"identity": HEAD_DIM, "bridge": 128}[bypass]
    assert store.evidence()[0].bytes_payload == TOKENS * 2 * values * 4


def test_kernels_are_asked_for_by_name():
    evidence = open_store(preset("turbo4"), "reference").evidence()[0]
    assert (evidence.encode, evidence.decode, evidence.attend) == ("reference", "reference", "reference")
    evidence = open_store(preset("turbo4"), "attend=reference").evidence()[0]
    assert evidence.attend == "reference"


def test_a_name_must_be_taken_by_some_operation():
    with pytest.raises(Unsupported, match="no torch form called 'warp'"):
        open_store(preset("turbo4"), "warp")
    with pytest.raises(Unsupported, match="decode: the native form cannot run: "):
        open_store(preset("turboquant_prod3"), "decode=native")
    with pytest.raises(ConfigError, match="op one of encode, decode, attend"):
        open_store(preset("turbo4"), "pack=native")


def test_identity_goes_through_the_engine():
    store = open_store(replace(preset("turbo4"), bypass="identity"))
    assert store.through_engine
    store.append(K, V)
    store.visible()
    assert {side.attend for side in store.evidence()} == {"engine"}
    assert not open_store(preset("turbo4")).through_engine


def test_an_attention_that_reads_only_exact_tokens_covers_nothing():
    """The usual mistake: K and V are packed, and attention takes the raw ones."""
    store = open_store(preset("turbo2"))

    def raw(q, k, v, start, scale):
        return q  # never asks for k.packed()

    store.attention.fn = raw
    feed(store, TOKENS)
    found = audit(store.evidence(), 1, lossless=False, identical=False)
    assert "no attended key or value was packed" in found
    assert any("attention was handed 0 packed positions" in text for text in found)
    assert any("off the reference" in text for text in found)


@pytest.mark.parametrize("wrong", [1, 5, TOKENS])
def test_an_attention_that_was_no_number_once_is_not_forgotten(wrong):
    """By no later call that is right, and the record can hold it."""
    store, calls = open_store(preset("q8_0")), []
    attention = store.attention.fn

    def once(*given):
        calls.append(given)
        store.unchecked = True  # compare every call, as after tokens were forgotten
        return attention(*given) * (float("nan") if len(calls) == wrong else 1.0)

    store.attention.fn = once
    feed(store, 1)
    evidence = store.evidence()
    assert any("off the reference" in text for text in audit(evidence, 1, lossless=False, identical=False))
    assert json.dumps([dataclasses.asdict(side) for side in evidence], allow_nan=False)


def test_what_a_codec_packs_must_be_what_it_declares():
    @dataclasses.dataclass(frozen=True)
    class Wide(Block):
        def quantize(self, y):
            return {name: array.float() for name, array in super().quantize(y).items()}

    with pytest.raises(EvidenceError, match=r"declares codes as int8 .* and packs torch\.float32"):
        feed(open_store(Scheme("wide", Side(Wide()), Side(Wide()))), 8)


def test_a_store_is_freed_with_its_last_reference():
    store = open_store(preset("q8_0"))
    feed(store, 32)
    gone = weakref.ref(store)
    gc.disable()
    try:
        del store
        assert gone() is None  # no cycle: caches of past windows must not wait for the collector
    finally:
        gc.enable()


def test_sinks_do_not_keep_the_chunk_that_they_came_in():
    store = open_store(read({"name": "s", "k": "q8_0", "v": "q8_0", "sinks": 4}))
    feed(store, TOKENS)
    assert store.k.exact_sinks.untyped_storage().nbytes() == store.k.exact_sinks.nbytes


def test_deploy_shows_each_query_its_own_call_exact_and_what_came_before_by_the_policy():
    store = Store(scheme(window=5), Shape("llama", HEAD_DIM, "float32", 2, 4), TorchArrays(), Terms(protocol="deploy"))
    feed(store, 30)
    for side in store.evidence():
        assert side.attended_packed == 0 * 30 + 25 * 30 + 55 * 30  # by then 30 − 5 and 60 − 5 tokens had left the window
        assert side.tokens_packed == TOKENS - 5
    one = Store(scheme(window=5), Shape("llama", HEAD_DIM, "float32", 2, 4), TorchArrays(), Terms(protocol="deploy"))
    feed(one, TOKENS)
    assert coverage(one.evidence()) == 0  # one forward call reads nothing that was packed
    assert audit(one.evidence(), 1, lossless=False, identical=True)


def test_a_logit_multiplier_scales_each_query_by_its_own_number_of_keys():
    plain = {"name": "plain", "k": "f32", "v": "f32"}
    outs = []
    for logits in ({}, {"logits": {"form": "grow", "value": 0.5}}):
        store = open_store(read(plain | logits))
        store.append(K, V)
        factor = torch.tensor([1 + 0.5 * log(n) ** 0.5 for n in range(1, TOKENS + 1)]) if not logits else torch.ones(TOKENS)
        outs.append(store.attend(Q * factor[:, None], 0.125))
    assert torch.allclose(*outs, rtol=0, atol=1e-5)
    shrink = read(plain | {"logits": {"form": "shrink", "value": 3.45}}).logits
    assert shrink.factor(2048) == pytest.approx(3.45 / 4.45)
    assert not read(plain | {"logits": {"form": "grow", "value": 0.5}}).lossless_in("float32")


def test_heads_that_are_packed_together_are_counted_once():
    wanted = read({"name": "eight", "k": {"codec": "block", "rotation": "cross_head"}, "v": "q8_0"})
    store = Store(wanted, Shape("llama", 64, "float32", 8, 8), TorchArrays())
    q, k, v = torch.randn(3, 1, 8, 20, 64, generator=torch.Generator().manual_seed(0))
    store.append(k, v)
    out = store.attend(q, 0.125)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)
    assert (out - expected).abs().max() < 0.05
    for side in store.evidence():
        assert side.bytes_payload + side.bytes_metadata == side.bytes_declared == 20 * 8 * 68
    with pytest.raises(Unsupported, match="8 KV heads are packed together here, and the model has 3"):
        Store(wanted, Shape("llama", 64, "float32", 3, 3), TorchArrays())


@pytest.mark.parametrize("name", ["turbo4", "q8_0", "kivi4", "turbo3", "fp8_e4m3", "f16"])
def test_quiet_tokens_that_are_packed_one_by_one_are_held_to_the_reference(name: str) -> None:
    """A context is packed rightly, and what follows is not: the error of most of what was packed would hide it."""

    def after(tokens: int, *, wrongly: bool) -> list[str]:
        store = Store(read(name), Shape("llama", 64, "float32", 2, 2), TorchArrays(), Terms(quiet=True))
        for first, last in ((0, 300), *((i, i + 1) for i in range(300, 300 + tokens))):
            if first == 300 and wrongly:
                for side in (store.k, store.v):
                    side.kernels = Kernels(_doubled(side.kernels.encode), side.kernels.decode, side.kernels.reference)
            k, v, q = (gaussian(1, 2, last - first, 64, seed=3 * first + i) for i in range(3))
            store.append(k, v)
            store.attend(q, 0.125)
        store.verify()
        evidence = store.evidence()
        assert all(e.latest_error is not None for e in evidence)
        return [line for line in audit(evidence, 1, lossless=True, identical=False) if "packed last" in line]

    tokens = 150 if name == "kivi4" else 3
    assert after(tokens, wrongly=False) == []
    assert len(after(tokens, wrongly=True)) == 2


def _doubled(choice: Choice) -> Choice:
    return Choice("encode", "doubled", lambda codec, x: choice.fn(codec, 2 * x))
