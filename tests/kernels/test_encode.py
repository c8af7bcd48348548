"""The native encode against the reference: on seeded random codecs and shapes, on every instruction set, and on what must be refused."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from tqbench.codecs.affine import Affine
from tqbench.codecs.block import Block
from tqbench.codecs.blocks.codebooks import widths
from tqbench.codecs.blocks.rotations import HADAMARDS
from tqbench.codecs.blocks.wrap import Bridge, Centered, Identity, Interleaved, Rotated
from tqbench.codecs.cast import Cast
from tqbench.codecs.codebook import Codebook
from tqbench.codecs.fp8 import Fp8
from tqbench.codecs.mlx_affine import MlxAffine
from tqbench.codecs.qjl import QJL
from tqbench.core.codec import Codec
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.kernels import encode, native
from tqbench.testing.refusal import refusal
from tqbench.testing.samples import gaussian, strided

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
ALLOWED = {  # the share of elements that may differ from the reference's
    "rounded": 0,  # every operation is the reference's own
    # Sums in double in another order differ by some 2^-53, and a float rounds the other way where less than that is left of 2^-25.
    "turned": 1e-6,
    # Turned in float and divided by a norm that was added up in another order: some 10 roundings of 2^-24 meet 15 boundaries, where the
    # density is at most 0.4: about 4e-6.
    "indices": 1e-5,
    # They differ by a few 2^-24, and half precision rounds the other way at points 2^-11 apart.
    "lengths": 1e-3,
}


def run(codec, x):
    return encode.OP.resolve(codec, "native")(codec, x)


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def _codebook(rng):
    table = pick(rng, "gaussian", "sphere", "turbo", "vllm", "mlx_vlm")
    scale = pick(rng, "raw", "norm_corrected", "norm_corrected_at_decode", "least_squares", "unbiased", "max_abs")
    about = {"ties": pick(rng, "up", "down"), "group": pick(rng, 0, 8, 32, 128), "planes": pick(rng, "split", "stream")}
    return Codebook(int(pick(rng, *widths(table)[:4], widths(table)[-1])), table, scale, **about, reserved=pick(rng, 0, 2))


def _affine(rng):
    axis = pick(rng, "token", "channel")
    about = {"kept": pick(rng, "float16", "float32"), "encode_with": pick(rng, "kept", "exact"), "form": pick(rng, "affine", "symmetric")}
    group = int(pick(rng, 16, 32, *([0] if axis == "token" else [])))
    return Affine(int(rng.integers(2, 9)), group, axis, **about, rounding=pick(rng, "nearest_even", "half_up"))


PLAIN = (
    _codebook,
    lambda rng: Block(*pick(rng, (8,), (4,), (5,), (4, "affine"), (5, "affine"), (4, "nonlinear"))),
    _affine,
    lambda rng: MlxAffine(int(pick(rng, 2, 3, 4, 5, 6, 8)), 32, pick(rng, "float16", "bfloat16", "float32")),
    lambda rng: Fp8(pick(rng, "e4m3", "e5m2"), pick(rng, "none", "token_head", "head")),
    lambda rng: Cast(pick(rng, "float32", "bfloat16", "float16")),
)


def draw_codec(rng):
    codec = pick(rng, *PLAIN)(rng)
    if rng.random() < 0.6:
        rotation = pick(rng, "none", "hadamard_signed", "hadamard_double_signed", "hadamard_mlx_vlm", "haar", "planar", "iso")
        group = int(pick(rng, 0, 32)) if rotation != "none" else 0
        codec = Rotated(codec, rotation=rotation, rotation_group=group, seed=42, pad=int(pick(rng, 0, 64)))
    if rng.random() < 0.2:
        codec = Centered(codec, center=True)
    return Interleaved(codec) if rng.random() < 0.3 else codec


def draw_vectors(rng, codec, head_dim):
    shape = (int(rng.integers(1, 3)), int(rng.integers(1, 4)), codec.unit * int(rng.integers(0, 8)), head_dim)
    x = torch.from_numpy(rng.standard_normal(shape)).float() * 10.0 ** int(rng.integers(-4, 4))
    if rng.random() < 0.2:
        x[..., :: int(rng.integers(1, 5))] = 0
    x = x.to(pick(rng, torch.float32, torch.float32, torch.bfloat16, torch.float16))
    return strided(x) if rng.random() < 0.3 else x


def draw(rng):
    """A codec that takes its vectors."""
    while True:
        codec, head_dim = draw_codec(rng), int(pick(rng, 32, 48, 64, 80, 96, 128))
        try:
            codec.check(head_dim)
        except Unsupported:
            continue
        x = draw_vectors(rng, codec, head_dim)
        return codec.calibrate(gaussian(1, x.shape[1], 64, head_dim)), x


def differing(codec, x, counts):
    """Add up, per kind of array, how many elements differ and how many there are."""
    reason = refusal(codec.encode, x)
    if reason is not None:
        assert refusal(run, codec, x) == reason
        return
    got, expected = run(codec, x), codec.encode(x)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        wrong = int((got[name].float() != array.float()).sum())
        before = counts.get(kind(codec, name), (0, 0))
        counts[kind(codec, name)] = (before[0] + wrong, before[1] + array.numel())


def kind(codec, name):
    if isinstance(codec.plain, Codebook):
        return "lengths" if name == "norms" else "indices"
    return "rounded" if codec.data().get("rotation", "none") == "none" else "turned"


def hold(counts, few=0):
    """No more may differ than arithmetic allows, and `few` where the sample is small."""
    for name, share in ALLOWED.items():
        wrong, total = counts[name]
        assert wrong <= share * total + (few if share else 0), counts


def test_ten_thousand_random_codecs_and_shapes():
    rng, counts = np.random.default_rng(5), {}
    for _ in range(10_000):
        differing(*draw(rng), counts)
    hold(counts)


def test_every_instruction_set(isa):
    rng, counts = np.random.default_rng(6), {}
    for _ in range(1000):
        differing(*draw(rng), counts)
    assert native.isa() == isa
    hold(counts, few=2)


@pytest.mark.parametrize("rotation", [*HADAMARDS, "haar", "iso_fast"])
def test_a_vector_does_not_depend_on_its_neighbours(rotation):
    codec = Rotated(Codebook(3), rotation=rotation, rotation_group=128)
    x = gaussian(2, 3, 37, 128)
    whole = run(codec, x)
    for t in (0, 5, 36):
        alone = run(codec, x[:, :, t : t + 1])
        assert all(torch.equal(alone[name], whole[name][:, :, t : t + 1]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "codec", [Codebook(), Block(8), Affine(4, 16, "channel"), Centered(Cast(), center=True)], ids=lambda c: c.plain.name
)
def test_nan_and_infinity_are_refused(codec, value, dtype):
    codec = codec.calibrate(gaussian(1, 2, 64, 64))
    for place in [(0, 0, 0, 0), (1, 1, 31, 63), (0, 1, 16, 7)]:
        x = gaussian(2, 2, 32, 64).to(dtype)
        x[place] = value
        with pytest.raises(Unsupported, match="keys or values contain NaN or infinity"):
            run(codec, x)


@pytest.mark.parametrize(
    ("codec", "large", "what"),
    [
        (Codebook(), 1e5, "norms"),
        (Codebook(), 1e30, "norms"),
        (Block(8), 1e8, "scales"),
        (Block(4, "affine"), 7e4, "minima"),
        (Affine(4, 16, "channel"), 7e4, "minima"),
        (MlxAffine(), 7e4, "biases"),
        (Cast(), 65520.0, "values"),
    ],
    ids=str,
)
def test_overflow_is_refused_as_the_reference_does(codec, large, what):
    x = gaussian(1, 2, 32, 64)
    x[0, 1, 5, 6] = -large
    with pytest.raises(Unsupported, match=f"overflow its torch.float16 {what}") as native_refusal:
        run(codec, x)
    with pytest.raises(Unsupported) as refusal:
        codec.encode(x)
    assert str(native_refusal.value) == str(refusal.value)


@pytest.mark.parametrize("x", [torch.zeros(1, 1, 4, 64).double(), torch.zeros(1, 1, 4, 64, dtype=torch.int32), torch.zeros(1, 4, 64)])
def test_other_tensors_are_refused(x):
    with pytest.raises(EvidenceError, match="encode/native takes float32, float16, bfloat16"):
        run(Block(8), x)


def test_units_heads_and_calibration_must_fit():
    with pytest.raises(Unsupported, match="encodes 16 tokens together, got 17"):
        run(Affine(4, 16, "channel"), gaussian(1, 1, 17, 64))
    with pytest.raises(Unsupported, match="must be calibrated"):
        run(Centered(Block(8), center=True), gaussian(1, 1, 1, 64))
    with pytest.raises(EvidenceError, match="refused its arguments"):
        run(Centered(Block(8), center=True).calibrate(gaussian(1, 2, 64, 64)), gaussian(1, 3, 4, 64))
    with pytest.raises(Unsupported, match="do not fit head_dim 48"):
        run(Block(8), gaussian(1, 1, 4, 48))


def test_the_library_checks_plans():
    from tqbench.kernels.encode import _native, _plan

    library = _native._library()
    for field, value in [("format", 9), ("dim", 0), ("group", 0), ("group", 31), ("planes", 3), ("kept", 3), ("turn", 7), ("unit", 0)]:
        plan = _plan.build(Codebook(), 64)
        assert library.tqbench_encode_check(plan) == 0
        setattr(plan, field, value)
        assert library.tqbench_encode_check(plan) == 1, field
    plan = _plan.build(Block(4), 64)
    plan.plane[0].order[3] = 64
    assert library.tqbench_encode_check(plan) == 1
    assert library.tqbench_encode(None, None, None) == 1
    assert library.tqbench_encode(_plan.build(Block(8), 64), _native.Input(None, 0, 1, 1, 1, (ctypes.c_int64 * 4)()), _native.Output()) == 1


class Mine(Codebook):
    """A codec with mathematics of its own."""


@pytest.mark.parametrize(
    ("codec", "place", "reason"),
    [
        (Block(8), Place(device="cuda:0"), "runs on the CPU in float32, not on cuda:0"),
        (Block(8), Place(dtype="float64"), "in float64"),
        (QJL(), Place(), "codec 'qjl' has no native encode"),
        (Mine(), Place(), "has no native encode"),
        (Bridge(Block(8)), Place(), "skips the quantizer"),
        (Identity(Block(8)), Place(), "skips the quantizer"),
        (Rotated(Codebook(), rotation="cross_head"), Place(), "cross_head"),
        (Rotated(Interleaved(Block(8)), rotation="hadamard"), Place(), "wrapper 'Interleaved'"),
    ],
    ids=str,
)
def test_what_native_cannot_do_is_said(codec, place, reason):
    with pytest.raises(Unsupported, match=reason):
        encode.OP.resolve(codec, "native", place)
    assert encode.OP.resolve(codec, "auto", place).impl == ("triton" if place.device == "cuda:0" else "reference")


def test_auto_takes_it():
    assert encode.OP.resolve(Block(8)).impl == "native"


def test_a_plan_is_made_once_per_codec():
    from tqbench.kernels.encode._native import _ready

    codec: Codec = Rotated(Codebook(), rotation="hadamard")
    assert _ready(codec, 64) is _ready(replace(codec), 64)
