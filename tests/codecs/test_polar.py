"""The recursive polar codec: codebooks against quadrature, its distortion against theory, one vector by hand."""

import math
import struct
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from tqbench.codecs.polar import LEVELS, Polar, codebook
from tqbench.core.codec import nbytes
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset

VECTORS = torch.randn(1, 1, 8000, 128, generator=torch.Generator().manual_seed(0))
NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def cells(table, level):
    """Points of each cell and their share of its level's mass, by Gauss and Legendre."""
    edges = np.array([0, *((table[1:] + table[:-1]) / 2), np.pi / 2])
    half = np.diff(edges)[:, None] / 2
    psi = edges[:-1, None] + half * (NODES + 1)
    mass = half * WEIGHTS * np.sin(2 * psi) ** (2 ** (level - 1) - 1)
    return psi, mass / mass.sum()


@cache
def angles(level, bits):
    """Lloyd–Max from evenly spaced levels: nothing that the codec uses."""
    table = (np.arange(2**bits) + 0.5) * np.pi / 2 / 2**bits
    for _ in range(3000):
        psi, mass = cells(table, level)
        table = (psi * mass).sum(1) / mass.sum(1)
    return table


def mean_cosine(level, bits):
    """E cos(ψ − ψ̂) over the density of the level."""
    if level == 1:  # uniform: the mean of cos over a cell of half width π / 2^bits
        return math.sin(math.pi / 2**bits) / (math.pi / 2**bits)
    table = angles(level, bits)
    psi, mass = cells(table, level)
    return (mass * np.cos(psi - table[:, None])).sum()


