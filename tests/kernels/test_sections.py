"""Codes of sections: every form against the loops, errors within half a step at every width, and ranges that fp16 does not cut."""

import itertools

import numpy as np
import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.codecs.blocks.sections import half_above, half_below
from tqbench.core.errors import EvidenceError
from tqbench.core.op import Place
from tqbench.kernels import native, sections
from tqbench.testing.samples import SECTIONS as ROWS
from tqbench.testing.samples import WIDTHS, gaussian, strided

QUANTIZE, DEQUANTIZE = (
    {impl.name: impl.load() for impl in op.impls if impl.refuses(Block(), Place()) is None}
    for op in (sections.QUANTIZE, sections.DEQUANTIZE)
)


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rows", ROWS)
def test_every_form_gives_the_codes_of_the_loops(rows):
    expected = QUANTIZE["reference"](ROWS[rows], WIDTHS)
    back = DEQUANTIZE["reference"](*expected, torch.float32)
    for name, quantize in QUANTIZE.items():
        assert same(quantize(ROWS[rows], WIDTHS), expected), name
        got = DEQUANTIZE[name](*expected, torch.float32)
        assert torch.allclose(got, back, rtol=0, atol=2.0**-23 * float(back.abs().max() if back.numel() else 0)), name  # one rounding less


@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set(isa, rows):
    assert same(QUANTIZE["native"](ROWS[rows], WIDTHS), QUANTIZE["torch"](ROWS[rows], WIDTHS))


def test_float64_is_taken_by_torch_and_by_the_loops():
    rows = gaussian(1, 1, 2, 17, 24, dtype=torch.float64)
    assert same(QUANTIZE["torch"](rows, WIDTHS[:1]), QUANTIZE["reference"](rows, WIDTHS[:1]))


@pytest.mark.parametrize("width", range(2, 17))
@pytest.mark.parametrize("offset", [0.0, 20.0, -900.0])
def test_no_value_is_off_by_more_than_half_a_step(width, offset):
    """And the step is the range's, but for what fp16 rounds: 2⁻¹⁰ of itself, and of the minimum over the number of steps."""
    rows = offset + gaussian(1, 1, 3, 1, 128, seed=width, dtype=torch.float64)
    codes, minima, steps = QUANTIZE["torch"](rows, ((width,),))
    back = DEQUANTIZE["torch"](codes, minima, steps, torch.float64)
    assert codes.min() >= 0
    assert codes.max() < 2**width
    assert ((back - rows).abs() <= steps.double().unsqueeze(-1) * 0.5000001).all()
    ideal = (rows.amax(-1) - rows.amin(-1)) / (2**width - 1)
    assert (steps.double() <= (ideal + 2**-10 * abs(offset) / (2**width - 1)) * (1 + 2**-9) + 2**-24).all()


def test_one_bit_is_the_means_of_two_halves():
    """Between minimum and maximum one bit loses several times the variance, where no bit loses it once."""
    rows = 7 + gaussian(1, 1, 4, 1, 128, dtype=torch.float64)
    for name, quantize in QUANTIZE.items():
        given = rows.float() if name == "native" else rows
        codes, minima, steps = quantize(given, ((1,),))
        above = rows > rows.mean(-1, keepdim=True)
        assert torch.equal(codes == 1, rows > (minima.double() + steps.double() / 2).unsqueeze(-1))
        levels = [(rows * mask).sum(-1) / mask.sum(-1) for mask in (~above, above)]
        assert torch.allclose(minima.double(), levels[0], rtol=2**-10)
        assert torch.allclose(minima.double() + steps.double(), levels[1], rtol=2**-9)
        back = DEQUANTIZE[name](codes, minima, steps, given.dtype)
        assert 0.3 < float((back - rows).square().mean() / rows.var()) < 0.45


def test_a_row_of_no_bits_is_zero():
    codes, minima, steps = QUANTIZE["torch"](5 + gaussian(1, 1, 1, 2, 16), ((0, 3),))
    assert not codes[..., 0, :].any()
    assert (float(minima[..., 0]), float(steps[..., 0])) == (0, 0)
    assert not DEQUANTIZE["torch"](codes, minima, steps, torch.float32)[..., 0, :].any()


def test_zeros_come_back_as_zeros():
    for name, quantize in QUANTIZE.items():
        assert not DEQUANTIZE[name](*quantize(ROWS["zeros"], WIDTHS), torch.float32).any()


def test_what_fp16_cannot_hold_becomes_infinite_in_every_form():
    rows = torch.tensor([-1e6, 1.0]).expand(1, 1, 1, 1, 2)
    for quantize in QUANTIZE.values():
        _, minima, steps = quantize(rows, ((4,),))
        assert torch.isinf(minima).all() | torch.isinf(steps).all()


def test_outward_rounding_is_the_nearest_neighbour():
    """All fp16 numbers and the middles between them, against NumPy's neighbours."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    x = np.concatenate([finite, -finite, (finite[1:] + finite[:-1]) / 2, -(finite[1:] + finite[:-1]) / 2])
    near = x.astype(np.float16)
    with np.errstate(over="ignore"):  # below the lowest lies minus infinity, which is not chosen
        below = np.where(near.astype(np.float32) > x, np.nextafter(near, np.float16(-np.inf)), near)
    assert np.array_equal(half_below(torch.from_numpy(x)).numpy(), below)
    assert np.array_equal(half_above(torch.from_numpy(x)).numpy(), -half_below(torch.from_numpy(-x)).numpy())


def test_more_bits_lose_less():
    rows = gaussian(1, 1, 4, 1, 128)
    losses = [float((DEQUANTIZE["torch"](*QUANTIZE["torch"](rows, ((w,),)), torch.float32) - rows).norm()) for w in range(1, 13)]
    assert losses[0] > 1.1 * losses[1]  # one bit has better levels
    assert all(a > 1.6 * b for a, b in itertools.pairwise(losses[1:]))


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_views_are_worth_their_values_and_nonsense_is_refused():
    rows = ROWS["gaussian"]
    assert same(QUANTIZE["native"](strided(rows), WIDTHS), QUANTIZE["native"](rows, WIDTHS))
    with pytest.raises(EvidenceError, match="takes float32 rows"):
        QUANTIZE["native"](rows.double(), WIDTHS)
    with pytest.raises(EvidenceError, match="takes float32 rows"):
        QUANTIZE["native"](rows, WIDTHS[:1])
    with pytest.raises(EvidenceError, match="refused its arguments"):
        QUANTIZE["native"](rows, tuple((17, *widths[1:]) for widths in WIDTHS))
    with pytest.raises(EvidenceError, match="takes int32 codes"):
        DEQUANTIZE["native"](*QUANTIZE["native"](rows, WIDTHS), torch.float64)
