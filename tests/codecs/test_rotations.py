"""Rotations: orthonormal at every size, the published signs, and what they refuse."""

import numpy as np
import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.codecs.blocks import rotations
from tqbench.codecs.blocks.wrap import Centered, Interleaved, Rotated
from tqbench.codecs.cast import Cast
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import read

X = torch.randn(2, 8, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("n", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("name", [name for name in rotations.get_args(rotations.Rotation) if name != "cross_head"])
def test_every_rotation_keeps_all_energy_at_every_size_it_takes(name, n):
    padded = -(-n // 128) * 128 if name in rotations.HADAMARDS and n & (n - 1) else n  # what a power of two needs
    group = min(padded, 128) if name == "hadamard_double_signed" else padded
    r = rotations.matrix(name, group, 42, torch.float64, "cpu")
    assert torch.allclose(r @ r.T, torch.eye(group, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(7, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codec = Rotated(Cast("float32"), rotation=name, rotation_group=128 if group < padded else 0, pad=padded if padded > n else 0)
    y = codec.transform(x[None, None])
    assert torch.allclose(y.square().sum(-1), x.square().sum(-1), rtol=1e-12)
    assert torch.allclose(codec.inverse(y, n)[0, 0], x, rtol=0, atol=1e-12)


def test_the_fork_signs_are_numpy_draws():
    rng = np.random.default_rng(42)
    first, second = (rng.choice([-1.0, 1.0], size=128) for _ in range(2))
    h = rotations.hadamard(128).numpy()
    expected = second[:, None] * h * first / 128**0.5
    assert np.array_equal(rotations.matrix("hadamard_double_signed", 128, 0, torch.float64, "cpu").numpy(), expected)


def test_amesianx_signs_are_its_bits_from_the_lowest():
    r = rotations.matrix("hadamard_amesianx", 64, 0, torch.float64, "cpu")
    minus = [j for j in range(16) if r[0, j] < 0]  # the first row of H is all ones
    assert minus == [j for j in range(16) if (0xA7, 0x3B)[j // 8] >> j % 8 & 1]


def test_mlx_vlm_signs_depend_on_the_size():
    for n in (64, 128):
        signs = np.random.default_rng(42 + 7919 * n).choice([-1.0, 1.0], size=n)
        assert np.array_equal(np.sign(rotations.matrix("hadamard_mlx_vlm", n, 42, torch.float64, "cpu")[0].numpy()), signs)


def test_planar_mixes_pairs_only_and_iso_fours_only():
    for name, block in (("planar", 2), ("iso", 4), ("iso_fast", 4)):
        r = rotations.matrix(name, 64, 42, torch.float64, "cpu")
        outside = r.clone()
        for i in range(0, 64, block):
            outside[i : i + block, i : i + block] = 0
        assert not outside.any()
        assert r[:block, :block].abs().min() > 0


def test_a_quaternion_rotation_is_the_product_of_quaternions():
    p = rotations._quaternions(1, 42)[0]
    q = rotations._quaternions(1, 10042)[0]
    v = torch.tensor([0.3, -1.0, 0.7, 2.0], dtype=torch.float64)

    def times(x, y):
        a, b = x[0], x[1:]
        c, d = y[0], y[1:]
        return torch.cat([(a * c - b @ d)[None], a * d + c * b + torch.linalg.cross(b, d)])

    expected = times(times(p, v), q * torch.tensor([1.0, -1, -1, -1]))
    assert torch.allclose(rotations.matrix("iso", 4, 42, torch.float64, "cpu") @ v, expected, rtol=0, atol=1e-12)


def test_haar_has_no_preferred_direction():
    found = [rotations.matrix("haar", 8, seed, torch.float64, "cpu") for seed in range(400)]
    mean = torch.stack(found).mean(0)
    assert mean.abs().max() < 0.1  # each entry has a standard deviation of 1 / √8 / √400 = 0.018


def test_across_heads_the_query_embedded_in_its_slot_gives_the_same_logits():
    codec = Rotated(Cast("float32"), rotation="cross_head")
    stored = codec.transform(X)[:, 0]  # eight heads as one vector of 512 per token
    h = rotations.hadamard(512) / 512**0.5
    assert torch.allclose(h, torch.kron(rotations.hadamard(8), rotations.hadamard(64)) / 512**0.5)
    q = torch.randn(64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for head in range(8):
        embedded = torch.zeros(512, dtype=torch.float64)
        embedded[64 * head : 64 * head + 64] = q
        assert torch.allclose(stored @ (h @ embedded), X[:, head] @ q, rtol=0, atol=1e-12)
    assert torch.allclose(codec.inverse(codec.transform(X), 64), X, rtol=0, atol=1e-12)


def test_heads_that_are_packed_together_share_their_bytes():
    codec = Rotated(Block(8), rotation="cross_head")
    packed = codec.encode(X.float())
    assert packed["codes"].shape == (2, 1, 5, 512)
    assert packed["scales"].shape == (2, 1, 5, 16)
    assert codec.layout(64).bits(64) == 8.5


@pytest.mark.parametrize(
    ("wrapped", "head_dim", "reason"),
    [
        (Rotated(Block(8), rotation="hadamard"), 96, "head_dim 96: rotation hadamard: a Hadamard matrix of 96 channels is not at hand"),
        (Rotated(Block(8), rotation="hadamard", rotation_group=64), 96, "head_dim 96 does not split into groups of 64"),
        (Rotated(Block(8), rotation="hadamard", rotation_group=128), 80, "head_dim 80 does not split"),
        (Rotated(Block(8), rotation="hadamard_double_signed"), 256, "given for at most 128 channels, not 256"),
        (Rotated(Block(8), rotation="cross_head"), 128, "eight heads of 64 channels are 512, not 1024"),
        (Rotated(Block(8), pad=40), 64, "blocks of 32 channels do not fit head_dim 80"),
    ],
)
def test_what_a_rotation_cannot_do_is_refused_by_name(wrapped, head_dim, reason):
    with pytest.raises(Unsupported, match=reason):
        wrapped.check(head_dim)


def test_a_group_is_the_largest_power_of_two_that_fits():
    codec = Rotated(Block(8), rotation="hadamard", rotation_group=128)
    assert [codec.group(d) for d in (64, 128, 192, 256)] == [64, 128, 64, 128]


def test_a_group_that_is_no_power_of_two_is_refused():
    with pytest.raises(ConfigError, match="rotation_group must be 0"):
        Rotated(Block(8), rotation="hadamard", rotation_group=48)


def test_centring_takes_out_what_calibration_text_showed_and_brings_it_back():
    bias = torch.zeros(8, 1, 64, dtype=torch.float64)
    bias[:, :, 5] = 300
    x = (X + bias).float()
    codec = Centered(Block(4), center=True)
    with pytest.raises(Unsupported, match="must be calibrated"):
        codec.encode(x)
    fitted = codec.calibrate(torch.randn(1, 8, 500, 64, generator=torch.Generator().manual_seed(3)) + bias.float())
    plain, centred = (c.decode(c.encode(x), 64, torch.float32) for c in (Block(4), fitted))
    assert (centred - x).square().mean() * 50 < (plain - x).square().mean()
    assert centred[..., 5].mean() == pytest.approx(float(x[..., 5].mean()), abs=1)


def test_what_is_wrapped_learns_from_what_it_will_see():
    rotated = Interleaved(Rotated(Centered(Block(4), center=True), rotation="haar"))
    fitted = rotated.calibrate(X[:1].float())
    inside = fitted.inner.inner
    expected = Interleaved(Rotated(Cast("float32"), rotation="haar")).transform(X[:1]).mean((0, 2))
    assert torch.allclose(inside.learned["mean"][:, 0].double(), expected, rtol=0, atol=1e-6)


def test_wrappers_are_keys_of_a_side_and_round_trip():
    k = {"codec": "block", "bits": 4, "rotation": "haar", "seed": 7, "pad": 96, "center": True}
    scheme = read({"name": "mine", "k": k, "v": "q8_0"})
    assert isinstance(scheme.k.codec, Centered)
    assert isinstance(scheme.k.codec.inner, Rotated)
    assert scheme.to_data()["k"] == k
    assert read(scheme.to_data()) == scheme
    assert scheme.calibrated
    assert not read({"name": "plain", "k": {"codec": "block", "center": False, "rotation": "none"}, "v": "q8_0"}).calibrated