def decoded(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def distortion(codec, x=VECTORS):
    return float((x - decoded(codec, x)).square().sum() / x.square().sum())


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codebooks_are_converged(level, bits):
    assert np.allclose(codebook(level, bits), angles(level, bits), rtol=0, atol=1e-7)


def test_one_bit_of_level_2_in_closed_form():
    """2 ∫ ψ sin 2ψ dψ from 0 to π/4 is a half."""
    assert codebook(2, 1) == pytest.approx((0.5, math.pi / 2 - 0.5), abs=1e-6)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_codebooks_are_symmetric_about_45_degrees(level):
    table = codebook(level, 2)
    assert [a + b for a, b in zip(table, reversed(table), strict=True)] == pytest.approx([math.pi / 2] * 4, abs=1e-6)


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_gaussian_angles_have_the_density(level):
    """In the cells of a codebook their means are its levels."""
    rng = np.random.default_rng(level)
    a, b = (np.sqrt((rng.standard_normal((200_000, 2 ** (level - 1))) ** 2).sum(1)) for _ in range(2))
    psi = np.arctan2(b, a) if level > 1 else np.arctan2(*rng.standard_normal((2, 200_000))) % (2 * np.pi)
    table = codebook(level, 2)
    bounds = [(low + high) / 2 for low, high in pairwise(table)]
    means = [psi[np.digitize(psi, bounds) == i].mean() for i in range(4)]
    assert means == pytest.approx(table, abs=0.01)


@pytest.mark.parametrize(("first", "upper"), [(4, 2), (2, 1), (4, 1), (4, 4), (8, 4)])
def test_distortion_on_gaussian_vectors(first, upper):
    """With exact radii ⟨u, û⟩ of a block is the product of cos(ψ − ψ̂) over independent angles, so the error is 2(1 − Π E cos)."""
    expected = 2 * (1 - math.prod(mean_cosine(level, first if level == 1 else upper) for level in range(1, LEVELS + 1)))
    assert distortion(Polar(first, upper)) == pytest.approx(expected, rel=0.01)


def test_distortion_of_the_published_widths():
    assert distortion(Polar()) == pytest.approx(0.0321, rel=0.01)  # the formula above


def test_a_haar_rotation_makes_any_vector_gaussian_enough():
    one_hot = torch.eye(128)[None, None]
    assert distortion(Polar(), one_hot) > 0.05  # its angles are all extremes
    assert distortion(preset("polarquant_han").k.codec, one_hot) == pytest.approx(0.0321, rel=0.1)


@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_3875_bits_exactly(head_dim):
    codec = Polar()
    assert codec.layout(head_dim).bits(head_dim) == 3.875
    assert nbytes(codec.encode(torch.ones(1, 1, 1, head_dim))) == head_dim // 16 * 62 // 8


def test_bytes_of_64_channels():
    """4 radii, 32 angles of 4 bits, 28 of 2: 8 + 16 + 7."""
    packed = Polar().encode(torch.ones(1, 1, 1, 64))
    assert [array.nbytes for array in packed.values()] == [8, 16, 7]


def test_one_vector_by_hand():
    """With nothing but Python's floats: 15 angles per block, level after level, first angle in the low bits."""
    x = np.random.default_rng(3).standard_normal(64)
    radii, first, upper = [], [], []
    for start in range(0, 64, 16):
        values = x[start : start + 16].tolist()
        for level in range(1, 5):
            pairs = list(zip(values[0::2], values[1::2], strict=True))
            psi = [math.atan2(b, a) for a, b in pairs]
            if level == 1:
                first += [int(angle % (2 * math.pi) / (2 * math.pi) * 16) for angle in psi]
            else:
                upper += [int(np.abs(angles(level, 2) - angle).argmin()) for angle in psi]
            values = [math.hypot(a, b) for a, b in pairs]
        radii.append(values[0])
    block = struct.pack("<4e", *radii)
    block += bytes(first[i] | first[i + 1] << 4 for i in range(0, 32, 2))
    block += bytes(sum(upper[i + j] << 2 * j for j in range(4)) for i in range(0, 28, 4))
    codec = Polar()
    packed = codec.encode(torch.from_numpy(x)[None, None, None])
    assert bytes(codec.to_blocks(packed).flatten().tolist()) == block


def test_the_radius_of_a_block_is_kept():
    kept = decoded(Polar(), VECTORS).unflatten(-1, (-1, 16)).norm(dim=-1)
    assert torch.allclose(kept, VECTORS.unflatten(-1, (-1, 16)).norm(dim=-1), rtol=1e-3)  # fp16


def test_signs_of_all_quadrants_survive():
    x = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [-1.0, -0.5], [1.0, -0.5]]).repeat(1, 32).reshape(1, 1, 4, 64)
    assert torch.equal(decoded(Polar(), x).sign(), x.sign())


def test_an_angle_just_below_the_positive_axis_is_in_the_last_cell():
    x = torch.tensor([1.0, -1e-9]).repeat(32)[None, None, None]
    assert (Polar().encode(x)["first"] == 0xFF).all()


def test_zeros_stay_zeros():
    assert torch.equal(decoded(Polar(), torch.zeros(1, 1, 2, 64)), torch.zeros(1, 1, 2, 64))


@pytest.mark.parametrize(("x", "away"), [(torch.full((1, 1, 2, 64), -3.25), math.pi / 4), (torch.eye(64)[None, None] * 500.0, 0.0)])
def test_constants_and_single_values_are_off_by_known_angles(x, away):
    """Level 1 is on a boundary, half a cell of π/8 away; the others are π/4, between the inner levels, or 0 and π/2, beyond the outer."""
    off = [math.pi / 16, *(min(abs(angle - away) for angle in angles(level, 2)) for level in (2, 3, 4))]
    cosines = torch.cosine_similarity(x, decoded(Polar(), x), dim=-1)
    assert torch.allclose(cosines, torch.tensor(math.prod(map(math.cos, off))), atol=1e-4)


@pytest.mark.parametrize("head_dim", [80, 96])
def test_what_does_not_end_on_a_byte_is_refused_with_the_way_out(head_dim):
    with pytest.raises(Unsupported, match=f"head_dim {head_dim}.*set pad"):
        Polar().check(head_dim)
