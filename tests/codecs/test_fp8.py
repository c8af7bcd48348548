"""Eight-bit floats against torch's own casts, value by value, and vLLM's formula in NumPy."""

import numpy as np
import pytest
import torch

from tqbench.codecs.fp8 import Fp8
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset

CASTS = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}
FORMATS = list(CASTS)


def codes(x, form):
    return Fp8(form).encode(x[None, None, None])["codes"].flatten()


def values(x, codec):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_every_float16_is_cast_as_torch_casts_it(form):
    dtype, largest = CASTS[form]
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    x = x[x.abs() <= largest]
    assert torch.equal(codes(x, form), x.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("form", FORMATS)
def test_ties_and_their_neighbours_are_cast_as_torch_casts_them(form):
    dtype, _ = CASTS[form]
    grid = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    grid = grid[grid.isfinite()].sort().values
    middle = (grid[1:] + grid[:-1]) / 2
    x = torch.cat([grid, middle, *(torch.nextafter(middle, torch.tensor(to)) for to in (-1e9, 1e9))])
    assert torch.equal(codes(x, form), x.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("form", FORMATS)
def test_every_code_is_decoded_as_torch_decodes_it(form):
    dtype, _ = CASTS[form]
    every = torch.arange(256, dtype=torch.uint8)
    theirs = every.view(dtype).double()
    ours = Fp8(form).dequantize({"codes": every}, torch.float64)
    assert torch.equal(ours[theirs.isfinite()], theirs[theirs.isfinite()])


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_too_large_becomes_the_largest(form):
    largest = CASTS[form][1]
    x = torch.tensor([largest, largest * 1.01, largest * 2, 1e30, -1e30])[None, None, None]
    assert values(x, Fp8(form)).flatten().tolist() == [largest] * 4 + [-largest]


def test_float64_is_not_rounded_to_float32_first():
    """1.0625 is half way between 1 and 1.125. A little more goes up, but in float32 the little is lost and the tie goes to even, down."""
    x = torch.tensor([1.0625, 1.0625 + 2**-40, 1.1875, 1.1875 - 2**-40], dtype=torch.float64)[None, None, None]
    assert values(x, Fp8("e4m3")).flatten().tolist() == [1.0, 1.125, 1.25, 1.125]
    assert x.to(torch.float8_e4m3fn).double().flatten()[1] == 1.0


def test_bytes_by_hand():
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 2**-9, 448.0])  # sign, 4 bits of exponent with bias 7, 3 of mantissa
    assert codes(x, "e4m3").tolist() == [0x00, 0x80, 0x38, 0xB8, 0x01, 0x7E]
    x = torch.tensor([1.0, -1.5, 2**-16, 57344.0])  # 5 bits of exponent with bias 15, 2 of mantissa
    assert codes(x, "e5m2").tolist() == [0x3C, 0xBE, 0x01, 0x7B]


X = np.random.default_rng(0).standard_normal((2, 3, 16, 64)).astype(np.float32) * np.float32([[[1]], [[30]], [[2000]]])


@pytest.mark.parametrize("form", FORMATS)
def test_a_scale_per_token_and_head_is_vllms(form):
    dtype, largest = CASTS[form]
    scale = np.maximum(np.abs(X).max(-1, keepdims=True) / np.float32(largest), np.float32(1e-6))
    scaled = torch.from_numpy(X * (np.float32(1) / scale)).clamp(-largest, largest)
    packed = Fp8(form, "token_head").encode(torch.from_numpy(X))
    assert np.array_equal(packed["scales"].numpy(), scale)
    assert torch.equal(packed["codes"], scaled.to(dtype).view(torch.uint8))


def test_the_largest_value_of_a_token_is_kept():
    decoded = values(torch.from_numpy(X), Fp8("e4m3", "token_head")).numpy()
    assert np.allclose(np.abs(decoded).max(-1), np.abs(X).max(-1), rtol=1e-6)


def test_the_scale_of_a_head_is_learned_and_larger_values_saturate():
    codec = Fp8("e4m3", "head").calibrate(torch.from_numpy(X[:1]))
    amax = np.abs(X[0]).max((1, 2))
    assert np.array_equal(codec.learned["scale"].numpy(), amax / np.float32(448))
    decoded = values(torch.from_numpy(X[1:] * 10), codec).numpy()
    assert np.allclose(np.abs(decoded).max((0, 2, 3)), amax)
    within = values(torch.from_numpy(X[:1]), codec).numpy()
    assert (np.abs(within - X[:1]) <= np.abs(X[:1]) / 16 + amax[:, None, None] * 2**-9 / 448).all()  # half a step of three bits


def test_a_static_scale_must_be_calibrated():
    assert preset("fp8_e4m3_static").k.codec.tags.calibrated
    with pytest.raises(Unsupported, match="calibrated"):
        Fp8("e4m3", "head").encode(torch.ones(1, 3, 1, 64))


@pytest.mark.parametrize(
    ("scale", "sizes"),
    [
        ("none", {64: 64, 80: 80, 96: 96, 128: 128, 256: 256}),
        ("token_head", {64: 68, 80: 84, 96: 100, 128: 132, 256: 260}),
        ("head", {64: 64, 80: 80, 96: 96, 128: 128, 256: 256}),
    ],
)
def test_bytes_per_vector(scale, sizes):
    for form in FORMATS:
        assert {head_dim: Fp8(form, scale).layout(head_dim).nbytes for head_dim in sizes} == sizes


def test_the_wider_mantissa_loses_less_where_the_range_suffices():
    for what in (X[:, :1], np.random.default_rng(1).standard_t(3, (2, 1, 16, 64)).astype(np.float32)):
        x = torch.from_numpy(what)
        e4m3, e5m2 = (float((values(x, Fp8(form, "token_head")) - x).square().mean()) for form in FORMATS)
        assert e4m3 < e5m2 / 3  # a bit of mantissa is a factor of four
