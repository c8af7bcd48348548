"""KVTC's small form: components, bits and bytes by hand, the whole of it against loops, and what OnlyTerp/kvtc checks of itself."""

import itertools

import numpy as np
import pytest
import torch

from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.calibration import Calibration, Piece
from tqbench.cache.rope import Rope
from tqbench.cache.store import Store
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.core.codec import nbytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.session import Terms
from tqbench.kernels import native, packbits, project, sections
from tqbench.testing.samples import gaussian

DIM, HEADS = 64, 2
TURN = torch.linalg.qr(gaussian(DIM, DIM, seed=1, dtype=torch.float64)).Q
SIZES = torch.logspace(0.5, -2, DIM, dtype=torch.float64)  # of the components


def vectors(tokens, seed, heads=HEADS):
    """Keys or values as models have them: few directions hold most of them, and they are not centred."""
    return (gaussian(1, heads, tokens, DIM, seed=seed, dtype=torch.float64) * SIZES) @ TURN.T + TURN[0]


TEXT, X = vectors(2000, 2), vectors(512, 3)
EVERY_FORM = ("native", "torch", "reference") if native.missing() is None else ("torch", "reference")


def calibrated(x=TEXT, **fields):
    return KvtcLite(**fields).calibrate(x)


def decoded(codec, x):
    return codec.decode(codec.encode(x), x.shape[-1], x.dtype)


def distortion(codec, x):
    return float((x - decoded(codec, x)).square().sum() / x.square().sum())


def cosines(x, y):
    return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1).flatten()


# ------------------------------------------------------------------------------------------------------------------ components


def test_the_basis_is_that_of_a_full_svd():
    learned = calibrated().learned
    for head in range(HEADS):
        rows = TEXT[0, head] - TEXT[0, head].mean(0)
        _, singular, right = torch.linalg.svd(rows, full_matrices=False)
        assert torch.allclose(learned["variances"][head], singular.square() / (len(rows) - 1), rtol=1e-10)
        assert torch.allclose((right @ learned["basis"][head]).abs(), torch.eye(DIM, dtype=torch.float64), atol=1e-8)
        assert torch.allclose(learned["mean"][head, 0], TEXT[0, head].mean(0))


def test_components_are_orthonormal_and_ordered():
    learned = calibrated().learned
    assert torch.allclose(learned["basis"].mT @ learned["basis"], torch.eye(DIM, dtype=torch.float64), atol=1e-13)
    assert (learned["variances"].diff() <= 0).all()
    assert (learned["widths"].int().diff() <= 0).all()


def test_the_transform_comes_back_whole_and_few_components_keep_most():
    codec = calibrated()
    y = codec.transform(X)
    assert torch.allclose(codec.inverse(y, DIM), X, atol=1e-12)
    centred = (X - codec.table("mean", X)).square().sum()
    kept = [float(y[..., :n].square().sum() / centred) for n in (4, 16, 32, DIM)]
    assert kept == sorted(kept)
    assert kept[0] > 0.4
    assert kept[1] > 0.9
    assert kept[3] == pytest.approx(1)


@pytest.mark.parametrize("rows", [1, 2, 10, DIM - 1])
def test_fewer_vectors_than_channels_leave_the_rest_without_variance(rows):
    codec = calibrated(TEXT[:, :, :rows])
    assert (codec.learned["variances"][:, max(0, rows - 1) :] < 1e-20).all()
    assert codec.learned["basis"].shape == (HEADS, DIM, DIM)
    assert torch.allclose(codec.inverse(codec.transform(X), DIM), X, atol=1e-12)
    assert torch.isfinite(decoded(codec, X)).all()


def test_text_that_never_changes_leaves_nothing_to_code():
    codec = calibrated(torch.ones(1, HEADS, 200, DIM))
    assert codec.active() == 0
    packed = codec.encode(X)
    assert not packed["codes"].any()
    assert torch.equal(decoded(codec, X), torch.ones_like(X))


