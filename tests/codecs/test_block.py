"""The block codec against gguf's own implementation, byte for byte, and iq4_nl against ggml's formula in NumPy."""

import gguf
import numpy as np
import pytest
import torch

from tqbench.codecs.block import BLOCK, Block
from tqbench.codecs.blocks.wrap import Interleaved
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

CODECS = {
    "q8_0": Block(8),
    "q5_1": Block(5, "affine"),
    "q5_0": Block(5),
    "q4_1": Block(4, "affine"),
    "q4_0": Block(4),
    "iq4_nl": Block(4, "nonlinear"),
}
TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in CODECS}
ENCODED = [name for name in CODECS if name != "iq4_nl"]  # gguf has no encoder for that one
LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]  # ggml-common.h, kvalues_iq4nl


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
    "huge": gaussian() * 1.5e4,
    "tiny": gaussian() * 1e-7,
    "scales that are zero in fp16": gaussian() * 1e-30,
}


def bytes_of(name, x):
    codec = CODECS[name]
    return codec.to_blocks(codec.encode(torch.from_numpy(np.float32(x))[None, None]))[0, 0].numpy()


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("what", INPUTS)
def test_bytes_are_those_of_gguf(what, name):
    x = INPUTS[what].astype(np.float32)
    assert np.array_equal(bytes_of(name, x), gguf.quantize(x, TYPES[name]))


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0"])
def test_without_a_minimum_larger_values_fit(name):
    x = (gaussian() * 6e4).astype(np.float32)
    assert np.array_equal(bytes_of(name, x), gguf.quantize(x, TYPES[name]))


@pytest.mark.parametrize("name", ["q5_1", "q4_1"])
def test_a_minimum_beyond_fp16_is_refused(name):
    with pytest.raises(Unsupported, match="minima"):
        CODECS[name].encode(torch.full((1, 1, 1, 32), -70000.0))


@pytest.mark.parametrize(("name", "first", "last"), [("q4_0", -8, 7), ("q5_0", -16, 15), ("q5_1", 0, 31), ("q4_1", 0, 15)])
def test_halves_are_rounded_as_gguf_rounds_them(name, first, last):
    halves = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    near = [np.nextafter(halves, np.float32(bound)) for bound in (-999, 999)]  # float32 sums of these are ties again
    rows = np.resize(np.concatenate([halves, *near]), (8, BLOCK))
    rows[:, 0], rows[:, 1] = first, last  # so that the scale is 1
    assert np.array_equal(bytes_of(name, rows), gguf.quantize(rows, TYPES[name]))


@pytest.mark.parametrize("name", CODECS)
def test_values_are_those_of_gguf(name):
    raw = bytes_of(name, gaussian())
    packed = CODECS[name].from_blocks(torch.from_numpy(raw)[None, None], 128)
    assert np.array_equal(CODECS[name].decode(packed, 128, torch.float32)[0, 0].numpy(), gguf.dequantize(raw, TYPES[name]))


@pytest.mark.parametrize("name", CODECS)
def test_any_bytes_survive_being_unpacked(name):
    size = CODECS[name].layout(128).nbytes
    raw = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, 2, 8, size), dtype=np.uint8))
    assert torch.equal(CODECS[name].to_blocks(CODECS[name].from_blocks(raw, 128)), raw)


def iq4_nl(block):
    """One block, one value after another, as quantize_row_iq4_nl_impl does it without a search (ntry = −1): codes and scale."""
    largest = max(block, key=abs)  # the first of several
    if abs(largest) < 1e-15:
        return [0] * len(block), np.float16(0)
    inverse, codes, above, below = np.float32(1) / (largest / np.float32(-127)), [], np.float32(0), np.float32(0)
    for x in block:
        scaled = x * inverse
        codes.append(max(i for i in range(16) if i == 0 or scaled + scaled >= LEVELS[i - 1] + LEVELS[i]))
        q = np.float32(LEVELS[codes[-1]])
        above, below = above + x * x * q * x, below + x * x * q * q
    return codes, np.float16(above / below)


@pytest.mark.parametrize("what", ["gaussian", "heavy tails", "constants", "equal extremes", "zeros", "just below a half"])
def test_iq4_nl_is_ggmls_formula(what):
    x = INPUTS[what].astype(np.float32).reshape(-1, BLOCK)
    raw = bytes_of("iq4_nl", x)
    expected = [iq4_nl(block) for block in x]
    codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
    assert np.array_equal(codes, [codes for codes, _ in expected])
    scales, want = (values.astype(np.float16) for values in (raw[:, :2].copy().view(np.float16)[:, 0], np.array([s for _, s in expected])))
    assert (np.abs(scales.view(np.int16).astype(int) - want.view(np.int16)) <= 1).all()  # ggml adds up in float32
    assert (scales == want).mean() > 0.99


