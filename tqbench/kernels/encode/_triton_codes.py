"""The six arithmetics that make codes of groups of values, as kernels call them; a recipe says which."""

from __future__ import annotations

import triton
import triton.language as tl

from tqbench.kernels.packed import _triton as tiles
from tqbench.kernels.packed._triton_rounding import divided, inverse, minifloat, nearest_even, not_finite, over, round_even


@triton.jit
def codes_of(g, i, inside, t, head, r: tl.constexpr):
    """Codes of groups, their scales, and their minima or once more their scales."""
    if r.kind == "affine":
        code, scale, minimum = _affine(g, inside, r)
    elif r.kind == "signed_affine":
        code, scale, minimum = _signed_affine(g, r)
    else:
        if r.kind == "codebook":
            code, scale = _nearest(g, inside, t, r)
        elif r.kind == "symmetric":
            code, scale = _symmetric(g, i, r)
        elif r.kind == "nonlinear":
            code, scale = _nonlinear(g, i, t, r)
        else:
            code, scale = _minifloat(g, t, head, r)
        minimum = scale
    return code, scale, minimum


@triton.jit
def _nearest(g, inside, t, r: tl.constexpr):
    """The nearest level of each coordinate, and the length that is kept for each group."""
    if r.rule == "max_abs":
        n = tl.max(tl.abs(g), 2) * r.root / r.largest + not_finite(g, 2)
    else:
        n = tl.sqrt(tl.sum(g * g, 2))
    n = tl.where(n <= 1e-10, 0.0, n)
    u = g * (tl.where(n > 0, r.root / tl.where(n > 0, n, 1.0), 0.0))[:, :, None]
    code = tl.full(g.shape, 0, tl.int32)
    for k in tl.static_range(2**r.bits - 1):
        edge = tl.load(t.edges + k)
        code += (u >= edge).to(tl.int32) if r.up else (u > edge).to(tl.int32)
    c = tl.where(inside, tl.load(t.levels + code), 0.0)
    if r.rule == "norm_corrected":
        n = n * r.root / tl.sqrt(tl.sum(c * c, 2))
    if r.rule == "least_squares":
        n = n * tl.sum(u * c, 2) / tl.sum(c * c, 2)
    if r.rule == "unbiased":
        inner = tl.sum(u * c, 2)
        n = tl.where(n == 0, 0.0, n * r.group / tl.where(n > 0, inner, 1.0))
    return code, n


@triton.jit
def _symmetric(g, i, r: tl.constexpr):
    """Whole multiples of a scale, around zero: codes of eight bits are signed, shorter ones count from below."""
    half: tl.constexpr = 1 << (r.bits - 1)
    magnitude = tl.abs(g)
    most = tl.max(magnitude, 2) + not_finite(g, 2)
    if r.rule != "ggml":
        scale = tl.maximum(over(most, half - 1.0), r.smallest) + not_finite(g, 2)
        s = g * inverse(_kept(scale, r))[:, :, None]
        code = tl.minimum(tl.maximum(_round(s, r), -half), half - 1).to(tl.int32) & (2 * half - 1)
    elif r.bits == 8:
        scale = over(most, 127.0)
        s = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
        whole = tl.floor(tl.abs(s))
        whole += tl.where(tl.abs(s) - whole >= 0.5, 1.0, 0.0)
        code = tl.where(s < 0, -whole, whole).to(tl.int32) & 255
    else:
        scale = _largest(g, i, r) * (-1.0 / half) + not_finite(g, 2)
        s = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
        code = tl.minimum(tl.maximum((s + (half + 0.5)).to(tl.int32), 0), 2 * half - 1)
    return code, scale


