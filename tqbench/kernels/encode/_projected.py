"""The codec's own mathematics with the projection into principal components summed in float32: a matrix product at twice the pace.

Coefficients differ in their last bits, so single codes may fall the other way, as they do in every fast form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tqbench.codecs.blocks.wrap import Bridge
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.core.codec import Codec, Packed


def refuses(codec: Codec) -> str | None:
    """Why this codec has nothing to project here, or None."""
    if not isinstance(codec.plain, KvtcPaper):
        return f"codec {codec.plain.name!r} projects into no principal components"
    inner: Any = codec
    while inner is not codec.plain:
        if isinstance(inner, Bridge):
            return "a control that skips the quantizer projects nothing"
        inner = inner.inner
    return None


def encode(codec: Codec, x: Tensor) -> Packed:
    """Encode in float32."""
    return _summed(codec).encode(x)


def _summed(codec: Any) -> Codec:
    """The same codec, its innermost one summing in float32."""
    found: Codec = replace(codec, projected="float32") if isinstance(codec, KvtcPaper) else replace(codec, inner=_summed(codec.inner))
    return found
