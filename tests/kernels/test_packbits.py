"""Native bit streams against plain shifts."""

import numpy as np
import pytest
import torch

from tqbench.codecs.block import Block
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
