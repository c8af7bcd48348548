"""The codebook codec: known distortions, known bytes, and one vector computed by hand."""

import math
import struct
from itertools import pairwise

import numpy as np
import pytest
import torch

from tqbench.codecs.blocks import codebooks, rotations
from tqbench.codecs.codebook import Codebook
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset, read

# Squared error relative to the signal, of Gaussian vectors of 128 channels, by the rule for the length and the bits.
DISTORTION = {
    "raw": {2: 0.1161, 3: 0.03406, 4: 0.00935},
    "norm_corrected": {2: 0.1189, 3: 0.03389, 4: 0.00920},
    "norm_corrected_at_decode": {2: 0.1189, 3: 0.03389, 4: 0.00920},
    "least_squares": {2: 0.1153, 3: 0.03359, 4: 0.00918},
    "unbiased": {2: 0.1307, 3: 0.03480, 4: 0.00927},
}
SPHERE_RAW = {
    64: (0.35839, 0.11453, 0.03339, 0.00913),
    128: (0.36089, 0.11600, 0.03397, 0.00932),
    256: (0.36214, 0.11674, 0.03426, 0.00941),
}
HISTORIC = 0.01817

VECTORS = torch.randn(1, 1, 8000, 128, generator=torch.Generator().manual_seed(0))


def back(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], torch.float32)


def distortion(codec, x=VECTORS):
    return float((x - back(codec, x)).square().sum() / x.square().sum())


def rotated(**params):
    return read({"name": "rotated", "k": {"codec": "codebook", "rotation": "haar", "group": 0, **params}, "v": "f16"}).k.codec


@pytest.mark.parametrize("scale", DISTORTION)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_distortion_of_each_rule_for_the_length(bits, scale):
    assert distortion(Codebook(bits, scale=scale)) == pytest.approx(DISTORTION[scale][bits], rel=0.015)


