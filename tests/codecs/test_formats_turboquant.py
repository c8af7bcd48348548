"""The TurboQuant family's formats: bytes per vector, bit streams written out, and the policies that its projects ship."""

import math
import struct

import numpy as np
import pytest
import torch

from tqbench.codecs.codebook import Codebook
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

# Bytes of K and of V per head vector, by head_dim. Sources: the block structs of the two llama.cpp forks, vLLM's slot sizes.
BYTES = {
    # TheTom's fork: 34, 50 and 66 (with the dead field 68) bytes per 128 values; heads are padded to a multiple of 128 or, here, split.
    "turbo2": {64: (18, 18), 128: (34, 34), 256: (68, 68)},
    "turbo3": {64: (26, 26), 128: (50, 50), 256: (100, 100)},
    "turbo4": {64: (34, 34), 128: (66, 66), 256: (132, 132)},
    "turbo2_pad128": {64: (34, 34), 80: (34, 34), 96: (34, 34), 128: (34, 34), 192: (68, 68), 256: (68, 68)},
    "turbo3_pad128": {64: (50, 50), 80: (50, 50), 96: (50, 50), 128: (50, 50), 192: (100, 100), 256: (100, 100), 576: (250, 250)},
    "turbo4_pad128": {64: (66, 66), 80: (66, 66), 96: (66, 66), 128: (66, 66), 256: (132, 132)},
    "turbo4_fork": {64: (68, 68), 80: (68, 68), 96: (68, 68), 128: (68, 68), 256: (136, 136)},
    # AmesianX: tbq3_0 98, tbq4_0 130, tbqp3_0 100, tbqp4_0 132 for 256; _1 for 128, _2 for 64. V is never the product form.
    "tbq3": {64: (26, 26), 128: (50, 50), 256: (98, 98)},
    "tbq4": {64: (34, 34), 128: (66, 66), 256: (130, 130)},
    "tbqp3": {64: (28, 26), 128: (52, 50), 256: (100, 98)},
    "tbqp4": {64: (36, 34), 128: (68, 66), 256: (132, 130)},
    # vLLM: K is b · d / 8 + 2 or, in fp8, d; V is b · d / 8 + 4.
    "vllm_k8v4": {64: (64, 36), 128: (128, 68), 256: (256, 132)},
    "vllm_4bit_nc": {64: (34, 36), 128: (66, 68), 256: (130, 132)},
    "vllm_k3v4_nc": {64: (26, 36), 128: (50, 68), 256: (98, 132)},
    "vllm_3bit_nc": {64: (26, 28), 128: (50, 52), 256: (98, 100)},
    "vllm_4bit_nc_signed": {64: (34, 36), 128: (66, 68), 256: (130, 132)},
    "vllm_int8_per_token_head": {64: (68, 68), 80: (84, 84), 128: (132, 132)},
    "vllm_int4_per_token_head": {64: (36, 36), 128: (68, 68), 256: (132, 132)},
    # The paper, one fp16 norm per vector; the product form has two.
    "turboquant_mse1": {64: (10, 10), 80: (12, 12), 96: (14, 14), 128: (18, 18), 256: (34, 34)},
    "turboquant_mse3": {64: (26, 26), 80: (32, 32), 96: (38, 38), 128: (50, 50), 256: (98, 98)},
    "turboquant_mse4": {64: (34, 34), 80: (42, 42), 96: (50, 50), 128: (66, 66), 256: (130, 130)},
    "turboquant_prod3": {64: (28, 26), 80: (34, 32), 96: (40, 38), 128: (52, 50), 256: (100, 98)},
    "turboquant_2.5": {64: (22, 22), 96: (31, 31), 128: (40, 40), 256: (76, 76)},
    "turboquant_3.5": {64: (32, 32), 80: (39, 39), 96: (46, 46), 128: (60, 60), 256: (116, 116)},
    "mlx_vlm3": {64: (26, 26), 96: (38, 38), 128: (50, 50)},
    "mlx_vlm_2.5": {64: (18, 26), 128: (34, 50)},
    "mlx_vlm_3.5": {64: (26, 34), 128: (50, 66)},
    "mlx_vlm_2.5_split": {64: (24, 24), 128: (44, 44)},
    "planar3": {64: (26, 26), 128: (50, 50), 256: (100, 100)},
    "planarquant3": {64: (26, 26), 80: (32, 32), 128: (50, 50), 256: (98, 98)},
    "iso4": {64: (34, 34), 128: (66, 66), 256: (132, 132)},
    "isoquant4": {64: (34, 34), 96: (50, 50), 128: (66, 66), 256: (130, 130)},
}
REFUSED = {
    "turbo3": (80, 96),
    "tbq3": (40, 80, 96, 112),
    "tbqp4": (80, 96, 512),
    "vllm_4bit_nc": (80, 96),
    "turboquant_2.5": (80,),
}


