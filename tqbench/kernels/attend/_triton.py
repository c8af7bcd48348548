"""Attention on packed keys and values in Triton: codes become levels in registers, and no decoded vector is ever written.

The context falls into regions by what the two sides are there, packed or exact (`_regions`). Of each region programs take splits, and leave
a partial softmax: its peak, its mass, its weighted sum. `merge` joins them, what is packed in the basis of the codec. Query heads that
share a KV head are rows of the same matrix product, and so are up to `Config.rows` queries: one kernel is decoding and prefill.

Nothing here waits for the device; `Ready` is the work laid out, which may be captured in a graph and replayed as it is; a step that appends
tokens needs it anew, because buffers, their strides and the set of regions are then others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.kernels import packed
from tqbench.kernels.attend import View
from tqbench.kernels.attend._triton_ends import STEP, merge, turn
from tqbench.kernels.attend._triton_kernels import How, partial
from tqbench.kernels.packed import _triton as tiles
from tqbench.kernels.packed._triton import Arrays, Form
from tqbench.kernels.triton import Config, Work, capability, configuration, multiprocessors, operand

MANY = 16  # rows that one program turns or joins, where there are so many that every multiprocessor has work
SPLITS = 64  # that `merge` is compiled for at least, so that it is compiled once while a context grows
OPERAND = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class Switches:
    """What the kernel can do otherwise; a store uses it as it is."""

    config: Config | None = None  # None: from the table
    splits: int = 0  # of each region; 0: as many as fill the device
    folded: bool = True  # lengths are multiplied after the sums; else levels are, one by one
    integer: bool = False  # keys' levels and queries of 8 bits
    narrow: bool = False  # scores are summed in half precision
    in_registers: bool = True  # codes become levels there; else each level is read from memory
    looked_up: bool = False  # scores from a table of each query's products with all levels
    sparse: float = 0.0  # tiles of values whose weights are all less than this, relative to the largest so far, are left out
    dropped: Tensor | None = None  # float32 [batch, heads, queries]: gets the share of each query's weight that was left out


@dataclass(frozen=True)
class Region:
    """Positions that are alike: for each query [low, high)."""

    k_packed: bool
    v_packed: bool
    sinks: bool  # all exact, and older than what is packed
    spans: Any  # int32 [queries, 2]

    @functools.cached_property
    def whole(self) -> tuple[int, int]:
        """From the first position that any query sees to the last."""
        low, high = self.spans[self.spans[:, 0] < self.spans[:, 1]].T
        return (int(low.min()), int(high.max())) if len(low) else (0, 0)

    @property
    def length(self) -> int:
        """How many positions that is."""
        return self.whole[1] - self.whole[0]


def attend(q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """Attention of each query over its own mixture of packed and exact positions."""
    return switched(Switches(), q, k, v, start, scale, softcap)


def switched(switches: Switches, q: Tensor, k: View, v: View, start: int, scale: float, softcap: float | None = None) -> Tensor:
    """The same with switches."""
    if not q.numel():
        return torch.empty_like(q)
    ready = prepare(switches, q, k, v, start)
    return ready.run(q, scale, softcap)


@dataclass(frozen=True)
class Side:
    """One side as kernels take it: what is packed, what is exact, and the basis between them."""

    inside: tuple[Form, Arrays]
    tail: tuple[Form, Arrays]
    sinks: tuple[Form, Arrays] | None
    first: tuple[int, int]  # position of the first packed token, and of the first in the tail
    basis: packed.Basis

    def pick(self, region: Region, *, within: bool) -> tuple[Form, Arrays, int]:
        """Form, arrays and first position of a region."""
        if region.sinks and self.sinks is not None:
            return (*self.sinks, 0)
        return (*self.inside, self.first[0]) if within else (*self.tail, self.first[1])


@dataclass(frozen=True)
class Ready:
    """Everything about a call but the queries themselves. It can be run again, and in a captured graph."""

    switches: Switches
    k: Side
    v: Side
    regions: list[tuple[Region, Tensor | None, int]]  # with its spans on the device, None for a single query, and its splits
    work: Work
    config: Config
    kv_heads: int
    integers: tuple[Tensor | None, float] = (None, 1.0)  # levels of keys in 8 bits, and what one step is worth

    def run(self, q: Tensor, scale: float, softcap: float | None = None) -> Tensor:
        """Launch the kernels."""
        batch, heads, queries, dim = q.shape
        rows, stored = batch * heads * queries, self.v.inside[0].dim
        inside = sum(splits for region, _, splits in self.regions if region.v_packed)
        beside = sum(splits for region, _, splits in self.regions) - inside
        new = functools.partial(torch.empty, dtype=torch.float32, device=q.device)
        accs = new(inside, rows, stored), new(beside, rows, dim)
        peak, mass = new(2, inside + beside, rows)
        lost = torch.empty_like(mass) if self.switches.sparse else None
        q = q if q.stride(3) == 1 else q.contiguous()
        turned, shift = self._turned(q)
        plain = q if all(region.k_packed for region, *_ in self.regions) else q.contiguous()
        done = 0
        for region, spans, splits in self.regions:
            acc = accs[0][done:] if region.v_packed else accs[1][done - inside :]
            given = (turned if region.k_packed else plain, shift if region.k_packed else None)
            parts = acc, peak[done:], mass[done:], None if lost is None else lost[done:]
            self._launch(region, spans, splits, given, parts, (scale, softcap), q)
            done += splits
        return self._join(q, accs, (peak, mass, lost), (inside, beside))

    def _turned(self, q: Tensor) -> tuple[Tensor, Tensor | None]:
        """The queries in the basis of the keys, and their products with what is added to every key."""
        around, (batch, heads, queries, dim) = self.k.basis, q.shape
        if (around.columns is None and around.offset is None) or not any(region.k_packed for region, *_ in self.regions):
            return q.contiguous(), None
        rows, stored = batch * heads * queries, self.k.inside[0].dim
        turned = torch.empty(batch, heads, queries, stored, dtype=torch.float32, device=q.device)
        shift = None if around.offset is None else torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
        block = _together(rows, q.device)
        turn[(triton.cdiv(rows, block), triton.cdiv(stored, int(STEP)))](
            q, *q.stride()[:3], around.columns, around.offset, turned, shift, rows, heads, queries, heads // self.kv_heads, dim, stored,
            triton.next_power_of_2(dim), block,
        )  # fmt: skip
        return turned, shift

    def _launch(self, region: Region, spans: Tensor | None, splits: int, given: Any, parts: Any, scores: Any, q: Tensor) -> None:
        (k_form, k, k_first), (v_form, v, v_first) = (
            side.pick(region, within=within) for side, within in ((self.k, region.k_packed), (self.v, region.v_packed))
        )
        how, (turned, shift), lut = self._how(region, q), given, None
        if how.looked_up:
            assert k.table is not None  # noqa: S101 - only of formats that have one
            lut = turned[..., None] * k.table[: 2**k_form.bits]
        if how.k_operand == tl.int8:  # levels as whole numbers, and what one of them is worth
            k, k_form, scores = k._replace(table=self.integers[0]), k_form._replace(text=""), (scores[0] * self.integers[1], scores[1])
        grid = (triton.cdiv(q.shape[2], how.rows // how.share), q.shape[0] * self.kv_heads, splits)
        partial[grid](
            turned, shift, lut, k, v, spans, *region.whole, *parts, k_first, v_first, q.shape[2], self.kv_heads, *scores, splits,
            k_form, v_form, how, num_warps=self.config.warps,
            num_stages=self.config.stages if region.k_packed and region.v_packed else 1,  # what is exact is few tokens, and large
        )  # fmt: skip

    def _how(self, region: Region, q: Tensor) -> How:
        share, s = q.shape[1] // self.kv_heads, self.switches
        (k_form, k, _), (v_form, v, _) = (
            side.pick(region, within=within) for side, within in ((self.k, region.k_packed), (self.v, region.v_packed))
        )
        k_operand, v_operand = (OPERAND[_operand(q, given.codes.data)] for given in (k, v))
        k_folded, v_folded = k_form.folded and s.folded, v_form.folded and s.folded
        tabled = k_folded and k_form.table
        return How(
            _rows(q, share, self.config),
            self.config.tokens,
            share,
            tl.int8 if s.integer and tabled and not k_form.normalized else k_operand,
            v_operand,
            k_folded,
            v_folded,
            s.narrow and k_operand == tl.float16,
            s.looked_up and tabled,
            s.sparse,
        )

    def _join(self, q: Tensor, accs: tuple[Tensor, Tensor], partial: Any, splits: tuple[int, int]) -> Tensor:
        (rows, stored, dim), around = (accs[0].shape[1], accs[0].shape[2], q.shape[3]), self.v.basis
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        block = _together(rows, q.device)
        given = (acc if count else None for acc, count in zip(accs, splits, strict=True))
        merge[(triton.cdiv(rows, block), triton.cdiv(dim, int(STEP)))](
            *given, *partial, around.rows, around.offset, out, self.switches.dropped, rows, q.shape[1], q.shape[2],
            q.shape[1] // self.kv_heads, *splits, stored, dim, triton.next_power_of_2(stored),
            max(SPLITS, triton.next_power_of_2(sum(splits))), block,
        )  # fmt: skip
        return out


def _together(rows: int, device: torch.device) -> int:
    return 1 if rows <= MANY * multiprocessors(device) else MANY


def prepare(switches: Switches, q: Tensor, k: View, v: View, start: int) -> Ready:
    """Look at both sides, and lay out the work."""
    kv_heads = k.tail.shape[1]
    sides = _side(k, q, keys=True), _side(v, q, keys=False)
    if reason := _idle(switches, q, *(side.inside[0] for side in sides)):
        raise Unsupported(f"attend/triton: {reason}")
    if not switches.in_registers:
        sides = tuple(replace(side, inside=(side.inside[0]._replace(text=""), side.inside[1])) for side in sides)
    regions = sorted(_regions(k, v, start, q.shape[2]), key=lambda region: not region.v_packed)
    spans = [None if q.shape[2] == 1 else _sent(region.spans, q.device) for region in regions]
    work = _work(q, *(side.inside[0] for side in sides))
    config = switches.config or configuration(work)
    rows = _rows(q, q.shape[1] // kv_heads, config) // (q.shape[1] // kv_heads)
    programs = q.shape[0] * kv_heads * triton.cdiv(q.shape[2], rows)
    most = max(1, config.programs * multiprocessors(q.device) // programs)
    laid = [(region, spans[i], switches.splits or _splits(region, config, most)) for i, region in enumerate(regions)]
    return Ready(switches, *sides, laid, work, config, kv_heads, _integers(k, q) if switches.integer else (None, 1.0))


def _splits(region: Region, config: Config, most: int) -> int:
    """As many as there is room for, and none that would get no tile."""
    tiles_ = triton.cdiv(region.length, config.tokens)
    return int(triton.cdiv(tiles_, triton.cdiv(tiles_, most)))


def _idle(switches: Switches, q: Tensor, k: Form, v: Form) -> str | None:
    """Why a switch would change nothing here, or None: what ran without it must not be shown as what ran with it."""
    if not switches.in_registers and not (k.text or v.text):
        return "levels are read from memory anyway"
    if not switches.folded and not k.folded and not v.folded:
        return "levels are multiplied with their scales anyway"
    if (switches.integer or switches.looked_up) and not (k.folded and k.table):
        return "keys have no codebook with one length for each token"
    if switches.integer and k.normalized:
        return "lengths of keys are taken from their levels, which whole numbers would change"
    if switches.narrow and _operand(q, None) != torch.float16:
        return "a model in float32 has no sums in half precision"
    return None


def _integers(k: View, q: Tensor) -> tuple[Tensor | None, float]:
    """The levels of a codebook, rounded to 8 bits."""
    values = packed.spell(k.codec, q.shape[3]).get("values") if k.codec is not None else None
    if values is None:
        return None, 1.0
    levels = torch.as_tensor(values, dtype=torch.float32)
    step = float(levels.abs().max()) / 127
    return torch.round(levels / step).to(q.device), step


def _work(q: Tensor, k: Form, v: Form) -> Work:
    k_bits, v_bits = (32 if form.floats else form.bits for form in (k, v))
    folded, wide = k.folded and v.folded, q.dtype == torch.float32
    return Work(capability(q.device), max(k.width, v.width), k_bits, v_bits, q.shape[2] == 1, folded, wide, bool(k.text and v.text))


def _rows(q: Tensor, share: int, config: Config) -> int:
    """Rows of a block: a power of two of at least 8, as matrix products take them."""
    wanted = triton.next_power_of_2(share * q.shape[2])
    return max(8, triton.next_power_of_2(share), min(config.rows, wanted))


def _operand(q: Tensor, stored: Tensor | None) -> torch.dtype:
    """What is multiplied: single precision where the model is, else halves; vectors that are stored in 16 bits as they are."""
    if q.dtype == torch.float32:
        return torch.float32
    return operand(stored.dtype) if stored is not None and stored.dtype in (torch.float16, torch.bfloat16) else torch.float16


def _side(view: View, q: Tensor, *, keys: bool) -> Side:
    codec, stored = view.codec, view.stored
    if codec is None or stored is None:
        raise EvidenceError("attend/triton reads codes, and this view has none")
    head_dim, held = q.shape[3], stored()
    kv_heads, sinks = view.tail.shape[1], 0 if view.sinks is None else view.sinks.shape[2]
    fits = not held or packed.describe(codec, head_dim, keys=keys).takes(held, q.shape[0], kv_heads)
    if not fits or len(view.bounds) != q.shape[2]:
        raise EvidenceError(f"attend/triton refused its arguments: q {list(q.shape)} with {len(view.bounds)} bounds, {packed.words(held)}")
    inside = tiles.arrays(codec, head_dim, held, _operand(q, None)) if held else tiles.exact(view.tail)
    return Side(
        inside,
        tiles.exact(view.tail),
        tiles.exact(view.sinks) if view.sinks is not None else None,
        (sinks, view.tail_start),
        _basis(codec, head_dim, kv_heads, str(q.device)),
    )


@functools.lru_cache(maxsize=512)
def _basis(codec: Any, head_dim: int, kv_heads: int, device: str) -> packed.Basis:
    around = packed.basis(codec, head_dim, kv_heads)
    return packed.Basis(*(None if x is None else x.to(device) for x in (around.rows, around.columns, around.offset)))


def _regions(k: View, v: View, start: int, queries: int) -> Iterator[Region]:
    """The context by what its two sides are; regions that no query sees are left out."""
    sinks = max(0 if side.sinks is None else side.sinks.shape[2] for side in (k, v))
    ends = np.arange(start + 1, start + queries + 1)
    lows = np.zeros_like(ends) if k.reach is None else np.maximum(0, ends - k.reach)
    a, b = (np.minimum(side.bounds, ends) for side in (k, v))
    low = np.maximum(lows, sinks)
    found = {
        (False, False, True): (lows, np.minimum(sinks, ends)),
        (True, True, False): (low, np.minimum(a, b)),
        (True, False, False): (np.maximum(low, b), a),
        (False, True, False): (np.maximum(low, a), b),
        (False, False, False): (np.maximum(low, np.maximum(a, b)), ends),
    }
    regions = [Region(*kind, np.stack(spans, 1).astype(np.int32)) for kind, spans in found.items()]
    yield from (region for region in regions if region.length)


def _sent(spans: Any, device: torch.device) -> Tensor:
    """To the device; to CUDA in a way that the host does not wait for."""
    given = torch.from_numpy(spans)
    return given.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else given.to(device)
