"""KVTC as the paper has it: principal components over all heads and layers, runs of them at 0, 2, 4 or 8 bits.

A token's vector holds all KV heads of a layer (`across: layer`), or of all layers that hold K and V (`across: model`), one after another:
p features. c = Vᵀ(x − mean) are its coefficients in the principal components of calibration text; runs of 1, 16, 64, 256 or 1024
consecutive ones share an fp16 scale, an fp16 shift and a type, none, int2, int4 or fp8 e4m3 (`blocks/runs.py`). Which runs there are, and
of what type, is decided once per model, side and `ratio` by a dynamic program over the squared errors measured on calibration vectors: they
take at most 16 p / ratio bits per token, scales and shifts included. Components that no run covers are dropped from V.

Keys are meant to be taken before RoPE (`rope: pre`). Sinks are not learned from. V is kept in 16 bits, as in the paper.

The paper leaves open how an eight-bit float uses the shift (here: the mean of the run, the scale being the largest distance from it) and
whether parameters are per token (here they are, as its cost of 32 bits per group implies). Its code is not public.
Source: arXiv 2511.01815.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tqbench.codecs.blocks import runs
from tqbench.codecs.blocks.packing import pack, unpack
from tqbench.codecs.blocks.principal import components
from tqbench.codecs.blocks.runs import Kind
from tqbench.core.codec import Codec, Layout, Packed, Part, Tags
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.lazy import Tensor, torch
from tqbench.measure.stages import stage

STREAMS = {2: "int2", 4: "int4", 8: "fp8"}  # the array that holds the codes of so many bits
MOST_RATIO = 1024
SIMULATED = 1024  # vectors, spread over all calibration tokens, on which errors are measured


@dataclass(frozen=True)
class KvtcPaper(Codec):
    """Principal components in runs of one type each."""

    name: ClassVar[str] = "kvtc_paper"
    source: ClassVar[str] = "arXiv 2511.01815"

    ratio: float = 8.0  # 16 bits per value over the most that is stored
    rank: int = 0  # the most components that are found; 0 is all
    across: Literal["layer", "model"] = "model"
    group_size: Literal[0, 16, 64, 256, 1024] = 0  # 0: the dynamic program chooses among 1, 16, 64, 256 and 1024
    seed: int = 0  # of the search for components
    span: int = 1  # KV heads that are one vector: known once the model is
    projected: Literal["float64", "float32"] = "float64"  # what projections are summed in; set by kernels

    def __post_init__(self) -> None:
        if not 1 <= self.ratio <= MOST_RATIO:
            raise ConfigError(f"ratio must be a number from 1 to {MOST_RATIO}, got {self.ratio}")
        if not 0 <= self.rank <= 1 << 16:
            raise ConfigError(f"rank must be a number of components, or 0 for all, got {self.rank}")
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed must be a whole number from 0 to 2^32 − 1, got {self.seed}")

    @classmethod
    def parameters(cls) -> list[Field[Any]]:
        return [f for f in super().parameters() if f.name not in ("span", "projected")]

    @property
    def heads(self) -> int:
        return self.span

    @property
    def tags(self) -> Tags:
        return Tags(calibrated=True, learned_layout=True, learns_packed=True, across_layers=self.across == "model")

    def spanning(self, kv_heads: int) -> Self:
        return replace(self, span=kv_heads)

    @property
    def kinds(self) -> list[Kind]:
        """What runs may be."""
        return runs.kinds([self.group_size] if self.group_size else runs.SIZES)

    def budget(self, head_dim: int) -> int:
        """The most bytes for one token."""
        return int(2 * self.span * head_dim / self.ratio)

    def check(self, head_dim: int) -> None:
        least = min(kind.nbytes for kind in self.kinds)
        if self.budget(head_dim) < least and not (self.across == "model" and self.span == 1):  # 1: not known yet
            spread = f"head_dim {head_dim} at ratio {self.ratio:g}: {self.budget(head_dim)} bytes for {self.span} KV heads"
            raise Unsupported(f"{spread} are less than the {least} of one run")

    def layout(self, head_dim: int) -> Layout:
        if self.learned is None:
            return Layout(1, (Part("codes", "uint8", (self.budget(head_dim),)),), self.span)
        count = sum(count for _, count in self.plan)
        streams = [(STREAMS[bits], sum(kind.code_bytes * count for kind, count in some)) for bits, some in self._by_bits()]
        kept = [Part(name, "float16", (count,), "metadata") for name in ("scales", "shifts")]
        return Layout(1, (*(Part(name, "uint8", (size,)) for name, size in streams), *kept), self.span)

    def listed_bits(self, head_dim: int) -> float:
        return 16 / self.ratio if self.learned is None else super().listed_bits(head_dim)

    @property
    def plan(self) -> list[tuple[Kind, int]]:
        """The kinds of runs in the order in which they are stored, and how many there are of each."""
        return [(Kind(size, bits), count) for size, bits, count in self._kept("plan").tolist()]

    def _by_bits(self) -> list[tuple[int, list[tuple[Kind, int]]]]:
        return [(bits, list(some)) for bits, some in groupby(self.plan, lambda entry: entry[0].bits)]

    def stored_dim(self, head_dim: int) -> int:
        return self.span * head_dim

    def transform(self, x: Tensor) -> Tensor:
        with stage("center"):
            y = x.unflatten(1, (-1, self.span)).transpose(2, 3).flatten(-2)
            return y if self.learned is None else y - self._kept("mean", y)

    def inverse(self, y: Tensor, head_dim: int) -> Tensor:
        with stage("uncenter"):
            return self._heads(y + self._kept("mean", y), head_dim)

    @staticmethod
    def _heads(y: Tensor, head_dim: int) -> Tensor:
        """Vectors of several heads taken apart: [batch, kv_heads, tokens, head_dim]."""
        return y.unflatten(-1, (-1, head_dim)).transpose(2, 3).flatten(1, 2)

    def learn(self, y: Tensor) -> Mapping[str, Tensor]:
        return self.arrange(_seen(y[0], self.rank or y.shape[-1], self.seed))

    def arrange(self, seen: Seen) -> Mapping[str, Tensor]:
        """What is kept of components whose errors are known: the runs that the budget allows, stored by type and size."""
        budget = self.budget(seen.mean.shape[-1] // self.span)
        chosen = runs.allocate(seen.energy, {kind: seen.errors[kind] for kind in self.kinds}, budget)
        if not chosen:
            raise Unsupported(f"ratio {self.ratio:g} leaves {budget} bytes for a token, and no run of components is worth any of them")
        chosen.sort(key=lambda run: (run.kind.bits, run.kind.size, run.start))
        columns = [column for start, kind in chosen for column in range(start, start + kind.size)]
        counts = [(*kind, len(list(some))) for kind, some in groupby(chosen, lambda run: run.kind)]
        return {
            "mean": seen.mean,
            "basis": seen.basis[..., columns],
            "plan": torch.tensor(counts, dtype=torch.int32).reshape(-1, 3),
        }

    def quantize(self, y: Tensor) -> Packed:
        with stage("project"):
            wide = y.to(getattr(torch, self.projected)) if y.dtype == torch.float32 else y
            c = (wide @ self._kept("basis", wide)).to(y.dtype)
        streams, scales, shifts = dict[str, list[Tensor]](), [], []
        for kind, some in self._split(c):
            with stage("quantize"):
                codes, scale, shift = runs.quantize(some.unflatten(-1, (-1, kind.size)), kind.bits)
            with stage("pack"):
                padded = torch.nn.functional.pad(codes, (0, kind.code_bytes * 8 // kind.bits - kind.size))
                streams.setdefault(STREAMS[kind.bits], []).append(pack(padded.flatten(-2), kind.bits))
            scales.append(scale.flatten(-2))
            shifts.append(shift.flatten(-2))
        with stage("pack"):
            packed = {name: torch.cat(parts, -1) for name, parts in streams.items()}
            return packed | {"scales": torch.cat(scales, -1), "shifts": torch.cat(shifts, -1)}

    def dequantize(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        c = self.coefficients(packed, dtype)
        with stage("unproject"):
            return c @ self._kept("basis", c).mT

    def decode_heads(self, packed: Packed, head_dim: int, dtype: torch.dtype, heads: slice) -> Tensor:
        c = self.coefficients(packed, dtype)
        some = slice(heads.start * head_dim, heads.stop * head_dim)
        basis, mean = self._kept("basis")[..., some, :], self._kept("mean")[..., some]
        return self._heads(c @ basis.to(c.device, c.dtype).mT + mean.to(c.device, c.dtype), head_dim)

    def coefficients(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        """The coefficients that were kept, in the order of V's columns."""
        found, run, at = [], 0, dict.fromkeys(STREAMS.values(), 0)
        for kind, count in self.plan:
            name, size = STREAMS[kind.bits], kind.code_bytes * count
            raw = packed[name][..., at[name] : at[name] + size]
            with stage("unpack"):
                codes = unpack(raw, kind.bits).unflatten(-1, (count, -1))[..., : kind.size]
            scale, shift = (packed[part][..., run : run + count, None] for part in ("scales", "shifts"))
            with stage("dequantize"):
                found.append(runs.dequantize(codes, scale, shift, kind.bits, dtype).flatten(-2))
            run, at[name] = run + count, at[name] + size
        return torch.cat(found, -1)

    def _split(self, c: Tensor) -> list[tuple[Kind, Tensor]]:
        """The coefficients of all runs of a kind."""
        parts = c.split([kind.size * count for kind, count in self.plan], -1)
        return [(kind, part) for (kind, _), part in zip(self.plan, parts, strict=True)]

    def _kept(self, name: str, like: Tensor | None = None) -> Tensor:
        """What was learned; as a factor of `like`, in its dtype."""
        if self.learned is None:
            raise Unsupported("codec 'kvtc_paper' must be calibrated first")
        kept: Tensor = self.learned[name]
        return kept if like is None else kept.to(like.device, like.dtype)


