"""The block codec against gguf's own implementation, byte for byte."""

import gguf
import numpy as np
import pytest
import torch

from tqbench.codecs.block import BLOCK, Block
from tqbench.codecs.blocks.wrap import Interleaved

TYPES = {8: gguf.GGMLQuantizationType.Q8_0, 4: gguf.GGMLQuantizationType.Q4_0}


def gaussian():
    return np.random.default_rng(0).standard_normal((64, 128))


def ties():
    """Codes that fall on, just below and just above a boundary between two cells."""
    steps = np.arange(-127, 127)[:, None] + np.float32(0.5)
    near = np.concatenate([steps, np.nextafter(np.float32(steps), np.float32(-999)), np.nextafter(np.float32(steps), np.float32(999))], 1)
    rows = np.resize(near, (96, BLOCK))
    rows[:, 0] = 127  # so that the scale of 8 bits is 1
    return np.concatenate([rows, rows * [[-1.0]], rows / 8 * 0.9])


INPUTS = {
    "gaussian": gaussian(),
    "heavy tails": np.random.default_rng(1).standard_t(2, (64, 128)),
    "zeros": np.zeros((2, 64)),
    "negative zeros": -np.zeros((2, 64)),
    "constants": np.full((2, 64), -0.7),
    "ties": ties(),
    "just below a half": np.array([[127.0, 0.49999997, -0.49999997, 1.4999999, *[0.0] * 28]]),
    "equal extremes": np.resize([2.0, -2.0, 0.5, -0.5], (2, 64)),
    "huge": gaussian() * 6e4,
    "tiny": gaussian() * 1e-7,
}


@pytest.mark.parametrize("bits", TYPES)
@pytest.mark.parametrize("name", INPUTS)
def test_bytes_are_those_of_gguf(name, bits):
    x = INPUTS[name].astype(np.float32)
    codec = Block(bits)
    packed = codec.encode(torch.from_numpy(x)[None, None])
    assert np.array_equal(codec.to_blocks(packed)[0, 0].numpy(), gguf.quantize(x, TYPES[bits]))


@pytest.mark.parametrize("bits", TYPES)
def test_values_are_those_of_gguf(bits):
    codec, raw = Block(bits), gguf.quantize(gaussian().astype(np.float32), TYPES[bits])
    packed = codec.from_blocks(torch.from_numpy(raw)[None, None], 128)
    assert np.array_equal(codec.decode(packed, 128, torch.float32)[0, 0].numpy(), gguf.dequantize(raw, TYPES[bits]))


@pytest.mark.parametrize(("bits", "size"), [(8, 34), (4, 18)])
def test_bytes_per_block(bits, size):
    assert Block(bits).layout(64).nbytes == 2 * size


@pytest.mark.parametrize("bits", TYPES)
def test_llamacpp_interleaves_the_pairs_that_hugging_face_keeps_apart(bits):
    x = torch.from_numpy(gaussian()[:, :64].astype(np.float32))[None, None]
    theirs = np.empty_like(x)
    for i in range(32):
        theirs[..., 2 * i], theirs[..., 2 * i + 1] = x[..., i], x[..., i + 32]
    codec = Interleaved(Block(bits))
    packed = codec.encode(x)
    assert np.array_equal(codec.to_blocks(packed).numpy(), gguf.quantize(theirs, TYPES[bits]))
    decoded = gguf.dequantize(gguf.quantize(theirs, TYPES[bits]), TYPES[bits])
    assert np.array_equal(codec.decode(packed, 64, torch.float32)[..., 1].numpy(), decoded[..., 2])
    assert np.array_equal(codec.decode(packed, 64, torch.float32)[..., 33].numpy(), decoded[..., 3])
