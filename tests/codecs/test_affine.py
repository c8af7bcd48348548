"""The affine codec against KIVI's and vLLM's formulas in NumPy."""

import numpy as np
import pytest
import torch

from tqbench.codecs.affine import Affine
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset
from tqbench.testing import codec_cases

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
@pytest.mark.parametrize("bits", [2, 3, 4])
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


def test_three_bits_are_a_stream_that_begins_with_the_lowest():
    x = (torch.arange(16.0) % 8)[None, None, None]  # 0 to 7, twice
    codes = Affine(3, 16).encode(x)["codes"].flatten().tolist()
    word = sum(code << 3 * code for code in range(8)).to_bytes(3, "little")
    assert bytes(codes) == word * 2


@pytest.mark.parametrize(
    ("bits", "group", "effective"), [(2, 32, 3.0), (4, 32, 5.0), (2, 128, 2.25), (8, 64, 8.5), (1, 16, 3.0), (3, 64, 3.5), (7, 32, 8.0)]
)
def test_bits_count_the_scales(bits, group, effective):
    for axis in ("channel", "token"):
        assert Affine(bits, group, axis).layout(128).bits(128) == effective


# One group per vector: vLLM's slots of values, turboquant/config.py: 52 and 68 bytes at head_dim 128.
@pytest.mark.parametrize(
    ("bits", "sizes"),
    [
        (3, {64: 28, 80: 34, 96: 40, 128: 52, 256: 100}),
        (4, {64: 36, 80: 44, 96: 52, 128: 68, 256: 132}),
        (5, {64: 44, 128: 84}),
        (8, {64: 68, 128: 132}),
    ],
)
def test_bytes_of_a_whole_vector(bits, sizes):
    codec = Affine(bits, 0, rounding="half_up", encode_with="exact")
    assert {head_dim: codec.layout(head_dim).nbytes for head_dim in sizes} == sizes


def test_scales_kept_in_float32_take_twice_the_bytes():
    assert Affine(4, 64, kept="float32").layout(128).bits(128) == 5.0


def test_kivi2_takes_three_bits():
    assert preset("kivi2").bits(128) == (3.0, 3.0)


def vllm(vector, bits):
    """vLLM's values, one vector: codes, and the scale and minimum that are kept."""
    low, high = vector.min(), vector.max()
    scale = max((high - low) / np.float32(2**bits - 1), np.float32(1e-8))
    return np.floor((vector - low) / scale + np.float32(0.5)), np.float16(scale), np.float16(low)