@dataclass(frozen=True)
class Seen:
    """What is the same for every ratio: mean [rows, 1, p], V [rows, p, rank], and the squared errors of runs, summed over rows."""

    mean: Tensor
    basis: Tensor
    energy: NDArray[np.float64]
    errors: Mapping[Kind, NDArray[np.float64]]

    @staticmethod
    def of(y: Tensor, mean: Tensor, basis: Tensor) -> Seen:
        """Measured on vectors [rows, n, p], at most `SIMULATED` of them."""
        basis = basis.to(torch.float16)
        some = (y - mean)[:, torch.linspace(0, y.shape[1] - 1, min(SIMULATED // len(y), y.shape[1]), device=y.device).round().long()]
        c = some @ basis.to(some.dtype)
        energy = c.square().sum((0, 1), dtype=torch.float64).cpu().numpy()
        return Seen(mean, basis, energy, runs.errors(c, runs.kinds()))


_LAST: dict[str, Seen] = {}  # suites go through ratios
_ROOM = 1 << 28  # bytes of components that are remembered


def _seen(y: Tensor, rank: int, seed: int) -> Seen:
    """Components and errors of vectors [rows, n, p], found once for all ratios."""
    key = hashlib.sha256(y.cpu().contiguous().numpy().tobytes()).hexdigest() + f" {tuple(y.shape)} {y.dtype} {rank} {seed}"
    if key not in _LAST:
        mean = y.mean(1, keepdim=True).to(torch.float32)
        basis = torch.stack([components(row, rank, seed) for row in y - mean])
        while sum(seen.basis.nbytes for seen in _LAST.values()) > _ROOM:
            del _LAST[next(iter(_LAST))]
        _LAST[key] = Seen.of(y, mean, basis)
    return _LAST[key]
