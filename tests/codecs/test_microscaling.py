"""MX and NVFP4 against blocks worked out by hand, gguf's mxfp4 and MLX's nvfp4."""

import gguf
import numpy as np
import pytest
import torch

from tqbench.codecs.microscaling import Microscaling
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

GRID = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # e2m1, OCP MX v1.0, table 5
BASE = np.random.default_rng(0).standard_normal((256, 128))


def packed(x, **params):
    return Microscaling(**params).encode(torch.as_tensor(x)[None, None])


def back(x, **params):
    codec, x = Microscaling(**params), torch.as_tensor(x)
    return codec.decode(codec.encode(x[None, None]), x.shape[-1], x.dtype)[0, 0]


def row(values, size):
    return torch.tensor([*values, *[0.0] * (size - len(values))])[None]


def nibbles(codes):
    return [nibble for byte in codes.flatten().tolist() for nibble in (byte & 15, byte >> 4)]


@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
def test_the_grid_of_e2m1_is_kept(form):
    x = row([*GRID, *(-v for v in GRID)], 32)
    assert torch.equal(back(x, format=form), x)
    assert nibbles(packed(x, format=form)["codes"])[:16] == list(range(16))


def test_ties_go_to_the_even_mantissa():
    x = row([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75], 32)
    assert back(x, format="mxfp4")[0, :10].tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0]


def test_the_scale_is_the_power_of_two_below_the_largest_value():
    """⌊log₂ 10⌋ − 2 = 1: steps of 2, 10 / 2 = 5 is a tie and becomes 4; 12 / 2 is 6; 15 / 2 = 7.5 saturates."""
    for largest, byte, value in ((10.0, 128, 8.0), (12.0, 128, 12.0), (15.0, 128, 12.0), (16.0, 129, 16.0)):
        x = row([largest, 1.0], 32)
        assert packed(x, format="mxfp4")["scales"].item() == byte
        assert back(x, format="mxfp4")[0, 0] == value


@pytest.mark.parametrize("form", ["mxfp4", "mxfp8", "nvfp4"])
def test_zeros_have_the_scale_of_byte_zero(form):
    x = torch.zeros(1, 32)
    assert not packed(x, format=form)["scales"].any()
    assert torch.equal(back(x, format=form), x)


def test_a_value_just_below_a_power_of_two_does_not_raise_the_scale():
    """log₂ of it is that of the power in float32; the exponent of the number itself is not."""
    assert packed(row([float(np.nextafter(np.float32(4), np.float32(0)))], 32), format="mxfp4")["scales"].item() == 126
    assert packed(row([4.0], 32), format="mxfp4")["scales"].item() == 127


def test_mxfp8_by_hand():
    """⌊log₂ 500⌋ − 8 = 0: a scale of 1 (byte 127), and 500 saturates at 448."""
    x = row([500.0, 1.0, 1.0625, -0.001953125], 32)
    assert packed(x, format="mxfp8")["scales"].item() == 127
    assert packed(x, format="mxfp8")["codes"].flatten()[:4].tolist() == [0x7E, 0x38, 0x38, 0x81]
    assert back(x, format="mxfp8")[0, :4].tolist() == [448.0, 1.0, 1.0, -0.001953125]


def test_nvfp4_by_hand():
    """9 / 6 = 1.5 is an e4m3 (0x3C); 100 / 6 = 16.67 becomes 16 (0x58), and 100 / 16 saturates at 6."""
    x = torch.cat([row([9.0, 0.75], 16), row([100.0, -16.0], 16)], 1)
    assert packed(x, format="nvfp4")["scales"].flatten().tolist() == [0x3C, 0x58]
    assert back(x, format="nvfp4")[0, [0, 1, 16, 17]].tolist() == [9.0, 0.75, 96.0, -16.0]


def test_the_global_scale_moves_the_range_of_the_block_scales():
    small = torch.from_numpy(BASE * 1e-3)
    assert (back(small, format="nvfp4") == 0).double().mean() > 0.9  # the steps of e4m3 end at 2 ** -9
    again = back(small, format="nvfp4", global_scale=1e-3)
    assert torch.allclose(again, back(torch.from_numpy(BASE), format="nvfp4") * 1e-3)


