"""The codec of RoPE pairs against its formula in NumPy, one pair after another."""

import numpy as np
import pytest
import torch

from tqbench.codecs.affine import Affine
from tqbench.codecs.polar_pairs import PolarPairs
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

X = np.random.default_rng(0).standard_normal((1, 2, 256, 64))
X[..., 5] += 9  # an outlier channel, as in real keys


def formula(values, bits):
    """Codes and what they decode to, for one pair over 128 tokens."""
    step, low = np.float16((values.max() - values.min()) / 2**bits), np.float16(values.min())
    codes = np.clip(np.floor((values - float(low)) / float(step)), 0, 2**bits - 1)
    return codes.astype(int), (codes + 0.5) * float(step) + float(low)


def expected(x, radius_bits=4, angle_bits=4):
    """(bytes, values) of one head's 128 tokens."""
    half = x.shape[1] // 2
    codes, values = np.empty((128, half), int), np.empty_like(x)
    for i in range(half):
        a, b = x[:, i], x[:, i + half]
        radius, rho = formula(np.hypot(a, b), radius_bits)
        angle, theta = formula(np.arctan2(b, a) % (2 * np.pi), angle_bits)
        codes[:, i] = radius << angle_bits | angle
        values[:, i], values[:, i + half] = rho * np.cos(theta), rho * np.sin(theta)
    return codes, values


def decoded(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def distortion(codec, x):
    return float((x - decoded(codec, x)).square().sum() / x.square().sum())


def test_codes_and_values_are_those_of_the_formula():
    packed = PolarPairs().encode(torch.from_numpy(X))
    values = PolarPairs().decode(packed, 64, torch.float64)
    for head in range(2):
        for unit in range(2):
            tokens = slice(128 * unit, 128 * unit + 128)
            codes, kept = expected(X[0, head, tokens])
            assert packed["codes"][0, head, unit].tolist() == codes.tolist()
            assert np.allclose(values[0, head, tokens].numpy(), kept, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("radius_bits", "angle_bits"), [(3, 3), (2, 4), (3, 5), (2, 2)])
def test_other_widths_are_those_of_the_formula(radius_bits, angle_bits):
    values = decoded(PolarPairs(radius_bits, angle_bits), torch.from_numpy(X[:, :, :128]))
    for head in range(2):
        assert np.allclose(values[0, head].numpy(), expected(X[0, head, :128], radius_bits, angle_bits)[1], rtol=0, atol=1e-12)


def test_the_step_is_the_range_over_two_to_the_bits():
    """Radii 0, 1, …, 16 times a quarter turn or none: step 1, the largest radius falls into the last cell, the middle comes back."""
    radii = (torch.arange(128) % 17).double()
    x = torch.zeros(1, 1, 128, 16, dtype=torch.float64)
    x[..., 0] = radii
    packed = PolarPairs().encode(x)
    assert packed["radius_steps"].flatten()[0] == 1
    assert packed["radius_minima"].flatten()[0] == 0
    assert (packed["codes"][0, 0, 0, :, 0] >> 4).tolist() == radii.clamp(max=15).tolist()
    assert decoded(PolarPairs(), x)[0, 0, :, 0].tolist() == (radii.clamp(max=15) + 0.5).tolist()


def test_a_pair_is_a_channel_and_the_one_half_a_head_away():
    x = torch.zeros(1, 1, 128, 64)
    x[..., 3], x[..., 35] = 1.0, 1.0
    y = decoded(PolarPairs(), x)
    assert torch.allclose(y, x, atol=1e-3)  # constant over tokens: fp16 minima alone
    assert (PolarPairs().encode(x)["angle_minima"].flatten().nonzero().flatten() == 3).all()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_425_bits_at_every_size(head_dim):
    """4 + 4 bits per pair, and 4 fp16 per pair and 128 tokens."""
    layout = PolarPairs().layout(head_dim)
    assert layout.bits(head_dim) == 4.25
    assert nbytes(PolarPairs().encode(torch.ones(1, 1, 128, head_dim))) == 128 * head_dim // 2 + 4 * head_dim // 2 * 2


@pytest.mark.parametrize(("radius_bits", "angle_bits", "bits"), [(3, 3, 3.25), (2, 4, 3.25), (3, 5, 4.25), (2, 2, 2.25)])
def test_bits_of_other_widths(radius_bits, angle_bits, bits):
    assert PolarPairs(radius_bits, angle_bits).layout(128).bits(128) == bits


def test_the_preset_packs_128_tokens_at_a_time():
    side = preset("polarquant_wu").k
    assert side.codec.unit == side.flush == 128
    assert [side.packed(t) for t in (126, 127, 254, 255)] == [0, 128, 128, 256]
    assert preset("polarquant_wu").bits(64) == (4.25, 16.0)


def test_more_bits_lose_less():
    x = torch.randn(1, 1, 256, 128, generator=torch.Generator().manual_seed(1))
    losses = [distortion(PolarPairs(bits, bits), x) for bits in (2, 3, 4)]
    assert losses[0] > 3 * losses[1] > 9 * losses[2]


def test_distortion_of_uniform_angles():
    """On a circle of radius 1 only the angle is lost: 2(1 − sin h / h) with h half a step, π / 16."""
    theta = torch.rand(1, 1, 1280, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 * torch.pi
    x = torch.cat([theta.cos(), theta.sin()], -1)
    h = np.pi / 16
    assert distortion(PolarPairs(), x) == pytest.approx(2 * (1 - np.sin(h) / h), rel=0.05)  # ranges over 128 samples are a little narrower


def test_a_large_channel_does_not_hurt_the_others():
    """Turned by RoPE, it makes the range of its group of 32 channels in a token; here no other pair shares its ranges."""
    angle = torch.arange(256).double()[:, None] * torch.logspace(0, -3, 32, dtype=torch.float64)
    k = torch.from_numpy(np.random.default_rng(4).standard_normal((1, 1, 256, 64)))
    k[..., 30] += 20
    a, b = k[..., :32], k[..., 32:]
    rotated = torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    losses = [(decoded(codec, rotated) - rotated)[..., :30].norm() for codec in (PolarPairs(), Affine(4, 32, "token"))]
    assert losses[0] < losses[1] / 2


@pytest.mark.parametrize("fill", [0.0, -3.25, 1e-6, 6e4 / 2])
def test_constants_come_back(fill):
    x = torch.full((1, 1, 128, 64), fill)
    assert torch.allclose(decoded(PolarPairs(), x), x, rtol=2e-3, atol=1e-6)  # the fp16 angle π/4 or 5π/4


def test_heavy_tails_stay_within_half_a_step():
    x = torch.from_numpy(np.random.default_rng(5).standard_t(2, (1, 1, 128, 64)))
    y = decoded(PolarPairs(), x)
    rho, kept = (torch.hypot(v[..., :32], v[..., 32:]) for v in (x, y))
    step = (rho.amax(2) - rho.amin(2)) / 16
    assert ((rho - kept).abs() <= step.unsqueeze(2) * 0.51 + 0.01).all()  # fp16 steps and minima


def test_channels_that_do_not_end_on_a_byte_are_refused():
    with pytest.raises(Unsupported, match="head_dim 40"):
        PolarPairs().check(40)


def test_codes_that_do_not_fit_a_byte_are_an_error():
    with pytest.raises(ConfigError, match=r"^radius_bits.*got 4 \+ 5"):
        PolarPairs(4, 5)
