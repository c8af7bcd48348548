"""Native bit streams against plain shifts."""

import numpy as np
import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.codecs.blocks import packing
from tqbench.core.errors import EvidenceError
from tqbench.core.op import Place
from tqbench.kernels import native, packbits

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
(PACK, pack), (UNPACK, unpack) = (
    [impl.load() for impl in sorted(op.impls, key=lambda impl: impl.name)] for op in (packbits.PACK, packbits.UNPACK)
)  # native before reference


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_shape_and_dimension_both_ways(bits):
    rng = np.random.default_rng(bits)
    for _ in range(100):
        shape, dim = rng.integers(0, 5, size=3).tolist(), int(rng.integers(-3, 3))
        shape[dim] = 8 * int(rng.integers(0, 12))
        codes = torch.from_numpy(rng.integers(0, 2**bits, size=shape, dtype=np.uint8))
        packed = PACK(codes, bits, dim)
        assert torch.equal(packed, pack(codes, bits, dim))
        assert packed.is_contiguous()
        assert torch.equal(UNPACK(packed, bits, dim), codes)
        assert torch.equal(UNPACK(packed, bits, dim), unpack(packed, bits, dim))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_runs_that_end_on_a_byte_before_the_eighth_code(bits):
    codes = (torch.arange(3 * 8 // bits) % 2**bits).to(torch.uint8)
    assert torch.equal(PACK(codes, bits), pack(codes, bits))
    assert torch.equal(UNPACK(PACK(codes, bits), bits), codes)


def test_long_streams_on_several_threads():
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 8, size=(1 << 15, 24), dtype=np.uint8))
    assert torch.equal(UNPACK(PACK(codes, 3), 3), codes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(EvidenceError, match="do not end on a byte"):
        PACK(torch.zeros(5, dtype=torch.uint8), 3)
    with pytest.raises(EvidenceError, match="no whole number of codes"):
        UNPACK(torch.zeros(4, dtype=torch.uint8), 3)
    with pytest.raises(EvidenceError, match="takes uint8"):
        PACK(torch.zeros(8), 4)
    with pytest.raises(EvidenceError, match="1 to 8 bits"):
        PACK(torch.zeros(8, dtype=torch.uint8), 9)
    assert packbits.PACK.resolve(Block(), "auto", Place(device="cuda:0")).impl == "reference"
    assert native.library().tqbench_packbits(None, None, 8, 4) == 1


MIXED = [{impl.name: impl.load() for impl in op.impls} for op in (packbits.PACK_MIXED, packbits.UNPACK_MIXED)]


def mixed(draw, *, widths, batch=1, units=1, count=16):
    """Codes that fill their widths, and the bytes that they need."""
    top = torch.tensor(widths, dtype=torch.int64)[:, None, :, None]
    random = torch.from_numpy(draw.integers(0, 1 << 16, size=(batch, len(widths), units, len(widths[0]), count)))
    size = max(sum(packing.stream_bytes(width, count) for width in head) for head in widths)
    return (random & (1 << top) - 1).to(torch.int32), size


@pytest.mark.parametrize("width", range(17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 13, 128])
def test_every_width_and_ragged_counts_come_back(width, count):
    codes, size = mixed(np.random.default_rng(width), widths=((width, width),), units=2, count=count)
    expected = MIXED[0]["reference"](codes, ((width, width),), size)
    assert expected.shape == (1, 1, 2, 2 * packing.stream_bytes(width, count))
    for name in MIXED[0]:
        assert torch.equal(MIXED[0][name](codes, ((width, width),), size), expected), name
        assert torch.equal(MIXED[1][name](expected, ((width, width),), count), codes), name


def test_random_mixtures_of_several_heads():
    draw = np.random.default_rng(0)
    for _ in range(60):
        heads, components = draw.integers(1, 5, size=2).tolist()
        widths = tuple(tuple(row) for row in draw.integers(0, 17, size=(heads, components)).tolist())
        batch, units, count = int(draw.integers(1, 3)), int(draw.integers(0, 4)), int(draw.integers(0, 40))
        codes, size = mixed(draw, widths=widths, batch=batch, units=units, count=count)
        size += int(draw.integers(0, 9))  # bytes that the allocation left
        expected = MIXED[0]["reference"](codes, widths, size)
        for name in MIXED[0]:
            assert torch.equal(MIXED[0][name](codes, widths, size), expected), name
            assert torch.equal(MIXED[1][name](expected, widths, count), codes), name


def test_a_stream_by_hand():
    """Two codes of 12 bits: their low bytes, then their high nibbles, then three codes of one bit."""
    codes = torch.tensor([[0xABC, 0x123], [1, 1]], dtype=torch.int32)[None, None, None]
    for name in MIXED[0]:
        assert MIXED[0][name](codes, ((12, 1),), 5).flatten().tolist() == [0xBC, 0x23, 0x1A, 0b11, 0]


def test_equal_widths_are_the_stream_of_equal_widths():
    codes, size = mixed(np.random.default_rng(3), widths=((5,) * 4,), count=24)
    for name in MIXED[0]:
        assert torch.equal(MIXED[0][name](codes, ((5,) * 4,), size)[0, 0, 0], pack(codes.to(torch.uint8).flatten(), 5))


def test_mixed_codes_that_do_not_fit_are_refused():
    codes, size = mixed(np.random.default_rng(4), widths=((9, 3),))
    for name, error in (("native", EvidenceError), ("torch", ValueError), ("reference", ValueError)):
        with pytest.raises(error):
            MIXED[0][name](codes, ((9, 3),), size - 1)
    with pytest.raises(EvidenceError, match="refused"):
        MIXED[0]["native"](codes, ((17, 3),), 100)
    with pytest.raises(EvidenceError, match="refused"):
        MIXED[1]["native"](torch.zeros(1, 1, 1, size - 1, dtype=torch.uint8), ((9, 3),), 16)
    with pytest.raises(EvidenceError, match="takes int32 codes"):
        MIXED[0]["native"](codes.long(), ((9, 3),), size)


def test_mixed_streams_on_several_threads():
    widths = (tuple(range(16, -1, -1)),) * 2
    codes, size = mixed(np.random.default_rng(5), widths=widths, units=40, count=512)
    assert torch.equal(MIXED[1]["native"](MIXED[0]["native"](codes, widths, size), widths, 512), codes)
