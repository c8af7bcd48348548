"""The Triton kernels, in the interpreter where there is no GPU, against the reference in float64: formats, mixes, head sizes, lengths, and
every switch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tqbench.bench.contender import relative
from tqbench.bench.convert import CODES_OFF, DECODED_OFF, codes_off
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.store import Store
from tqbench.codecs.affine import Affine
from tqbench.codecs.block import Block
from tqbench.codecs.blocks.wrap import Rotated
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.core.presets import preset, presets, read
from tqbench.core.session import Terms
from tqbench.kernels import attend, decode, encode, triton
from tqbench.kernels.attend import reference
from tqbench.testing.samples import gaussian, strided

pytestmark = pytest.mark.skipif(not triton.runs(), reason=triton.missing() or "no CUDA device, and Triton was not told to interpret")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT, HALVES = 2e-6, attend.HALVES  # relative error in float32, and in 16 bits
MIXES = ("q8_0/turbo3", "turbo3/q4_1", "f16/turbo2", "kivi2/turbo4", "turbo4/fp8_e5m2", "q5_1/mlx4_g64", "nvfp4/q8_0")


def filled(scheme, k, v, start, heads, reach=None):
    """A store in which everything before `start` has been attended, and what follows has been appended."""
    shape = Shape("llama", k.shape[-1], "float32", k.shape[1], heads)
    store = Store(read(scheme), shape, TorchArrays(DEVICE), Terms("attend=torch"), Layer(reach=reach))
    if start:
        store.append(k[:, :, :start], v[:, :, :start])
        store.k.settle()
        store.v.settle()
        store.queries = start
    store.append(k[:, :, start:], v[:, :, start:])
    return store


def test_an_interpreter_that_cannot_work_with_numpy_is_not_there(monkeypatch):
    """It fails at the first loop over a length that a kernel has loaded, with a message of NumPy's."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr(triton, "version", found.__getitem__)
    assert triton.missing() == "the interpreter of Triton 3.6.0 cannot work with NumPy 2.4.1 (pip install 'triton>=3.7')"
    assert not triton.runs() or torch.cuda.is_available()
    for package, version in (("numpy", "2.3.5"), ("triton", "3.7.1")):
        with monkeypatch.context() as patched:
            patched.setitem(found, package, version)
            assert triton.missing() is None
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton.missing() is None  # compiled, it does


def wide(view):
    return dataclasses.replace(view, packed=lambda: view.packed().double())


def error(scheme, *, tokens, head_dim, share=3, queries=1, dtype=torch.float32, reach=None, softcap=None, switches=None, batch=1):
    from tqbench.kernels.attend import _triton

    k, v = (gaussian(batch, 2, tokens, head_dim, seed=s).to(DEVICE) for s in (1, 2))
    q = gaussian(batch, 2 * share, queries, head_dim, seed=3).to(DEVICE, dtype)
    store = filled(scheme, k, v, tokens - queries, 2 * share, reach)
    views, start = (store.k.view(), store.v.view()), store.queries - store.k.base
    if dtype != torch.float32:
        views = tuple(dataclasses.replace(view, tail=view.tail.to(dtype)) for view in views)
    out = _triton.switched(switches or _triton.Switches(), q, *views, start, head_dim**-0.5, softcap)
    truth = reference.attend(q.double(), *map(wide, views), start, head_dim**-0.5, softcap)
    assert out.dtype == dtype
    assert out.shape == q.shape
    return float((out.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("scheme", MIXES)
def test_each_side_has_its_own_format(scheme):
    assert error(scheme, tokens=130, head_dim=64, queries=3) < EXACT


@pytest.mark.parametrize(("scheme", "head_dim"), [("turbo4_pad128", 80), ("q8_0", 96), ("turbo4", 128), ("turbo3", 256), ("fp8_e4m3", 80)])
def test_head_sizes_that_are_no_power_of_two_and_large_ones(scheme, head_dim):
    assert error(scheme, tokens=70, head_dim=head_dim) < EXACT


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 127, 129])
def test_every_length(tokens):
    assert error("turbo4", tokens=tokens, head_dim=64) < EXACT