@triton.jit
def _affine(g, inside, r: tl.constexpr):
    """Whole multiples of a scale above a minimum."""
    most: tl.constexpr = (1 << r.bits) - 1
    lane = tl.arange(0, r.lanes)
    g = tl.where(inside, g, tl.sum(tl.where((lane == 0)[None, None, :], g, 0.0), 2)[:, :, None])  # padding widens no range
    low = tl.min(g, 2)
    scale = over(tl.max(g, 2) - low, most) + not_finite(g, 2)
    if r.rule == "ggml":
        s = (g - low[:, :, None]) * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None] + 0.5
        code = tl.minimum(s.to(tl.int32), most)
    else:
        scale = tl.maximum(scale, r.smallest) + not_finite(g, 2)
        against, edge = _kept(scale, r), _kept(low, r)
        s = divided(g - edge[:, :, None], against[:, :, None])
        code = tl.minimum(tl.maximum(_round(s, r), 0.0), most).to(tl.int32)
    return code, scale, low


@triton.jit
def _largest(g, i, r: tl.constexpr):
    """The value of largest magnitude, with its sign; the first channel of several."""
    c = tl.reshape(tl.broadcast_to(tiles.channel(r, i)[None, :], (g.shape[0], r.width)), g.shape)
    magnitude = tl.abs(g)
    first = tl.min(tl.where(magnitude == tl.max(magnitude, 2)[:, :, None], c, 2**30), 2)
    return tl.sum(tl.where(c == first[:, :, None], g, 0.0), 2)


@triton.jit
def _nonlinear(g, i, t, r: tl.constexpr):
    """The nearest of uneven levels; the scale that is best for these codes, values weighted by their squares, is what is kept."""
    largest = _largest(g, i, r)
    scale = over(largest, r.largest)
    u = g * tl.where(scale == 0, 0.0, inverse(scale))[:, :, None]
    code = tl.full(g.shape, 0, tl.int32)
    for k in tl.static_range(2**r.bits - 1):
        code += (u >= tl.load(t.edges + k)).to(tl.int32)
    q, x = tl.load(t.levels + code).to(tl.float64), g.to(tl.float64)
    power, zero = tl.sum(x * x * q * q, 2), tl.abs(largest) < r.smallest
    best = tl.sum(x * x * x * q, 2) / tl.where(power == 0, 1.0, power)
    return tl.where(zero[:, :, None], 0, code), tl.where(zero, 0.0, best.to(tl.float32)) + not_finite(g, 2)


@triton.jit
def _signed_affine(g, r: tl.constexpr):
    """From the edge of larger magnitude, in steps that have a sign, so many that zero is a level; what is kept decides no code."""
    most: tl.constexpr = (1 << r.bits) - 1
    low, high = tl.min(g, 2), tl.max(g, 2)
    step = tl.maximum(over(high - low, most), r.smallest)
    below = tl.abs(low) > tl.abs(high)
    edge, scale = tl.where(below, low, high), tl.where(below, step, -step)
    n = round_even(tl.div_rn(edge, scale))
    scale = tl.where(n == 0, scale, tl.div_rn(edge, tl.where(n == 0, 1.0, n)))
    edge = tl.where(n == 0, 0.0, edge)
    code = nearest_even(divided(g - edge[:, :, None], scale[:, :, None]))
    return tl.minimum(tl.maximum(code, 0.0), most).to(tl.int32), scale + not_finite(g, 2), edge + not_finite(g, 2)


@triton.jit
def _minifloat(g, t, head, r: tl.constexpr):
    """The nearest eight-bit float, halves to even; what is beyond the largest becomes it."""
    scale = tl.max(tl.abs(g), 2) + not_finite(g, 2)
    if r.by_head:
        s = over(g, tl.load(t.head_scale + head))
    elif r.scaled:
        scale = tl.maximum(over(scale, r.largest), r.smallest) + not_finite(g, 2)
        s = g * inverse(scale)[:, :, None]
    else:
        s = g
    return minifloat(s, r.largest, r.lowest, r.mantissa), scale


@triton.jit
def _kept(scale, r: tl.constexpr):
    if r.kept:
        scale = scale.to(tl.float16).to(tl.float32)
    return scale


@triton.jit
def _round(s, r: tl.constexpr):
    if r.up:
        whole = tl.floor(s + 0.5)
    else:
        whole = nearest_even(s)
    return whole
