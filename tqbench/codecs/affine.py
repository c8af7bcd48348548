"""Uniform quantization of groups of channels of a token, or of tokens of a channel.

`form: affine`, x ≈ scale · code + minimum: scale = (max − min) / (2^bits − 1), code = round((x − minimum) / scale), clamped.
KIVI keeps scale and minimum in fp16 and takes the codes against what is kept (`encode_with: kept`), halves to even. vLLM takes them against
the exact ones, scale = max(scale, 10⁻⁸), halves up (`encode_with: exact`, `rounding: half_up`), one group per head (`group_size: 0`).
`form: symmetric`, x ≈ scale · code: scale = max|x| / (2^(bits − 1) − 1), at least 10⁻⁶, code = round(x · (1 / scale)), two's complement:
vLLM's int8_per_token_head with `bits: 8, group_size: 0, kept: float32`.
`axis: channel` is KIVI's form for keys: the outliers of K sit in fixed channels, so each channel gets its own range.
Sources: KIVI, arXiv 2402.02750, jy-yuan/KIVI quant/new_pack.py; vllm-project/vllm, turboquant values and triton_reshape_and_cache_flash.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Affine(Codec):
    """Codes of `bits` with a scale, and a minimum unless symmetric, per group."""

    name: ClassVar[str] = "affine"
    source: ClassVar[str] = "arXiv 2402.02750; jy-yuan/KIVI; vllm-project/vllm"

    bits: Literal[1, 2, 3, 4, 5, 6, 7, 8] = 4
    group_size: Literal[0, 16, 32, 64, 128] = 32  # 0: the whole vector of a token and head
    axis: Literal["token", "channel"] = "token"
    form: Literal["affine", "symmetric"] = "affine"
    kept: Literal["float16", "float32"] = "float16"
    encode_with: Literal["kept", "exact"] = "kept"
    rounding: Literal["nearest_even", "half_up"] = "nearest_even"

    def __post_init__(self) -> None:
        if not self.group_size and self.axis == "channel":
            raise ConfigError("group_size 0 is the whole vector of a token; with axis channel it must be a number of tokens")
        if self.form == "symmetric" and self.bits == 1:
            raise ConfigError("bits must be 2 or more for form 'symmetric', got 1")

    @property
    def unit(self) -> int:
        return self.group_size if self.axis == "channel" else 1

    @property
    def _dim(self) -> int:
        """The dimension of a group: [.., units, group, head_dim] for channels, [.., tokens, groups, group] for tokens."""
        return -2 if self.axis == "channel" else -1

    def check(self, head_dim: int) -> None:
        if self.axis == "token" and head_dim % (self.group_size or 8):
            size = self.group_size or 8  # a whole vector is packed eight codes at a time
            raise Unsupported(f"groups of {size} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        if self.axis == "channel":
            codes: tuple[int, ...] = (self.bits * self.group_size // 8, head_dim)
            ranges = head_dim
        else:
            codes = (self.bits * head_dim // 8,)
            ranges = head_dim // (self.group_size or head_dim)
        names = ("scales", "minima") if self.form == "affine" else ("scales",)
        return Layout(self.unit, (Part("codes", "uint8", codes), *(Part(name, self.kept, (ranges,), "metadata") for name in names)))

    def quantize(self, y: Tensor) -> Packed:
        groups = y.unflatten(self._dim, (-1, self.group_size or y.shape[-1]))
        codes, kept = (self._affine if self.form == "affine" else self._symmetric)(groups)
        packed = pack(codes.to(torch.uint8), self.bits, self._dim)
        return {
            "codes": packed if self.axis == "channel" else packed.flatten(-2),
            **{name: value.squeeze(self._dim) for name, value in kept.items()},
        }

    def _affine(self, groups: Tensor) -> tuple[Tensor, Packed]:
        low, high = groups.amin(self._dim, keepdim=True), groups.amax(self._dim, keepdim=True)
        scale = (high - low) / (2**self.bits - 1)
        if self.encode_with == "exact":
            scale = scale.clamp_min(1e-8)
        kept = {"scales": scale.to(self._kept), "minima": low.to(self._kept)}
        if self.encode_with == "kept":
            scale, low = (value.to(groups.dtype) for value in kept.values())
        return self._round((groups - low) / torch.where(scale == 0, 1.0, scale)).clamp(0, 2**self.bits - 1), kept

    def _symmetric(self, groups: Tensor) -> tuple[Tensor, Packed]:
        half = 2 ** (self.bits - 1)
        scale = (groups.abs().amax(self._dim, keepdim=True) / (half - 1)).clamp_min(1e-6)
        kept = {"scales": scale.to(self._kept)}
        if self.encode_with == "kept":
            scale = kept["scales"].to(groups.dtype)
        codes = self._round(groups * (1 / torch.where(scale == 0, 1.0, scale))).clamp(-half, half - 1)
        return codes.to(torch.int16) & 2**self.bits - 1, kept

    def _round(self, scaled: Tensor) -> Tensor:
        return (scaled + 0.5).floor() if self.rounding == "half_up" else scaled.round()

    @property
    def _kept(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.kept)
        return dtype

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        scales = packed["scales"].to(dtype).unsqueeze(self._dim)
        rows = packed["codes"] if self.axis == "channel" else packed["codes"].unflatten(-1, (scales.shape[-2], -1))
        codes = unpack(rows, self.bits, self._dim).to(dtype)
        if self.form == "symmetric":
            values = (codes - (codes >= 2 ** (self.bits - 1)) * 2**self.bits) * scales
        else:
            values = codes * scales + packed["minima"].to(dtype).unsqueeze(self._dim)
        return values.flatten(-3, -2) if self.axis == "channel" else values.flatten(-2)
