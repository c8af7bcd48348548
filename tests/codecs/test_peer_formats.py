"""Where our codecs and the caches of other libraries are the same mathematics, they give the same values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.cache import KVCache
from transformers.cache_utils import Fp8QuantizedLayer, HQQQuantizedLayer, QuantoQuantizedLayer

from backends.transformers import peers
from tqbench.codecs.affine import Affine
from tqbench.codecs.fp8 import Fp8
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.codecs.peer import Peer
from tqbench.core.errors import Unsupported

X = torch.randn(1, 3, 80, 128, generator=torch.Generator().manual_seed(0))
X[..., 5] *= 9  # a channel of outliers, as keys have them


def ours(bits: int, kept: str = "float32") -> dict[str, torch.Tensor]:
    """Codes [groups, 64] and what belongs to them [groups, 1], from codec `affine`."""
    codec = Affine(bits=bits, group_size=64, kept=kept)
    packed = codec.encode(X)
    per_byte = 8 // bits
    shifts = bits * torch.arange(per_byte)
    codes = (packed["codes"][..., None] >> shifts) & (2**bits - 1)  # one stream, least significant first
    return {"codes": codes.reshape(-1, 64), "scales": packed["scales"].reshape(-1, 1), "minima": packed["minima"].reshape(-1, 1)}


def spread(rows: torch.Tensor, bits: int, first: str) -> torch.Tensor:
    """Codes of groups that share bytes: the first part of the groups in the low bits, or in the high ones."""
    at = [bits * i for i in range(8 // bits)]
    return torch.cat([(rows >> shift) & (2**bits - 1) for shift in (at if first == "low" else at[::-1])])


@pytest.mark.parametrize("bits", [4, 2])
def test_quanto_is_affine_with_ranges_in_the_models_dtype(bits):
    """Axis 0: groups of 64 consecutive channels. Nothing is decoded here, so nothing is compiled."""
    peers.require("quanto")
    layer = QuantoQuantizedLayer(nbits=bits, axis_key=0, q_group_size=64)
    theirs, expected = layer._quantize(X, 0), ours(bits)
    assert torch.equal(spread(theirs._data._data, bits, "low"), expected["codes"])
    assert torch.equal(theirs._scale, expected["scales"])
    assert torch.equal(-theirs._shift, expected["minima"])


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 2])
def test_quanto_decodes_to_the_values_of_affine(bits):
    peers.try_out("quanto", "cpu")
    layer = QuantoQuantizedLayer(nbits=bits, axis_key=0, q_group_size=64)
    codec = Affine(bits=bits, group_size=64, kept="float32")
    assert torch.equal(layer._dequantize(layer._quantize(X, 0)), codec.decode(codec.encode(X), 128, torch.float32))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_hqq_without_its_search_is_affine(bits):
    """code = x · (1 / scale) + zero here, (x − minimum) / scale there: a rounding apart, so that single codes may differ by one."""
    from hqq.core.quantize import Quantizer

    packed, about = Quantizer.quantize(X, nbits=bits, group_size=64, axis=1, optimize=False, compute_dtype=torch.float32, device="cpu")
    codes, expected = spread(packed, bits, "high"), ours(bits)
    assert ((codes.int() - expected["codes"].int()).abs() <= 1).all()
    assert (codes != expected["codes"]).float().mean() < 1e-3
    assert torch.allclose(about["scale"], expected["scales"], rtol=1e-6, atol=0)
    assert torch.allclose(-about["zero"] * about["scale"], expected["minima"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_hqq_decodes_codes_by_their_own_scale_and_zero(bits):
    layer = HQQQuantizedLayer(nbits=bits, axis_key=1, q_group_size=64)
    layer.update(X, X)
    packed, about = layer._quantized_keys
    by_hand = (spread(packed, bits, "high").float() - about["zero"]) * about["scale"]
    assert torch.equal(layer._dequantize(layer._quantized_keys), by_hand.reshape(X.shape))
    assert about["scale"].numel() == about["zero"].numel() == X.numel() // 64


def test_hqq_searches_for_the_zero_alone():
    """So it differs from `affine` in the zero, and in the codes that follow from it."""
    layer = HQQQuantizedLayer(nbits=2, axis_key=1, q_group_size=64)
    layer.update(X, X)
    about, expected = layer._quantized_keys[1], ours(2)
    assert torch.allclose(about["scale"], expected["scales"], rtol=1e-6, atol=0)
    assert not torch.allclose(-about["zero"] * about["scale"], expected["minima"], rtol=1e-2, atol=1e-2)


def test_fp8_is_our_cast_of_what_one_scale_leaves():
    layer = Fp8QuantizedLayer()
    layer.update(X, X)
    codes, scale = layer._quantized_keys
    assert float(scale) == pytest.approx(float(X.abs().max()) / 448, rel=1e-7)
    assert torch.equal(codes.view(torch.uint8), Fp8("e4m3").encode(X / scale)["codes"])


def test_fp8_of_one_head_is_our_calibrated_form():
    """Whose scale is that of a head; the library's is that of all heads together."""
    one = X[:, :1].contiguous()
    layer = Fp8QuantizedLayer()
    layer.update(one, one)
    later = 3 * one[:, :, :7]  # outliers beyond the scale saturate in both
    given, _ = layer.update(later, later)
    codec = Fp8("e4m3", "head").calibrate(one)
    assert torch.equal(given, codec.decode(codec.encode(torch.cat([one, later], dim=2)), 128, torch.float32))


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_mlx_lms_cache_holds_the_bytes_of_mlx_affine(bits, dtype):
    plain = KVCache()
    keys = mx.array(X.numpy()).astype(getattr(mx, dtype))
    plain.update_and_fetch(keys, keys)
    theirs = plain.to_quantized(group_size=64, bits=bits).keys
    packed = MlxAffine(bits, 64, dtype).encode(torch.tensor(np.array(keys.astype(mx.float32))))
    for array, name in zip(theirs, ("words", "scales", "biases"), strict=True):
        held = np.array(array[:, :, :80].view(mx.uint8))
        assert np.array_equal(held, packed[name].view(torch.uint8).numpy()), name


