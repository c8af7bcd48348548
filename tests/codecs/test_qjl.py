"""The sign sketch: its estimator against theory, outlier channels, bytes by hand."""

import math

import numpy as np
import pytest
import torch

from tqbench.codecs import qjl
from tqbench.codecs.qjl import QJL, projection
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset

PURE = {sketch: QJL(sketch, outliers=0) for sketch in (1, 2, 4)}
D, DRAWS = 64, 4000
GENERATOR = torch.Generator().manual_seed(0)
# Turning q and k at random before a fixed S is drawing S anew for fixed q and k.
TURNS = torch.linalg.qr(torch.randn(DRAWS, D, D, generator=GENERATOR, dtype=torch.float64))[0]
KEYS = torch.randn(1, 2, 96, 128, generator=GENERATOR, dtype=torch.float64)
OUTLIERS = range(5, 128, 16)
REST = [i for i in range(128) if i not in OUTLIERS]
LOUD = KEYS.clone()
LOUD[..., OUTLIERS] += torch.tensor([30.0, -30.0]).repeat(4)  # as in real keys

# √(π/2) E|⟨s, u⟩| for unit u and s uniform on a sphere of radius √d; 1 for Gaussian s.
GAIN = math.sqrt(D / 2) * math.exp(math.lgamma(D / 2) - math.lgamma((D + 1) / 2))


