"""What one could run instead of a fused form: attention of one query over keys and values in an uncompressed type, by torch's own means,
and the obvious way to use a packed cache. Each is as short as its users write it; `words` is how results call it.

K and V are [batch, kv_heads, tokens, head_dim], q is [batch, heads, 1, head_dim], all in the baseline's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tqbench.core.errors import Unsupported
from tqbench.kernels.attend import View
from tqbench.kernels.attend.reference import visible


def sdpa_gqa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's attention as models call it."""
    return scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)


def sdpa_by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same by one of torch's kernels, or an error."""
    try:
        with sdpa_kernel(backend):
            return sdpa_gqa(q, k, v, scale)
    except RuntimeError as reason:
        raise Unsupported(str(reason).splitlines()[0]) from None


def sdpa_folded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's attention with the query heads that share a KV head as so many queries of it: each key is read once for all."""
    return scaled_dot_product_attention(_folded(q, k), k, v, scale=scale).reshape(q.shape)


def matmul_folded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The three steps by hand on folded queries; for 16-bit types torch's matrix product is often far better than its attention."""
    weights = torch.softmax((_folded(q, k) @ k.mT).float() * scale, dim=-1)
    return (weights.to(v.dtype) @ v).reshape(q.shape)


def naive(q: Tensor, k: View, v: View, scale: float) -> Tensor:
    """The whole packed cache decoded by the reference for this one query, then torch's attention."""
    return sdpa_gqa(q, _decoded(k), _decoded(v), scale)


def _folded(q: Tensor, k: Tensor) -> Tensor:
    return q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])


def _decoded(side: View) -> Tensor:
    assert side.codec is not None and side.stored is not None  # noqa: S101, PT018 - as every store's view has
    packed, last = side.stored(), side.tail_start + side.tail.shape[2] - 1
    decoded = side.codec.decode(packed, side.tail.shape[3], side.tail.dtype) if packed else side.tail[:, :, :0]
    return visible(side, decoded, 0, last)


@dataclass(frozen=True)
class Baseline:
    """A way to attend over an uncompressed cache. `tolerance` is of its output against float64 on the same keys and values, relative."""

    name: str
    words: str
    dtype: str
    run: Callable[[Tensor, Tensor, Tensor, float], Tensor]

    @property
    def tolerance(self) -> float:
        """By what its type can hold: weights or partial sums are rounded to it once per step."""
        return {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}[self.dtype]


NAIVE = "naive"
NAIVE_WORDS = "the packed cache decoded by the reference for every query, then torch SDPA in float32"
USUAL = "sdpa bf16"
BASELINES = (
    Baseline("sdpa fp32", "torch SDPA (enable_gqa) on a float32 cache", "float32", sdpa_gqa),
    Baseline(USUAL, "torch SDPA (enable_gqa) on a bfloat16 cache: what a model calls", "bfloat16", sdpa_gqa),
    Baseline("sdpa fp16", "torch SDPA (enable_gqa) on a float16 cache", "float16", sdpa_gqa),
    Baseline("folded fp32", "torch SDPA on a float32 cache, query heads of a KV head folded into the query axis", "float32", sdpa_folded),
    Baseline("folded bf16", "torch SDPA on a bfloat16 cache, query heads folded", "bfloat16", sdpa_folded),
    Baseline("folded fp16", "torch SDPA on a float16 cache, query heads folded", "float16", sdpa_folded),
    Baseline("matmul bf16", "bfloat16 matmul, softmax, matmul with query heads folded", "bfloat16", matmul_folded),
)
# On a GPU: whatever torch picks, each of its kernels by name, and the two ways to fold. Those that do not take a shape say so.
ON_GPU = (
    Baseline(USUAL, "torch SDPA (enable_gqa) on a bfloat16 cache: what a model calls", "bfloat16", sdpa_gqa),
    *(
        Baseline(f"{name} bf16", f"torch SDPA (enable_gqa) on a bfloat16 cache, its {name} kernel", "bfloat16", partial(sdpa_by, backend))
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        )
    ),
    Baseline("folded bf16", "torch SDPA on a bfloat16 cache, query heads of a KV head folded into the query axis", "bfloat16", sdpa_folded),
    Baseline("matmul bf16", "bfloat16 matmul, softmax, matmul with query heads folded", "bfloat16", matmul_folded),
)


def on(device: str) -> tuple[Baseline, ...]:
    """What one could run there instead."""
    return BASELINES if device == "cpu" else ON_GPU
