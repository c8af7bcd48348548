"""The native library in every instruction set that runs here, against the reference in float64."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.store import Store
from tqbench.codecs.fp8 import Fp8
from tqbench.core.errors import ConfigError, EvidenceError, Unsupported
from tqbench.core.presets import read
from tqbench.core.session import Terms
from tqbench.kernels import attend, decode, native, packed
from tqbench.kernels.attend import reference
from tqbench.kernels.attend._native import Switches, switched
from tqbench.measure import environment

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))

FORMATS = (
    *("turbo4", "turbo3", "turbo2", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl", "q8_0_rot", "mlx4_g64", "mlx8_g32", "kivi2", "kivi4"),
    *("fp8_e4m3", "fp8_e5m2", "fp8_e4m3_scaled", "mxfp4", "mxfp8", "nvfp4", "f32", "bf16", "f16", "vllm_3bit_nc", "vllm_k8v4"),
    *("vllm_int8_per_token_head", "tbq3", "turboquant_mse1", "turboquant_mse3", "mlx_vlm3", "turbo4_pad128"),
)
MIXES = ("q8_0/turbo3", "turbo3/q4_1", "f16/turbo2", "kivi2/turbo4", "turbo4/fp8_e5m2", "q5_1/mlx4_g64", "nvfp4/q8_0")


def filled(scheme, k, v, start, heads, reach=None, form="native"):
    """A store in which everything before `start` has been attended, and what follows has been appended."""
    shape = Shape("llama", k.shape[-1], str(k.dtype).removeprefix("torch."), k.shape[1], heads)
    store = Store(read(scheme), shape, TorchArrays(), Terms(f"attend={form}"), Layer(reach=reach))
    if start:
        store.append(k[:, :, :start], v[:, :, :start])
        store.k.settle()
        store.v.settle()
        store.queries = start
    store.append(k[:, :, start:], v[:, :, start:])
    return store


def error(store, q, start, scale=None, softcap=None):
    """Of the native form, relative to the reference in float64 on the same packed data."""
    views, scale = (store.k.view(), store.v.view()), scale or q.shape[-1] ** -0.5
    got = store.attention.fn(q, *views, start, scale, softcap)
    truth = reference.attend(q.double(), *views, start, scale, softcap)
    assert got.dtype == q.dtype
    assert bool(torch.isfinite(got).all())
    return float((got.double() - truth).norm() / truth.norm().clamp_min(1e-30))


def vectors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", [*FORMATS, *MIXES])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_format(isa, scheme, head_dim):
    q, k, v = vectors(0, 1, 6, 4, head_dim), vectors(1, 1, 2, 331, head_dim), vectors(2, 1, 2, 331, head_dim)
    assert error(filled(scheme, k, v, 327, 6), q, 327) <= attend.PRECISE


@pytest.mark.parametrize("scheme", ["turbo4_pad128", "q8_0", "q4_0", "mlx_vlm3", "tbq4", "kivi2", "f16", "fp8_e4m3"])
@pytest.mark.parametrize("head_dim", [32, 80, 96, 192, 256])
def test_every_head_dim(isa, scheme, head_dim):
    k, v = vectors(1, 2, 2, 150, head_dim), vectors(2, 2, 2, 150, head_dim)
    try:
        store = filled(scheme, k, v, 149, 4)
    except Exception as refused:  # noqa: BLE001 - what the codec itself cannot store
        pytest.skip(str(refused))
    assert error(store, vectors(0, 2, 4, 1, head_dim), 149) <= attend.PRECISE


@pytest.mark.parametrize("scheme", ["turbo4", "q8_0/turbo3", "q4_1"])
@pytest.mark.parametrize("tokens", [*range(1, 130), 1000, 4097])
def test_every_length(scheme, tokens):
    k, v = vectors(1, 1, 2, tokens, 64), vectors(2, 1, 2, tokens, 64)
    assert error(filled(scheme, k, v, tokens - 1, 4), vectors(0, 1, 4, 1, 64), tokens - 1) <= attend.PRECISE


def test_seventy_thousand_tokens():
    tokens = 70_001
    k, v = vectors(1, 1, 1, tokens, 64), vectors(2, 1, 1, tokens, 64)
    assert error(filled("turbo4", k, v, tokens - 1, 2), vectors(0, 1, 2, 1, 64), tokens - 1) <= attend.PRECISE


DATA = {
    "peaky": lambda q, k, v: (4 * q, k, v),
    "one sink": lambda q, k, v: (q, torch.cat([3 * q[:, ::3, :1].sum(2, keepdim=True), k[:, :, 1:]], 2), v),
    "a huge value": lambda q, k, v: (q, k, torch.cat([v[:, :, :-40], 1000 * v[:, :, -40:-39], v[:, :, -39:]], 2)),
    "a huge channel": lambda q, k, v: (q, k * torch.where(torch.arange(k.shape[-1]) == 5, 30.0, 1.0), v),
    "all alike": lambda q, k, v: (q, torch.ones_like(k), torch.ones_like(v)),
    "zeros": lambda q, k, v: (q, torch.zeros_like(k), v),
    "a large query channel": lambda q, k, v: (q * large(30), k / large(30), v),
}


def large(factor, *channels):
    return torch.where(torch.isin(torch.arange(64), torch.tensor(channels or (5,))), float(factor), 1.0)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "q8_0", "q4_0", "mlx4_g64", "kivi4"])
def test_unfriendly_data(isa, scheme, data):
    q, k, v = DATA[data](vectors(0, 1, 6, 1, 64), vectors(1, 1, 2, 700, 64), vectors(2, 1, 2, 700, 64))
    assert error(filled(scheme, k, v, 699, 6), q, 699) <= attend.PRECISE


@pytest.mark.parametrize("channels", [(5,), (5, 7)], ids=["one", "two of a run"])
@pytest.mark.parametrize("factor", [10, 100, 1000])
@pytest.mark.parametrize("scheme", ["q8_0", "q8_0_rot", "q5_1", "q4_0", "iq4_nl", "mlx4_g64", "kivi4", "nvfp4"])
def test_queries_of_which_few_channels_are_large(isa, scheme, factor, channels):
    """Keys are as small there, so that scores are of a few units; with four bits behind a rotation the keys' error would make them tens."""
    x = large(factor, *channels)
    q, k, v = vectors(0, 1, 6, 1, 64) * x, vectors(1, 1, 2, 700, 64) / x, vectors(2, 1, 2, 700, 64)
    assert error(filled(scheme, k, v, 699, 6), q, 699) <= attend.PRECISE