def test_heads_have_components_of_their_own_or_share_them():
    x = vectors(500, 4, heads=5)
    x[:, 1::2] = x[:, 1::2].flip(-1)
    own, shared = calibrated(x), calibrated(x, head_group=2)
    assert own.learned["basis"].shape[0] == 5
    assert shared.learned["basis"].shape[0] == 3  # the last group has one head
    assert shared.widths(5)[0] == shared.widths(5)[1] != shared.widths(5)[4]
    stacked = calibrated(x[:, :2].flatten(1, 2)[:, None])
    assert torch.allclose(stacked.learned["mean"][0], shared.learned["mean"][0])
    assert stacked.learned["widths"][0].tolist() == shared.learned["widths"][0].tolist()
    assert distortion(own, x[:, :, :384]) < distortion(shared, x[:, :, :384])
    assert {name: a.shape for name, a in shared.encode(x[:, :, :128]).items()} == {
        name: a.shape for name, a in own.encode(x[:, :, :128]).items()
    }


# ------------------------------------------------------------------------------------------------------------------------ RoPE


ROPE = Rope(tuple(10000 ** (-2 * i / DIM) for i in range(DIM // 2)))


@pytest.mark.parametrize("tokens", [1, 2, 300])
@pytest.mark.parametrize("start", [0, 77])
def test_rope_is_undone(tokens, start):
    x = gaussian(1, 2, tokens, DIM)
    assert torch.allclose(ROPE.undo(ROPE.redo(x, start), start), x, atol=1e-5)


def test_more_frequencies_than_pairs_are_refused():
    with pytest.raises(Unsupported, match="head_dim 63 has no room for the 32 pairs"):
        ROPE.undo(gaussian(1, 1, 4, DIM - 1), 0)


def test_keys_before_rope_are_what_has_few_components():
    """The reason for `rope: pre`: the same keys, each turned by its position, need many more."""
    turned = ROPE.redo(TEXT, 0)
    plain, spun = (calibrated(x, bits=2).learned["variances"].clamp_min(1e-12) for x in (TEXT, turned))
    assert plain[..., :8].sum() / plain.sum() > 1.2 * spun[..., :8].sum() / spun.sum()
    assert distortion(calibrated(TEXT, bits=2), TEXT[:, :, :512]) < distortion(calibrated(turned, bits=2), turned[:, :, :512]) / 2


# ------------------------------------------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize("bits", [0.1, 1, 2.4166, 3.75, 8, 16])
def test_the_budget_is_kept_and_spent(bits):
    codec = calibrated(bits=bits)
    for head in codec.learned["widths"].tolist():
        assert sum(head) == int(bits * DIM)
        assert max(head) <= 16


def test_small_variances_get_no_bits_and_large_ones_more():
    widths = calibrated(bits=1).learned["widths"][0].tolist()
    assert widths[0] > widths[16] > widths[-1] == 0
    assert max(calibrated(bits=2, max_bits=4).learned["widths"][0].tolist()) == 4


@pytest.mark.parametrize(
    ("fields", "head_dim", "codes", "slots"),
    [
        ({"bits": 3.75}, 128, 128 * 480 // 8, 128),
        ({"bits": 1.75}, 64, 128 * 112 // 8, 64),
        ({"bits": 0.3, "section": 64}, 80, 64 * 24 // 8, 24),
        ({"bits": 2.4166, "section": 8}, 128, 309, 128),
    ],
)
def test_bytes_of_a_section(fields, head_dim, codes, slots):
    """Codes of the whole budget, and an fp16 minimum and step of every component that may have bits."""
    codec = KvtcLite(**fields)
    assert codec.layout(head_dim).nbytes == codes + 2 * 2 * slots
    assert [part.role for part in codec.layout(head_dim).parts] == ["payload", "metadata", "metadata"]
    section = codec.section
    ready = codec.calibrate(gaussian(1, 1, 300, head_dim))
    assert nbytes(ready.encode(gaussian(1, 1, 3 * section, head_dim))) == 3 * (codes + 4 * slots)


@pytest.mark.parametrize(("ratio", "head_dim"), [*itertools.product((4, 6, 8), (64, 128))])
def test_the_presets_are_as_small_as_they_say(ratio, head_dim):
    """Of fp16 values to everything that is stored for them; OnlyTerp's own ratio would be twice as high and more."""
    scheme = preset(f"kvtc_lite_{ratio}x")
    k, v = scheme.bits(head_dim)
    assert k == v
    assert ratio <= 16 / k < ratio + 0.03
    assert (scheme.sinks, scheme.k.window, scheme.k.flush, scheme.k.rope, scheme.v.rope) == (4, 128, 128, "pre", "post")
    assert scheme.calibrated


# ----------------------------------------------------------------------------------------------------------------------- values


def test_more_bits_lose_less():
    losses = [distortion(calibrated(bits=bits), X) for bits in (0.5, 1, 2, 3, 4, 6, 8)]
    assert all(a > 1.5 * b for a, b in itertools.pairwise(losses))
    assert losses[2] < 0.02
    assert losses[-1] < 1e-5


def test_a_small_section_has_tighter_ranges_and_more_of_them():
    short, long = calibrated(bits=3, section=16), calibrated(bits=3, section=256)
    assert distortion(short, X) < distortion(long, X)
    assert short.layout(DIM).bits(DIM) > long.layout(DIM).bits(DIM)


def test_cosines_of_the_presets():
    for name, least in (("kvtc_lite_4x", 0.999), ("kvtc_lite_6x", 0.99), ("kvtc_lite_8x", 0.98)):
        codec = preset(name).k.codec.calibrate(TEXT)
        found = cosines(X, decoded(codec, X))
        assert found.mean() > least, name
        assert found.max() <= 1 + 1e-12


def by_stages(codec, x, form):
    """Encode and decode through the operations, all in one form."""
    heads, head_dim = x.shape[1], x.shape[-1]
    there, quantize, pack, unpack, dequantize, back = (
        next(impl for impl in op.impls if impl.name == form).load()
        for op in (project.PROJECT, sections.QUANTIZE, packbits.PACK_MIXED, packbits.UNPACK_MIXED, sections.DEQUANTIZE, project.UNPROJECT)
    )
    widths = codec.widths(heads)
    codes, minima, steps = quantize(there(codec, x), widths)
    packed = pack(codes, widths, codec.code_bytes(head_dim))
    rows = dequantize(unpack(packed, widths, codec.section), minima, steps, x.dtype)
    return packed, minima, steps, back(codec, rows, head_dim)


@pytest.mark.parametrize("bits", [0.5, 2.4166, 3.75, 9])
@pytest.mark.parametrize("form", EVERY_FORM)
def test_the_codec_is_its_stages_in_every_form(form, bits):
    x = X[:, :, :128].float()
    codec = calibrated(TEXT.float(), bits=bits, section=32)
    expected, kept = codec.encode(x), codec.active()
    packed, minima, steps, back = by_stages(codec, x, form)
    for got, name in ((packed, "codes"), (minima, "minima"), (steps, "steps")):
        wanted = expected[name][..., : got.shape[-1]]
        assert (got != wanted).double().mean() < 1e-3, name  # a tie may fall the other way
        assert not expected[name][..., got.shape[-1] :].any()
    assert minima.shape[-1] == kept
    truth = codec.decode(expected, DIM, torch.float32)
    assert (back - truth).norm() <= 1e-3 * truth.norm()
    mine, theirs = cosines(x, back), cosines(x, truth)
    assert float((mine.min() - theirs.min()).abs()) < 1e-3
    assert float((mine.quantile(0.01) - theirs.quantile(0.01)).abs()) < 1e-3


def onlyterp(x, codec, head):
    """One section as OnlyTerp/kvtc quantizes it: scale and zero point in full precision, no bit without its own component."""
    y = (x - codec.learned["mean"][head]) @ codec.learned["basis"][head]
    out = torch.zeros_like(y)
    for c, bits in enumerate(codec.learned["widths"][head].tolist()):
        if bits:
            low, high = y[:, c].min(), y[:, c].max()
            scale = max(high - low, torch.tensor(1e-8)) / (2**bits - 1)
            zero = -low / scale
            out[:, c] = ((y[:, c] / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale
    return out @ codec.learned["basis"][head].T + codec.learned["mean"][head]


@pytest.mark.parametrize("bits", [1, 1.75, 3, 4, 8])
def test_it_loses_no_more_than_the_project(bits):
    """Ranges in fp16 cost less than a fiftieth of the error, and one bit loses a third of a variance where the project loses three."""
    codec = calibrated(bits=bits)
    for head in range(HEADS):
        x = X[0, head, :128]
        mine, theirs = (x - decoded(codec, X[:, :, :128])[0, head]).square().sum(), (x - onlyterp(x, codec, head)).square().sum()
        assert mine < 1.02 * theirs
        if 1 not in codec.widths(HEADS)[head]:
            assert mine > 0.98 * theirs


# ------------------------------------------------------------------------------------------------------------------------ edges


def test_no_token_and_a_single_section():
    codec = calibrated(section=8)
    assert codec.encode(X[:, :, :0])["codes"].shape == (1, HEADS, 0, codec.code_bytes(DIM))
    assert decoded(codec, X[:, :, :0]).shape == (1, HEADS, 0, DIM)
    assert distortion(codec, X[:, :, :8]) < 0.01


def test_a_section_of_equal_tokens_is_nearly_exact():
    """Every range is a point: the minimum in fp16 and one step up to the value."""
    codec = calibrated()
    x = X[:, :, :1].expand(1, HEADS, 128, DIM)
    kept = (codec.transform(x) * (codec.table("widths", x)[:, None] > 0)).square().sum() / codec.transform(x).square().sum()
    assert (decoded(codec, x) - x).square().sum() / x.square().sum() < float(1 - kept) + 1e-6


def test_zeros_come_back_almost():
    codec = calibrated()
    y = decoded(codec, torch.zeros_like(X))
    assert torch.isfinite(y).all()
    assert y.abs().max() < 0.05 * TEXT.abs().max()


def test_a_vector_far_from_calibration_stays_finite():
    x = X.clone()
    x[0, 0, 3] *= 1000
    assert torch.isfinite(decoded(calibrated(), x)).all()


def test_it_must_be_calibrated_first():
    with pytest.raises(Unsupported, match="must be calibrated"):
        KvtcLite().encode(X)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 0.0}, "bits must be above 0"),
        ({"bits": 5.0, "max_bits": 4}, "at most max_bits, 4"),
        ({"max_bits": 17}, "max_bits must be"),
        ({"section": 12}, "section must be a multiple of 8"),
        ({"section": 0}, "section must be"),
        ({"head_group": 0}, "head_group must be"),
    ],
)
def test_nonsense_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        KvtcLite(**fields)


def test_a_vector_without_a_whole_bit_is_refused():
    with pytest.raises(Unsupported, match="head_dim 64"):
        KvtcLite(bits=0.01).check(64)


# ------------------------------------------------------------------------------------------------------------------------ policy


def store(scheme="kvtc_lite_4x"):
    """A store of a model with RoPE, calibrated on keys as attention takes them."""
    scheme = read(scheme)
    text = Piece(ROPE.redo(TEXT, 0), TEXT, start=0)
    shape = Shape("llama", DIM, "float32", HEADS, HEADS, ROPE)
    return Store(scheme, shape, TorchArrays(), Terms(calibration=Calibration([[text]])), Layer())


@pytest.mark.parametrize("tokens", [1, 4, 5, 131, 132, 259, 260, 400])
def test_sinks_and_window_are_exact_and_the_rest_is_close(tokens):
    k, v = ROPE.redo(X[:, :, :tokens].float(), 0), X[:, :, :tokens].float()
    cache = store()
    cache.append(k, v)
    keys, values = cache.visible()
    packed = max(0, tokens - 4 - 128) // 128 * 128
    for got, x in ((keys, k), (values, v)):
        assert torch.equal(got[:, :, :4], x[:, :, :4])
        assert torch.equal(got[:, :, 4 + packed :], x[:, :, 4 + packed :])
        if packed:
            middle = slice(4, 4 + packed)
            assert 0 < float((got[:, :, middle] - x[:, :, middle]).norm() / x[:, :, middle].norm()) < 0.05
    assert [side.tokens_packed for side in cache.evidence()] == [packed] * 2


def test_calibration_takes_keys_before_rope():
    """What the store learned from rotated keys is what the codec learns from plain ones: OnlyTerp's own script forgets to undo it."""
    mine, plain = store().k.codec.learned, preset("kvtc_lite_4x").k.codec.calibrate(TEXT.float()).learned
    assert torch.allclose(mine["variances"], plain["variances"], rtol=1e-3, atol=1e-7)


def test_arrays_are_numbers_of_numpy():
    """The layout names types that every framework has."""
    for array in calibrated().encode(X).values():
        assert array.numpy().dtype in (np.uint8, np.float16)