@pytest.mark.parametrize("share", [1, 2, 3, 7, 17])
def test_any_number_of_query_heads_shares_a_key(share):
    assert error("turbo4", tokens=40, head_dim=64, share=share, queries=2) < EXACT


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_however_often_the_context_is_split(splits):
    from tqbench.kernels.attend._triton import Switches

    assert error("turbo4", tokens=200, head_dim=64, batch=2, switches=Switches(splits=splits)) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", ["turbo4", "turbo3", "q8_0", "kivi2", "fp8_e5m2", "vllm_3bit_nc", "mlx4_g64"])
def test_sixteen_bits_round_once_more(scheme, dtype):
    rounding = torch.finfo(dtype).eps / 2  # of the output
    assert error(scheme, tokens=100, head_dim=64, dtype=dtype) < HALVES + rounding


def test_windows_sinks_and_capped_scores_are_merged_exactly():
    mapping = {"name": "w", "k": {"codec": "block", "window": 40, "flush": 7}, "v": {"codec": "affine", "bits": 4, "window": 9}, "sinks": 4}
    assert error(mapping, tokens=150, head_dim=64, queries=20) < EXACT
    assert error(mapping, tokens=150, head_dim=64, queries=20, reach=60, softcap=3.0) < EXACT


def test_a_mean_that_is_added_to_keys_and_values_reaches_scores_and_sums():
    """What is added to every packed vector is no part of the levels."""
    from tqbench.cache.calibration import Calibration, Piece
    from tqbench.kernels.attend import _triton

    side = {"codec": "codebook", "bits": 4, "rotation": "hadamard", "center": True}
    k, v = (gaussian(1, 2, 90, 64, seed=s).to(DEVICE) + 2 for s in (1, 2))
    calibration = Calibration([[Piece(k, v, 0)]])
    shape = Shape("llama", 64, "float32", 2, 4)
    window = {"name": "c", "k": side | {"window": 16}, "v": side | {"window": 16}}
    store = Store(read(window), shape, TorchArrays(DEVICE), Terms("attend=torch", calibration=calibration))
    store.append(k, v)
    q = gaussian(1, 4, 90, 64, seed=3).to(DEVICE)
    views = store.k.view(), store.v.view()
    out, truth = _triton.attend(q, *views, 0, 0.125), reference.attend(q.double(), *map(wide, views), 0, 0.125)
    assert float((out.double() - truth).norm() / truth.norm()) < EXACT


