"""The MLX codec against `mx.quantize` itself: words, scales and biases, bit for bit."""

import numpy as np
import pytest
import torch

from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
BASE = np.random.default_rng(0).standard_normal((256, 128))
INPUTS = {
    "gaussian": BASE,
    "heavy tails": np.random.default_rng(1).standard_t(2, (64, 128)),
    "positive": np.abs(BASE) + 3,  # no level for zero: bias and scale come out otherwise
    "negative": -np.abs(BASE) - 3,
    "one sign, from zero": np.abs(BASE),
    "equal edges": np.resize([2.0, -2.0, 0.5, -0.5], (4, 128)),
    "zeros": np.zeros((4, 128)),
    "constants": np.full((4, 128), -0.7),
    "a coarse grid, full of ties": np.round(BASE * 4) / 4,
    "tiny": BASE * 1e-5,
    "huge": BASE * 1e4,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_arrays_are_those_of_mlx(bits, group_size, dtype):
    """A cache in the model's dtype: MLX computes in float32 and keeps scales and biases in the dtype of what it was given."""
    mx = pytest.importorskip("mlx.core")
    codec = MlxAffine(bits, group_size, dtype)
    for what, values in INPUTS.items():
        x = torch.from_numpy(values).to(getattr(torch, dtype))
        theirs = [array.astype(mx.float32) if array.dtype != mx.uint32 else array for array in quantize(mx, x, bits, group_size)]
        words, scales, biases = (np.array(array) for array in theirs)
        packed = codec.encode(x[None, None])
        assert np.array_equal(packed["words"][0, 0].numpy(), words.view(np.uint8)), what
        assert np.array_equal(packed["scales"][0, 0].float().numpy(), scales), what
        assert np.array_equal(packed["biases"][0, 0].float().numpy(), biases), what


def quantize(mx, x, bits, group_size):
    return mx.quantize(mx.array(x.float().numpy()).astype(getattr(mx, str(x.dtype).removeprefix("torch."))), group_size, bits)


@pytest.mark.parametrize("bits", BITS)
def test_float32_vectors_keep_mlxs_scales_rounded_once(bits):
    mx = pytest.importorskip("mlx.core")
    x = torch.from_numpy(BASE).float()
    words, scales, biases = (np.array(array) for array in quantize(mx, x, bits, 64))
    packed = MlxAffine(bits, 64, "float16").encode(x[None, None])
    assert np.array_equal(packed["words"][0, 0].numpy(), words.view(np.uint8))
    assert np.array_equal(packed["scales"][0, 0].numpy(), scales.astype(np.float16))
    assert np.array_equal(packed["biases"][0, 0].numpy(), biases.astype(np.float16))


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_mlx(bits):
    mx = pytest.importorskip("mlx.core")
    x = torch.from_numpy(BASE).float()
    codec = MlxAffine(bits, 64, "float32")
    theirs = np.array(mx.dequantize(*quantize(mx, x, bits, 64), 64, bits))
    ours = codec.decode(codec.encode(x[None, None]), 128, torch.float32)[0, 0].numpy()
    assert np.allclose(ours, theirs, rtol=0, atol=1e-6)  # MLX may fuse the multiplication and the sum


@pytest.mark.parametrize("bits", BITS)
def test_blocks_are_words_then_scales_then_biases(bits):
    mx = pytest.importorskip("mlx.core")
    x = torch.from_numpy(BASE).half()
    rows = [np.array(array).view(np.uint8) for array in quantize(mx, x, bits, 32)]
    codec = MlxAffine(bits, 32)
    assert np.array_equal(codec.to_blocks(codec.encode(x[None, None]))[0, 0].numpy(), np.concatenate(rows, axis=1))


def test_a_group_by_hand():
    """0 to 7 in three bits: 7 is the larger edge, so scale −1 and bias 7; the codes run backwards."""
    x = (torch.arange(32.0) % 8)[None, None, None]
    packed = MlxAffine(3, 32).encode(x)
    assert packed["scales"].item() == -1
    assert packed["biases"].item() == 7
    word = sum((7 - i) << 3 * i for i in range(8)).to_bytes(3, "little")
    assert bytes(packed["words"].flatten().tolist()) == word * 4


# mlx 0.32 on N(0, 1), float32: mean squared error at 2, 3, 4, 5, 6, 8 bits. Scales and biases in float16 add to that of 8 bits.
NMSE = {32: (0.131, 0.029, 6.5e-3), 64: (0.156, 0.036, 8.3e-3, 1.9e-3, 4.7e-4, 2.8e-5), 128: (0.177, 0.042, 1.0e-2)}


@pytest.mark.parametrize("group_size", GROUPS)
def test_error_on_gaussian_groups(group_size):
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 1, 8192, 128)))
    for bits, expected in zip(BITS, NMSE[group_size], strict=False):
        codec = MlxAffine(bits, group_size, "float32")
        lost = float((codec.decode(codec.encode(x), 128, torch.float64) - x).square().mean())
        assert lost == pytest.approx(expected, rel=0.03), bits


@pytest.mark.parametrize(
    ("bits", "group_size", "sizes"),
    [
        (2, 32, {64: 24, 96: 36, 128: 48, 256: 96}),
        (3, 64, {64: 28, 128: 56, 256: 112}),
        (4, 64, {64: 36, 128: 72, 256: 144}),
        (5, 128, {128: 84, 256: 168}),
        (6, 64, {64: 52, 128: 104, 256: 208}),
        (8, 32, {64: 72, 96: 108, 128: 144, 256: 288}),
    ],
)
def test_bytes_per_vector(bits, group_size, sizes):
    """head_dim · bits / 8, and four bytes per group: bits + 32 / group per value."""
    codec = MlxAffine(bits, group_size)
    assert {head_dim: codec.layout(head_dim).nbytes for head_dim in sizes} == sizes
    assert codec.layout(128).bits(128) == bits + 32 / group_size


def test_presets_take_the_bits_of_their_names():
    assert preset("mlx4_g64").bits(128) == (4.5, 4.5)
    assert preset("mlx3_g32").bits(96) == (4.0, 4.0)
    assert preset("sanctum3").bits(128) == (3.25, 3.5)  # K: b + 32 / head_dim, V: b + 32 / 64


@pytest.mark.parametrize(("group_size", "head_dim"), [(32, 80), (64, 96), (128, 64)])
def test_a_group_that_does_not_fit_is_refused(group_size, head_dim):
    with pytest.raises(Unsupported, match=str(head_dim)):
        MlxAffine(4, group_size).check(head_dim)


def outlier_channel():
    x = BASE.copy()
    x[:, 7] += 40
    return x


@pytest.mark.parametrize("x", [BASE, np.random.default_rng(1).standard_t(3, (256, 128)), outlier_channel()])
@pytest.mark.parametrize("group_size", GROUPS)
def test_more_bits_lose_less(group_size, x):
    x = torch.from_numpy(x)[None, None]
    codecs = [MlxAffine(bits, group_size) for bits in BITS]
    lost = [float((codec.decode(codec.encode(x), 128, torch.float64) - x).square().mean()) for codec in codecs]
    assert lost == sorted(lost, reverse=True)