POLICIES = [
    {"sinks": 4},
    {"window": 40},
    {"sinks": 3, "window": 65},
    {"k": {"codec": "block", "window": 100}, "v": {"codec": "codebook", "window": 7}, "sinks": 70},
    {"k": {"codec": "affine", "bits": 2, "axis": "channel", "flush": 64}, "v": {"codec": "affine", "bits": 2, "window": 100}},
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("reach", [None, 50, 170])
@pytest.mark.parametrize(("queries", "softcap"), [(1, None), (3, 5.0), (130, None)])
def test_sinks_windows_and_masks(isa, policy, reach, queries, softcap):
    tokens, side = 300, {"codec": "codebook", "rotation": "hadamard_signed"}
    scheme = {"name": "mine", "k": side, "v": side, **policy}
    k, v = vectors(1, 2, 2, tokens, 64), vectors(2, 2, 2, tokens, 64)
    store = filled(scheme, k, v, tokens - queries, 6, reach)
    assert error(store, vectors(0, 2, 6, queries, 64), tokens - queries, softcap=softcap) <= attend.PRECISE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_sixteen_bits(isa, dtype):
    k, v = vectors(1, 1, 2, 200, 64).to(dtype), vectors(2, 1, 2, 200, 64).to(dtype)
    store = filled({"name": "mine", "k": "turbo4", "v": "q8_0", "window": 30, "sinks": 2}, k, v, 199, 4)
    assert error(store, vectors(0, 1, 4, 1, 64).to(dtype), 199) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("stores", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_thousands_of_random_calls(stores):
    """Shapes, formats, lengths, policies and threads at random; each against the reference. Five calls for each store: ten thousand with
    `make test-all`."""
    draw, worst, before = np.random.default_rng(0), 0.0, torch.get_num_threads()
    formats = [f"{a}/{b}" for a in FORMATS for b in FORMATS if "pad" not in a + b and "vllm" not in a + b and "kivi" not in b]
    try:
        for turn in range(stores):
            torch.set_num_threads(int(draw.choice((1, 2))))
            tokens, queries, head_dim = int(draw.integers(1, 91)), int(draw.integers(1, 10)), int(draw.choice((64, 128)))
            kv_heads, sharing, batch = map(int, draw.integers((1, 1, 1), (3, 6, 3)))
            k_form, _, v_form = str(draw.choice(formats)).partition("/")
            scheme = {"name": "mine", "k": k_form, "v": v_form, "sinks": int(draw.choice((0, 0, 1, 5)))}
            shape = (batch, kv_heads, tokens + queries, head_dim)
            k, v = vectors(2 * turn, *shape) * 10 ** draw.uniform(-2, 1), vectors(2 * turn + 1, *shape) * 10 ** draw.uniform(-3, 3)
            store = filled(scheme, k, v, tokens, kv_heads * sharing, [None, None, 7][draw.integers(3)])
            for _ in range(5):
                q = vectors(int(draw.integers(0, 1 << 30)), batch, kv_heads * sharing, queries, head_dim) * 10 ** draw.uniform(-2, 0)
                worst = max(worst, error(store, q, tokens))
    finally:
        torch.set_num_threads(before)
    assert worst <= 2 * attend.PRECISE  # keys ten times as long as queries expect make scores of hundreds


@pytest.mark.parametrize("scheme", ["q8_0", "q4_0", "mlx8_g32"])
def test_bytes_of_a_query_with_a_large_channel(isa, scheme):
    q, k, v = vectors(0, 1, 6, 1, 64) * large(100), vectors(1, 1, 2, 700, 64) / large(100), vectors(2, 1, 2, 700, 64)
    assert error(filled(scheme, k, v, 699, 6, form="native_fast"), q, 699) <= attend.FAST


@pytest.mark.parametrize("scheme", [*FORMATS, "q8_0/turbo3", "turbo3/q4_1", "q5_1/mlx4_g64"])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("sharpness", [1, 4])
def test_bytes(isa, scheme, head_dim, sharpness):
    q, k, v = vectors(0, 1, 6, 4, head_dim), vectors(1, 1, 2, 331, head_dim), vectors(2, 1, 2, 331, head_dim)
    try:
        store = filled(scheme, k, v, 327, 6, form="native_fast")
    except (Unsupported, ValueError) as refused:
        pytest.skip(str(refused))
    assert error(store, sharpness * q, 327) <= attend.FAST


@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "q4_0", "mlx8_g32"])
@pytest.mark.parametrize("tokens", [*range(1, 12), *range(60, 70), 129, 4097])
def test_bytes_of_every_length(isa, scheme, tokens):
    k, v = vectors(1, 1, 2, tokens, 64), vectors(2, 1, 2, tokens, 64)
    store = filled(scheme, k, v, tokens - 1, 4, form="native_fast")
    assert error(store, vectors(0, 1, 4, 1, 64), tokens - 1) <= attend.FAST