@pytest.mark.parametrize(
    ("library", "bits", "group", "tokens", "heads", "dtype", "expected"),
    [
        ("quanto", 4, 64, 10, 3, "float16", 10 * 3 * (32 + 4)),
        ("quanto", 4, 64, 5, 3, "float32", 8 * 64 + 5 * 3 * 8),  # 15 groups, two to a byte: the last has one
        ("quanto", 2, 32, 7, 1, "float16", 4 * 32 + 7 * 2 * 4),  # 14 groups, four to a byte
        ("hqq", 8, 64, 10, 3, "bfloat16", 10 * 3 * (64 + 4)),
        ("fp8", 8, 0, 10, 3, "float32", 10 * 3 * 64),
        ("mlx", 3, 32, 10, 3, "float16", 10 * 3 * (24 + 2 * 4)),
    ],
)
def test_declared_bytes_follow_the_models_dtype(library, bits, group, tokens, heads, dtype, expected):
    assert Peer(library, bits, group).resident(tokens, heads, 64, dtype) == expected


@pytest.mark.parametrize(("tokens", "heads"), [(5, 3), (10, 3), (7, 1)])
def test_quantos_shared_bytes_are_as_declared(tokens, heads):
    peers.require("quanto")
    for bits in (4, 2):
        held = QuantoQuantizedLayer(nbits=bits, q_group_size=32)._quantize(torch.randn(1, heads, tokens, 64), 0)
        found = held._data._data.nbytes + held._scale.nbytes + held._shift.nbytes
        assert found == Peer("quanto", bits, 32).resident(tokens, heads, 64, "float32")


def test_our_store_never_encodes_for_a_library():
    with pytest.raises(Unsupported, match="codec 'peer' runs inside its own library, hqq, on the transformers backend only"):
        Peer("hqq").encode(X)
