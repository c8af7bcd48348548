"""Eight-bit floating point, one byte per value: e4m3 (largest 448) and e5m2 (largest 57344), round to nearest even, saturating.

`scale: none` is the plain cast, code = fp8(x): what is beyond the largest value becomes it, as in every engine's cache.
`token_head` is vLLM's dynamic form: s = max(max|x| / largest, 10⁻⁶) per token and head in a slot of four bytes, code = fp8(x · (1 / s)).
`head` is the calibrated form: s from the largest |x| of each KV head in the calibration text, code = fp8(x / s), larger values saturate.
Source: OCP 8-bit floating point specification; vllm-project/vllm, kv_cache_dtype fp8 and fp8_per_token_head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.minifloat import LARGEST, decode, encode
from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.errors import Unsupported
from tqbench.core.lazy import Tensor, torch

SMALLEST = 1e-6  # scale of a vector of zeros


@dataclass(frozen=True)
class Fp8(Codec):
    """x as an eight-bit float, with no scale, one per token and head, or one per head."""

    name: ClassVar[str] = "fp8"
    source: ClassVar[str] = "OCP OFP8; vllm-project/vllm vllm/v1/attention/ops/triton_reshape_and_cache_flash.py"

    format: Literal["e4m3", "e5m2"] = "e4m3"
    scale: Literal["none", "token_head", "head"] = "none"

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=self.scale == "head")

    def layout(self, head_dim: int) -> Layout:
        codes, scales = Part("codes", "uint8", (head_dim,)), Part("scales", "float32", (1,), "metadata")
        return Layout(1, (codes, scales) if self.scale == "token_head" else (codes,))

    def learn(self, y: Tensor) -> Mapping[str, Tensor]:
        return {"scale": self._scale(y.abs().amax((0, 2, 3)))}  # [kv_heads]

    def quantize(self, y: Tensor) -> Packed:
        if self.scale == "none":
            return {"codes": encode(y, self.format)}
        if self.scale == "head":
            return {"codes": encode(y / self._learned(y), self.format)}
        scale = self._scale(y.abs().amax(-1, keepdim=True))
        return {"codes": encode(y * (1 / scale.to(y.dtype)), self.format), "scales": scale}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        values = decode(packed["codes"], self.format, dtype)
        if self.scale == "none":
            return values
        return values * (packed["scales"].to(dtype) if self.scale == "token_head" else self._learned(values))

    def _scale(self, amax: Tensor) -> Tensor:
        return (amax / LARGEST[self.format]).clamp_min(SMALLEST).to(torch.float32)

    def _learned(self, like: Tensor) -> Tensor:
        if self.learned is None:
            raise Unsupported("codec 'fp8' with scale: head must be calibrated first")
        scale: Tensor = self.learned["scale"]
        return scale.to(like.device, like.dtype)[:, None, None]  # [kv_heads, 1, 1]