def test_iq4_nl_keeps_its_own_levels():
    block = np.resize(np.array(LEVELS, np.float32) / 2, (1, BLOCK))
    raw = bytes_of("iq4_nl", block)[0]
    assert raw[:2].tobytes() == np.float16(0.5).tobytes()
    assert raw[2:].tolist() == [i | i << 4 for i in range(16)]  # channel j beside j + 16, both of level j


def test_iq4_nl_takes_the_upper_of_two_levels_as_near():
    block = np.zeros((1, BLOCK), np.float32)
    block[0, :3] = -127, -4.5, np.nextafter(np.float32(-4.5), np.float32(-9))  # −4.5 lies between −10 and 1
    assert (bytes_of("iq4_nl", block)[0, 2:5] & 15).tolist() == [0, 8, 7]


def test_iq4_nl_keeps_the_scale_of_weighted_least_squares():
    block = np.zeros((1, BLOCK), np.float32)
    block[0, :2] = -127, 120  # 120 becomes level 113; the zeros weigh nothing
    best = (127**4 + 120**3 * 113) / (127**4 + 120**2 * 113**2)
    assert bytes_of("iq4_nl", block)[0, :2].tobytes() == np.float16(best).tobytes()


# Bytes of one block of 32: ggml-common.h.
@pytest.mark.parametrize(("name", "size"), [("q8_0", 34), ("q5_1", 24), ("q5_0", 22), ("q4_1", 20), ("q4_0", 18), ("iq4_nl", 18)])
def test_bytes_per_vector(name, size):
    assert [CODECS[name].layout(head_dim).nbytes for head_dim in (64, 96, 128, 256)] == [2 * size, 3 * size, 4 * size, 8 * size]
    with pytest.raises(Unsupported, match="80"):
        CODECS[name].check(80)


@pytest.mark.parametrize(("bits", "form"), [(8, "affine"), (5, "nonlinear"), (8, "nonlinear")])
def test_types_that_llamacpp_does_not_have_are_refused(bits, form):
    with pytest.raises(ConfigError, match=r"^bits "):
        Block(bits, form)


def outlier_channel():
    x = gaussian()
    x[:, 7] += 40
    return x


@pytest.mark.parametrize("x", [gaussian(), np.random.default_rng(1).standard_t(3, (64, 128)), outlier_channel()])
@pytest.mark.parametrize("order", [("q8_0", "q5_0", "q4_0"), ("q8_0", "q5_1", "q4_1")])
def test_more_bits_lose_less(order, x):
    x = torch.from_numpy(x)[None, None]
    lost = [float((CODECS[name].decode(CODECS[name].encode(x), 128, torch.float64) - x).square().mean()) for name in order]
    assert lost == sorted(lost)


@pytest.mark.parametrize("name", ENCODED)
def test_llamacpp_interleaves_the_pairs_that_hugging_face_keeps_apart(name):
    x = torch.from_numpy(gaussian()[:, :64].astype(np.float32))[None, None]
    theirs = np.empty_like(x)
    for i in range(32):
        theirs[..., 2 * i], theirs[..., 2 * i + 1] = x[..., i], x[..., i + 32]
    codec = Interleaved(CODECS[name])
    packed = codec.encode(x)
    assert np.array_equal(codec.to_blocks(packed).numpy(), gguf.quantize(theirs, TYPES[name]))
    decoded = gguf.dequantize(gguf.quantize(theirs, TYPES[name]), TYPES[name])
    assert np.array_equal(codec.decode(packed, 64, torch.float32)[..., 1].numpy(), decoded[..., 2])
    assert np.array_equal(codec.decode(packed, 64, torch.float32)[..., 33].numpy(), decoded[..., 3])


def sylvester(n):
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / n**0.5


# llama-kv-cache.cpp: K in groups of the largest power of two that divides head_dim, V in groups of 64.
@pytest.mark.parametrize(("head_dim", "k", "v"), [(64, 64, 64), (128, 128, 64), (192, 64, 64), (256, 256, 64)])
def test_rotated_types_are_gguf_of_rotated_vectors(head_dim, k, v):
    x = np.random.default_rng(3).standard_normal((16, head_dim))
    scheme = preset("q8_0_rot")
    for codec, group in ((scheme.k.codec, k), (scheme.v.codec, v)):
        theirs = (x.reshape(16, -1, group) @ sylvester(group).T).reshape(16, -1)
        ours = codec.to_blocks(codec.encode(torch.from_numpy(x)[None, None]))[0, 0].numpy()
        same = (ours == gguf.quantize(theirs.astype(np.float32), TYPES["q8_0"])).mean()
        assert same > 0.999  # both round a product of matrices; a code on a boundary may go either way


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("head_dim", [80, 96, 112])
def test_llamacpp_rotates_only_where_64_divides_head_dim(name, head_dim):
    with pytest.raises(Unsupported, match=str(head_dim)):
        preset(f"{name}_rot").check(head_dim)
