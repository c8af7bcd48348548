"""The fast transforms against the dense matrix."""

import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.kernels import hadamard, native
from tqbench.testing.samples import gaussian, strided

FORMS = {impl.name: impl for impl in hadamard.OP.impls if impl.refuses(Block(), Place()) is None}
built = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1 << k for k in range(13)])
@pytest.mark.parametrize("form", FORMS)
def test_every_power_of_two(form, n, dtype):
    """A sum of n values in log₂ n rounds errs by at most that many roundings of the vector's length, and one of the factor."""
    x = gaussian(3, 5, n, dtype=dtype)
    got, expected = FORMS[form].load()(x), FORMS["reference"].load()(x.double())
    assert got.dtype == dtype
    allowed = (n.bit_length() + 1) * torch.finfo(dtype).eps * x.norm(dim=-1, keepdim=True)
    assert ((got - expected).abs() <= allowed).all()


@pytest.mark.parametrize("form", FORMS)
def test_views_and_empty_tensors(form):
    run, x = FORMS[form].load(), gaussian(2, 3, 64)
    assert torch.equal(run(strided(x)), run(x))
    assert run(x[:0]).shape == (0, 3, 64)


@built
@pytest.mark.parametrize("n", [3, 48, 8192])
def test_other_sizes_are_refused(n):
    with pytest.raises((Unsupported, EvidenceError)):
        hadamard.OP.resolve(Block(), "native")(torch.zeros(2, n))


@built
def test_other_dtypes_and_places_are_refused():
    with pytest.raises(EvidenceError, match="takes float32 or float64"):
        hadamard.OP.resolve(Block(), "native")(torch.zeros(2, 8, dtype=torch.float16))
    assert hadamard.OP.resolve(Block(), "auto", Place(dtype="bfloat16")).impl == "torch"
    assert native.library().tqbench_hadamard_float32(None, None, 1, 8) == 1