@pytest.mark.parametrize(
    ("change", "most"),
    [({"folded": False}, HALVES), ({"looked_up": True}, HALVES), ({"narrow": True}, 5e-3), ({"integer": True}, 4e-2)],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_switches_compute_the_same_within_what_they_round(change, most):
    from tqbench.kernels.attend._triton import Switches

    found = error("turbo4", tokens=100, head_dim=64, dtype=torch.float16, switches=Switches(**change))
    assert found < most
    if change != {"looked_up": True}:
        plain = error("turbo4", tokens=100, head_dim=64, dtype=torch.float16)
        assert found != plain, "the switch changed nothing"


@pytest.mark.parametrize("name", ["turbo4", "turbo4_fork", "turbo3", "q8_0", "q5_1", "fp8_e4m3", "mlx4_g64"])
def test_a_store_is_packed_where_it_lies(name, monkeypatch):
    """What the form writes into the buffers of a store is what it hands out else, beside what lay there before."""
    monkeypatch.setattr(triton, "refuses", lambda place: triton.missing())
    x = [gaussian(2, 2, 96, 64, seed=s).to(DEVICE) for s in (1, 2)]
    store = Store(read(name), Shape("llama", 64, "float32", 2, 4), TorchArrays(DEVICE), Terms("encode=triton,attend=torch", quiet=True))
    for first, last in ((0, 64), (64, 65), (65, 96)):
        for buffer in (*store.k.buffers.values(), *store.v.buffers.values()):
            buffer[:, :, store.k.units :] = 1  # what lay there before
        store.append(*(side[:, :, first:last] for side in x))
        for side in (store.k, store.v):
            side.unattended()
        store.queries = last
    for side, given in zip((store.k, store.v), x, strict=True):
        whole = encode.OP.resolve(side.codec, "triton").fn(side.codec, given[:, :, : side.units * side.codec.unit])
        assert side.units > 0
        assert side.kernels.encode.calls > 0
        for part in whole:
            assert torch.equal(side._packed()[part], whole[part]), (name, part)


def test_sparse_values_say_what_they_dropped():
    from tqbench.kernels.attend import _triton

    k, v = (gaussian(1, 1, 256, 64, seed=s).to(DEVICE) for s in (1, 2))
    q = 5 * gaussian(1, 2, 1, 64, seed=3).to(DEVICE)
    k[:, :, 64:] = k[:, :, 64:] * 0.3  # what matters is in the first tile
    store = filled("turbo4", k, v, 255, 2)
    views = store.k.view(), store.v.view()
    assert _triton.switched(_triton.Switches(sparse=0.5), q, *views, 255, 0.125).isfinite().all(), "nobody need ask what was dropped"
    dropped = torch.full((1, 2, 1), -1.0, device=DEVICE)
    switches = _triton.Switches(sparse=0.5, splits=1, dropped=dropped)
    out, whole = (_triton.switched(s, q, *views, 255, 0.125) for s in (switches, _triton.Switches(splits=1)))
    assert 0 < float(dropped.min()) <= float(dropped.max()) < 0.5
    off = (out - whole).norm(dim=-1) / whole.norm(dim=-1)
    assert 1e-5 < float(off.max()) < 4 * float(dropped.max()), "dropped weights change the result by about as much"


def test_nothing_attends_nothing():
    from tqbench.kernels.attend import _triton

    k = gaussian(1, 2, 8, 64).to(DEVICE)
    store = filled("turbo4", k, k, 7, 4)
    q = torch.empty(1, 4, 0, 64, device=DEVICE)
    assert _triton.attend(q, store.k.view(), store.v.view(), 8, 1.0).shape == q.shape


def test_other_arrays_than_the_codec_packs_are_refused():
    from tqbench.kernels.attend import _triton

    k = gaussian(1, 2, 40, 64).to(DEVICE)
    view = filled("turbo4", k, k, 39, 4).k.view()
    wrong = dataclasses.replace(view, stored=lambda: {name: x.to(torch.int32) for name, x in view.stored().items()})
    with pytest.raises(EvidenceError, match="refused its arguments"):
        _triton.attend(gaussian(1, 4, 1, 64).to(DEVICE), wrong, view, 39, 1.0)
    with pytest.raises(EvidenceError, match=r"with 1 bounds"):
        _triton.attend(gaussian(1, 4, 2, 64).to(DEVICE), view, view, 38, 1.0)


@pytest.mark.parametrize("op", [attend.OP, decode.OP, encode.OP], ids=lambda op: op.name)
def test_on_a_processor_it_is_refused_and_never_picked(op):
    codec = read("turbo4").k.codec
    with pytest.raises(Unsupported, match="runs on CUDA"):
        op.resolve(codec, "triton")
    assert op.resolve(codec, "auto").impl != "triton"


@pytest.mark.parametrize(
    ("scheme", "head_dim"),
    [
        ("turbo4", 64),
        ("turbo4_pad128", 96),
        ("turbo3", 256),
        ("q5_0", 96),
        ("q4_1", 128),
        ("fp8_e4m3", 80),
        ("vllm_int8_per_token_head", 96),
        ("mlx4_g64", 64),
        ("iq4_nl", 96),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_encode_takes_the_models_dtype(scheme, head_dim, dtype):
    from tqbench.kernels.encode import _triton

    codec = read(scheme).k.codec
    x = gaussian(2, 2, 33, head_dim).to(DEVICE, dtype).transpose(1, 2).contiguous().transpose(1, 2)
    mine, theirs = _triton.encode(codec, x), codec.encode(x)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert mine[name].dtype == expected.dtype
        assert int((mine[name] != expected).sum()) <= 2 + 1e-3 * expected.numel()


CHANNELS = [
    *(Affine(bits, 32, "channel", form=form) for bits in (2, 3, 4, 8) for form in ("affine", "symmetric")),
    Affine(3, 64, "channel", encode_with="exact", rounding="half_up", kept="float32"),
]
WORDS = [MlxAffine(bits, 32) for bits in (2, 3, 4, 5, 6, 8)] + [MlxAffine(4, 64, "bfloat16"), MlxAffine(3, 32, "float32")]
VALUES = {
    "gaussian": 3 * gaussian(2, 2, 64, 128),
    "constant in each vector": (0.6 + torch.arange(64) ** 2 / 97)[:, None].expand(1, 1, 64, 128),  # steps of 1e-7: millions of them
    "tiny": 1e-9 * gaussian(1, 1, 64, 128),
    "zero": torch.zeros(1, 1, 64, 128),
    "ties": (gaussian(1, 1, 64, 128) * 3).round() / 2,
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("codec", [*CHANNELS, *WORDS, Block(4, "nonlinear")], ids=lambda codec: f"{codec.name}{codec.bits}{codec.unit}")
def test_what_is_not_rotated_is_packed_bit_for_bit(codec, values):
    """Every operation is the reference's own; on a GPU torch divides by a number as it multiplies with its inverse, which this does not."""
    from tqbench.kernels.encode import _triton

    x = VALUES[values][..., :96] if codec.name == "affine" else VALUES[values]
    for given in (x.to(DEVICE), strided(x).to(DEVICE)):
        mine, theirs = _triton.encode(codec, given), codec.encode(x)
        assert mine.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert mine[name].dtype == expected.dtype
            assert torch.equal(mine[name].cpu(), expected), name


ROUNDED = """
import re
import torch
from tqbench.bench import ahead
from tqbench.core.presets import preset
from tqbench.kernels.encode import _triton
for name in ("q4_0", "q4_1", "mlx4_g64", "kivi4", "iq4_nl"):
    found = []
    with ahead._collected(found):
        _triton.encode(preset(name).k.codec, torch.zeros(1, 2, 64, 128, dtype=torch.bfloat16))
    for _, made in found:
        print(name, *sorted(set(re.findall(r"fma[.]rn|div[.]full|div[.]approx|rcp[.]approx|div[.]rn|add[.]f32", made.asm["ptx"]))))
"""


def test_on_a_gpu_nothing_is_rounded_less_than_by_the_reference(tmp_path):
    """The interpreter knows neither fused products nor quick divisions."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env = given | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ROUNDED], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in lines] == ["q4_0", "q4_1", "mlx4_g64", "kivi4", "iq4_nl"]
    assert all(set(found) <= {"div.rn", "add.f32"} and "div.rn" in found for _, *found in lines), lines


def test_groups_of_tokens_of_a_channel_are_whole_and_hide_nothing():
    from tqbench.kernels.encode import _triton

    codec, x = Affine(4, 32, "channel"), gaussian(1, 2, 64, 48).to(DEVICE)
    with pytest.raises(Unsupported, match="encodes 32 tokens together, got 33"):
        _triton.encode(codec, x[:, :, :33])
    assert _triton.refuses(Rotated(codec, rotation="hadamard"))
    assert _triton.encode(codec, x[:, :, :0])["codes"].shape == (1, 2, 0, 16, 48)
    x[0, 1, 40, 7], x[0, 0, 3, 5] = float("nan"), float("inf")
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter's
    found = torch.isfinite(codec.decode(_triton.encode(codec, x), 48, torch.float32)).cpu()
    expected = torch.ones_like(found)
    expected[0, 1, 32:, 7], expected[0, 0, :32, 5] = False, False
    assert torch.equal(found, expected)


def test_encode_of_no_tokens_is_empty():
    from tqbench.kernels.encode import _triton

    codec = read("turbo4").k.codec
    packed = _triton.encode(codec, torch.empty(1, 2, 0, 64, device=DEVICE))
    assert {name: x.shape for name, x in packed.items()} == {name: x.shape for name, x in codec.encode(torch.empty(1, 2, 0, 64)).items()}


def test_what_is_not_finite_is_not_hidden(monkeypatch):
    """Nothing waits for the device to look at it; what is decoded of that token is not finite either, and so is all that attends to it."""
    from tqbench.kernels.encode import _triton

    x = gaussian(1, 1, 4, 64).to(DEVICE)
    x[0, 0, 1, 3], x[0, 0, 2, 5] = float("nan"), float("inf")
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter's
    if DEVICE == "cpu":  # a GPU's maximum leaves NaN out, the interpreter's does not
        from triton.runtime import interpreter

        builder = interpreter.InterpreterBuilder
        monkeypatch.setattr(builder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
        monkeypatch.setattr(builder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))
    keys = ("mlx4_g64", "iq4_nl", "turbo4", "q8_0", "q4_0", "q4_1", "fp8_e4m3", "vllm_int8_per_token_head", "turboquant_mse3")
    largest = {"name": "m", "k": {"codec": "codebook", "bits": 4, "scale": "max_abs"}, "v": "f16"}
    codecs = {str(name): read(name).k.codec for name in (*keys, largest)} | {name: read(name).v.codec for name in ("kivi4", "vllm_3bit_nc")}
    for name, codec in codecs.items():
        back = codec.decode(_triton.encode(codec, x), 64, torch.float32)
        assert (~torch.isfinite(back)).any(-1).flatten().tolist() == [False, True, True, False], name


@pytest.mark.parametrize("scheme", ["turbo4", "q8_0"])
def test_one_key_may_tower_above_all_others_in_sixteen_bits(scheme):
    """Its value is zero, so all of the result comes from weights of a millionth."""
    from tqbench.kernels.attend import _triton

    k, v = (gaussian(1, 1, 300, 64, seed=s).to(DEVICE) for s in (1, 2))
    q = gaussian(1, 2, 1, 64, seed=3).to(DEVICE)
    q[:, 1] = q[:, 0]
    k[:, :, 0], v[:, :, 0] = q[:, 0] * (14 * 8 / q[0, 0, 0].square().sum()), 0
    store = filled(scheme, k, v, 299, 2)
    views = tuple(dataclasses.replace(view, tail=view.tail.half()) for view in (store.k.view(), store.v.view()))
    out = _triton.switched(_triton.Switches(splits=1), q.half(), *views, 299, 0.125)
    truth = reference.attend(q.half().double(), *map(wide, views), 299, 0.125)
    assert float((out.double() - truth).norm() / truth.norm()) < 2 * HALVES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [128, 256])
def test_prompts_in_sixteen_bits(dtype, head_dim):
    rounding = torch.finfo(dtype).eps / 2
    assert error("turbo4", tokens=80, head_dim=head_dim, share=4, queries=20, dtype=dtype) < HALVES + rounding


@pytest.mark.parametrize(
    ("scheme", "change"),
    [("q8_0", {"integer": True}), ("q8_0", {"looked_up": True}), ("q8_0", {"folded": False}), ("turbo4", {"narrow": True})],
)
def test_a_switch_that_would_change_nothing_is_refused(scheme, change):
    """Else its row would show the time of the kernel without it."""
    from tqbench.kernels.attend._triton import Switches

    dtype = torch.float32 if "narrow" in change else torch.float16
    with pytest.raises(Unsupported, match="attend/triton: "):
        error(scheme, tokens=40, head_dim=64, dtype=dtype, switches=Switches(**change))


# --- on a GPU alone: graphs, waits of the host, offsets that 32 bits do not hold, and every format at full size

gpu = pytest.mark.skipif(DEVICE != "cuda", reason="runs on a CUDA device, and there is none here")
HEADS, LONG = 8, 4096
STEPPED = ("turbo4", "turbo3", "q8_0", "q4_0", "kivi4", "fp8_e4m3", "vllm_int8_per_token_head", "bf16")
PACKED = (*STEPPED, "mlx4_g64", "iq4_nl", "kvtc_lite_4x", "kvtc_paper_8x")


def vectors(tokens, seed=0, dtype=torch.bfloat16, heads=HEADS):
    return gaussian(1, heads, tokens, 128, seed=seed).to(DEVICE, dtype)


def fitted(codec):
    """The codec for these heads, after it has seen others like them; what it has learned lies on the host."""
    codec = codec.spanning(HEADS)
    return codec if codec.ready else codec.calibrate(gaussian(1, HEADS, 512, 128, seed=9) * torch.logspace(0, -1, 128))


def form_of(op, codec):
    """The Triton form, or None if it does not serve the codec."""
    impl = next(impl for impl in op.impls if impl.name == "triton")
    return None if impl.refuses(codec, Place(device="cuda", dtype="bfloat16", head_dim=128)) else impl.load()


def captured(call):
    """What replays a call, and what it then puts out."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


@contextlib.contextmanager
def never_waiting():
    """torch raises where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tensors(out):
    return list(out.values()) if isinstance(out, dict) else [out]


def replayed(call, given, other):
    """A captured call puts out what the direct one does, for what lay there and for what is written there."""
    first = [x.clone() for x in tensors(call())]
    graph, out = captured(call)
    for change in (lambda: None, lambda: [x.copy_(y) for x, y in zip(given, other, strict=True)]):
        change()
        graph.replay()
        mine, theirs = [x.clone() for x in tensors(out)], tensors(call())
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(mine, first, strict=True)), "it was not done anew"


@gpu
@pytest.mark.parametrize("scheme", STEPPED)
def test_captured_attention_is_the_direct_one(scheme):
    from tqbench.kernels.attend import _triton

    store = filled(scheme, vectors(LONG, 1, torch.float32), vectors(LONG, 2, torch.float32), LONG - 1, 4 * HEADS)
    views = tuple(dataclasses.replace(view, tail=view.tail.bfloat16()) for view in (store.k.view(), store.v.view()))
    q, other = (vectors(1, seed, heads=4 * HEADS) for seed in (3, 4))
    ready = _triton.prepare(_triton.Switches(), q, *views, LONG - 1)
    replayed(partial(ready.run, q, 128**-0.5), [q], [other])


@gpu
@pytest.mark.parametrize("scheme", PACKED)
def test_captured_packing_and_unpacking_are_the_direct_ones(scheme):
    codec = fitted(preset(scheme).k.codec)
    there, back = form_of(encode.OP, codec), form_of(decode.OP, codec)
    if there is not None:
        x = vectors(256)
        replayed(partial(there, codec, x), [x], [vectors(256, 1)])
    if back is not None:
        packed, other = (codec.encode(vectors(256, seed)) for seed in (0, 1))
        replayed(partial(back, codec, packed, 128, vectors(0)), list(packed.values()), list(other.values()))
    assert there is not None or back is not None


@gpu
@pytest.mark.parametrize("scheme", PACKED)
def test_packing_and_unpacking_wait_for_nothing(scheme):
    codec, x = fitted(preset(scheme).k.codec), vectors(256)
    for op, given in ((encode.OP, (x,)), (decode.OP, (codec.encode(x), 128, x[:, :, :0]))):
        if (form := form_of(op, codec)) is not None:
            form(codec, *given)  # what is made once is made here
            with never_waiting():
                form(codec, *given)


@gpu
@pytest.mark.parametrize("scheme", STEPPED)
def test_a_decoding_step_waits_for_nothing(scheme):
    """Append, pack, attend: whether a token fits the buffers or they grow."""
    shape = Shape("qwen2", 128, "bfloat16", HEADS, 4 * HEADS)
    store = Store(read(scheme), shape, TorchArrays(DEVICE), Terms(quiet=True))
    assert store.k.kernels.encode.impl == form_named(encode.OP, store.k.codec)
    store.append(vectors(200, 1), vectors(200, 2))
    store.attend(vectors(200, 3, heads=4 * HEADS), 128**-0.5)
    steps = [[vectors(1, 10 * i + j, heads=(1, 1, 4)[j] * HEADS) for j in range(3)] for i in range(70)]
    for i, (k, v, q) in enumerate(steps):
        with never_waiting() if i >= 40 else contextlib.nullcontext():  # by then every kernel has run, KIVI's packing too
            store.append(k, v)
            out = store.attend(q, 128**-0.5)
    assert out.isfinite().all()
    store.verify()


def form_named(op, codec):
    return "reference" if form_of(op, codec) is None else "triton"


def every_codec():
    """Of all presets, with the name of one that has it."""
    schemes = [scheme for scheme in map(preset, presets()) if not scheme.peer]
    return {side.codec: scheme.name for scheme in schemes for side in (scheme.k, scheme.v)}


def compile_share(arch, share, shares):
    """Some of the kernels that `checked` needs, into Triton's cache, in a process that sees no GPU."""
    from tqbench.bench import ahead

    for codec in list(every_codec())[share::shares]:
        ready, x = fitted(codec), vectors(LONG)
        for op, given in ((encode.OP, (x,)), (decode.OP, (ready.encode(x), 128, x[:, :, :0]))):
            if (form := form_of(op, ready)) is not None:
                with ahead._collected([]) as absent:
                    absent.arch = arch
                    form(ready, *given)


@pytest.fixture(scope="module")
def compiled_before():
    """One after another they take minutes, and a GPU is lent for few. What fails here is compiled where it is needed."""
    arch, shares = "".join(map(str, torch.cuda.get_device_capability())), min(16, os.cpu_count() or 1)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_triton as t; t.compile_share(*map(int, sys.argv[1:]))"
    )
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for process in [subprocess.Popen([sys.executable, "-c", code, arch, str(i), str(shares)], env=env) for i in range(shares)]:
        process.wait()


def checked(op, judge):
    """Every codec of every preset once, and what is wrong of those that the Triton form serves."""
    wrong, count = {}, 0
    for codec, name in {fitted(codec): name for codec, name in every_codec().items()}.items():
        if (form := form_of(op, codec)) is not None:
            count += 1
            if (error := judge(form, codec, vectors(LONG))) is not None:
                wrong[name] = error
    assert count > 60
    assert not wrong


@gpu
@pytest.mark.usefixtures("compiled_before")
def test_every_preset_is_packed_as_by_its_reference():
    def judge(form, codec, x):
        payload = {part.name for part in codec.layout(128).parts if part.role == "payload"}
        error = codes_off(form(codec, x), codec.encode(x), payload)
        return error if error > CODES_OFF else None

    checked(encode.OP, judge)


@gpu
@pytest.mark.usefixtures("compiled_before")
def test_every_preset_is_unpacked_as_by_its_reference():
    def judge(form, codec, x):
        packed = codec.encode(x)
        error = relative(form(codec, packed, 128, x[:, :, :0]), codec.decode(packed, 128, torch.float64))
        return error if error > DECODED_OFF else None

    checked(decode.OP, judge)


@gpu
@pytest.mark.parametrize("scheme", [*STEPPED, *MIXES])
def test_attention_over_a_long_context(scheme):
    rounding = torch.finfo(torch.bfloat16).eps / 2
    assert error(scheme, tokens=LONG, head_dim=128, share=4, dtype=torch.bfloat16) < HALVES + rounding


@gpu
@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 48 << 30, reason="needs 48 GiB of free device memory")
def test_offsets_beyond_32_bits():
    """More than 2³¹ values, and codes of more than 2³¹ bytes; the last tokens of the last head are those that an overflow would spoil."""
    from tqbench.kernels.attend import _triton

    tokens, codec, few = (1 << 31) // (HEADS * 128) + 1000, preset("q8_0").k.codec, 64
    x = torch.randn(1, tokens, HEADS, 128, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)  # as a model has them
    packed = form_of(encode.OP, codec)(codec, x)
    assert packed["codes"].nbytes > 1 << 31
    last = {name: array[:, -1:, -few:] for name, array in packed.items()}
    assert all(torch.equal(last[name], array) for name, array in codec.encode(x[:, -1:, -few:]).items())
    unpack = form_of(decode.OP, codec)
    assert torch.equal(unpack(codec, packed, 128, x[:, :, :0])[:, -1:, -few:], unpack(codec, last, 128, x[:, :, :0]))
    tail, q = x[:, :, tokens:], vectors(1, 3, heads=HEADS)
    view = attend.View(None, lambda: None, tokens, tail, tokens, [tokens], codec=codec, stored=lambda: packed)
    out = _triton.attend(q, view, view, tokens - 1, 128**-0.5)[:, -1:]
    head = codec.decode({name: array[:, -1:] for name, array in packed.items()}, 128, torch.float64)
    truth = torch.softmax(q[:, -1:].double() @ head.mT * 128**-0.5, -1) @ head
    assert relative(out, truth) < HALVES + torch.finfo(torch.bfloat16).eps
