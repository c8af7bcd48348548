"""The native decode against the reference: 8-bit blocks bit for bit, on every scale there is."""

import ctypes

import pytest
import torch

from tqbench.codecs.block import BLOCK, Block
from tqbench.codecs.blocks.wrap import Interleaved
from tqbench.codecs.fp8 import Fp8
from tqbench.codecs.qjl import QJL
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.kernels import decode, native
from tqbench.kernels import packed as native_packed
from tqbench.kernels.decode import reference

CODEC = Block(8)
built = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def packed(blocks):
    """Every half-precision scale in turn, and codes that use all of a byte."""
    scales = torch.arange(blocks, dtype=torch.int32).to(torch.int16).view(torch.float16)
    codes = (torch.arange(blocks * BLOCK) * 37 % 256).to(torch.uint8).view(torch.int8)
    return {"codes": codes.view(1, 1, -1, BLOCK), "scales": scales.view(1, 1, -1, 1)}


def bits(x):
    return x.nan_to_num(nan=12345.0).view(torch.int32)  # which of the many NaNs it is does not matter


@built
@pytest.mark.parametrize("threads", [1, 2])
def test_every_scale_times_every_code(threads):
    given, before = packed(1 << 16), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        choice = decode.OP.resolve(CODEC, "native")
        got = choice(CODEC, given, BLOCK, torch.empty(0))
    finally:
        torch.set_num_threads(before)
    assert choice.impl == "native"
    assert torch.equal(bits(got), bits(reference.decode(CODEC, given, BLOCK, torch.empty(0))))


@built
@pytest.mark.parametrize("codec", [CODEC, Interleaved(CODEC)], ids=["block", "interleaved"])
@pytest.mark.parametrize("tokens", [0, 1, 3, 1000])
def test_any_length_and_channel_order(codec, tokens):
    x = torch.randn(2, 3, tokens, 96, generator=torch.Generator().manual_seed(0))
    given = codec.encode(x)
    got = decode.OP.resolve(codec, "native")(codec, given, 96, x)
    assert torch.equal(got, reference.decode(codec, given, 96, x))


@built
def test_arrays_that_do_not_belong_together_are_refused():
    given = packed(4)
    with pytest.raises(EvidenceError, match=r"refused its arguments: codes int8 \[1, 1, 4, 32\], scales float16 \[1, 1, 3, 1\]"):
        decode.OP.resolve(CODEC, "native")(CODEC, given | {"scales": given["scales"][:, :, :3]}, BLOCK, torch.empty(0))


@built
def test_the_library_checks_its_arguments():
    form, arrays = native_packed.describe(CODEC, BLOCK), packed(4)
    size = 4 * BLOCK
    out = torch.empty(size)

    def status(batch=1, heads=1, size=size, **changes):
        given, _ = form.packed(arrays)
        for name, value in changes.items():
            setattr(given, name, value)
        return native.library().tqbench_decode(ctypes.byref(given), batch, heads, out.data_ptr(), size)

    assert status() == 0
    assert native.library().tqbench_decode(None, 1, 1, out.data_ptr(), out.numel()) == 2
    assert status(batch=0) == status(heads=2) == status(size=size - 1) == status(units=5) == status(units=-1) == 2
    assert status(codes=native_packed.CArray()) == status(scales=native_packed.CArray()) == 2
    for field, value in {"dim": 4096, "bits": 9, "arrangement": 7, "value": 9, "scale": 9, "group": 0, "unit": 0}.items():
        fields = type(form.fields).from_buffer_copy(form.fields)
        setattr(fields, field, value)
        assert status(format=fields) == 2, field


@pytest.mark.parametrize(
    ("codec", "place", "reason"),
    [
        (CODEC, Place(device="cuda:0"), "runs on the CPU in float32, not on cuda:0"),
        (CODEC, Place(dtype="float64"), "in float64"),
        pytest.param(QJL(), Place(), "codec 'qjl' has no native form", marks=built),
        pytest.param(Fp8(scale="head"), Place(), "codec 'fp8' has not been calibrated", marks=built),
    ],
    ids=["device", "dtype", "codec", "calibration"],
)
def test_what_native_cannot_do_is_said(codec, place, reason):
    with pytest.raises(Unsupported, match=reason):
        decode.OP.resolve(codec, "native", place)
    choice = decode.OP.resolve(codec, "auto", place)
    assert choice.impl == ("triton" if place.device == "cuda:0" else "reference")
    assert reason in choice.refused["native"]


@pytest.mark.parametrize(
    ("dtype", "computed"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_the_reference_computes_in_float32_and_in_float64_for_the_oracle(dtype, computed):
    x = torch.ones(1, 1, 1, 64, dtype=dtype)
    assert reference.decode(CODEC, CODEC.encode(x), 64, x).dtype == computed
