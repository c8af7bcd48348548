"""The affine codec against KIVI's formula in NumPy."""

import numpy as np
import pytest
import torch

from tqbench.codecs.affine import Affine
from tqbench.core.scheme import preset

X = np.random.default_rng(0).standard_normal((2, 3, 128, 64)).astype(np.float32)
X[..., 5] += 9  # an outlier channel, as in real keys


def kivi(group, bits):
    """One group: codes, scale and minimum, one value after another."""
    low, high = min(group), max(group)
    scale, minimum = np.float16((high - low) / np.float32(2**bits - 1)), np.float16(low)
    codes = [int(np.clip(np.rint((v - np.float32(minimum)) / np.float32(scale)), 0, 2**bits - 1)) for v in group]
    return codes, scale, minimum


def expected(bits, axis):
    """What KIVI keeps of X: each group of 32 decoded in its place."""
    out = np.empty_like(X)
    rows = np.moveaxis(X, 2, 3) if axis == "channel" else X
    kept = np.moveaxis(out, 2, 3) if axis == "channel" else out
    for at in np.ndindex(*rows.shape[:3]):
        for first in range(0, rows.shape[3], 32):
            codes, scale, minimum = kivi(rows[at][first : first + 32], bits)
            kept[at][first : first + 32] = [np.float32(scale) * code + np.float32(minimum) for code in codes]
    return out


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize("bits", [2, 4])
def test_values_are_those_of_the_formula(bits, axis):
    codec = Affine(bits, 32, axis)
    decoded = codec.decode(codec.encode(torch.from_numpy(X)), 64, torch.float32)
    assert np.allclose(decoded.numpy(), expected(bits, axis), rtol=0, atol=1e-6)


def test_codes_of_a_channel_lie_in_the_order_of_tokens():
    x = torch.arange(32.0)[None, None, :, None].expand(1, 1, 32, 64) % 4
    packed = Affine(2, 32, "channel").encode(x)
    assert packed["codes"].shape == (1, 1, 1, 8, 64)
    assert (packed["codes"] == 0b11_10_01_00).all()
    assert (packed["scales"] == 1).all()
    assert (packed["minima"] == 0).all()


def test_codes_of_a_token_lie_in_the_order_of_channels():
    x = (torch.arange(64.0) % 4)[None, None, None]
    assert (Affine(2, 32).encode(x)["codes"] == 0b11_10_01_00).all()


@pytest.mark.parametrize(("bits", "group", "effective"), [(2, 32, 3.0), (4, 32, 5.0), (2, 128, 2.25), (8, 64, 8.5)])
def test_bits_count_the_scales(bits, group, effective):
    for axis in ("channel", "token"):
        assert Affine(bits, group, axis).layout(128).bits(128) == effective


def test_kivi2_takes_three_bits():
    assert preset("kivi2").bits(128) == (3.0, 3.0)


def test_a_channel_of_its_own_range_is_not_hurt_by_an_outlier_beside_it():
    errors = {}
    for axis in ("channel", "token"):
        codec = Affine(2, 32, axis)
        errors[axis] = (codec.decode(codec.encode(torch.from_numpy(X)), 64, torch.float32)[..., :5] - torch.from_numpy(X)[..., :5]).norm()
    assert errors["channel"] < errors["token"] / 2
