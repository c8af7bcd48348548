"""Projection onto learned components: every form against one vector at a time in float64, in every instruction set."""

import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.kernels import decode, encode, native, project
from tqbench.testing.samples import gaussian, strided

built = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
SIZES = [(8, 8, 1), (40, 24, 1), (64, 128, 3), (80, 8, 2), (100, 16, 1), (128, 40, 2)]  # head_dim, section, heads


def learned(head_dim, section, heads, **fields):
    turn = gaussian(head_dim, head_dim, seed=1) * torch.logspace(0, -3, head_dim)[:, None]
    codec = KvtcLite(section=section, **fields).calibrate(gaussian(1, heads, 300, head_dim, seed=2) @ turn + 0.3)
    return codec, gaussian(2, heads, 2 * section, head_dim, seed=3) @ turn + 0.3


def forms(op, codec):
    return {impl.name: impl.load() for impl in op.impls if impl.refuses(codec, Place()) is None}


@pytest.mark.parametrize("bits", [0.3, 2.5, 12])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_form_is_the_loop(size, bits):
    codec, x = learned(*size, bits=bits)
    there, back = forms(project.PROJECT, codec), forms(project.UNPROJECT, codec)
    rows = there["reference"](codec, x)
    assert rows.shape == (2, size[2], 2, codec.active(), size[1])
    y = back["reference"](codec, rows, size[0])
    for name in there:
        got = there[name](codec, x)
        assert (got != rows).double().mean() < 1e-4, name  # sums in double, rounded once: only a tie falls otherwise
        assert torch.allclose(got, rows, rtol=0, atol=1e-6 * float(rows.abs().max())), name
        assert (back[name](codec, rows, size[0]) - y).norm() <= size[0] ** 0.5 * 2**-23 * y.norm(), name


@built
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_instruction_set(isa, size):
    codec, x = learned(*size, bits=3)
    rows = forms(project.PROJECT, codec)["torch"](codec, x)
    got = forms(project.PROJECT, codec)["native"](codec, x)
    assert (got != rows).double().mean() < 1e-4
    back = forms(project.UNPROJECT, codec)
    truth = back["torch"](codec, rows, size[0])
    assert (back["native"](codec, rows, size[0]) - truth).norm() <= size[0] ** 0.5 * 2**-23 * truth.norm()


@built
def test_all_components_come_back():
    """With bits for every component the projection loses nothing but rounding."""
    codec, x = learned(64, 16, 2, bits=16)
    assert codec.active() == 64
    back = forms(project.UNPROJECT, codec)["native"](codec, forms(project.PROJECT, codec)["native"](codec, x), 64)
    assert (back - x).norm() <= 64**0.5 * 2**-23 * x.norm()


@built
def test_a_section_is_projected_the_same_wherever_it_lies():
    codec, x = learned(64, 16, 3, bits=3)
    run = forms(project.PROJECT, codec)["native"]
    whole = run(codec, x)
    for unit in range(2):
        assert torch.equal(run(codec, x[:, :, 16 * unit : 16 * unit + 16])[:, :, 0], whole[:, :, unit])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(codec, x), whole)
    finally:
        torch.set_num_threads(before)


@built
def test_views_empty_tensors_and_nonsense():
    codec, x = learned(64, 16, 3, bits=3)
    there, back = forms(project.PROJECT, codec)["native"], forms(project.UNPROJECT, codec)["native"]
    rows = there(codec, x)
    assert torch.equal(there(codec, strided(x)), rows)
    assert torch.equal(there(codec, x.transpose(1, 2).contiguous().transpose(1, 2)), rows)
    assert torch.equal(back(codec, strided(rows), 64), back(codec, rows, 64))
    assert there(codec, x[:, :, :0]).shape == (2, 3, 0, codec.active(), 16)
    assert back(codec, rows[:, :, :0], 64).shape == (2, 3, 0, 64)
    with pytest.raises(Unsupported, match="3 groups of 1 heads, and 2 are given"):
        there(codec, x[:, :2])
    for bad in (x.double(), x[:, :, :-1], x[..., :32]):
        with pytest.raises(EvidenceError, match="project/native"):
            there(codec, bad)
    with pytest.raises(EvidenceError, match="project/native"):
        back(codec, rows, 32)


def test_other_codecs_are_refused():
    for name in ("native", "torch", "reference"):
        with pytest.raises(Unsupported, match="not kvtc_lite"):
            project.PROJECT.resolve(Block(), name)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_encode_is_the_codecs(isa, size, dtype):
    codec, x = learned(*size, bits=3.75)
    x = x.to(dtype)
    expected, got = codec.encode(x), encode.OP.resolve(codec, "native").fn(codec, x)
    assert {name: (a.shape, a.dtype) for name, a in got.items()} == {name: (a.shape, a.dtype) for name, a in expected.items()}
    off = [float((got[name] != expected[name]).double().mean()) for name in expected]
    assert max(off) < 1e-3, off
    truth = codec.decode(expected, size[0], torch.float32)
    back = decode.OP.resolve(codec, "native").fn(codec, expected, size[0], x)
    assert (back - truth).norm() <= size[0] ** 0.5 * 2**-23 * truth.norm()


@built
def test_what_cannot_be_encoded_is_refused_in_the_references_words():
    codec, x = learned(64, 16, 2, bits=3.75)
    run = encode.OP.resolve(codec, "native").fn
    for bad in (float("nan"), float("inf"), -float("inf"), 1e30):
        spoiled = x.clone()
        spoiled[-1, -1, -1, -1] = bad
        with pytest.raises(Unsupported, match="NaN or infinity" if abs(bad) != 1e30 else "overflow"):
            run(codec, spoiled)
    with pytest.raises(Unsupported, match="16 tokens together"):
        run(codec, x[:, :, :9])
    with pytest.raises(Unsupported, match="must be calibrated"):
        run(KvtcLite(section=16), x)
