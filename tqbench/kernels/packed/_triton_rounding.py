"""Arithmetic in Triton that comes to the same bits on a GPU, in the interpreter and in the codecs: divisions that are rounded once, halves
to even, maxima that do not lose a NaN."""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDING = tl.constexpr(12582912.0)  # 1.5 · 2²³: added and taken away again, a float32 is rounded to whole numbers, halves to even


@triton.jit
def over(x, y):
    """x / y, rounded once."""
    return tl.div_rn(x, tl.full(x.shape, 0.0, tl.float32) + y)


@triton.jit
def inverse(scale):
    """1 / scale; of zero one."""
    return tl.div_rn(1.0 + tl.full(scale.shape, 0.0, tl.float32), tl.where(scale == 0, 1.0, scale))


@triton.jit
def divided(x, scale):
    """A tile over scales that it is broadcast with, rounded once; a scale of zero divides as one."""
    return tl.div_rn(x, tl.broadcast_to(tl.where(scale == 0, 1.0, scale), x.shape))


@triton.jit
def nearest_even(s):
    """Whole numbers below 2²² in magnitude; what is larger stays larger."""
    return (s + ROUNDING) - ROUNDING


@triton.jit
def round_even(s):
    """The same for numbers of any size."""
    whole = tl.floor(s)
    odd = whole * 0.5 != tl.floor(whole * 0.5)
    return tl.where((s - whole > 0.5) | ((s - whole == 0.5) & odd), whole + 1.0, whole)


@triton.jit
def half_below(x):
    """The largest fp16 number that is not above x."""
    near = x.to(tl.float16)
    wide, bits = near.to(tl.float32), near.to(tl.int16, bitcast=True).to(tl.int32)
    lower = tl.where(wide == 0, -0x7FFF, tl.where(wide > 0, bits - 1, bits + 1))
    return tl.where(wide > x, lower, bits).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def stored(x, dtype: tl.constexpr):
    """Float32 in the type of an array, to the nearest: the interpreter would cut bfloat16 off."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        near = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        y = tl.where(x == x, near, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def minifloat(s, largest: tl.constexpr, lowest: tl.constexpr, mantissa: tl.constexpr):
    """The codes of the nearest eight-bit floats, halves to even; what is beyond the largest becomes it. 127 is NaN in both formats."""
    a = tl.minimum(tl.abs(s), largest)
    exponent = tl.maximum((a.to(tl.int32, bitcast=True) >> 23) - 127, lowest)
    steps = a * ((127 + mantissa - exponent) << 23).to(tl.float32, bitcast=True)
    code = ((exponent - lowest) << mantissa) + nearest_even(steps).to(tl.int32)
    return tl.where(s - s == 0, code | (s.to(tl.int32, bitcast=True) >> 24 & 128), 127)


@triton.jit
def not_finite(x, axis: tl.constexpr):
    """Zero for each row, or NaN where a value is not finite. To be added last: on a GPU a maximum leaves NaN out."""
    return tl.sum(x * 0.0, axis)
