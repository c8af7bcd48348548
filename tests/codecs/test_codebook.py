"""The codebook codec: known distortions, known bytes, and one vector computed by hand."""

import math
import struct

import numpy as np
import pytest
import torch

from tqbench.codecs.blocks import codebooks, rotations
from tqbench.codecs.codebook import Codebook
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.scheme import preset

# Distortion of converged Lloyd–Max tables of N(0, 1), and of Gaussian vectors of 128 with each rule for the norm, relative to the signal.
LLOYD_MAX = {1: 0.36338, 2: 0.117482, 3: 0.034548, 4: 0.009501}
RAW = {2: 0.1161, 3: 0.03406, 4: 0.00935}
NORM_CORRECTED = {2: 0.1189, 3: 0.03389, 4: 0.00920}
HISTORIC = 0.01817

VECTORS = torch.randn(1, 1, 8000, 128, generator=torch.Generator().manual_seed(0))


def distortion(codec, x=VECTORS):
    y = codec.decode(codec.encode(x), x.shape[-1], torch.float32)
    return float((x - y).square().sum() / x.square().sum())


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_gaussian_tables_are_converged(bits):
    """Each level is the mean of its cell, and the distortion is the known optimum."""
    levels, bounds = codebooks.levels("gaussian", bits), codebooks.boundaries("gaussian", bits)
    edges = [-math.inf, *bounds, math.inf]
    loss = 1.0
    for level, low, high in zip(levels, edges, edges[1:], strict=False):
        mass = (math.erf(high / 2**0.5) - math.erf(low / 2**0.5)) / 2
        mean = (math.exp(-low * low / 2) - math.exp(-high * high / 2)) / (2 * math.pi) ** 0.5 / mass
        assert level == pytest.approx(mean, abs=2e-5)
        loss += mass * (level * level - 2 * level * mean)
    assert loss == pytest.approx(LLOYD_MAX[bits], rel=1e-4)


@pytest.mark.parametrize("bits", RAW)
def test_distortion_of_the_raw_norm(bits):
    assert distortion(Codebook(bits, scale="raw")) == pytest.approx(RAW[bits], rel=0.01)


@pytest.mark.parametrize("bits", NORM_CORRECTED)
def test_distortion_of_the_corrected_norm(bits):
    assert distortion(Codebook(bits)) == pytest.approx(NORM_CORRECTED[bits], rel=0.01)


@pytest.mark.parametrize("bits", NORM_CORRECTED)
def test_distortion_of_the_presets(bits):
    """The fork's tables are rounded to a group of 128 and as good."""
    assert distortion(preset(f"turbo{bits}").k.codec) == pytest.approx(NORM_CORRECTED[bits], rel=0.01)


def test_the_table_of_the_snapshot_has_twice_the_distortion():
    assert distortion(preset("turbo4_fork").k.codec) == pytest.approx(HISTORIC, rel=0.01)
    assert 1.9 < HISTORIC / NORM_CORRECTED[4] < 2.1


def test_the_corrected_norm_keeps_the_length():
    codec = Codebook(2)
    y = codec.decode(codec.encode(VECTORS), 128, torch.float32)
    assert torch.allclose(y.norm(dim=-1), VECTORS.norm(dim=-1), rtol=1e-3)  # fp16 norms


@pytest.mark.parametrize(("head_dim", "error"), [(64, 0.0330), (80, 0.0211), (96, 0.0253), (128, 0.0338)])
def test_distortion_of_padded_vectors(head_dim, error):
    assert distortion(preset("turbo3_pad128").k.codec, VECTORS[..., :head_dim]) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize(
    ("name", "head_dim", "size"),
    [
        ("turbo2", 128, 34),
        ("turbo3", 128, 50),
        ("turbo4", 128, 66),
        ("turbo4", 64, 34),
        ("turbo3", 256, 100),
        ("turbo2_pad128", 64, 34),
        ("turbo3_pad128", 64, 50),
        ("turbo4_pad128", 64, 66),
        ("turbo4_fork", 64, 68),
        ("turbo4_fork", 128, 68),
        ("turbo3_pad128", 192, 100),
    ],
)
def test_bytes_per_vector(name, head_dim, size):
    codec = preset(name).k.codec
    assert codec.layout(head_dim).nbytes == size
    assert nbytes(codec.encode(torch.ones(1, 1, 1, head_dim))) == size


@pytest.mark.parametrize(("name", "head_dim", "bits"), [("turbo3_pad128", 64, 6.25), ("turbo3_pad128", 80, 5.0), ("turbo3", 128, 3.125)])
def test_bits_per_value(name, head_dim, bits):
    assert preset(name).bits(head_dim) == (bits, bits)


def test_sign_tables_are_those_of_numpy():
    rng = np.random.default_rng(42)
    for word in (rotations._FIRST, rotations._SECOND):
        assert rotations.signs(word, 128).tolist() == rng.choice([-1.0, 1.0], size=128).tolist()


