"""llama.cpp's cache types: blocks of 32 channels of one token with an fp16 scale d (q8_0, q5_0, q4_0, iq4_nl), or with a scale and a
minimum m (q5_1, q4_1).

q8_0: d = max|x| / 127, code = round(x / d), halves away from zero; x ≈ d · code.
q5_0, q4_0: d = x* / −2^(bits − 1) with x* the value of largest magnitude, code = min(2^bits − 1, ⌊x / d + 2^(bits − 1) + ½⌋);
x ≈ d · (code − 2^(bits − 1)).
q5_1, q4_1: d = (max − min) / (2^bits − 1), m = min, code = ⌊(x − m) / d + ½⌋; x ≈ d · code + m.
iq4_nl: code = the nearest of 16 fixed levels (a tie goes up) to x / d, d = x* / −127; then the d that is best for these codes in the
least squares weighted by x² is what is kept: d = Σ x² q x / Σ x² q²; x ≈ d · q. A block below 10⁻¹⁵ is zero.
All codes are taken with the exact d and m; ggml multiplies by 1 / d. In four and five bits channel j of a block shares a byte with j + 16;
the fifth bits are a word of their own.

Source: ggml-quants.c, quantize_row_*_ref (iq4_nl: its impl with ntry = −1, what a KV cache calls). Bit-exact with `gguf.quants`,
but for iq4_nl, which has no encoder there: ggml adds its sums up in float32, here they are float64, so d may differ in its last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tqbench.codecs.blocks.constants import constants
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.core.codec import Codec, Layout, Packed, Part, as_bytes
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

BLOCK = 32
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
WIDTHS = {"symmetric": (4, 5, 8), "affine": (4, 5), "nonlinear": (4,)}
STORED = ("scales", "minima", "high", "codes")  # the order within ggml's block


@dataclass(frozen=True)
class Block(Codec):
    """Codes of `bits` times a scale per 32 channels: symmetric (q8_0, q5_0, q4_0), affine (q5_1, q4_1), nonlinear (iq4_nl)."""

    name: ClassVar[str] = "block"
    source: ClassVar[str] = "ggml-org/llama.cpp ggml/src/ggml-quants.c"

    bits: Literal[4, 5, 8] = 8
    form: Literal["symmetric", "affine", "nonlinear"] = "symmetric"

    def __post_init__(self) -> None:
        if self.bits not in (widths := WIDTHS[self.form]):
            raise ConfigError(f"bits must be {' or '.join(map(str, widths))} for form {self.form!r}, got {self.bits}")

    def check(self, head_dim: int) -> None:
        if head_dim % BLOCK:
            raise Unsupported(f"blocks of {BLOCK} channels do not fit head_dim {head_dim}")

    def layout(self, head_dim: int) -> Layout:
        codes = Part("codes", "int8", (head_dim,)) if self.bits == 8 else Part("codes", "uint8", (head_dim // 2,))
        high = (Part("high", "uint8", (head_dim // 8,)),) if self.bits == 5 else ()
        kept = ("scales", "minima") if self.form == "affine" else ("scales",)
        return Layout(1, (codes, *high, *(Part(name, "float16", (head_dim // BLOCK,), "metadata") for name in kept)))

    def quantize(self, y: Tensor) -> Packed:
        blocks = y.unflatten(-1, (-1, BLOCK))
        if self.form == "affine":
            codes, kept = self._affine(blocks)
        elif self.form == "nonlinear":
            codes, kept = self._nonlinear(blocks)
        else:
            codes, kept = self._symmetric(blocks)
        return self._pack(codes) | {name: value.squeeze(-1).to(torch.float16) for name, value in kept.items()}

    def _symmetric(self, blocks: Tensor) -> tuple[Tensor, Packed]:
        largest = _largest(blocks)
        if self.bits == 8:
            scale = largest.abs() / 127
            scaled = blocks * _inverse(scale)
            up = scaled.frac().abs() >= 0.5  # not floor(|x| + 0.5): in float32 that sum rounds the largest value below a half up
            return (scaled.trunc() + torch.where(up, scaled.sign(), 0.0)).to(torch.int8), {"scales": scale}
        half = 2 ** (self.bits - 1)
        scale = largest / -half
        return self._up(blocks * _inverse(scale) + (half + 0.5)), {"scales": scale}

    def _affine(self, blocks: Tensor) -> tuple[Tensor, Packed]:
        minimum, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        scale = (high - minimum) / (2**self.bits - 1)
        return self._up((blocks - minimum) * _inverse(scale) + 0.5), {"scales": scale, "minima": minimum}

    def _nonlinear(self, blocks: Tensor) -> tuple[Tensor, Packed]:
        levels = constants(NONLINEAR, blocks.dtype, blocks.device)
        largest = _largest(blocks)
        scaled = blocks * _inverse(largest / NONLINEAR[0])
        codes = torch.bucketize(scaled.contiguous(), (levels[1:] + levels[:-1]) / 2, right=True)
        q, x = levels[codes].double(), blocks.double()
        scale = (x**3 * q).sum(-1, keepdim=True) / (x**2 * q**2).sum(-1, keepdim=True)
        zero = largest.abs() < 1e-15
        return torch.where(zero, 0, codes).to(torch.uint8), {"scales": torch.where(zero, 0.0, scale)}

    def _up(self, shifted: Tensor) -> Tensor:
        """⌊x + ½⌋ of what is already shifted by the half."""
        return shifted.trunc().clamp(0, 2**self.bits - 1).to(torch.uint8)

    def _pack(self, codes: Tensor) -> Packed:
        if self.bits == 8:
            return {"codes": codes.flatten(-2)}
        nibbles = codes & 15
        low = (nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4).flatten(-2)
        return {"codes": low, "high": pack(codes.flatten(-2) >> 4, 1)} if self.bits == 5 else {"codes": low}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        values = self._values(packed, dtype) * packed["scales"].to(dtype).unsqueeze(-1)
        return (values + packed["minima"].to(dtype).unsqueeze(-1) if self.form == "affine" else values).flatten(-2)

    def _values(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """What the codes stand for before scale and minimum: [.., blocks, BLOCK]."""
        if self.bits == 8:
            return packed["codes"].unflatten(-1, (-1, BLOCK)).to(dtype)
        pairs = packed["codes"].unflatten(-1, (-1, BLOCK // 2))
        codes = torch.cat([pairs & 15, pairs >> 4], dim=-1)
        if self.form == "nonlinear":
            return constants(NONLINEAR, dtype, codes.device)[codes.long()]
        if self.bits == 5:
            codes = codes | unpack(packed["high"], 1).unflatten(-1, (-1, BLOCK)) << 4
        return codes.to(dtype) - (0 if self.form == "affine" else 2 ** (self.bits - 1))

    def to_blocks(self, packed: Packed) -> Tensor:
        """ggml's blocks: the scale, the minimum, the fifth bits, the codes of its 32 channels."""
        blocks = packed["scales"].shape[-1]
        parts = [as_bytes(packed[name]).unflatten(-1, (blocks, -1)) for name in STORED if name in packed]
        return torch.cat(parts, dim=-1).flatten(-2)

    def from_blocks(self, blocks: Tensor, head_dim: int) -> Packed:
        parts = {part.name: part for part in self.layout(head_dim).parts}
        stored = [parts[name] for name in STORED if name in parts]
        rows = blocks.unflatten(-1, (head_dim // BLOCK, -1)).split([part.nbytes * BLOCK // head_dim for part in stored], dim=-1)
        raw = {part.name: row.flatten(-2).contiguous() for part, row in zip(stored, rows, strict=True)}
        return {name: raw[name].view(getattr(torch, part.dtype)) for name, part in parts.items()}


def _largest(blocks: Tensor) -> Tensor:
    """The value of largest magnitude, with its sign; the first of several."""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