@pytest.mark.parametrize(("name", "head_dim"), [(name, head_dim) for name, sizes in BYTES.items() for head_dim in sizes])
def test_bytes_per_vector(name, head_dim):
    scheme = preset(name)
    for side, size in zip((scheme.k, scheme.v), BYTES[name][head_dim], strict=True):
        codec = side.codec.calibrate(torch.ones(1, 1, 1, head_dim))
        assert codec.layout(head_dim).nbytes == size
        assert nbytes(codec.encode(torch.ones(1, 1, 1, head_dim))) == size


@pytest.mark.parametrize(("name", "head_dim"), [(name, head_dim) for name, sizes in REFUSED.items() for head_dim in sizes])
def test_head_dims_without_a_format_are_refused(name, head_dim):
    with pytest.raises(Unsupported, match=f"head_dim {head_dim}"):
        preset(name).check(head_dim)


@pytest.mark.parametrize(("name", "slot"), [("k8v4", 196), ("4bit_nc", 134), ("k3v4_nc", 118), ("3bit_nc", 102)])
def test_slots_of_vllm(name, slot):
    scheme = preset(f"vllm_{name}")
    assert scheme.k.codec.layout(128).nbytes + scheme.v.codec.layout(128).nbytes == slot


@pytest.mark.parametrize(("name", "head_dim", "bits"), [("turbo3_pad128", 64, 6.25), ("turbo3_pad128", 80, 5.0), ("turbo3", 128, 3.125)])
def test_bits_per_value(name, head_dim, bits):
    assert preset(name).bits(head_dim) == (bits, bits)


def test_the_older_turbo3_took_14_bytes_per_32():
    assert Codebook(3, table="turbo", group=32).layout(32).nbytes == 14


def in_cells(indices, bits):
    """A vector of norm 8 that begins in these cells and is 0 elsewhere, but for the end."""
    levels = {3: (-2.15, -1.34, -0.76, -0.25, 0.25, 0.76, 1.34, 2.15), 4: [i / 3 - 2.5 for i in range(16)]}[bits]
    y = torch.zeros(64)
    y[: len(indices)] = torch.tensor([levels[i] for i in indices])
    y[56:] = ((64 - y.square().sum()) / 8).sqrt()
    return y[None, None, None]


def test_three_bits_as_a_stream():
    """0, 1, … 7 from the lowest bit on are the octal number 76543210, that is fac688 in hexadecimal; eight times 4 are 924924."""
    codes = Codebook(3, scale="raw", planes="stream").encode(in_cells(range(8), 3))["codes"].flatten()
    assert bytes(codes[:9].tolist()) == bytes.fromhex("88c6fa 244992 244992")


def test_four_bits_as_a_stream():
    codes = Codebook(4, scale="raw", planes="stream").encode(in_cells((15, 0, 1, 14), 4))["codes"].flatten()
    assert bytes(codes[:3].tolist()) == bytes.fromhex("0f e1 88")


def hadamard(x):
    y, width = list(x), 1
    while width < len(y):
        for i in range(len(y)):
            if not i & width:
                y[i], y[i | width] = y[i] + y[i | width], y[i] - y[i | width]
        width *= 2
    return y


SIGNS = bytes.fromhex("a73b91f46dc2580eb37f24d68945ea1c63afd852970be13d76c419fe4a852cdb")
# Positive boundaries: AmesianX has the converged ones, vLLM those where its own iteration stops.
BOUNDS = {
    "tbq": {3: (0.50055, 1.04996, 1.74793), 4: (0.25822, 0.52240, 0.79955, 1.09929, 1.43714, 1.84353, 2.40080)},
    "vll": {3: (0.50031, 1.04941, 1.74676), 4: (0.25828, 0.52251, 0.79966, 1.09935, 1.43707, 1.84316, 2.39968)},
}


