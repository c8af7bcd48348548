"""The product codec: unbiased inner products at the known error, and AmesianX's blocks computed by hand."""

import math
import struct
from functools import cache

import numpy as np
import pytest
import torch

from tqbench.codecs.codebook import Codebook
from tqbench.codecs.product import Product
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

DIM = 128
# Squared error of ⟨q, y⟩ times d for unit q and y: π/2 times the squared error of one bit less.
QJL = {2: 0.571, 3: 0.1845, 4: 0.0543}
SPHERE = {1: 0.36089, 2: 0.11600, 3: 0.03397, 4: 0.00932}


def units(*shape, seed):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


X, Q = units(1, 1, 64, DIM, seed=0), units(64, 24, DIM, seed=1)


def back(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], torch.float32)


def distortion(codec, x):
    return float((x - back(codec, x)).square().sum() / x.square().sum())


@cache
def decoded(bits, residual):
    """The same vectors under 60 independent S."""
    return torch.stack([back(Product(bits, residual, sketch_seed=seed), X)[0, 0] for seed in range(60)])


def errors(bits, residual):
    return torch.einsum("stc,tqc->stq", decoded(bits, residual) - X[0, 0], Q)


@pytest.mark.parametrize("bits", QJL)
def test_error_of_an_inner_product_with_a_gaussian_projection(bits):
    assert float(errors(bits, "qjl").square().mean()) * DIM == pytest.approx(QJL[bits], rel=0.05)


@pytest.mark.parametrize("bits", QJL)
def test_error_of_an_inner_product_with_an_orthogonal_projection(bits):
    """The component along r is then exact: π/2 − 1 instead of π/2."""
    expected = (math.pi / 2 - 1) * SPHERE[bits - 1]
    assert float(errors(bits, "qjl_srht").square().mean()) * DIM == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("bits", QJL)
def test_inner_products_are_unbiased_over_gaussian_projections(bits):
    """For each pair of q and y, the mean over S is zero within its own uncertainty."""
    found = errors(bits, "qjl")
    chi = (found.mean(0) / found.std(0)).square() * len(found)
    assert float(chi.mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("residual", ["qjl", "qjl_srht"])
@pytest.mark.parametrize("bits", QJL)
def test_the_length_along_the_original_is_kept(bits, residual):
    """One bit alone would keep 2/π of it."""
    along = torch.einsum("stc,tc->st", decoded(bits, residual), X[0, 0]).mean()
    assert float(along) == pytest.approx(1, abs=0.006)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_sign_for_the_residual_is_worth_less_than_a_bit_and_a_projection_costs_one(bits):
    """By squared error: b bits < b − 1 and a sign < b − 1 bits < b − 1 and a sign of a projection, which is π/2 of that."""
    x = units(1, 1, 4000, DIM, seed=2)
    plain, less = (distortion(Codebook(b, table="sphere", scale="raw"), x) for b in (bits, bits - 1))
    assert plain < distortion(Product(bits, "direct_sign"), x) < less
    assert distortion(Product(bits, "qjl"), x) == pytest.approx(math.pi / 2 * less, rel=0.04)


def test_seeds_draw_different_projections_and_equal_seeds_the_same():
    one, again, other = (Product(sketch_seed=seed).encode(X)["signs"] for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert 0.4 < float((one != other).float().mean()) <= 1  # bytes


SIGNS = bytes.fromhex("a73b91f46dc2580eb37f24d68945ea1c63afd852970be13d76c419fe4a852cdb")
SECOND = bytes.fromhex("d34ea8179c5be63172b90df5438a6ec7582f94e1b63d0a7cc561d84fa3971e85")
LEVELS = {
    2: (-1.51042, -0.45278, 0.45278, 1.51042),
    3: (-2.15195, -1.34391, -0.75601, -0.24509, 0.24509, 0.75601, 1.34391, 2.15195),
}


def flipped(x, signs):
    return [-v if signs[j // 8] >> j % 8 & 1 else v for j, v in enumerate(x)]


def butterfly(x):
    y, width = list(x), 1
    while width < len(y):
        for i in range(len(y)):
            if not i & width:
                y[i], y[i | width] = y[i] + y[i | width], y[i] - y[i | width]
        width *= 2
    return y


def stream(codes, bits):
    word = sum(code << i * bits for i, code in enumerate(codes))
    return word.to_bytes(len(codes) * bits // 8, "little")


@pytest.mark.parametrize("name", ["tbqp3", "tbqp4"])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_one_vector_of_tbqp_by_hand(dim, name):
    """Norm, gain, codes, signs. For 256 channels AmesianX's gain is 16 times this one, that of coordinates of variance 1."""
    bits = int(name[-1]) - 1
    x = np.random.default_rng(7).standard_normal(dim).astype(np.float32)
    norm = math.sqrt(sum(float(v) ** 2 for v in x))
    u = butterfly(flipped([float(v) / norm for v in x], SIGNS))
    bounds = [(a + b) / 2 for a, b in zip(LEVELS[bits], LEVELS[bits][1:], strict=False)]
    codes = [sum(v >= b for b in bounds) for v in u]
    r = [v - LEVELS[bits][code] for v, code in zip(u, codes, strict=True)]
    if dim == 256:
        gain, z = math.sqrt(sum(v * v for v in r)) * norm / 16, butterfly(flipped(r, SECOND))
    else:
        gain, z = sum(map(abs, r)) / dim * norm, r
    block = struct.pack("<ee", norm, gain) + stream(codes, bits) + stream([int(v >= 0) for v in z], 1)

    codec = preset(name).k.codec
    packed = codec.encode(torch.from_numpy(x)[None, None, None])
    assert bytes(codec.to_blocks(packed).flatten().tolist()) == block

    signs = [1.0 if v >= 0 else -1.0 for v in z]
    if dim == 256:
        back = [1.2533141 / 256 * gain * v for v in flipped(butterfly(signs), SECOND)]
    else:
        back = [gain / math.sqrt(dim) * s for s in signs]
    rotated = [norm / math.sqrt(dim) * LEVELS[bits][code] + v for code, v in zip(codes, back, strict=True)]
    expected = [v / math.sqrt(dim) for v in flipped(butterfly(rotated), SIGNS)]
    assert torch.allclose(codec.decode(packed, dim, torch.float32).flatten(), torch.tensor(expected), atol=2e-3)  # fp16 norm and gain


def test_what_has_no_projection_is_refused():
    with pytest.raises(Unsupported, match="head_dim 80: residual amesianx needs a power of two"):
        Product(residual="amesianx").check(80)
    with pytest.raises(Unsupported, match="head_dim 512: residual amesianx goes up to 256"):
        Product(residual="amesianx").check(512)
    with pytest.raises(Unsupported, match="head_dim 36 is no multiple of 8"):
        Product().check(36)
    Product().check(80)


def test_a_width_without_a_table_is_an_error():
    with pytest.raises(ConfigError, match="bits less one must be one of 4 for table 'turbo_historic', got 4"):
        Product(4, table="turbo_historic")