def decoded(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def estimates(codec, q, k):
    """⟨q, k̂⟩ under many S."""
    return (decoded(codec, (TURNS @ k)[None, None])[0, 0] * (TURNS @ q)).sum(-1)


@pytest.mark.parametrize("d", [64, 80, 128])
def test_columns_are_orthogonal_in_chunks_and_as_long_as_gaussian_ones(d):
    s = projection(d, 2, 42)
    first, second = s[:, :d], s[:, d:]
    assert np.allclose(first.T @ first, d * np.eye(d), atol=1e-9)
    assert np.allclose(second.T @ second, d * np.eye(d), atol=1e-9)
    assert np.sqrt(np.square(first.T @ second).mean()) == pytest.approx(d**0.5, rel=1e-6)  # they know nothing of each other


def test_a_narrow_sketch_is_the_beginning_of_a_wide_one():
    assert np.array_equal(projection(64, 1, 42), projection(64, 4, 42)[:, :64])


@pytest.mark.parametrize("sketch", PURE)
def test_an_inner_product_with_the_decoded_key_is_the_estimator(sketch):
    s, k, q = projection(128, sketch, 42), KEYS[0, 0, 0].numpy(), KEYS[0, 1, 0].numpy()
    expected = math.sqrt(math.pi / 2) / (128 * sketch) * np.linalg.norm(k) * (q @ s) @ np.sign(k @ s)
    assert decoded(PURE[sketch], KEYS)[0, 0, 0].numpy() @ q == pytest.approx(expected, rel=1e-3)  # fp16 norm


@pytest.mark.parametrize("sketch", PURE)
@pytest.mark.parametrize("cosine", [0.0, 0.5, -1.0])
def test_inner_products_are_unbiased(sketch, cosine):
    """Up to 1/4d, because the columns lie on a sphere: E⟨q, k̂⟩ = GAIN ⟨q, k⟩."""
    q, k = torch.zeros(2, D, dtype=torch.float64)
    q[0], k[0], k[1] = 2, 3 * cosine, 3 * math.sqrt(1 - cosine**2)
    found = estimates(PURE[sketch], q, k)
    error = float(found.std()) / DRAWS**0.5
    assert float(found.mean()) == pytest.approx(GAIN * 6 * cosine, abs=4 * error)
    assert abs(GAIN - 1 - 1 / (4 * D)) < 1e-4


@pytest.mark.parametrize("sketch", PURE)
def test_variance_of_the_estimate(sketch):
    """For q ⊥ k, both of length 1: exactly (π/2 − 1) / m. The part 2/π of the signs that lies along Sᵀk is orthogonal to Sᵀq if columns are
    orthogonal; independent Gaussian columns would give π/2 / m."""
    q, k = torch.eye(D, dtype=torch.float64)[:2]
    assert float(estimates(PURE[sketch], q, k).var()) == pytest.approx((math.pi / 2 - 1) / (sketch * D), rel=0.1)


@pytest.mark.parametrize("sketch", PURE)
def test_distortion_of_a_key(sketch):
    """k̂ is the mean of `sketch` independent vectors of length √(π/2) ‖k‖ that have GAIN k as their mean."""
    x = torch.randn(1, 1, 2000, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    lost = float((decoded(PURE[sketch], x) - x).square().sum() / x.square().sum())
    expected = math.pi / 2 / sketch + (1 - 1 / sketch) * GAIN**2 + 1 - 2 * GAIN
    assert lost == pytest.approx(expected, rel=0.02)


def test_inner_products_are_unbiased_with_outlier_channels(monkeypatch):
    q, found = KEYS[0, 1, :32], []
    for seed in range(300):
        monkeypatch.setattr(qjl, "SEED", seed)
        found.append((decoded(QJL(), LOUD[:1, :1, :32])[0, 0] * q).sum(-1))
    found, true = torch.stack(found), (LOUD[0, 0, :32] * q).sum(-1)
    score = (found.mean(0) - true) / (found.std(0) / len(found) ** 0.5)
    assert score.abs().max() < 4.5
    assert score.square().mean() < 2  # 1 for an exact mean


def test_the_channels_of_largest_norm_are_taken_out():
    packed = QJL().encode(LOUD)
    largest = LOUD.unflatten(2, (-1, 32)).square().sum(3).sqrt().numpy().argsort(-1)[..., ::-1][..., :8]
    assert np.array_equal(packed["outlier_channels"].numpy(), largest)
    assert set(largest[0, 0, 0].tolist()) == set(OUTLIERS)


def test_the_sketch_of_the_rest_does_not_see_them():
    louder = LOUD.clone()
    louder[..., OUTLIERS] *= 3
    one, other = QJL().encode(LOUD), QJL().encode(louder)
    assert torch.equal(one["signs"], other["signs"])
    assert not torch.equal(one["norms"], other["norms"])


def test_outlier_channels_that_are_taken_out_do_not_hurt_the_rest():
    """A channel loses (π/2 − 1) / m of the energy that is sketched with it. The loud keys are much alike, so one S is few draws."""
    loss = {c: float((decoded(QJL(outliers=c), LOUD) - LOUD)[..., REST].square().mean()) for c in (0, 8)}
    assert loss[0] == pytest.approx((math.pi / 2 - 1) / 256 * float(LOUD.square().sum(-1).mean()), rel=0.2)
    assert loss[8] == pytest.approx((math.pi / 2 - 1) / 256 * float(LOUD[..., REST].square().sum(-1).mean()), rel=0.1)


def test_each_token_keeps_its_own_norms():
    packed = QJL().encode(LOUD)
    assert torch.allclose(packed["norms"].double().flatten(2), LOUD.norm(dim=-1), rtol=1e-3)
    channels = packed["outlier_channels"].long().unsqueeze(-2).expand(-1, -1, -1, 32, -1)
    taken = LOUD.unflatten(2, (-1, 32)).gather(-1, channels)
    assert torch.allclose(packed["outlier_norms"].double(), taken.norm(dim=-1), rtol=1e-3)


def test_the_norm_of_the_rest_drowns_beside_a_huge_outlier():
    """The project keeps the norm of the whole key, so √(‖k‖² − ‖k_out‖²) has the rounding of ‖k‖."""
    x = KEYS[:, :, :32].clone()
    x[..., 3] = 3e4
    packed = QJL().encode(x)
    assert torch.equal(packed["norms"], packed["outlier_norms"])
    channels = set(packed["outlier_channels"].flatten().tolist())
    assert not QJL().decode(packed, 128, torch.float64)[..., [i for i in range(128) if i not in channels]].any()


def test_signs_lie_in_the_order_of_columns():
    s, k = projection(128, 2, 42), KEYS[0, 0, 0].numpy()
    bits = (k @ s > 0).reshape(-1, 8)
    assert PURE[2].encode(KEYS)["signs"][0, 0, 0, 0].tolist() == [sum(int(b) << i for i, b in enumerate(byte)) for byte in bits]


@pytest.mark.parametrize(
    ("codec", "head_dim", "size"),
    [
        (QJL(), 128, 32 * (32 + 2 + 16 + 2) + 8),
        (QJL(), 64, 32 * (16 + 2 + 8 + 2) + 8),
        (QJL(), 80, 32 * (20 + 2 + 10 + 2) + 8),
        (QJL(), 256, 32 * (64 + 2 + 32 + 2) + 8),
        (QJL(4, 8, 2), 128, 32 * (64 + 2 + 32 + 2) + 8),
        (QJL(2, 8, 2), 128, 32 * (32 + 2 + 32 + 2) + 8),
        (QJL(2, 16, 1), 96, 32 * (24 + 2 + 12 + 2) + 16),
        (PURE[2], 128, 32 + 2),
        (PURE[1], 64, 8 + 2),
    ],
)
def test_bytes_per_unit(codec, head_dim, size):
    """Sign bytes and two norms of each of 32 tokens, one byte per outlier channel; without outliers a token is a unit."""
    assert codec.layout(head_dim).nbytes == size
    assert nbytes(codec.encode(torch.ones(1, 1, codec.unit, head_dim))) == size


def test_bits_behind_the_three_that_are_advertised():
    scheme = preset("qjl")
    assert scheme.bits(128) == (3.265625, 3.0)
    assert scheme.for_layer(0, 32).bits(128) == scheme.for_layer(14, 32).bits(128) == (6.265625, 3.0)
    assert scheme.for_layer(15, 32).bits(128) == (3.265625, 3.0)
    assert preset("qjl_longbench").bits(128) == (4.265625, 3.0)
    assert preset("qjl_longbench").for_layer(0, 32).bits(128) == (5.265625, 3.0)


@pytest.mark.parametrize("codec", [QJL(), PURE[1]])
def test_zeros_stay_zeros(codec):
    assert torch.equal(decoded(codec, torch.zeros(1, 1, 32, 64)).abs(), torch.zeros(1, 1, 32, 64))


@pytest.mark.parametrize(
    "x",
    [
        torch.full((1, 1, 32, 64), -3.25),
        torch.eye(64)[None, None] * 500,
        torch.from_numpy(np.random.default_rng(5).standard_t(2, (1, 1, 64, 64))).float(),
    ],
)
def test_unusual_keys_keep_their_direction(x):
    assert (torch.cosine_similarity(decoded(QJL(4, 8, 2), x), x, dim=-1) > 0.8).all()


def test_head_dims_without_room_for_an_index_byte_are_refused():
    for head_dim in (512, 8):
        with pytest.raises(Unsupported, match=f"head_dim {head_dim} .*8 outlier channels"):
            QJL().check(head_dim)
    QJL(outliers=0).check(512)


def test_signs_that_do_not_end_on_a_byte_are_refused():
    with pytest.raises(Unsupported, match="head_dim 68"):
        QJL().check(68)


def test_a_wider_sketch_for_outliers_than_for_the_rest_is_an_error():
    with pytest.raises(ConfigError, match=r"^outlier_sketch must be at most sketch \(1\).*got 2"):
        QJL(1, 8, 2)
