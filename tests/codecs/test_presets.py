"""What the names of presets promise to those who know them from their projects: policies and parameters, written down once more by hand."""

import numpy as np
import pytest
import torch

from tqbench.codecs.blocks import rotations
from tqbench.codecs.blocks.wrap import Rotated
from tqbench.core.presets import preset, presets

# (window, flush) of K and of V, sinks, (first, last) protected layers. Every preset that is not here keeps nothing exact.
POLICIES = {
    "kivi2": ((0, 128), (128, 1), 0, None),
    "kivi4": ((0, 128), (128, 1), 0, None),
    "qjl": ((0, 128), (128, 1), 0, None),
    "qjl_longbench": ((0, 128), (128, 1), 0, None),
    "polarquant_wu": ((0, 128), (0, 1), 0, None),
    "polarquant_wu_v4": ((0, 128), (0, 128), 0, None),
    **{f"kvtc_lite_{ratio}x": ((128, 128), (128, 128), 4, None) for ratio in (4, 6, 8)},
    **{f"kvtc_paper_{ratio}": ((112, 16), (112, 16), 4, None) for ratio in ("4x", "6x", "8x", "12x", "16x")},
    **{f"kvtc_paper_{ratio}_per_layer": ((112, 16), (112, 16), 4, None) for ratio in ("4x", "8x", "16x")},
    **{f"kvquant{bits}": ((0, 1), (0, 1), 1, None) for bits in (2, 3, 4)},
    **{f"vllm_{name}": ((0, 1), (0, 1), 0, (2, 2)) for name in ("k8v4", "4bit_nc", "k3v4_nc", "3bit_nc", "4bit_nc_signed")},
}


@pytest.mark.parametrize("name", presets())
def test_what_is_kept_exact(name):
    scheme = preset(name)
    protect = (scheme.protect.first, scheme.protect.last) if scheme.protect else None
    found = (scheme.k.window, scheme.k.flush), (scheme.v.window, scheme.v.flush), scheme.sinks, protect
    assert found == POLICIES.get(name, ((0, 1), (0, 1), 0, None))


# Parameters that decide what a name means, where another value would look just as good.
MEANT = {
    "fp8_e4m3": ({"format": "e4m3", "scale": "none"}, {"format": "e4m3", "scale": "none"}),
    "vllm_k8v4": ({"format": "e4m3"}, {"bits": 4, "encode_with": "exact", "rounding": "half_up", "kept": "float16"}),
    "vllm_3bit_nc": ({"bits": 3, "scale": "norm_corrected_at_decode", "ties": "up"}, {"bits": 3, "group_size": 0, "encode_with": "exact"}),
    "vllm_int8_per_token_head": ({"form": "symmetric", "kept": "float32", "bits": 8}, {"form": "symmetric", "kept": "float32"}),
    "mlx_vlm3": ({"ties": "down", "scale": "raw", "table": "mlx_vlm"}, {"ties": "down", "scale": "raw"}),
    "turboquant_mse3": ({"scale": "raw", "table": "sphere"}, {"scale": "raw", "table": "sphere"}),
    "tbq3": ({"scale": "raw", "table": "gaussian"}, {"scale": "raw", "table": "gaussian"}),
    "turbo3": ({"scale": "norm_corrected", "table": "turbo"}, {"scale": "norm_corrected", "table": "turbo"}),
    "turbo4_fork": ({"table": "turbo_historic", "reserved": 2}, {"table": "turbo_historic"}),
    "planar3": ({"scale": "norm_corrected", "table": "turbo", "group": 128}, {"scale": "norm_corrected"}),
    "iso4": ({"scale": "norm_corrected", "table": "turbo_historic"}, {"table": "turbo_historic"}),
    "planarquant3": ({"scale": "raw", "table": "gaussian", "group": 0}, {"scale": "raw"}),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_decides_the_meaning(name):
    scheme = preset(name)
    for side, meant in zip((scheme.k, scheme.v), MEANT[name], strict=True):
        assert {key: getattr(side.codec.plain, key) for key in meant} == meant


# (rotation, group, seed) of K and of V.
ROTATED = {
    "mlx_vlm3": (("hadamard_mlx_vlm", 0, 0), ("hadamard_mlx_vlm", 0, 1)),
    "turboquant_mse3": (("haar", 0, 42), ("haar", 0, 43)),
    "turbo3": (("hadamard_double_signed", 128, 42),) * 2,
    "tbq4": (("hadamard_amesianx", 0, 42),) * 2,
    "vllm_4bit_nc": (("hadamard", 0, 42), None),
    "vllm_4bit_nc_signed": (("hadamard_signed", 0, 42), None),
    "mxfp4_rot": (("hadamard_signed", 128, 42),) * 2,
    "nvfp4_rot": (("hadamard_signed", 128, 42),) * 2,
    "q4_0_rot": (("hadamard", 512, 42), ("hadamard", 64, 42)),
    "q4_0": (None, None),
    "iso3": (("iso_fast", 128, 42),) * 2,
    "isoquant3": (("iso", 0, 42),) * 2,
    "polarquant_han": (("haar", 0, 42),) * 2,
}


@pytest.mark.parametrize("name", ROTATED)
def test_how_vectors_are_rotated(name):
    scheme = preset(name)
    for side, meant in zip((scheme.k, scheme.v), ROTATED[name], strict=True):
        codec = side.codec
        found = (codec.rotation, codec.rotation_group, codec.seed) if isinstance(codec, Rotated) else None
        assert found == meant


def test_both_sides_of_sanctum_are_rotated():
    assert all(isinstance(side.codec, Rotated) for side in (preset("sanctum3").k, preset("sanctum3").v))


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_llama_cpp_s_keys_are_in_its_order(name):
    for scheme in (preset(name), preset(f"{name}_rot")):
        assert (scheme.k.order, scheme.v.order) == ("llamacpp", "native")


@pytest.mark.parametrize(("name", "value"), [("tbq3", 0.00579), ("tbq4", 0.00326), ("tbqp3", 0.01304), ("tbqp4", 0.00724)])
def test_amesianx_s_factor_at_256(name, value):
    assert (preset(f"{name}_alpha256").logits.form, preset(f"{name}_alpha256").logits.value) == ("grow", value)


@pytest.mark.parametrize(("name", "value"), [("tbq3", 7.80), ("tbq4", 14.05), ("tbqp3", 3.45), ("tbqp4", 6.13)])
def test_amesianx_s_factor_at_64(name, value):
    assert (preset(f"{name}_alpha64").logits.form, preset(f"{name}_alpha64").logits.value) == ("shrink", value)


def test_mlx_vlm_draws_its_other_matrices_in_float32():
    q, r = np.linalg.qr(np.random.default_rng(3 + 7919 * 96).standard_normal((96, 96), dtype=np.float32).astype(np.float64))
    expected = torch.from_numpy(q * np.sign(np.diag(r)))
    assert torch.allclose(rotations.matrix("hadamard_mlx_vlm", 96, 3, torch.float64, "cpu"), expected, rtol=0, atol=1e-12)