@pytest.mark.parametrize("scheme", ["kivi4", "f32", "bf16", "fp8_e4m3", "mxfp8", "q8_0/f16"])
def test_what_has_no_bytes_is_refused(scheme):
    with pytest.raises(Unsupported, match="no levels of 8 bits"):
        filled(scheme, vectors(1, 1, 2, 64, 64), vectors(2, 1, 2, 64, 64), 63, 4, form="native_fast")


@pytest.mark.parametrize(
    "switches",
    [Switches(split=64), Switches(split=320), Switches(ahead=0), Switches(ahead=1000), Switches(sparse=1e-9), Switches(split=64, ahead=1)],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["turbo3", "q8_0", "kivi4", "f16"])
def test_switches_change_nothing_but_time(isa, scheme, switches):
    store = filled(scheme, vectors(1, 1, 2, 700, 64), vectors(2, 1, 2, 700, 64), 697, 6)
    q, views = vectors(0, 1, 6, 3, 64), (store.k.view(), store.v.view())
    given = (q, *views, 697, 0.125)
    truth, got = store.attention.fn(*given), switched(switches, *given)
    assert float((got - truth).norm() / truth.norm()) <= attend.PRECISE


@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "q4_1", "kivi4", "f16"])
@pytest.mark.parametrize("least", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("window", [0, 20])
def test_values_of_little_weight_are_left_out_and_their_weight_is_told(isa, scheme, least, window):
    """In one tile of tokens the largest score so far is the largest."""
    side = read(scheme).k
    policy = {"name": "mine", "k": scheme, "v": scheme} | ({"window": window} if side.codec.unit == 1 else {})
    store = filled(policy, vectors(1, 1, 2, 64, 64), vectors(2, 1, 2, 64, 64), 63, 6)
    q, k, v, dropped = 2 * vectors(0, 1, 6, 1, 64), store.k.view(), store.v.view(), torch.empty(1, 6, 1)
    got = switched(Switches(sparse=least, dropped=dropped), q, k, v, 63, 0.125)
    keys, values = (reference.visible(view, view.packed(), 0, 63).double().repeat_interleave(3, dim=1) for view in (k, v))
    scores = (q.double() @ keys.mT) * 0.125
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    kept = torch.where(weights < least, 0.0, weights)
    truth = kept @ values / weights.sum(-1, keepdim=True)
    assert torch.allclose(dropped.double(), 1 - kept.sum(-1) / weights.sum(-1), atol=2e-4)
    assert float((got - truth).norm() / truth.norm()) <= 2 * attend.PRECISE


@pytest.mark.parametrize("scheme", FORMATS)
def test_decode(isa, scheme):
    for codec in {side.codec for side in (read(scheme).k, read(scheme).v)}:
        x = vectors(3, 2, 2, 2 * codec.unit + codec.unit * 5, 128)
        arrays = codec.encode(x)
        got, truth = (decode.OP.resolve(codec, name).fn(codec, arrays, 128, x) for name in ("native", "reference"))
        assert torch.allclose(got, truth, rtol=3e-6, atol=3e-6 * float(truth.abs().max()))


def test_results_do_not_depend_on_threads_or_repetition():
    k, v, q = vectors(1, 1, 2, 5000, 64), vectors(2, 1, 2, 5000, 64), vectors(0, 1, 6, 1, 64)
    store, before = filled("turbo3", k, v, 4999, 6), torch.get_num_threads()
    found = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        found.append(store.attention.fn(q, store.k.view(), store.v.view(), 4999, 0.125))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_two_openmp_runtimes_are_refused(monkeypatch):
    monkeypatch.setattr(environment, "openmp", lambda: ["libgomp.so.1", "libiomp5.so"])
    native.library.cache_clear()
    try:
        with pytest.raises(OSError, match=r"libgomp.so.1 and libiomp5.so are both loaded"):
            native.library()
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("scale", ["norm_corrected", "norm_corrected_at_decode"])
def test_codebooks_of_every_width(isa, bits, scale):
    """With large keys in some channels, whose squares add up."""
    side = {"codec": "codebook", "bits": bits, "scale": scale, "group": 0, "planes": "stream"}
    q, k, v = vectors(0, 1, 4, 1, 128), 0.01 * vectors(1, 1, 2, 90, 128), vectors(2, 1, 2, 90, 128)
    k[..., ::2, :16] = 3 * k[..., ::2, :16].sign()
    assert error(filled({"name": "mine", "k": side, "v": side}, k, v, 89, 4), q, 89) <= attend.PRECISE


@pytest.mark.parametrize("scheme", ["turbo4", "q8_0", "f16"])
@pytest.mark.parametrize("where", ["one channel", "all channels", "a key of the window"])
def test_nan_stays_nan(isa, scheme, where):
    q, k, v = vectors(0, 1, 4, 1, 64), vectors(1, 1, 2, 200, 64), vectors(2, 1, 2, 200, 64)
    q[..., 0 if where == "one channel" else slice(None)] = float("nan")
    store = filled({"name": "mine", "k": scheme, "v": scheme, "window": 30}, k, v, 199, 4)
    if where == "a key of the window":
        q = vectors(0, 1, 4, 1, 64)
        store.k.tail[:, :, -3, 5] = float("nan")
    assert bool(store.attention.fn(q, store.k.view(), store.v.view(), 199, 0.125).isnan().all())


@pytest.mark.parametrize("form", ["native", "native_fast"])
@pytest.mark.parametrize(
    ("scheme", "part"), [("turbo4", "norms"), ("q8_0", "scales"), ("q4_1", "scales"), ("q4_1", "minima"), ("f16", "values")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_reach_what_the_reference_says(isa, form, scheme, part, value):
    if (scheme, form) == ("f16", "native_fast"):
        pytest.skip("values in float16 have no fast form")
    q, k, v = vectors(0, 1, 4, 1, 64), vectors(1, 1, 2, 200, 64), vectors(2, 1, 2, 200, 64)
    store = filled(scheme, k, v, 199, 4, form=form)
    store.v.view().stored()[part][:, 1, 70, ..., 0] = value
    given = (q, store.k.view(), store.v.view(), 199, 0.125)
    got, truth = store.attention.fn(*given), reference.attend(*given)
    assert bool((~truth.isfinite()).any())
    assert torch.equal(got.isfinite(), truth.isfinite())


def test_nan_of_a_whole_task_is_not_lost(isa):
    store = filled("f32", vectors(1, 1, 1, 200, 64), vectors(2, 1, 1, 200, 64), 199, 2)
    k, v, q = store.k.view(), store.v.view(), vectors(0, 1, 2, 1, 64)
    k.stored()["values"][:, :, :64] = float("nan")
    assert bool(switched(Switches(split=64), q, k, v, 199, 0.125).isnan().all())


def test_bounds_that_reach_beyond_a_query_need_their_tail():
    k = vectors(1, 1, 1, 20, 64)
    store = filled("turbo4", k, k, 16, 1)
    short = dataclasses.replace(store.k.view(), tail=k[:, :, :0], tail_start=20)
    with pytest.raises(EvidenceError, match="attend/native refused its arguments"):
        store.attention.fn(vectors(0, 1, 1, 4, 64), short, store.v.view(), 16, 0.125)


def _floats(view):
    held = {name: x.float() for name, x in view.stored().items()}
    return dataclasses.replace(view, stored=lambda: held)


def _one_sequence(view):
    held = {name: x[:1] for name, x in view.stored().items()}
    return dataclasses.replace(view, stored=lambda: held)


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize(
    "change",
    [
        lambda q, view: (q[..., :32].contiguous(), view),
        lambda q, view: (q[:1], view),
        lambda q, view: (q, _floats(view)),
        lambda q, view: (q, _one_sequence(view)),
        lambda q, view: (q, dataclasses.replace(view, bounds=view.bounds[:1])),
        lambda q, view: (q, dataclasses.replace(view, tail=view.tail[..., :32])),
        lambda q, view: (q, dataclasses.replace(view, tail=view.tail[:, :1])),
        lambda q, view: (q, dataclasses.replace(view, sinks=torch.zeros(2, 2, 0, 32))),
    ],
    ids=["head_dim", "batch", "types", "sequences", "bounds", "tail", "heads", "sinks"],
)
def test_shapes_and_types_that_the_library_cannot_see_are_refused(side, change):
    store = filled("turbo4", vectors(1, 2, 2, 100, 64), vectors(2, 2, 2, 100, 64), 98, 4)
    views, q = {"k": store.k.view(), "v": store.v.view()}, vectors(0, 2, 4, 2, 64)
    q, views[side] = change(q, views[side])
    with pytest.raises(EvidenceError, match="attend/native refused its arguments"):
        store.attention.fn(q, views["k"], views["v"], 98, 0.125)


@pytest.mark.parametrize(
    ("switches", "softcap"),
    [(Switches(split=2**63 - 1), None), (Switches(ahead=2**40), None), (Switches(), float("nan")), (Switches(), -1.0)],
)
def test_numbers_beyond_reason_are_refused(switches, softcap):
    store = filled("turbo4", vectors(1, 1, 2, 100, 64), vectors(2, 1, 2, 100, 64), 99, 4)
    with pytest.raises(EvidenceError, match="attend/native refused its arguments"):
        switched(switches, vectors(0, 1, 4, 1, 64), store.k.view(), store.v.view(), 99, 0.125, softcap)


@pytest.mark.parametrize("tokens", [0, 99])
@pytest.mark.parametrize("field", [("levels", None), ("bits", 9), ("arrangement", 7), ("group", 0), ("value", 9), ("unit", 0)], ids=str)
def test_a_format_is_checked_whether_anything_is_packed_or_not(monkeypatch, tokens, field):
    policy = {"name": "mine", "k": "turbo4", "v": "turbo4", "window": 100 - tokens}
    store = filled(policy, vectors(1, 1, 2, 100, 64), vectors(2, 1, 2, 100, 64), 99, 4)
    given, describe = (vectors(0, 1, 4, 1, 64), store.k.view(), store.v.view(), 99, 0.125), packed.describe

    def changed(*args, **more):
        form = describe(*args, **more)
        fields = type(form.fields).from_buffer_copy(form.fields)
        setattr(fields, *field)
        return dataclasses.replace(form, fields=fields)

    store.attention.fn(*given)
    monkeypatch.setattr(packed, "describe", changed)
    with pytest.raises(EvidenceError, match="attend/native refused its arguments"):
        store.attention.fn(*given)


def test_a_scale_per_head_must_be_there_for_every_head():
    codec = Fp8("e4m3", "head").calibrate(vectors(1, 1, 2, 64, 64))
    x = vectors(2, 1, 2, 40, 64)
    arrays, three = codec.encode(x), {name: torch.cat([part, part[:, :1]], 1) for name, part in codec.encode(x).items()}
    form = decode.OP.resolve(codec, "native").fn
    assert torch.allclose(form(codec, arrays, 64, x), codec.decode(arrays, 64, torch.float32))
    with pytest.raises(EvidenceError, match=r"decode/native refused its arguments: codes uint8 \[1, 3, 40, 64\]"):
        form(codec, three, 64, x)
    view = attend.View(None, lambda: x, 40, x[:, :, :0], 40, [40], codec=codec, stored=lambda: arrays)
    wide = dataclasses.replace(view, tail=torch.zeros(1, 3, 0, 64), stored=lambda: three)
    fn = attend.OP.resolve(codec, "native").fn
    assert bool(fn(vectors(0, 1, 4, 1, 64), view, view, 39, 0.125).isfinite().all())
    with pytest.raises(EvidenceError, match="attend/native refused its arguments"):
        fn(vectors(0, 1, 3, 1, 64), wide, wide, 39, 0.125)


def test_a_library_of_another_version_is_refused(monkeypatch):
    try:
        with monkeypatch.context() as patch:
            patch.setattr(native, "abi", lambda: 1)
            native.library.cache_clear()
            with pytest.raises(OSError, match="is of another version than this code: build it again"):
                native.library()
            patch.setattr(native, "path", lambda: Path(torch.__file__).parent / "lib" / "libshm.so")
            with pytest.raises(OSError, match="is of another version than this code: build it again"):
                native.library()
    finally:
        native.library.cache_clear()


def test_vectors_that_are_too_long_are_refused():
    side = {"codec": "codebook", "rotation": "hadamard_signed", "pad": 1024}
    shape = Shape("llama", 64, "float32", 1, 1)
    store = Store(read({"name": "mine", "k": side, "v": side}), shape, TorchArrays())
    assert store.attention.impl == "torch"
    assert "1024 values per vector are more than 512" in store.attention.refused["native"]


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ConfigError, match="TQBENCH_ISA=sse9: there is no such instruction set"):
        native.use("sse9")