@pytest.mark.parametrize("name", ["tbq3", "tbq4", "vllm_k3v4_nc", "vllm_4bit_nc"])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_one_key_by_hand(dim, name):
    """fp16 norm and bit stream, with nothing but Python's floats. AmesianX flips signs before the Hadamard transform, vLLM does not."""
    bits = 3 if "3" in name else 4
    x = np.random.default_rng(11).standard_normal(dim).astype(np.float32).tolist()
    norm = math.sqrt(sum(v * v for v in x))
    signed = [-v if SIGNS[j // 8] >> j % 8 & 1 else v for j, v in enumerate(x)] if name.startswith("tbq") else x
    u = [v / norm for v in hadamard(signed)]
    positive = BOUNDS[name[:3]][bits]
    bounds = [*(-b for b in reversed(positive)), 0.0, *positive]
    codes = [sum(v >= b for b in bounds) for v in u]
    packed = preset(name).k.codec.encode(torch.tensor(x)[None, None, None])
    assert packed["norms"].flatten().tolist() == [struct.unpack("<e", struct.pack("<e", norm))[0]]
    stream = sum(code << bits * i for i, code in enumerate(codes)).to_bytes(dim * bits // 8, "little")
    assert bytes(packed["codes"].flatten().tolist()) == stream


def test_values_of_vllm_by_hand():
    """Not rotated; the scale is 15 / 15 and the code ⌊v + 1 + 1/2⌋."""
    v = torch.full((1, 1, 1, 64), -1.0)
    v[..., :4] = torch.tensor([14.0, 0.4, 0.5, 3.2])
    packed = preset("vllm_4bit_nc").v.codec.encode(v)
    assert packed["codes"].flatten()[:3].tolist() == [0x1F, 0x42, 0x00]
    assert (packed["scales"].item(), packed["minima"].item()) == (1.0, -1.0)


def sides(scheme, layers, sharing=1):
    """(K, V) of each layer, by the bits and codec that it runs."""

    def spell(side):
        codec = side.codec.plain
        return codec.name if codec.name in ("cast", "block") else f"{codec.name}{codec.bits}"

    return [tuple(spell(side) for side in (one.k, one.v)) for one in (scheme.for_layer(i, layers, sharing) for i in range(layers))]


POLICIES = {
    "turbo3_mode1": (("codebook3", "codebook3"), ("block", "block"), [0, 1, 2, 3, 20, 21, 22, 23]),
    "turbo3_mode2": (("codebook3", "codebook3"), ("block", "block"), list(range(16, 24))),
    "turbo2_mode5": (("codebook2", "codebook2"), ("codebook2", "codebook4"), [0, 1, 22, 23]),
    "turbo2_mode6": (("codebook2", "codebook2"), ("codebook2", "codebook4"), list(range(16, 24))),
    "turbo2_mode7": (("codebook2", "codebook2"), ("codebook2", "block"), [0, 1, 22, 23]),
    "q8_0_turbo2_mode7": (("block", "codebook2"), ("block", "block"), [0, 1, 22, 23]),
    "vllm_3bit_nc": (("codebook3", "affine3"), ("cast", "cast"), [0, 1, 22, 23]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_layers_that_run_another_type(name):
    usual, other, layers = POLICIES[name]
    assert sides(preset(name), 24) == [other if layer in layers else usual for layer in range(24)]


@pytest.mark.parametrize(("sharing", "k"), [(5, "codebook3"), (6, "block"), (8, "block")])
def test_the_fork_takes_q8_0_keys_where_many_queries_share_a_head(sharing, k):
    assert sides(preset("turbo3_auto"), 2, sharing) == [(k, "codebook3")] * 2


@pytest.mark.parametrize(
    ("name", "keys", "factor"),
    [
        ("tbq3_alpha256", 4096, 1 + 0.00579 * math.sqrt(math.log(4096))),
        ("tbqp3_alpha256", 4096, 1 + 0.01304 * math.sqrt(math.log(4096))),
        ("tbq4_alpha64", 2048, 14.05 / 15.05),
        ("tbqp4_alpha64", 2048, 6.13 / 7.13),
    ],
)
def test_logits_of_amesianx(name, keys, factor):
    assert preset(name).logits.factor(keys) == pytest.approx(factor)
    assert preset(name.partition("_")[0]).logits is None


def test_the_two_meanings_of_a_half_bit_in_mlx_vlm():
    assert [side.codec.plain.bits for side in (preset("mlx_vlm_3.5").k, preset("mlx_vlm_3.5").v)] == [3, 4]
    assert preset("mlx_vlm_3.5_split").bits(128) == (3.75, 3.75)


@pytest.mark.parametrize("name", ["tq3_1s", "tq4_1s"])
def test_formats_for_weights_are_refused_by_name(name):
    with pytest.raises(ConfigError, match="format for weights"):
        preset(name)