@pytest.mark.parametrize("name", ["none", "hadamard", "hadamard_double_signed"])
@pytest.mark.parametrize("n", [16, 64, 128])
def test_rotations_are_orthonormal(name, n):
    r = rotations.matrix(name, n, torch.float64, "cpu")
    assert torch.allclose(r @ r.T, torch.eye(n, dtype=torch.float64), atol=1e-14)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_value_on_a_boundary_takes_the_upper_cell(bits):
    codec = Codebook(bits, rotation="none", scale="raw")
    bounds = torch.tensor(codebooks.boundaries("gaussian", bits))
    assert codes(codec.quantize(exactly(bounds)), bits)[: len(bounds)] == list(range(1, 2**bits))
    assert codes(codec.quantize(exactly(bounds - 1e-5)), bits)[: len(bounds)] == list(range(2**bits - 1))


def exactly(values):
    """A vector of 64 that begins with these coordinates and has the norm 8 in float32, so that y √g / n is y itself."""
    y = torch.zeros(64)
    y[: len(values)] = values
    y[60:] = ((64 - y.double().square().sum()) / 4).sqrt()
    while y.norm() != 8:
        y[63] = torch.nextafter(y[63], torch.tensor(0.0 if y.norm() > 8 else 9.0))
    return y[None, None, None]


def codes(packed, bits):
    """Indices of one vector, read from the bytes one by one."""

    def plane(name, width):
        return [byte >> shift & 2**width - 1 for byte in packed[name].flatten().tolist() for shift in range(0, 8, width)]

    if bits != 3:
        return plane("codes", bits)
    return [low | high << 2 for low, high in zip(plane("low", 2), plane("high", 1), strict=True)]


def test_one_vector_of_turbo3_by_hand():
    """Norm, low plane, high plane, with nothing but Python's floats: the block is 50 bytes of llama.cpp's turbo3_0."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal(128).astype(np.float32)
    signs = np.random.default_rng(42)
    first, second = (signs.choice([-1.0, 1.0], size=128).tolist() for _ in range(2))
    norm = math.sqrt(sum(float(v) ** 2 for v in x))
    y = [float(v) / norm * s for v, s in zip(x, first, strict=True)]
    width = 1
    while width < 128:  # the butterfly, in natural order
        for i in range(128):
            if not i & width:
                y[i], y[i | width] = y[i] + y[i | width], y[i] - y[i | width]
        width *= 2
    y = [v * s / math.sqrt(128) for v, s in zip(y, second, strict=True)]
    bounds = [-0.154259, -0.091775, -0.043589, 0.0, 0.043589, 0.091775, 0.154259]
    levels = [-0.190685, -0.117832, -0.065717, -0.021460, 0.021460, 0.065717, 0.117832, 0.190685]
    index = [sum(v >= b for b in bounds) for v in y]
    corrected = norm / math.sqrt(sum(levels[i] ** 2 for i in index))
    low = [sum((index[4 * j + k] & 3) << 2 * k for k in range(4)) for j in range(32)]
    high = [sum((index[8 * j + k] >> 2) << k for k in range(8)) for j in range(16)]
    block = struct.pack("<e", corrected) + bytes(low) + bytes(high)

    codec = preset("turbo3").k.codec
    packed = codec.encode(torch.from_numpy(x)[None, None, None])
    assert bytes(codec.to_blocks(packed).flatten().tolist()) == block
    inverse = rotations.unrotate(torch.tensor([levels[i] * float(np.float16(corrected)) for i in index]), "hadamard_double_signed", 128)
    assert torch.allclose(codec.decode(packed, 128, torch.float32).flatten(), inverse, atol=1e-5)


def test_turbo4_keeps_the_even_index_in_the_low_nibble():
    packed = Codebook(4, rotation="none", scale="raw").quantize(exactly(torch.tensor([9.0, -9.0]) / 2))
    assert packed["codes"].flatten()[0] == 0x0F


def test_the_fork_reserves_two_zero_bytes_after_the_norm():
    codec = preset("turbo4_fork").k.codec
    block = codec.to_blocks(codec.encode(VECTORS[:, :, :1]))
    assert block.shape[-1] == 68
    assert block[..., 2:4].tolist() == [[[[0, 0]]]]


@pytest.mark.parametrize("head_dim", [80, 96])
def test_what_does_not_split_is_refused_with_the_way_out(head_dim):
    with pytest.raises(Unsupported, match=rf"head_dim {head_dim}.*pad: 128"):
        preset("turbo3").check(head_dim)
    preset("turbo3_pad128").check(head_dim)


def test_a_width_without_a_table_is_an_error():
    with pytest.raises(ConfigError, match="bits must be one of 4 for table 'turbo_historic', got 3"):
        Codebook(3, table="turbo_historic")
