"""Encode: [batch, kv_heads, tokens, head_dim] into a codec's arrays.  encode(codec, x) -> Packed."""

from __future__ import annotations

from typing import Any

from tqbench.core.codec import Codec, Packed
from tqbench.core.op import Impl, Op


def reference(codec: Codec, x: Any) -> Packed:
    """The codec's own mathematics."""
    return codec.encode(x)


def _load_host() -> Any:
    from tqbench.kernels._host import encode

    return encode


OP = Op("encode", (Impl("reference", lambda: reference), Impl("reference (host)", _load_host, platform="mlx")))
