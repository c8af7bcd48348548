"""The split codec: the right channels, the true bit count, and the same values as two codebooks."""

import numpy as np
import pytest
import torch

from tqbench.codecs.codebook import Codebook
from tqbench.codecs.split import Split
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset, read

LARGE = (3, 4, 9, 31, 40, 41, 77, 90, *range(96, 120))  # 32 of 128 channels


def vectors(tokens=64, dim=128, heads=2, seed=0):
    return torch.randn(1, heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


def with_outliers(x):
    return x * torch.where(torch.isin(torch.arange(x.shape[-1]), torch.tensor(LARGE)), 6.0, 1.0)


def back(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], torch.float32)


def distortion(codec, x):
    return float((x - back(codec, x)).square().sum() / x.square().sum())


def test_the_largest_channels_are_learned_in_order():
    codec = Split().calibrate(with_outliers(vectors()))
    assert codec.learned["outliers"].tolist() == list(LARGE)


def test_channels_are_ranked_by_the_mean_over_heads():
    x = torch.ones(1, 2, 16, 64)
    x[:, 0, :, :16], x[:, 1, :, 8:24] = -5, 7  # means 3, 6, 4
    assert Split().calibrate(x).learned["outliers"].tolist() == list(range(8, 24))


def test_what_is_learned_does_not_depend_on_what_is_encoded():
    codec = Split().calibrate(with_outliers(vectors()))
    x = vectors(seed=1)
    whole, pieces = codec.encode(x), [codec.encode(piece) for piece in x.split(5, dim=2)]
    for name, array in whole.items():
        assert torch.equal(array, torch.cat([piece[name] for piece in pieces], dim=2))


@pytest.mark.parametrize(
    ("name", "head_dim", "bits"),
    [
        ("turboquant_2.5", 128, 2.5),  # 32 · 3 + 96 · 2 bits are 2.25, two norms 0.25
        ("turboquant_2.5", 64, 2.75),
        ("turboquant_3.5", 128, 3.75),
        ("turboquant_3.5", 64, 4.0),
        ("mlx_vlm_2.5_split", 128, 2.75),
        ("mlx_vlm_3.5_split", 256, 3.625),
    ],
)
def test_bits_count_both_norms(name, head_dim, bits):
    assert preset(name).bits(head_dim) == (bits, bits)


def test_it_is_two_codebooks_on_two_sets_of_channels():
    rest = [c for c in range(128) if c not in LARGE]
    codec, x = Split(rotate="none").calibrate(with_outliers(vectors())), with_outliers(vectors(seed=1))
    y = back(codec, x)
    for bits, channels in ((3, list(LARGE)), (2, rest)):
        alone = Codebook(bits, table="sphere", scale="raw", group=0, planes="stream")
        assert torch.equal(y[..., channels], back(alone, x[..., channels]))


@pytest.mark.parametrize("seed", range(4))
def test_each_set_has_its_own_signs(seed):
    """mlx-vlm's: default_rng(seed + 7919 n) for the rest, 97 more for the outliers. H spreads the first channel evenly, with its sign."""
    x = torch.zeros(1, 1, 1, 128)
    x[..., 0], x[..., 64] = 1, 1
    first_half_large = vectors() * torch.where(torch.arange(128) < 64, 3, 1)
    packed = Split(0.5, 8, 8, "mlx_vlm", "hadamard_mlx_vlm", seed).calibrate(first_half_large).encode(x)
    for name, own in (("outliers", seed + 97), ("rest", seed)):
        sign = np.random.default_rng(own + 7919 * 64).choice([-1, 1], size=64)[0]
        assert len(packed[name].unique()) == 1
        assert (packed[name] >= 128).all() == (sign > 0)


def test_haar_rotations_of_the_two_sets_differ():
    x = vectors(1, 64)
    x[..., 32:] = x[..., :32]
    codec = Split(0.5, 4, 4, rotate="haar").calibrate(vectors(dim=64) * (torch.arange(64) < 32).add(0.5))
    packed = codec.encode(x)
    assert not torch.equal(packed["outliers"], packed["rest"])


def test_outlier_channels_are_worth_their_bits():
    """Against one codebook of two bits after the same kind of rotation, on values whose large channels are those of the calibration."""
    x = with_outliers(vectors(512, seed=1))
    plain = read(
        {"name": "plain", "k": {"codec": "codebook", "bits": 2, "table": "sphere", "scale": "raw", "rotation": "haar"}, "v": "f16"}
    )
    split = Split().calibrate(with_outliers(vectors()))
    assert distortion(split, x) < 0.45 * distortion(plain.k.codec, x)


def test_nothing_is_encoded_before_it_is_calibrated():
    with pytest.raises(Unsupported, match="codec 'split' must be calibrated"):
        Split().encode(vectors())


@pytest.mark.parametrize(("outliers", "head_dim", "fits"), [(0.25, 64, True), (0.25, 96, True), (0.25, 80, False), (0.5, 80, True)])
def test_both_sets_must_end_on_a_byte(outliers, head_dim, fits):
    if fits:
        Split(outliers).check(head_dim)
    else:
        with pytest.raises(Unsupported, match=f"head_dim {head_dim}: the codes of 20 outliers do not end on a byte"):
            Split(outliers).check(head_dim)


@pytest.mark.parametrize("outliers", [0.0, 1.0, -0.5])
def test_a_share_is_between_none_and_all(outliers):
    with pytest.raises(ConfigError, match="outliers must be a share of the channels"):
        Split(outliers)
