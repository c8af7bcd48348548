"""Attention over a partly packed cache against the formula in NumPy, on views made by hand."""

import numpy as np
import pytest
import torch

from tqbench.kernels.attend import OP, View
from tqbench.kernels.attend._torch import QUERIES

HEADS, KV_HEADS, DIM = 4, 2, 16
FORMS = {
    impl.name: impl.load() for impl in OP.impls if impl.platform == "torch" and not impl.name.startswith(("native", "triton"))
}  # their views hold codes


def draw(seed, heads, tokens):
    return torch.randn(2, heads, tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Side:
    """K or V in an exact and in a packed form, and which of them each query sees."""

    def __init__(self, seed, tokens, start, sinks, bounds):
        self.exact, self.coarse = draw(seed, KV_HEADS, tokens), draw(seed + 1, KV_HEADS, tokens)
        self.sinks, self.start, self.bounds = sinks, start, [max(min(sinks, tokens), end) for end in bounds]

    def view(self):
        end, kept = max(self.bounds[-1], self.sinks), self.bounds[0]  # before the chunk, everything below its first boundary was packed
        sinks = self.exact[:, :, : self.sinks] if self.sinks else None
        return View(sinks, lambda: self.coarse[:, :, self.sinks : end], end, self.exact[:, :, kept:], kept, self.bounds)

    def seen(self, i):
        """What query i sees, position by position."""
        t = self.start + i
        kinds = [self.coarse if self.sinks <= j < self.bounds[i] else self.exact for j in range(t + 1)]
        return np.stack([kind[:, :, j].numpy() for j, kind in enumerate(kinds)], 2)


def expected(q, k, v, scale):
    out = np.empty(q.shape)
    for i in range(q.shape[2]):
        keys, values = k.seen(i), v.seen(i)
        for head in range(HEADS):
            scores = np.einsum("bd,btd->bt", q[:, head, i].numpy(), keys[:, head // 2]) * scale
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[:, head, i] = np.einsum("bt,btd->bd", weights / weights.sum(1, keepdims=True), values[:, head // 2])
    return torch.from_numpy(out)


def policy(start, tokens, sinks, window, flush):
    return [min(sinks, t + 1) + max(0, t + 1 - sinks - window) // flush * flush for t in range(start, tokens)]


CASES = {
    "everything packed": ((0, 0, 1), (0, 0, 1)),
    "windows": ((0, 5, 1), (0, 9, 1)),
    "sinks": ((3, 0, 1), (3, 0, 1)),
    "kivi": ((0, 0, 8), (0, 8, 1)),
    "sinks, windows and flushes": ((2, 4, 3), (2, 0, 5)),
    "nothing packed": ((0, 99, 1), (0, 99, 1)),
    "only K packed": ((0, 0, 1), (0, 99, 1)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("start", [0, 1, 2, 17])
@pytest.mark.parametrize("form", FORMS)
def test_each_query_sees_its_own_mixture(form, start, name):
    tokens = 30
    k, v = (Side(seed, tokens, start, sides[0], policy(start, tokens, *sides)) for seed, sides in zip((1, 5), CASES[name], strict=True))
    q = draw(0, HEADS, tokens - start)
    got = FORMS[form](q, k.view(), v.view(), start, 0.3)
    assert torch.allclose(got, expected(q, k, v, 0.3), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("sinks", "window", "flush"), [(0, 100, 1), (300, 7, 4), (5, 300, 64)])
def test_blocks_of_queries_agree_with_one_at_a_time(sinks, window, flush):
    """More queries than a block holds, with boundaries, sinks and windows that reach across blocks."""
    tokens = 2 * QUERIES + 50
    k, v = (Side(seed, tokens, 0, sinks, policy(0, tokens, sinks, window, flush)) for seed in (1, 5))
    q = draw(0, HEADS, tokens)
    given = q, k.view(), v.view(), 0, 0.3
    expected = FORMS["reference"](*given)
    for form in FORMS.values():
        assert torch.allclose(form(*given), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_of_the_queries(form, dtype):
    tokens = 12
    k, v = (Side(seed, tokens, 0, 0, policy(0, tokens, 0, 3, 1)) for seed in (1, 5))
    q = draw(0, HEADS, tokens)
    got = FORMS[form](q.to(dtype), k.view(), v.view(), 0, 0.3)
    assert got.dtype == dtype
    assert torch.allclose(got.double(), expected(q, k, v, 0.3), rtol=0, atol=20 * torch.finfo(dtype).eps)
