"""KVTC as OnlyTerp builds it: a PCA for each layer and head, 0 to 16 bits for each component, a range per component and section of tokens.

y = (x − mean) · basis: the principal components of calibration text, found by a full SVD in float64 over the rows of `head_group` heads
together. A budget of int(bits · head_dim) bits per token and head goes to the components so that Σ λ / 4^b is least, b ≤ `max_bits`
(`blocks/allocation.py`). `section` tokens share minimum and step of each component, taken from the data that is packed
(`blocks/sections.py`). Keys are meant as they were before RoPE: `rope: pre`, in calibration and in use.

Codes lie component after component, `section` of them as one stream that ends on a byte. Where this differs from the project: components
are sorted by width, which equal variances may disturb; codes of more than 8 bits are two planes; minimum and step are kept in fp16, rounded
outward, and counted, where the project keeps float32 and counts neither; the levels of one bit are the means of two halves, not the ends of
the range; the bytes are those of the whole budget even if the allocation leaves some of it, so that they are known beforehand. Entropy
coding is a matter of storage, not of the codec.
Source: OnlyTerp/kvtc @ 79d2906, after arXiv 2511.01815, whose own algorithm is another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from tqbench.codecs.blocks import sections
from tqbench.codecs.blocks.allocation import greedy
from tqbench.codecs.blocks.packing import Widths, pack_mixed, unpack_mixed
from tqbench.core.codec import Codec, Layout, Learned, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch

MOST_BITS, MOST_SECTION = 16, 4096


@dataclass(frozen=True)
class KvtcLite(Codec):
    """Codes of principal components with a minimum and a step per component and section."""

    name: ClassVar[str] = "kvtc_lite"
    source: ClassVar[str] = "OnlyTerp/kvtc @ 79d2906; arXiv 2511.01815"

    bits: float = 3.75  # per value on average, without minima and steps
    section: int = 128  # tokens
    head_group: int = 1  # heads that share a PCA; the last group may have fewer
    max_bits: int = MOST_BITS  # of a component

    def __post_init__(self) -> None:
        if not 1 <= self.max_bits <= MOST_BITS:
            raise ConfigError(f"max_bits must be a number from 1 to {MOST_BITS}, got {self.max_bits}")
        if not 0 < self.bits <= self.max_bits:
            raise ConfigError(f"bits must be above 0 and at most max_bits, {self.max_bits}, got {self.bits}")
        if self.section % 8 or not 8 <= self.section <= MOST_SECTION:
            raise ConfigError(f"section must be a multiple of 8 tokens, at most {MOST_SECTION}, got {self.section}")
        if self.head_group < 1:
            raise ConfigError(f"head_group must be a number of heads, 1 or more, got {self.head_group}")

    @property
    def unit(self) -> int:
        return self.section

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=True)

    def check(self, head_dim: int) -> None:
        if not self.budget(head_dim):
            raise Unsupported(f"head_dim {head_dim} at {self.bits} bits per value leaves no whole bit for a vector")

    def budget(self, head_dim: int) -> int:
        """Bits of a token and head."""
        return int(self.bits * head_dim)

    def slots(self, head_dim: int) -> int:
        """Components that may have bits."""
        return min(head_dim, self.budget(head_dim))

    def code_bytes(self, head_dim: int) -> int:
        """Bytes of a section's codes."""
        return self.section * self.budget(head_dim) // 8

    def layout(self, head_dim: int) -> Layout:
        ranges, codes = (self.slots(head_dim),), Part("codes", "uint8", (self.code_bytes(head_dim),))
        return Layout(self.section, (codes, Part("minima", "float16", ranges, "metadata"), Part("steps", "float16", ranges, "metadata")))

    def calibrate(self, x: Tensor) -> Self:
        return replace(self, learned=Learned(self.learn(x)))

    def learn(self, y: Tensor) -> dict[str, Tensor]:
        found = [self._group(heads.flatten(0, 1)) for heads in y[0].to(torch.float64).split(self.head_group)]
        return {name: torch.stack([tables[name] for tables in found]) for name in found[0]}

    def _group(self, rows: Tensor) -> dict[str, Tensor]:
        """The tables of the heads of one PCA, components sorted by width. The triangle of a QR decomposition has the singular values and
        the right singular vectors of all its rows."""
        mean, count = rows.mean(0, keepdim=True), len(rows)
        triangle = torch.linalg.qr(rows - mean, mode="r").R
        _, singular, basis = torch.linalg.svd(triangle, full_matrices=True)
        variances = torch.zeros_like(mean[0])
        variances[: len(singular)] = singular.square() / max(count - 1, 1)
        widths = torch.tensor(greedy(variances.tolist(), self.budget(rows.shape[1]), self.max_bits), device=rows.device)
        order = widths.argsort(descending=True, stable=True)
        return {"mean": mean, "basis": basis.T[:, order], "variances": variances[order], "widths": widths[order].to(torch.uint8)}

    def transform(self, x: Tensor) -> Tensor:
        """Summed in float64, as rotations are, so that no code depends on what else is packed at the time."""
        return ((x.to(torch.float64) - self.table("mean", x)) @ self.table("basis", x)).to(x.dtype)

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:  # noqa: ARG002
        return (y.to(torch.float64) @ self.table("basis", y).mT + self.table("mean", y)).to(y.dtype)

    def quantize(self, y: Tensor) -> Packed:
        heads, head_dim = y.shape[1], y.shape[-1]
        widths = self.widths(heads)
        rows = y.unflatten(2, (y.shape[2] // self.section, self.section)).transpose(-1, -2)[..., : self.active(), :]
        codes, *ranges = sections.quantize(rows, widths)
        minima, steps = (torch.nn.functional.pad(each, (0, self.slots(head_dim) - self.active())) for each in ranges)
        return {"codes": pack_mixed(codes, widths, self.code_bytes(head_dim)), "minima": minima, "steps": steps}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        heads, active = packed["minima"].shape[1], self.active()
        codes = unpack_mixed(packed["codes"], self.widths(heads), self.section)
        rows = sections.dequantize(codes, packed["minima"][..., :active], packed["steps"][..., :active], dtype)
        rest = self.table("basis", rows).shape[-1] - active
        return torch.nn.functional.pad(rows.transpose(-1, -2), (0, rest)).flatten(2, 3)

    def table(self, name: str, like: Tensor) -> Tensor:
        """What was learned, for each head."""
        groups, heads = (self.learned or Learned())[name].to(like.device), like.shape[1]
        if len(groups) != -(-heads // self.head_group):
            raise Unsupported(
                f"codec {self.name!r} has learned from {len(groups)} groups of {self.head_group} heads, and {heads} are given"
            )
        return groups.repeat_interleave(self.head_group, 0)[:heads]

    def widths(self, heads: int) -> Widths:
        """The bits of each component of each head."""
        groups = _widths(self.learned or Learned())
        return tuple(groups[head // self.head_group] for head in range(heads))

    def active(self) -> int:
        """Components that have bits in some head; they come first."""
        return len(_widths(self.learned or Learned())[0])


@lru_cache(maxsize=1024)
def _widths(learned: Learned) -> Widths:
    groups = learned["widths"].tolist()
    active = max(len(group) - group.count(0) for group in groups)
    return tuple(tuple(group[:active]) for group in groups)
