"""The calibrated codebook codec: levels against known optima, outliers, bytes by hand, and the formula in NumPy."""

import numpy as np
import pytest
import torch

from tqbench.codecs.affine import Affine
from tqbench.codecs.blocks.lloyd import kmeans
from tqbench.codecs.nonuniform import EMPTY, Nonuniform
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

AXES = ("channel", "token")
TEXT = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 2000, 64)))
TEXT *= torch.linspace(0.5, 8, 64, dtype=torch.float64)  # channels differ in size
TEXT[..., 5] += 20
X = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 2, 300, 64))) * torch.linspace(0.5, 8, 64, dtype=torch.float64)
X[..., 5] += 20
HEAVY = torch.from_numpy(np.random.default_rng(2).standard_t(3, (1, 1, 4096, 128)))


def calibrated(x=TEXT, **fields):
    return Nonuniform(**fields).calibrate(x)


def decoded(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def distortion(codec, x):
    return float((x - decoded(codec, x)).square().sum() / x.square().sum())


def test_means_of_samples_by_exhaustion():
    """Of all ways to cut 12 sorted samples in two, k-means of two levels finds the best; this sample has one minimum."""
    x = np.sort(np.concatenate([np.random.default_rng(3).normal(-1, 0.3, 7), np.random.default_rng(4).normal(1, 0.3, 5)]))
    best = min(range(1, 12), key=lambda cut: x[:cut].var() * cut + x[cut:].var() * (12 - cut))
    assert kmeans(x, 2) == pytest.approx([x[:best].mean(), x[best:].mean()])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_the_means_of_what_is_nearest(bits):
    x = np.sort(np.random.default_rng(5).standard_t(3, 20_000))
    levels = kmeans(x, 2**bits)
    nearest = np.abs(x[:, None] - levels).argmin(1)
    assert levels == pytest.approx([x[nearest == i].mean() for i in range(2**bits)], abs=1e-9)


def test_fewer_values_than_levels_are_kept_as_they_are():
    assert set(kmeans(np.array([-1.0, 0.25, 1.0]), 8)) == {-1.0, 0.25, 1.0}


@pytest.mark.parametrize(("bits", "positive"), [(2, (0.45278, 1.51042)), (3, (0.24509, 0.75601, 1.34391, 2.15195))])
def test_gaussian_channels_learn_lloyd_max_levels(bits, positive):
    """The converged tables of N(0, 1), in units of the channel."""
    x = torch.randn(1, 1, 400_000, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 3 - 7
    learned = calibrated(x, bits=bits, axis="channel", outliers=0.0).learned
    levels = learned["levels"] * learned["reaches"].flatten() + learned["centers"].flatten()
    assert ((levels + 7) / 3).tolist() == pytest.approx([*(-v for v in reversed(positive)), *positive], abs=0.02)


def test_uniform_values_learn_evenly_spaced_levels():
    x = torch.rand(1, 1, 1000, 1024, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2 - 1
    for axis in AXES:
        levels = calibrated(x, bits=2, axis=axis, outliers=0.0).learned["levels"]
        assert levels.tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75], abs=0.02)


def test_ranges_leave_out_the_outer_half_percents_of_each_channel():
    learned = calibrated(axis="channel").learned
    low, high = learned["centers"] - learned["reaches"], learned["centers"] + learned["reaches"]
    assert low.shape == (2, 1, 64)
    assert ((TEXT[0] < low).double().mean(1) - 0.005).abs().max() < 6e-4
    assert ((TEXT[0] > high).double().mean(1) - 0.005).abs().max() < 6e-4


def test_channels_and_heads_have_their_own_range():
    learned = calibrated(TEXT * torch.tensor([1.0, 10.0])[:, None, None], axis="channel").learned
    assert torch.allclose(learned["reaches"][1] / learned["reaches"][0], torch.tensor(10.0), rtol=0.3)
    assert learned["centers"][0, 0, 5] == pytest.approx(20, abs=0.5)


def test_values_beyond_the_range_do_not_shape_the_levels():
    """Without them the levels stay inside [−1, 1], however far out they are."""
    x = TEXT.clone()
    x[:, :, ::250] *= 1e3
    for axis in AXES:
        levels = calibrated(x, axis=axis).learned["levels"]
        assert levels.abs().max() < 1
        assert levels.diff().min() > 0


def by_formula(vector, codec, head):
    """One vector decoded, one value after another."""
    levels, k = codec.learned["levels"].double().numpy(), int(np.ceil(codec.outliers * len(vector)))
    if codec.axis == "channel":
        center, reach = (codec.learned[name][head, 0].double().numpy() for name in ("centers", "reaches"))
        far = np.abs((vector - center) / reach)
        apart = [i for i in np.argsort(-far)[:k] if far[i] > 1]
    else:
        apart = list(np.argsort(-np.abs(vector - np.sort(vector)[(len(vector) - 1) // 2]))[:k])
        kept = np.delete(vector, apart)
        center, reach = (np.float64(np.float16(v)) for v in ((kept.max() + kept.min()) / 2, (kept.max() - kept.min()) / 2))
    nearest = np.abs(((vector - center) / reach)[:, None] - levels).argmin(1)
    out = center + reach * levels[nearest]
    out[apart] = np.float16(vector[apart])
    return out


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("bits", "outliers"), [(2, 0.01), (3, 0.05), (4, 0.0)])
def test_values_are_those_of_the_formula(axis, bits, outliers):
    codec = calibrated(bits=bits, axis=axis, outliers=outliers)
    y = decoded(codec, X[:, :, :60])
    for head in range(2):
        for t in range(60):
            assert np.allclose(y[0, head, t].numpy(), by_formula(X[0, head, t].numpy(), codec, head), rtol=0, atol=1e-9)


def test_the_farthest_value_of_a_token_is_kept_in_fp16():
    x = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
    x[..., :32], x[..., 40] = 1.0, -777.3
    packed = calibrated(axis="token").encode(x)
    assert packed["outliers"].flatten().tolist() == [float(np.float16(-777.3))]
    assert packed["outlier_channels"].flatten().tolist() == [40, 0]
    assert (packed["centers"].item(), packed["reaches"].item()) == (0.5, 0.5)


def test_channels_of_outliers_are_16_bit_numbers():
    x = torch.ones(1, 1, 1, 512)
    x[..., 300] = 99.0
    codec = calibrated(torch.randn(1, 1, 100, 512, generator=torch.Generator().manual_seed(10)), axis="token", outliers=0.001)
    assert codec.encode(x)["outlier_channels"].flatten().tolist() == [300 & 255, 300 >> 8]
    assert torch.equal(decoded(codec, x), x)


def test_slots_without_an_outlier_stay_empty():
    codec = calibrated(axis="channel", outliers=0.03)
    x = codec.learned["centers"][None].double().clone()
    x[0, 0, 0, 9] += 2 * codec.learned["reaches"][0, 0, 9]
    packed = codec.encode(x)
    channels = packed["outlier_channels"].int() @ torch.tensor([1, 256], dtype=torch.int32)
    assert channels.flatten().tolist() == [9, EMPTY, EMPTY, EMPTY]
    assert decoded(codec, x)[0, 0, 0, 9] == pytest.approx(float(x[0, 0, 0, 9]), rel=1e-3)


def test_what_finds_no_slot_takes_the_outermost_level():
    codec = calibrated(axis="channel")
    center, reach = (codec.learned[name][None].double() for name in ("centers", "reaches"))
    y = decoded(codec, center + torch.linspace(5, 2, 64, dtype=torch.float64) * reach)
    assert torch.allclose(((y - center) / reach)[..., 0], torch.tensor(5.0, dtype=torch.float64), rtol=1e-3)  # the one slot
    assert torch.allclose(((y - center) / reach)[..., 1:], codec.learned["levels"][-1].double())


@pytest.mark.parametrize(
    ("fields", "head_dim", "size"),
    [
        ({"bits": 4, "axis": "channel"}, 64, 32 + 4),
        ({"bits": 4, "axis": "channel"}, 128, 64 + 2 * 4),
        ({"bits": 3, "axis": "channel"}, 128, 48 + 2 * 4),
        ({"bits": 2, "axis": "token"}, 64, 16 + 4 + 4),
        ({"bits": 3, "axis": "token"}, 80, 30 + 4 + 4),
        ({"bits": 3, "axis": "token"}, 96, 36 + 4 + 4),
        ({"bits": 4, "axis": "token"}, 128, 64 + 4 + 2 * 4),
        ({"bits": 4, "axis": "token"}, 256, 128 + 4 + 3 * 4),
        ({"bits": 4, "axis": "token", "outliers": 0.0}, 128, 64 + 4),
        ({"bits": 4, "axis": "channel", "outliers": 0.0}, 64, 32),
    ],
)
def test_bytes_per_vector(fields, head_dim, size):
    """Codes, fp16 center and reach of a token, and 4 bytes for each of ⌈1 %⌉ outliers."""
    x = torch.randn(1, 1, 50, head_dim, generator=torch.Generator().manual_seed(8))
    codec = calibrated(x, **fields)
    assert codec.layout(head_dim).nbytes == size
    assert nbytes(codec.encode(x)) == 50 * size


def test_bits_of_the_presets():
    """Not the 0.32 bits of outliers that the paper counts over a whole token: slots of a head are rounded up."""
    assert {name: preset(name).bits(128) for name in ("kvquant2", "kvquant3", "kvquant4")} == {
        "kvquant2": (2.5, 2.75),
        "kvquant3": (3.5, 3.75),
        "kvquant4": (4.5, 4.75),
    }
    assert preset("kvquant3").bits(64) == (3.5, 4.0)


def test_the_presets_keep_the_first_token_and_take_keys_before_rope():
    scheme = preset("kvquant3")
    assert scheme.sinks == 1
    assert (scheme.k.rope, scheme.v.rope) == ("pre", "post")
    assert scheme.calibrated


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("axis", AXES)
def test_heavy_tails_cost_less_than_with_uniform_codes_of_the_same_width(axis, bits):
    train, x = HEAVY[:, :, :2048], HEAVY[:, :, 2048:]
    assert distortion(calibrated(train, bits=bits, axis=axis), x) < distortion(Affine(bits, 128, axis), x) / 2


@pytest.mark.parametrize("axis", AXES)
def test_codes_alone_beat_uniform_ones(axis):
    """Without outlier slots, on the same minima and maxima: what the codebook itself brings on values that crowd in the middle."""
    x = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(9), dtype=torch.float64) ** 3
    assert distortion(calibrated(x, bits=2, axis=axis, outliers=0.0), x) < distortion(Affine(2, 128, axis), x) / 1.5


@pytest.mark.parametrize("axis", AXES)
def test_more_bits_and_more_outliers_lose_less(axis):
    losses = [distortion(calibrated(bits=bits, axis=axis), X) for bits in (2, 3, 4)]
    assert losses[0] > 2 * losses[1] > 4 * losses[2]
    losses = [distortion(calibrated(bits=3, axis=axis, outliers=share), X) for share in (0.0, 0.01, 0.05)]
    assert losses[0] > losses[1] > losses[2]


def test_a_large_channel_does_not_hurt_the_others_of_its_token():
    errors = {axis: (decoded(calibrated(bits=2, axis=axis, outliers=0.0), X) - X)[..., :5].norm() for axis in AXES}
    assert errors["channel"] < errors["token"] / 2


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("fill", [0.0, -3.25, 6e4])
def test_constants_come_back_where_the_range_is_their_own(axis, fill):
    x = torch.full((1, 2, 4, 64), fill)
    codec = calibrated(x.expand(1, 2, 4, 64), axis=axis)
    assert torch.allclose(decoded(codec, x), x, rtol=1e-3, atol=0)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    "x", [torch.zeros(1, 2, 3, 64), torch.full((1, 2, 3, 64), 50.0), torch.eye(64)[None, None].expand(1, 2, 64, 64) * 1e4]
)
def test_what_calibration_has_not_seen_stays_finite(axis, x):
    y = decoded(calibrated(axis=axis), x)
    assert torch.isfinite(y).all()
    if x.max() == 1e4:
        assert torch.allclose(y.amax(-1), torch.tensor(1e4), rtol=1e-3)  # in a slot


def test_tokens_are_stored_by_themselves():
    codec = calibrated(axis="channel")
    assert codec.unit == 1
    whole, alone = codec.encode(X), codec.encode(X[:, :, 7:8])
    assert all(torch.equal(whole[name][:, :, 7:8], alone[name]) for name in whole)


def test_it_must_be_calibrated_first():
    with pytest.raises(Unsupported, match="must be calibrated"):
        Nonuniform().encode(X)


def test_codes_that_do_not_end_on_a_byte_are_refused():
    with pytest.raises(Unsupported, match="head_dim 68"):
        Nonuniform(bits=3).check(68)


def test_a_share_of_outliers_that_is_none_is_an_error():
    with pytest.raises(ConfigError, match=r"^outliers must be .*got 1"):
        Nonuniform(outliers=1)