@pytest.mark.parametrize("bits", [3, 4])
def test_values_of_vllm_are_encoded_exactly_and_decoded_with_what_is_kept(bits):
    codec = Affine(bits, 0, encode_with="exact", rounding="half_up")
    decoded = codec.decode(codec.encode(torch.from_numpy(X)), 64, torch.float32).numpy()
    for at in np.ndindex(*X.shape[:3]):
        codes, scale, minimum = vllm(X[at], bits)
        assert np.allclose(decoded[at], codes * np.float32(scale) + np.float32(minimum), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rounding", "codes"), [("nearest_even", [0, 0, 2, 2, 15]), ("half_up", [0, 1, 2, 3, 15])])
def test_halves_go_as_they_are_told_to(rounding, codes):
    x = torch.tensor([0, 0.5, 1.5, 2.5, 15.0, *[0.0] * 11])[None, None, None]
    packed = Affine(4, 16, rounding=rounding).encode(x)["codes"].flatten()
    assert [packed[0] & 15, packed[0] >> 4, packed[1] & 15, packed[1] >> 4, packed[2] & 15] == codes


def test_symmetric_int8_is_vllms_slot():
    codec = Affine(8, 0, form="symmetric", kept="float32")
    assert codec.layout(128).nbytes == 128 + 4
    packed = codec.encode(torch.from_numpy(X))
    scale = np.maximum(np.abs(X).max(-1, keepdims=True) / np.float32(127), np.float32(1e-6))
    codes = np.clip(np.rint(X * (np.float32(1) / scale)), -128, 127).astype(np.int8)
    assert np.array_equal(packed["codes"].numpy().view(np.int8), codes)
    assert np.array_equal(packed["scales"].numpy(), scale)
    assert np.array_equal(codec.decode(packed, 64, torch.float32).numpy(), codes * scale)


def test_symmetric_int4_is_twos_complement():
    x = torch.tensor([7.0, -7.0, -1.0, 3.0, *[0.0] * 12])[None, None, None]
    codec = Affine(4, 16, form="symmetric")
    packed = codec.encode(x)
    assert packed["codes"].flatten()[:2].tolist() == [0x97, 0x3F]
    assert torch.equal(codec.decode(packed, 16, torch.float32), x)


def test_a_vector_of_zeros_stays_one():
    for form in ("affine", "symmetric"):
        for how in ("kept", "exact"):
            codec = Affine(4, 0, form=form, encode_with=how)
            assert not codec.decode(codec.encode(torch.zeros(1, 1, 2, 64)), 64, torch.float32).any()


@pytest.mark.parametrize(
    ("field", "params"), [("group_size", {"group_size": 0, "axis": "channel"}), ("bits", {"bits": 1, "form": "symmetric"})]
)
def test_what_cannot_be_is_refused_by_name(field, params):
    with pytest.raises(ConfigError, match=f"^{field} "):
        Affine(**params)


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(Unsupported, match="80"):
        Affine(4, 32).check(80)
    Affine(4, 32, "channel").check(80)
    Affine(3, 0).check(80)
    with pytest.raises(Unsupported, match="100"):
        Affine(3, 0).check(100)


def test_a_channel_of_its_own_range_is_not_hurt_by_an_outlier_beside_it():
    errors = {}
    for axis in ("channel", "token"):
        codec = Affine(2, 32, axis)
        errors[axis] = (codec.decode(codec.encode(torch.from_numpy(X)), 64, torch.float32)[..., :5] - torch.from_numpy(X)[..., :5]).norm()
    assert errors["channel"] < errors["token"] / 2


SAMPLES = {
    "gaussian": np.random.default_rng(1).standard_normal((1, 2, 128, 64)),
    "heavy tails": np.random.default_rng(1).standard_t(3, (1, 2, 128, 64)),
    "outlier channel": X[:1, :2].astype(np.float64),
}


@pytest.mark.parametrize("what", SAMPLES)
@pytest.mark.parametrize(
    "params",
    [
        {"group_size": 32, "axis": "channel"},
        {"group_size": 64},
        {"group_size": 0, "encode_with": "exact", "rounding": "half_up"},
        {"group_size": 0, "form": "symmetric", "kept": "float32"},
    ],
    ids=str,
)
def test_more_bits_lose_less(params, what):
    x = torch.from_numpy(SAMPLES[what])
    codecs = [Affine(bits, **params) for bits in range(2, 9)]
    lost = [float((codec.decode(codec.encode(x), 64, torch.float64) - x).square().mean()) for codec in codecs]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0] / 500  # six bits are a factor of 4 ** 6 but for the ends of the range


def schemes():
    for bits in (3, 5, 6, 7):
        yield {
            "name": f"whole {bits}",
            "k": {"codec": "affine", "bits": bits, "group_size": 0, "encode_with": "exact", "rounding": "half_up"},
            "v": {"codec": "affine", "bits": bits, "group_size": 0, "form": "symmetric", "kept": "float32"},
        }
        yield {
            "name": f"groups {bits}",
            "k": {"codec": "affine", "bits": bits, "group_size": 16, "axis": "channel", "kept": "float32"},
            "v": {"codec": "affine", "bits": bits, "group_size": 16, "form": "symmetric"},
        }


@pytest.mark.parametrize("case", codec_cases(schemes()), ids=str)
def test_every_form_keeps_the_rules(case):
    case.run()