@pytest.mark.parametrize("dim", SPHERE_RAW)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_of_the_exact_tables(bits, dim):
    x = torch.randn(1, 1, 1_000_000 // dim, dim, generator=torch.Generator().manual_seed(1))
    assert distortion(Codebook(bits, table="sphere", scale="raw", group=0), x) == pytest.approx(SPHERE_RAW[dim][bits - 1], rel=0.01)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_distortion_of_the_presets(bits):
    """The fork's tables are rounded to a group of 128 and as good."""
    assert distortion(preset(f"turbo{bits}").k.codec) == pytest.approx(DISTORTION["norm_corrected"][bits], rel=0.01)


def test_the_table_of_the_snapshot_has_twice_the_distortion():
    assert distortion(preset("turbo4_fork").k.codec) == pytest.approx(HISTORIC, rel=0.01)
    assert 1.9 < HISTORIC / DISTORTION["norm_corrected"][4] < 2.1


def test_the_largest_coordinate_meets_the_outer_level():
    y = back(Codebook(4, scale="max_abs"), VECTORS)
    at = VECTORS.abs().argmax(-1, keepdim=True)
    assert torch.allclose(y.gather(-1, at), VECTORS.gather(-1, at), rtol=1e-3)  # an fp16 length


@pytest.mark.parametrize("scale", ["norm_corrected", "norm_corrected_at_decode"])
def test_the_corrected_norm_keeps_the_length(scale):
    assert torch.allclose(back(Codebook(2, scale=scale), VECTORS).norm(dim=-1), VECTORS.norm(dim=-1), rtol=1e-3)  # fp16 norms


def test_the_unbiased_length_keeps_the_projection_on_the_original():
    projection = (back(Codebook(1, scale="unbiased"), VECTORS) * VECTORS).sum(-1) / VECTORS.square().sum(-1)
    assert torch.allclose(projection, torch.ones(()), atol=1e-3)


def test_one_raw_bit_keeps_two_over_pi_of_an_inner_product():
    projection = (back(Codebook(1, scale="raw"), VECTORS) * VECTORS).sum(-1) / VECTORS.square().sum(-1)
    assert float(projection.mean()) == pytest.approx(2 / math.pi, rel=5e-3)


def test_no_other_length_is_nearer_than_that_of_least_squares():
    y = back(Codebook(2, scale="least_squares"), VECTORS)
    assert float(((VECTORS - y) * y).sum(-1).abs().max()) < 1e-3 * 128


HEAVY = torch.from_numpy(np.random.default_rng(3).standard_t(3, (1, 1, 2000, 128)).astype(np.float32))
OUTLIER = VECTORS[:, :, :2000] * torch.where(torch.arange(128) == 17, 30.0, 1.0)


@pytest.mark.parametrize("x", [VECTORS[:, :, :2000], HEAVY, OUTLIER], ids=["gaussian", "heavy tails", "outlier channel"])
@pytest.mark.parametrize("scale", DISTORTION)
@pytest.mark.parametrize("table", ["gaussian", "sphere"])
def test_every_bit_more_is_at_least_half_of_the_error_less(table, scale, x):
    errors = [distortion(rotated(bits=bits, table=table, scale=scale), x) for bits in range(1, 9)]
    assert all(more < 0.5 * less for less, more in pairwise(errors))


@pytest.mark.parametrize(("head_dim", "error"), [(64, 0.0330), (80, 0.0211), (96, 0.0253), (128, 0.0338)])
def test_distortion_of_padded_vectors(head_dim, error):
    assert distortion(preset("turbo3_pad128").k.codec, VECTORS[..., :head_dim]) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize(
    ("group", "head_dim", "norms"), [(128, 256, 2), (0, 256, 1), (256, 128, 1), (128, 192, 3), (32, 128, 4), (0, 96, 1)]
)
def test_groups_of_channels_share_a_norm(group, head_dim, norms):
    packed = Codebook(4, group=group).encode(torch.ones(1, 1, 1, head_dim))
    assert packed["norms"].shape == (1, 1, 1, norms)


def test_a_group_knows_nothing_of_its_neighbours():
    """256 channels are two of the fork's blocks, one after the other."""
    codec, x = preset("turbo3").k.codec, torch.cat([VECTORS[:, :, :4], 5 * VECTORS[:, :, 4:8]], -1)
    halves = [codec.to_blocks(codec.encode(half)) for half in (x[..., :128], x[..., 128:])]
    assert torch.equal(codec.to_blocks(codec.encode(x)), torch.cat(halves, -1))


@pytest.mark.parametrize(("ties", "above"), [("up", 1), ("down", 0)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_value_on_a_boundary_goes_where_ties_say(bits, ties, above):
    bounds = torch.tensor(codebooks.boundaries("gaussian", bits, 64))
    some = list(range(0, len(bounds), 1 + len(bounds) // 16))  # as many as a vector of norm 8 has room for
    packed = Codebook(bits, scale="raw", ties=ties, planes="stream").quantize(exactly(bounds[some]))
    assert stream(packed["codes"], bits)[: len(some)] == [at + above for at in some]


def exactly(values):
    """A vector of 64 that begins with these coordinates and has the norm 8 in float32, so that y √g / n is y itself."""
    y = torch.zeros(64)
    y[: len(values)] = values
    y[60:] = ((64 - y.double().square().sum()) / 4).sqrt()
    while y.norm() != 8:
        y[63] = torch.nextafter(y[63], torch.tensor(0.0 if y.norm() > 8 else 9.0))
    return y[None, None, None]


def stream(packed, bits):
    """Codes of one vector, read from the bits one by one."""
    ones = [byte >> i & 1 for byte in packed.flatten().tolist() for i in range(8)]
    return [sum(bit << i for i, bit in enumerate(ones[at : at + bits])) for at in range(0, len(ones), bits)]


def test_three_bits_are_two_planes_or_one_stream():
    x = VECTORS[:, :, :3]
    split, joined = (Codebook(3, planes=planes).encode(x) for planes in ("split", "stream"))
    codes = [low | high << 2 for low, high in zip(stream(split["low"], 2), stream(split["high"], 1), strict=True)]
    assert stream(joined["codes"], 3) == codes
    assert torch.equal(back(Codebook(3, planes="split"), x), back(Codebook(3, planes="stream"), x))


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
    values = torch.tensor([levels[i] * float(np.float16(corrected)) for i in index])
    inverse = rotations.unrotate(values, "hadamard_double_signed", 128, 42)
    assert torch.allclose(codec.decode(packed, 128, torch.float32).flatten(), inverse, atol=1e-5)


def test_turbo4_keeps_the_even_index_in_the_low_nibble():
    packed = Codebook(4, scale="raw").quantize(exactly(torch.tensor([9.0, -9.0]) / 2))
    assert packed["codes"].flatten()[0] == 0x0F


def test_the_fork_reserves_two_zero_bytes_after_the_norm():
    codec = preset("turbo4_fork").k.codec
    block = codec.to_blocks(codec.encode(VECTORS[:, :, :1]))
    assert block.shape[-1] == 68
    assert block[..., 2:4].tolist() == [[[[0, 0]]]]
    assert nbytes(codec.encode(VECTORS[:, :, :1])) == 68


@pytest.mark.parametrize("head_dim", [80, 96])
def test_what_does_not_split_is_refused_with_the_way_out(head_dim):
    with pytest.raises(Unsupported, match=rf"head_dim {head_dim}.*pad: 128"):
        Codebook().check(head_dim)
    with pytest.raises(Unsupported, match=rf"head_dim {head_dim}"):
        preset("turbo3").check(head_dim)
    preset("turbo3_pad128").check(head_dim)


def test_what_does_not_fill_bytes_is_refused():
    with pytest.raises(Unsupported, match="head_dim 36: the codes of 36 channels do not end on a byte"):
        Codebook(3, group=0).check(36)


def test_a_width_without_a_table_is_an_error():
    with pytest.raises(ConfigError, match="bits must be one of 4 for table 'turbo_historic', got 3"):
        Codebook(3, table="turbo_historic")


@pytest.mark.parametrize("group", [-1, 4, 96])
def test_a_group_is_a_power_of_two(group):
    with pytest.raises(ConfigError, match=f"group must be 0 .* or a power of two from 8 on, got {group}"):
        Codebook(group=group)