def test_a_calibrated_global_scale_takes_the_largest_value_to_the_largest_code():
    x = torch.from_numpy(BASE)[None, None]
    codec = Microscaling("nvfp4", calibrated=True).calibrate(x)
    assert codec.learned["global_scale"].item() == pytest.approx(np.abs(BASE).max() / (6 * 448))
    arrays = codec.encode(x)
    assert arrays["scales"].max() == 0x7E
    assert float(codec.decode(arrays, 128, torch.float64).abs().max()) == pytest.approx(np.abs(BASE).max())


def test_calibration_is_asked_for():
    assert preset("nvfp4_static").v.codec.tags.calibrated
    with pytest.raises(Unsupported, match="calibrated"):
        packed(BASE, format="nvfp4", calibrated=True)


def test_mxfp4_is_ggufs_but_for_ties_and_the_sign_of_zero():
    """ggml picks the first level in its table that is nearest, so that a tie goes to the smaller magnitude and what is negative and becomes
    zero has no sign; and its bytes pair channel j with j + 16."""
    x = BASE.astype(np.float32)
    raw = gguf.quantize(x, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(back(x, format="mxfp4").numpy(), gguf.dequantize(raw, gguf.GGMLQuantizationType.MXFP4))
    blocks, ours = raw.reshape(-1, 17), packed(x, format="mxfp4")
    assert np.array_equal(blocks[:, 0], ours["scales"].numpy().ravel())
    theirs = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], 1)
    codes = np.array(nibbles(ours["codes"])).reshape(-1, 32)
    assert np.array_equal(theirs, np.where(codes == 8, 0, codes))


def test_nvfp4_is_mlxs_but_for_the_sign_of_zero():
    mx = pytest.importorskip("mlx.core")
    x = BASE.astype(np.float32)
    words, scales = (np.array(array) for array in mx.quantize(mx.array(x), 16, 4, mode="nvfp4"))
    ours = packed(x, format="nvfp4")
    assert np.array_equal(ours["scales"][0, 0].numpy(), scales)
    theirs, codes = nibbles(torch.from_numpy(words.view(np.uint8))), nibbles(ours["codes"])
    assert [code % 8 and code for code in theirs] == [code % 8 and code for code in codes]


def test_neither_float32_nor_float64_rounds_twice():
    x = row([6.0, 0.75 + 2**-40, 0.75], 32).double()
    x[0, 1] = 0.75 - 2**-40
    assert back(x, format="mxfp4")[0, :3].tolist() == [6.0, 0.5, 1.0]


# 4 + 8 / 32, 8 + 8 / 32 and 4 + 8 / 16 bits.
@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        ("mxfp4", {64: 34, 96: 51, 128: 68, 256: 136}),
        ("mxfp8", {64: 66, 96: 99, 128: 132, 256: 264}),
        ("nvfp4", {64: 36, 80: 45, 96: 54, 128: 72, 256: 144}),
    ],
)
def test_bytes_per_vector(form, sizes):
    assert {head_dim: Microscaling(form).layout(head_dim).nbytes for head_dim in sizes} == sizes


@pytest.mark.parametrize("form", ["mxfp4", "mxfp8"])
def test_a_block_that_does_not_fit_is_refused(form):
    with pytest.raises(Unsupported, match="80"):
        Microscaling(form).check(80)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("global_scale", {"format": "nvfp4", "global_scale": 0.0}),
        ("global_scale", {"format": "mxfp4", "global_scale": 2.0}),
        ("calibrated", {"format": "mxfp8", "calibrated": True}),
        ("global_scale", {"format": "nvfp4", "global_scale": 2.0, "calibrated": True}),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, params):
    with pytest.raises(ConfigError, match=f"^{field} "):
        Microscaling(**params)


def outlier_channel():
    x = BASE.copy()
    x[:, 7] += 40
    return x


@pytest.mark.parametrize("x", [BASE, np.random.default_rng(1).standard_t(3, (256, 128)), outlier_channel()])
def test_more_bits_lose_less(x):
    mxfp4, nvfp4, mxfp8 = (float((back(x, format=form) - torch.from_numpy(x)).square().mean()) for form in ("mxfp4", "nvfp4", "mxfp8"))
    assert mxfp8 < nvfp4 < mxfp4
